//! Packing a model from the files that its parts are published as.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;

use super::convert::Reading;
use super::lora::{Lora, Merge};
use super::names::{self, Origin, Sources};
use super::prune::{Keep, prune};
use super::source::Source;
use super::staging::{Staging, remove_interrupted};
use super::writer::{ShardWriter, file_name};
use super::{
    Export, MANIFEST_FILE, PackOptions, Packed, Plan, Summary, TOKENIZER_FILE, by_role, check_options, convert,
    fill_requirements, plan, read_model, to_json, typed, with_cache,
};
use crate::error::{Error, Result};
use crate::model::layout::{self, Expected, Part};
use crate::model::manifest::{DType, Manifest, ShardInfo, TensorInfo};
use crate::model::shards::{named, sha256_hex};
use crate::model::validate;
use crate::text::tokenizer::Tokenizer;
use crate::text::umt5::TABLE;

/// The parts of a model as they are published.
#[derive(Debug)]
pub struct Published {
    /// `model.json`, as in an export: a manifest without `schema_version`, `shards` and `tensors`.
    pub model_json: String,
    /// Content of `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// The denoiser: names of diffusers, of Wan's own code or of FastVideo.
    pub transformer: Source,
    /// The text encoder: names of transformers, of Wan's own code or of ggml.
    pub text_encoder: Source,
    /// The autoencoder: names of taehv.
    pub autoencoder: Source,
    /// Changes to the denoiser, applied one after the other.
    pub loras: Vec<Lora>,
    /// The tokens that the token table is cut down to, if it is to be.
    pub keep: Option<Keep>,
}

/// How far packing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor at work, by our name.
    pub tensor: &'a str,
    /// Bytes written, those of an earlier run included.
    pub done: u64,
    /// Bytes there will be.
    pub total: u64,
}

/// What packing made.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedPublished {
    /// The packed model and its largest rounding error.
    pub packed: Packed,
    /// Shards that an interrupted run had finished and that were kept.
    pub kept_shards: usize,
    /// Weights that LoRA files changed.
    pub merged: usize,
}

/// Everything that can be known before the first value is read.
struct Job {
    model: Value,
    config: Manifest,
    plan: Plan,
    origins: BTreeMap<String, Origin>,
    sources: Sources,
    loras: Vec<Lora>,
    expected: Vec<Expected>,
    tokenizer_json: Vec<u8>,
    /// Rows of the token table that stay, where it is cut down.
    rows: Option<Vec<usize>>,
}

impl Job {
    fn new(published: Published, options: &PackOptions) -> Result<Self> {
        check_options(options)?;
        let Published { mut model_json, mut tokenizer_json, transformer, text_encoder, autoencoder, loras, keep } =
            published;
        model_json = with_cache(&model_json, options.cache)?.into_owned();
        let described = |model_json: &str, tokenizer_json: &[u8]| {
            let model = read_model(&Export { model_json, tokenizer_json, weights: &[] })?;
            let config = typed(&model)?;
            validate::config(&config)?;
            Ok::<_, Error>((model, config))
        };
        // The files have the whole table, also where less of it is packed.
        let whole = layout::expected(&described(&model_json, &tokenizer_json)?.1);
        let mut rows = None;
        if let Some(keep) = &keep {
            let pruned = prune(&model_json, &tokenizer_json, keep)?;
            (model_json, tokenizer_json, rows) = (pruned.model_json, pruned.tokenizer_json, Some(pruned.rows));
        }
        let (model, config) = described(&model_json, &tokenizer_json)?;
        let text = std::str::from_utf8(&tokenizer_json).map_err(|error| Error::Tokenizer(error.to_string()))?;
        Tokenizer::parse(text, &config)?;
        let expected = layout::expected(&config);
        let plan = plan_by_class(&expected, options)?;
        // A tensor that the format has no room for has to be known now, not when everything is written.
        Manifest::parse(&manifest(&mut model.clone(), &plan, &planned_shards(&config.name, &plan))?)?;
        let mut sources = Sources { transformer, text_encoder, autoencoder };
        let origins = names::assign(&whole, &mut sources)?;
        Ok(Self { model, config, plan, origins, sources, loras, expected, tokenizer_json, rows })
    }

    /// Stands for all that decides about the bytes that are written.
    fn identity(&self, options: &PackOptions) -> Result<String> {
        let files: Vec<_> = [&self.sources.transformer, &self.sources.text_encoder, &self.sources.autoencoder]
            .into_iter()
            .chain(self.loras.iter().map(|lora| &lora.source))
            .map(|source| (source.files().collect::<Vec<_>>(), source.path()))
            .collect();
        let scales: Vec<f32> = self.loras.iter().map(|lora| lora.scale).collect();
        let format = options.format.to_string();
        let stored = (format, options.convolutions.to_string(), options.group, options.shard_bytes);
        let all = to_json(&(&self.model, files, scales, &self.origins, stored))?;
        Ok(sha256_hex(all.to_string().as_bytes())[..16].to_owned())
    }

    /// The manifest's text once the shards are known.
    fn manifest(&mut self, shards: &[ShardInfo]) -> Result<String> {
        manifest(&mut self.model, &self.plan, shards)
    }
}

fn manifest(model: &mut Value, plan: &Plan, shards: &[ShardInfo]) -> Result<String> {
    let tensors: BTreeMap<&String, &TensorInfo> = plan.tensors.iter().map(|(name, info)| (name, info)).collect();
    model["tensors"] = to_json(&tensors)?;
    model["shards"] = to_json(&shards)?;
    fill_requirements(model)?;
    Ok(model.to_string())
}

/// Formats by what a tensor is: matrices of the blocks as asked for, the token table in 8 bits at most. The table is the
/// one large tensor that is read row by row, where 4 bits would cost the most.
fn plan_by_class(expected: &[Expected], options: &PackOptions) -> Result<Plan> {
    let format = |tensor: &Expected, divides: bool| match options.format {
        DType::Q4 | DType::Q8 if divides && tensor.name == TABLE => DType::Q8,
        _ => by_role(options, tensor.role, divides),
    };
    plan(expected, options.group, options.shard_bytes, format)
}

/// The shards of a plan before there are any.
fn planned_shards(name: &str, plan: &Plan) -> Vec<ShardInfo> {
    let count = plan.shards.len();
    let shard = |(index, &bytes)| ShardInfo { path: file_name(name, index, count), bytes, sha256: "0".repeat(64) };
    plan.shards.iter().enumerate().map(shard).collect()
}

/// What a model takes up, from its configuration alone.
///
/// # Errors
/// [`Error::Manifest`] for a wrong configuration, [`Error::InvalidRequest`] for wrong options.
pub(super) fn summary(model_json: &str, options: &PackOptions) -> Result<Summary> {
    check_options(options)?;
    let mut model = read_model(&Export { model_json, tokenizer_json: b"{}", weights: &[] })?;
    let config = typed(&model)?;
    validate::config(&config)?;
    let plan = plan_by_class(&layout::expected(&config), options)?;
    let shards = planned_shards(&config.name, &plan);
    Ok(Summary::of(&Manifest::parse(&manifest(&mut model, &plan, &shards)?)?))
}

/// What packing would make: everything is checked but the values, and nothing is written.
///
/// # Errors
/// As [`pack_published`], except for what only the values show.
pub fn estimate_published(published: Published, options: &PackOptions) -> Result<(Summary, usize)> {
    let mut job = Job::new(published, options)?;
    let merged = Merge::new(&job.loras, &job.expected)?.len();
    let shards = planned_shards(&job.config.name, &job.plan);
    let manifest = Manifest::parse(&job.manifest(&shards)?)?;
    Ok((Summary::of(&manifest), merged))
}

/// Packs the published parts of a model into `out`, which is made if it does not exist. `Q4` and `Q8` quantize the
/// matrices of the blocks; the token table is then `Q8`, what remains `F16`, biases and norms `F32`.
///
/// One piece of a tensor is in memory at a time. A run that is stopped, by `progress` or from outside, or that finds
/// the disk full, leaves its finished shards in a hidden folder in `out`; the next one with the same files and options
/// checks and keeps them. Only one run at a time may work on one `out`.
///
/// # Errors
/// [`Error::Tensor`] naming every tensor that is missing, unknown or of the wrong shape, or the first one with a number
/// that is not finite; [`Error::Lora`] with all that is wrong with the keys of a LoRA; [`Error::WeightFile`] for a
/// damaged file; [`Error::Manifest`] and [`Error::Tokenizer`] for a wrong `model.json` and `tokenizer.json`;
/// [`Error::InvalidRequest`] for wrong options and for files that cannot be written; [`Error::Aborted`] when `progress`
/// breaks. After an error no new file has a name.
pub fn pack_published(
    published: Published,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<PackedPublished> {
    let mut job = Job::new(published, options)?;
    let merge = Merge::new(&job.loras, &job.expected)?;
    let merged = merge.len();
    let mut staging = Staging::resumable(out, &job.identity(options)?)?;
    let written = write_shards(&job, &merge, &staging, progress);
    let finished = written.and_then(|(shards, worst, kept)| {
        // The engine's own reader has the last word before anything gets its name.
        let text = job.manifest(&shards)?;
        let manifest = Manifest::parse(&text)?;
        staging.write(TOKENIZER_FILE, &job.tokenizer_json)?;
        staging.write(MANIFEST_FILE, text.as_bytes())?;
        staging.publish(out, &manifest)?;
        let packed = Packed { summary: Summary::of(&manifest), worst };
        Ok(PackedPublished { packed, kept_shards: kept, merged })
    });
    // What the files hold stays wrong however often it is tried; a full disk or a stop does not.
    staging.keep = matches!(finished, Err(Error::Aborted | Error::InvalidRequest(_)));
    if finished.is_ok() {
        remove_interrupted(out);
    }
    finished
}

/// Shards, the quantized tensor with the largest error, number of kept shards.
type Written = (Vec<ShardInfo>, Option<(String, f64)>, usize);

fn write_shards(
    job: &Job,
    merge: &Merge<'_>,
    staging: &Staging,
    progress: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<Written> {
    let lengths = job.plan.shards.clone();
    let total = job.plan.tensors.iter().map(|(_, info)| info.bytes()).sum();
    let (finished, journal) = staging.finished(&job.config.name, &lengths)?;
    let kept = finished.len();
    let mut writer = ShardWriter::resume(&staging.path, &job.config.name, lengths, finished, journal);
    let mut worst: Option<(String, f64)> = None;
    let mut done = 0;
    for (name, info) in &job.plan.tensors {
        if writer.has(&info.parts) {
            done += info.bytes();
            continue;
        }
        let (Some(part), Some(origin)) = (Part::of(name), job.origins.get(name)) else {
            return Err(Error::Internal(format!("{name} has no origin")));
        };
        writer.start(&info.parts)?;
        let delta = merge.delta(name)?;
        let mut written = |bytes: u64| {
            done += bytes;
            match progress(&Progress { tensor: name, done, total }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Aborted),
            }
        };
        let rows = job.rows.as_deref().filter(|_| name == TABLE);
        let from = Reading { source: job.sources.of(part), origin, rows };
        let error = named(name, convert::write(&mut writer, info, &from, delta.as_ref(), &mut written))?;
        if let Some(error) = error.filter(|&error| worst.as_ref().is_none_or(|worst| error > worst.1)) {
            worst = Some((name.clone(), error));
        }
    }
    Ok((writer.finish()?, worst, kept))
}
