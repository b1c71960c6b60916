//! Writes shards one after the other, hashing on the way; a shard is never read back or held in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::model::manifest::{ShardInfo, TensorPart};
use crate::model::shards::hex;
use crate::pack::cannot;

/// File name of a shard, counted from 0.
pub(super) fn file_name(model: &str, index: usize, count: usize) -> String {
    format!("{model}-{:05}-of-{count:05}.bin", index + 1)
}

/// Takes the bytes of all tensors in the planned order and spreads them over the planned shards.
pub(super) struct ShardWriter<'a> {
    folder: &'a Path,
    name: String,
    /// Planned length of every shard.
    lengths: Vec<u64>,
    done: Vec<ShardInfo>,
    open: Option<Open>,
    /// Parts of the present tensor that are not full yet, the first one last.
    parts: Vec<TensorPart>,
    /// Shards that were finished before; what belongs to them is not written again.
    kept: usize,
    /// Takes a line for each shard that is finished, so that a later run can keep it.
    journal: Option<File>,
}

struct Open {
    file: BufWriter<File>,
    path: PathBuf,
    hash: Sha256,
    position: u64,
}

impl Open {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| cannot("write", &self.path, &error))?;
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl<'a> ShardWriter<'a> {
    pub(super) fn new(folder: &'a Path, name: &str, lengths: Vec<u64>) -> Self {
        let (done, parts) = (Vec::new(), Vec::new());
        Self { folder, name: name.into(), lengths, done, open: None, parts, kept: 0, journal: None }
    }

    /// Goes on after the shards that `done` lists, and notes every further one in `journal`.
    pub(super) fn resume(folder: &'a Path, name: &str, lengths: Vec<u64>, done: Vec<ShardInfo>, journal: File) -> Self {
        let kept = done.len();
        Self { done, kept, journal: Some(journal), ..Self::new(folder, name, lengths) }
    }

    /// Whether all of a tensor lies in shards that were finished before.
    pub(super) fn has(&self, parts: &[TensorPart]) -> bool {
        parts.iter().all(|part| part.shard < self.kept)
    }

    /// Begins a tensor.
    pub(super) fn start(&mut self, parts: &[TensorPart]) -> Result<()> {
        if !self.parts.is_empty() {
            return Err(Error::Internal("a tensor is shorter than planned".into()));
        }
        self.parts = parts.iter().rev().copied().collect();
        Ok(())
    }

    /// Writes the next bytes of the tensor.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(mut part) = self.parts.pop() else {
                return Err(Error::Internal("a tensor is longer than planned".into()));
            };
            if part.shard < self.kept {
                let skipped = bytes.len().min(part.bytes as usize);
                bytes = &bytes[skipped..];
                part.bytes -= skipped as u64;
                if part.bytes > 0 {
                    self.parts.push(part);
                }
                continue;
            }
            let open = self.shard(part.shard)?;
            let padding = part.offset.saturating_sub(open.position) as usize;
            open.append(&[0; 16][..padding.min(16)])?;
            if open.position != part.offset {
                return Err(Error::Internal("a tensor does not start where it was planned to".into()));
            }
            let (now, later) = bytes.split_at(bytes.len().min(part.bytes as usize));
            open.append(now)?;
            bytes = later;
            part.offset += now.len() as u64;
            part.bytes -= now.len() as u64;
            if part.bytes > 0 {
                self.parts.push(part);
            }
        }
        Ok(())
    }

    /// The file of a shard, which is the open one or the one after it.
    fn shard(&mut self, index: usize) -> Result<&mut Open> {
        if index > self.done.len() {
            self.close()?;
        }
        if index != self.done.len() {
            return Err(Error::Internal("the shards were not planned in order".into()));
        }
        let file_name = self.file_name(index);
        match &mut self.open {
            Some(open) => Ok(open),
            none => {
                let path = self.folder.join(file_name);
                // A run that goes on may find the half of a shard that the one before it left.
                let created = if self.journal.is_some() { File::create(&path) } else { File::create_new(&path) };
                let file = created.map_err(|error| cannot("create", &path, &error))?;
                Ok(none.insert(Open { file: BufWriter::new(file), path, hash: Sha256::new(), position: 0 }))
            }
        }
    }

    fn file_name(&self, index: usize) -> String {
        file_name(&self.name, index, self.lengths.len())
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let failed = |error| cannot("write", &open.path, &error);
        open.file.flush().map_err(failed)?;
        open.file.get_ref().sync_all().map_err(failed)?;
        let index = self.done.len();
        if self.lengths.get(index) != Some(&open.position) {
            return Err(Error::Internal("a shard does not have its planned length".into()));
        }
        let (bytes, sha256) = (open.position, hex(&open.hash.finalize()));
        let info = ShardInfo { path: self.file_name(index), bytes, sha256 };
        if let Some(journal) = &mut self.journal {
            let line = serde_json::to_string(&info).map_err(|error| Error::Internal(error.to_string()))?;
            let noted = writeln!(journal, "{line}").and_then(|()| journal.sync_data());
            noted.map_err(|error| cannot("write", self.folder, &error))?;
        }
        self.done.push(info);
        Ok(())
    }

    /// Closes the last shard and gives the list of all.
    pub(super) fn finish(mut self) -> Result<Vec<ShardInfo>> {
        self.close()?;
        if !self.parts.is_empty() || self.done.len() != self.lengths.len() {
            return Err(Error::Internal("fewer bytes were written than planned".into()));
        }
        Ok(self.done)
    }
}
