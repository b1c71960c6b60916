//! What a model is made of: its manifest, its list of tensors, its shards and its number formats.

pub mod layout;
pub mod manifest;
pub mod quant;
pub mod reader;
pub mod shards;
pub(crate) mod validate;
