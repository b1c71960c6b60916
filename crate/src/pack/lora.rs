//! LoRA files, merged into the weights while these are packed: `W += scale * alpha / rank * B A`.
//!
//! Key styles: peft and diffusers (`x.lora_A.weight`, `x.lora_B.weight`), ComfyUI and Wan's own names
//! (`diffusion_model.x.lora_down.weight`, `.lora_up.weight`, `x.alpha`), kohya's trainers
//! (`lora_unet_blocks_0_self_attn_q.lora_down.weight`). Without an `alpha` it equals the rank, as in peft's files,
//! whose `adapter_config.json` may say otherwise: the scale on the command line makes up for that.

use std::collections::BTreeMap;

use super::names::{Meaning, clean, wan_meaning, wan_underscored};
use super::source::Source;
use crate::error::{Error, Result};
use crate::model::layout::Expected;

/// Highest rank that is read.
const MAX_RANK: usize = 4096;

/// One LoRA file and how strongly it is applied.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The file.
    pub source: Source,
    /// Factor on top of `alpha / rank`.
    pub scale: f32,
}

/// The two matrices for one weight, by their names in the file.
#[derive(Debug, Clone, Default)]
struct Pair {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
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
    /// [`Error::Tensor`] naming all keys that match no weight, lack their other half or have the wrong shape.
    pub(super) fn new(loras: &'a [Lora], expected: &[Expected]) -> Result<Self> {
        let mut modules: BTreeMap<String, &Expected> = BTreeMap::new();
        let mut flat: BTreeMap<String, String> = BTreeMap::new();
        for tensor in expected.iter().filter(|tensor| tensor.shape.len() >= 2) {
            let Some(module) = tensor.name.strip_prefix("transformer.").and_then(|name| name.strip_suffix(".weight"))
            else {
                continue;
            };
            flat.extend(wan_underscored(module).into_iter().map(|name| (name, module.to_owned())));
            modules.insert(module.to_owned(), tensor);
        }
        let mut merge = Self { loras, pairs: BTreeMap::new() };
        for (index, lora) in loras.iter().enumerate() {
            let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
            let mut problems = Vec::new();
            for key in lora.source.tensors().keys() {
                let found = half_of(key).and_then(|(module, half)| Some((our_module(module, &flat)?, half)));
                match found.filter(|(module, _)| modules.contains_key(module)) {
                    Some((module, half)) => {
                        let pair = pairs.entry(module).or_default();
                        let slot = match half {
                            Half::Down => &mut pair.down,
                            Half::Up => &mut pair.up,
                            Half::Alpha => &mut pair.alpha,
                        };
                        if slot.replace(key.clone()).is_some() {
                            problems.push(format!("{key} is there twice"));
                        }
                    }
                    None => problems.push(format!("{key} matches no weight")),
                }
            }
            for (module, pair) in pairs {
                let tensor = modules[&module];
                match check(&lora.source, &pair, tensor) {
                    Ok(()) => merge.pairs.entry(tensor.name.clone()).or_default().push((index, pair)),
                    Err(problem) => problems.push(format!("{module} {problem}")),
                }
            }
            if lora.source.tensors().is_empty() {
                problems.push("it has no tensors".into());
            }
            if !problems.is_empty() {
                let files: Vec<&str> = lora.source.files().map(|stamp| stamp.name.as_str()).collect();
                let count = problems.len();
                let list = problems.join(", ");
                return Err(Error::Tensor(format!("LoRA {} has {count} keys amiss: {list}", files.join(", "))));
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
            let (Some(down), Some(up)) = (&pair.down, &pair.up) else { continue };
            let (down, up_name) = (all(source, down)?, up);
            let mut up = all(source, up_name)?;
            let rank = rank_of(source, pair).unwrap_or(1);
            let alpha = match &pair.alpha {
                Some(name) => all(source, name)?.first().copied().unwrap_or(rank as f32),
                None => rank as f32,
            };
            let factor = scale * alpha / rank as f32;
            up.iter_mut().for_each(|value| *value *= factor);
            terms.push((rank, up, down));
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
    let count = source.entry(name).map_or(0, super::source::Entry::values);
    let mut values = Vec::new();
    source.read(name, 0, count, &mut values)?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::Tensor(format!("{name}: value {at} is {}, not a finite number", values[at]))),
        None => Ok(values),
    }
}

#[derive(Clone, Copy)]
enum Half {
    Down,
    Up,
    Alpha,
}

/// The module that a key belongs to, as the file names it, and which tensor of it this is.
fn half_of(key: &str) -> Option<(&str, Half)> {
    const ENDS: [(&str, Half); 10] = [
        (".lora_A.weight", Half::Down),
        (".lora_A.default.weight", Half::Down),
        (".lora_down.weight", Half::Down),
        (".lora.down.weight", Half::Down),
        (".lora_B.weight", Half::Up),
        (".lora_B.default.weight", Half::Up),
        (".lora_up.weight", Half::Up),
        (".lora.up.weight", Half::Up),
        (".lora_alpha", Half::Alpha),
        (".alpha", Half::Alpha),
    ];
    ENDS.iter().find_map(|(end, half)| Some((key.strip_suffix(end)?, *half)))
}

/// Our name of a module.
fn our_module(module: &str, flat: &BTreeMap<String, String>) -> Option<String> {
    let cleaned = clean(module, "transformer.");
    if let Some(rest) = cleaned.strip_prefix("lora_unet_") {
        return flat.get(rest.trim_start_matches('_')).cloned();
    }
    match wan_meaning(&format!("{cleaned}.weight")) {
        Meaning::Ours(name) => name.strip_suffix(".weight").map(str::to_owned),
        _ => None,
    }
}

/// Rank of a pair: the first axis of `A`.
fn rank_of(source: &Source, pair: &Pair) -> Option<usize> {
    source.entry(pair.down.as_ref()?)?.shape.first().copied()
}

/// Checks that both halves are there and multiply to the shape of the weight.
fn check(source: &Source, pair: &Pair, tensor: &Expected) -> std::result::Result<(), String> {
    let (Some(down), Some(up)) = (&pair.down, &pair.up) else { return Err("has only one of its two matrices".into()) };
    let shape = |name: &str| source.entry(name).map(|entry| entry.shape.clone()).unwrap_or_default();
    let (down, up) = (shape(down), shape(up));
    let columns: usize = tensor.shape[1..].iter().product();
    let count = |shape: &[usize]| shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let rank = down.first().copied().unwrap_or(0);
    let fits = (1..=MAX_RANK).contains(&rank)
        && up.first() == tensor.shape.first()
        && rank.checked_mul(columns) == count(&down)
        && rank.checked_mul(tensor.shape[0]) == count(&up);
    if !fits {
        return Err(format!("has {up:?} times {down:?} for a weight {:?}", tensor.shape));
    }
    match pair.alpha.as_ref().and_then(|name| source.entry(name)).map(super::source::Entry::values) {
        None | Some(1) => Ok(()),
        Some(values) => Err(format!("has an alpha of {values} values")),
    }
}
