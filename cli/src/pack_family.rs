//! `kinora pack --family`: from published files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use kinora::pack::registry::registry;
use kinora::pack::source::Source;
use kinora::pack::{Keep, Lora, PackOptions, Progress, Published, estimate_published, pack_published};
use serde_json::json;

use crate::files::{print, read};
use crate::lora;
use crate::progress::Bar;

/// The published files of a model.
#[derive(Args)]
pub struct Family {
    /// Family of the published weights, from `kinora models`; instead of --in
    #[arg(long, value_name = "NAME", requires_all = ["transformer", "text_encoder", "autoencoder", "tokenizer", "sampler"])]
    family: Option<String>,
    /// Denoiser: safetensors (a file, an index or a folder), .pt, .gguf, or MLX
    #[arg(long, value_name = "FILE|DIR", requires = "family")]
    transformer: Option<PathBuf>,
    /// Text encoder: the same kinds of files
    #[arg(long, value_name = "FILE|DIR", requires = "family")]
    text_encoder: Option<PathBuf>,
    /// Autoencoder: taew2_1.pth or its safetensors copy
    #[arg(long, value_name = "FILE", requires = "family")]
    autoencoder: Option<PathBuf>,
    /// tokenizer.json of the text encoder
    #[arg(long, value_name = "FILE", requires = "family")]
    tokenizer: Option<PathBuf>,
    /// LoRA to merge into the denoiser, with its strength; may be given several times
    #[arg(long = "lora", value_name = "FILE[=STRENGTH]", requires = "family")]
    loras: Vec<String>,
    /// How the weights are sampled, from `kinora models`
    #[arg(long, value_name = "NAME", requires = "family")]
    sampler: Option<String>,
    /// Dictionary of a .pt file that has several, such as generator or generator_ema
    #[arg(long, value_name = "NAME", requires = "family")]
    key: Option<String>,
    /// Short name of the packed model; without it made of family, sampler and format
    #[arg(long, value_name = "NAME", requires = "family")]
    name: Option<String>,
    /// Check names and shapes and print the sizes, but write nothing
    #[arg(long, requires = "family")]
    dry_run: bool,
}

impl Family {
    pub fn is_given(&self) -> bool {
        self.family.is_some()
    }

    pub fn run(self, out: &Path, options: &PackOptions, keep: Option<Keep>) -> Result<()> {
        let registry = registry()?;
        let wanted = |name: &Option<String>| name.clone().unwrap_or_default();
        let family = registry.family(&wanted(&self.family))?;
        let sampler = registry.sampler(&wanted(&self.sampler))?;
        let open =
            |path: &Option<PathBuf>, key: Option<&str>| Source::open(path.as_deref().unwrap_or(Path::new("")), key);
        let transformer = open(&self.transformer, self.key.as_deref())?;
        let text_encoder = open(&self.text_encoder, None)?;
        let autoencoder = open(&self.autoencoder, None)?;
        let loras: Vec<Lora> = self.loras.iter().map(|text| open_lora(text)).collect::<Result<_>>()?;
        let tokenizer_json = read(self.tokenizer.as_deref().unwrap_or(Path::new("")))?;
        if !transformer.path().is_empty() {
            eprintln!("the weights lie under {}", transformer.path().join("."));
        }
        let name = self.name.unwrap_or_else(|| format!("{}-{}-{}", family.id, sampler.id, options.format));
        let names = |source: &Source| source.files().map(|stamp| stamp.name.clone()).collect::<Vec<_>>();
        let merged: Vec<_> =
            loras.iter().map(|lora| json!({"files": names(&lora.source), "scale": lora.scale})).collect();
        let training = json!({"packed_from": {
            "family": family.id, "transformer": names(&transformer), "text_encoder": names(&text_encoder),
            "autoencoder": names(&autoencoder), "loras": merged,
        }});
        let model_json = family.model_json(&name, sampler, training).to_string();
        let published = Published { model_json, tokenizer_json, transformer, text_encoder, autoencoder, loras, keep };
        if self.dry_run {
            let (summary, merged) = estimate_published(published, options)?;
            tell_merged(merged);
            eprintln!("nothing was written; packed, this would be:");
            print(summary);
            return Ok(());
        }
        let mut bar = Bar::new();
        let packed = pack_published(published, out, options, &mut |progress: &Progress<'_>| {
            bar.show(progress.done, progress.total, progress.tensor);
            ControlFlow::Continue(())
        })?;
        drop(bar);
        if packed.kept_shards > 0 {
            eprintln!("{} shards of an interrupted run were checked and kept", packed.kept_shards);
        }
        tell_merged(packed.merged);
        if let Some((name, error)) = &packed.packed.worst {
            eprintln!("largest relative error of a quantized tensor: {:.2} % ({name})", 100.0 * error);
        }
        eprintln!("wrote {}", out.display());
        print(packed.packed.summary);
        Ok(())
    }
}

fn tell_merged(merged: usize) {
    if merged > 0 {
        eprintln!("LoRA changes {merged} weights");
    }
}

fn open_lora(text: &str) -> Result<Lora> {
    let (path, scale) = lora::split(text);
    Ok(Lora { source: Source::open(Path::new(path), None)?, scale })
}
