//! Cutting a vocabulary down to the tokens that a site needs.
//!
//! The token table of a large encoder is a fifth of it, and most of its rows stand for languages that nobody types. A
//! pruned model keeps some rows. Its tokenizer keeps every piece: the kept ones get the first ids, the others those
//! behind the table. So a prompt is cut into the same pieces as before, its embeddings are the same numbers, and a
//! prompt that needs a row which is gone is told apart with certainty: [`Error::PrunedPrompt`] names the piece.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Export, read_model, typed};
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// Which tokens stay. The marks that the tokenizer itself adds, and the tokens of the model's examples and of its
/// negative prompt, stay in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// Prompts, all of whose tokens stay.
    pub prompts: Vec<String>,
    /// Pieces as the tokenizer file has them, such as `▁ball`.
    pub pieces: Vec<String>,
    /// Token ids of the tokenizer file.
    pub ids: Vec<usize>,
}

/// A model description and a tokenizer that fit a table of fewer rows.
pub(super) struct Pruned {
    pub(super) model_json: String,
    pub(super) tokenizer_json: Vec<u8>,
    /// Row of the whole table for each row of the pruned one.
    pub(super) rows: Vec<usize>,
}

/// Prunes the vocabulary of a model that is about to be packed.
///
/// # Errors
/// [`Error::Tokenizer`] for a tokenizer that is no Unigram model, [`Error::InvalidRequest`] for pieces and ids that it
/// does not have, otherwise as [`Tokenizer::parse`] and [`Tokenizer::encode`].
pub(super) fn prune(model_json: &str, tokenizer_json: &[u8], keep: &Keep) -> Result<Pruned> {
    let whole = read_model(&Export { model_json, tokenizer_json, weights: &[] })?;
    let config = typed(&whole)?;
    let text = std::str::from_utf8(tokenizer_json).map_err(|error| Error::Tokenizer(error.to_string()))?;
    let tokenizer = Tokenizer::parse(text, &config)?;
    let mut json: Value = serde_json::from_str(text).map_err(|error| Error::Tokenizer(error.to_string()))?;
    let vocabulary = pieces(&json)?;
    let mut kept: BTreeSet<usize> = own_marks(&json).collect();
    for prompt in keep.prompts.iter().chain(&config.examples) {
        kept.extend(tokenizer.encode(prompt)?.ids.iter().map(|&id| id as usize));
    }
    kept.extend(tokenizer.negative().into_iter().flatten().map(|&id| id as usize));
    for piece in &keep.pieces {
        let id = vocabulary.iter().position(|known| known == piece);
        kept.insert(id.ok_or_else(|| Error::InvalidRequest(format!("the tokenizer has no piece {piece:?}")))?);
    }
    kept.extend(&keep.ids);
    // A vocabulary that was cut down before has more tokens than the table has rows.
    let count = vocabulary.len().min(config.text_encoder.vocab_size);
    if let Some(id) = kept.iter().find(|&&id| id >= count) {
        return Err(Error::InvalidRequest(format!("the text encoder has {count} tokens, so there is no token {id}")));
    }
    let rows: Vec<usize> = kept.iter().copied().collect();
    let order: Vec<usize> = rows.iter().copied().chain((0..vocabulary.len()).filter(|id| !kept.contains(id))).collect();
    reorder(&mut json, &order);
    let mut model: Value = serde_json::from_str(model_json)
        .map_err(|error| Error::Manifest(format!("model.json cannot be read, {error}")))?;
    model["text_encoder"]["vocab_size"] = json!(rows.len());
    let full = config.text_encoder.full_vocab_size.unwrap_or(config.text_encoder.vocab_size);
    model["text_encoder"]["full_vocab_size"] = json!(full);
    Ok(Pruned { model_json: model.to_string(), tokenizer_json: json.to_string().into_bytes(), rows })
}

/// Pieces of a Unigram model by id.
fn pieces(tokenizer: &Value) -> Result<Vec<String>> {
    let wrong = || Error::Tokenizer("only the vocabulary of a Unigram model can be pruned".into());
    let vocabulary = tokenizer["model"]["vocab"].as_array().ok_or_else(wrong)?;
    vocabulary.iter().map(|entry| entry[0].as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

/// Ids that the tokenizer gives of its own accord: for what it does not know, and the marks it adds.
fn own_marks(tokenizer: &Value) -> impl Iterator<Item = usize> {
    let unknown = tokenizer["model"]["unk_id"].as_u64();
    let marks = tokenizer["post_processor"]["special_tokens"].as_object().into_iter().flat_map(|marks| marks.values());
    let marks = marks.filter_map(|mark| mark["ids"].as_array()).flatten().filter_map(Value::as_u64);
    unknown.into_iter().chain(marks).map(|id| id as usize)
}

/// Gives every piece its place in `order`, and changes the ids wherever they stand.
fn reorder(tokenizer: &mut Value, order: &[usize]) {
    let mut places = vec![0; order.len()];
    for (place, &id) in order.iter().enumerate() {
        places[id] = place;
    }
    // An id behind the pieces belongs to a token that was added to them and stays where it is.
    let change = |id: &mut Value| {
        if let Some(&place) = id.as_u64().and_then(|id| places.get(id as usize)) {
            *id = json!(place);
        }
    };
    // Pointers, since indexing would make what is not there.
    if let Some(vocabulary) = tokenizer.pointer_mut("/model/vocab").and_then(Value::as_array_mut) {
        *vocabulary = order.iter().map(|&id| vocabulary[id].clone()).collect();
    }
    tokenizer.pointer_mut("/model/unk_id").into_iter().for_each(change);
    for token in tokenizer.pointer_mut("/added_tokens").and_then(Value::as_array_mut).into_iter().flatten() {
        token.pointer_mut("/id").into_iter().for_each(change);
    }
    let marks = tokenizer.pointer_mut("/post_processor/special_tokens").and_then(Value::as_object_mut);
    for mark in marks.into_iter().flat_map(|marks| marks.values_mut()) {
        mark.pointer_mut("/ids").and_then(Value::as_array_mut).into_iter().flatten().for_each(change);
    }
}
