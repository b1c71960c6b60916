//! From noise to clean latents.

pub mod sampler;
pub mod unipc;
pub mod wan;
