//! Single tensors, and single rows, from the shards of a model that stays in storage.
//!
//! [`ShardAssembler`](super::shards::ShardAssembler) takes every shard once and gives every tensor. What is here asks
//! for the shard it needs, whenever it needs it, and keeps none but the last: the way to run a part that is larger than
//! the memory. A shard is checked against the manifest's hash each time it is read.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::model::manifest::{Manifest, ShardInfo, TensorInfo};
use crate::model::quant;
use crate::model::shards::{RawTensor, named, verify_file, zeroed};

/// Where shards come from: a folder, a browser's storage.
pub trait ShardSource {
    /// The bytes of a shard, unchecked.
    fn read<'a>(&'a self, index: usize, info: &'a ShardInfo) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>> + 'a>>;
}

/// The folder of a packed model.
#[cfg(not(target_family = "wasm"))]
pub struct ShardFolder(pub std::path::PathBuf);

#[cfg(not(target_family = "wasm"))]
impl ShardSource for ShardFolder {
    fn read<'a>(&'a self, _: usize, info: &'a ShardInfo) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>> + 'a>> {
        Box::pin(async move { crate::pack::read_file(&self.0, info) })
    }
}

/// Counts the bytes of weights that are held at a time.
#[derive(Clone, Default)]
pub struct Meter(Rc<Count>);

#[derive(Default)]
struct Count {
    now: Cell<u64>,
    peak: Cell<u64>,
}

impl Meter {
    /// Counts bytes for as long as the result lives.
    pub fn hold(&self, bytes: u64) -> Held {
        self.0.now.set(self.0.now.get() + bytes);
        self.0.peak.set(self.0.peak.get().max(self.0.now.get()));
        Held { meter: self.clone(), bytes }
    }

    /// Bytes held now.
    pub fn now(&self) -> u64 {
        self.0.now.get()
    }

    /// The most that were ever held.
    pub fn peak(&self) -> u64 {
        self.0.peak.get()
    }
}

/// Bytes that a [`Meter`] counts.
pub struct Held {
    meter: Meter,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.0.now.set(self.meter.0.now.get() - self.bytes);
    }
}

struct Shard {
    bytes: Vec<u8>,
    _held: Held,
}

/// Reads tensors of some names from shards.
pub struct TensorReader {
    shards: Vec<ShardInfo>,
    tensors: BTreeMap<String, TensorInfo>,
    source: Rc<dyn ShardSource>,
    meter: Meter,
    /// Neighbours lie in the same shard.
    last: RefCell<Option<(usize, Rc<Shard>)>>,
}

impl TensorReader {
    /// For the tensors of the given names. The manifest must come from [`Manifest::parse`].
    pub fn new(manifest: &Manifest, wanted: impl Fn(&str) -> bool, source: Rc<dyn ShardSource>) -> Self {
        let tensors = manifest.tensors.iter().filter(|(name, _)| wanted(name));
        Self {
            shards: manifest.shards.clone(),
            tensors: tensors.map(|(name, info)| (name.clone(), info.clone())).collect(),
            source,
            meter: Meter::default(),
            last: RefCell::new(None),
        }
    }

    /// Counts the shard that is held; whoever keeps tensors of this reader can count them here too.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Names with a prefix in the order in which they lie in the shards.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let mut found: Vec<_> = self.tensors.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        found.sort_by_key(|(_, info)| (info.parts[0].shard, info.parts[0].offset));
        found.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// A whole tensor.
    ///
    /// # Errors
    /// [`Error::Integrity`] for a shard that is not what the manifest says, [`Error::Tensor`] for numbers that are not
    /// finite, [`Error::OutOfMemory`], and what the source reports.
    pub async fn tensor(&self, name: &str) -> Result<RawTensor> {
        let info = self.info(name)?;
        let mut bytes = zeroed(name, info.bytes())?;
        let all = 0..info.bytes();
        self.copy(info, all, &mut bytes).await?;
        let TensorInfo { dtype, shape, group, .. } = info;
        named(name, quant::check(*dtype, shape, *group, &bytes))?;
        Ok(RawTensor { name: name.into(), dtype: *dtype, shape: shape.clone(), group: *group, bytes })
    }

    /// Some rows of a table as f32, one after the other. Only the shards that hold them are read.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and [`Error::Tensor`] for a row that does not exist.
    pub async fn rows(&self, name: &str, rows: &[usize]) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let TensorInfo { dtype, shape, group, .. } = info;
        let distinct: BTreeSet<usize> = rows.iter().copied().collect();
        let mut stored: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        // All values, then all scales, each in order: no shard is read twice.
        for scales in [false, true] {
            for &row in &distinct {
                let (values, own_scales) = named(name, quant::row_bytes(*dtype, shape, *group, row))?;
                let range = if scales { own_scales } else { values };
                let bytes = stored.entry(row).or_default();
                let start = bytes.len();
                bytes.resize(start + (range.end - range.start) as usize, 0);
                self.copy(info, range, &mut bytes[start..]).await?;
            }
        }
        let width = quant::row_width(shape).unwrap_or(1);
        let mut out = Vec::with_capacity(rows.len() * width);
        for row in rows {
            out.extend(named(name, quant::decode(*dtype, &[1, width], *group, &stored[row]))?);
        }
        Ok(out)
    }

    /// Forgets the last shard.
    pub fn release(&self) {
        self.last.borrow_mut().take();
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| Error::Tensor(format!("it is missing: {name}")))
    }

    /// Copies a range of a tensor's bytes.
    async fn copy(&self, info: &TensorInfo, range: Range<u64>, out: &mut [u8]) -> Result<()> {
        let mut first = 0;
        for part in &info.parts {
            let (from, to) = (range.start.max(first), range.end.min(first + part.bytes));
            if from < to {
                let shard = self.shard(part.shard).await?;
                let at = (part.offset + from - first) as usize;
                let run = &shard.bytes[at..][..(to - from) as usize];
                out[(from - range.start) as usize..][..run.len()].copy_from_slice(run);
            }
            first += part.bytes;
        }
        Ok(())
    }

    async fn shard(&self, index: usize) -> Result<Rc<Shard>> {
        if let Some((last, shard)) = &*self.last.borrow()
            && *last == index
        {
            return Ok(shard.clone());
        }
        // Let go before the next one comes.
        self.release();
        let info = &self.shards[index];
        let bytes = self.source.read(index, info).await?;
        let held = self.meter.hold(bytes.len() as u64);
        verify_file(info, &bytes)?;
        let shard = Rc::new(Shard { bytes, _held: held });
        *self.last.borrow_mut() = Some((index, shard.clone()));
        Ok(shard)
    }
}
