//! The text encoder at work: `text/umt5.rs` and `text/stream.rs`.

use crate::model::manifest::{Manifest, TextEncoderConfig};
use crate::model::plan::bytes::{Bytes, Held, Machine, Walk};
use crate::model::plan::weights::{Matrix, Weights};
use crate::model::plan::{Both, Target, TextWeights};
use crate::text::umt5::layer_prefix;

/// What encoding takes at most besides the weights that stay: the layers of a streamed encoder, and the values.
pub(super) struct Encoding {
    pub(super) layers: Both,
    pub(super) values: Both,
    pub(super) largest: Bytes,
}

/// Encoding a prompt of `tokens` tokens, and the negative prompt where the model is guided.
pub(super) fn encoding(
    manifest: &Manifest,
    weights: &Weights<'_>,
    text: TextWeights,
    tokens: u64,
    machine: &Machine,
) -> Encoding {
    let config = &manifest.text_encoder;
    let (walk, target) = (Walk::new(machine, false), machine.target);
    let texts = if manifest.guided() { 2 } else { 1 };
    let width = config.d_model as u64;
    let streamed = text == TextWeights::Streamed;
    // A layer and the next one, where a GPU has them.
    let beside = Walk::new(machine, false);
    let in_memory = if streamed && walk.on_gpu() { config.num_layers.min(2) } else { 0 };
    let pieces = (0..in_memory).flat_map(|index| weights.pieces(&layer_prefix(index)));
    let pieces: Vec<Held> = pieces.map(|bytes| beside.hold(bytes)).collect();
    // A streamed encoder takes both texts through a layer while it is there; else the first one's embeddings wait.
    let others: Vec<Held> = (1..texts).map(|_| walk.tensor(&[tokens, width])).collect();
    let x = walk.tensor(&[tokens, width]);
    block(&walk, config, weights, tokens);
    let normed = walk.norm(tokens, width);
    drop((x, normed, others, pieces));
    // The rows of the table as f32, once as they are read and once for each text.
    let rows = Bytes::f32s(&[texts, tokens, width]) * 2;
    let on_gpu = target == Target::Gpu;
    let values = if on_gpu { Both { host: rows, gpu: walk.peak() } } else { Both::host(walk.peak().max(rows)) };
    let layers = if streamed { layers(manifest, weights, target) } else { Both::default() };
    Encoding { layers, values, largest: walk.largest() }
}

/// `Block::forward`.
fn block(walk: &Walk, config: &TextEncoderConfig, weights: &Weights<'_>, tokens: u64) {
    let (width, heads) = (config.d_model as u64, config.num_heads as u64);
    let inner = heads * config.d_kv as u64;
    let prefix = format!("{}layer", layer_prefix(0));
    let attention = |name: &str| weights.matrix(&format!("{prefix}.0.SelfAttention.{name}"));
    let dense = |name: &str| weights.matrix(&format!("{prefix}.1.DenseReluDense.{name}"));

    let h = walk.norm(tokens, width);
    let bias = walk.tensor(&[heads, tokens, tokens]);
    let q = walk.linear(attention("q"), tokens);
    let k = walk.linear(attention("k"), tokens);
    let v = walk.linear(attention("v"), tokens);
    drop(h);
    let h = walk.attention(q, tokens, tokens, heads, inner);
    drop((k, v, bias));
    drop((walk.linear(attention("o"), tokens), h));

    let h = walk.norm(tokens, width);
    let gate = walk.linear_gelu(dense("wi_0"), tokens);
    let other = walk.linear(dense("wi_1"), tokens);
    drop((h, other));
    let wo: Matrix = dense("wo");
    drop((walk.linear(wo, tokens), gate));
}

/// The layer that runs; on a GPU also the next one, which is read meanwhile; and one shard.
fn layers(manifest: &Manifest, weights: &Weights<'_>, target: Target) -> Both {
    let count = manifest.text_encoder.num_layers;
    let mut most = Both::default();
    for index in 0..count {
        let (read, held) = weights.layer(&layer_prefix(index));
        let pair = if target == Target::Gpu && count > 1 { read + held } else { read };
        most = Both { host: most.host.max(pair.host), gpu: most.gpu.max(pair.gpu) };
    }
    most + Both::host(weights.longest_text_shard())
}
