//! Published weight files, read where they lie: one list of tensors whatever the format.
//!
//! A file is mapped into memory and only its header is parsed; values are decoded piece by piece when they are asked
//! for. Files come from strangers, so every offset, length and shape is checked with checked arithmetic before it is
//! used, memory is never taken by a length that a file names, and whatever is wrong is an error, not a panic.

mod bytes;
mod encoding;
mod ggml;
mod gguf;
mod machine;
mod mlx;
mod open;
mod pickle;
mod safetensors;
mod torch;
mod zip;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use encoding::{Affine, Encoding};
pub use ggml::Block;
use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::model::shards::named;

/// Most axes of a tensor.
const MAX_RANK: usize = 8;
/// Most tensors of a file.
const MAX_TENSORS: usize = 1 << 17;

/// One stored tensor: what it is and where its values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Lengths of the axes, the last one changing fastest.
    pub shape: Vec<usize>,
    /// How the values are written.
    pub encoding: Encoding,
    /// Index of the file.
    file: usize,
    /// First byte within the file.
    offset: usize,
    /// Bytes from there on that belong to it.
    bytes: usize,
    /// Strides in values, where they are not those of the shape.
    strides: Option<Vec<usize>>,
}

impl Entry {
    /// Number of values. Shapes were checked, so this cannot overflow; for an unread one it saturates.
    pub fn values(&self) -> usize {
        self.shape.iter().fold(1usize, |product, &dim| product.saturating_mul(dim))
    }
}

/// The bytes of a file.
#[derive(Clone)]
enum Data {
    Map(Arc<Mmap>),
    Memory(Arc<Vec<u8>>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

/// Name, length and time of change of a file: enough to tell whether it is still the same one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileStamp {
    /// File name without its folder.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Nanoseconds since 1970, 0 where that is not known.
    pub modified: u64,
}

/// The tensors of one published model part, from one file or several.
#[derive(Debug, Clone)]
pub struct Source {
    files: Vec<(FileStamp, Data)>,
    tensors: BTreeMap<String, Entry>,
    /// Keys of dictionaries around the weights of a PyTorch file.
    path: Vec<String>,
}

impl Source {
    /// The files it is read from.
    pub fn files(&self) -> impl Iterator<Item = &FileStamp> {
        self.files.iter().map(|(stamp, _)| stamp)
    }

    /// Keys under which a PyTorch file kept the weights, outermost first.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// All tensors by the names of the file.
    pub fn tensors(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// One tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// Turns MLX's packed words into what they stand for: a matrix of `columns` columns. Other tensors stay as they
    /// are.
    ///
    /// # Errors
    /// [`Error::WeightFile`] when words, scales and biases do not fit one another or `columns`.
    pub(super) fn unpack(&mut self, name: &str, columns: usize) -> Result<()> {
        let Some(affine) = mlx::affine(self, name, columns)? else { return Ok(()) };
        for companion in [&affine.scales, &affine.biases] {
            let entry = self.tensors.get(companion);
            if !entry.is_some_and(|entry| matches!(entry.encoding, Encoding::F32 | Encoding::F16 | Encoding::BF16)) {
                return Err(Error::WeightFile(format!("MLX tensor {companion:?} must be F32, F16 or BF16")));
            }
        }
        if let Some(entry) = self.tensors.get_mut(name) {
            entry.shape = vec![entry.shape[0], columns];
            entry.encoding = Encoding::Affine(affine);
        }
        Ok(())
    }

    /// Whether a tensor only says how to read another one.
    pub(super) fn is_companion(&self, name: &str) -> bool {
        let stem = [".scales", ".biases"].iter().find_map(|suffix| name.strip_suffix(suffix));
        stem.is_some_and(|stem| {
            let packed = [stem.to_owned(), format!("{stem}.weight")];
            packed.iter().any(|packed| {
                let words = self.entry(packed).map(|entry| &entry.encoding);
                matches!(words, Some(Encoding::Affine(_))) || words == Some(&Encoding::Other("U32".into()))
            })
        })
    }

    /// Appends `count` values from value `first` on. Both must be whole blocks of the encoding.
    ///
    /// # Errors
    /// [`Error::Tensor`] with the tensor's name for one that does not exist, does not have these values or holds no
    /// weights; [`Error::WeightFile`] for values that the file does not have.
    pub fn read(&self, name: &str, first: usize, count: usize, out: &mut Vec<f32>) -> Result<()> {
        named(name, self.read_values(name, first, count, out))
    }

    fn read_values(&self, name: &str, first: usize, count: usize, out: &mut Vec<f32>) -> Result<()> {
        let Some(entry) = self.entry(name) else { return Err(Error::Tensor("it is missing".into())) };
        if first.checked_add(count).is_none_or(|end| end > entry.values()) {
            return Err(Error::Tensor(format!("values from {first} to {first} + {count} do not exist")));
        }
        let block = entry.encoding.granularity();
        if !first.is_multiple_of(block) || !count.is_multiple_of(block) {
            return Err(Error::Tensor(format!("its rows are no whole blocks of {block} values")));
        }
        if let Encoding::Other(kind) = &entry.encoding {
            return Err(Error::Tensor(format!("its values are {kind} and must be floats or a known quantization")));
        }
        let bytes = self.bytes_of(entry)?;
        if let Some(strides) = &entry.strides {
            return gather(entry, strides, bytes, first, count, out);
        }
        let range = |first: usize, count: usize| {
            let start = entry.encoding.bytes(first)?;
            bytes.get(start..start.checked_add(entry.encoding.bytes(count)?)?)
        };
        let Some(values) = range(first, count) else {
            return Err(Error::WeightFile("its values do not lie within the file".into()));
        };
        if let Encoding::Affine(affine) = &entry.encoding {
            let (mut scales, mut biases) = (Vec::new(), Vec::new());
            self.read_values(&affine.scales, first / block, count / block, &mut scales)?;
            self.read_values(&affine.biases, first / block, count / block, &mut biases)?;
            mlx::decode(affine, values, &scales, &biases, out);
            return Ok(());
        }
        entry.encoding.decode(values, out)
    }

    fn bytes_of(&self, entry: &Entry) -> Result<&[u8]> {
        let file = self.files.get(entry.file).map(|(_, data)| data.bytes()).unwrap_or_default();
        let end = entry.offset.checked_add(entry.bytes);
        end.and_then(|end| file.get(entry.offset..end))
            .ok_or_else(|| Error::WeightFile("its values do not lie within the file".into()))
    }

    /// Checks that every tensor lies within its file, so that an incomplete download is known before any work.
    fn check(&self) -> Result<()> {
        for (name, entry) in &self.tensors {
            if self.bytes_of(entry).is_err() {
                let file = self.files.get(entry.file).map_or("", |(stamp, _)| &stamp.name);
                return Err(Error::WeightFile(format!("tensor {name:?} goes on after the end of {file:?}")));
            }
        }
        Ok(())
    }

    /// Tells the system that the pages of a tensor are not needed any more, so that reading a large file does not
    /// push out everything else.
    pub(super) fn release(&self, name: &str) {
        #[cfg(unix)]
        if let Some(entry) = self.entry(name)
            && let Some((_, Data::Map(map))) = self.files.get(entry.file)
            && entry.offset.checked_add(entry.bytes).is_some_and(|end| end <= map.len())
        {
            // SAFETY: the map is shared, read-only and backed by the file; a page that is dropped is read again.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, entry.offset, entry.bytes) };
        }
        #[cfg(not(unix))]
        let _ = name;
    }
}

/// Reads a tensor whose values do not lie one after the other.
fn gather(
    entry: &Entry,
    strides: &[usize],
    bytes: &[u8],
    first: usize,
    count: usize,
    out: &mut Vec<f32>,
) -> Result<()> {
    let size = entry.encoding.bytes(1).unwrap_or(1);
    for index in first..first + count {
        let (mut rest, mut at) = (index, 0usize);
        for (&dim, &stride) in entry.shape.iter().zip(strides).rev() {
            at += rest % dim * stride;
            rest /= dim;
        }
        let value = at.checked_mul(size).and_then(|start| bytes.get(start..start.checked_add(size)?));
        let Some(value) = value else {
            return Err(Error::WeightFile("its values do not lie within the file".into()));
        };
        entry.encoding.decode(value, out)?;
    }
    Ok(())
}
