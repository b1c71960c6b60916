//! The product of rows with a packed weight. Two tile sizes: large ones read less from workgroup memory for each
//! multiplication, small ones leave work for more of the device's cores.

use std::fmt::Write;

use super::launch::{Output, Variant, launch};
use super::{GpuTensor, LinearSpec};
use crate::model::manifest::DType;

/// Outputs along the side of a thread's share, for products of many and of few tiles.
const SIDES: [usize; 2] = [8, 4];
/// Large tiles are taken when there are so many of them: enough for the cores of any device, twice over for most.
const MANY_TILES: usize = 96;

/// WGSL that widens four neighbouring weights to f32: `weight4(column, k)`.
fn unpack_source(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => {
            "fn weight4(n: u32, k: u32) -> vec4<f32> {
    let at = n * info.depth + k;
    return vec4<f32>(bitcast<f32>(w[at]), bitcast<f32>(w[at + 1u]), bitcast<f32>(w[at + 2u]), bitcast<f32>(w[at + 3u]));
}"
        }
        DType::F16 => {
            "fn weight4(n: u32, k: u32) -> vec4<f32> {
    let at = (n * info.depth + k) / 2u;
    return vec4<f32>(unpack2x16float(w[at]), unpack2x16float(w[at + 1u]));
}"
        }
        DType::Q8 => {
            "fn weight4(n: u32, k: u32) -> vec4<f32> {
    let place = n * info.depth + k;
    let word = w[place / 4u];
    let bytes = vec4<i32>(bitcast<i32>(word << 24u), bitcast<i32>(word << 16u), bitcast<i32>(word << 8u),
                          bitcast<i32>(word)) >> vec4<u32>(24u);
    let at = place >> info.group_bits;
    return vec4<f32>(bytes) * unpack2x16float(w[info.scales + at / 2u])[at & 1u];
}"
        }
        DType::Q4 => {
            "fn weight4(n: u32, k: u32) -> vec4<f32> {
    let place = n * info.depth + k;
    let half = w[place / 8u] >> (((k >> 2u) & 1u) * 16u);
    let nibbles = (vec4<u32>(half) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    let at = place >> info.group_bits;
    return (vec4<f32>(nibbles) - 8.0) * unpack2x16float(w[info.scales + at / 2u])[at & 1u];
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

/// A thread's share written out: its sums start at zero, take a step along K, and are stored.
fn share(side: usize) -> [String; 3] {
    let [mut clear, mut multiply, mut store] = [const { String::new() }; 3];
    for column in 0..side {
        writeln!(multiply, "let w{column} = tile_w[from_w + {}u];", 16 * column).expect("a string");
    }
    for row in 0..side {
        writeln!(multiply, "let x{row} = tile_x[from_x + {}u];", 16 * row).expect("a string");
        for four in 0..side / 4 {
            let sums = format!("sum_{row}_{four}");
            let dots: Vec<_> = (4 * four..4 * four + 4).map(|column| format!("dot(x{row}, w{column})")).collect();
            writeln!(clear, "var {sums} = vec4<f32>(0.0);").expect("a string");
            writeln!(multiply, "{sums} += vec4<f32>({});", dots.join(", ")).expect("a string");
            for (part, column) in ["x", "y", "z", "w"].iter().zip(4 * four..) {
                let (down, along) = (16 * row, 16 * column);
                writeln!(store, "store(row0 + local.y + {down}u, col0 + local.x + {along}u, {sums}.{part});")
                    .expect("a string");
            }
        }
    }
    [clear, multiply, store]
}

/// How the weight is stored, and outputs along the side of a thread's share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Tiles {
    dtype: DType,
    side: usize,
}

impl Variant for Tiles {
    const TEXT: &'static str = include_str!("linear.wgsl");

    fn threads(&self) -> [u32; 2] {
        [16, 16]
    }

    fn fill(&self) -> Vec<(&'static str, String)> {
        let [clear, multiply, store] = share(self.side);
        let unpack = unpack_source(self.dtype).to_string();
        vec![
            ("unpack", unpack),
            ("side", self.side.to_string()),
            ("clear", clear),
            ("multiply", multiply),
            ("store", store),
        ]
    }
}

/// `[M, K]`, words of `[N, K]`, `[N]`, `[M, N]` -> `[M, N]`.
pub(super) fn linear(x: GpuTensor, w: GpuTensor, bias: GpuTensor, addend: GpuTensor, spec: LinearSpec) -> GpuTensor {
    let m = x.meta.shape()[0];
    let out = Output::new(&x, &[m, spec.n]);
    let tiles = |side: usize| [spec.n.div_ceil(16 * side), m.div_ceil(16 * side), 1];
    let side = SIDES.into_iter().find(|&side| tiles(side).iter().product::<usize>() >= MANY_TILES).unwrap_or(SIDES[1]);
    let info = [
        m,
        spec.n,
        spec.k,
        spec.group.max(1).ilog2() as usize,
        scale_word(&spec),
        usize::from(spec.has_bias),
        spec.activation as usize,
        usize::from(spec.has_addend),
    ];
    launch(Tiles { dtype: spec.dtype, side }, &[&x, &w, &bias, &addend], &out, &info, tiles(side));
    out.into()
}
