//! The kernels that store a causal model's keys and values in fewer bits, and widen them again. The layout of the words
//! is in [`CacheLayout`]; what they must compute is in `denoise/cache/rows.rs`.

use super::GpuTensor;
use super::launch::{Kernel, Output, grid_1d};
use crate::model::cache::{CacheFormat, CacheLayout};

/// Values that one invocation stores: a group, since its scale comes first, or what fills one word.
fn unit(layout: CacheLayout) -> usize {
    match layout.format {
        CacheFormat::F32 => 1,
        CacheFormat::F16 => 2,
        CacheFormat::Q8 => layout.group,
    }
}

/// WGSL that stores the values from `at` on at word `to`: `store(at, to, count)`.
fn store_source(format: CacheFormat) -> &'static str {
    match format {
        CacheFormat::F32 => "fn store(at: u32, to: u32, count: u32) { out[to] = x[at]; }",
        CacheFormat::F16 => include_str!("store_f16.wgsl"),
        CacheFormat::Q8 => include_str!("store_q8.wgsl"),
    }
}

/// WGSL that widens four neighbouring values: `widened4(quad, group)`, both counted in fours.
fn widen_source(format: CacheFormat) -> &'static str {
    match format {
        CacheFormat::F32 => {
            "fn widened4(quad: u32, group: u32) -> vec4<f32> {
    let at = 4u * quad;
    return bitcast<vec4<f32>>(vec4<u32>(words[at], words[at + 1u], words[at + 2u], words[at + 3u]));
}"
        }
        CacheFormat::F16 => {
            "fn widened4(quad: u32, group: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words[2u * quad]), unpack2x16float(words[2u * quad + 1u]));
}"
        }
        CacheFormat::Q8 => {
            "fn widened4(quad: u32, group: u32) -> vec4<f32> {
    let start = quad / group * (group + 1u);
    let word = words[start + 1u + quad % group];
    let steps = bitcast<vec4<i32>>(vec4<u32>(word << 24u, word << 16u, word << 8u, word)) >> vec4<u32>(24u);
    return vec4<f32>(steps) * bitcast<f32>(words[start]);
}"
        }
    }
}

/// `[N, width]` -> the words of its rows.
pub(super) fn store(x: GpuTensor, layout: CacheLayout) -> GpuTensor {
    let rows = x.meta.shape()[0];
    let unit = unit(layout);
    let units = rows * layout.width / unit;
    let out = Output::words(&x, rows * layout.words());
    Kernel::new("store rows", include_str!("store_rows.wgsl"), [64, 1])
        .with("store", store_source(layout.format), layout.format as u32)
        .launch(&[&x], &out, &[units, unit, rows * layout.words() / units.max(1)], grid_1d(units.div_ceil(64)));
    out.into()
}

/// The words of `N` rows and `own` `[M, width]` -> `[N + M, width]`.
pub(super) fn widen(words: GpuTensor, own: GpuTensor, layout: CacheLayout) -> GpuTensor {
    let past = words.meta.shape()[0] / layout.words();
    let rows = past + own.meta.shape()[0];
    let out = Output::new(&own, &[rows, layout.width]);
    let quads = rows * layout.width / 4;
    Kernel::new("widen rows", include_str!("widen_rows.wgsl"), [64, 1])
        .with("widen", widen_source(layout.format), layout.format as u32)
        .launch(
            &[&words, &own],
            &out,
            &[past * layout.width / 4, quads, layout.group / 4],
            grid_1d(quads.div_ceil(64)),
        );
    out.into()
}
