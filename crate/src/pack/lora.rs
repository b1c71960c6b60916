//! LoRA files, merged into the weights while these are packed: `W += scale * alpha / rank * B A`. Which keys are read
//! is in [`crate::lora`], which applies the same files at run time.

use std::collections::BTreeMap;

use super::source::{Entry, Source};
use crate::error::{Error, Result};
use crate::lora::keys::{Layers, Pair};
use crate::model::layout::Expected;

/// One LoRA file and how strongly it is applied.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The file.
    pub source: Source,
    /// Factor on top of `alpha / rank`.
    pub scale: f32,
}

/// Which weights the files change; see [`Delta`].
#[derive(Debug)]
pub(super) struct Merge<'a> {
    loras: &'a [Lora],
    /// Our full name to each file's index and pair.
    pairs: BTreeMap<String, Vec<(usize, Pair)>>,
}

/// What is added to one weight.
pub(super) struct Delta {
    /// Rank, `B` `[rows, rank]` times the scale, `A` `[rank, columns]`.
    terms: Vec<(usize, Vec<f32>, Vec<f32>)>,
}

impl<'a> Merge<'a> {
    /// Finds the weight of every key.
    ///
    /// # Errors
    /// [`Error::Lora`] with all keys that match no weight, lack their other half or have the wrong shape.
    pub(super) fn new(loras: &'a [Lora], expected: &[Expected]) -> Result<Self> {
        let layers = Layers::of(expected);
        let mut merge = Self { loras, pairs: BTreeMap::new() };
        for (index, Lora { source, .. }) in loras.iter().enumerate() {
            let tensors = source.tensors().iter().map(|(key, entry)| (key.clone(), entry.shape.as_slice())).collect();
            let pairs = layers.pairs(&tensors).map_err(|problems| {
                let files: Vec<&str> = source.files().map(|stamp| stamp.name.as_str()).collect();
                Error::Lora { file: files.join(", "), problems }
            })?;
            for (weight, pair) in pairs {
                merge.pairs.entry(weight).or_default().push((index, pair));
            }
        }
        Ok(merge)
    }

    /// Number of weights that are changed.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Reads what is added to a weight; `None` where nothing is.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming a LoRA tensor with a number that is not finite.
    pub(super) fn delta(&self, ours: &str) -> Result<Option<Delta>> {
        let Some(pairs) = self.pairs.get(ours) else { return Ok(None) };
        let mut terms = Vec::new();
        for (index, pair) in pairs {
            let Lora { source, scale } = &self.loras[*index];
            let (down, mut up) = (all(source, &pair.down)?, all(source, &pair.up)?);
            let alpha = pair.alpha.as_ref().map(|name| all(source, name)).transpose()?;
            let factor = scale * pair.factor(alpha.as_deref());
            up.iter_mut().for_each(|value| *value *= factor);
            terms.push((pair.rank, up, down));
        }
        Ok(Some(Delta { terms }))
    }
}

impl Delta {
    /// Adds to whole rows of the weight, from row `first` on; each has `columns` values.
    pub(super) fn add_to(&self, rows: &mut [f32], first: usize, columns: usize) {
        for (rank, up, down) in &self.terms {
            for (row, values) in rows.chunks_exact_mut(columns).enumerate() {
                let up = &up[(first + row) * rank..][..*rank];
                for (factor, down) in up.iter().zip(down.chunks_exact(columns)) {
                    if *factor != 0.0 {
                        values.iter_mut().zip(down).for_each(|(value, down)| *value += factor * down);
                    }
                }
            }
        }
    }
}

fn all(source: &Source, name: &str) -> Result<Vec<f32>> {
    let count = source.entry(name).map_or(0, Entry::values);
    let mut values = Vec::new();
    source.read(name, 0, count, &mut values)?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::Tensor(format!("{name}: value {at} is {}, not a finite number", values[at]))),
        None => Ok(values),
    }
}
