//! In which numbers a causal model keeps its finished keys and values.

use serde::{Deserialize, Serialize};

/// Values that share a scale in [`CacheFormat::Q8`] where a head divides into groups of so many.
const GROUP: usize = 32;

/// Storage of a causal model's cache. Arithmetic is f32 in all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheFormat {
    /// 32-bit floats, exact.
    #[default]
    F32,
    /// 16-bit floats: half the bytes.
    F16,
    /// 8-bit steps with an f32 scale for each 32 values of a head: 9/32 of the bytes.
    Q8,
}

impl CacheFormat {
    /// Name in a manifest and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// Whether it is what a manifest without the field means.
    pub(crate) fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// How a row of a cache lies in 32-bit words, the same on the CPU and on a GPU.
///
/// f16: two values a word, the first in the low half. q8: group after group, first the scale's bits, then the steps,
/// four a word, the first in the low byte. A row takes whole words and knows nothing of its neighbours, so that frames
/// can leave without anything being decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLayout {
    /// Storage.
    pub format: CacheFormat,
    /// Values of a row.
    pub width: usize,
    /// Values that share a scale in q8, a multiple of 4 that divides a head.
    pub group: usize,
}

impl CacheLayout {
    /// For rows of `heads` heads of `head_dim` values. Formats other than f32 need heads of a multiple of 4 values,
    /// which the manifest's checks see to.
    pub fn new(format: CacheFormat, heads: usize, head_dim: usize) -> Self {
        let group = if head_dim.is_multiple_of(GROUP) { GROUP } else { head_dim };
        Self { format, width: heads * head_dim, group }
    }

    /// Words of a row.
    pub fn words(&self) -> usize {
        match self.format {
            CacheFormat::F32 => self.width,
            CacheFormat::F16 => self.width / 2,
            CacheFormat::Q8 => self.width / 4 + self.width / self.group,
        }
    }
}
