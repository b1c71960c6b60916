//! What the operations of [`crate::ops`] hold besides their inputs.
//!
//! On a GPU every operation has a kernel that writes one new tensor (`kernels/mod.rs`); a sum or product goes into an
//! operand that nobody else holds. On the CPU this follows burn-flex 0.22: a sum or product goes into an operand that
//! nobody else holds; a matrix product packs parts of its operands (`gemm`), and one of many matrices makes the room of
//! its result twice; concatenation writes a new tensor; a convolution turns its input to channels-last, its weight
//! likewise, and works in tiles of 512 pixels. The 3x3 convolutions of stride 1, GELU and softmax are our own
//! (`kernels/winograd.rs`, `activation.rs`); the latter two work in place.

use std::rc::Rc;

use crate::kernels::winograd;
use crate::model::plan::bytes::{Bytes, Held, Walk};
use crate::model::plan::weights::Matrix;
use crate::ops::TILE_BYTES;

/// Depth to which gemm packs its operands.
const GEMM_DEPTH: u64 = 512;
/// Rows that gemm packs beforehand where there are no more.
const GEMM_ROWS: u64 = 1024;
/// Pixels that burn-flex convolves at a time.
const CONV_TILE: u64 = 512;
const TILE: u64 = TILE_BYTES as u64;

/// Channels, height and width of a frame within the autoencoder.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) channels: u64,
    pub(super) height: u64,
    pub(super) width: u64,
}

impl Frame {
    pub(super) fn bytes(self) -> Bytes {
        Bytes::f32s(&[self.channels, self.height, self.width])
    }
}

/// A convolution as in [`crate::ops::Conv`].
#[derive(Clone, Copy)]
pub(super) struct Conv {
    pub(super) out: u64,
    pub(super) kernel: u64,
    pub(super) stride: u64,
    pub(super) upsample: bool,
}

impl Walk {
    /// Memory that a product `[rows, k] x [k, n]` packs its operands into.
    fn gemm(&self, rows: u64, n: u64, k: u64) -> Bytes {
        Bytes::f32s(&[k.min(GEMM_DEPTH), rows.next_multiple_of(64) + n.min(GEMM_ROWS).next_multiple_of(64)])
    }

    /// `Linear::forward` of `[rows, k]`, without an activation that needs room of its own.
    pub(super) fn linear(&self, matrix: Matrix, rows: u64) -> Held {
        let Matrix { n, k, widened } = matrix;
        let _added = self.lora.then(|| self.tensor(&[rows, n]));
        let out = self.tensor(&[rows, n]);
        if !self.on_gpu() {
            self.during(widened + self.gemm(rows, n, k));
        }
        out
    }

    /// `Linear::forward` with GELU, which on the CPU is made of several operations.
    pub(super) fn linear_gelu(&self, matrix: Matrix, rows: u64) -> Held {
        let out = self.linear(matrix, rows);
        if !self.on_gpu() {
            self.during(Bytes::f32s(&[rows, matrix.n]));
        }
        out
    }

    /// `ops::norm` of a tensor that is held elsewhere too.
    pub(super) fn norm(&self, rows: u64, width: u64) -> Held {
        let out = self.tensor(&[rows, width]);
        if !self.on_gpu() {
            self.during(Bytes::f32s(&[rows, width + 1]));
        }
        out
    }

    /// `ops::norm`, not centred, of a tensor that is given away.
    pub(super) fn own_norm(&self, x: Held, rows: u64, width: u64) -> Held {
        // On the CPU the squares are held for a moment and the result goes where the input was.
        self.during(Bytes::f32s(&[rows, width + u64::from(!self.on_gpu())]));
        x
    }

    /// `ops::rope`.
    pub(super) fn rope(&self, x: Held, rows: u64, width: u64) -> Held {
        // On the CPU both halves, and the result they are joined to.
        self.during(Bytes::f32s(&[rows, width]) * if self.on_gpu() { 1 } else { 2 });
        x
    }

    /// `ops::attention` of queries that are given away; keys and values are held by the caller.
    pub(super) fn attention(&self, q: Held, queries: u64, keys: u64, heads: u64, width: u64) -> Held {
        let out = Bytes::f32s(&[queries, width]);
        if !self.on_gpu() {
            let step = (TILE / (heads * keys * 4).max(1)).clamp(1, queries.max(1));
            let scores = Bytes::f32s(&[heads, step, keys]);
            let part = Bytes::f32s(&[step, width]);
            let packed = self.gemm(step, keys, width / heads.max(1)) * self.target.threads();
            // Scores, made twice; scores and result; result and its reordered copy.
            let tile = (scores * 2).max(scores + part).max(part * 2) + packed;
            self.during(if step < queries { (out + tile).max(out * 2) } else { tile });
        }
        let out = self.hold(out);
        drop(q);
        out
    }

    /// `Linear::mlp` of an input that is given away.
    pub(super) fn mlp(&self, first: Matrix, second: Matrix, x: Held, rows: u64) -> Held {
        let step = (TILE / (first.n * 4).max(1)).max(1);
        if rows <= step {
            let _inner = self.linear_gelu(first, rows);
            drop(x);
            return self.linear(second, rows);
        }
        let parts = self.hold(Bytes::f32s(&[rows, second.n]));
        // A slice is a view on the CPU and a copy on a GPU.
        let slice = self.on_gpu().then(|| self.tensor(&[step, first.k]));
        let inner = self.linear_gelu(first, step);
        drop((self.linear(second, step), inner, slice));
        let joined = self.tensor(&[rows, second.n]);
        drop((parts, x));
        joined
    }

    /// `Conv::forward` of a frame that is given away, with a second input of the same shape where there is one.
    pub(super) fn conv(&self, conv: Conv, frame: Frame, x: impl Sized, second: Option<Rc<Held>>) -> (Frame, Held) {
        let Conv { out, kernel, stride, upsample } = conv;
        let grown = if upsample { 2 } else { 1 };
        let (height, width) = (frame.height * grown, frame.width * grown);
        let made = Frame { channels: out, height: height.div_ceil(stride), width: width.div_ceil(stride) };
        if self.on_gpu() {
            // The kernel reads both inputs and enlarges them as it reads.
            return (made, self.hold(made.bytes()));
        }
        let channels = if second.is_some() { 2 * frame.channels } else { frame.channels };
        if kernel == 3 && stride == 1 {
            // One of the inputs, or the residual, is held elsewhere too and copied.
            let copied = self.hold(frame.bytes());
            let products = winograd::products(upsample) as u64;
            let weights = self.hold(Bytes::f32s(&[products, out, channels]));
            let result = self.hold(made.bytes());
            let rows = [made.height, made.width].map(|length| length.div_ceil(2) as usize);
            let tiles = winograd::strip(channels as usize, upsample, rows) as u64;
            let strip = Bytes::f32s(&[products, channels + out, tiles]) + Bytes::f32s(&[out, tiles, 4]);
            let strips = (rows[0] * rows[1]).div_ceil(tiles.max(1) as usize) as u64;
            let at_once = self.target.threads().min(strips);
            self.during(strip * at_once + self.gemm(out, tiles, channels) * self.target.threads());
            drop((copied, weights, x, second));
            return (made, result);
        }
        let input = Frame { channels, height, width }.bytes();
        let mut given: (Option<_>, Option<Held>) = (Some(x), None);
        if let Some(second) = second {
            let joined = self.hold(Frame { channels, ..frame }.bytes());
            drop(second);
            given = (None, Some(joined));
        }
        if upsample {
            let enlarged = self.hold(input);
            given = (None, Some(enlarged));
        }
        let result = self.hold(made.bytes());
        let pixels = made.height * made.width;
        if kernel == 1 {
            self.during(self.gemm(out, pixels, channels));
        } else if channels > 4 || out > 16 {
            let taps = kernel * kernel * channels;
            let length = CONV_TILE.min(pixels);
            let tile = Bytes::f32s(&[length, taps + out]) + self.gemm(out, length, taps);
            let at_once = self.target.threads().min(pixels.div_ceil(CONV_TILE));
            self.during(Bytes::f32s(&[out, taps]) + input + tile * at_once);
        }
        drop(given);
        (made, result)
    }
}
