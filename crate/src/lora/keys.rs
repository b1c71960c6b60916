//! Which layers the tensors of a LoRA file belong to, by their keys and shapes alone.
//!
//! Key styles: peft and diffusers (`x.lora_A.weight`, `x.lora_B.weight`), ComfyUI and Wan's own names
//! (`diffusion_model.x.lora_down.weight`, `.lora_up.weight`, `x.alpha`), kohya's trainers
//! (`lora_unet_blocks_0_self_attn_q.lora_down.weight`). Without an `alpha` it equals the rank, as in peft's files,
//! whose `adapter_config.json` may say otherwise: the strength that a user gives makes up for that.

use std::collections::BTreeMap;

use crate::error::LoraProblem;
use crate::model::layout::Expected;
use crate::model::names::{clean, wan_module, wan_underscored};

/// Highest rank that is read.
const MAX_RANK: usize = 4096;

/// The two matrices for one weight, by their names in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// `A`, `[rank, columns]`.
    pub(crate) down: String,
    /// `B`, `[rows, rank]`.
    pub(crate) up: String,
    /// A single value, where the file has one.
    pub(crate) alpha: Option<String>,
    /// First axis of `A`.
    pub(crate) rank: usize,
}

impl Pair {
    /// `alpha / rank`, given the values of the file's `alpha`.
    pub(crate) fn factor(&self, alpha: Option<&[f32]>) -> f32 {
        let rank = self.rank as f32;
        alpha.and_then(<[f32]>::first).copied().unwrap_or(rank) / rank
    }
}

/// The matrices of a model's denoiser, which a LoRA may change.
pub(crate) struct Layers<'a> {
    /// By our names, without `transformer.` and `.weight`.
    modules: BTreeMap<String, &'a Expected>,
    /// Names with underscores for dots to ours.
    flat: BTreeMap<String, String>,
}

impl<'a> Layers<'a> {
    /// Those among a model's tensors.
    pub(crate) fn of(expected: &'a [Expected]) -> Self {
        let mut layers = Self { modules: BTreeMap::new(), flat: BTreeMap::new() };
        for tensor in expected.iter().filter(|tensor| tensor.shape.len() >= 2) {
            let Some(module) = tensor.name.strip_prefix("transformer.").and_then(|name| name.strip_suffix(".weight"))
            else {
                continue;
            };
            if module.starts_with("size_loras.") {
                continue; // itself a change
            }
            layers.flat.extend(wan_underscored(module).into_iter().map(|name| (name, module.to_owned())));
            layers.modules.insert(module.to_owned(), tensor);
        }
        layers
    }

    /// Finds the weight of every key of a file, given its keys and their shapes: our full name of a weight to its
    /// pair.
    ///
    /// # Errors
    /// Everything that is wrong with the keys and shapes.
    pub(crate) fn pairs(
        &self,
        tensors: &BTreeMap<String, &[usize]>,
    ) -> std::result::Result<BTreeMap<String, Pair>, Vec<LoraProblem>> {
        if !tensors.keys().any(|key| matches!(half_of(key), Some((_, Half::Down | Half::Up)))) {
            return Err(vec![LoraProblem::NotALora("it has none of the two matrices of a LoRA".into())]);
        }
        let mut halves: BTreeMap<String, [Option<String>; 3]> = BTreeMap::new();
        let mut problems = Vec::new();
        for key in tensors.keys() {
            let found = half_of(key).and_then(|(module, half)| Some((self.our_module(module)?, half)));
            let Some((module, half)) = found else {
                problems.push(LoraProblem::UnknownLayer(key.clone()));
                continue;
            };
            if halves.entry(module).or_default()[half as usize].replace(key.clone()).is_some() {
                problems.push(LoraProblem::Twice(key.clone()));
            }
        }
        let mut pairs = BTreeMap::new();
        for (module, [down, up, alpha]) in halves {
            let Some(tensor) = self.modules.get(&module) else { continue };
            let pair = match (down, up) {
                (Some(down), Some(up)) => check(&module, tensor, tensors, down, up, alpha),
                _ => Err(LoraProblem::Incomplete(module)),
            };
            match pair {
                Ok(pair) => drop(pairs.insert(tensor.name.clone(), pair)),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(pairs) } else { Err(problems) }
    }

    /// Our name of a module that the model has.
    fn our_module(&self, module: &str) -> Option<String> {
        let cleaned = clean(module, "transformer.");
        let ours = match cleaned.strip_prefix("lora_unet_") {
            Some(rest) => self.flat.get(rest.trim_start_matches('_')).cloned()?,
            None => wan_module(&cleaned).unwrap_or(cleaned),
        };
        self.modules.contains_key(&ours).then_some(ours)
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

/// Checks that both halves multiply to the shape of the weight.
fn check(
    module: &str,
    tensor: &Expected,
    tensors: &BTreeMap<String, &[usize]>,
    down: String,
    up: String,
    alpha: Option<String>,
) -> std::result::Result<Pair, LoraProblem> {
    let shape = |name: &str| tensors.get(name).copied().unwrap_or_default();
    let count = |shape: &[usize]| shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let (a, b) = (shape(&down), shape(&up));
    let columns: usize = tensor.shape[1..].iter().product();
    let rank = a.first().copied().unwrap_or(0);
    let fits = (1..=MAX_RANK).contains(&rank)
        && b.first() == tensor.shape.first()
        && rank.checked_mul(columns) == count(a)
        && rank.checked_mul(tensor.shape[0]) == count(b);
    if !fits {
        return Err(LoraProblem::WrongShape {
            layer: module.to_owned(),
            up: b.to_vec(),
            down: a.to_vec(),
            weight: tensor.shape.clone(),
        });
    }
    match alpha.as_deref().map(|name| count(shape(name))) {
        None | Some(Some(1)) => Ok(Pair { down, up, alpha, rank }),
        Some(_) => Err(LoraProblem::WrongAlpha(module.to_owned())),
    }
}
