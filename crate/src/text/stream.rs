//! The UMT5 encoder run from storage: one layer at a time, so that gigabytes of encoder need megabytes of memory.
//!
//! What is held at a time: the layer that runs, the next one where a GPU runs it (it is read meanwhile), and one shard.
//! Of the token table only the shards with the rows of the prompt are read. The result is that of [`Umt5`], bit for
//! bit: both run the same layers on the same values.
//!
//! [`Umt5`]: super::umt5::Umt5

use std::rc::Rc;

use burn::tensor::Tensor;

use super::umt5::{Block, FINAL_NORM, TABLE, finish, layer_prefix, table_rows};
use crate::compute::{Compute, Kind};
use crate::error::Result;
use crate::model::layout::Part;
use crate::model::manifest::{Manifest, TextEncoderConfig};
use crate::model::reader::{Held, Meter, ShardSource, TensorReader};
use crate::weights::WeightStore;

/// An encoder whose weights stay where they are stored.
pub struct StreamedUmt5 {
    config: TextEncoderConfig,
    reader: TensorReader,
}

impl StreamedUmt5 {
    /// Reads nothing yet.
    pub fn new(manifest: &Manifest, source: Rc<dyn ShardSource>) -> Self {
        let wanted = |name: &str| name.starts_with(Part::TextEncoder.prefix());
        Self { config: manifest.text_encoder.clone(), reader: TensorReader::new(manifest, wanted, source) }
    }

    /// Bytes of weights that are and were held.
    pub fn meter(&self) -> &Meter {
        self.reader.meter()
    }

    /// Token ids (end marks included) of some texts -> embeddings `[tokens, d_model]` of each. All texts go through a
    /// layer while it is there, so that the encoder is read once.
    pub async fn encode_all(&self, compute: &Compute, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let result = self.run(compute, texts).await;
        self.reader.release();
        result
    }

    async fn run(&self, compute: &Compute, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let config = &self.config;
        let rows = texts.iter().map(|ids| table_rows(config, ids)).collect::<Result<Vec<_>>>()?;
        // One look at the table for all texts: their rows may lie in the same shards.
        let values = self.reader.rows(TABLE, &rows.concat()).await?;
        let mut rest = values.as_slice();
        let mut hidden: Vec<Tensor<2>> = Vec::with_capacity(texts.len());
        for ids in texts {
            let (own, others) = rest.split_at(ids.len() * config.d_model);
            hidden.push(compute.tensor(own.to_vec(), [ids.len(), config.d_model]));
            rest = others;
        }
        // A layer that is used once and dropped is not worth widening.
        let packed = Compute { widen_on_load: false, ..compute.clone() };
        let mut next = Some(self.layer(&packed, 0).await?);
        for index in 0..config.num_layers {
            let Some((block, held)) = next.take() else { break };
            hidden = hidden.into_iter().map(|x| block.forward(compute, config, x)).collect();
            let following = index + 1 < config.num_layers;
            // A GPU has the kernels in its queue now and works on them while the next layer is read.
            if following && compute.kind == Kind::Gpu {
                next = Some(self.layer(&packed, index + 1).await?);
            }
            if let Some(last) = hidden.last() {
                compute.drain(last).await?;
            }
            drop((block, held));
            if following && next.is_none() {
                next = Some(self.layer(&packed, index + 1).await?);
            }
        }
        let mut store = WeightStore::new(packed);
        store.insert(self.reader.tensor(FINAL_NORM).await?);
        let final_norm = store.row(FINAL_NORM)?;
        let mut embeddings = Vec::with_capacity(texts.len());
        for x in hidden {
            embeddings.push(finish(compute, config, x, &final_norm).await?);
        }
        Ok(embeddings)
    }

    async fn layer(&self, compute: &Compute, index: usize) -> Result<(Block, Held)> {
        let meter = self.reader.meter();
        let mut store = WeightStore::new(compute.clone());
        let (mut raw, mut largest) = (Vec::new(), 0);
        for name in self.reader.names(&layer_prefix(index)) {
            let tensor = self.reader.tensor(&name).await?;
            raw.push(meter.hold(tensor.bytes.len() as u64));
            // A GPU takes a matrix as it is stored, the CPU widens it.
            let turned =
                if compute.kind == Kind::Gpu { tensor.bytes.len() } else { 4 * tensor.shape.iter().product::<usize>() };
            largest = largest.max(turned);
            store.insert(tensor);
        }
        // A tensor is there twice for the moment in which it is turned into what the device takes.
        let turning = meter.hold(largest as u64);
        let block = Block::load(index, &mut store)?;
        drop((raw, turning));
        let held = meter.hold(block.held_bytes());
        Ok((block, held))
    }
}
