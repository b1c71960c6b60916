//! `kinora prompts`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use kinora::directory::{TextPart, encoder_files};
use kinora::model::manifest::Manifest;
use kinora::model::shards::sha256_hex;
use kinora::pack::MANIFEST_FILE;
use serde_json::{Value, json};

use crate::files::{Device, print, read_text, write};

/// Name of a pack beside its manifest.
const PACK_FILE: &str = "prompts.safetensors";

/// Encode prompts into a small file, so that clips of them need no text encoder
///
/// The file holds the embeddings of the real tokens and belongs to this model: `kinora generate --prompts FILE` uses it,
/// and so does a page. Layers of the text encoder are read one at a time; the rest of the model is not loaded.
///
/// With --attach the file goes beside the manifest and is named there: the page then makes these prompts without
/// fetching the text encoder. With --without-encoder the manifest also says that the site does not have the encoder;
/// the command lists the files that need not be uploaded. Other prompts are then refused.
#[derive(Args)]
pub struct Prompts {
    /// Directory with manifest.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What a clip shows; give it several times for several prompts
    #[arg(long = "prompt", value_name = "TEXT")]
    prompts: Vec<String>,
    /// File with more prompts, one a line
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// File to write
    #[arg(long = "out", value_name = "FILE", default_value = PACK_FILE, conflicts_with = "attach")]
    output: PathBuf,
    /// Write the file beside the manifest and name it there
    #[arg(long)]
    attach: bool,
    /// With --attach: the text encoder is not offered beside the manifest
    #[arg(long, requires = "attach")]
    without_encoder: bool,
    /// Where to run
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
}

impl Prompts {
    pub fn run(self) -> Result<()> {
        let mut prompts = self.prompts;
        if let Some(list) = &self.list {
            prompts.extend(read_text(list)?.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        ensure!(!prompts.is_empty(), "there is no prompt: give --prompt TEXT or --list FILE");
        let text = TextPart::open(&self.model, self.device.into())?;
        let started = Instant::now();
        let pack = text.prompt_pack(&prompts)?;
        let bytes = pack.to_bytes()?;
        let output = if self.attach { self.model.join(PACK_FILE) } else { self.output };
        write(&output, &bytes)?;
        let seconds = started.elapsed().as_secs_f64();
        let count = pack.prompts().count();
        eprintln!("wrote {count} prompts, {} bytes, to {} after {seconds:.2} s", bytes.len(), output.display());
        if self.attach {
            attach(&self.model, &bytes, !self.without_encoder)?;
        }
        if self.without_encoder {
            eprintln!("these files need not be uploaded:");
            print(encoder_files(&text.manifest).join("\n"));
        }
        Ok(())
    }
}

/// Names the pack in the manifest. Fields that this version does not know are kept.
fn attach(model: &Path, pack: &[u8], hosted: bool) -> Result<()> {
    let path = model.join(MANIFEST_FILE);
    let mut manifest: Value = serde_json::from_str(&read_text(&path)?).context("the manifest is not JSON")?;
    manifest["prompt_pack"] = json!({"path": PACK_FILE, "bytes": pack.len(), "sha256": sha256_hex(pack)});
    manifest["text_encoder"]["hosted"] = json!(hosted);
    let text = manifest.to_string();
    Manifest::parse(&text)?;
    write(&path, text.as_bytes())
}
