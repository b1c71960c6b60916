//! Attention by online softmax. How a row's work is shared between threads follows from the head's size.

use super::launch::{Output, Variant, launch};
use super::{AttentionSpec, GpuTensor};

/// Quads of a head that a thread keeps of its query, and as many of its sums: 64 registers.
const QUADS_OF_A_THREAD: usize = 8;
/// Bytes of workgroup memory that every WebGPU device has.
const WORKGROUP_BYTES: usize = 16 << 10;

/// How a workgroup divides rows of heads of `4 * d4` values: threads a row, rows, and keys at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    d4: usize,
    parts: usize,
    rows: usize,
    tile: usize,
}

impl Shape {
    fn of(d4: usize) -> Self {
        let parts = (1..=d4).find(|parts| d4.is_multiple_of(*parts) && d4 / parts <= QUADS_OF_A_THREAD).unwrap_or(d4);
        let rows = (256 / parts).clamp(1, 64);
        let mut shape = Self { d4, parts, rows, tile: 8 };
        while shape.tile > 1 && shape.bytes() > WORKGROUP_BYTES {
            shape.tile /= 2;
        }
        shape
    }

    /// Elements of the shares of scores; one thread a row needs none, but no array may be empty.
    fn shares(&self) -> usize {
        if self.parts == 1 { 1 } else { self.tile * self.parts * self.rows }
    }

    fn bytes(&self) -> usize {
        2 * self.tile * self.d4 * 16 + self.shares() * 4
    }

    /// A row of text for every key of a tile.
    fn each_key(&self, text: impl Fn(usize) -> String) -> String {
        (0..self.tile).map(text).collect::<Vec<_>>().join("\n")
    }

    /// A row of text for every quad of a thread.
    fn each_quad(&self, text: impl Fn(usize) -> String) -> String {
        (0..self.d4 / self.parts).map(text).collect::<Vec<_>>().join("\n")
    }
}

impl Variant for Shape {
    const TEXT: &'static str = include_str!("attention.wgsl");

    fn threads(&self) -> [u32; 2] {
        [(self.rows * self.parts) as u32, 1]
    }

    /// Everything that is done for each quad and key is written out.
    fn fill(&self) -> Vec<(&'static str, String)> {
        let &Self { d4, parts, rows, tile } = self;
        let mine = d4 / parts;
        let begin = self.each_quad(|quad| {
            format!(
                "var q{quad} = vec4<f32>(0.0);\nvar sum{quad} = vec4<f32>(0.0);\n\
                 if (live) {{ q{quad} = q[from_q + {quad}u] * scale; }}"
            )
        });
        let scores = self.each_key(|key| {
            let dots: Vec<_> =
                (0..mine).map(|quad| format!("dot(q{quad}, keys[mine + {}u])", key * d4 + quad)).collect();
            format!("var score{key} = {};", dots.join(" + "))
        });
        let join = if parts == 1 {
            String::new()
        } else {
            let put = self.each_key(|key| format!("shares[({}u + part) * ROWS + slot] = score{key};", key * parts));
            let take = self.each_key(|key| {
                let all: Vec<_> =
                    (0..parts).map(|part| format!("shares[{}u + slot]", (key * parts + part) * rows)).collect();
                format!("score{key} = {};", all.join(" + "))
            });
            format!("{put}\nworkgroupBarrier();\n{take}")
        };
        let within = |key: usize| format!("first + {key}u < info.count");
        let weighed: Vec<_> = (0..tile).map(|key| format!("weight{key}")).collect();
        let weights = self.each_key(|key| {
            format!("let weight{key} = select(0.0, exp(max(score{key} - peak, -80.0)), {});", within(key))
        });
        let gather = self.each_quad(|quad| {
            let parts: Vec<_> =
                (0..tile).map(|key| format!("weight{key} * values[mine + {}u]", key * d4 + quad)).collect();
            format!("sum{quad} = sum{quad} * shrink + {};", parts.join(" + "))
        });
        let add_bias =
            self.each_key(|key| format!("if ({}) {{ score{key} += bias[from_bias + {key}u]; }}", within(key)));
        let highest =
            self.each_key(|key| format!("highest = select(highest, max(highest, score{key}), {});", within(key)));
        let finish = self.each_quad(|quad| format!("out[from_q + {quad}u] = sum{quad} * inverse;"));
        vec![
            ("d4", d4.to_string()),
            ("parts", parts.to_string()),
            ("rows", rows.to_string()),
            ("tile", tile.to_string()),
            ("threads", (rows * parts).to_string()),
            ("stage", (tile * d4).to_string()),
            ("shares", self.shares().to_string()),
            ("begin", begin),
            ("scores", scores),
            ("join", join),
            ("add_bias", add_bias),
            ("highest", highest),
            ("weights", format!("{weights}\ntotal += {};", weighed.join(" + "))),
            ("gather", gather),
            ("finish", finish),
        ]
    }
}

/// `[Nq, H*D], [Nk, H*D], [Nk, H*D], [H, Nq, Nk]` -> `[Nq, H*D]`.
pub(super) fn attention(q: GpuTensor, k: GpuTensor, v: GpuTensor, bias: GpuTensor, spec: AttentionSpec) -> GpuTensor {
    let (queries, keys, width) = (q.meta.shape()[0], k.meta.shape()[0], q.meta.shape()[1]);
    let out = Output::new(&q, &[queries, width]);
    let shape = Shape::of(width / spec.heads / 4);
    let affordable = spec.operations / (keys as u64 * width as u64 * 4).max(1);
    let rows_at_once = (affordable.min(queries as u64) as usize).max(1).next_multiple_of(shape.rows);
    for first in (0..queries).step_by(rows_at_once) {
        let rows = rows_at_once.min(queries - first);
        let info = [queries, keys, spec.heads, spec.scale.to_bits() as usize, usize::from(spec.has_bias), first];
        launch(shape, &[&q, &k, &v, &bias], &out, &info, [rows.div_ceil(shape.rows), spec.heads, 1]);
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_fits_the_guaranteed_workgroup() {
        for d4 in 1..=64 {
            let shape = Shape::of(d4);
            assert!(shape.rows * shape.parts <= 256 && shape.bytes() <= WORKGROUP_BYTES, "{shape:?}");
            assert_eq!(d4 % shape.parts, 0, "{shape:?}");
        }
        assert_eq!(Shape::of(16), Shape { d4: 16, parts: 2, rows: 64, tile: 8 });
        assert_eq!(Shape::of(32), Shape { d4: 32, parts: 4, rows: 64, tile: 8 });
    }
}
