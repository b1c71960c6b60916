//! From a prompt to embeddings.

pub mod prompts;
pub mod stream;
pub mod tokenizer;
mod tokenizer_file;
pub mod umt5;

use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::model::plan::TextWeights;

/// A text encoder, wherever its weights are.
pub enum TextEncoder {
    /// On the device.
    Resident(umt5::Umt5),
    /// In storage.
    Streamed(stream::StreamedUmt5),
    /// Nowhere.
    Absent,
}

impl TextEncoder {
    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        !matches!(self, Self::Absent)
    }

    /// Where its weights are.
    pub fn weights(&self) -> TextWeights {
        match self {
            Self::Resident(_) => TextWeights::Resident,
            Self::Streamed(_) => TextWeights::Streamed,
            Self::Absent => TextWeights::Absent,
        }
    }

    /// Token ids (end mark included) -> embeddings `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::Tokenizer`] for an id that does not exist, [`Error::InvalidRequest`] where
    /// there is no encoder, and what reading or computing reports.
    pub async fn encode(&self, compute: &Compute, ids: &[u32]) -> Result<Vec<f32>> {
        let mut all = self.encode_all(compute, &[ids]).await?;
        all.pop().ok_or_else(|| Error::Internal("the text encoder gave nothing".into()))
    }

    /// As [`encode`](Self::encode) for several texts, each for itself: none sees another or any padding.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub async fn encode_all(&self, compute: &Compute, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Resident(encoder) => {
                let mut all = Vec::with_capacity(texts.len());
                for ids in texts {
                    all.push(encoder.encode(compute, ids).await?);
                }
                Ok(all)
            }
            Self::Streamed(encoder) => encoder.encode_all(compute, texts).await,
            Self::Absent => Err(Error::InvalidRequest("the model was loaded without its text encoder".into())),
        }
    }
}
