//! The sections of a manifest that describe the networks and the sampler.

use serde::{Deserialize, Serialize};

use crate::model::cache::CacheFormat;
use crate::model::manifest::FileInfo;

/// A text encoder as in transformers `configuration_umt5.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextEncoderConfig {
    /// Which architecture.
    pub kind: TextEncoderKind,
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Rows of the table that it was cut down from; set only where it was. The tokenizer then has tokens from
    /// `vocab_size` on, and prompts that need them are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_vocab_size: Option<usize>,
    /// Width of the embeddings.
    pub d_model: usize,
    /// Width of one attention head.
    pub d_kv: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Inner width of the gated feed-forward.
    pub d_ff: usize,
    /// Buckets of the relative position bias, both directions together.
    pub relative_attention_num_buckets: usize,
    /// Distance from which all positions share the last bucket.
    pub relative_attention_max_distance: usize,
    /// Epsilon of the RMS norms.
    pub layer_norm_epsilon: f64,
    /// Longest prompt in tokens, the end mark included.
    pub max_tokens: usize,
    /// The tokenizer's file.
    pub tokenizer: FileInfo,
    /// False where the tokenizer and the shards that only this encoder needs are not offered beside the manifest; such
    /// a model makes the prompts of its prompt packs.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub hosted: bool,
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// Known text encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextEncoderKind {
    /// transformers `UMT5EncoderModel`.
    Umt5,
}

/// A denoiser as in diffusers `transformer_wan.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransformerConfig {
    /// Which architecture.
    pub kind: TransformerKind,
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of one attention head.
    pub attention_head_dim: usize,
    /// Inner width of the feed-forward.
    pub ffn_dim: usize,
    /// Latent channels in.
    pub in_channels: usize,
    /// Latent channels out.
    pub out_channels: usize,
    /// Width of the text embeddings.
    pub text_dim: usize,
    /// Width of the sinusoidal timestep embedding.
    pub freq_dim: usize,
    /// Latent frames, rows and columns of one token.
    pub patch_size: [usize; 3],
    /// Epsilon of the norms.
    pub eps: f64,
    /// Whether a norm with weights stands before the cross attention.
    pub cross_attn_norm: bool,
    /// Longest axis, in tokens, that the rotary embedding is made for.
    pub rope_max_seq_len: usize,
}

/// Known denoisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransformerKind {
    /// diffusers `WanTransformer3DModel`.
    Wan,
}

/// An autoencoder as in taehv `taehv.py`, with the widths as lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderConfig {
    /// Which architecture.
    pub kind: AutoencoderKind,
    /// Channels of a frame.
    pub image_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Side of the pixel (un)shuffle outside the networks.
    pub patch_size: usize,
    /// Width after the first convolution, then after each of the three stages. TAEHV has 64 throughout.
    pub encoder_channels: [usize; 4],
    /// Width of each of the three stages, then after the last one. TAEHV has 256, 128, 64, 64.
    pub decoder_channels: [usize; 4],
    /// Whether each encoder stage halves the frame rate.
    pub encoder_time_downscale: [bool; 3],
    /// Whether each decoder stage doubles the frame rate.
    pub decoder_time_upscale: [bool; 3],
    /// Whether each decoder stage doubles width and height.
    pub decoder_space_upscale: [bool; 3],
    /// On which side the encoder fills up the frames.
    pub encoder_padding: EncoderPadding,
}

/// Known autoencoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoencoderKind {
    /// taehv `TAEHV`.
    Taehv,
}

/// On which side frames are repeated until their number is a multiple of the time compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderPadding {
    /// The first frame in front: latent 0 depends on frame 0 alone.
    Leading,
    /// The last frame at the end, as in `taehv.py`.
    Trailing,
}

/// How the denoiser is driven.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplerConfig {
    /// Noise levels of the steps, strictly decreasing in (0, 1]; the level after the last step is 0.
    pub sigmas: Vec<f64>,
    /// Shift k of the schedule: s' = k*s / (1 + (k-1)*s).
    pub shift: f64,
    /// What happens between two steps.
    pub step: SamplerStep,
    /// Timestep of sigma 1.
    pub timestep_scale: f64,
    /// What the denoiser is told at each sigma, for models that were trained with other numbers than sigma times
    /// `timestep_scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<Vec<f64>>,
    /// Factor of the noise that a run starts from; 1 but for models that were trained to start elsewhere.
    #[serde(default = "one")]
    pub initial_scale: f64,
    /// Scale of classifier-free guidance; 1 is none, and what a distilled model needs. More costs a second pass.
    #[serde(default = "one")]
    pub guidance: f64,
    /// What guidance leads away from.
    #[serde(default)]
    pub negative_prompt: String,
    /// Set for models that make a clip chunk by chunk, each after the ones before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causal: Option<CausalConfig>,
}

/// How a clip is made chunk by chunk. Frames are latent frames.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CausalConfig {
    /// Frames that are denoised together.
    pub chunk_frames: usize,
    /// Frames from the start of the clip that every chunk attends to.
    #[serde(default)]
    pub sink_frames: usize,
    /// Latest finished frames that a chunk attends to.
    pub window_frames: usize,
    /// Timestep at which finished frames are shown to the model.
    #[serde(default)]
    pub context_timestep: f64,
    /// Noise levels of the first chunk where they differ from those of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_sigmas: Option<Vec<f64>>,
    /// How the keys and values of finished frames are stored.
    #[serde(default, skip_serializing_if = "CacheFormat::is_f32")]
    pub cache: CacheFormat,
}

fn one() -> f64 {
    1.0
}

/// What happens between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerStep {
    /// Follow the velocity to the next noise level.
    Euler,
    /// Estimate the clean latents, then mix in fresh noise.
    Renoise,
    /// UniPC of order 2, a multistep solver.
    Unipc,
}

impl AutoencoderConfig {
    /// Pixels per latent row or column.
    pub fn space_compression(&self) -> usize {
        self.patch_size << self.decoder_space_upscale.iter().filter(|&&up| up).count()
    }

    /// Frames the decoder makes of one latent frame.
    pub fn time_compression(&self) -> usize {
        1 << self.decoder_time_upscale.iter().filter(|&&up| up).count()
    }

    /// Leading frames that the decoder drops, so that n latents give `(n - 1) * time_compression + 1` frames.
    pub fn frames_to_trim(&self) -> usize {
        self.time_compression() - 1
    }
}

impl TransformerConfig {
    /// Width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}
