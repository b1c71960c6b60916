//! From shards to tensors: nothing of a shard is used before its length and its SHA-256 are the manifest's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::model::manifest::{DType, FileInfo, Manifest, ShardInfo, TensorInfo};
use crate::model::quant;

/// A complete tensor as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTensor {
    /// Full name.
    pub name: String,
    /// Number format of `bytes`.
    pub dtype: DType,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// Values that share a scale; only for quantized formats.
    pub group: Option<usize>,
    /// The stored bytes; see [`crate::model::quant`].
    pub bytes: Vec<u8>,
}

impl RawTensor {
    /// All values, row-major.
    ///
    /// # Errors
    /// [`Error::Tensor`] as in [`quant::decode`], with the tensor's name.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        named(&self.name, quant::decode(self.dtype, &self.shape, self.group, &self.bytes))
    }

    /// Some rows, one after the other.
    ///
    /// # Errors
    /// [`Error::Tensor`] as in [`quant::decode_rows`], with the tensor's name.
    pub fn rows_to_f32(&self, rows: &[usize]) -> Result<Vec<f32>> {
        named(&self.name, quant::decode_rows(self.dtype, &self.shape, self.group, &self.bytes, rows))
    }
}

/// Puts the tensor's name into an error about its content.
pub(crate) fn named<T>(name: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Tensor(reason) => Error::Tensor(format!("{name}: {reason}")),
        other => other,
    })
}

/// SHA-256 in 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks the bytes of a file against what the manifest says of it.
///
/// # Errors
/// [`Error::Integrity`] saying what came instead, where that can be told.
pub fn verify_file(info: &FileInfo, bytes: &[u8]) -> Result<()> {
    let FileInfo { path, bytes: wanted, sha256 } = info;
    let guess = guess(bytes);
    if bytes.len() as u64 != *wanted {
        return Err(Error::Integrity(format!("{path} has {} bytes instead of {wanted}{guess}", bytes.len())));
    }
    let found = sha256_hex(bytes);
    if found != *sha256 {
        return Err(Error::Integrity(format!("{path} has the SHA-256 {found} instead of {sha256}{guess}")));
    }
    Ok(())
}

/// The usual strangers: an error page that a server sent as a success, and the pointer that stands for a large file.
fn guess(bytes: &[u8]) -> &'static str {
    let start: Vec<u8> = bytes.iter().take(512).map(u8::to_ascii_lowercase).collect();
    let text = start.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    if text.starts_with(b"<") && [&b"<!doctype html"[..], b"<html", b"<head"].iter().any(|tag| contains(text, tag)) {
        "; it is a web page, so the address is wrong or the server answers errors with a page"
    } else if text.starts_with(b"version https://git-lfs") {
        "; it is a Git LFS pointer, so the server does not have the file itself"
    } else {
        ""
    }
}

fn contains(text: &[u8], pattern: &[u8]) -> bool {
    text.windows(pattern.len()).any(|window| window == pattern)
}

/// Takes shards in any order and gives back tensors as soon as they are complete. Between two calls it holds no bytes
/// but those of split tensors that wait for another shard.
#[derive(Debug)]
pub struct ShardAssembler {
    shards: Vec<ShardInfo>,
    tensors: Vec<(String, TensorInfo)>,
    /// For every shard the parts that lie in it.
    contents: Vec<Vec<Piece>>,
    /// Whether a shard holds anything that is wanted.
    needed: Vec<bool>,
    added: Vec<bool>,
    unfinished: HashMap<usize, Unfinished>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    tensor: usize,
    /// First byte within the shard.
    from: u64,
    /// First byte within the tensor.
    to: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Unfinished {
    bytes: Vec<u8>,
    missing_parts: usize,
}

impl ShardAssembler {
    /// Starts with no shard. The manifest must come from [`Manifest::parse`].
    pub fn new(manifest: &Manifest) -> Self {
        Self::of(manifest, |_| true)
    }

    /// As [`new`](Self::new), for the tensors of the given names only: shards that hold none of them are not missed,
    /// and what they give is nothing.
    pub fn of(manifest: &Manifest, wanted: impl Fn(&str) -> bool) -> Self {
        let mut contents = vec![Vec::new(); manifest.shards.len()];
        let mut tensors = Vec::with_capacity(manifest.tensors.len());
        let wanted = manifest.tensors.iter().filter(|(name, _)| wanted(name));
        for (tensor, (name, info)) in wanted.enumerate() {
            let mut to = 0;
            for part in &info.parts {
                contents[part.shard].push(Piece { tensor, from: part.offset, to, bytes: part.bytes });
                to += part.bytes;
            }
            tensors.push((name.clone(), info.clone()));
        }
        for pieces in &mut contents {
            pieces.sort_by_key(|piece| piece.from);
        }
        let needed = contents.iter().map(|pieces| !pieces.is_empty()).collect();
        let added = vec![false; manifest.shards.len()];
        Self { shards: manifest.shards.clone(), tensors, contents, needed, added, unfinished: HashMap::new() }
    }

    /// Indexes of the needed shards that were not added yet, in order of first use.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.added.len()).filter(|&index| self.needed[index] && !self.added[index]).collect()
    }

    /// Whether every tensor was given back.
    pub fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }

    /// Bytes held for split tensors that wait for another shard.
    pub fn held_bytes(&self) -> usize {
        self.unfinished.values().map(|tensor| tensor.bytes.len()).sum()
    }

    /// Checks a shard, then gives back every tensor it completes, in the order in which they lie in it.
    /// A shard that was added before gives nothing, so a download that finished twice does no harm. After an error
    /// the same shard can be added again.
    ///
    /// # Errors
    /// [`Error::Integrity`] for wrong bytes, [`Error::Tensor`] for numbers that are not finite,
    /// [`Error::OutOfMemory`], and [`Error::InvalidRequest`] for a shard that does not exist.
    pub fn add(&mut self, index: usize, bytes: &[u8]) -> Result<Vec<RawTensor>> {
        let Some(info) = self.shards.get(index) else {
            let count = self.shards.len();
            return Err(Error::InvalidRequest(format!("there is no shard {index}, the model has {count}")));
        };
        if self.added[index] {
            return Ok(Vec::new());
        }
        verify_file(info, bytes)?;
        // First everything that can fail, then the change: an error leaves the count of missing parts as it was, and
        // writing the same bytes once more does no harm.
        for piece in &self.contents[index] {
            let (name, info) = &self.tensors[piece.tensor];
            if let Entry::Vacant(entry) = self.unfinished.entry(piece.tensor) {
                entry.insert(Unfinished { bytes: zeroed(name, info.bytes())?, missing_parts: info.parts.len() });
            }
        }
        for piece in &self.contents[index] {
            let (name, info) = &self.tensors[piece.tensor];
            let Some(tensor) = self.unfinished.get_mut(&piece.tensor) else { continue };
            let run = &bytes[piece.from as usize..][..piece.bytes as usize];
            tensor.bytes[piece.to as usize..][..run.len()].copy_from_slice(run);
            if tensor.missing_parts == 1 {
                named(name, quant::check(info.dtype, &info.shape, info.group, &tensor.bytes))?;
            }
        }
        let mut complete = Vec::new();
        for piece in &self.contents[index] {
            let Entry::Occupied(mut entry) = self.unfinished.entry(piece.tensor) else { continue };
            entry.get_mut().missing_parts -= 1;
            if entry.get().missing_parts == 0 {
                let (name, info) = &self.tensors[piece.tensor];
                let TensorInfo { dtype, shape, group, .. } = info;
                let (name, shape, bytes) = (name.clone(), shape.clone(), entry.remove().bytes);
                complete.push(RawTensor { name, dtype: *dtype, shape, group: *group, bytes });
            }
        }
        self.added[index] = true;
        Ok(complete)
    }
}

/// Memory for a whole tensor; a model that is too large must give an error here, not end the program.
pub(crate) fn zeroed(name: &str, bytes: u64) -> Result<Vec<u8>> {
    let too_large = || Error::OutOfMemory(format!("tensor {name} needs {bytes} bytes"));
    let length = usize::try_from(bytes).map_err(|_| too_large())?;
    let mut out = Vec::new();
    out.try_reserve_exact(length).map_err(|_| too_large())?;
    out.resize(length, 0);
    Ok(out)
}
