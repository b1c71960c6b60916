//! PyTorch's `.pt` and `.pth` files: a zip archive with a pickle and one entry for each storage.

use std::collections::BTreeMap;

use super::pickle::{Id, Pickle, Tensor, Value};
use super::zip::Archive;
use super::{Entry, MAX_TENSORS};
use crate::error::{Error, Result};

/// Where checkpoints keep the weights that one wants, best first: averaged weights are what the authors evaluate.
const CONTAINERS: [&str; 8] =
    ["generator_ema", "ema", "generator", "generator_lora", "model", "state_dict", "module", "params"];
/// Dictionaries around the weights, at most.
const MAX_DEPTH: usize = 4;

fn wrong<T>(reason: impl std::fmt::Display) -> Result<T> {
    Err(Error::WeightFile(format!("PyTorch file: {reason}")))
}

/// Lists the tensors of the state dictionary in a PyTorch file, and says under which keys it lay. `key` picks one of
/// several dictionaries in the file; without it the names that training code uses are tried.
///
/// # Errors
/// [`Error::WeightFile`] for a file that is damaged, asks for anything to be run, or has no state dictionary.
pub(super) fn list(bytes: &[u8], file: usize, key: Option<&str>) -> Result<(BTreeMap<String, Entry>, Vec<String>)> {
    let archive = Archive::open(bytes)?;
    let Some(root) = archive.names().find_map(|name| name.strip_suffix("/data.pkl")) else {
        return wrong("it has no data.pkl, so it is another kind of archive");
    };
    let entry = |name: &str| archive.range(&format!("{root}/{name}"));
    if let Some(range) = entry("byteorder")?
        && &bytes[range] != b"little"
    {
        return wrong("it was written by a big-endian machine");
    }
    let Some(range) = entry("data.pkl")? else { return wrong("it has no data.pkl") };
    let pickle = Pickle::read(&bytes[range])?;
    let (weights, path) = state_dict(&pickle, key)?;
    let mut entries = BTreeMap::new();
    for &(name, value) in weights {
        let (Value::Text(name), Value::Tensor(tensor)) = (pickle.value(name), pickle.value(value)) else { continue };
        let Some(range) = entry(&format!("data/{}", tensor.storage.key))? else {
            return wrong(format!("the values of {name:?} are missing"));
        };
        if entries.len() >= MAX_TENSORS {
            return wrong("it has more tensors than any model");
        }
        let Some(entry) = view(tensor, range.start, range.len(), file) else {
            return wrong(format!("{name:?} of shape {:?} does not lie within its values", tensor.shape));
        };
        if entries.insert((*name).to_owned(), entry).is_some() {
            return wrong(format!("{name:?} is there twice"));
        }
    }
    Ok((entries, path))
}

/// The place of a tensor in the file, checked against the storage of `length` bytes at `start`.
fn view(tensor: &Tensor<'_>, start: usize, length: usize, file: usize) -> Option<Entry> {
    let Tensor { storage, offset, shape, strides } = tensor;
    let values = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    let room = length / storage.size;
    // A view may repeat values (a stride of 0); such a tensor is larger than its storage, and nobody saves weights so.
    if values > room {
        return None;
    }
    let mut last = *offset;
    for (&dim, &stride) in shape.iter().zip(strides) {
        last = last.checked_add(dim.saturating_sub(1).checked_mul(stride)?)?;
    }
    if values > 0 && last >= room {
        return None;
    }
    let first = start.checked_add(offset.checked_mul(storage.size)?)?;
    let strides = (values > 0 && !contiguous(shape, strides)).then(|| strides.clone());
    let bytes = match &strides {
        Some(_) => (last - offset + 1).checked_mul(storage.size)?,
        None => values.checked_mul(storage.size)?,
    };
    Some(Entry { shape: shape.clone(), encoding: storage.encoding.clone(), file, offset: first, bytes, strides })
}

fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == expected;
        expected *= dim;
        fits
    })
}

/// Keys and values of a dictionary, and the keys of those around it, outermost first.
type Found<'p> = (&'p [(Id, Id)], Vec<String>);

/// The dictionary that has tensors, and the keys that lead to it.
fn state_dict<'p>(pickle: &'p Pickle<'_>, key: Option<&str>) -> Result<Found<'p>> {
    let mut id = pickle.root();
    let mut path = Vec::new();
    let mut wanted = key;
    while path.len() <= MAX_DEPTH {
        let Value::Dict(entries) = pickle.value(id) else { break };
        let dicts: Vec<(&str, Id)> = entries
            .iter()
            .filter_map(|&(key, value)| match (pickle.value(key), pickle.value(value)) {
                (Value::Text(key), Value::Dict(_)) => Some((*key, value)),
                _ => None,
            })
            .collect();
        let has_tensors = entries.iter().any(|&(_, value)| matches!(pickle.value(value), Value::Tensor(_)));
        let next = match wanted.take() {
            Some(key) => match dicts.iter().find(|(name, _)| *name == key) {
                Some(&found) => Some(found),
                None => {
                    let names: Vec<&str> = dicts.iter().take(16).map(|(name, _)| *name).collect();
                    return wrong(format!("it has no dictionary {key:?}, only [{}]", names.join(", ")));
                }
            },
            None => {
                let known = CONTAINERS.iter().find_map(|key| dicts.iter().find(|(name, _)| name == key));
                match known {
                    // A counter may lie beside the weights as a tensor of its own, so known names come first.
                    Some(&found) => Some(found),
                    None if has_tensors => return Ok((entries, path)),
                    None => dicts.first().filter(|_| dicts.len() == 1).copied(),
                }
            }
        };
        let Some((key, value)) = next else {
            let names: Vec<&str> = dicts.iter().take(16).map(|(name, _)| *name).collect();
            return wrong(format!("no dictionary of tensors was found in it, only [{}]", names.join(", ")));
        };
        path.push(key.to_owned());
        id = value;
    }
    wrong("it holds no dictionary of tensors")
}
