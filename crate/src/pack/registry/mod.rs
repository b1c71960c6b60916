//! The public checkpoints that are known: where they are, under which licence, and how each is sampled.
//!
//! The facts stand in `models.json`, which is part of the program; every entry names its source. Nothing here says
//! that a checkpoint was tried: what the files contain is found out when they are packed.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{PackOptions, Summary, TOKENIZER_FILE};
use crate::error::{Error, Result};
use crate::model::cache::CacheFormat;
use crate::model::layout::Part;
use crate::model::manifest::{DType, INTERFACE};

mod table;

/// Everything that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Architectures, each with its configuration.
    #[serde(default)]
    pub families: Vec<Family>,
    /// Step tables.
    #[serde(default)]
    pub samplers: Vec<Sampler>,
    /// Published weights.
    pub checkpoints: Vec<Checkpoint>,
}

/// Checkpoints of the same shapes, which share text encoder, tokenizer and autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Name on the command line.
    pub id: String,
    /// Name for people.
    pub title: String,
    /// License of the weights the family comes from.
    pub license: String,
    /// Where the configuration was read.
    pub source: String,
    /// As in a manifest, without the tokenizer.
    pub text_encoder: Value,
    /// As in a manifest.
    pub transformer: Value,
    /// As in a manifest.
    pub autoencoder: Value,
    /// As in a manifest.
    pub video: Value,
    /// Files for the other parts.
    pub companions: Vec<Companion>,
}

/// A file for a part other than the denoiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Companion {
    /// Short name.
    pub id: String,
    /// The command line's name of the part: `text-encoder`, `tokenizer` or `autoencoder`.
    pub part: String,
    /// Repository on the Hugging Face hub, or a place with its host.
    pub repository: String,
    /// Path within the repository.
    pub file: String,
    /// Commit of the repository, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Length of the file in bytes where it is known, to the three digits that are published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// SHA-256 of the file in hex, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// License.
    pub license: String,
    /// Anything else worth knowing.
    #[serde(default)]
    pub note: String,
}

/// How weights are sampled. `x_s = (1 - s) x0 + s noise`; the denoiser predicts `v = noise - x0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    /// Name on the command line.
    pub id: String,
    /// Name for people.
    pub title: String,
    /// Which loop drives the steps.
    pub kind: SamplerKind,
    /// What happens between two steps: `renoise`, `euler` or `unipc`.
    pub step: String,
    /// Shift `k` of the schedule the table comes from: `s' = k s / (1 + (k - 1) s)`.
    pub shift: f64,
    /// Noise levels, already shifted, strictly decreasing; 0 follows the last one.
    pub sigmas: Vec<f64>,
    /// What the denoiser is told at each of them.
    pub timesteps: Vec<f64>,
    /// Where the table was read.
    pub source: String,
    /// Latent frames of a chunk of a causal sampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_frames: Option<usize>,
    /// Timestep of the pass that fills a causal sampler's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_timestep: Option<f64>,
    /// Noise levels of the first chunk, where they are others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_sigmas: Option<Vec<f64>>,
    /// Latent frames that a causal sampler looks back, besides the sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_frames: Option<usize>,
    /// First latent frames that a causal sampler always sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink_frames: Option<usize>,
    /// Factor of the initial noise, where it is not 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_scale: Option<f64>,
    /// Strength of the guidance, `v = u + g (c - u)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Order of a multi-step solver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<usize>,
}

/// Which loop drives the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// All frames at once.
    Bidirectional,
    /// Chunk after chunk, with a cache of keys and values.
    Causal,
    /// All frames at once, twice a step: with and without the prompt.
    Guided,
}

/// Published weights of a denoiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Short name.
    pub id: String,
    /// Name for people.
    pub title: String,
    /// Repository on the Hugging Face hub.
    pub repository: String,
    /// Path within the repository.
    pub file: String,
    /// Commit of the repository.
    pub revision: String,
    /// Length of the file in bytes, at least to the three digits that are published.
    pub bytes: u64,
    /// SHA-256 of the file in hex, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// License as the repository states it.
    pub license: String,
    /// `safetensors`, `pytorch` or `mlx-int8`.
    pub format: String,
    /// Samplers the weights were made for, the usual one first.
    pub samplers: Vec<String>,
    /// LoRA in the same repository that belongs to the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<String>,
    /// Length of that LoRA in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_bytes: Option<u64>,
    /// SHA-256 of that LoRA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_sha256: Option<String>,
    /// Anything else worth knowing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What has to be fetched for an entry: a file, or a folder of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Repository on the Hugging Face hub, `OWNER/NAME`.
    pub repository: String,
    /// Path within the repository, of a file or of a folder.
    pub path: String,
    /// Commit of the repository, where one is known.
    pub revision: Option<String>,
    /// Length in bytes, at least to three digits, of a file whose length is known.
    pub bytes: Option<u64>,
    /// SHA-256 of a file in hex, where it is known.
    pub sha256: Option<String>,
}

impl Sampler {
    /// As in a manifest; `schedule` repeats where it comes from. Timesteps are listed where they are not 1000 times sigma,
    /// as those of FastWan, which are rounded: 757 belongs to sigma 0.75676.
    fn manifest(&self) -> Value {
        let mut sampler = json!({
            "sigmas": self.sigmas, "shift": 1.0, "step": self.step, "timestep_scale": 1000.0,
            "initial_scale": self.initial_scale.unwrap_or(1.0), "guidance": self.guidance.unwrap_or(1.0),
            "schedule": self,
        });
        let usual = |(timestep, sigma): (&f64, &f64)| (timestep - 1000.0 * sigma).abs() < 1e-3;
        if !self.timesteps.iter().zip(&self.sigmas).all(usual) {
            sampler["timesteps"] = json!(self.timesteps);
        }
        if let Some(chunk) = self.chunk_frames {
            sampler["causal"] = json!({
                "chunk_frames": chunk,
                "sink_frames": self.sink_frames.unwrap_or(0),
                "window_frames": self.window_frames.unwrap_or(WHOLE_CLIP),
                "context_timestep": self.context_timestep.unwrap_or(0.0),
                "cache": CACHE,
            });
            if let Some(first) = &self.first_sigmas {
                sampler["causal"]["first_sigmas"] = json!(first);
            }
        }
        sampler
    }
}

/// Latent frames that causal models without a window of their own look back: the length they were trained at.
const WHOLE_CLIP: usize = 21;

/// Storage of the causal models' caches. The largest clips leave 1.9 GB of keys and values in f32, beside the weights
/// more than most browsers give, and 0.53 GB so; the rounding is that of weights in q8. `--cache` chooses another one.
const CACHE: CacheFormat = CacheFormat::Q8;

/// The registry.
///
/// # Errors
/// [`Error::Internal`] when the data that the program was built with is wrong; a test reads it.
pub fn registry() -> Result<&'static Registry> {
    static REGISTRY: LazyLock<std::result::Result<Registry, String>> =
        LazyLock::new(|| serde_json::from_str(include_str!("models.json")).map_err(|error| error.to_string()));
    REGISTRY.as_ref().map_err(|reason| Error::Internal(format!("the list of models cannot be read, {reason}")))
}

/// What a family's model takes up in one format, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackedSizes {
    /// Which family.
    pub family: String,
    /// Format of the matrices in the blocks.
    pub format: DType,
    /// The denoiser.
    pub transformer: u64,
    /// The text encoder, its token table included.
    pub text_encoder: u64,
    /// Decoder and encoder.
    pub autoencoder: u64,
    /// Number of shards.
    pub shards: usize,
}

impl Registry {
    /// A list of one's own in the form of `kinora models --json`; families, samplers and sizes may be missing.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] saying where the text is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong =
            |error: serde_json::Error| Error::InvalidRequest(format!("the list of models cannot be read, {error}"));
        let mut list: Value = serde_json::from_str(text).map_err(wrong)?;
        if let Some(list) = list.as_object_mut() {
            list.remove("sizes");
        }
        serde_json::from_value(list).map_err(wrong)
    }

    /// What every family takes up in the formats that a browser can be given.
    ///
    /// # Errors
    /// [`Error::Manifest`] when a configuration is wrong; a test checks all.
    pub fn sizes(&self) -> Result<Vec<PackedSizes>> {
        let mut rows = Vec::new();
        let Some(sampler) = self.samplers.first() else { return Ok(rows) };
        for family in &self.families {
            for format in [DType::Q4, DType::Q8, DType::F16] {
                let summary = family.sizes(sampler, &PackOptions { format, ..PackOptions::default() })?;
                let bytes = |parts: &[Part]| {
                    summary.parts.iter().filter(|row| parts.contains(&row.part)).map(|row| row.bytes).sum()
                };
                rows.push(PackedSizes {
                    family: family.id.clone(),
                    format,
                    transformer: bytes(&[Part::Transformer]),
                    text_encoder: bytes(&[Part::TextEncoder]),
                    autoencoder: bytes(&[Part::Decoder, Part::Encoder]),
                    shards: summary.shards.len(),
                });
            }
        }
        Ok(rows)
    }

    /// A family by its name.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming those there are.
    pub fn family(&self, id: &str) -> Result<&Family> {
        find("family", id, &self.families, |family| &family.id)
    }

    /// What belongs to a checkpoint, or to a file for another part, by its short name.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming those there are, and for a file that does not lie on the hub.
    pub fn remote(&self, id: &str) -> Result<Vec<Remote>> {
        if let Some(found) = self.checkpoints.iter().find(|checkpoint| checkpoint.id == id) {
            let Checkpoint { repository, file, revision, bytes, sha256, lora, lora_bytes, lora_sha256, .. } = found;
            let remote = |path: &String, bytes, sha256: &Option<String>| Remote {
                repository: repository.clone(),
                path: path.clone(),
                revision: Some(revision.clone()),
                bytes,
                sha256: sha256.clone(),
            };
            let lora = lora.as_ref().map(|lora| remote(lora, *lora_bytes, lora_sha256));
            return Ok([remote(file, Some(*bytes), sha256)].into_iter().chain(lora).collect());
        }
        let companions = || self.families.iter().flat_map(|family| &family.companions);
        let Some(found) = companions().find(|companion| companion.id == id) else {
            let names = self.checkpoints.iter().map(|checkpoint| &checkpoint.id);
            let names: Vec<&str> =
                names.chain(companions().map(|companion| &companion.id)).map(String::as_str).collect();
            return Err(Error::InvalidRequest(format!("there is no model {id:?}, there are {}", names.join(", "))));
        };
        let Companion { repository, file, revision, bytes, sha256, note, .. } = found;
        if repository.split('/').count() != 2 {
            return Err(Error::InvalidRequest(format!(
                "{file} lies on {repository} and not on the hub, fetch it from there ({note})"
            )));
        }
        let (repository, path) = (repository.clone(), file.clone());
        Ok(vec![Remote { repository, path, revision: revision.clone(), bytes: *bytes, sha256: sha256.clone() }])
    }

    /// A sampler by its name.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming those there are.
    pub fn sampler(&self, id: &str) -> Result<&Sampler> {
        find("sampler", id, &self.samplers, |sampler| &sampler.id)
    }
}

fn find<'a, T>(what: &str, id: &str, list: &'a [T], name: fn(&T) -> &String) -> Result<&'a T> {
    list.iter().find(|item| name(item) == id).ok_or_else(|| {
        let names: Vec<&str> = list.iter().map(|item| name(item).as_str()).collect();
        Error::InvalidRequest(format!("there is no {what} {id:?}, there are {}", names.join(", ")))
    })
}

impl Family {
    /// `model.json` of a model of this family; `training` is shown and never interpreted.
    pub fn model_json(&self, name: &str, sampler: &Sampler, training: Value) -> Value {
        let mut text = self.text_encoder.clone();
        text["tokenizer"] = json!({"path": TOKENIZER_FILE});
        json!({
            "interface": INTERFACE,
            "name": name,
            "title": format!("{} ({})", self.title, sampler.title),
            "description": "Packed from published weights.",
            "license": format!("{} (weights)", self.license),
            "text_encoder": text,
            "transformer": self.transformer,
            "autoencoder": self.autoencoder,
            "sampler": sampler.manifest(),
            "video": self.video,
            "training": training,
        })
    }

    /// What a model of this family takes up: the sizes follow from the configuration alone. The tokenizer
    /// and the manifest itself are not counted.
    ///
    /// # Errors
    /// As `pack`, for wrong options.
    pub fn sizes(&self, sampler: &Sampler, options: &PackOptions) -> Result<Summary> {
        super::published::summary(&self.model_json("sizes", sampler, Value::Null).to_string(), options)
    }
}

#[cfg(test)]
mod tests;
