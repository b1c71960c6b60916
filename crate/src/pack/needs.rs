//! What the manifest says of the memory that each offered clip takes.

use crate::error::Result;
use crate::model::manifest::Manifest;
use crate::model::plan::{ClipNeeds, MemoryPlan, PlanRequest, Residency, Target, TextWeights};

/// What the offered clips take, and the most demanding of them.
pub(super) struct ModelNeeds {
    /// Every offered clip, the default first.
    pub(super) clips: Vec<ClipNeeds>,
    /// Bytes of the longest buffer that any of them needs.
    pub(super) buffer: u64,
    /// Bytes that the engine takes on a GPU at the most, host memory and GPU memory together.
    pub(super) memory: u64,
}

impl ModelNeeds {
    /// For prompts as long as the model takes, encoded as a page does it where it is not told otherwise.
    ///
    /// # Errors
    /// None that a checked manifest can cause.
    pub(super) fn of(manifest: &Manifest) -> Result<Self> {
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
