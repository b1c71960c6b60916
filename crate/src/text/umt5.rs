//! The UMT5 text encoder.
//!
//! Follows transformers `models/umt5/modeling_umt5.py` (`UMT5EncoderModel`): root-mean-square norms before each
//! part, no 1/sqrt(d) in the attention, a relative position bias of its own in every layer, gated GELU. Only the real
//! tokens are computed; padding comes after the encoder, as zeros, where Wan wants it.

use burn::tensor::Tensor;

use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::model::manifest::TextEncoderConfig;
use crate::model::shards::RawTensor;
use crate::ops::{self, Activation, Affine, Linear};
use crate::weights::WeightStore;

struct Block {
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
        let embedding = store.host("text_encoder.shared.weight")?;
        let mut blocks = Vec::with_capacity(config.num_layers);
        for index in 0..config.num_layers {
            let block = format!("text_encoder.encoder.block.{index}.layer");
            let attention = format!("{block}.0.SelfAttention");
            let dense = format!("{block}.1.DenseReluDense");
            let table = store.host(&format!("{attention}.relative_attention_bias.weight"))?;
            blocks.push(Block {
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
            });
        }
        let final_norm = store.row("text_encoder.encoder.final_layer_norm.weight")?;
        Ok(Self { config: config.clone(), embedding, blocks, final_norm })
    }

    /// Token ids (end mark included) -> embeddings `[tokens, d_model]`.
    pub async fn encode(&self, compute: &Compute, ids: &[u32]) -> Result<Vec<f32>> {
        let (tokens, width) = (ids.len(), self.config.d_model);
        if tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            return Err(Error::Tokenizer(format!("token {id} is outside the vocabulary")));
        }
        let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let values = self.embedding.rows_to_f32(&rows)?;
        let mut x: Tensor<2> = compute.tensor(values, [tokens, width]);
        let eps = self.config.layer_norm_epsilon;
        let heads = self.config.num_heads;
        for block in &self.blocks {
            let h = ops::norm(compute, x.clone(), Affine::Weight(&block.attention_norm, None), false, eps);
            let bias = compute.tensor(self.position_bias(&block.bias_table, tokens), [heads, tokens, tokens]);
            let q = block.q.forward(h.clone(), Activation::None);
            let k = block.k.forward(h.clone(), Activation::None);
            let v = block.v.forward(h, Activation::None);
            let h = ops::attention(compute, q, k, v, Some(bias), heads, 1.0);
            x = x + block.o.forward(h, Activation::None);

            let h = ops::norm(compute, x.clone(), Affine::Weight(&block.feed_forward_norm, None), false, eps);
            let gate = block.wi_0.forward(h.clone(), Activation::Gelu);
            let h = gate * block.wi_1.forward(h, Activation::None);
            x = x + block.wo.forward(h, Activation::None);
            compute.drain(&x).await?;
        }
        compute.read(ops::norm(compute, x, Affine::Weight(&self.final_norm, None), false, eps)).await
    }

    /// Additive attention bias `[heads, tokens, tokens]` of one layer.
    fn position_bias(&self, table: &[f32], tokens: usize) -> Vec<f32> {
        let heads = self.config.num_heads;
        let mut bias = vec![0.0; heads * tokens * tokens];
        for query in 0..tokens {
            for key in 0..tokens {
                let bucket = self.bucket(key as i64 - query as i64);
                for head in 0..heads {
                    bias[(head * tokens + query) * tokens + key] = table[bucket * heads + head];
                }
            }
        }
        bias
    }

    /// Bidirectional bucket of a distance: exact while short, logarithmic after.
    fn bucket(&self, distance: i64) -> usize {
        let buckets = self.config.relative_attention_num_buckets / 2;
        let side = if distance > 0 { buckets } else { 0 };
        let distance = distance.unsigned_abs() as usize;
        let exact = buckets / 2;
        if distance < exact {
            return side + distance;
        }
        let span = (self.config.relative_attention_max_distance as f32 / exact as f32).ln();
        let log = (distance as f32 / exact as f32).ln() / span * (buckets - exact) as f32;
        side + (exact + log as usize).min(buckets - 1)
    }
}
