//! The directory of a zip archive, as far as PyTorch's files need it: entries that are stored, not compressed.
//!
//! Layout as in PKWARE's APPNOTE.TXT, sections 4.3.6 to 4.3.16, with the 64-bit extension that archives above 4 GiB
//! have. Nothing is unpacked: an entry is a range of the file.

use std::collections::HashMap;
use std::ops::Range;

use super::bytes::Cursor;
use crate::error::{Error, Result};

/// What an archive begins with.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

const ENTRY: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;

/// Bytes of a local header without its name and extra field.
const LOCAL_BYTES: usize = 30;
/// Bytes of the end record, and of the longest comment after it.
const END_BYTES: usize = 22;
const MAX_COMMENT: usize = 0xffff;
/// Most entries; a checkpoint has one for each tensor.
const MAX_ENTRIES: u64 = 1 << 18;

fn wrong<T>(reason: impl std::fmt::Display) -> Result<T> {
    Err(Error::WeightFile(format!("zip archive: {reason}")))
}

/// A zip archive in memory.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    /// Offset of the local header, and length, by name.
    entries: HashMap<&'a str, (usize, usize)>,
}

impl<'a> Archive<'a> {
    /// Reads the directory.
    ///
    /// # Errors
    /// [`Error::WeightFile`] for an archive that is cut short, damaged, encrypted or compressed, and for one whose entries
    /// overlap.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self> {
        let (count, start) = directory(bytes)?;
        let mut cursor = Cursor::new(bytes, start, "the zip archive");
        let mut entries = HashMap::new();
        for _ in 0..count {
            let (name, local, length) = read_entry(&mut cursor)?;
            if entries.insert(name, (local, length)).is_some() {
                return wrong(format!("the entry {name:?} is there twice"));
            }
        }
        apart(&entries, start)?;
        Ok(Self { bytes, entries })
    }

    /// Names of all entries, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.keys().copied()
    }

    /// Where the bytes of an entry lie in the file; `None` where there is no such entry.
    ///
    /// # Errors
    /// [`Error::WeightFile`] when the entry does not lie within the file.
    pub(super) fn range(&self, name: &str) -> Result<Option<Range<usize>>> {
        let Some(&(local, length)) = self.entries.get(name) else { return Ok(None) };
        let mut cursor = Cursor::new(self.bytes, local, "the zip archive");
        if cursor.u32()? != LOCAL {
            return wrong(format!("the entry {name:?} has no header"));
        }
        cursor.take(22)?;
        let (name_length, extra) = (cursor.u16()?, cursor.u16()?);
        cursor.take(usize::from(name_length) + usize::from(extra))?;
        let start = cursor.position();
        cursor.take(length)?;
        Ok(Some(start..start + length))
    }
}

/// Checks that every entry ends before the next one, or the directory at `directory`, begins.
fn apart(entries: &HashMap<&str, (usize, usize)>, directory: usize) -> Result<()> {
    let mut order: Vec<(usize, usize, &str)> =
        entries.iter().map(|(&name, &(local, length))| (local, length, name)).collect();
    order.sort_unstable();
    let next = order.iter().skip(1).map(|&(local, ..)| local).chain([directory]);
    for (&(local, length, name), next) in order.iter().zip(next) {
        let end = local.checked_add(length).and_then(|end| end.checked_add(LOCAL_BYTES + name.len()));
        if end.is_none_or(|end| end > next) {
            return wrong(format!("the entry {name:?} runs into what follows it"));
        }
    }
    Ok(())
}

/// Number of entries and offset of the first one.
fn directory(bytes: &[u8]) -> Result<(u64, usize)> {
    let first = bytes.len().saturating_sub(END_BYTES + MAX_COMMENT);
    let tail = &bytes[first..];
    let Some(end) = tail.windows(END.len()).rposition(|window| window == END) else {
        return wrong("it has no directory at its end, so it was not downloaded whole");
    };
    let end = first + end;
    let mut cursor = Cursor::new(bytes, end + 10, "the zip archive");
    let count = u64::from(cursor.u16()?);
    let _bytes = cursor.u32()?;
    let offset = cursor.u32()?;
    let comment = cursor.u16()?;
    cursor.take(usize::from(comment))?;
    let (count, offset) = match end.checked_sub(20) {
        // A number that does not fit stands in the 64-bit record, to which a locator before the end record leads.
        Some(locator) if count == 0xffff || offset == u32::MAX => {
            let mut cursor = Cursor::new(bytes, locator, "the zip archive");
            if cursor.u32()? == LOCATOR_64 {
                let _disk = cursor.u32()?;
                let record = cursor.length()?;
                let mut cursor = Cursor::new(bytes, record, "the zip archive");
                if cursor.u32()? != END_64 {
                    return wrong("its 64-bit directory is not where it should be");
                }
                cursor.take(28)?;
                let count = cursor.u64()?;
                let _bytes = cursor.u64()?;
                (count, cursor.length()?)
            } else {
                (count, offset as usize)
            }
        }
        _ => (count, offset as usize),
    };
    if count > MAX_ENTRIES {
        return wrong(format!("{count} entries are more than any checkpoint has"));
    }
    Ok((count, offset))
}

/// Name, offset of the local header, and length.
fn read_entry<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, usize, usize)> {
    if cursor.u32()? != ENTRY {
        return wrong("its directory is damaged");
    }
    cursor.take(4)?;
    let (flags, method) = (cursor.u16()?, cursor.u16()?);
    cursor.take(8)?;
    let (packed, length) = (cursor.u32()?, cursor.u32()?);
    let (name_length, extra_length, comment) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
    cursor.take(8)?;
    let local = cursor.u32()?;
    let name = cursor.text(usize::from(name_length))?;
    let extra = cursor.take(usize::from(extra_length))?;
    cursor.take(usize::from(comment))?;
    let mut numbers = [u64::from(length), u64::from(packed), u64::from(local)];
    extend_64(extra, &mut numbers)?;
    let [length, packed, local] = numbers;
    if flags & 1 != 0 || method != 0 || packed != length {
        return wrong(format!("the entry {name:?} is compressed or encrypted, PyTorch stores its entries plainly"));
    }
    match (usize::try_from(local), usize::try_from(length)) {
        (Ok(local), Ok(length)) => Ok((name, local, length)),
        _ => wrong(format!("the entry {name:?} is longer than memory can hold")),
    }
}

/// Takes the numbers that do not fit into 32 bits from the extra field of the 64-bit extension, in its order.
fn extend_64(extra: &[u8], numbers: &mut [u64; 3]) -> Result<()> {
    let mut cursor = Cursor::new(extra, 0, "a 64-bit zip entry");
    while cursor.position() + 4 <= extra.len() {
        let (id, length) = (cursor.u16()?, cursor.u16()?);
        let content = cursor.take(usize::from(length))?;
        if id == 1 {
            let mut cursor = Cursor::new(content, 0, "a 64-bit zip entry");
            for number in numbers.iter_mut().filter(|number| **number == u64::from(u32::MAX)) {
                *number = cursor.u64()?;
            }
            return Ok(());
        }
    }
    Ok(())
}
