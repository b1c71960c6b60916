//! Known-answer tests of a device, run before the first generation.
//!
//! In a browser an invalid shader is skipped without a word and its output is whatever the buffer held before, so a
//! device is trusted only after it has computed every operation the models use, on sizes that are not multiples of any
//! tile, and agreed with the CPU.

use std::rc::Rc;

use burn::tensor::Tensor;
use burn::tensor::activation::silu;

use crate::compute::{Compute, Kind};
use crate::denoise::cache::Rows;
use crate::error::{Error, Result};
use crate::latents::noise;
use crate::model::cache::{CacheFormat, CacheLayout};
use crate::model::manifest::DType;
use crate::model::quant;
use crate::model::shards::RawTensor;
use crate::ops::{self, Activation, Affine, Conv, Linear, LowRank};
use crate::weights::{Stored, WeightStore};

/// One operation's result against the CPU's.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    /// Operation.
    pub name: String,
    /// Root-mean-square error relative to the CPU result.
    pub error: f64,
    /// Largest error that passes.
    pub tolerance: f64,
}

const TOLERANCE: f64 = 1e-5;

/// Runs every check; [`Error::Numeric`] names the first operation that is wrong. On the CPU device there is nothing to
/// compare with, so only known sums are checked.
pub async fn run(compute: &Compute) -> Result<Vec<Check>> {
    let reference = Compute::cpu();
    let mut checks = Vec::new();
    for (name, stream) in CASES.iter().zip(100..) {
        // A sentinel in every buffer the device may recycle: a skipped kernel then shows NaN and not an old answer.
        if compute.kind == Kind::Gpu {
            let sentinel: Tensor<1> = Tensor::full([64 << 10], f32::NAN, &compute.device);
            compute.drain(&sentinel).await?;
        }
        let got = case(compute, name, stream).await?;
        let want = case(&reference, name, stream).await?;
        let error = relative_error(&got, &want);
        checks.push(Check { name: (*name).to_string(), error, tolerance: TOLERANCE });
        if error.is_nan() || error > TOLERANCE {
            return Err(Error::Numeric(format!(
                "its {name} is off by {error:.1e} of the result, {TOLERANCE:.0e} is allowed"
            )));
        }
    }
    if compute.kind == Kind::Cpu {
        let ones = compute.tensor(vec![1.0; 70 * 33], [70, 33]);
        let product = compute.read(ones.clone().matmul(ones.transpose())).await?;
        if product.iter().any(|&v| v != 33.0) {
            return Err(Error::Numeric("a product of ones is not the number of terms".into()));
        }
    }
    // What the tests took is not kept for a clip, whose tensors are of other sizes.
    compute.give_back().await?;
    Ok(checks)
}

const CASES: [&str; 18] = [
    "linear f32",
    "linear f16",
    "linear q8",
    "linear q4",
    "large linear q4",
    "linear with two LoRAs",
    "attention",
    "attention with bias",
    "attention of heads of 64",
    "attention of heads of 128",
    "layer norm",
    "rms norm",
    "rotary embedding",
    "cache f16",
    "cache q8",
    "convolution",
    "strided convolution",
    "element-wise operations",
];

/// `sqrt(sum (a - b)^2 / sum b^2)`; NaN where either holds one.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let (mut difference, mut size) = (0.0, 0.0);
    for (&a, &b) in got.iter().zip(want) {
        difference += f64::from(a - b).powi(2);
        size += f64::from(b).powi(2);
    }
    (difference / size.max(f64::MIN_POSITIVE)).sqrt()
}

/// What a cache gives back of `past` `[67, 96]`, stored in two parts of which some rows leave, with `own` behind it.
async fn cached(compute: &Compute, format: CacheFormat, past: Tensor<2>, own: Tensor<2>) -> Result<Tensor<2>> {
    let layout = CacheLayout::new(format, 3, 32);
    let first = Rows::store(compute, layout, past.clone().slice([0..40])).await?;
    let second = Rows::store(compute, layout, past.slice([40..67])).await?;
    Ok(Rows::pushed(Some(first), second, layout, 11..30).before(layout, own))
}

async fn case(compute: &Compute, name: &str, stream: u32) -> Result<Vec<f32>> {
    let values = |part: u64, count: usize| noise::normal(part, stream, count);
    let two = |part: u64, shape: [usize; 2]| -> Tensor<2> { compute.tensor(values(part, shape[0] * shape[1]), shape) };
    let four =
        |part: u64, shape: [usize; 4]| -> Tensor<4> { compute.tensor(values(part, shape.iter().product()), shape) };
    let raw = |part: u64, dtype: DType, shape: &[usize]| -> Result<RawTensor> {
        let numbers = values(part, shape.iter().product());
        let group = dtype.quantized().then_some(32);
        let bytes = quant::encode(dtype, shape, group, &numbers)?;
        Ok(RawTensor { name: "selftest.weight".into(), dtype, shape: shape.to_vec(), group, bytes })
    };
    let sized = |dtype: DType, shape: [usize; 2]| -> Result<Linear> {
        let mut store = WeightStore::new(compute.clone());
        store.insert(raw(1, dtype, &shape)?);
        store.insert(RawTensor { name: "selftest.bias".into(), ..raw(2, DType::F32, &shape[..1])? });
        store.linear("selftest")
    };
    let linear = |dtype: DType| sized(dtype, [70, 96]);
    let wide = |heads: usize| {
        ops::attention(compute, two(3, [67, 256]), two(4, [83, 256]), two(5, [83, 256]), None, heads, 0.1)
    };
    let x = || two(3, [67, 96]);
    let result: Tensor<2> = match name {
        "linear f32" => linear(DType::F32)?.forward(x(), Activation::None),
        "linear f16" => linear(DType::F16)?.forward(x(), Activation::Gelu),
        "linear q8" => linear(DType::Q8)?.forward(x(), Activation::Silu),
        "linear q4" => linear(DType::Q4)?.forward(x(), Activation::None),
        // So many outputs that the kernel takes its large tiles.
        "large linear q4" => sized(DType::Q4, [1500, 32])?.forward(two(3, [1030, 32]), Activation::None),
        "linear with two LoRAs" => {
            let half = |part: u64, dtype: DType, shape: &[usize]| {
                Linear::new(compute, Stored::linear(compute, raw(part, dtype, shape)?), None)
            };
            let share = |part: u64, dtype: DType, rank: usize| -> Result<_> {
                let (down, up) = (half(part, dtype, &[rank, 96])?, half(part + 1, dtype, &[70, rank])?);
                Ok(Rc::new(LowRank::new(down, up, 0.5)))
            };
            let mut linear = linear(DType::Q8)?;
            linear.set_low_rank(vec![(share(7, DType::F32, 12)?, 0.7), (share(9, DType::F16, 4)?, -0.3)]);
            linear.forward(x(), Activation::Gelu)
        }
        "attention" => ops::attention(compute, x(), two(4, [131, 96]), two(5, [131, 96]), None, 3, 0.17),
        "attention with bias" => {
            let bias = compute.tensor(values(6, 3 * 67 * 67), [3, 67, 67]);
            ops::attention(compute, x(), two(4, [67, 96]), two(5, [67, 96]), Some(bias), 3, 1.0)
        }
        "attention of heads of 64" => wide(4),
        "attention of heads of 128" => wide(2),
        "layer norm" => {
            let modulation = Affine::Modulation { scale: two(4, [4, 96]), shift: two(5, [4, 96]), rows: 17 };
            ops::norm(compute, two(3, [68, 96]), modulation, true, 1e-6)
        }
        "rms norm" => ops::norm(compute, x(), Affine::Weight(&two(4, [1, 96]), Some(&two(5, [1, 96]))), false, 1e-6),
        "rotary embedding" => ops::rope(compute, x(), &two(4, [67, 32])),
        "cache f16" => cached(compute, CacheFormat::F16, x(), two(4, [5, 96])).await?,
        "cache q8" => {
            // Whole steps of a scale of their group's own, with the largest there is: no rounding hangs on a last bit.
            let step = |(index, value): (usize, f32)| {
                let step = if index % 32 == 7 { 127.0 } else { (40.0 * value).round().clamp(-127.0, 127.0) };
                step * 0.5f32.powi((index / 32 % 5) as i32)
            };
            let steps: Vec<f32> = values(3, 67 * 96).into_iter().enumerate().map(step).collect();
            cached(compute, CacheFormat::Q8, compute.tensor(steps, [67, 96]), two(4, [5, 96])).await?
        }
        "convolution" => {
            let conv = Conv::new(compute, &raw(1, DType::F32, &[13, 12, 3, 3])?, Some(&raw(2, DType::F32, &[13])?), 1)?;
            let (x, second) = (four(3, [1, 7, 9, 11]), four(4, [1, 5, 9, 11]));
            let y = conv.forward(compute, x, Some(second), Some(four(5, [1, 13, 18, 22])), true, true);
            y.reshape([13, 18 * 22])
        }
        "strided convolution" => {
            let conv = Conv::new(compute, &raw(1, DType::F32, &[9, 6, 3, 3])?, None, 2)?;
            conv.forward(compute, four(3, [1, 6, 10, 14]), None, None, false, false).reshape([9, 35])
        }
        _ => {
            // The forms that have gone wrong in browsers: one tensor on both sides, slices, broadcasts, concatenation.
            let x = x();
            let squares = x.clone() * x.clone();
            let part = x.clone().slice([3..40, 8..72]) + two(4, [1, 64]);
            let gated = ops::gated_residual(x.clone(), silu(squares), two(5, [1, 96]), 67);
            let wide = Tensor::cat(vec![gated.slice([0..37]), part.tanh()], 1);
            wide.slice([0..37, 32..160])
        }
    };
    compute.read(result).await
}
