//! The manifest: everything the engine has to know about a model before it reads one weight.
//!
//! A manifest comes from the network, so [`Manifest::parse`] believes nothing: what it returns has been checked
//! against itself (sizes, shapes, offsets, names), with 64-bit arithmetic also where `usize` has 32 bits.
//! Fields that this version does not know are allowed and ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
pub use crate::model::config::{
    AutoencoderConfig, AutoencoderKind, CausalConfig, EncoderPadding, SamplerConfig, SamplerStep, TextEncoderConfig,
    TextEncoderKind, TransformerConfig, TransformerKind,
};
use crate::model::layout::Part;
use crate::model::plan::ClipNeeds;
use crate::model::shards::hex;
use crate::model::validate;

/// The manifest version this engine reads and writes.
pub const SCHEMA_VERSION: u32 = 1;
/// The family of models this engine runs; a manifest with another one is refused.
pub const INTERFACE: &str = "kinora-wan-1";
/// Longest manifest that is parsed, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Largest shard, in bytes: small enough for every content network and for one copy in a browser's heap.
pub const MAX_SHARD_BYTES: u64 = 16 << 20;
/// Every tensor starts at a multiple of this many bytes within its first shard.
pub const TENSOR_ALIGNMENT: u64 = 16;

/// A checked model description. Lengths are in elements, pixels or frames; `bytes` fields are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Always [`INTERFACE`].
    pub interface: String,
    /// Short name, also the beginning of the shards' file names: `a-z`, `0-9`, `.`, `_`, `-`.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// What the model makes, in a sentence or two.
    #[serde(default)]
    pub description: String,
    /// License of the weights.
    pub license: String,
    /// The text encoder.
    pub text_encoder: TextEncoderConfig,
    /// The denoiser.
    pub transformer: TransformerConfig,
    /// Latents to frames and back.
    pub autoencoder: AutoencoderConfig,
    /// How the denoiser is driven.
    pub sampler: SamplerConfig,
    /// The clips the model makes.
    pub video: VideoConfig,
    /// Words the model was trained on; empty where this is not known.
    #[serde(default)]
    pub vocabulary: Vec<String>,
    /// Prompts that show what the model can do.
    #[serde(default)]
    pub examples: Vec<String>,
    /// What a device must offer.
    #[serde(default)]
    pub requires: Requirements,
    /// Prompts whose embeddings are shipped, so that they need no text encoder; see [`crate::text::prompts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_pack: Option<FileInfo>,
    /// Facts about the training, free-form; shown, never interpreted.
    #[serde(default)]
    pub training: serde_json::Value,
    /// The weight files, in order of first use.
    pub shards: Vec<ShardInfo>,
    /// Every tensor by name, with where its bytes lie.
    #[serde(deserialize_with = "unique_tensors")]
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// The clips the model makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoConfig {
    /// Frames per second.
    pub fps: u32,
    /// Offered sizes; the first one, with its first number of frames, is the default.
    pub sizes: Vec<VideoSize>,
}

/// One offered picture size, in pixels, with the numbers of frames offered for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoSize {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Offered numbers of frames.
    pub frames: Vec<u32>,
    /// Rank of the low-rank change that the denoiser needs for this size; see
    /// [`size_lora`](crate::model::layout::size_lora).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<usize>,
}

/// The size of one clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipSize {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Number of frames.
    pub frames: u32,
}

/// What a device must offer. 0 means that nothing is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// WebGPU features by their WebGPU names.
    #[serde(default)]
    pub features: Vec<String>,
    /// WebGPU limit `maxBufferSize`, in bytes.
    #[serde(default)]
    pub max_buffer_size: u64,
    /// WebGPU limit `maxStorageBufferBindingSize`, in bytes.
    #[serde(default)]
    pub max_storage_buffer_binding_size: u64,
    /// Estimate of the memory in use at the peak, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Memory by clip, for a page that has not fetched the engine yet; the packer computes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clips: Vec<ClipNeeds>,
}

/// A file that is fetched whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Path relative to the manifest.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// One weight file.
pub type ShardInfo = FileInfo;

/// One tensor. Quantized bytes are all values row-major, then the f16 scales row-major; see [`crate::model::quant`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Number format.
    pub dtype: DType,
    /// Lengths of the axes, the last one changing fastest.
    pub shape: Vec<usize>,
    /// Values that share a scale, along the last axis; only for quantized formats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Where the bytes lie; the parts concatenate.
    pub parts: Vec<TensorPart>,
}

impl TensorInfo {
    /// Number of bytes of all parts together.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A run of bytes within a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorPart {
    /// Index into [`Manifest::shards`].
    pub shard: usize,
    /// First byte within the shard.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// Number format of a stored tensor, little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// 8-bit integers with a scale per group.
    Q8,
    /// 4-bit integers with a scale per group.
    Q4,
}

impl DType {
    /// Whether groups of values share a scale.
    pub fn quantized(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

impl fmt::Display for ClipSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} ({} frames)", self.width, self.height, self.frames)
    }
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`Error::Manifest`] for a manifest that is too long, is not JSON, lacks a field or contradicts itself;
    /// [`Error::Tensor`] when its tensors are not the ones its configuration asks for.
    pub fn parse(json: &str) -> Result<Self> {
        if json.len() > MAX_MANIFEST_BYTES {
            let length = json.len();
            return Err(Error::Manifest(format!("it has {length} bytes, at most {MAX_MANIFEST_BYTES} are read")));
        }
        let manifest: Self =
            serde_json::from_str(json).map_err(|error| Error::Manifest(format!("it cannot be read, {error}")))?;
        validate::config(&manifest)?;
        validate::files(&manifest)?;
        crate::model::layout::check(&manifest)?;
        Ok(manifest)
    }

    /// Shape `[channels, frames, height, width]` of the latents of a clip. The size must be one that
    /// [`find_size`](Self::find_size) gave. Latents are whole tokens: where the size isn't, they reach beyond the
    /// picture on both sides, and [`cut`](crate::frames::cut) takes the middle of the decoded frames.
    pub fn latent_shape(&self, width: u32, height: u32, frames: u32) -> [usize; 4] {
        let space = self.autoencoder.space_compression();
        let time = self.autoencoder.time_compression();
        let latent_frames = (frames as usize).div_ceil(time);
        let [_, rows, columns] = self.transformer.patch_size;
        let cells = |pixels: u32, patch: usize| (pixels as usize).div_ceil(space).next_multiple_of(patch);
        [self.autoencoder.latent_channels, latent_frames, cells(height, rows), cells(width, columns)]
    }

    /// The size that has a low-rank change of its own and latents of this height and width.
    pub(crate) fn size_with_lora(&self, grid: [usize; 2]) -> Option<&VideoSize> {
        let own = |size: &&VideoSize| {
            let [_, _, height, width] = self.latent_shape(size.width, size.height, 1);
            size.lora_rank.is_some() && [height, width] == grid
        };
        self.video.sizes.iter().find(own)
    }

    /// The default clip.
    pub fn default_size(&self) -> ClipSize {
        let size = &self.video.sizes[0];
        ClipSize { width: size.width, height: size.height, frames: size.frames[0] }
    }

    /// The clip of a request; what is not asked for comes from the first offered size that fits. The number of frames
    /// has to be an offered one too, but for models that make clips of any length, see [`Self::most_frames`].
    ///
    /// # Errors
    /// [`Error::UnsupportedSize`], naming all offered sizes.
    pub fn find_size(&self, width: Option<u32>, height: Option<u32>, frames: Option<u32>) -> Result<ClipSize> {
        let wanted = |asked: Option<u32>, offered: u32| asked.is_none_or(|asked| asked == offered);
        let shown = |size: &ClipSize| wanted(width, size.width) && wanted(height, size.height);
        let time = self.autoencoder.time_compression();
        let whole = |&frames: &u32| frames.checked_sub(1).is_some_and(|rest| (rest as usize).is_multiple_of(time));
        let length = frames.filter(whole).filter(|&frames| self.most_frames().is_some_and(|most| frames <= most));
        let offered = self.sizes().find(|size| shown(size) && wanted(frames, size.frames));
        let made = || self.sizes().find(shown).zip(length).map(|(size, frames)| ClipSize { frames, ..size });
        offered.or_else(made).ok_or_else(|| {
            let default = self.default_size();
            let mut supported: Vec<String> = self.sizes().map(|size| size.to_string()).collect();
            supported
                .extend(self.most_frames().map(|most| format!("or 1 to {most} frames, a multiple of {time} plus 1")));
            Error::UnsupportedSize {
                width: width.unwrap_or(default.width),
                height: height.unwrap_or(default.height),
                frames: frames.unwrap_or(default.frames),
                supported: supported.join(", "),
            }
        })
    }

    /// The longest clip of a model that makes clips of any length: causal ones do, chunk by chunk, in memory that does
    /// not grow with it. Their positions end at some frame. `None` for models that make the offered lengths alone.
    pub fn most_frames(&self) -> Option<u32> {
        let latent_frames = self.transformer.rope_max_seq_len;
        let frames = latent_frames.saturating_sub(1).saturating_mul(self.autoencoder.time_compression()) + 1;
        self.sampler.causal.as_ref().map(|_| frames.min(u32::MAX as usize) as u32)
    }

    /// Every offered clip, the default first.
    pub fn sizes(&self) -> impl Iterator<Item = ClipSize> + '_ {
        self.video.sizes.iter().flat_map(|size| {
            size.frames.iter().map(|&frames| ClipSize { width: size.width, height: size.height, frames })
        })
    }

    /// Whether a negative prompt is computed beside the prompt.
    pub fn guided(&self) -> bool {
        self.sampler.guidance != 1.0
    }

    /// Shards that hold some of the tensors of the given names, in order of first use.
    pub fn shards_of(&self, wanted: impl Fn(&str) -> bool) -> BTreeSet<usize> {
        let tensors = self.tensors.iter().filter(|(name, _)| wanted(name));
        tensors.flat_map(|(_, info)| info.parts.iter().map(|part| part.shard)).collect()
    }

    /// Stands for everything that decides about the embeddings of a prompt: tokenizer, configuration and the bytes of
    /// the text encoder's tensors, which the hashes of their shards pin down. 64 hexadecimal digits.
    ///
    /// It is made from the manifest alone, so that it can be told without fetching the encoder. The price: a model
    /// whose encoder is the same and whose shards are cut otherwise has another identity.
    pub fn text_identity(&self) -> String {
        let config = TextEncoderConfig {
            tokenizer: FileInfo { path: String::new(), ..self.text_encoder.tokenizer.clone() },
            hosted: true,
            ..self.text_encoder.clone()
        };
        let mut hash = Sha256::new();
        // Neither a string nor a number fails to be written as JSON.
        hash.update(serde_json::to_vec(&config).unwrap_or_default());
        for (name, info) in self.tensors.iter().filter(|(name, _)| name.starts_with(Part::TextEncoder.prefix())) {
            let TensorInfo { dtype, shape, group, parts } = info;
            hash.update(format!("\n{name} {dtype} {shape:?} {group:?}"));
            for TensorPart { shard, offset, bytes } in parts {
                hash.update(format!(" {} {offset} {bytes}", self.shards[*shard].sha256));
            }
        }
        hex(&hash.finalize())
    }

    /// Bytes that are fetched for this model besides the manifest: all shards and the tokenizer.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum::<u64>() + self.text_encoder.tokenizer.bytes
    }
}

/// JSON allows a key twice and serde keeps the last one; two readers could then see two different models.
fn unique_tensors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, TensorInfo>, D::Error> {
    struct Unique;
    impl<'de> Visitor<'de> for Unique {
        type Value = BTreeMap<String, TensorInfo>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors by name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut tensors = BTreeMap::new();
            while let Some((name, info)) = map.next_entry::<String, TensorInfo>()? {
                if tensors.contains_key(&name) {
                    return Err(de::Error::custom(format!("tensor {name:?} is there twice")));
                }
                tensors.insert(name, info);
            }
            Ok(tensors)
        }
    }
    deserializer.deserialize_map(Unique)
}
