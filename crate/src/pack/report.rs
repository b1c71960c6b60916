//! Reading a packed model back: what it is, and whether every byte of it is right.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::directory::encoder_files;
use crate::error::{Error, Result};
use crate::model::layout::Part;
use crate::model::manifest::{ClipSize, DType, FileInfo, MAX_MANIFEST_BYTES, Manifest, Requirements};
use crate::model::plan::{Bytes, ClipNeeds};
use crate::model::shards::{ShardAssembler, verify_file};
use crate::pack::MANIFEST_FILE;
use crate::text::prompts::PromptPack;

/// Reads `manifest.json` of a packed model.
///
/// # Errors
/// [`Error::InvalidRequest`] when it cannot be read, otherwise as [`Manifest::parse`].
pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST_FILE);
    let mut text = String::new();
    // One byte more than is allowed is enough to tell that a file is too long.
    File::open(&path)
        .and_then(|file| file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_string(&mut text))
        .map_err(|error| Error::InvalidRequest(format!("cannot read the manifest, {error}: {}", path.display())))?;
    Manifest::parse(&text)
}

/// Reads a file of a packed model. Its length is checked before it is read, its hash is not.
///
/// # Errors
/// [`Error::Integrity`] when it is not there or has another length.
pub fn read_file(folder: &Path, info: &FileInfo) -> Result<Vec<u8>> {
    let path = folder.join(&info.path);
    let failed = |error: std::io::Error| Error::Integrity(format!("{} cannot be read, {error}", info.path));
    let length = fs::metadata(&path).map_err(failed)?.len();
    if length != info.bytes {
        return Err(Error::Integrity(format!("{} has {length} bytes instead of {}", info.path, info.bytes)));
    }
    fs::read(&path).map_err(failed)
}

/// One file of a packed model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCheck {
    /// Path relative to the manifest.
    pub path: String,
    /// Length in bytes, by the manifest.
    pub bytes: u64,
    /// What is wrong with it.
    pub problem: Option<Error>,
}

/// Result of checking a packed model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Every file.
    pub files: Vec<FileCheck>,
    /// Tensors that are complete and hold finite numbers only.
    pub tensors: usize,
}

impl Verification {
    /// The first problem, if there is one.
    pub fn problem(&self) -> Option<&Error> {
        self.files.iter().find_map(|file| file.problem.as_ref())
    }
}

/// Checks every file of a packed model: its length, its hash, and the numbers of every tensor. One shard is in memory
/// at a time, besides a tensor that is split. Where the text encoder is not hosted, its files may be missing.
///
/// # Errors
/// Only for the manifest, as [`read_manifest`]. What is wrong with a file is in the result.
pub fn verify(folder: &Path) -> Result<Verification> {
    let manifest = read_manifest(folder)?;
    let mut files = Vec::new();
    let mut check = |info: &FileInfo, result: Result<()>| {
        files.push(FileCheck { path: info.path.clone(), bytes: info.bytes, problem: result.err() });
    };
    let spare = if manifest.text_encoder.hosted { Vec::new() } else { encoder_files(&manifest) };
    let left_out = |info: &FileInfo| spare.contains(&info.path) && !folder.join(&info.path).exists();
    if let Some(pack) = &manifest.prompt_pack {
        let read = |bytes: Vec<u8>| verify_file(pack, &bytes).and_then(|()| PromptPack::parse(&bytes, &manifest));
        check(pack, read_file(folder, pack).and_then(read).map(drop));
    }
    let tokenizer = &manifest.text_encoder.tokenizer;
    if !left_out(tokenizer) {
        check(tokenizer, read_file(folder, tokenizer).and_then(|bytes| verify_file(tokenizer, &bytes)));
    }
    let mut assembler = ShardAssembler::new(&manifest);
    let mut tensors = 0;
    for (index, info) in manifest.shards.iter().enumerate().filter(|(_, info)| !left_out(info)) {
        let added = read_file(folder, info).and_then(|bytes| assembler.add(index, &bytes));
        check(info, added.map(|added| tensors += added.len()));
    }
    Ok(Verification { files, tensors })
}

/// Totals of a part of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartTotals {
    /// Which part.
    pub part: Part,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values.
    pub parameters: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// Totals of a number format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatTotals {
    /// Which format.
    pub dtype: DType,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values.
    pub parameters: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// Totals of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardTotals {
    /// Path relative to the manifest.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Tensors that lie in it, wholly or in part.
    pub tensors: usize,
}

/// What a packed model is. `Display` gives a table for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Short name.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// License of the weights.
    pub license: String,
    /// Offered clips, the default first.
    pub clips: Vec<ClipSize>,
    /// Frames per second.
    pub fps: u32,
    /// Denoising steps.
    pub steps: usize,
    /// Bytes to fetch, the manifest excepted.
    pub total_bytes: u64,
    /// What a device must offer.
    pub requires: Requirements,
    /// Totals by part, in order of first use.
    pub parts: Vec<PartTotals>,
    /// Totals by number format.
    pub formats: Vec<FormatTotals>,
    /// The shards.
    pub shards: Vec<ShardTotals>,
}

impl Summary {
    /// Summary of a manifest.
    pub fn of(manifest: &Manifest) -> Self {
        let mut parts: BTreeMap<Part, PartTotals> = BTreeMap::new();
        let mut formats: BTreeMap<DType, FormatTotals> = BTreeMap::new();
        let shard = |info: &FileInfo| ShardTotals { path: info.path.clone(), bytes: info.bytes, tensors: 0 };
        let mut shards: Vec<ShardTotals> = manifest.shards.iter().map(shard).collect();
        for (name, info) in &manifest.tensors {
            let (parameters, bytes, dtype) = (info.elements() as u64, info.bytes(), info.dtype);
            if let Some(part) = Part::of(name) {
                let empty = PartTotals { part, tensors: 0, parameters: 0, bytes: 0 };
                let totals = parts.entry(part).or_insert(empty);
                totals.tensors += 1;
                totals.parameters += parameters;
                totals.bytes += bytes;
            }
            let empty = FormatTotals { dtype, tensors: 0, parameters: 0, bytes: 0 };
            let totals = formats.entry(dtype).or_insert(empty);
            totals.tensors += 1;
            totals.parameters += parameters;
            totals.bytes += bytes;
            for part in &info.parts {
                shards[part.shard].tensors += 1;
            }
        }
        Self {
            name: manifest.name.clone(),
            title: manifest.title.clone(),
            license: manifest.license.clone(),
            clips: manifest.sizes().collect(),
            fps: manifest.video.fps,
            steps: manifest.sampler.sigmas.len(),
            total_bytes: manifest.total_bytes(),
            requires: manifest.requires.clone(),
            parts: parts.into_values().collect(),
            formats: formats.into_values().collect(),
            shards,
        }
    }
}

/// Summary of a packed model; only its manifest is read.
///
/// # Errors
/// As [`read_manifest`].
pub fn inspect(folder: &Path) -> Result<Summary> {
    Ok(Summary::of(&read_manifest(folder)?))
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({}), {}", self.title, self.name, self.license)?;
        let clips: Vec<String> = self.clips.iter().map(ToString::to_string).collect();
        writeln!(f, "clips: {} at {} frames per second, {} steps", clips.join(", "), self.fps, self.steps)?;
        writeln!(f, "to fetch: {}, shards: {}", Bytes::new(self.total_bytes), self.shards.len())?;
        let needs = &self.requires;
        writeln!(
            f,
            "memory: about {}; largest buffer {}",
            Bytes::new(needs.memory_bytes),
            Bytes::new(needs.max_buffer_size)
        )?;
        for &ClipNeeds { width, height, frames, cpu_bytes, webgpu_bytes } in &needs.clips {
            let (cpu, gpu) = (Bytes::new(cpu_bytes), Bytes::new(webgpu_bytes));
            let clip = ClipSize { width, height, frames };
            writeln!(f, "in a page, {clip}: about {cpu} on the CPU, {gpu} with WebGPU")?;
        }
        writeln!(f, "\n{:<14}{:>8}{:>14}{:>14}", "part", "tensors", "parameters", "size")?;
        for row in &self.parts {
            let part = row.part.to_string();
            writeln!(f, "{part:<14}{:>8}{:>14}{:>14}", row.tensors, row.parameters, Bytes::new(row.bytes))?;
        }
        writeln!(f, "\n{:<14}{:>8}{:>14}{:>14}", "format", "tensors", "parameters", "size")?;
        for row in &self.formats {
            let dtype = row.dtype.to_string();
            writeln!(f, "{dtype:<14}{:>8}{:>14}{:>14}", row.tensors, row.parameters, Bytes::new(row.bytes))?;
        }
        writeln!(f, "\n{:<40}{:>8}{:>14}", "shard", "tensors", "size")?;
        for row in &self.shards {
            writeln!(f, "{:<40}{:>8}{:>14}", row.path, row.tensors, Bytes::new(row.bytes))?;
        }
        Ok(())
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            match &file.problem {
                None => writeln!(f, "ok    {} ({})", file.path, Bytes::new(file.bytes))?,
                Some(problem) => writeln!(f, "WRONG {}: {problem}", file.path)?,
            }
        }
        writeln!(f, "{} tensors are complete and finite", self.tensors)
    }
}
