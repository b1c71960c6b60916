//! From an export directory (what the training writes) to the files that a page fetches.
//!
//! An export is `model.json` (a manifest without `schema_version`, `shards` and `tensors`), `tokenizer.json` and
//! `weights.safetensors`. Packing orders the tensors by first use, brings each into its format and cuts the result
//! into shards. One tensor is in memory at a time, so a model may be larger than the memory. The files appear under
//! their names only when all of them are complete.
//!
//! [`pack_published`] does the same from the files that others publish: [`source`] reads their formats, `names` finds
//! out which tensor is which, [`Lora`]s are merged on the way, and an interrupted run can go on where it was.
//! [`registry`] knows the public checkpoints.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::cache::CacheFormat;
use crate::model::layout::{self, Expected, Role};
use crate::model::manifest::{
    DType, MAX_SHARD_BYTES, Manifest, SCHEMA_VERSION, TENSOR_ALIGNMENT, TensorInfo, TensorPart,
};
use crate::model::shards::{named, sha256_hex};
use crate::model::{floats, quant, validate};
use crate::text::umt5::TABLE;

mod convert;
mod lora;
mod names;
mod needs;
mod prune;
mod published;
pub mod registry;
mod report;
pub mod source;
mod staging;
mod writer;

pub use lora::Lora;
use needs::ModelNeeds;
pub use prune::Keep;
use prune::{Pruned, prune};
pub use published::{PackedPublished, Progress, Published, estimate_published, pack_published};
pub use report::{FileCheck, FormatTotals, PartTotals, ShardTotals, Summary, Verification};
pub use report::{inspect, read_file, read_manifest, verify};
use staging::Staging;
use writer::ShardWriter;

/// The manifest's file name.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The tokenizer's file name, in an export and in a packed model.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Values that are converted at once; bounds the memory for tables that are not quantized.
const CHUNK: usize = 1 << 20;

/// The content of an export directory. `weights` is best a memory map.
#[derive(Debug, Clone, Copy)]
pub struct Export<'a> {
    /// Content of `model.json`.
    pub model_json: &'a str,
    /// Content of `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// Content of `weights.safetensors`: f32, f16 or bf16.
    pub weights: &'a [u8],
}

/// How to pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackOptions {
    /// `F32` and `F16` store every tensor so. `Q8` and `Q4` quantize the matrices of the linear layers within the
    /// blocks of the text encoder and the transformer where the group divides their last axis; the other matrices and
    /// tables are stored as f16, biases, norms and modulation tables as f32.
    pub format: DType,
    /// The autoencoder's convolutions beside a quantized `format`: `F16`, or `Q8` where the group divides the values
    /// that one output sums over. They weigh little beside a large transformer and much beside a small one.
    pub convolutions: DType,
    /// Values that share a scale, 32 or 64.
    pub group: usize,
    /// Longest shard in bytes, a multiple of 16, at most [`MAX_SHARD_BYTES`].
    pub shard_bytes: u64,
    /// How a causal model's cache is stored, in place of what its `model.json` says.
    pub cache: Option<CacheFormat>,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self { format: DType::Q8, convolutions: DType::F16, group: 32, shard_bytes: MAX_SHARD_BYTES, cache: None }
    }
}

/// What packing made.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// The packed model.
    pub summary: Summary,
    /// The quantized tensor with the largest error: its name and root mean square error over root mean square.
    pub worst: Option<(String, f64)>,
}

/// Packs an export into `out`, which is made if it does not exist. Shards of an earlier pack of the same model that
/// the new one does not have are removed.
///
/// # Errors
/// [`Error::Manifest`] for a wrong `model.json`; [`Error::Tensor`] naming all missing, unknown or wrongly shaped
/// tensors, or the first one with a number that is not finite; [`Error::InvalidRequest`] for wrong options and for
/// files that cannot be written. After an error `out` has no new files.
pub fn pack(export: &Export<'_>, out: &Path, options: &PackOptions) -> Result<Packed> {
    pack_kept(export, out, options, None)
}

/// As [`pack`], with a vocabulary cut down to the tokens that are to be kept.
///
/// # Errors
/// As [`pack`]; [`Error::Tokenizer`] for a tokenizer that is no Unigram model, and [`Error::InvalidRequest`] for tokens
/// that it does not have.
pub fn pack_pruned(export: &Export<'_>, out: &Path, options: &PackOptions, keep: &Keep) -> Result<Packed> {
    let pruned = prune(export.model_json, export.tokenizer_json, keep)?;
    pack_kept(export, out, options, Some(&pruned))
}

fn pack_kept(export: &Export<'_>, out: &Path, options: &PackOptions, pruned: Option<&Pruned>) -> Result<Packed> {
    let PackOptions { group, shard_bytes, cache, .. } = *options;
    check_options(options)?;
    let model_json = &with_cache(export.model_json, cache)?;
    let export = &Export { model_json, ..*export };
    let whole = typed(&read_model(export)?)?;
    validate::config(&whole)?;
    let export = &match pruned {
        Some(Pruned { model_json, tokenizer_json, .. }) => Export { model_json, tokenizer_json, ..*export },
        None => *export,
    };
    let mut model = read_model(export)?;
    let config = typed(&model)?;
    validate::config(&config)?;
    let weights = SafeTensors::deserialize(export.weights)
        .map_err(|error| Error::WeightFile(format!("weights.safetensors cannot be read, {error}")))?;
    let mut views: BTreeMap<String, TensorView<'_>> = weights.tensors().into_iter().collect();
    let found = views.iter().map(|(name, view)| (name.as_str(), view.shape())).collect();
    layout::compare(&layout::expected(&whole), &found)?;
    let table = pruned.map(|pruned| kept_rows(&views[TABLE], &pruned.rows));
    if let (Some((shape, bytes)), Some(view)) = (&table, views.get_mut(TABLE)) {
        let cut = TensorView::new(view.dtype(), shape.clone(), bytes);
        *view = cut.map_err(|error| Error::Internal(format!("the token table could not be cut ({error})")))?;
    }

    let format = |tensor: &Expected, divides: bool| by_role(options, tensor.role, divides);
    let plan = plan(&layout::expected(&config), group, shard_bytes, format)?;
    let staging = Staging::new(out)?;
    let mut writer = ShardWriter::new(&staging.path, &config.name, plan.shards);
    let mut worst: Option<(String, f64)> = None;
    for (name, info) in &plan.tensors {
        writer.start(&info.parts)?;
        let error = named(name, write_tensor(&mut writer, info, &views[name]))?;
        if let Some(error) = error.filter(|&error| worst.as_ref().is_none_or(|worst| error > worst.1)) {
            worst = Some((name.clone(), error));
        }
    }
    let shards = writer.finish()?;

    model["tensors"] = to_json(&plan.tensors.into_iter().collect::<BTreeMap<_, _>>())?;
    model["shards"] = to_json(&shards)?;
    fill_requirements(&mut model)?;
    // The engine's own reader has the last word before anything gets its name.
    let text = model.to_string();
    let manifest = Manifest::parse(&text)?;
    staging.write(TOKENIZER_FILE, export.tokenizer_json)?;
    staging.write(MANIFEST_FILE, text.as_bytes())?;
    staging.publish(out, &manifest)?;
    Ok(Packed { summary: Summary::of(&manifest), worst })
}

fn check_options(options: &PackOptions) -> Result<()> {
    let PackOptions { convolutions, group, shard_bytes, .. } = *options;
    if !matches!(convolutions, DType::F16 | DType::Q8) {
        return Err(Error::InvalidRequest(format!("convolutions are stored as f16 or q8, not {convolutions}")));
    }
    if !quant::GROUPS.contains(&group) {
        return Err(Error::InvalidRequest(format!("the group is {group} and must be 32 or 64")));
    }
    if !(TENSOR_ALIGNMENT..=MAX_SHARD_BYTES).contains(&shard_bytes) || !shard_bytes.is_multiple_of(TENSOR_ALIGNMENT) {
        return Err(Error::InvalidRequest(format!(
            "shards of {shard_bytes} bytes are not possible, take a multiple of {TENSOR_ALIGNMENT} up to {MAX_SHARD_BYTES}"
        )));
    }
    Ok(())
}

/// `model.json` with another storage of the cache, where one is asked for.
///
/// # Errors
/// [`Error::InvalidRequest`] for a model that has no cache, since it is not causal.
fn with_cache(model_json: &str, cache: Option<CacheFormat>) -> Result<Cow<'_, str>> {
    let Some(cache) = cache else { return Ok(model_json.into()) };
    let mut model: Value = serde_json::from_str(model_json)
        .map_err(|error| Error::Manifest(format!("model.json cannot be read, {error}")))?;
    let causal = model.get_mut("sampler").and_then(|sampler| sampler.get_mut("causal")).and_then(Value::as_object_mut);
    let Some(causal) = causal else {
        return Err(Error::InvalidRequest(format!(
            "a cache in {} was asked for, and the model's sampler is not causal and keeps none; leave it out or take \
             a causal sampler",
            cache.name()
        )));
    };
    causal.insert("cache".into(), to_json(&cache)?);
    Ok(model.to_string().into())
}

/// `model.json` with what the tokenizer file adds. Fields that this version does not know are kept.
fn read_model(export: &Export<'_>) -> Result<Value> {
    let invalid = |reason: &str| Error::Manifest(format!("model.json {reason}"));
    let mut model: Value =
        serde_json::from_str(export.model_json).map_err(|error| invalid(&format!("cannot be read, {error}")))?;
    let fields = model.as_object_mut().ok_or_else(|| invalid("is not an object"))?;
    for field in ["shards", "tensors"] {
        if fields.contains_key(field) {
            return Err(invalid(&format!("has {field:?}, so it is not an export but a packed model")));
        }
    }
    fields.insert("schema_version".into(), json!(SCHEMA_VERSION));
    fields.insert("shards".into(), json!([]));
    fields.insert("tensors".into(), json!({}));
    let text = fields.get_mut("text_encoder").and_then(Value::as_object_mut);
    let text = text.ok_or_else(|| invalid("has no object \"text_encoder\""))?;
    let tokenizer = export.tokenizer_json;
    let file = json!({"path": TOKENIZER_FILE, "bytes": tokenizer.len(), "sha256": sha256_hex(tokenizer)});
    text.insert("tokenizer".into(), file);
    Ok(model)
}

fn typed(model: &Value) -> Result<Manifest> {
    serde::Deserialize::deserialize(model)
        .map_err(|error: serde_json::Error| Error::Manifest(format!("model.json: {error}")))
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::Internal(error.to_string()))
}

/// Where every tensor goes.
struct Plan {
    tensors: Vec<(String, TensorInfo)>,
    /// Length of every shard.
    shards: Vec<u64>,
}

/// The format a tensor is stored in, by what it is for; `divides` says whether the group divides its rows.
fn by_role(options: &PackOptions, role: Role, divides: bool) -> DType {
    match (options.format, role) {
        (format @ (DType::F32 | DType::F16), _) => format,
        (format, Role::BlockLinear) if divides => format,
        (_, Role::Convolution) if divides => options.convolutions,
        (_, Role::BlockLinear | Role::Convolution | Role::Weight) => DType::F16,
        (_, Role::Scale) => DType::F32,
    }
}

/// Lays the tensors out in order, each in the format that `format` says for it, given whether the group divides its
/// rows. One that does not fit into the rest of a shard begins a new one. Only one that is longer than a whole
/// shard is split, and as it is split anyway, it begins where the one before it ends.
fn plan(
    expected: &[Expected],
    group: usize,
    shard_bytes: u64,
    format: impl Fn(&Expected, bool) -> DType,
) -> Result<Plan> {
    let mut shards = vec![0u64];
    let mut tensors = Vec::with_capacity(expected.len());
    for tensor in expected {
        let Expected { name, shape, .. } = tensor;
        let dtype = format(tensor, quant::row_width(shape).is_some_and(|width| width.is_multiple_of(group)));
        let group = dtype.quantized().then_some(group);
        let elements = shape.iter().map(|&dim| dim as u64).product();
        let mut rest = quant::stored_bytes(dtype, elements, group)
            .ok_or_else(|| Error::Tensor(format!("{name} of shape {shape:?} is too large")))?;
        let mut parts = Vec::new();
        while rest > 0 {
            let shard = shards.len() - 1;
            let offset = shards[shard].next_multiple_of(TENSOR_ALIGNMENT);
            let room = shard_bytes.saturating_sub(offset);
            let whole = parts.is_empty() && rest <= shard_bytes;
            if room == 0 || (offset > 0 && whole && room < rest) {
                shards.push(0);
                continue;
            }
            let bytes = rest.min(room);
            parts.push(TensorPart { shard, offset, bytes });
            shards[shard] = offset + bytes;
            rest -= bytes;
        }
        tensors.push((name.clone(), TensorInfo { dtype, shape: shape.clone(), group, parts }));
    }
    Ok(Plan { tensors, shards })
}

/// Shape and bytes of some rows of a matrix.
fn kept_rows(view: &TensorView<'_>, rows: &[usize]) -> (Vec<usize>, Vec<u8>) {
    let (shape, data) = (view.shape(), view.data());
    let row = data.len() / shape[0];
    let bytes = rows.iter().flat_map(|&index| &data[index * row..(index + 1) * row]).copied().collect();
    (vec![rows.len(), shape[1]], bytes)
}

/// Converts and writes one tensor; gives the relative error where it was quantized.
fn write_tensor(writer: &mut ShardWriter<'_>, info: &TensorInfo, view: &TensorView<'_>) -> Result<Option<f64>> {
    let TensorInfo { dtype, shape, group, .. } = info;
    let size = match view.dtype() {
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::BF16 => 2,
        other => return Err(Error::Tensor(format!("its values are {other:?} and must be F32, F16 or BF16"))),
    };
    if group.is_none() {
        for (index, bytes) in view.data().chunks(CHUNK * size).enumerate() {
            let values = floats::to_f32(view.dtype(), bytes, index * CHUNK).map_err(Error::Tensor)?;
            writer.write(&quant::encode(*dtype, &[values.len()], None, &values)?)?;
        }
        return Ok(None);
    }
    let values = floats::to_f32(view.dtype(), view.data(), 0).map_err(Error::Tensor)?;
    let bytes = quant::encode(*dtype, shape, *group, &values)?;
    writer.write(&bytes)?;
    let square = |value: f32| f64::from(value).powi(2);
    let decoded = quant::decode(*dtype, shape, *group, &bytes)?;
    let error: f64 = values.iter().zip(&decoded).map(|(value, decoded)| square(value - decoded)).sum();
    let total: f64 = values.iter().map(|&value| square(value)).sum();
    Ok((total > 0.0).then(|| (error / total).sqrt()))
}

/// Fills what `requires` leaves open with what the most demanding offered clip needs on a GPU, and says in any case
/// what each clip needs.
fn fill_requirements(model: &mut Value) -> Result<()> {
    let mut manifest = typed(model)?;
    let ModelNeeds { clips, buffer, memory } = ModelNeeds::of(&manifest)?;
    let mebibytes = |bytes: u64| bytes.next_multiple_of(1 << 20);
    let requires = &mut manifest.requires;
    for (field, value) in [
        (&mut requires.max_buffer_size, mebibytes(buffer)),
        (&mut requires.max_storage_buffer_binding_size, mebibytes(buffer)),
        (&mut requires.memory_bytes, mebibytes(memory)),
    ] {
        if *field == 0 {
            *field = value;
        }
    }
    requires.clips = clips;
    model["requires"] = to_json(&manifest.requires)?;
    Ok(())
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::InvalidRequest(format!("cannot {what} a file, {error}: {}", path.display()))
}
