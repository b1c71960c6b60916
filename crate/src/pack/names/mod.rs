//! From the names of published files to ours.
//!
//! Ours are diffusers', transformers' and taehv's (see [`crate::model::layout`]). A published file may instead have
//! the names of the authors' own code, of ggml or of FastVideo, behind what wrappers put in front of them. Nothing is
//! guessed: every tensor of a file is used, known to be of no use here, or listed by name in one error.

mod taehv;
mod umt5;
mod wan;

use std::collections::BTreeMap;

use super::source::Source;
use crate::error::{Error, Result};
use crate::model::layout::{Expected, Part};
use crate::model::names::clean;

/// What a name in a file stands for. Names are without the prefix of the part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A tensor of ours.
    Ours(String),
    /// A second copy of a tensor of ours, used only where the first is not there.
    Copy(String),
    /// Known, and not needed.
    Unused,
    /// Not known.
    Unknown,
}

/// The files of the three parts of a model.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) transformer: Source,
    pub(super) text_encoder: Source,
    pub(super) autoencoder: Source,
}

impl Sources {
    /// The file a part is in.
    pub(super) fn of(&self, part: Part) -> &Source {
        match part {
            Part::Transformer => &self.transformer,
            Part::TextEncoder => &self.text_encoder,
            Part::Decoder | Part::Encoder => &self.autoencoder,
        }
    }
}

/// Where the values of one of our tensors come from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Origin {
    /// Name in the file.
    pub(super) name: String,
    /// Values of the file's tensor that come before ours (taehv drops leading rows).
    pub(super) skip: usize,
}

/// One file of the three.
struct Group {
    title: &'static str,
    /// What our names begin with; the autoencoder has two parts in one file.
    prefix: &'static str,
    meaning: fn(&str) -> Meaning,
}

const GROUPS: [Group; 3] = [
    Group { title: "transformer", prefix: "transformer.", meaning: wan::meaning },
    Group { title: "text encoder", prefix: "text_encoder.", meaning: umt5::meaning },
    Group { title: "autoencoder", prefix: "autoencoder.", meaning: taehv::meaning },
];

/// Everything that is wrong with the names and shapes of a file.
#[derive(Default)]
struct Problems {
    missing: Vec<String>,
    wrong: Vec<String>,
    unknown: Vec<String>,
    twice: Vec<String>,
}

impl Problems {
    fn text(&self) -> Option<String> {
        let lists = [
            ("missing", &self.missing),
            ("of the wrong shape", &self.wrong),
            ("unknown", &self.unknown),
            ("there twice", &self.twice),
        ];
        let texts: Vec<String> = lists
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(what, list)| format!("{} {what}: {}", list.len(), list.join(", ")))
            .collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// Finds the origin of every expected tensor, by our full names.
///
/// # Errors
/// [`Error::Tensor`] naming every tensor that is missing, unknown, there twice or of the wrong shape.
pub(super) fn assign(expected: &[Expected], sources: &mut Sources) -> Result<BTreeMap<String, Origin>> {
    let mut origins = BTreeMap::new();
    let mut reasons = Vec::new();
    for group in &GROUPS {
        let source = match group.prefix {
            "transformer." => &mut sources.transformer,
            "text_encoder." => &mut sources.text_encoder,
            _ => &mut sources.autoencoder,
        };
        let wanted: BTreeMap<&str, &Expected> =
            expected.iter().filter_map(|tensor| Some((tensor.name.strip_prefix(group.prefix)?, tensor))).collect();
        let problems = assign_group(group, &wanted, source, &mut origins)?;
        if let Some(text) = problems.text() {
            let files: Vec<&str> = source.files().map(|stamp| stamp.name.as_str()).collect();
            reasons.push(format!("{} ({}): {text}", group.title, files.join(", ")));
        }
    }
    if reasons.is_empty() { Ok(origins) } else { Err(Error::Tensor(reasons.join("; "))) }
}

fn assign_group(
    group: &Group,
    wanted: &BTreeMap<&str, &Expected>,
    source: &mut Source,
    origins: &mut BTreeMap<String, Origin>,
) -> Result<Problems> {
    let mut problems = Problems::default();
    // Ours to the name in the file, and whether that is the first copy.
    let mut found: BTreeMap<String, (String, bool)> = BTreeMap::new();
    for name in source.tensors().keys().filter(|name| !source.is_companion(name)).cloned() {
        let (ours, first) = match (group.meaning)(&clean(&name, group.prefix)) {
            Meaning::Ours(ours) => (ours, true),
            Meaning::Copy(ours) => (ours, false),
            Meaning::Unused => continue,
            Meaning::Unknown => {
                problems.unknown.push(name);
                continue;
            }
        };
        if !wanted.contains_key(ours.as_str()) {
            problems.unknown.push(name);
            continue;
        }
        match found.get(&ours) {
            Some((other, true)) if first => problems.twice.push(format!("{name} and {other}")),
            Some((_, true)) => {}
            _ => drop(found.insert(ours, (name, first))),
        }
    }
    for (&ours, &tensor) in wanted {
        let Some((name, _)) = found.get(ours) else {
            problems.missing.push(tensor.name.clone());
            continue;
        };
        if let [_, columns @ ..] = tensor.shape.as_slice() {
            source.unpack(name, columns.iter().product())?;
        }
        let shape = source.entry(name).map(|entry| entry.shape.clone()).unwrap_or_default();
        match fit(ours, &shape, &tensor.shape) {
            Some(skip) => drop(origins.insert(tensor.name.clone(), Origin { name: name.clone(), skip })),
            None => problems.wrong.push(format!("{name} is {shape:?} and must be {:?}", tensor.shape)),
        }
    }
    Ok(problems)
}

/// Values to skip where a stored shape can be read as the wanted one.
fn fit(ours: &str, stored: &[usize], wanted: &[usize]) -> Option<usize> {
    let plain = |shape: &[usize]| -> Vec<usize> { shape.iter().copied().skip_while(|&dim| dim == 1).collect() };
    if plain(stored) == plain(wanted) {
        return Some(0);
    }
    // A convolution whose patches do not overlap is the same numbers as the matrix that rCM and FastVideo make of it.
    if ours == "patch_embedding.weight" && stored.first() == wanted.first() {
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        return (count(stored).is_some() && count(stored) == count(wanted)).then_some(0);
    }
    taehv::rows_to_skip(ours, stored, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_fit_only_where_the_numbers_are_the_same() {
        assert_eq!(fit("x", &[6, 8], &[1, 6, 8]), Some(0));
        assert_eq!(fit("x", &[8, 6], &[6, 8]), None);
        assert_eq!(fit("x", &[48], &[6, 8]), None);
        assert_eq!(fit("patch_embedding.weight", &[6, 64], &[6, 16, 1, 2, 2]), Some(0));
        assert_eq!(fit("patch_embedding.weight", &[6, 32], &[6, 16, 1, 2, 2]), None);
        assert_eq!(fit("decoder.7.conv.weight", &[16, 8, 1, 1], &[8, 8, 1, 1]), Some(64));
        assert_eq!(fit("decoder.8.weight", &[16, 8, 1, 1], &[8, 8, 1, 1]), None);
    }
}
