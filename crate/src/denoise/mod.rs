//! From noise to clean latents.

pub mod cache;
pub mod sampler;
pub mod unipc;
pub mod wan;
