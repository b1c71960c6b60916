//! Figures of the plan that a model carries along: a page shows them before it has fetched the engine.

use serde::{Deserialize, Serialize};

/// What a clip takes at the most in a page: the engine, the GPU, and the frames that the page keeps for its player.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClipNeeds {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Number of frames.
    pub frames: u32,
    /// Bytes where the processor computes.
    pub cpu_bytes: u64,
    /// Bytes where WebGPU computes, host memory and GPU memory together.
    pub webgpu_bytes: u64,
}
