//! Figures of the plan that a model carries along: a page shows them before it has fetched the engine.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::manifest::Manifest;
use crate::model::plan::{MemoryPlan, PlanRequest, Residency, Target, TextWeights};

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

/// What the offered clips take, and the most demanding of them.
pub(crate) struct ModelNeeds {
    /// Every offered clip, the default first.
    pub(crate) clips: Vec<ClipNeeds>,
    /// Bytes of the longest buffer that any of them needs.
    pub(crate) buffer: u64,
    /// Bytes that the engine takes on a GPU at the most, host memory and GPU memory together.
    pub(crate) memory: u64,
}

impl ModelNeeds {
    /// For prompts as long as the model takes, encoded as a page does it where it is not told otherwise.
    ///
    /// # Errors
    /// None that a checked manifest can cause.
    pub(crate) fn of(manifest: &Manifest) -> Result<Self> {
        let text = TextWeights::usual(manifest);
        let mut needs = Self { clips: Vec::new(), buffer: 0, memory: 0 };
        for size in manifest.sizes() {
            let plan = |target| {
                let residency = Residency::Together;
                let request = PlanRequest { size, tokens: None, target, text, packed: false, lora_bytes: 0, residency };
                MemoryPlan::of(manifest, &request)
            };
            let (cpu, gpu) = (plan(Target::Cpu { threads: 1 })?, plan(Target::Gpu)?);
            needs.buffer = needs.buffer.max(gpu.largest_buffer.get());
            needs.memory = needs.memory.max(gpu.total().get());
            needs.clips.push(ClipNeeds {
                width: size.width,
                height: size.height,
                frames: size.frames,
                cpu_bytes: cpu.in_page().get(),
                webgpu_bytes: gpu.in_page().get(),
            });
        }
        Ok(needs)
    }
}
