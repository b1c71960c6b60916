//! Whether a clip fits, and which other one would.

use crate::error::{Error, Result};
use crate::model::manifest::{ClipSize, Manifest};
use crate::model::plan::bytes::Bytes;
use crate::model::plan::{MemoryPlan, PlanRequest, Residency};

/// What there is at most, in bytes; `None` for what is not known or has no end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Host and GPU memory together.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Host memory; a wasm engine has 4 GiB.
    #[serde(default)]
    pub host: Option<u64>,
    /// One buffer of the GPU: [`LONGEST_BUFFER`](crate::gpu::LONGEST_BUFFER), or less where WebGPU's `maxBufferSize` or
    /// `maxStorageBufferBindingSize` is smaller, since every buffer of ours is bound whole.
    #[serde(default)]
    pub buffer: Option<u64>,
    /// Host and GPU memory beyond which it becomes short: nothing is refused for it, but the parts of a model take turns
    /// where that takes less.
    #[serde(default)]
    pub comfortable: Option<u64>,
    /// Whether the parts of the model can be read from storage when they are needed, and so can take turns.
    #[serde(default)]
    pub turns: bool,
}

impl MemoryPlan {
    /// Why the clip does not fit, as the first half of a sentence; `None` where it does.
    pub fn excess(&self, limits: &Limits) -> Option<String> {
        let beyond = |needed: Bytes, limit: Option<u64>| limit.filter(|&limit| needed.get() > limit).map(Bytes::new);
        if let Some(limit) = beyond(self.largest_buffer, limits.buffer) {
            let needed = self.largest_buffer;
            return Some(format!("it needs a buffer of {needed}, and the longest that is used here has {limit}"));
        }
        if let Some(limit) = beyond(self.peak.host, limits.host) {
            let needed = self.peak.host;
            return Some(format!("it needs {needed} of the engine's memory, which ends at {limit}"));
        }
        let limit = beyond(self.total(), limits.memory)?;
        Some(format!("it needs {} of memory and there are {limit}", self.total()))
    }

    /// The plan of a clip that fits: as it is asked for, or with the parts in turns where memory is short otherwise.
    ///
    /// # Errors
    /// [`Error::UnsupportedSize`], and [`Error::TooLarge`] with the largest offered clip that fits.
    pub fn within(manifest: &Manifest, request: &PlanRequest, limits: &Limits) -> Result<Self> {
        match Self::fitting(manifest, request, limits)? {
            Ok(plan) => Ok(plan),
            Err(reason) => Err(Error::TooLarge {
                clip: request.size.to_string(),
                reason,
                suggestion: match largest(manifest, request, limits) {
                    Some(size) => format!("Choose {size}"),
                    None => "No other clip of this model fits; choose a smaller model or another device".into(),
                },
            }),
        }
    }

    /// The plan of a clip that fits, or why none does.
    fn fitting(
        manifest: &Manifest,
        request: &PlanRequest,
        limits: &Limits,
    ) -> Result<std::result::Result<Self, String>> {
        let plan = Self::of(manifest, request)?;
        let reason = plan.excess(limits);
        let short = reason.is_some() || limits.comfortable.is_some_and(|bytes| plan.total().get() > bytes);
        if !limits.turns || !short || request.residency == Residency::Turns {
            return Ok(reason.map_or(Ok(plan), Err));
        }
        let turns = Self::of(manifest, &PlanRequest { residency: Residency::Turns, ..*request })?;
        Ok(match (reason, turns.excess(limits)) {
            (None, Some(_)) => Ok(plan),
            (None, None) if turns.total() >= plan.total() => Ok(plan),
            (_, None) => Ok(turns),
            (Some(_), Some(reason)) => Err(reason),
        })
    }
}

/// The offered clip with the most pixels over all frames that fits.
fn largest(manifest: &Manifest, request: &PlanRequest, limits: &Limits) -> Option<ClipSize> {
    let fits = |&size: &ClipSize| {
        MemoryPlan::fitting(manifest, &PlanRequest { size, ..*request }, limits).is_ok_and(|plan| plan.is_ok())
    };
    let volume = |size: &ClipSize| u64::from(size.width) * u64::from(size.height) * u64::from(size.frames);
    manifest.sizes().filter(fits).max_by_key(volume)
}
