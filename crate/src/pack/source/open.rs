//! Finds out what a file is, by its first bytes, and opens it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use memmap2::Mmap;

use super::{Data, Entry, FileStamp, Source, gguf, safetensors, torch, zip};
use crate::error::{Error, Result};
use crate::pack::cannot;

/// Longest index of safetensors files.
const MAX_INDEX_BYTES: u64 = 64 << 20;

impl Source {
    /// Opens a weight file, an index of safetensors files, or a folder with one of these. `key` picks a dictionary of
    /// a PyTorch file that has several.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a path that cannot be read or a folder in which it is not clear what is meant;
    /// [`Error::WeightFile`] for a file that is damaged or of a kind that is not read.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        if path.is_dir() {
            return Self::open(&file_in(path)?, key);
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(path);
        }
        let (stamp, data) = map(path)?;
        Self::of(stamp, data, key)
    }

    /// Reads a weight file that is in memory; `name` is for messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: Vec<u8>, key: Option<&str>) -> Result<Self> {
        let stamp = FileStamp { name: name.into(), bytes: bytes.len() as u64, modified: 0 };
        Self::of(stamp, Data::Memory(Arc::new(bytes)), key)
    }

    fn of(stamp: FileStamp, data: Data, key: Option<&str>) -> Result<Self> {
        let opened = list(data.bytes(), key);
        let (tensors, path) = opened.map_err(|error| match error {
            Error::WeightFile(reason) => Error::WeightFile(format!("{}: {reason}", stamp.name)),
            other => other,
        })?;
        let source = Self { files: vec![(stamp, data)], tensors, path };
        source.check()?;
        Ok(source)
    }

    fn open_index(path: &Path) -> Result<Self> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_INDEX_BYTES).read_to_string(&mut text))
            .map_err(|error| cannot("read", path, &error))?;
        let weight_map = safetensors::index(&text)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut source = Self { files: Vec::new(), tensors: BTreeMap::new(), path: Vec::new() };
        let mut numbers = BTreeMap::new();
        for name in weight_map.values() {
            if numbers.contains_key(name) {
                continue;
            }
            let number = source.files.len();
            let (stamp, data) = map(&folder.join(name))?;
            let mut tensors = safetensors::list(data.bytes(), number).map_err(|error| match error {
                Error::WeightFile(reason) => Error::WeightFile(format!("{name}: {reason}")),
                other => other,
            })?;
            // The index has the say: the same name in another file is left over from an older save.
            tensors.retain(|tensor, _| weight_map.get(tensor) == Some(name));
            source.tensors.extend(tensors);
            source.files.push((stamp, data));
            numbers.insert(name, number);
        }
        let missing: Vec<&str> =
            weight_map.keys().map(String::as_str).filter(|name| source.entry(name).is_none()).take(8).collect();
        if !missing.is_empty() {
            return Err(Error::WeightFile(format!(
                "the index names tensors that its files do not have: {}",
                missing.join(", ")
            )));
        }
        source.check()?;
        Ok(source)
    }
}

/// Tensors of a file by its first bytes, and the keys of a PyTorch file that led to them.
fn list(bytes: &[u8], key: Option<&str>) -> Result<(BTreeMap<String, Entry>, Vec<String>)> {
    let wrong = |reason: &str| Err(Error::WeightFile(reason.into()));
    if bytes.starts_with(gguf::MAGIC) {
        return Ok((gguf::list(bytes, 0)?, Vec::new()));
    }
    if bytes.starts_with(zip::MAGIC) {
        return torch::list(bytes, 0, key);
    }
    if bytes.first() == Some(&0x80) && bytes.get(1).is_some_and(|version| (2..=5).contains(version)) {
        return wrong("this is PyTorch's old format from before 2020; save it again with a current PyTorch");
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return wrong("this is a pointer of Git LFS, not the file it stands for; fetch it with git lfs pull");
    }
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'<') && bytes.get(8) != Some(&b'{') {
        return wrong("this is a web page, not a weight file");
    }
    Ok((safetensors::list(bytes, 0)?, Vec::new()))
}

fn map(path: &Path) -> Result<(FileStamp, Data)> {
    let failed = |error: std::io::Error| cannot("read", path, &error);
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    let modified = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let modified = modified.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let stamp = FileStamp { name, bytes: about.len(), modified };
    if about.len() == 0 {
        return Err(Error::WeightFile(format!("{}: the file is empty", stamp.name)));
    }
    // SAFETY: the map is only read. Nobody should change the file meanwhile; no other program is asked to, and the
    // same holds for every reader of a file this large.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    Ok((stamp, Data::Map(Arc::new(map))))
}

/// The one file of a folder that can be meant.
fn file_in(folder: &Path) -> Result<PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| cannot("read", folder, &error))? {
        let name = entry.map_err(|error| cannot("read", folder, &error))?.file_name();
        names.extend(name.to_str().map(str::to_owned));
    }
    names.sort();
    for ends in [&[".safetensors.index.json"][..], &[".safetensors"], &[".gguf"], &[".pt", ".pth"]] {
        let fitting: Vec<&String> = names.iter().filter(|name| ends.iter().any(|end| name.ends_with(end))).collect();
        match fitting.as_slice() {
            [] => {}
            [name] => return Ok(folder.join(name)),
            several => {
                let list: Vec<&str> = several.iter().take(8).map(|name| name.as_str()).collect();
                return Err(Error::InvalidRequest(format!(
                    "it is not clear which weight file is meant, give one of {} in {}",
                    list.join(", "),
                    folder.display()
                )));
            }
        }
    }
    Err(Error::InvalidRequest(format!("there is no weight file in {}", folder.display())))
}
