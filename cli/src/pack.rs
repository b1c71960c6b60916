//! `kinora pack`

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kinora::model::cache::CacheFormat;
use kinora::model::manifest::DType;
use kinora::model::quant::GROUPS;
use kinora::pack::{Export, Keep, PackOptions, TOKENIZER_FILE, pack, pack_pruned};
use memmap2::Mmap;

use crate::files::{print, read, read_text};
use crate::pack_family::Family;

/// Turn an export of the training, or published weights, into a model for the browser
///
/// With --family NAME the parts come from the files that their authors publish; docs/BRING_YOUR_OWN_WEIGHTS.md walks
/// through it. A run that was interrupted goes on with its finished shards when it is started again.
///
/// With --in the input directory has `model.json` (a manifest without schema_version, shards and tensors), `tokenizer.json` and
/// `weights.safetensors` (f32, f16 or bf16). The output directory gets `manifest.json`, `tokenizer.json` and shards
/// `<name>-00001-of-0000N.bin`, ordered by first use, each with its SHA-256 in the manifest. Weights are read through
/// a memory map, one tensor at a time; nothing appears under its name before everything is complete.
///
/// Tensors have the names of the reference implementations: `text_encoder.` + transformers UMT5EncoderModel,
/// `transformer.` + diffusers WanTransformer3DModel, `autoencoder.` + TAEHV. One error names all that are missing,
/// unknown or of the wrong shape.
#[derive(Args)]
pub struct Pack {
    /// Directory with the export
    #[arg(long = "in", value_name = "DIR", required_unless_present = "family", conflicts_with = "family")]
    input: Option<PathBuf>,
    #[command(flatten)]
    family: Family,
    /// Directory for the packed model; made if it does not exist
    #[arg(long = "out", value_name = "DIR")]
    output: PathBuf,
    /// How weights are stored
    #[arg(long, value_enum, default_value = "q8")]
    format: Format,
    /// How the autoencoder's convolutions are stored beside q8 or q4; q8 makes a small model's download smaller
    #[arg(long, value_enum, default_value = "f16")]
    convolutions: Convolutions,
    /// Values that share a scale in q8 and q4: 32 or 64
    #[arg(long, default_value_t = 32, value_parser = group)]
    group: usize,
    /// Longest shard in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=16))]
    shard_size: u64,
    /// How a causal model stores keys and values of finished frames; without it as its sampler says, with --family q8
    #[arg(long, value_enum)]
    cache: Option<Cache>,
    #[command(flatten)]
    vocabulary: Vocabulary,
}

/// What the token table is cut down to.
#[derive(Args)]
struct Vocabulary {
    /// Keep only the rows of the token table that the prompts in this file need, one prompt a line; prompts with other
    /// words are then refused
    #[arg(long, value_name = "FILE")]
    keep_prompts: Option<PathBuf>,
    /// Keep the rows of these pieces, one a line as in tokenizer.json, such as ▁ball
    #[arg(long, value_name = "FILE")]
    keep_pieces: Option<PathBuf>,
    /// Keep the rows of these token ids, one a line
    #[arg(long, value_name = "FILE")]
    keep_ids: Option<PathBuf>,
}

impl Vocabulary {
    fn keep(&self) -> Result<Option<Keep>> {
        let lines = |path: &Option<PathBuf>| -> Result<Vec<String>> {
            let text = path.as_deref().map(read_text).transpose()?.unwrap_or_default();
            Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
        };
        let ids = lines(&self.keep_ids)?;
        let ids = ids.iter().map(|id| id.parse().with_context(|| format!("a token id must be a number: {id}")));
        let keep = Keep {
            prompts: lines(&self.keep_prompts)?,
            pieces: lines(&self.keep_pieces)?,
            ids: ids.collect::<Result<_>>()?,
        };
        let given = [&self.keep_prompts, &self.keep_pieces, &self.keep_ids].into_iter().any(Option::is_some);
        Ok(given.then_some(keep))
    }
}

fn group(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|group| GROUPS.contains(group)).ok_or_else(|| "must be 32 or 64".into())
}

/// How weights are stored.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Everything in 32-bit floats
    F32,
    /// Everything in 16-bit floats
    F16,
    /// Linear layers of the blocks in 8 bits, the rest in f16 and f32
    Q8,
    /// Linear layers of the blocks in 4 bits, the rest in f16 and f32
    Q4,
}

/// How convolutions are stored.
#[derive(Clone, Copy, ValueEnum)]
enum Convolutions {
    /// 16-bit floats
    F16,
    /// 8 bits where the group divides the values that one output sums over, else f16
    Q8,
}

/// How a causal model stores keys and values.
#[derive(Clone, Copy, ValueEnum)]
enum Cache {
    /// 32-bit floats, exact
    F32,
    /// 16-bit floats, half the memory
    F16,
    /// 8 bits with a scale for 32 values, 9/32 of the memory
    Q8,
}

impl Pack {
    pub fn run(self) -> Result<()> {
        let format = match self.format {
            Format::F32 => DType::F32,
            Format::F16 => DType::F16,
            Format::Q8 => DType::Q8,
            Format::Q4 => DType::Q4,
        };
        let cache = self.cache.map(|cache| match cache {
            Cache::F32 => CacheFormat::F32,
            Cache::F16 => CacheFormat::F16,
            Cache::Q8 => CacheFormat::Q8,
        });
        let convolutions = match self.convolutions {
            Convolutions::F16 => DType::F16,
            Convolutions::Q8 => DType::Q8,
        };
        let shard_bytes = self.shard_size << 20;
        let options = PackOptions { format, convolutions, group: self.group, shard_bytes, cache };
        let keep = self.vocabulary.keep()?;
        match self.input {
            Some(input) if !self.family.is_given() => pack_export(&input, &self.output, &options, keep.as_ref()),
            _ => self.family.run(&self.output, &options, keep),
        }
    }
}

fn pack_export(input: &Path, output: &Path, options: &PackOptions, keep: Option<&Keep>) -> Result<()> {
    let model_json = read_text(&input.join("model.json"))?;
    let tokenizer_json = read(&input.join(TOKENIZER_FILE))?;
    let path = input.join("weights.safetensors");
    let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // SAFETY: the map is only read. Nobody should change the file meanwhile; no other program is asked to, and
    // the same holds for every reader of a file this large.
    let weights = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
    eprintln!("packing {} of weights as {}", mebibytes(weights.len() as u64), options.format);
    let export = Export { model_json: &model_json, tokenizer_json: &tokenizer_json, weights: &weights };
    let packed = match keep {
        Some(keep) => pack_pruned(&export, output, options, keep)?,
        None => pack(&export, output, options)?,
    };
    if let Some((name, error)) = &packed.worst {
        eprintln!("largest relative error of a quantized tensor: {:.2} % ({name})", 100.0 * error);
    }
    eprintln!("wrote {} to {}", mebibytes(packed.summary.total_bytes), output.display());
    print(packed.summary);
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / 1_048_576.0)
}
