//! The operations the models are built from, each with a CPU form made of burn's own operations (which is the
//! definition of what it computes) and a GPU form with a kernel from [`crate::kernels`]. The CPU's 3x3 convolutions have
//! a kernel of ours as well.
//!
//! One clip at a time: tokens are `[tokens, channels]`, frames `[1, channels, height, width]`.

use std::rc::Rc;

use burn::backend::Dispatch;
use burn::tensor::activation::{relu, silu};
use burn::tensor::module::conv2d as burn_conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::compute::{Compute, Kind};
use crate::error::{Error, Result};
use crate::kernels::activation::{gelu, softmax};
use crate::kernels::winograd::{self, Conv3x3, Planes};
use crate::kernels::{AttentionSpec, ConvSpec, GpuKernels, LinearSpec, NormSpec, conv_weights};
use crate::model::quant;
use crate::model::shards::RawTensor;
use crate::weights::Stored;

/// Most bytes an intermediate of ours may take: half of the 128 MiB that every WebGPU device can bind.
pub const TILE_BYTES: usize = 64 << 20;

/// Multiplications and additions of one dispatch of attention. A watchdog ends the GPU process of a browser, or resets
/// the driver, over one that takes seconds: the first is for a GPU that manages some tens of GFLOP/s, the other for one
/// that is emulated.
const DISPATCH: u64 = 32_000_000_000;
const SLOW_DISPATCH: u64 = 4_000_000_000;

/// What follows a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU in its tanh form.
    Gelu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Weight of a linear layer, `[out, in]` as in PyTorch.
enum Weight {
    /// f32 on the CPU device.
    Dense(Tensor<2>),
    /// Packed in host memory, widened for each use: what keeps a large quantized model in its packed size.
    Packed(RawTensor),
    /// Packed in GPU memory, widened inside the kernel.
    Words(Tensor<1, Int>),
}

/// `y = x W^T + b`, then an activation. Weights stay in the form they were shipped in; LoRAs lie beside them.
pub struct Linear {
    name: String,
    weight: Weight,
    bias: Tensor<1>,
    spec: LinearSpec,
    /// Each with its strength, which is not 0.
    low_rank: Vec<(Rc<LowRank>, f32)>,
    /// Stands for an addend that is not there; a kernel's buffers must be different ones.
    nothing: Tensor<2>,
}

/// A LoRA's share of one linear layer: `factor * (x A^T) B^T`.
pub struct LowRank {
    down: Linear,
    up: Linear,
    factor: f32,
}

impl LowRank {
    /// `down` is `A` `[rank, in]`, `up` is `B` `[out, rank]`, both without a bias; `factor` is `alpha / rank`.
    pub fn new(down: Linear, up: Linear, factor: f32) -> Self {
        Self { down, up, factor }
    }

    /// `sum + strength * factor * (x A^T) B^T`
    fn add(&self, x: Tensor<2>, strength: f32, sum: Option<Tensor<2>>) -> Tensor<2> {
        let inner = self.down.product(x, None, Activation::None).mul_scalar(strength * self.factor);
        self.up.product(inner, sum, Activation::None)
    }
}

impl Linear {
    /// Takes a weight of two or more dimensions (those after the first count as one) and an optional bias.
    pub fn new(compute: &Compute, weight: Stored, bias: Option<RawTensor>) -> Result<Self> {
        let (name, dtype, shape, group) = match &weight {
            Stored::Host(raw) => (&raw.name, raw.dtype, raw.shape.clone(), raw.group.unwrap_or(0)),
            Stored::Device(device) => (&device.name, device.dtype, device.shape.clone(), device.group),
        };
        let name = name.strip_suffix(".weight").unwrap_or(name).to_owned();
        let n = shape.first().copied().unwrap_or(0);
        let k = shape.iter().skip(1).product::<usize>();
        if k % 4 != 0 && compute.kind == Kind::Gpu {
            return Err(Error::Tensor(format!(
                "a linear layer of shape {shape:?} has an input width that is not a multiple of 4"
            )));
        }
        let spec = LinearSpec { dtype, n, k, group, has_bias: bias.is_some(), has_addend: false, activation: 0 };
        let bias = match bias {
            Some(raw) => compute.upload(&raw)?.reshape([n]),
            None => Tensor::zeros([1], &compute.device),
        };
        let weight = match weight {
            Stored::Device(device) => Weight::Words(device.words),
            Stored::Host(raw) if dtype.quantized() && !compute.widen_on_load => {
                // Checked once here, so that widening it later cannot fail.
                quant::check(raw.dtype, &raw.shape, raw.group, &raw.bytes)?;
                Weight::Packed(raw)
            }
            Stored::Host(raw) => Weight::Dense(dense(&raw, [n, k], &compute.device)?),
        };
        let nothing = compute.nothing[0].clone().reshape([1, 1]);
        Ok(Self { name, weight, bias, spec, low_rank: Vec::new(), nothing })
    }

    /// Name of the weight, without `.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts LoRAs with their strengths beside the weight, in place of those that were there.
    pub fn set_low_rank(&mut self, low_rank: Vec<(Rc<LowRank>, f32)>) {
        self.low_rank = low_rank;
    }

    /// Bytes of its weights as they are held, in host memory or on the device.
    pub fn held_bytes(&self) -> u64 {
        let weight = match &self.weight {
            Weight::Dense(weight) => 4 * weight.dims().iter().product::<usize>(),
            Weight::Packed(raw) => raw.bytes.len(),
            Weight::Words(words) => 4 * words.dims()[0],
        };
        (weight + 4 * self.bias.dims()[0]) as u64
    }

    /// `[M, in]` -> `[M, out]`.
    pub fn forward(&self, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        let added =
            self.low_rank.iter().fold(None, |sum, (share, strength)| Some(share.add(x.clone(), *strength, sum)));
        self.product(x, added, activation)
    }

    /// `activation(x W^T + b + addend)`, without LoRAs.
    fn product(&self, x: Tensor<2>, addend: Option<Tensor<2>>, activation: Activation) -> Tensor<2> {
        let weight = match &self.weight {
            Weight::Words(words) => {
                let spec = LinearSpec { activation: activation as u32, has_addend: addend.is_some(), ..self.spec };
                return Tensor::from_dispatch(<Dispatch as GpuKernels>::kinora_linear(
                    x.into_dispatch(),
                    words.clone().into_dispatch(),
                    self.bias.clone().into_dispatch(),
                    addend.unwrap_or_else(|| self.nothing.clone()).into_dispatch(),
                    spec,
                ));
            }
            Weight::Dense(weight) => weight.clone(),
            Weight::Packed(raw) => dense(raw, [self.spec.n, self.spec.k], &x.device())
                .expect("a packed weight was validated when it was loaded"),
        };
        let mut y = x.matmul(weight.transpose());
        if self.spec.has_bias {
            y = y + self.bias.clone().unsqueeze();
        }
        if let Some(addend) = addend {
            y = y + addend;
        }
        match activation {
            Activation::None => y,
            Activation::Gelu => {
                let mut values = Values(y.into_data());
                gelu(values.as_mut());
                Tensor::from_data(values.0, &self.bias.device())
            }
            Activation::Silu => silu(y),
        }
    }

    /// Two layers with an activation between, in row chunks so that the middle never outgrows [`TILE_BYTES`].
    pub fn mlp(first: &Self, second: &Self, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        let rows = x.dims()[0];
        let step = (TILE_BYTES / (first.spec.n * 4)).max(1);
        if rows <= step {
            return second.forward(first.forward(x, activation), Activation::None);
        }
        let parts = (0..rows)
            .step_by(step)
            .map(|at| {
                let part = x.clone().slice(at..(at + step).min(rows));
                second.forward(first.forward(part, activation), Activation::None)
            })
            .collect();
        Tensor::cat(parts, 0)
    }
}

fn dense(raw: &RawTensor, shape: [usize; 2], device: &Device) -> Result<Tensor<2>> {
    Ok(Tensor::from_data(TensorData::new(raw.to_f32()?, shape), device))
}

/// Multi-head attention, `[Nq, H*D]`, `[Nk, H*D]`, `[Nk, H*D]` -> `[Nq, H*D]`, with an optional additive bias
/// `[H, Nq, Nk]`. No score matrix beyond [`TILE_BYTES`] ever exists.
pub fn attention(
    compute: &Compute,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    bias: Option<Tensor<3>>,
    heads: usize,
    scale: f32,
) -> Tensor<2> {
    if compute.kind == Kind::Gpu {
        let operations = if compute.software { SLOW_DISPATCH } else { DISPATCH };
        let spec = AttentionSpec { heads, scale, has_bias: bias.is_some(), operations };
        let bias = bias.unwrap_or_else(|| compute.nothing[0].clone().reshape([1, 1, 1]));
        return Tensor::from_dispatch(<Dispatch as GpuKernels>::kinora_attention(
            q.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            bias.into_dispatch(),
            spec,
        ));
    }
    let ([queries, width], [keys, _]) = (q.dims(), k.dims());
    let dim = width / heads;
    let split = |t: Tensor<2>, rows: usize| t.reshape([rows, heads, dim]).swap_dims(0, 1);
    let q = split(q.mul_scalar(scale), queries);
    let (k, v) = (split(k, keys).swap_dims(1, 2), split(v, keys));
    let step = (TILE_BYTES / (heads * keys * 4)).clamp(1, queries);
    let parts: Vec<Tensor<2>> = (0..queries)
        .step_by(step)
        .map(|first| {
            let last = (first + step).min(queries);
            let mut scores = q.clone().slice([0..heads, first..last]).matmul(k.clone());
            if let Some(bias) = &bias {
                scores = scores + bias.clone().slice([0..heads, first..last]);
            }
            let mut values = Values(scores.into_data());
            softmax(values.as_mut(), keys);
            let scores: Tensor<3> = Tensor::from_data(values.0, &compute.device);
            scores.matmul(v.clone()).swap_dims(0, 1).reshape([last - first, width])
        })
        .collect();
    Tensor::cat(parts, 0)
}

/// How a normalised row is scaled and shifted.
pub enum Affine<'a> {
    /// `x * weight (+ bias)`.
    Weight(&'a Tensor<2>, Option<&'a Tensor<2>>),
    /// `x * (1 + scale[r]) + shift[r]`, one row `[R, C]` for every `rows` rows of `x`.
    Modulation { scale: Tensor<2>, shift: Tensor<2>, rows: usize },
}

/// Layer norm (`centre`) or RMS norm over the last dimension of `[N, C]`.
pub fn norm(compute: &Compute, x: Tensor<2>, affine: Affine<'_>, centre: bool, eps: f64) -> Tensor<2> {
    let [tokens, width] = x.dims();
    if compute.kind == Kind::Gpu {
        let empty = || compute.nothing[0].clone().reshape([1, 1]);
        let (scale, shift, offset, rows, has_shift) = match affine {
            Affine::Weight(weight, bias) => {
                (weight.clone(), bias.cloned().unwrap_or_else(empty), 0.0, tokens, bias.is_some())
            }
            Affine::Modulation { scale, shift, rows } => (scale, shift, 1.0, rows, true),
        };
        let spec =
            NormSpec { centre, eps: eps as f32, offset, has_scale: true, has_shift, rows_per_modulation: rows.max(1) };
        return Tensor::from_dispatch(<Dispatch as GpuKernels>::kinora_norm(
            x.into_dispatch(),
            scale.into_dispatch(),
            shift.into_dispatch(),
            spec,
        ));
    }
    let x = if centre { x.clone() - x.mean_dim(1) } else { x };
    let scale = (x.clone() * x.clone()).mean_dim(1).add_scalar(eps).sqrt().recip();
    let y = x * scale;
    match affine {
        Affine::Weight(weight, bias) => {
            let y = y * weight.clone();
            bias.map_or(y.clone(), |bias| y + bias.clone())
        }
        Affine::Modulation { scale, shift, rows } => {
            let groups = tokens / rows;
            let wide = |t: Tensor<2>| t.reshape([groups, 1, width]);
            (y.reshape([groups, rows, width]) * wide(scale.add_scalar(1.0)) + wide(shift)).reshape([tokens, width])
        }
    }
}

/// `x + gate[r] * y`, one gate row `[R, C]` for every `rows` rows.
pub fn gated_residual(x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, rows: usize) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let groups = tokens / rows;
    let y = y.reshape([groups, rows, width]) * gate.reshape([groups, 1, width]);
    x + y.reshape([tokens, width])
}

/// Rotates interleaved pairs of `[N, H*D]` by a table `[N, D]` of (cos, sin) pairs.
pub fn rope(compute: &Compute, x: Tensor<2>, table: &Tensor<2>) -> Tensor<2> {
    if compute.kind == Kind::Gpu {
        return Tensor::from_dispatch(<Dispatch as GpuKernels>::kinora_rope(
            x.into_dispatch(),
            table.clone().into_dispatch(),
        ));
    }
    let ([tokens, width], [_, dim]) = (x.dims(), table.dims());
    let (heads, half) = (width / dim, dim / 2);
    let x = x.reshape([tokens, heads, half, 2]);
    let table = table.clone().reshape([tokens, 1, half, 2]);
    let pick = |t: &Tensor<4>, at: usize| t.clone().narrow(3, at, 1);
    let (even, odd) = (pick(&x, 0), pick(&x, 1));
    let (cos, sin) = (pick(&table, 0), pick(&table, 1));
    let turned = vec![even.clone() * cos.clone() - odd.clone() * sin.clone(), even * sin + odd * cos];
    Tensor::cat(turned, 3).reshape([tokens, width])
}

/// A convolution of the autoencoder: zero padding `kernel / 2`, stride 1 or 2, optional bias.
pub struct Conv {
    weight: ConvWeight,
    bias: Tensor<1>,
    has_bias: bool,
    out_channels: usize,
    kernel: usize,
    stride: usize,
}

/// `[out, in, kernel, kernel]`, or what [`conv_weights`] makes of it.
enum ConvWeight {
    Cpu(Tensor<4>),
    /// 3x3 with stride 1 on the CPU. Transformed for each use, which takes little of its time; kept so, weights would take
    /// 16/9 of their memory.
    Winograd(Vec<f32>),
    Gpu(Tensor<1>),
}

impl Conv {
    /// Takes a weight `[out, in, kernel, kernel]`.
    pub fn new(compute: &Compute, weight: &RawTensor, bias: Option<&RawTensor>, stride: usize) -> Result<Self> {
        let [out_channels, input, kernel, _] = weight.shape[..] else {
            return Err(Error::Tensor(format!("{} has {} dimensions instead of 4", weight.name, weight.shape.len())));
        };
        let shape = [out_channels, input, kernel, kernel];
        let weight = match compute.kind {
            Kind::Cpu if kernel == 3 && stride == 1 => ConvWeight::Winograd(weight.to_f32()?),
            Kind::Cpu => ConvWeight::Cpu(compute.upload(weight)?.reshape(shape)),
            Kind::Gpu => {
                let values = conv_weights(&weight.to_f32()?, shape);
                let count = values.len();
                ConvWeight::Gpu(compute.tensor(values, [count]))
            }
        };
        let has_bias = bias.is_some();
        let bias = match bias {
            Some(raw) => compute.upload(raw)?,
            None => Tensor::zeros([1], &compute.device),
        };
        Ok(Self { weight, bias, has_bias, out_channels, kernel, stride })
    }

    /// Output channels.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// `relu?(conv(cat(x, second)) + bias + residual)`; with `upsample` the inputs are first enlarged twice (nearest).
    pub fn forward(
        &self,
        compute: &Compute,
        x: Tensor<4>,
        second: Option<Tensor<4>>,
        residual: Option<Tensor<4>>,
        upsample: bool,
        rectify: bool,
    ) -> Tensor<4> {
        let spec = ConvSpec {
            out_channels: self.out_channels,
            kernel: self.kernel,
            stride: self.stride,
            upsample: if upsample { 2 } else { 1 },
            second_channels: second.as_ref().map_or(0, |t| t.dims()[1]),
            has_bias: self.has_bias,
            has_residual: residual.is_some(),
            relu: rectify,
        };
        let weight = match &self.weight {
            ConvWeight::Cpu(weight) => weight,
            ConvWeight::Winograd(weight) => return self.winograd(weight, compute, x, second, residual, spec),
            ConvWeight::Gpu(weight) => {
                let [no_second, no_residual] = compute.nothing.each_ref().map(|one| one.clone().reshape([1, 1, 1, 1]));
                return Tensor::from_dispatch(<Dispatch as GpuKernels>::kinora_conv2d(
                    x.into_dispatch(),
                    second.unwrap_or(no_second).into_dispatch(),
                    weight.clone().into_dispatch(),
                    self.bias.clone().into_dispatch(),
                    residual.unwrap_or(no_residual).into_dispatch(),
                    spec,
                ));
            }
        };
        let mut x = match second {
            Some(second) => Tensor::cat(vec![x, second], 1),
            None => x,
        };
        if upsample {
            let [n, c, h, w] = x.dims();
            x = x.reshape([n * c, h, 1, w, 1]).expand([n * c, h, 2, w, 2]).reshape([n, c, h * 2, w * 2]);
        }
        let bias = self.has_bias.then(|| self.bias.clone());
        let pad = self.kernel / 2;
        let options = ConvOptions::new([self.stride; 2], [pad; 2], [1, 1], 1);
        let mut y = burn_conv2d(x, weight.clone(), bias, options);
        if let Some(residual) = residual {
            y = y + residual;
        }
        if rectify { relu(y) } else { y }
    }

    /// [`Self::forward`] by [`winograd`].
    fn winograd(
        &self,
        weight: &[f32],
        compute: &Compute,
        x: Tensor<4>,
        second: Option<Tensor<4>>,
        residual: Option<Tensor<4>>,
        spec: ConvSpec,
    ) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let upsample = spec.upsample == 2;
        let given: Vec<(usize, Values)> =
            [Some(x), second].into_iter().flatten().map(|x| (x.dims()[1], Values(x.into_data()))).collect();
        let inputs: Vec<Planes> =
            given.iter().map(|(channels, values)| Planes { values: values.as_ref(), channels: *channels }).collect();
        let residual = residual.map(|residual| Values(residual.into_data()));
        let bias = spec.has_bias.then(|| Values(self.bias.to_data()));
        let conv = Conv3x3 {
            inputs: &inputs,
            size: [height, width],
            upsample,
            out_channels: self.out_channels,
            bias: bias.as_ref().map(AsRef::as_ref),
            residual: residual.as_ref().map(AsRef::as_ref),
            relu: spec.relu,
        };
        let channels = weight.len() / (9 * self.out_channels);
        // One by one: a product of all would be shared out among cores that have strips of their own to work on.
        let weights: Vec<Tensor<2>> = winograd::transformed_weights(weight, upsample)
            .into_iter()
            .map(|weight| compute.tensor(weight, [self.out_channels, channels]))
            .collect();
        let device = &compute.device;
        let out = conv.run(|index, values, tiles| {
            let values: Tensor<2> = Tensor::from_data(TensorData::new(values, [channels, tiles]), device);
            Values(weights[index].clone().matmul(values).into_data())
        });
        let [height, width] = conv.made();
        compute.tensor(out, [1, self.out_channels, height, width])
    }
}

/// Values of a tensor of the CPU device, where they are: a `Vec` would be a copy of those that burn has laid out.
struct Values(TensorData);

impl AsRef<[f32]> for Values {
    fn as_ref(&self) -> &[f32] {
        self.0.as_slice().expect("the engine's floats are f32")
    }
}

impl AsMut<[f32]> for Values {
    fn as_mut(&mut self) -> &mut [f32] {
        self.0.as_mut_slice().expect("the engine's floats are f32")
    }
}
