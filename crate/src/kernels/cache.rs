//! The kernels that store a causal model's keys and values in fewer bits, and widen them again. The layout of the words
//! is in [`CacheLayout`]; what they must compute is in `denoise/cache/rows.rs`.

use super::GpuTensor;
use super::launch::{Output, Variant, grid_1d, launch};
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

/// The kernel that stores.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Store(CacheFormat);

impl Variant for Store {
    const TEXT: &'static str = include_str!("store_rows.wgsl");

    fn fill(&self) -> Vec<(&'static str, String)> {
        vec![("store", store_source(self.0).to_string())]
    }
}

/// The kernel that widens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Widen(CacheFormat);

impl Variant for Widen {
    const TEXT: &'static str = include_str!("widen_rows.wgsl");

    fn fill(&self) -> Vec<(&'static str, String)> {
        vec![("widen", widen_source(self.0).to_string())]
    }
}

/// `[N, width]` -> the words of its rows.
pub(super) fn store(x: GpuTensor, layout: CacheLayout) -> GpuTensor {
    let rows = x.meta.shape()[0];
    let unit = unit(layout);
    let units = rows * layout.width / unit;
    let out = Output::words(&x, rows * layout.words());
    let info = [units, unit, rows * layout.words() / units.max(1)];
    launch(Store(layout.format), &[&x], &out, &info, grid_1d(units.div_ceil(64)));
    out.into()
}

/// The words of `N` rows and `own` `[M, width]` -> `[N + M, width]`.
pub(super) fn widen(words: GpuTensor, own: GpuTensor, layout: CacheLayout) -> GpuTensor {
    let past = words.meta.shape()[0] / layout.words();
    let rows = past + own.meta.shape()[0];
    let out = Output::new(&own, &[rows, layout.width]);
    let quads = rows * layout.width / 4;
    let info = [past * layout.width / 4, quads, layout.group / 4];
    launch(Widen(layout.format), &[&words, &own], &out, &info, grid_1d(quads.div_ceil(64)));
    out.into()
}
