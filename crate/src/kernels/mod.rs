//! Hand-written kernels for the hot operations: WGSL for a GPU; the 3x3 convolution, GELU and softmax for the CPU.
//!
//! burn's own kernels are right for element-wise work, but without autotune its matmul can ask for more workgroup
//! memory than WebGPU guarantees, its attention stores the whole score matrix and its convolution is the naive one.
//! These need no subgroups, at most 16 KiB of workgroup memory, 256 invocations and 7 storage buffers, so they run on
//! every WebGPU device. The CPU counterparts that define what each must compute are in [`crate::ops`].

pub(crate) mod activation;
mod attention;
mod cache;
mod conv2d;
mod launch;
mod linear;
pub(crate) mod winograd;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Cube, backend_extension};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::model::cache::CacheLayout;
use crate::model::manifest::DType;
pub(crate) use conv2d::conv_weights;
use launch::{Output, Variant, grid_1d, launch};

/// What a linear layer's weight looks like in memory and what follows the product.
#[derive(Clone, Copy, Debug)]
pub struct LinearSpec {
    /// Storage of the weight.
    pub dtype: DType,
    /// Output features (rows of the weight).
    pub n: usize,
    /// Input features (columns of the weight), a multiple of 4.
    pub k: usize,
    /// Quantization group along the input features; unused for dense weights.
    pub group: usize,
    /// Whether the bias counts.
    pub has_bias: bool,
    /// Whether the addend counts.
    pub has_addend: bool,
    /// 0 none, 1 GELU (tanh form), 2 SiLU.
    pub activation: u32,
}

/// Normalisation over the last dimension.
#[derive(Clone, Copy, Debug)]
pub struct NormSpec {
    /// Subtract the mean first (layer norm) or not (RMS norm).
    pub centre: bool,
    /// Added to the mean square before the root.
    pub eps: f32,
    /// Added to the scale: 1 for a modulation, 0 for an affine weight.
    pub offset: f32,
    /// Whether scale and shift count.
    pub has_scale: bool,
    /// See `has_scale`.
    pub has_shift: bool,
    /// Rows of `x` that share one row of scale and shift.
    pub rows_per_modulation: usize,
}

/// Attention over rows of `heads * head_dim` values.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpec {
    /// Number of heads.
    pub heads: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether the additive bias counts.
    pub has_bias: bool,
    /// Multiplications and additions of one dispatch, at most.
    pub operations: u64,
}

/// One 2-D convolution with zero padding `kernel / 2`.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// Output channels.
    pub out_channels: usize,
    /// Kernel size, 1 or 3.
    pub kernel: usize,
    /// Stride, 1 or 2.
    pub stride: usize,
    /// Nearest enlargement of the input, 1 or 2.
    pub upsample: usize,
    /// Channels taken from the second input.
    pub second_channels: usize,
    /// Whether the bias counts.
    pub has_bias: bool,
    /// Whether the residual counts.
    pub has_residual: bool,
    /// Rectify the result.
    pub relu: bool,
}

/// The operations that have a kernel of their own. Shapes as in [`crate::ops`].
#[backend_extension(Cube)]
pub trait GpuKernels: Backend {
    /// `[M, K] x [N, K]` packed, bias `[N]`, addend `[M, N]` -> `[M, N]`.
    fn kinora_linear(
        x: FloatTensor<Self>,
        w: IntTensor<Self>,
        bias: FloatTensor<Self>,
        addend: FloatTensor<Self>,
        spec: LinearSpec,
    ) -> FloatTensor<Self>;

    /// `[Nq, H*D], [Nk, H*D], [Nk, H*D], [H, Nq, Nk]` -> `[Nq, H*D]`.
    fn kinora_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self>;

    /// `[N, C]`, scale and shift `[R, C]` -> `[N, C]`.
    fn kinora_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self>;

    /// `[N, H*D]`, table `[N, D]` of (cos, sin) pairs -> `[N, H*D]`.
    fn kinora_rope(x: FloatTensor<Self>, table: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `[1, C, h, w]` -> `[1, O, h', w']`; weights as [`conv_weights`] lays them out.
    fn kinora_conv2d(
        x0: FloatTensor<Self>,
        x1: FloatTensor<Self>,
        w: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self>;

    /// `[N, width]` -> the words of a cache, `[N * words of a row]`.
    fn kinora_store_rows(x: FloatTensor<Self>, layout: CacheLayout) -> IntTensor<Self>;

    /// `[N * words of a row]`, `[M, width]` -> `[N + M, width]`, the widened rows in front.
    fn kinora_widen_rows(words: IntTensor<Self>, own: FloatTensor<Self>, layout: CacheLayout) -> FloatTensor<Self>;
}

/// The normalisation, which subtracts the mean or does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Norm {
    centre: bool,
}

impl Variant for Norm {
    const TEXT: &'static str = include_str!("norm.wgsl");

    fn fill(&self) -> Vec<(&'static str, String)> {
        vec![("centre", self.centre.to_string())]
    }
}

/// The rotary embedding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rope;

impl Variant for Rope {
    const TEXT: &'static str = include_str!("rope.wgsl");
}

impl GpuKernels for Cube {
    fn kinora_linear(
        x: FloatTensor<Self>,
        w: IntTensor<Self>,
        bias: FloatTensor<Self>,
        addend: FloatTensor<Self>,
        spec: LinearSpec,
    ) -> FloatTensor<Self> {
        linear::linear(into_contiguous(x), w, bias, into_contiguous(addend), spec)
    }

    fn kinora_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        let [q, k, v, bias] = [q, k, v, bias].map(into_contiguous);
        attention::attention(q, k, v, bias, spec)
    }

    fn kinora_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let (x, scale, shift) = (into_contiguous(x), into_contiguous(scale), into_contiguous(shift));
        let (rows, width) = (x.meta.shape()[0], x.meta.shape()[1]);
        let out = Output::new(&x, &[rows, width]);
        let info = [
            rows,
            width,
            spec.rows_per_modulation,
            spec.eps.to_bits() as usize,
            spec.offset.to_bits() as usize,
            usize::from(spec.has_scale),
            usize::from(spec.has_shift),
        ];
        launch(Norm { centre: spec.centre }, &[&x, &scale, &shift], &out, &info, grid_1d(rows));
        out.into()
    }

    fn kinora_rope(x: FloatTensor<Self>, table: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, table) = (into_contiguous(x), into_contiguous(table));
        let (rows, width) = (x.meta.shape()[0], x.meta.shape()[1]);
        let pairs = rows * width / 2;
        let out = Output::new(&x, &[rows, width]);
        let info = [pairs, width / 2, table.meta.shape()[1] / 2];
        launch(Rope, &[&x, &table], &out, &info, grid_1d(pairs.div_ceil(64)));
        out.into()
    }

    fn kinora_conv2d(
        x0: FloatTensor<Self>,
        x1: FloatTensor<Self>,
        w: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self> {
        let [x0, x1, w, residual] = [x0, x1, w, residual].map(into_contiguous);
        conv2d::conv2d(x0, x1, w, bias, residual, spec)
    }

    fn kinora_store_rows(x: FloatTensor<Self>, layout: CacheLayout) -> IntTensor<Self> {
        cache::store(into_contiguous(x), layout)
    }

    fn kinora_widen_rows(words: IntTensor<Self>, own: FloatTensor<Self>, layout: CacheLayout) -> FloatTensor<Self> {
        cache::widen(into_contiguous(words), into_contiguous(own), layout)
    }
}

/// Keeps the tensor type used above in one place.
pub(crate) type GpuTensor = CubeTensor;
