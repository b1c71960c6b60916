//! Models in a folder, as native programs load them.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::compute::Compute;
use crate::engine::{Engine, GenerateRequest, wait};
use crate::error::{Error, Result};
use crate::loading::{DeviceChoice, LoadOptions, Loading, PackFile, open_device};
use crate::model::layout::Part;
use crate::model::manifest::Manifest;
use crate::model::plan::{Residency, TextWeights};
use crate::model::reader::ShardFolder;
use crate::model::shards::verify_file;
use crate::pack::{MANIFEST_FILE, read_file};
use crate::text::TextEncoder;
use crate::text::prompts::PromptPack;
use crate::text::stream::StreamedUmt5;
use crate::text::tokenizer::Tokenizer;

impl Engine {
    /// Loads a model directory, text encoder and all.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a file that cannot be read, otherwise as [`Loading::new`].
    pub fn load_dir(dir: &Path, device: DeviceChoice) -> Result<Self> {
        let manifest = manifest_text(dir)?;
        let tokenizer = tokenizer_text(dir, &Manifest::parse(&manifest)?)?;
        load_shards(dir, wait(Loading::new(&manifest, device, LoadOptions::resident(&tokenizer)))?)
    }

    /// Loads a model directory without its text encoder, whose layers are then read for each prompt, one at a time.
    /// With a prompt pack the tokenizer and the encoder's shards may be missing; only the pack's prompts can be made
    /// then. A model whose text encoder is not hosted brings the pack that its manifest names.
    ///
    /// # Errors
    /// As [`load_dir`](Self::load_dir).
    pub fn load_dir_streamed(dir: &Path, device: DeviceChoice, pack: Option<&[u8]>) -> Result<Self> {
        load_shards(dir, open(dir, device, pack, None)?)
    }

    /// As [`load_dir_streamed`](Self::load_dir_streamed), for a certain clip and so many bytes of memory, host and GPU
    /// together. Where the model does not fit beside the clip, its parts take turns and none is loaded here.
    ///
    /// # Errors
    /// As [`check`](Self::check) and [`load_dir`](Self::load_dir).
    pub fn load_dir_within(
        dir: &Path,
        device: DeviceChoice,
        pack: Option<&[u8]>,
        memory: u64,
        clip: &GenerateRequest,
    ) -> Result<Self> {
        let mut loading = open(dir, device, pack, Some(memory))?;
        if loading.check(clip)?.plan.residency == Residency::Turns {
            loading.take_turns()?;
        }
        load_shards(dir, loading)
    }
}

/// A model directory with its text encoder left in storage, or left out.
fn open(dir: &Path, device: DeviceChoice, pack: Option<&[u8]>, memory: Option<u64>) -> Result<Loading> {
    let text = manifest_text(dir)?;
    let manifest = Manifest::parse(&text)?;
    let named = match &manifest.prompt_pack {
        Some(info) if pack.is_none() && !manifest.text_encoder.hosted => Some(read_file(dir, info)?),
        _ => None,
    };
    let has_pack = pack.is_some() || named.is_some();
    let absent = has_pack && !encoder_is_there(dir, &manifest);
    let tokenizer = if absent { None } else { Some(tokenizer_text(dir, &manifest)?) };
    let options = LoadOptions {
        tokenizer: tokenizer.as_deref(),
        text: if absent { TextWeights::Absent } else { TextWeights::Streamed },
        pack: pack.map(PackFile::Given).or(named.as_deref().map(PackFile::Named)),
        storage: Some(Rc::new(ShardFolder(dir.into()))),
        memory,
        comfortable: None,
        sweep: None,
    };
    wait(Loading::new(&text, device, options))
}

/// Tokenizer and text encoder of a model directory, without the rest of the model.
pub struct TextPart {
    /// What the model is.
    pub manifest: Manifest,
    /// Prompts to ids.
    pub tokenizer: Tokenizer,
    /// Ids to embeddings, layer by layer.
    pub encoder: TextEncoder,
    /// Where it is computed.
    pub compute: Compute,
}

impl TextPart {
    /// Opens it; no shard is read.
    ///
    /// # Errors
    /// As [`Engine::load_dir`].
    pub fn open(dir: &Path, device: DeviceChoice) -> Result<Self> {
        let manifest = Manifest::parse(&manifest_text(dir)?)?;
        let text = tokenizer_text(dir, &manifest)?;
        verify_file(&manifest.text_encoder.tokenizer, text.as_bytes())?;
        let tokenizer = Tokenizer::parse(&text, &manifest)?;
        let compute = wait(open_device(&manifest, device))?;
        let encoder = TextEncoder::Streamed(StreamedUmt5::new(&manifest, Rc::new(ShardFolder(dir.into()))));
        Ok(Self { manifest, tokenizer, encoder, compute })
    }

    /// A prompt pack of some prompts.
    ///
    /// # Errors
    /// As [`PromptPack::encode`].
    pub fn prompt_pack(&self, prompts: &[String]) -> Result<PromptPack> {
        wait(PromptPack::encode(&self.manifest, &self.tokenizer, &self.encoder, &self.compute, prompts))
    }
}

/// Files that a model needs for its text encoder and for nothing else: the tokenizer and some shards.
pub fn encoder_files(manifest: &Manifest) -> Vec<String> {
    let rest = manifest.shards_of(|name| !name.starts_with(Part::TextEncoder.prefix()));
    let own = manifest.shards.iter().enumerate().filter(|(index, _)| !rest.contains(index));
    std::iter::once(&manifest.text_encoder.tokenizer).chain(own.map(|(_, info)| info)).map(|i| i.path.clone()).collect()
}

fn encoder_is_there(dir: &Path, manifest: &Manifest) -> bool {
    encoder_files(manifest).iter().all(|path| dir.join(path).exists())
}

fn load_shards(dir: &Path, mut loading: Loading) -> Result<Engine> {
    for index in loading.missing_shards() {
        let path = dir.join(&loading.manifest().shards[index].path);
        loading.add_shard(index, read(&path)?)?;
    }
    loading.finish()
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::InvalidRequest(format!("{} cannot be read ({e})", path.display())))
}

fn text(path: &PathBuf, wrong: fn(String) -> Error) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|_| wrong(format!("{} is not UTF-8", path.display())))
}

fn manifest_text(dir: &Path) -> Result<String> {
    text(&dir.join(MANIFEST_FILE), Error::Manifest)
}

fn tokenizer_text(dir: &Path, manifest: &Manifest) -> Result<String> {
    text(&dir.join(&manifest.text_encoder.tokenizer.path), Error::Tokenizer)
}
