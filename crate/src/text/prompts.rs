//! Prompt packs: embeddings of some prompts in a small file, so that these prompts need no text encoder.
//!
//! A pack is a safetensors file. Its tensors are f32: `prompt.0`, `prompt.1`, … and, for a guided model, `negative`,
//! each `[tokens, d_model]` of the real tokens only. Its metadata has one entry, `kinora_prompts`, JSON:
//!
//! ```json
//! {"version": 1, "model": "name", "text_encoder": "64 hexadecimal digits", "prompts": ["a red ball"], "negative": ""}
//! ```
//!
//! `text_encoder` is [`Manifest::text_identity`]: a pack works with the model it was made with and with no other.

use std::collections::{HashMap, HashSet};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::TextEncoder;
use super::tokenizer::Tokenizer;
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::model::manifest::Manifest;
use crate::model::validate::MAX_PROMPT_PACK_BYTES;

/// The entry of the file's metadata.
const METADATA: &str = "kinora_prompts";
const VERSION: u32 = 1;
const NEGATIVE: &str = "negative";

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    model: String,
    text_encoder: String,
    prompts: Vec<String>,
    /// The text that `negative` was made of; absent where the model is not guided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    negative: Option<String>,
}

/// Embeddings as a generation takes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Of the prompt, `[tokens, d_model]`.
    pub prompt: Vec<f32>,
    /// Of the text that guidance leads away from, `[tokens, d_model]`; only guided models look at it.
    pub negative: Option<Vec<f32>>,
}

/// One prompt of a pack.
#[derive(Debug, Clone, PartialEq)]
struct Packed {
    text: String,
    tokens: usize,
    embeddings: Vec<f32>,
}

/// A checked prompt pack.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptPack {
    model: String,
    identity: String,
    prompts: Vec<Packed>,
    negative: Option<Packed>,
}

fn refused<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::PromptPack(reason.into()))
}

impl PromptPack {
    /// Encodes prompts; one that is given twice is taken once.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`] and [`TextEncoder::encode`], and [`Error::InvalidRequest`] where there is no prompt.
    pub async fn encode(
        manifest: &Manifest,
        tokenizer: &Tokenizer,
        encoder: &TextEncoder,
        compute: &Compute,
        prompts: &[String],
    ) -> Result<Self> {
        let mut texts: Vec<(String, Vec<u32>)> = Vec::new();
        for prompt in prompts {
            let prompt = prompt.trim();
            let ids = tokenizer.encode(prompt)?.ids;
            if texts.iter().all(|(text, _)| text != prompt) {
                texts.push((prompt.into(), ids));
            }
        }
        if texts.is_empty() {
            return Err(Error::InvalidRequest("a prompt pack needs a prompt".into()));
        }
        let guided = tokenizer.negative().map(|ids| (manifest.sampler.negative_prompt.clone(), ids.to_vec()));
        let count = texts.len();
        texts.extend(guided);
        let ids: Vec<&[u32]> = texts.iter().map(|(_, ids)| ids.as_slice()).collect();
        let all = encoder.encode_all(compute, &ids).await?;
        let packed =
            |((text, ids), embeddings): ((String, Vec<u32>), Vec<f32>)| Packed { text, tokens: ids.len(), embeddings };
        let mut prompts: Vec<Packed> = texts.into_iter().zip(all).map(packed).collect();
        let negative = prompts.split_off(count).pop();
        Ok(Self { model: manifest.name.clone(), identity: manifest.text_identity(), prompts, negative })
    }

    /// The file.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a pack that is larger than any reader takes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = Header {
            version: VERSION,
            model: self.model.clone(),
            text_encoder: self.identity.clone(),
            prompts: self.prompts.iter().map(|packed| packed.text.clone()).collect(),
            negative: self.negative.as_ref().map(|packed| packed.text.clone()),
        };
        let failed = |error: String| Error::Internal(format!("the prompt pack could not be written ({error})"));
        let header = serde_json::to_string(&header).map_err(|error| failed(error.to_string()))?;
        let named = self.prompts.iter().enumerate().map(|(index, packed)| (tensor_name(index), packed));
        let negative = self.negative.iter().map(|packed| (NEGATIVE.to_string(), packed));
        let mut views = Vec::new();
        for (name, packed) in named.chain(negative) {
            let shape = vec![packed.tokens, packed.embeddings.len() / packed.tokens.max(1)];
            let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&packed.embeddings));
            views.push((name, view.map_err(|error| failed(error.to_string()))?));
        }
        let bytes = safetensors::serialize(views, Some(HashMap::from([(METADATA.to_string(), header)])))
            .map_err(|error| failed(error.to_string()))?;
        if bytes.len() as u64 > MAX_PROMPT_PACK_BYTES {
            return Err(Error::InvalidRequest(format!(
                "the prompt pack would have {} bytes and may have {MAX_PROMPT_PACK_BYTES}; take fewer prompts",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Reads a pack and checks that it was made with this model.
    ///
    /// # Errors
    /// [`Error::PromptPack`] for everything that is wrong with it.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self> {
        if bytes.len() as u64 > MAX_PROMPT_PACK_BYTES {
            return refused(format!("it has {} bytes, at most {MAX_PROMPT_PACK_BYTES} are read", bytes.len()));
        }
        let broken = |error| Error::PromptPack(format!("it is not a safetensors file ({error})"));
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let Some(header) = metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA)) else {
            return refused(format!("its metadata has no entry {METADATA:?}, so it is another kind of file"));
        };
        let header: Header = serde_json::from_str(header)
            .map_err(|error| Error::PromptPack(format!("its list of prompts cannot be read, {error}")))?;
        if header.version != VERSION {
            return refused(format!("it has version {} and this engine reads {VERSION}", header.version));
        }
        let identity = manifest.text_identity();
        if header.text_encoder != identity {
            let (theirs, ours) = (&header.model, &manifest.name);
            return refused(format!("it was made with the text encoder of {theirs:?}, which is not that of {ours:?}"));
        }
        let file = SafeTensors::deserialize(bytes).map_err(broken)?;
        let mut seen = HashSet::new();
        let mut prompts = Vec::with_capacity(header.prompts.len());
        for (index, text) in header.prompts.into_iter().enumerate() {
            if text.is_empty() || text.trim() != text || !seen.insert(text.clone()) {
                return refused(format!("prompt {index} is empty, padded with spaces or there twice: {text:?}"));
            }
            prompts.push(read(&file, &tensor_name(index), text, manifest)?);
        }
        if prompts.is_empty() {
            return refused("it has no prompts");
        }
        let negative = header.negative.map(|text| read(&file, NEGATIVE, text, manifest)).transpose()?;
        if file.len() != prompts.len() + usize::from(negative.is_some()) {
            return refused(format!("it lists {} prompts and has {} tensors", prompts.len(), file.len()));
        }
        if manifest.guided() {
            let wanted = &manifest.sampler.negative_prompt;
            if negative.as_ref().map(|packed| &packed.text) != Some(wanted) {
                return refused(format!("the model is guided and the pack lacks its negative prompt {wanted:?}"));
            }
        }
        Ok(Self { model: header.model, identity, prompts, negative })
    }

    /// The prompts there are.
    pub fn prompts(&self) -> impl Iterator<Item = &str> {
        self.prompts.iter().map(|packed| packed.text.as_str())
    }

    /// Tokens of a prompt, if it is there. Spaces around it do not count, everything else does.
    pub fn tokens(&self, prompt: &str) -> Option<usize> {
        self.find(prompt).map(|packed| packed.tokens)
    }

    /// Embeddings of a prompt, if it is there.
    pub fn embeddings(&self, prompt: &str) -> Option<Embeddings> {
        let negative = self.negative.as_ref().map(|packed| packed.embeddings.clone());
        self.find(prompt).map(|packed| Embeddings { prompt: packed.embeddings.clone(), negative })
    }

    fn find(&self, prompt: &str) -> Option<&Packed> {
        self.prompts.iter().find(|packed| packed.text == prompt.trim())
    }

    /// The error about a prompt that is not there.
    pub fn unknown(pack: Option<&Self>) -> Error {
        /// So many are named; the rest are counted.
        const SHOWN: usize = 40;
        let all: Vec<String> =
            pack.into_iter().flat_map(Self::prompts).map(|prompt| format!("\u{201c}{prompt}\u{201d}")).collect();
        let mut prompts = all[..all.len().min(SHOWN)].join(", ");
        if all.len() > SHOWN {
            prompts.push_str(&format!(" and {} more", all.len() - SHOWN));
        }
        if all.is_empty() {
            prompts = "no prompts".into();
        }
        Error::UnknownPrompt { prompts }
    }
}

fn tensor_name(index: usize) -> String {
    format!("prompt.{index}")
}

fn read(file: &SafeTensors<'_>, name: &str, text: String, manifest: &Manifest) -> Result<Packed> {
    let Ok(view) = file.tensor(name) else { return refused(format!("the tensor {name} is missing")) };
    let (width, most) = (manifest.text_encoder.d_model, manifest.text_encoder.max_tokens);
    let tokens = match view.shape() {
        &[tokens, d_model] if (1..=most).contains(&tokens) && d_model == width && view.dtype() == Dtype::F32 => tokens,
        shape => {
            let dtype = view.dtype();
            return refused(format!("{name} is {dtype:?} {shape:?} and must be F32 [1 to {most}, {width}]"));
        }
    };
    let four = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let embeddings: Vec<f32> = view.data().chunks_exact(4).map(four).collect();
    match embeddings.iter().find(|value| !value.is_finite()) {
        Some(value) => refused(format!("{name} holds {value}, not a finite number")),
        None => Ok(Packed { text, tokens, embeddings }),
    }
}
