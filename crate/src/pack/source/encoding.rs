//! How published files store numbers, and decoding them to f32.

use std::fmt;

use half::{bf16, f16};

use super::ggml::Block;
use crate::error::{Error, Result};

/// How the values of a stored tensor are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Blocks of ggml, as in GGUF files.
    Ggml(Block),
    /// MLX's affine quantization: `q * scale + bias`, a scale and a bias for each group along the last axis.
    Affine(Affine),
    /// Anything that is not a weight, by the name the file gives it.
    Other(String),
}

/// The further tensors and the layout of an MLX affine tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affine {
    /// Bits of a value: 4 or 8, packed into 32-bit words from the lowest bit on.
    pub bits: usize,
    /// Values that share scale and bias.
    pub group: usize,
    /// Name of the scales `[rows, columns / group]`.
    pub scales: String,
    /// Name of the biases, of the same shape.
    pub biases: String,
}

impl Encoding {
    /// Values that can only be read together.
    pub(super) fn granularity(&self) -> usize {
        match self {
            Self::Ggml(block) => block.values(),
            Self::Affine(affine) => affine.group,
            _ => 1,
        }
    }

    /// Bytes of `values` values; `None` where that cannot be counted or is no whole number of blocks.
    pub(super) fn bytes(&self, values: usize) -> Option<usize> {
        match self {
            Self::F64 => values.checked_mul(8),
            Self::F32 => values.checked_mul(4),
            Self::F16 | Self::BF16 => values.checked_mul(2),
            Self::Ggml(block) => {
                values.is_multiple_of(block.values()).then_some(values / block.values())?.checked_mul(block.bytes())
            }
            Self::Affine(affine) => values.checked_mul(affine.bits).map(|bits| bits / 8),
            Self::Other(_) => None,
        }
    }

    /// Appends the values of `bytes`, which hold a whole number of them.
    ///
    /// # Errors
    /// [`Error::WeightFile`] for an encoding that holds no weights or needs more than these bytes.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut Vec<f32>) -> Result<()> {
        let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        match self {
            Self::F64 => out.extend(bytes.chunks_exact(8).map(|eight| {
                let mut array = [0; 8];
                array.copy_from_slice(eight);
                f64::from_le_bytes(array) as f32
            })),
            Self::F32 => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Self::F16 => out.extend(pairs.map(|pair| f16::from_le_bytes(pair).to_f32())),
            Self::BF16 => out.extend(pairs.map(|pair| bf16::from_le_bytes(pair).to_f32())),
            Self::Ggml(block) => bytes.chunks_exact(block.bytes()).for_each(|bytes| block.decode(bytes, out)),
            Self::Affine(_) | Self::Other(_) => {
                return Err(Error::WeightFile(format!("its values are {self} and must be numbers of a known format")));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F64 => f.write_str("F64"),
            Self::F32 => f.write_str("F32"),
            Self::F16 => f.write_str("F16"),
            Self::BF16 => f.write_str("BF16"),
            Self::Ggml(block) => write!(f, "{block}"),
            Self::Affine(affine) => write!(f, "MLX int{} in groups of {}", affine.bits, affine.group),
            Self::Other(name) => f.write_str(name),
        }
    }
}
