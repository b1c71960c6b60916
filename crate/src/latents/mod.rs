//! From a seed to latents.

pub mod noise;
