//! Keys or values of one block in the cache's own numbers.
//!
//! The CPU device holds the words of a [`CacheLayout`] in host memory, a GPU in a buffer of its own; both widen them to
//! f32 for one block at a time, when its attention runs. What is encoded here defines what the kernels must compute.

use std::ops::Range;

use burn::backend::Dispatch;
use burn::tensor::kind::Basic;
use burn::tensor::{Int, Tensor, TensorData};
use half::f16;

use crate::compute::{Compute, Kind};
use crate::error::Result;
use crate::kernels::GpuKernels;
use crate::model::cache::{CacheFormat, CacheLayout};

/// Rows `[tokens, width]`, as they are stored.
#[derive(Clone)]
pub(crate) enum Rows {
    /// f32, on any device.
    Float(Tensor<2>),
    /// Words in host memory.
    Host(Vec<u32>),
    /// Words in GPU memory.
    Device(Tensor<1, Int>),
}

impl Rows {
    /// Stores `x` `[tokens, width]`.
    ///
    /// # Errors
    /// What reading from the device can give; on a GPU nothing is read.
    pub(crate) async fn store(compute: &Compute, layout: CacheLayout, x: Tensor<2>) -> Result<Self> {
        Ok(match (layout.format, compute.kind) {
            (CacheFormat::F32, _) => Self::Float(x),
            (_, Kind::Cpu) => Self::Host(encode(layout, &compute.read(x).await?)),
            (_, Kind::Gpu) => Self::Device(Tensor::from_dispatch(<Dispatch as GpuKernels>::kinora_store_rows(
                x.into_dispatch(),
                layout,
            ))),
        })
    }

    /// The stored rows as f32 with `own` `[tokens, width]` behind them.
    pub(crate) fn before(&self, layout: CacheLayout, own: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Float(past) => Tensor::cat(vec![past.clone(), own], 0),
            Self::Host(words) => {
                let shape = [words.len() / layout.words(), layout.width];
                let data = TensorData::new(decode(layout, words), shape);
                Tensor::cat(vec![Tensor::from_data(data, &own.device()), own], 0)
            }
            // Both go into one buffer, or the widened past would lie in memory twice.
            Self::Device(words) => Tensor::from_dispatch(<Dispatch as GpuKernels>::kinora_widen_rows(
                words.clone().into_dispatch(),
                own.into_dispatch(),
                layout,
            )),
        }
    }

    /// `later` behind `past`, without the rows in `gone`. Both are stored alike: a cache has one format and one device.
    pub(crate) fn pushed(past: Option<Self>, later: Self, layout: CacheLayout, gone: Range<usize>) -> Self {
        let words = gone.start * layout.words()..gone.end * layout.words();
        match (past, later) {
            (Some(Self::Float(past)), Self::Float(later)) => Self::Float(without(vec![past, later], gone)),
            (Some(Self::Host(mut past)), Self::Host(later)) => {
                // Exactly: a vector that grows by itself would take twice what it holds.
                past.reserve_exact(later.len());
                past.extend(later);
                past.drain(words);
                Self::Host(past)
            }
            (Some(Self::Device(past)), Self::Device(later)) => Self::Device(without(vec![past, later], words)),
            (_, later) => later,
        }
    }

    /// Bytes that they take up.
    pub(crate) fn bytes(&self) -> u64 {
        let words = match self {
            Self::Float(x) => x.dims().iter().product(),
            Self::Host(words) => words.len(),
            Self::Device(words) => words.dims()[0],
        };
        4 * words as u64
    }
}

/// The parts one behind the other along the first axis, without what lies in `gone`.
fn without<const D: usize, K>(parts: Vec<Tensor<D, K>>, gone: Range<usize>) -> Tensor<D, K>
where
    K: Basic,
{
    let whole = Tensor::cat(parts, 0);
    let length = whole.dims()[0];
    if gone.is_empty() {
        return whole;
    }
    let recent = whole.clone().slice(gone.end..length);
    if gone.start == 0 { recent } else { Tensor::cat(vec![whole.slice(0..gone.start), recent], 0) }
}

/// Values of whole rows to words. A group with a value that is not finite gets a scale that is none, so that it comes
/// to light as it does in f32; so does, in f16, a value beyond 65504.
pub(crate) fn encode(layout: CacheLayout, values: &[f32]) -> Vec<u32> {
    let mut words = Vec::with_capacity(values.len() / layout.width * layout.words());
    match layout.format {
        CacheFormat::F32 => words.extend(values.iter().map(|value| value.to_bits())),
        CacheFormat::F16 => {
            let half = |value: f32| u32::from(f16::from_f32(value).to_bits());
            words.extend(values.chunks_exact(2).map(|pair| half(pair[0]) | (half(pair[1]) << 16)));
        }
        CacheFormat::Q8 => {
            for group in values.chunks_exact(layout.group) {
                // Magnitudes have the order of their bits, with those that are not finite at the top.
                let largest = f32::from_bits(group.iter().map(|value| value.abs().to_bits()).max().unwrap_or(0));
                let scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
                words.push(scale.to_bits());
                words.extend(group.chunks_exact(4).map(|four| {
                    four.iter().rev().fold(0, |word, &value| (word << 8) | u32::from(step(value, scale) as u8))
                }));
            }
        }
    }
    words
}

/// The quantized step nearest to a value; 0 where the scale is 0 or none.
fn step(value: f32, scale: f32) -> i8 {
    // The conversion takes what is no number to 0.
    if scale == 0.0 { 0 } else { (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8 }
}

/// Words of whole rows to values.
pub(crate) fn decode(layout: CacheLayout, words: &[u32]) -> Vec<f32> {
    let mut values = Vec::with_capacity(words.len() / layout.words() * layout.width);
    match layout.format {
        CacheFormat::F32 => values.extend(words.iter().map(|&word| f32::from_bits(word))),
        CacheFormat::F16 => {
            let value = |half: u32| f16::from_bits(half as u16).to_f32();
            values.extend(words.iter().flat_map(|&word| [value(word), value(word >> 16)]));
        }
        CacheFormat::Q8 => {
            for group in words.chunks_exact(1 + layout.group / 4) {
                let scale = f32::from_bits(group[0]);
                let steps = group[1..].iter().flat_map(|word| word.to_le_bytes());
                values.extend(steps.map(|byte| f32::from(byte as i8) * scale));
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latents::noise;

    #[test]
    fn words_come_back_within_half_a_step() {
        for (heads, head_dim) in [(2, 32), (3, 64), (2, 12)] {
            let mut values = noise::normal(1, 1, 5 * heads * head_dim);
            values[..head_dim].fill(0.0);
            for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8] {
                let layout = CacheLayout::new(format, heads, head_dim);
                let words = encode(layout, &values);
                assert_eq!(words.len(), 5 * layout.words());
                let got = decode(layout, &words);
                for (group, decoded) in values.chunks(layout.group).zip(got.chunks(layout.group)) {
                    let largest = group.iter().fold(0f32, |most, value| most.max(value.abs()));
                    for (value, decoded) in group.iter().zip(decoded) {
                        let most = match format {
                            CacheFormat::F32 => 0.0,
                            // Eleven bits, rounded to the nearest; below 2^-14 the spacing stays 2^-24.
                            CacheFormat::F16 => (value.abs() / 2048.0).max(2f32.powi(-25)),
                            CacheFormat::Q8 => largest / 127.0 * 0.5001,
                        };
                        assert!((value - decoded).abs() <= most, "{format:?}: {value} became {decoded}");
                    }
                }
                assert_eq!(format == CacheFormat::F32, got == values, "{format:?} is in use");
            }
        }
    }

    #[test]
    fn the_words_are_laid_out_as_the_kernels_read_them() {
        let layout = CacheLayout::new(CacheFormat::Q8, 1, 4);
        let scale = (1.27f32 / 127.0).to_bits();
        assert_eq!(encode(layout, &[0.01, -0.02, 1.27, -1.27]), [scale, 0x817f_fe01]);
        let layout = CacheLayout::new(CacheFormat::F16, 1, 4);
        assert_eq!(encode(layout, &[1.0, -2.0, 0.0, 65504.0]), [0xc000_3c00, 0x7bff_0000]);
    }

    /// What is broken must stay visibly so: a NaN that turned into zeros would be a wrong clip without an error.
    #[test]
    fn values_that_are_not_finite_do_not_disappear() {
        for format in [CacheFormat::F16, CacheFormat::Q8] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let layout = CacheLayout::new(format, 1, 4);
                let got = decode(layout, &encode(layout, &[1.0, bad, 0.0, 2.0]));
                assert!(!got[1].is_finite(), "{format:?}: {bad} became {}", got[1]);
            }
        }
    }
}
