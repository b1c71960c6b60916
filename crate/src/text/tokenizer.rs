//! Prompts to token ids, from a `tokenizer.json`.

use super::tokenizer_file;
use crate::error::{Error, Result};
use crate::model::manifest::{Manifest, TextEncoderConfig};

/// The tokenizer of a model and the words the model was trained on.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_tokens: usize,
    /// Ids from this one on have no row in the token table.
    rows: usize,
    vocabulary: std::collections::HashSet<String>,
    negative: Option<Vec<u32>>,
}

/// What a prompt turned into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids with the end mark.
    pub ids: Vec<u32>,
    /// Words the model never saw in training; empty where the manifest lists no vocabulary.
    pub unknown_words: Vec<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` and checks that it fits the text encoder.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a file that is damaged, has other parts than tokenizers of the UMT5 family have, or more
    /// tokens than the encoder; [`Error::Manifest`] for a negative prompt that it cannot encode.
    pub fn parse(json: &str, manifest: &Manifest) -> Result<Self> {
        tokenizer_file::check(json)?;
        let mut inner: tokenizers::Tokenizer = json.parse().map_err(|e| Error::Tokenizer(format!("{e}")))?;
        // A file that was saved after use may hold both: prompts would be cut, and pads taken for words.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::Tokenizer(format!("{e}")))?;
        let config: &TextEncoderConfig = &manifest.text_encoder;
        let size = inner.get_vocab_size(true);
        let most = config.full_vocab_size.unwrap_or(config.vocab_size);
        if size > most {
            return Err(Error::Tokenizer(format!("it has {size} tokens and the encoder {most}")));
        }
        let vocabulary = manifest.vocabulary.iter().map(|word| word.to_lowercase()).collect();
        let mut tokenizer =
            Self { inner, max_tokens: config.max_tokens, rows: config.vocab_size, vocabulary, negative: None };
        if manifest.guided() {
            // The visitor did not write it, so it is the model's fault if it cannot be used.
            let text = &manifest.sampler.negative_prompt;
            let ids = tokenizer.ids(text).ok().filter(|ids| !ids.is_empty());
            let wrong = || Error::Manifest(format!("sampler.negative_prompt {text:?} has no tokens or too many"));
            tokenizer.negative = Some(ids.ok_or_else(wrong)?);
        }
        Ok(tokenizer)
    }

    /// Ids of the text that guidance leads away from, where the model is guided.
    pub fn negative(&self) -> Option<&[u32]> {
        self.negative.as_deref()
    }

    /// Errors: [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::PrunedPrompt`]. Nothing is ever cut off.
    pub fn encode(&self, prompt: &str) -> Result<Prompt> {
        let prompt = prompt.trim();
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        Ok(Prompt { ids: self.ids(prompt)?, unknown_words: self.unknown_words(prompt) })
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(|e| Error::Tokenizer(format!("{e}")))?;
        let ids = encoding.get_ids().to_vec();
        if ids.len() > self.max_tokens {
            return Err(Error::PromptTooLong { tokens: ids.len(), max: self.max_tokens });
        }
        let pieces = ids.iter().zip(encoding.get_tokens()).filter(|&(&id, _)| id as usize >= self.rows);
        let pieces: Vec<&str> = pieces.map(|(_, piece)| piece.trim_start_matches('\u{2581}')).collect();
        if !pieces.is_empty() {
            return Err(Error::PrunedPrompt { pieces: pieces.join(", ") });
        }
        Ok(ids)
    }

    fn unknown_words(&self, prompt: &str) -> Vec<String> {
        if self.vocabulary.is_empty() {
            return Vec::new();
        }
        let mut unknown = Vec::new();
        for word in prompt.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '-').filter(|w| !w.is_empty()) {
            let word = word.to_lowercase();
            if !self.vocabulary.contains(&word) && !unknown.contains(&word) {
                unknown.push(word);
            }
        }
        unknown
    }
}
