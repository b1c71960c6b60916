//! GGUF files, versions 2 and 3, as `docs/gguf.md` of ggml describes them.

use std::collections::{BTreeMap, HashMap};

use super::bytes::Cursor;
use super::encoding::Encoding;
use super::ggml::Block;
use super::{Entry, MAX_RANK, MAX_TENSORS};
use crate::error::{Error, Result};

/// What a GGUF file begins with.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// Longest name of a key or tensor in bytes.
const MAX_NAME: usize = 1 << 10;
/// Most keys of metadata; a vocabulary is one key.
const MAX_KEYS: u64 = 1 << 16;
/// ComfyUI-GGUF's key for shapes of more axes than ggml has.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

fn wrong<T>(reason: String) -> Result<T> {
    Err(Error::WeightFile(format!("GGUF: {reason}")))
}

/// What the metadata says that matters here.
struct Metadata<'a> {
    alignment: usize,
    shapes: HashMap<&'a str, Vec<usize>>,
}

/// Lists the tensors of a GGUF file. ggml names the axis that changes fastest first; here it comes last.
///
/// # Errors
/// [`Error::WeightFile`] for a file that is damaged, of another version or of big-endian machines, and for one whose
/// tensors overlap.
pub(super) fn list(bytes: &[u8], file: usize) -> Result<BTreeMap<String, Entry>> {
    let mut cursor = Cursor::new(bytes, 0, "the GGUF file");
    if cursor.take(4)? != MAGIC {
        return wrong("the file does not begin with its mark".into());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return wrong(format!("version {version:#x} is not read, versions 2 and 3 are"));
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    if tensors > MAX_TENSORS as u64 || keys > MAX_KEYS {
        return wrong(format!("{tensors} tensors and {keys} keys are more than any model has"));
    }
    let metadata = read_metadata(&mut cursor, keys)?;
    let mut found = Vec::new();
    for _ in 0..tensors {
        found.push(read_tensor(&mut cursor)?);
    }
    let Some(data) = cursor.position().checked_next_multiple_of(metadata.alignment) else {
        return wrong("the header is longer than can be counted".into());
    };
    let mut entries = BTreeMap::new();
    for Tensor { name, dims, encoding, offset } in found {
        let Some(values) = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)) else {
            return wrong(format!("tensor {name:?} has more values than can be counted"));
        };
        let row = dims.last().copied().unwrap_or(1);
        if !row.is_multiple_of(encoding.granularity()) {
            return wrong(format!("rows of {row} values of tensor {name:?} are no whole blocks of {encoding}"));
        }
        let length = match &encoding {
            // It stays in the list to be named if it is needed; it is never read.
            Encoding::Other(_) => Some(0),
            known => known.bytes(values),
        };
        let offset = data.checked_add(offset);
        let (Some(offset), Some(length)) = (offset, length) else {
            return wrong(format!("tensor {name:?} lies beyond what can be counted"));
        };
        let shape = match metadata.shapes.get(name) {
            Some(original) if original.iter().try_fold(1usize, |p, &d| p.checked_mul(d)) == Some(values) => {
                original.clone()
            }
            Some(original) => return wrong(format!("tensor {name:?} of {values} values is said to be {original:?}")),
            None => dims,
        };
        let entry = Entry { shape, encoding, file, offset, bytes: length, strides: None };
        if entries.insert(name.to_owned(), entry).is_some() {
            return wrong(format!("tensor {name:?} is there twice"));
        }
    }
    apart(&entries)?;
    Ok(entries)
}

/// Checks that no two tensors share bytes.
fn apart(entries: &BTreeMap<String, Entry>) -> Result<()> {
    // One of an unknown type has no known length.
    let known = entries.iter().filter(|(_, entry)| entry.bytes > 0);
    let mut order: Vec<(usize, usize, &str)> =
        known.map(|(name, entry)| (entry.offset, entry.bytes, name.as_str())).collect();
    order.sort_unstable();
    for pair in order.windows(2) {
        let ((offset, bytes, name), (next, _, other)) = (pair[0], pair[1]);
        if bytes > next - offset {
            return wrong(format!("tensors {name:?} and {other:?} overlap"));
        }
    }
    Ok(())
}

struct Tensor<'a> {
    name: &'a str,
    dims: Vec<usize>,
    encoding: Encoding,
    /// From the begin of the data.
    offset: usize,
}

fn read_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str> {
    let length = cursor.length()?;
    if length > MAX_NAME {
        return wrong(format!("a name of {length} bytes is too long"));
    }
    cursor.text(length)
}

fn read_tensor<'a>(cursor: &mut Cursor<'a>) -> Result<Tensor<'a>> {
    let name = read_name(cursor)?;
    let rank = cursor.u32()? as usize;
    if rank > MAX_RANK {
        return wrong(format!("tensor {name:?} has {rank} axes, at most {MAX_RANK} are possible"));
    }
    let mut dims = Vec::with_capacity(rank);
    for _ in 0..rank {
        dims.push(cursor.length()?);
    }
    dims.reverse();
    let encoding = match cursor.u32()? {
        0 => Encoding::F32,
        1 => Encoding::F16,
        2 => Encoding::Ggml(Block::Q4_0),
        8 => Encoding::Ggml(Block::Q8_0),
        12 => Encoding::Ggml(Block::Q4K),
        13 => Encoding::Ggml(Block::Q5K),
        14 => Encoding::Ggml(Block::Q6K),
        28 => Encoding::F64,
        30 => Encoding::BF16,
        kind => Encoding::Other(format!("ggml type {kind}{}", known_name(kind))),
    };
    Ok(Tensor { name, dims, encoding, offset: cursor.length()? })
}

/// Types that city96's files use and that are not read.
fn known_name(kind: u32) -> &'static str {
    match kind {
        3 => " (Q4_1)",
        6 => " (Q5_0)",
        7 => " (Q5_1)",
        10 => " (Q2_K)",
        11 => " (Q3_K)",
        _ => "",
    }
}

fn read_metadata<'a>(cursor: &mut Cursor<'a>, keys: u64) -> Result<Metadata<'a>> {
    let mut metadata = Metadata { alignment: 32, shapes: HashMap::new() };
    for _ in 0..keys {
        let key = read_name(cursor)?;
        let kind = cursor.u32()?;
        if key == "general.alignment" && kind == 4 {
            metadata.alignment = cursor.u32()? as usize;
            if !metadata.alignment.is_power_of_two() || metadata.alignment > 1 << 20 {
                return wrong(format!("an alignment of {} is not possible", metadata.alignment));
            }
        } else if let (Some(name), 9) = (key.strip_prefix(ORIGINAL_SHAPE), kind) {
            metadata.shapes.insert(name, read_shape(cursor, name)?);
        } else {
            skip_value(cursor, kind, 0)?;
        }
    }
    Ok(metadata)
}

fn read_shape(cursor: &mut Cursor<'_>, name: &str) -> Result<Vec<usize>> {
    let (kind, count) = (cursor.u32()?, cursor.length()?);
    if kind != 5 || count > MAX_RANK {
        return wrong(format!("the shape of tensor {name:?} is no list of up to {MAX_RANK} numbers"));
    }
    let mut shape = Vec::with_capacity(count);
    for _ in 0..count {
        let dim = cursor.i32()?;
        let Ok(dim) = usize::try_from(dim) else {
            return wrong(format!("the shape of tensor {name:?} has an axis of {dim}"));
        };
        shape.push(dim);
    }
    Ok(shape)
}

/// Skips a value of metadata. Arrays may hold arrays, but nobody nests them deeply.
fn skip_value(cursor: &mut Cursor<'_>, kind: u32, depth: usize) -> Result<()> {
    let size = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        8 => cursor.length()?,
        9 if depth < 4 => {
            let (kind, count) = (cursor.u32()?, cursor.length()?);
            let size = match kind {
                0 | 1 | 7 => Some(1),
                2 | 3 => Some(2),
                4..=6 => Some(4),
                10..=12 => Some(8),
                _ => None,
            };
            if let Some(size) = size {
                let Some(bytes) = count.checked_mul(size) else {
                    return wrong("an array is longer than can be counted".into());
                };
                cursor.take(bytes)?;
            } else {
                // Each element takes at least the bytes of its length, so the end of the file ends this.
                for _ in 0..count {
                    skip_value(cursor, kind, depth + 1)?;
                }
            }
            return Ok(());
        }
        _ => return wrong(format!("a value has the unknown type {kind}")),
    };
    cursor.take(size)?;
    Ok(())
}
