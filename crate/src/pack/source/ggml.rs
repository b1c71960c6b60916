//! ggml's blocks of quantized values.
//!
//! Layouts and formulas as in ggml `ggml-common.h` (`block_q4_0`, `block_q8_0`, `block_q4_K`, `block_q5_K`,
//! `block_q6_K`) and `ggml-quants.c` (`dequantize_row_*`). All numbers are little endian.

use std::fmt;

use half::f16;

/// A kind of block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// 32 values of 4 bits, one scale.
    Q4_0,
    /// 32 values of 8 bits, one scale.
    Q8_0,
    /// 256 values of 4 bits; eight scales and minima of 6 bits.
    Q4K,
    /// 256 values of 5 bits; eight scales and minima of 6 bits.
    Q5K,
    /// 256 values of 6 bits; sixteen scales of 8 bits.
    Q6K,
}

/// Values of a block of the K kinds.
const K: usize = 256;

impl Block {
    /// Values of a block.
    pub(super) fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => K,
        }
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + K / 2,
            Self::Q5K => 2 + 2 + 12 + K / 8 + K / 2,
            Self::Q6K => K / 2 + K / 4 + K / 16 + 2,
        }
    }

    /// Appends the values of one block, which has exactly its number of bytes.
    pub(super) fn decode(self, block: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::Q4_0 => {
                let (scale, nibbles) = (half_at(block, 0), &block[2..]);
                out.extend(nibbles.iter().map(|&byte| (f32::from(byte & 15) - 8.0) * scale));
                out.extend(nibbles.iter().map(|&byte| (f32::from(byte >> 4) - 8.0) * scale));
            }
            Self::Q8_0 => {
                let scale = half_at(block, 0);
                out.extend(block[2..].iter().map(|&byte| f32::from(byte as i8) * scale));
            }
            Self::Q4K => {
                let (scale, min, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
                for (pair, nibbles) in block[16..].chunks_exact(32).enumerate() {
                    for (half, shift) in [(0, 0), (1, 4)] {
                        let (step, offset) = scale_and_min(scales, 2 * pair + half);
                        let (step, offset) = (scale * step, min * offset);
                        out.extend(nibbles.iter().map(|&byte| step * f32::from((byte >> shift) & 15) - offset));
                    }
                }
            }
            Self::Q5K => {
                let (scale, min, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
                let (high, low) = block[16..].split_at(K / 8);
                for (pair, nibbles) in low.chunks_exact(32).enumerate() {
                    for (half, shift) in [(0, 0), (1, 4)] {
                        let group = 2 * pair + half;
                        let (step, offset) = scale_and_min(scales, group);
                        let (step, offset) = (scale * step, min * offset);
                        out.extend(nibbles.iter().zip(high).map(|(&byte, &bits)| {
                            let value = ((byte >> shift) & 15) | (((bits >> group) & 1) << 4);
                            step * f32::from(value) - offset
                        }));
                    }
                }
            }
            Self::Q6K => {
                let (low, rest) = block.split_at(K / 2);
                let (high, rest) = rest.split_at(K / 4);
                let (scales, scale) = (&rest[..K / 16], half_at(rest, K / 16));
                for half in 0..2 {
                    let (low, high) = (&low[64 * half..][..64], &high[32 * half..][..32]);
                    for quarter in 0..4 {
                        let nibbles = &low[32 * (quarter % 2)..][..32];
                        let (shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
                        out.extend(nibbles.iter().zip(high).enumerate().map(|(index, (&byte, &bits))| {
                            let value = ((byte >> shift) & 15) | (((bits >> high_shift) & 3) << 4);
                            let step = f32::from(scales[8 * half + 2 * quarter + index / 16] as i8);
                            scale * step * (f32::from(value) - 32.0)
                        }));
                    }
                }
            }
        }
    }
}

fn half_at(bytes: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([bytes[offset], bytes[offset + 1]]).to_f32()
}

/// Scale and minimum of one of eight groups, 6 bits each, from 12 bytes (`get_scale_min_k4`): the first eight bytes
/// hold the four low groups, and in their upper two bits the top of the four high groups.
fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        ((low & 15) | ((packed[group - 4] >> 6) << 4), (low >> 4) | ((packed[group] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}
