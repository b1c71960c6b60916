//! Hand-written WGSL kernels for the hot operations on a GPU.
//!
//! burn's own kernels are right for element-wise work, but without autotune its matmul can ask for more workgroup
//! memory than WebGPU guarantees, its attention stores the whole score matrix and its convolution is the naive one.
//! These need no subgroups, at most 8 KiB of workgroup memory, 256 invocations and 7 storage buffers, so they run on
//! every WebGPU device. The CPU counterparts that define what each must compute are in [`crate::ops`].

mod cache;
mod launch;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Cube, backend_extension};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::model::cache::CacheLayout;
use crate::model::manifest::DType;
use launch::{Kernel, Output, grid_1d};

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

    /// `[1, C, h, w]` -> `[1, O, h', w']`.
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

/// WGSL that widens four neighbouring weights to f32: `weight4(row, k, depth)`.
fn unpack_source(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => {
            "fn weight4(n: u32, k: u32, depth: u32) -> vec4<f32> {
    let at = n * depth + k;
    return vec4<f32>(bitcast<f32>(w[at]), bitcast<f32>(w[at + 1u]), bitcast<f32>(w[at + 2u]), bitcast<f32>(w[at + 3u]));
}"
        }
        DType::F16 => {
            "fn weight4(n: u32, k: u32, depth: u32) -> vec4<f32> {
    let at = (n * depth + k) / 2u;
    return vec4<f32>(unpack2x16float(w[at]), unpack2x16float(w[at + 1u]));
}"
        }
        DType::Q8 => {
            "fn weight4(n: u32, k: u32, depth: u32) -> vec4<f32> {
    let word = w[(n * depth + k) / 4u];
    let bytes = vec4<i32>(bitcast<i32>(word << 24u), bitcast<i32>(word << 16u), bitcast<i32>(word << 8u), bitcast<i32>(word)) >> vec4<u32>(24u);
    let at = (n * depth + k) / info[3];
    return vec4<f32>(bytes) * unpack2x16float(w[info[4] + at / 2u])[at & 1u];
}"
        }
        DType::Q4 => {
            "fn weight4(n: u32, k: u32, depth: u32) -> vec4<f32> {
    let half = w[(n * depth + k) / 8u] >> (((k >> 2u) & 1u) * 16u);
    let nibbles = (vec4<u32>(half) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    let at = (n * depth + k) / info[3];
    return (vec4<f32>(nibbles) - 8.0) * unpack2x16float(w[info[4] + at / 2u])[at & 1u];
}"
        }
    }
}

/// Word at which a packed weight's scales begin.
fn scale_word(spec: &LinearSpec) -> usize {
    match spec.dtype {
        DType::Q8 => spec.n * spec.k / 4,
        DType::Q4 => spec.n * spec.k / 8,
        DType::F32 | DType::F16 => 0,
    }
}

impl GpuKernels for Cube {
    fn kinora_linear(
        x: FloatTensor<Self>,
        w: IntTensor<Self>,
        bias: FloatTensor<Self>,
        addend: FloatTensor<Self>,
        spec: LinearSpec,
    ) -> FloatTensor<Self> {
        let (x, addend) = (into_contiguous(x), into_contiguous(addend));
        let m = x.meta.shape()[0];
        let out = Output::new(&x, &[m, spec.n]);
        let info = [
            m,
            spec.n,
            spec.k,
            spec.group,
            scale_word(&spec),
            usize::from(spec.has_bias),
            spec.activation as usize,
            usize::from(spec.has_addend),
        ];
        Kernel::new("linear", include_str!("linear.wgsl"), [16, 16])
            .with("unpack", unpack_source(spec.dtype), spec.dtype as u32)
            .launch(&[&x, &w, &bias, &addend], &out, &info, [spec.n.div_ceil(64), m.div_ceil(64)]);
        out.into()
    }

    fn kinora_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        let (q, k, v) = (into_contiguous(q), into_contiguous(k), into_contiguous(v));
        let bias = into_contiguous(bias);
        let (queries, keys, width) = (q.meta.shape()[0], k.meta.shape()[0], q.meta.shape()[1]);
        let out = Output::new(&q, &[queries, width]);
        let d4 = width / spec.heads / 4;
        let tile = (256 / d4).clamp(1, 16);
        // A watchdog kills a browser's GPU process over one long dispatch, so a long sequence goes in several.
        let rows_per_dispatch = (4_000_000_000 / (keys * width * 4).max(1)).max(64) / 64 * 64;
        let mut first = 0;
        while first < queries {
            let rows = rows_per_dispatch.min(queries - first);
            let info = [queries, keys, spec.heads, spec.scale.to_bits() as usize, usize::from(spec.has_bias), first];
            Kernel::new("attention", include_str!("attention.wgsl"), [64, 1])
                .with("d4", &d4.to_string(), d4 as u32)
                .with("tile", &tile.to_string(), tile as u32)
                .with("stage", &(tile * d4).to_string(), 0)
                .launch(&[&q, &k, &v, &bias], &out, &info, [rows.div_ceil(64), spec.heads]);
            first += rows;
        }
        out.into()
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
        Kernel::new("norm", include_str!("norm.wgsl"), [64, 1])
            .with("centre", if spec.centre { "true" } else { "false" }, u32::from(spec.centre))
            .launch(&[&x, &scale, &shift], &out, &info, grid_1d(rows));
        out.into()
    }

    fn kinora_rope(x: FloatTensor<Self>, table: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, table) = (into_contiguous(x), into_contiguous(table));
        let (rows, width) = (x.meta.shape()[0], x.meta.shape()[1]);
        let pairs = rows * width / 2;
        let out = Output::new(&x, &[rows, width]);
        Kernel::new("rope", include_str!("rope.wgsl"), [64, 1]).launch(
            &[&x, &table],
            &out,
            &[pairs, width / 2, table.meta.shape()[1] / 2],
            grid_1d(pairs.div_ceil(64)),
        );
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
        let (x0, x1, residual) = (into_contiguous(x0), into_contiguous(x1), into_contiguous(residual));
        let shape = x0.meta.shape();
        let (c0, h, width) = (shape[1], shape[2], shape[3]);
        let out_h = (h * spec.upsample).div_ceil(spec.stride);
        let out_w = (width * spec.upsample).div_ceil(spec.stride);
        let out = Output::new(&x0, &[1, spec.out_channels, out_h, out_w]);
        let info = [
            c0,
            spec.second_channels,
            h,
            width,
            spec.out_channels,
            out_h,
            out_w,
            usize::from(spec.has_bias),
            usize::from(spec.has_residual),
            usize::from(spec.relu),
        ];
        Kernel::new("conv2d", include_str!("conv2d.wgsl"), [64, 1])
            .with("kernel", &spec.kernel.to_string(), spec.kernel as u32)
            .with("stride", &spec.stride.to_string(), spec.stride as u32)
            .with("upsample", &spec.upsample.to_string(), spec.upsample as u32)
            .launch(
                &[&x0, &x1, &w, &bias, &residual],
                &out,
                &info,
                [(out_h * out_w).div_ceil(64), spec.out_channels.div_ceil(8)],
            );
        out.into()
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
