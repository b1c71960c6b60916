//! The one error type of the engine.
//!
//! Every variant has a stable [`code`](Error::code) for programs and a message for people. A message is one or two
//! sentences: what is wrong, then what to do about it. Values that a user typed come last, so that a log which cuts
//! lines short cuts those first.

use thiserror::Error;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The manifest (or a model description to be packed) contradicts itself, the format or this engine.
    #[error("The model's manifest cannot be used: {0}. Get the manifest again, or a version made for this engine.")]
    Manifest(String),

    /// Bytes that were fetched or read are not the bytes the manifest names.
    #[error("A model file is not what its manifest says: {0}. Fetch the file again.")]
    Integrity(String),

    /// A tensor is missing, has the wrong shape or holds values that no weight may have.
    #[error("A tensor of the model cannot be used: {0}. Pack or fetch the model again.")]
    Tensor(String),

    /// A weight file that is to be packed (safetensors, PyTorch, GGUF, MLX) is damaged or of a kind that is not read.
    #[error("A weight file cannot be used: {0}. Download the file again, or give it in another published format.")]
    WeightFile(String),

    /// A LoRA file is none, or was not made for this model.
    #[error("A LoRA cannot be used: {}. Give one that was made for this model in place of {file}.", list(.problems))]
    Lora {
        /// Name of the file, or of several that belong together.
        file: String,
        /// Everything that is wrong with it; at least one.
        problems: Vec<LoraProblem>,
    },

    /// The tokenizer file cannot be read or does not fit the text encoder.
    #[error("The model's tokenizer cannot be used: {0}. Get the tokenizer file that belongs to the manifest.")]
    Tokenizer(String),

    /// The prompt holds no words.
    #[error("The prompt is empty. Say in a few words what the clip should show.")]
    EmptyPrompt,

    /// The prompt needs more tokens than the text encoder takes; nothing is cut off silently.
    #[error("The prompt needs {tokens} tokens and this model takes {max} at most. Shorten the prompt.")]
    PromptTooLong {
        /// Tokens the prompt needs, the end mark included.
        tokens: usize,
        /// Tokens the model takes.
        max: usize,
    },

    /// A prompt pack is damaged, or was made with another text encoder.
    #[error("The prompt pack cannot be used: {0}. Make it again with `kinora prompts` and the model that it is for.")]
    PromptPack(String),

    /// A prompt that is in no prompt pack, where there is no text encoder that could read it.
    #[error("The text encoder is not here and the prompt pack does not have this prompt. It has: {prompts}.")]
    UnknownPrompt {
        /// The prompts there are, as text.
        prompts: String,
    },

    /// A prompt with words whose rows were cut out of the token table.
    #[error("This model's vocabulary was pruned and lacks a part of the prompt. Use other words. Not known: {pieces}.")]
    PrunedPrompt {
        /// What is missing, as text.
        pieces: String,
    },

    /// A clip size the model was not made for.
    #[error("This model cannot make {frames} frames of {width}x{height} pixels. Choose one of: {supported}.")]
    UnsupportedSize {
        /// Asked-for width in pixels.
        width: u32,
        /// Asked-for height in pixels.
        height: u32,
        /// Asked-for number of frames.
        frames: u32,
        /// The sizes the manifest offers, as text.
        supported: String,
    },

    /// A clip that the device or the engine's memory cannot hold; known before anything is loaded.
    #[error("A clip of {clip} is too large: {reason}. {suggestion}.")]
    TooLarge {
        /// Asked-for clip, as text.
        clip: String,
        /// What it needs and what there is, as text.
        reason: String,
        /// What to do instead, as text.
        suggestion: String,
    },

    /// A call that can never work as it was made: a wrong argument, an unreadable path, a call out of order.
    #[error("The request cannot be carried out: {0}. Correct the request and try again.")]
    InvalidRequest(String),

    /// No WebGPU here at all.
    #[error("WebGPU is not available: {0}. Use a browser with WebGPU on an https page, or choose the CPU.")]
    UnsupportedWebgpu(String),

    /// WebGPU is there and offers no device.
    #[error("No graphics adapter was found: {0}. Check the graphics driver, or choose the CPU.")]
    NoAdapter(String),

    /// The device lacks a feature or a limit the model needs.
    #[error("This graphics device cannot run the model: {0}. Choose a smaller model or the CPU.")]
    UnsupportedFeature(String),

    /// The device went away; everything on it is gone.
    #[error("The graphics device was lost: {0}. Load the model again.")]
    DeviceLost(String),

    /// Memory ran out, on the device or in the wasm heap.
    #[error("There is not enough memory: {0}. Close other tabs and programs, or choose a smaller size.")]
    OutOfMemory(String),

    /// The device computes wrong values, or a result is not finite.
    #[error("The computation gave wrong values: {0}. Update the graphics driver, or choose the CPU.")]
    Numeric(String),

    /// The caller stopped the work.
    #[error("The work was stopped on request. Start it again when you want to.")]
    Aborted,

    /// A mistake in the engine itself, or an operating system that refuses a write.
    #[error("The engine failed: {0}. Please report this, with the steps that lead to it.")]
    Internal(String),
}

/// One thing that is wrong with a LoRA file. Keys are those of the file, layers have our names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LoraProblem {
    /// Not a file with LoRA matrices at all; says what it is instead.
    #[error("{0}")]
    NotALora(String),
    /// A key for a layer that the model does not have, or of a kind that is not read.
    #[error("{0} matches no weight")]
    UnknownLayer(String),
    /// A second key for the same half of a layer's pair.
    #[error("{0} is there twice")]
    Twice(String),
    /// A layer with one matrix of the two.
    #[error("{0} has only one of its two matrices")]
    Incomplete(String),
    /// Two matrices of different ranks, of a rank that is not read, or not of the layer's size.
    #[error("{layer} has {up:?} times {down:?} for a weight {weight:?}")]
    WrongShape {
        /// The layer.
        layer: String,
        /// Shape of `B`.
        up: Vec<usize>,
        /// Shape of `A`.
        down: Vec<usize>,
        /// Shape of the weight.
        weight: Vec<usize>,
    },
    /// A layer whose `alpha` is not a single value.
    #[error("{0} has an alpha that is not a single value")]
    WrongAlpha(String),
    /// A tensor of a type that holds no weights.
    #[error("{key} has values of type {found}, which must be F64, F32, F16 or BF16")]
    WrongType {
        /// The tensor.
        key: String,
        /// Its type as the file names it.
        found: String,
    },
    /// A number that is not finite.
    #[error("{0}")]
    NotFinite(String),
}

/// Problems in one line. A LoRA of another model has hundreds of strange keys; the first ones tell that as well.
fn list(problems: &[LoraProblem]) -> String {
    const SHOWN: usize = 32;
    let shown: Vec<String> = problems.iter().take(SHOWN).map(ToString::to_string).collect();
    let text = shown.join(", ");
    match problems.len() {
        1 => text,
        count if count > SHOWN => format!("{count} keys amiss: {text} and {} more", count - SHOWN),
        count => format!("{count} keys amiss: {text}"),
    }
}

impl Error {
    /// The stable name of this kind of error, as programs see it (`error.code` in JavaScript).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "manifest",
            Self::Integrity(_) => "integrity",
            Self::Tensor(_) => "tensor",
            Self::WeightFile(_) => "weight-file",
            Self::Lora { .. } => "lora",
            Self::Tokenizer(_) => "tokenizer",
            Self::EmptyPrompt => "empty-prompt",
            Self::PromptTooLong { .. } => "prompt-too-long",
            Self::PromptPack(_) => "prompt-pack",
            Self::UnknownPrompt { .. } => "unknown-prompt",
            Self::PrunedPrompt { .. } => "pruned-prompt",
            Self::UnsupportedSize { .. } => "unsupported-size",
            Self::TooLarge { .. } => "too-large",
            Self::InvalidRequest(_) => "invalid-request",
            Self::UnsupportedWebgpu(_) => "unsupported-webgpu",
            Self::NoAdapter(_) => "no-adapter",
            Self::UnsupportedFeature(_) => "unsupported-feature",
            Self::DeviceLost(_) => "device-lost",
            Self::OutOfMemory(_) => "out-of-memory",
            Self::Numeric(_) => "numeric",
            Self::Aborted => "aborted",
            Self::Internal(_) => "internal",
        }
    }

    /// Whether the same call may succeed when it is simply made again (after a new download, on a new device, with
    /// more memory free). `false` means that something has to change first.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Integrity(_) | Self::DeviceLost(_) | Self::OutOfMemory(_) | Self::Aborted)
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn messages_carry_the_values_and_the_remedy() {
        let error =
            Error::UnsupportedSize { width: 64, height: 32, frames: 5, supported: "128x128 (17 frames)".into() };
        let text = error.to_string();
        assert!(text.contains("5 frames of 64x32") && text.contains("128x128 (17 frames)"), "{text}");
        assert_eq!(error.code(), "unsupported-size");
        assert!(!error.retryable());
        assert!(Error::Integrity("x".into()).retryable());
    }
}
