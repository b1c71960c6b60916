//! What the CPU device computes in pieces, because the whole would outgrow [`TILE_BYTES`]: attention in tiles of queries
//! and a feed-forward layer in chunks of rows, against the same in f64 without pieces, on some rows.

use kinora::compute::Compute;
use kinora::engine::wait;
use kinora::latents::noise::normal;
use kinora::model::manifest::DType;
use kinora::model::quant;
use kinora::model::shards::RawTensor;
use kinora::ops::{self, Activation, Linear, TILE_BYTES};
use kinora::weights::Stored;

/// Largest error of a value; the largest values are about 4.
const TOLERANCE: f64 = 1e-5;

/// First and last rows, and those on both sides of every border between pieces of `step` rows.
fn samples(rows: usize, step: usize) -> Vec<usize> {
    let borders = (step..rows).step_by(step).flat_map(|border| [border - 1, border]);
    [0, 1].into_iter().chain(borders).chain([rows - 2, rows - 1]).collect()
}

#[track_caller]
fn close(found: &[f32], wanted: &[f64], what: &str) {
    assert_eq!(found.len(), wanted.len());
    for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let error = (f64::from(*found) - wanted).abs();
        assert!(error < TOLERANCE, "{what}, value {index}: {found} and not {wanted}");
    }
}

#[test]
fn attention_in_tiles_is_attention() {
    let (heads, dim, queries, keys, scale) = (2, 4, 3400usize, 3000, 1.7f32);
    let width = heads * dim;
    let step = TILE_BYTES / (heads * keys * 4);
    assert_eq!(queries.div_ceil(step), 2, "two tiles, the second one shorter");
    let [q, k, v] = [(1, queries), (2, keys), (3, keys)].map(|(stream, rows)| normal(7, stream, rows * width));
    let bias = |index: usize| (index * 31 % 97) as f32 / 50.0 - 1.0;
    let compute = Compute::cpu();
    let place = |values: &[f32], rows: usize| compute.tensor(values.to_vec(), [rows, width]);
    for biased in [false, true] {
        let added =
            biased.then(|| compute.tensor((0..heads * queries * keys).map(bias).collect(), [heads, queries, keys]));
        let (q_in, k_in, v_in) = (place(&q, queries), place(&k, keys), place(&v, keys));
        let found = ops::attention(&compute, q_in, k_in, v_in, added, heads, scale);
        let found = wait(compute.read(found)).unwrap();
        assert_eq!(found.len(), queries * width);
        for row in samples(queries, step) {
            for head in 0..heads {
                let at = |row: usize, index: usize| row * width + head * dim + index;
                let score = |key: usize| {
                    let product: f64 = (0..dim).map(|i| f64::from(q[at(row, i)]) * f64::from(k[at(key, i)])).sum();
                    let bias = if biased { bias((head * queries + row) * keys + key) } else { 0.0 };
                    f64::from(scale) * product + f64::from(bias)
                };
                let weights: Vec<f64> = (0..keys).map(|key| score(key).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mean = |i: usize| (0..keys).map(|key| weights[key] * f64::from(v[at(key, i)])).sum::<f64>() / sum;
                let wanted: Vec<f64> = (0..dim).map(mean).collect();
                close(&found[at(row, 0)..][..dim], &wanted, &format!("row {row}, head {head}, bias {biased}"));
            }
        }
    }
}

#[test]
fn a_feed_forward_layer_in_chunks_is_the_layer() {
    let (rows, width, inner) = (9000usize, 4, 4096);
    let step = TILE_BYTES / (inner * 4);
    assert_eq!(rows.div_ceil(step), 3, "three chunks, the last one shorter");
    let compute = Compute::cpu();
    let raw = |shape: &[usize], values: &[f32]| {
        let bytes = quant::encode(DType::F32, shape, None, values).unwrap();
        RawTensor { name: "layer.weight".into(), dtype: DType::F32, shape: shape.to_vec(), group: None, bytes }
    };
    let linear = |out: usize, input: usize, weight: &[f32], bias: &[f32]| {
        Linear::new(&compute, Stored::Host(raw(&[out, input], weight)), Some(raw(&[out], bias))).unwrap()
    };
    let x = normal(8, 1, rows * width);
    let (up, up_bias) = (normal(8, 2, inner * width), normal(8, 3, inner));
    let down: Vec<f32> = normal(8, 4, width * inner).iter().map(|value| value / 64.0).collect();
    let down_bias = normal(8, 5, width);
    let (first, second) = (linear(inner, width, &up, &up_bias), linear(width, inner, &down, &down_bias));
    let found = Linear::mlp(&first, &second, compute.tensor(x.clone(), [rows, width]), Activation::Gelu);
    let found = wait(compute.read(found)).unwrap();
    assert_eq!(found.len(), rows * width);
    let dot = |a: &[f32], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum() };
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
    for row in samples(rows, step) {
        let x: Vec<f64> = x[row * width..][..width].iter().map(|&value| value.into()).collect();
        let hidden = up.chunks(width).zip(&up_bias).map(|(weights, &bias)| gelu(dot(weights, &x) + f64::from(bias)));
        let hidden: Vec<f64> = hidden.collect();
        let wanted = down.chunks(inner).zip(&down_bias).map(|(weights, &bias)| dot(weights, &hidden) + f64::from(bias));
        close(&found[row * width..][..width], &wanted.collect::<Vec<_>>(), &format!("row {row}"));
    }
}
