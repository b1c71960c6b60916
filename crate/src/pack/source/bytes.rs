//! Reading numbers and strings from bytes that nobody has checked.

use crate::error::{Error, Result};

/// A place in untrusted bytes. Every read is checked against the end; nothing is allocated.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    /// What is read, for messages.
    what: &'static str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], position: usize, what: &'static str) -> Self {
        Self { bytes, position, what }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let end = self.position.checked_add(length);
        match end.and_then(|end| self.bytes.get(self.position..end)) {
            Some(bytes) => {
                self.position += length;
                Ok(bytes)
            }
            None => Err(Error::WeightFile(format!(
                "{} ends at byte {} where {length} bytes from {} on are needed",
                self.what,
                self.bytes.len(),
                self.position
            ))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A 64-bit length as an index into memory.
    pub(super) fn length(&mut self) -> Result<usize> {
        let length = self.u64()?;
        usize::try_from(length).map_err(|_| {
            Error::WeightFile(format!("{} names a length of {length}, more than memory can hold", self.what))
        })
    }

    /// `length` bytes of UTF-8.
    pub(super) fn text(&mut self, length: usize) -> Result<&'a str> {
        let (what, position) = (self.what, self.position);
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| Error::WeightFile(format!("{what} has text at byte {position} that is not UTF-8")))
    }

    /// Bytes up to and without the next line feed, which is skipped.
    pub(super) fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        // Names of Python modules are short; a longer line is not one.
        let length = rest.iter().take(512).position(|&byte| byte == b'\n');
        let length = length.ok_or_else(|| Error::WeightFile(format!("{} has a line without an end", self.what)))?;
        let text = self.text(length)?;
        self.position += 1;
        Ok(text)
    }
}
