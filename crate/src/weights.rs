//! Tensors on their way from a shard into a model.
//!
//! On a GPU the weight of a linear layer goes to the device the moment its shard has been verified and its host copy
//! is freed, so that loading never holds more than about one shard in host memory.

use std::collections::HashMap;

use burn::tensor::{Int, Tensor};

use crate::compute::{Compute, Kind};
use crate::error::{Error, Result};
use crate::model::manifest::DType;
use crate::model::shards::RawTensor;
use crate::ops::{Conv, Linear};

/// A linear weight that is already on the GPU, packed as it was shipped.
pub struct DeviceWeight {
    /// Full name.
    pub name: String,
    /// The bytes as 32-bit words.
    pub words: Tensor<1, Int>,
    /// How to read them.
    pub dtype: DType,
    /// Shape as shipped.
    pub shape: Vec<usize>,
    /// Quantization group, 0 for dense.
    pub group: usize,
}

/// Either place a weight can be.
pub enum Stored {
    /// In host memory.
    Host(RawTensor),
    /// On the GPU.
    Device(DeviceWeight),
}

impl Stored {
    /// Puts the weight of a linear layer where the device wants it.
    pub fn linear(compute: &Compute, raw: RawTensor) -> Self {
        match compute.kind {
            Kind::Gpu => Self::Device(to_device(compute, raw)),
            Kind::Cpu => Self::Host(raw),
        }
    }
}

/// All tensors that no model has taken yet.
pub struct WeightStore {
    compute: Compute,
    tensors: HashMap<String, Stored>,
}

impl WeightStore {
    /// An empty store for a device.
    pub fn new(compute: Compute) -> Self {
        Self { compute, tensors: HashMap::new() }
    }

    /// The device.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// Adds a verified tensor.
    pub fn insert(&mut self, raw: RawTensor) {
        let name = raw.name.clone();
        let stored = if is_linear_weight(&raw.name, &raw.shape) {
            Stored::linear(&self.compute, raw)
        } else {
            Stored::Host(raw)
        };
        self.tensors.insert(name, stored);
    }

    fn take(&mut self, name: &str) -> Result<Stored> {
        self.tensors.remove(name).ok_or_else(|| Error::Tensor(format!("it is missing: {name}")))
    }

    /// A tensor in host memory.
    pub fn host(&mut self, name: &str) -> Result<RawTensor> {
        match self.take(name)? {
            Stored::Host(raw) => Ok(raw),
            Stored::Device(_) => Err(Error::Internal(format!("{name} was sent to the device as a linear weight"))),
        }
    }

    /// `{prefix}.weight` and, where there is one, `{prefix}.bias`.
    pub fn linear(&mut self, prefix: &str) -> Result<Linear> {
        let weight = self.take(&format!("{prefix}.weight"))?;
        let bias = match self.tensors.remove(&format!("{prefix}.bias")) {
            Some(Stored::Host(raw)) => Some(raw),
            _ => None,
        };
        Linear::new(&self.compute, weight, bias)
    }

    /// A vector as one row `[1, C]`.
    pub fn row(&mut self, name: &str) -> Result<Tensor<2>> {
        let raw = self.host(name)?;
        Ok(self.compute.upload(&raw)?.unsqueeze())
    }

    /// A table `[1, R, C]` as `[R, C]`.
    pub fn table(&mut self, name: &str) -> Result<Tensor<2>> {
        let raw = self.host(name)?;
        let width = *raw.shape.last().unwrap_or(&1);
        let rows = raw.shape.iter().product::<usize>() / width.max(1);
        Ok(self.compute.upload(&raw)?.reshape([rows, width]))
    }

    /// `{prefix}.weight` and, where there is one, `{prefix}.bias` of a convolution.
    pub fn conv(&mut self, prefix: &str, stride: usize) -> Result<Conv> {
        let weight = self.host(&format!("{prefix}.weight"))?;
        let bias = match self.tensors.remove(&format!("{prefix}.bias")) {
            Some(Stored::Host(raw)) => Some(raw),
            _ => None,
        };
        Conv::new(&self.compute, &weight, bias.as_ref(), stride)
    }
}

/// Matrices of the two transformers, except the tables that are looked up row by row on the host.
pub(crate) fn is_linear_weight(name: &str, shape: &[usize]) -> bool {
    shape.len() >= 2
        && name.ends_with(".weight")
        && !name.starts_with("autoencoder.")
        && !name.ends_with("shared.weight")
        && !name.ends_with("relative_attention_bias.weight")
        && !is_lora(name)
}

/// Matrices of a size's low-rank change. They are built on the host, where the rank is filled up for the GPU's kernel.
pub(crate) fn is_lora(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

fn to_device(compute: &Compute, raw: RawTensor) -> DeviceWeight {
    let mut bytes = raw.bytes;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let words: Vec<i32> = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let count = words.len();
    DeviceWeight {
        name: raw.name,
        words: Tensor::from_data(burn::tensor::TensorData::new(words, [count]), &compute.device),
        dtype: raw.dtype,
        shape: raw.shape,
        group: raw.group.unwrap_or(0),
    }
}
