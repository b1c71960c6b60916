//! What a clip will need, told from the manifest alone: bytes to fetch, and memory by stage. Pure arithmetic in `u64`;
//! no device is opened and no file but the manifest is read.
//!
//! | figure | formula, in bytes | follows |
//! |---|---|---|
//! | download | tensors by part, the rest of their shards, tokenizer, prompt pack | `loader.ts`, `directory.rs` |
//! | weights | stored where they stay packed, else 4 a value | `weights.rs`, `ops.rs` |
//! | streamed encoder | layer being read + layer that runs (GPU) + one shard | `text/stream.rs` |
//! | parts in turns | the part that works; while it is read, its tensors and one shard besides | `parts.rs` |
//! | keys and values of the prompt | 8 * layers * max_tokens * width, twice where guided | `wan.rs`, `text_context` |
//! | key and value cache | 2 * row * layers * tokens a frame * min(sink + window, frames before) | `denoise/cache` |
//! | latents | 4 * channels * frames of a chunk * height * width for each copy | `engine.rs`, `generation.rs` |
//! | denoiser at work | the most that a walk through one block holds | `wan.rs`, `ops.rs`, `kernels` |
//! | decoder at work | the most that a walk through its layers holds, and the pictures made of it | `taehv.rs` |
//!
//! A row of the cache is a token's key or value in one block, in the words of
//! [`CacheLayout`](crate::model::cache::CacheLayout).
//!
//! A walk repeats the operations of a model in their order and holds as many bytes for each tensor as the device would
//! ([`bytes`]); what an operation needs besides is in [`ops`]. So a change to the order of a model's operations, or to
//! what a device does for one of them, has to be repeated here. `tests/memory.rs` measures whether it was.
//!
//! On a GPU the allocator keeps what it was given, so each stage has at least the GPU memory of the stages before it;
//! between parts that take turns it is told to give it back.

mod autoencoder;
mod bytes;
mod denoiser;
mod limits;
mod needs;
mod ops;
mod stages;
mod table;
mod text;
mod weights;

use std::iter::Sum;
use std::ops::Add;

use serde::Serialize;

pub use bytes::Bytes;
pub use limits::Limits;
pub use needs::ClipNeeds;

use crate::error::Result;
use crate::model::layout::Part;
use crate::model::manifest::{ClipSize, Manifest};
use bytes::Machine;
use stages::{Stages, Work};
use weights::Weights;

/// What a model costs in host memory for each tensor and shard that its manifest lists, and for its tokenizer, beside
/// their bytes: names, numbers and tables as they are held after reading.
const MANIFEST_ENTRY: u64 = 1024;
const TOKENIZER_FACTOR: u64 = 12;
/// What a tokenizer of any size takes: its cache is made whole at once, for ten thousand words.
const TOKENIZER: u64 = 1 << 20;
/// What a page keeps of a clip's frames at the most: the frames of longer clips go to the video encoder as they come,
/// and no further. `web/src/recording.ts` has the same number.
const PAGE_KEEPS: u64 = 128 << 20;

/// What the runtime has on a GPU in a browser besides a model's tensors: buffers to send and to read back through.
const GPU_RUNTIME: u64 = 13 << 19;
/// What the self-test takes there while it runs, before the first clip.
const GPU_SELF_TEST: u64 = 15 << 19;

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The processor, with so many threads; a browser has one.
    Cpu {
        /// Threads.
        threads: u64,
    },
    /// WebGPU in a browser, wgpu natively.
    Gpu,
}

impl Target {
    fn threads(self) -> u64 {
        match self {
            Self::Cpu { threads } => threads.max(1),
            Self::Gpu => 1,
        }
    }
}

/// What becomes of a model's text encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextWeights {
    /// Loaded with the rest: fast for many prompts, and as large as it is.
    #[default]
    Resident,
    /// Left in storage and read layer by layer for each prompt.
    Streamed,
    /// Left out: only prompts of a prompt pack can be made.
    Absent,
}

/// Text encoders from this size on are read layer by layer: they would not fit beside the rest of a model. `worker.ts`
/// has the same number.
const STREAMED_FROM: u64 = 512 << 20;

impl TextWeights {
    /// What a page does where it is not told otherwise.
    pub fn usual(manifest: &Manifest) -> Self {
        let tensors = manifest.tensors.iter().filter(|(name, _)| Part::of(name) == Some(Part::TextEncoder));
        let bytes: u64 = tensors.map(|(_, info)| info.bytes()).sum();
        if !manifest.text_encoder.hosted {
            Self::Absent
        } else if manifest.prompt_pack.is_some() || bytes >= STREAMED_FROM {
            Self::Streamed
        } else {
            Self::Resident
        }
    }
}

/// Whether the parts of a model are in memory together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// All of them, for as long as the model is.
    #[default]
    Together,
    /// One after the other: the layers of the text encoder, then the denoiser, then the decoder, each read from storage
    /// when the one before it has gone. There are no previews then, and no frames before the last step.
    Turns,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRequest {
    /// A clip that the model offers, see [`Manifest::find_size`].
    pub size: ClipSize,
    /// Tokens of the prompt, the end mark included; `None` for as many as the model takes.
    pub tokens: Option<u64>,
    /// What computes.
    pub target: Target,
    /// What becomes of the text encoder.
    pub text: TextWeights,
    /// The prompt is in a prompt pack, so that the text encoder has nothing to do.
    pub packed: bool,
    /// Bytes of all LoRA files together.
    pub lora_bytes: u64,
    /// Whether the parts are in memory together. In turns a text encoder is streamed wherever there is one.
    pub residency: Residency,
}

/// Bytes in host memory (in a browser that of the wasm engine) and on the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Both {
    /// Host memory.
    pub host: Bytes,
    /// GPU memory; 0 on the CPU.
    pub gpu: Bytes,
}

impl Both {
    fn host(bytes: Bytes) -> Self {
        Self { host: bytes, gpu: Bytes::default() }
    }

    /// Where the tensors of a device are.
    fn on(target: Target, bytes: Bytes) -> Self {
        if target == Target::Gpu { Self { host: Bytes::default(), gpu: bytes } } else { Self::host(bytes) }
    }

    /// Both together.
    pub fn total(self) -> Bytes {
        self.host + self.gpu
    }
}

impl Add for Both {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { host: self.host + other.host, gpu: self.gpu + other.gpu }
    }
}

impl Sum for Both {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// Bytes of something that is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// Bytes.
    pub bytes: Bytes,
}

impl Row {
    fn of(what: &str, bytes: Bytes) -> Self {
        Self { what: what.into(), bytes }
    }
}

/// Something that takes memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it is.
    pub what: String,
    /// Its bytes.
    #[serde(flatten)]
    pub bytes: Both,
}

impl Item {
    fn of(what: &str, bytes: Both) -> Self {
        Self { what: what.into(), bytes }
    }
}

/// A stage of making a clip and everything that is in memory at its fullest moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// `load`, on a GPU `self-test`, `text`, `prompt`, `denoise` or `decode`; in turns also `read denoiser` and `read decoder`.
    pub name: &'static str,
    /// What is there, the weights first.
    pub items: Vec<Item>,
    /// Sum of the items.
    pub peak: Both,
}

/// What a clip will need. `Display` gives a table for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Number of frames.
    pub frames: u32,
    /// Tokens of the prompt that are counted with.
    pub tokens: u64,
    /// What computes.
    pub target: Target,
    /// Whether the parts of the model are in memory together.
    pub residency: Residency,
    /// What is fetched before the first clip.
    pub download: Vec<Row>,
    /// Sum of the downloads.
    pub download_bytes: Bytes,
    /// What stays in memory between clips.
    pub resident: Vec<Item>,
    /// Stages in their order.
    pub stages: Vec<Stage>,
    /// The most host memory and the most GPU memory of any stage.
    pub peak: Both,
    /// The longest piece of memory that a GPU has to give and bind at once; 0 on the CPU.
    pub largest_buffer: Bytes,
    /// Frames that a page keeps for its player, outside the engine.
    pub page: Bytes,
}

impl MemoryPlan {
    /// What a clip of this model will need.
    ///
    /// # Errors
    /// [`Error::UnsupportedSize`](crate::error::Error::UnsupportedSize) for a clip that the model does not offer.
    pub fn of(manifest: &Manifest, request: &PlanRequest) -> Result<Self> {
        let ClipSize { width, height, frames } = request.size;
        let size = manifest.find_size(Some(width), Some(height), Some(frames))?;
        let request = request.settled();
        let PlanRequest { target, text, packed, lora_bytes, .. } = request;
        let most = manifest.text_encoder.max_tokens as u64;
        let tokens = request.tokens.unwrap_or(most).clamp(1, most);
        let weights = Weights::new(manifest, &request);
        let machine = Machine::new(target);
        let turns = request.residency == Residency::Turns;
        let mut pages = [Bytes::default(); 4];
        let encoding = (text != TextWeights::Absent && !packed)
            .then(|| text::encoding(manifest, &weights, text, tokens, &machine));
        pages[0] = machine.pages();
        if turns || text == TextWeights::Streamed {
            machine.forget();
        }
        let [_, _, rows, columns] = manifest.latent_shape(width, height, frames);
        let lora = lora_bytes > 0 || manifest.size_with_lora([rows, columns]).is_some();
        let mut denoising = denoiser::denoising(manifest, &weights, size, &machine, lora);
        [pages[1], pages[2]] = denoising.pages;
        if turns {
            denoising.kept.clear();
            machine.forget();
        }
        // Between chunks the decoder remembers the one before.
        let _before = (denoising.chunked && !turns).then(|| autoencoder::decoding(manifest, size, &machine));
        let decoding = autoencoder::decoding(manifest, size, &machine);
        pages[3] = machine.pages();

        let resident = resident(manifest, &weights, &request);
        let work = Work { encoding: encoding.as_ref(), denoising: &denoising, decoding: &decoding, pages };
        let stages = Stages::of(manifest, &request, &weights, &resident, &work);

        let largest = denoising.largest.max(decoding.largest).max(weights.largest_on_gpu());
        let largest = encoding.map_or(largest, |encoding| largest.max(encoding.largest));
        let on_gpu = target == Target::Gpu;
        let download = weights::download(manifest, text, packed);
        Ok(Self {
            width,
            height,
            frames,
            tokens,
            target,
            residency: request.residency,
            download_bytes: download.iter().map(|row| row.bytes).sum(),
            download,
            peak: Both {
                host: stages.iter().map(|stage| stage.peak.host).max().unwrap_or_default(),
                gpu: stages.iter().map(|stage| stage.peak.gpu).max().unwrap_or_default(),
            },
            resident,
            stages,
            largest_buffer: if on_gpu { largest } else { Bytes::default() },
            page: (Bytes::new(4) * u64::from(width) * u64::from(height) * u64::from(frames))
                .min(Bytes::new(PAGE_KEEPS)),
        })
    }

    /// The most memory that any stage takes, host and GPU together.
    pub fn total(&self) -> Bytes {
        self.stages.iter().map(|stage| stage.peak.total()).max().unwrap_or_default()
    }

    /// The most memory that a page takes: the engine, and the frames that the page keeps.
    pub fn in_page(&self) -> Bytes {
        self.total() + self.page
    }
}

impl PlanRequest {
    /// In turns no text encoder is resident.
    fn settled(self) -> Self {
        let streamed = self.residency == Residency::Turns && self.text == TextWeights::Resident;
        Self { text: if streamed { TextWeights::Streamed } else { self.text }, ..self }
    }
}

/// What stays in memory as long as the model does.
fn resident(manifest: &Manifest, weights: &Weights<'_>, request: &PlanRequest) -> Vec<Item> {
    let parts: &[Part] = match request.residency {
        Residency::Together => &[Part::TextEncoder, Part::Transformer, Part::Decoder, Part::Encoder],
        Residency::Turns => &[],
    };
    let mut items: Vec<Item> = parts.iter().map(|&part| weights.item(part)).collect();
    // Half precision becomes single on the CPU; bfloat16 does everywhere.
    items.push(Item::of("LoRA", Both::on(request.target, Bytes::new(request.lora_bytes) * 2)));
    let entries = weights.entries();
    let tokenizer = match request.text {
        TextWeights::Absent => Bytes::default(),
        _ => Bytes::new(manifest.text_encoder.tokenizer.bytes) * TOKENIZER_FACTOR + Bytes::new(TOKENIZER),
    };
    let pack = manifest.prompt_pack.as_ref().map_or(0, |pack| pack.bytes);
    let files = Bytes::new(entries) * MANIFEST_ENTRY + tokenizer + Bytes::new(pack);
    items.push(Item::of("manifest and tokenizer", Both::host(files)));
    items.retain(|item| item.bytes != Both::default());
    items
}
