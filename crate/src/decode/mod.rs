//! Latents to frames and back.

pub mod taehv;
