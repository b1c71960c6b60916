//! The tensors a model must have, with their shapes, in the order in which they are first used.
//!
//! The names are those of the reference files, behind the name of the part: `text_encoder.` + transformers
//! `modeling_umt5.py` (`UMT5EncoderModel`), `transformer.` + diffusers `transformer_wan.py`
//! (`WanTransformer3DModel`), `autoencoder.` + taehv `taehv.py` (`TAEHV`, numbered as in its `nn.Sequential`s).

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::model::manifest::{AutoencoderConfig, Manifest, TextEncoderConfig, TransformerConfig, VideoSize};

/// A part of the model that is used, and could be freed, as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `text_encoder.`
    TextEncoder,
    /// `transformer.`
    Transformer,
    /// `autoencoder.decoder.`
    Decoder,
    /// `autoencoder.encoder.`
    Encoder,
}

impl Part {
    /// The part a tensor belongs to, by its name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::TextEncoder, Self::Transformer, Self::Decoder, Self::Encoder]
            .into_iter()
            .find(|part| name.starts_with(part.prefix()))
    }

    /// What the names of all its tensors start with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder.",
            Self::Transformer => "transformer.",
            Self::Decoder => "autoencoder.decoder.",
            Self::Encoder => "autoencoder.encoder.",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextEncoder => "text encoder",
            Self::Transformer => "transformer",
            Self::Decoder => "decoder",
            Self::Encoder => "encoder",
        })
    }
}

/// What a tensor is for; decides the format it is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Matrix of a linear layer within a repeated block: nearly all of the weights, and robust to rounding.
    BlockLinear,
    /// Any other matrix or table, and the patch embedding.
    Weight,
    /// Kernels of the autoencoder: `[out, in, rows, columns]`.
    Convolution,
    /// Bias, norm, modulation table or position bias: small, and added to or multiplied with everything.
    Scale,
}

/// One tensor a model must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Full name.
    pub name: String,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

/// Collects tensors below a prefix.
struct List {
    prefix: String,
    tensors: Vec<Expected>,
}

impl List {
    fn add(&mut self, name: impl fmt::Display, shape: &[usize], role: Role) {
        self.tensors.push(Expected { name: format!("{}{name}", self.prefix), shape: shape.to_vec(), role });
    }

    /// A linear layer with bias.
    fn linear(&mut self, name: impl fmt::Display, out: usize, input: usize, role: Role) {
        self.add(format!("{name}.weight"), &[out, input], role);
        self.add(format!("{name}.bias"), &[out], Role::Scale);
    }

    /// A 3x3 convolution with bias.
    fn conv(&mut self, name: impl fmt::Display, out: usize, input: usize) {
        self.add(format!("{name}.weight"), &[out, input, 3, 3], Role::Convolution);
        self.add(format!("{name}.bias"), &[out], Role::Scale);
    }

    /// taehv `MemBlock`: three convolutions, the first one sees the frame and the frame before it.
    fn mem_block(&mut self, index: usize, width: usize) {
        for (conv, input) in [(0, 2 * width), (2, width), (4, width)] {
            self.conv(format!("{index}.conv.{conv}"), width, input);
        }
    }
}

/// Every tensor of a model, in order of first use: text encoder, transformer, decoder, encoder.
/// The configuration must have passed the manifest's checks, which bound the number of layers.
pub fn expected(manifest: &Manifest) -> Vec<Expected> {
    let mut list = List { prefix: String::new(), tensors: Vec::new() };
    text_encoder(&mut list, &manifest.text_encoder);
    transformer(&mut list, &manifest.transformer);
    for size in &manifest.video.sizes {
        list.tensors.extend(size_lora(&manifest.transformer, size));
    }
    decoder(&mut list, &manifest.autoencoder);
    encoder(&mut list, &manifest.autoencoder);
    list.tensors
}

fn text_encoder(list: &mut List, config: &TextEncoderConfig) {
    list.prefix = Part::TextEncoder.prefix().into();
    let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
    list.add("shared.weight", &[config.vocab_size, width], Role::Weight);
    for block in 0..config.num_layers {
        let attention = format!("encoder.block.{block}.layer.0");
        list.add(format!("{attention}.layer_norm.weight"), &[width], Role::Scale);
        for name in ["q", "k", "v"] {
            list.add(format!("{attention}.SelfAttention.{name}.weight"), &[inner, width], Role::BlockLinear);
        }
        let buckets = config.relative_attention_num_buckets;
        let bias = format!("{attention}.SelfAttention.relative_attention_bias.weight");
        list.add(bias, &[buckets, config.num_heads], Role::Scale);
        list.add(format!("{attention}.SelfAttention.o.weight"), &[width, inner], Role::BlockLinear);
        let feed = format!("encoder.block.{block}.layer.1");
        list.add(format!("{feed}.layer_norm.weight"), &[width], Role::Scale);
        for name in ["wi_0", "wi_1"] {
            list.add(format!("{feed}.DenseReluDense.{name}.weight"), &[config.d_ff, width], Role::BlockLinear);
        }
        list.add(format!("{feed}.DenseReluDense.wo.weight"), &[width, config.d_ff], Role::BlockLinear);
    }
    list.add("encoder.final_layer_norm.weight", &[width], Role::Scale);
}

fn transformer(list: &mut List, config: &TransformerConfig) {
    list.prefix = Part::Transformer.prefix().into();
    let width = config.inner_dim();
    let [frames, rows, columns] = config.patch_size;
    let embedder = "condition_embedder";
    list.linear(format!("{embedder}.time_embedder.linear_1"), width, config.freq_dim, Role::Weight);
    list.linear(format!("{embedder}.time_embedder.linear_2"), width, width, Role::Weight);
    list.linear(format!("{embedder}.time_proj"), 6 * width, width, Role::Weight);
    list.linear(format!("{embedder}.text_embedder.linear_1"), width, config.text_dim, Role::Weight);
    list.linear(format!("{embedder}.text_embedder.linear_2"), width, width, Role::Weight);
    list.add("patch_embedding.weight", &[width, config.in_channels, frames, rows, columns], Role::Weight);
    list.add("patch_embedding.bias", &[width], Role::Scale);
    for block in 0..config.num_layers {
        let block = format!("blocks.{block}");
        list.add(format!("{block}.scale_shift_table"), &[1, 6, width], Role::Scale);
        attention(list, &format!("{block}.attn1"), width);
        if config.cross_attn_norm {
            list.add(format!("{block}.norm2.weight"), &[width], Role::Scale);
            list.add(format!("{block}.norm2.bias"), &[width], Role::Scale);
        }
        attention(list, &format!("{block}.attn2"), width);
        list.linear(format!("{block}.ffn.net.0.proj"), config.ffn_dim, width, Role::BlockLinear);
        list.linear(format!("{block}.ffn.net.2"), width, config.ffn_dim, Role::BlockLinear);
    }
    list.add("scale_shift_table", &[1, 2, width], Role::Scale);
    list.linear("proj_out", config.out_channels * frames * rows * columns, width, Role::Weight);
}

/// Layers of every block that a size's low-rank change covers: what mixes places, and what works on each of them. What a
/// prompt says is the same in a picture of any shape, so that cross-attention stays as it is.
const CHANGED_IN_BLOCKS: [&str; 6] =
    ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2"];

/// What the names of a size's low-rank change start with.
pub(crate) fn size_lora_prefix(size: &VideoSize) -> String {
    format!("{}size_loras.{}x{}.", Part::Transformer.prefix(), size.width, size.height)
}

/// Layers that a size's low-rank change covers, by their names without `transformer.` and `.weight`.
pub(crate) fn changed_layers(config: &TransformerConfig) -> impl Iterator<Item = String> {
    let in_blocks = |block: usize| CHANGED_IN_BLOCKS.map(|layer| format!("blocks.{block}.{layer}"));
    (0..config.num_layers).flat_map(in_blocks).chain(["proj_out".to_owned()])
}

/// The low-rank change that belongs to one of the model's sizes: for each layer
/// `transformer.size_loras.{width}x{height}.{layer}.lora_A.weight` `[rank, in]` and `.lora_B.weight` `[out, rank]`. None for a
/// size that the denoiser makes as it is.
pub fn size_lora(config: &TransformerConfig, size: &VideoSize) -> Vec<Expected> {
    let Some(rank) = size.lora_rank else { return Vec::new() };
    let mut list = List { prefix: Part::Transformer.prefix().into(), tensors: Vec::new() };
    transformer(&mut list, config);
    let shapes: BTreeMap<String, Vec<usize>> =
        list.tensors.into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
    let mut changes = List { prefix: size_lora_prefix(size), tensors: Vec::new() };
    for layer in changed_layers(config) {
        let shape = &shapes[&format!("{}{layer}.weight", Part::Transformer.prefix())];
        changes.add(format!("{layer}.lora_A.weight"), &[rank, shape[1]], Role::Weight);
        changes.add(format!("{layer}.lora_B.weight"), &[shape[0], rank], Role::Weight);
    }
    changes.tensors
}

/// diffusers `WanAttention` with `qk_norm="rms_norm_across_heads"`.
fn attention(list: &mut List, name: &str, width: usize) {
    for part in ["to_q", "to_k", "to_v"] {
        list.linear(format!("{name}.{part}"), width, width, Role::BlockLinear);
    }
    for part in ["norm_q", "norm_k"] {
        list.add(format!("{name}.{part}.weight"), &[width], Role::Scale);
    }
    list.linear(format!("{name}.to_out.0"), width, width, Role::BlockLinear);
}

fn decoder(list: &mut List, config: &AutoencoderConfig) {
    list.prefix = Part::Decoder.prefix().into();
    let widths = config.decoder_channels;
    // 0 is the clamp and 2 a ReLU; they have no weights.
    list.conv(1, widths[0], config.latent_channels);
    for stage in 0..3 {
        let (first, width) = (3 + 6 * stage, widths[stage]);
        for block in 0..3 {
            list.mem_block(first + block, width);
        }
        // first + 3 is the upsampling.
        let frames = if config.decoder_time_upscale[stage] { 2 } else { 1 };
        list.add(format!("{}.conv.weight", first + 4), &[width * frames, width, 1, 1], Role::Convolution);
        list.add(format!("{}.weight", first + 5), &[widths[stage + 1], width, 3, 3], Role::Convolution);
    }
    list.conv(22, config.image_channels * config.patch_size * config.patch_size, widths[3]);
}

fn encoder(list: &mut List, config: &AutoencoderConfig) {
    list.prefix = Part::Encoder.prefix().into();
    let widths = config.encoder_channels;
    list.conv(0, widths[0], config.image_channels * config.patch_size * config.patch_size);
    for stage in 0..3 {
        // 1 is a ReLU.
        let (first, before, after) = (2 + 5 * stage, widths[stage], widths[stage + 1]);
        let frames = if config.encoder_time_downscale[stage] { 2 } else { 1 };
        list.add(format!("{first}.conv.weight"), &[before, before * frames, 1, 1], Role::Convolution);
        list.add(format!("{}.weight", first + 1), &[after, before, 3, 3], Role::Convolution);
        for block in 0..3 {
            list.mem_block(first + 2 + block, after);
        }
    }
    list.conv(17, config.latent_channels, widths[3]);
}

/// Checks that the manifest has every expected tensor, with its shape, and no other.
///
/// # Errors
/// [`Error::Tensor`] naming what differs.
pub fn check(manifest: &Manifest) -> Result<()> {
    let found = manifest.tensors.iter().map(|(name, info)| (name.as_str(), info.shape.as_slice())).collect();
    compare(&expected(manifest), &found)
}

/// Compares tensors by name and shape with the expected ones; one error names everything that differs.
pub(crate) fn compare(expected: &[Expected], found: &BTreeMap<&str, &[usize]>) -> Result<()> {
    let mut missing = Vec::new();
    let mut wrong = Vec::new();
    for tensor in expected {
        match found.get(tensor.name.as_str()) {
            None => missing.push(tensor.name.clone()),
            Some(shape) if **shape != *tensor.shape => {
                wrong.push(format!("{} is {shape:?} and must be {:?}", tensor.name, tensor.shape));
            }
            Some(_) => {}
        }
    }
    let names: std::collections::HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let unknown: Vec<String> =
        found.keys().filter(|name| !names.contains(*name)).map(|name| name.to_string()).collect();
    let mut reasons = Vec::new();
    for (what, list) in [("missing", missing), ("of the wrong shape", wrong), ("unknown", unknown)] {
        if !list.is_empty() {
            reasons.push(format!("{} {what}: {}", list.len(), shorten(&list)));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(Error::Tensor(reasons.join("; "))) }
}

/// A whole part may be missing; the first names tell that as well as a thousand do.
fn shorten(list: &[String]) -> String {
    const SHOWN: usize = 32;
    let mut text = list[..list.len().min(SHOWN)].join(", ");
    if list.len() > SHOWN {
        text.push_str(&format!(" and {} more", list.len() - SHOWN));
    }
    text
}
