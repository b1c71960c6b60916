//! What the `tokenizers` crate takes for granted in a `tokenizer.json`, checked before it sees the file: some of what is
//! wrong there makes it panic, while reading or at the first prompt, and in a browser a panic is the end of the engine.
//!
//! Only the kinds of parts that tokenizers of the UMT5 family have are let through.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// Parts within parts, at most.
const MAX_DEPTH: usize = 4;

const NORMALIZERS: [&str; 10] =
    ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "Prepend", "Replace", "Strip", "StripAccents"];
const PRE_TOKENIZERS: [&str; 5] = ["Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"];

/// The file, without what the crate reads as it should. Everything is parsed as the crate will parse it.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    /// Unused, but the crate panics where it is no JSON.
    #[serde(default, rename = "decoder")]
    _decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
}

/// A token besides those of the model, and whether it takes the spaces beside it.
#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

fn wrong<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Tokenizer(reason.into()))
}

/// Checks a `tokenizer.json`.
///
/// # Errors
/// [`Error::Tokenizer`] for a file that is no JSON, or has parts that are not read or contradict themselves.
pub(super) fn check(json: &str) -> Result<()> {
    let File { normalizer, pre_tokenizer, post_processor, added_tokens, model, .. } =
        serde_json::from_str(json).map_err(|error| Error::Tokenizer(error.to_string()))?;
    if model.kind != "Unigram" {
        return wrong(format!("its model is of the type {:?} and must be Unigram", model.kind));
    }
    each(&normalizer, "normalizer", "normalizers", 0, &|kind, part| match kind {
        "Precompiled" => charsmap(part["precompiled_charsmap"].as_str().unwrap_or_default())
            .map_or_else(|| wrong("its precompiled_charsmap is damaged"), Ok),
        _ => known("normalizer", kind, &NORMALIZERS),
    })?;
    each(&pre_tokenizer, "pre_tokenizer", "pretokenizers", 0, &|kind, _| {
        known("pre_tokenizer", kind, &PRE_TOKENIZERS)
    })?;
    each(&post_processor, "post_processor", "processors", 0, &|kind, part| match kind {
        "TemplateProcessing" => template(part),
        _ => known("post_processor", kind, &[]),
    })?;
    // Two that take the same spaces overlap.
    let spaced = |added: &Added| added.content.trim() != added.content;
    if added_tokens.iter().any(|added| added.lstrip || added.rstrip) && added_tokens.iter().any(spaced) {
        return wrong("some of its added_tokens strip spaces and some are spaces");
    }
    Ok(())
}

fn known(what: &str, kind: &str, kinds: &[&str]) -> Result<()> {
    if kinds.contains(&kind) {
        Ok(())
    } else {
        wrong(format!("its {what} has a part of the type {kind:?}, which is not read"))
    }
}

/// Checks a part, or every one of a sequence, which has them under the name `list`.
fn each(part: &Value, what: &str, list: &str, depth: usize, check: &dyn Fn(&str, &Value) -> Result<()>) -> Result<()> {
    match (part, part["type"].as_str()) {
        (Value::Null, _) => Ok(()),
        (_, Some("Sequence")) if depth < MAX_DEPTH => {
            let Some(parts) = part[list].as_array() else { return wrong(format!("its {what} has no list {list:?}")) };
            parts.iter().try_for_each(|part| each(part, what, list, depth + 1, check))
        }
        (_, Some(kind)) => check(kind, part),
        (_, None) => wrong(format!("its {what} has a part without a type")),
    }
}

/// Checks that a template uses the prompt and marks that are there, and that it is nothing else besides: the crate goes
/// by the keys that it finds and not by the type.
fn template(part: &Value) -> Result<()> {
    let keys = part.as_object().into_iter().flat_map(|object| object.keys());
    if let Some(key) =
        keys.into_iter().find(|key| !["type", "single", "pair", "special_tokens"].contains(&key.as_str()))
    {
        return wrong(format!("its template has the key {key:?}"));
    }
    let (Some(pieces), Some(marks)) = (part["single"].as_array(), part["special_tokens"].as_object()) else {
        return wrong("its template lacks single or special_tokens");
    };
    for piece in pieces {
        let mark = piece["SpecialToken"]["id"].as_str();
        if piece["Sequence"]["id"] != "A" && !mark.is_some_and(|mark| marks.contains_key(mark)) {
            return wrong(format!(
                "its template has the piece {piece}, which is neither the prompt nor a mark that it lists"
            ));
        }
    }
    let length = |mark: &Value, key: &str| mark[key].as_array().map(Vec::len);
    match marks.iter().find(|(_, mark)| length(mark, "ids").is_none() || length(mark, "ids") != length(mark, "tokens"))
    {
        Some((name, _)) => wrong(format!("its template's mark {name:?} does not have an id for each token")),
        None => Ok(()),
    }
}

/// Checks SentencePiece's table of replacements: its length in bytes, a double array of 32-bit units, and the texts that
/// its values point into. Walking the array for any prompt must stay within it, and every value must be a place between
/// two characters. Units as in `darts.h` of Darts-clone, as the crate `spm_precompiled` reads them.
fn charsmap(text: &str) -> Option<()> {
    let bytes = base64::decode(text).ok()?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (units, texts) = rest.split_at_checked(length / 4 * 4)?;
    let texts = std::str::from_utf8(texts).ok()?;
    let units: Vec<u32> =
        units.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
    let sound = |(at, &unit): (usize, &u32)| {
        // A value: no walk goes on from there.
        if at > 0 && unit >> 31 == 1 {
            return true;
        }
        let next = at ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let leaf = || units.get(next).is_some_and(|value| texts.is_char_boundary((value & (u32::MAX >> 1)) as usize));
        // Any byte may be looked up next.
        (next | 0xff) < units.len() && (unit & (1 << 8) == 0 || leaf())
    };
    (!units.is_empty() && units.iter().enumerate().all(sound)).then_some(())
}
