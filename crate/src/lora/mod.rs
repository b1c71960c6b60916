//! LoRA files at run time: `y = x W^T + b + strength * alpha / rank * (x A^T) B^T` for every layer that a file changes.
//!
//! The two thin matrices lie beside the weight, which stays as it was shipped, quantized or not. Another strength is
//! another number; without a LoRA, or at strength 0, a layer computes exactly what it did before.
//! [`crate::pack::pack_published`] merges the same files into the weights instead.

pub(crate) mod keys;
mod sizes;

pub(crate) use sizes::SizeLoras;

use std::collections::BTreeMap;
use std::rc::Rc;

use safetensors::tensor::{Dtype, SafeTensors};

use crate::compute::Compute;
use crate::error::{Error, LoraProblem, Result};
use crate::model::manifest::{DType, Manifest};
use crate::model::shards::RawTensor;
use crate::model::{floats, layout, quant};
use crate::ops::{Linear, LowRank};
use crate::weights::Stored;
use keys::Layers;

/// Largest matrix of a LoRA in bytes: what every WebGPU device can bind.
const MAX_MATRIX_BYTES: usize = 128 << 20;

/// The handle of a LoRA that was added to an engine.
pub type LoraId = u32;

/// The LoRAs that an engine has on its device, whether they are in use or not.
#[derive(Default)]
pub(crate) struct Loras {
    loaded: BTreeMap<LoraId, Rc<Changes>>,
    next: LoraId,
}

/// The change of every weight that a LoRA changes, by the weight's full name without `.weight`.
pub(crate) type Changes = BTreeMap<String, Rc<LowRank>>;

/// LoRAs at their strengths; those of strength 0 are left out.
#[derive(Default)]
pub(crate) struct Chosen(Vec<(Rc<Changes>, f32)>);

impl Chosen {
    /// Gives every layer its share of these and of the change that belongs to the clip's size, and takes away what it had.
    pub(crate) fn apply<'a>(&self, own: Option<Rc<Changes>>, layers: impl Iterator<Item = &'a mut Linear>) {
        let own: Vec<(Rc<Changes>, f32)> = own.into_iter().map(|own| (own, 1.0)).collect();
        for layer in layers {
            let share = |(lora, strength): &(Rc<Changes>, f32)| Some((lora.get(layer.name())?.clone(), *strength));
            let shares = own.iter().chain(&self.0).filter_map(share).collect();
            layer.set_low_rank(shares);
        }
    }
}

impl Loras {
    /// Reads a safetensors file onto the device; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Lora`] with everything that is wrong with the file.
    pub(crate) fn add(&mut self, compute: &Compute, manifest: &Manifest, name: &str, bytes: &[u8]) -> Result<LoraId> {
        let layers = read(compute, manifest, bytes).map_err(|error| match error {
            Failure::File(problems) => Error::Lora { file: name.to_owned(), problems },
            Failure::Engine(error) => error,
        })?;
        let id = self.next;
        self.next += 1;
        self.loaded.insert(id, Rc::new(layers));
        Ok(id)
    }

    /// Forgets a LoRA; where it is chosen it stays so.
    pub(crate) fn remove(&mut self, id: LoraId) {
        self.loaded.remove(&id);
    }

    /// LoRAs at their strengths.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a handle that does not exist, one that is there twice, and a strength that is
    /// not finite.
    pub(crate) fn choose(&self, wanted: &[(LoraId, f32)]) -> Result<Chosen> {
        let mut used = Vec::with_capacity(wanted.len());
        for (index, &(id, strength)) in wanted.iter().enumerate() {
            let Some(lora) = self.loaded.get(&id) else {
                return Err(Error::InvalidRequest(format!("there is no LoRA with the number {id}")));
            };
            if wanted[..index].iter().any(|(other, _)| *other == id) {
                return Err(Error::InvalidRequest(format!("the LoRA with the number {id} is asked for twice")));
            }
            if !strength.is_finite() {
                return Err(Error::InvalidRequest(format!("a LoRA's strength must be a number, not {strength}")));
            }
            if strength != 0.0 {
                used.push((lora.clone(), strength));
            }
        }
        Ok(Chosen(used))
    }
}

/// Why a file could not be read: it is wrong, or the device is.
enum Failure {
    File(Vec<LoraProblem>),
    Engine(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

fn read(
    compute: &Compute,
    manifest: &Manifest,
    bytes: &[u8],
) -> std::result::Result<BTreeMap<String, Rc<LowRank>>, Failure> {
    let no_lora = |reason: String| Failure::File(vec![LoraProblem::NotALora(reason)]);
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| no_lora(format!("it is not a safetensors file or not a whole one ({error})")))?;
    let tensors: BTreeMap<String, _> = file.tensors().into_iter().collect();
    let expected = layout::expected(manifest);
    let shapes = tensors.iter().map(|(key, view)| (key.clone(), view.shape())).collect();
    let pairs = Layers::of(&expected).pairs(&shapes).map_err(Failure::File)?;
    let wrong: Vec<LoraProblem> = tensors
        .iter()
        .filter(|(_, view)| floats::size(view.dtype()).is_none())
        .map(|(key, view)| LoraProblem::WrongType { key: key.clone(), found: format!("{:?}", view.dtype()) })
        .collect();
    if !wrong.is_empty() {
        return Err(Failure::File(wrong));
    }
    let values = |key: &str| {
        let view = &tensors[key];
        let values = floats::to_f32(view.dtype(), view.data(), 0);
        let values = values.map_err(|reason| Failure::File(vec![LoraProblem::NotFinite(format!("{key}: {reason}"))]));
        // What f16 holds stays f16 on the device; there is no other kind of 16 bits there.
        Ok::<_, Failure>((values?, if view.dtype() == Dtype::F16 { DType::F16 } else { DType::F32 }))
    };
    let mut layers = BTreeMap::new();
    for (weight, pair) in &pairs {
        let alpha = pair.alpha.as_deref().map(values).transpose()?;
        let factor = pair.factor(alpha.as_ref().map(|(values, _)| values.as_slice()));
        let layer = weight.strip_suffix(".weight").unwrap_or(weight);
        let (down, up) = matrices(compute, layer, pair.rank, values(&pair.down)?, values(&pair.up)?)?;
        layers.insert(layer.to_owned(), Rc::new(LowRank::new(down, up, factor)));
    }
    Ok(layers)
}

/// The rank that is held: the GPU's kernel reads four inputs at a time, so it is filled up with zeros.
pub(crate) fn held_rank(rank: usize) -> usize {
    rank.next_multiple_of(4)
}

/// `A` and `B` as linear layers.
fn matrices(
    compute: &Compute,
    layer: &str,
    rank: usize,
    (mut down, down_type): (Vec<f32>, DType),
    (up, up_type): (Vec<f32>, DType),
) -> Result<(Linear, Linear)> {
    let padded = held_rank(rank);
    let (rows, columns) = (up.len() / rank, down.len() / rank);
    if 4 * padded * rows.max(columns) > MAX_MATRIX_BYTES {
        return Err(Error::UnsupportedFeature(format!("a LoRA of rank {rank} is too large for {layer}")));
    }
    down.resize(padded * columns, 0.0);
    let mut wide = Vec::with_capacity(rows * padded);
    for row in up.chunks_exact(rank) {
        wide.extend_from_slice(row);
        wide.resize(wide.len().next_multiple_of(padded), 0.0);
    }
    let linear = |half: &str, dtype: DType, shape: [usize; 2], values: &[f32]| {
        let bytes = quant::encode(dtype, &shape, None, values)?;
        let raw =
            RawTensor { name: format!("{layer}.{half}.weight"), dtype, shape: shape.to_vec(), group: None, bytes };
        Linear::new(compute, Stored::linear(compute, raw), None)
    };
    Ok((linear("lora_A", down_type, [padded, columns], &down)?, linear("lora_B", up_type, [rows, padded], &wide)?))
}
