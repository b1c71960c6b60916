//! From a prompt to embeddings.

pub mod tokenizer;
pub mod umt5;
