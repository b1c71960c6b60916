//! Text-to-video generation on the user's own device.
//!
//! One engine for the browser (WebAssembly with WebGPU, or with SIMD on the CPU where there is no GPU) and for native
//! programs. The folders follow the data: [`text`] turns a prompt into embeddings, [`latents`] draws the noise,
//! [`denoise`] turns it into clean latents, [`decode`] into pictures, [`frames`] into bytes. [`model`] is how weights
//! are shipped, [`ops`] and [`kernels`] what everything is computed with, [`engine`] ties it together.

pub mod compute;
pub mod decode;
pub mod denoise;
#[cfg(not(target_family = "wasm"))]
pub mod directory;
pub mod engine;
pub mod error;
pub mod frames;
pub mod generation;
pub mod gpu;
pub mod kernels;
pub mod latents;
pub mod loading;
pub mod lora;
pub mod model;
pub mod ops;
#[cfg(not(target_family = "wasm"))]
pub mod pack;
mod parts;
pub mod selftest;
pub mod stage;
pub mod text;
pub mod weights;

#[cfg(target_family = "wasm")]
mod web;

pub use error::{Error, Result};
