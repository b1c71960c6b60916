//! The UMT5 text encoder.
//!
//! Follows transformers `models/umt5/modeling_umt5.py` (`UMT5EncoderModel`): root-mean-square norms before each
//! part, no 1/sqrt(d) in the attention, a relative position bias of its own in every layer, gated GELU. Only the real
//! tokens are computed, with f32 between the layers; padding comes after the encoder, as zeros, where Wan wants it.

use burn::tensor::Tensor;

use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::model::manifest::TextEncoderConfig;
use crate::model::shards::RawTensor;
use crate::ops::{self, Activation, Affine, Linear};
use crate::weights::WeightStore;

/// The token table's name.
pub(crate) const TABLE: &str = "text_encoder.shared.weight";
pub(super) const FINAL_NORM: &str = "text_encoder.encoder.final_layer_norm.weight";

/// What the names of a layer's tensors start with.
pub(crate) fn layer_prefix(index: usize) -> String {
    format!("text_encoder.encoder.block.{index}.")
}

/// One layer.
pub(super) struct Block {
    attention_norm: Tensor<2>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// `[buckets, heads]`, host side.
    bias_table: Vec<f32>,
    feed_forward_norm: Tensor<2>,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl Block {
    /// Takes the tensors of a layer from the store.
    pub(super) fn load(index: usize, store: &mut WeightStore) -> Result<Self> {
        let block = format!("{}layer", layer_prefix(index));
        let attention = format!("{block}.0.SelfAttention");
        let dense = format!("{block}.1.DenseReluDense");
        let table = store.host(&format!("{attention}.relative_attention_bias.weight"))?;
        Ok(Self {
            attention_norm: store.row(&format!("{block}.0.layer_norm.weight"))?,
            q: store.linear(&format!("{attention}.q"))?,
            k: store.linear(&format!("{attention}.k"))?,
            v: store.linear(&format!("{attention}.v"))?,
            o: store.linear(&format!("{attention}.o"))?,
            bias_table: table.to_f32()?,
            feed_forward_norm: store.row(&format!("{block}.1.layer_norm.weight"))?,
            wi_0: store.linear(&format!("{dense}.wi_0"))?,
            wi_1: store.linear(&format!("{dense}.wi_1"))?,
            wo: store.linear(&format!("{dense}.wo"))?,
        })
    }

    /// Bytes of its weights, in host memory and on the device.
    pub(super) fn held_bytes(&self) -> u64 {
        let linear = [&self.q, &self.k, &self.v, &self.o, &self.wi_0, &self.wi_1, &self.wo];
        let norms = self.attention_norm.dims()[1] + self.feed_forward_norm.dims()[1];
        linear.iter().map(|linear| linear.held_bytes()).sum::<u64>() + 4 * (norms + self.bias_table.len()) as u64
    }

    /// `[tokens, d_model]` -> `[tokens, d_model]`.
    pub(super) fn forward(&self, compute: &Compute, config: &TextEncoderConfig, x: Tensor<2>) -> Tensor<2> {
        let (tokens, heads, eps) = (x.dims()[0], config.num_heads, config.layer_norm_epsilon);
        let h = ops::norm(compute, x.clone(), Affine::Weight(&self.attention_norm, None), false, eps);
        let bias = compute.tensor(position_bias(config, &self.bias_table, tokens), [heads, tokens, tokens]);
        let q = self.q.forward(h.clone(), Activation::None);
        let k = self.k.forward(h.clone(), Activation::None);
        let v = self.v.forward(h, Activation::None);
        let h = ops::attention(compute, q, k, v, Some(bias), heads, 1.0);
        let x = x + self.o.forward(h, Activation::None);

        let h = ops::norm(compute, x.clone(), Affine::Weight(&self.feed_forward_norm, None), false, eps);
        let gate = self.wi_0.forward(h.clone(), Activation::Gelu);
        let h = gate * self.wi_1.forward(h, Activation::None);
        x + self.wo.forward(h, Activation::None)
    }
}

/// Encoder weights on a device. The token table stays in host memory in its packed form; only the rows of a prompt are
/// ever widened.
pub struct Umt5 {
    config: TextEncoderConfig,
    embedding: RawTensor,
    blocks: Vec<Block>,
    final_norm: Tensor<2>,
}

impl Umt5 {
    /// Takes the tensors `text_encoder.*` from the store.
    pub fn load(config: &TextEncoderConfig, store: &mut WeightStore) -> Result<Self> {
        let embedding = store.host(TABLE)?;
        let blocks = (0..config.num_layers).map(|index| Block::load(index, store)).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), embedding, blocks, final_norm: store.row(FINAL_NORM)? })
    }

    /// Token ids (end mark included) -> embeddings `[tokens, d_model]`.
    pub async fn encode(&self, compute: &Compute, ids: &[u32]) -> Result<Vec<f32>> {
        let values = self.embedding.rows_to_f32(&table_rows(&self.config, ids)?)?;
        let mut x: Tensor<2> = compute.tensor(values, [ids.len(), self.config.d_model]);
        for block in &self.blocks {
            x = block.forward(compute, &self.config, x);
            compute.drain(&x).await?;
        }
        finish(compute, &self.config, x, &self.final_norm).await
    }
}

/// The rows of the token table that ids stand for.
///
/// # Errors
/// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], and [`Error::Tokenizer`] for an id that the table does not have.
pub(super) fn table_rows(config: &TextEncoderConfig, ids: &[u32]) -> Result<Vec<usize>> {
    if ids.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if ids.len() > config.max_tokens {
        return Err(Error::PromptTooLong { tokens: ids.len(), max: config.max_tokens });
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        return Err(Error::Tokenizer(format!("token {id} is outside the vocabulary")));
    }
    Ok(ids.iter().map(|&id| id as usize).collect())
}

/// The last norm, and what comes out of it.
pub(super) async fn finish(
    compute: &Compute,
    config: &TextEncoderConfig,
    x: Tensor<2>,
    final_norm: &Tensor<2>,
) -> Result<Vec<f32>> {
    let affine = Affine::Weight(final_norm, None);
    compute.read(ops::norm(compute, x, affine, false, config.layer_norm_epsilon)).await
}

/// Additive attention bias `[heads, tokens, tokens]` of one layer.
fn position_bias(config: &TextEncoderConfig, table: &[f32], tokens: usize) -> Vec<f32> {
    let heads = config.num_heads;
    let mut bias = vec![0.0; heads * tokens * tokens];
    for query in 0..tokens {
        for key in 0..tokens {
            let bucket = bucket(config, key as i64 - query as i64);
            for head in 0..heads {
                bias[(head * tokens + query) * tokens + key] = table[bucket * heads + head];
            }
        }
    }
    bias
}

/// Bidirectional bucket of a distance: exact while short, logarithmic after.
fn bucket(config: &TextEncoderConfig, distance: i64) -> usize {
    let buckets = config.relative_attention_num_buckets / 2;
    let side = if distance > 0 { buckets } else { 0 };
    let distance = distance.unsigned_abs() as usize;
    let exact = buckets / 2;
    if distance < exact {
        return side + distance;
    }
    let span = (config.relative_attention_max_distance as f32 / exact as f32).ln();
    let log = (distance as f32 / exact as f32).ln() / span * (buckets - exact) as f32;
    side + (exact + log as usize).min(buckets - 1)
}
