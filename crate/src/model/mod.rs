//! What a model is made of: its manifest, its list of tensors, its shards and its number formats.

pub mod cache;
mod config;
pub(crate) mod floats;
pub mod layout;
pub mod manifest;
pub(crate) mod names;
pub mod plan;
pub mod quant;
pub mod reader;
pub mod shards;
pub(crate) mod validate;
