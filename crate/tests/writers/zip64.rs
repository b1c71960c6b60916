//! Zip archives with the 64-bit extension, as PyTorch writes its files (APPNOTE.TXT, sections 4.3.14, 4.3.15, 4.5.3).

/// Which numbers of an entry stand in 64 bits, with `0xffffffff` in their usual place.
#[derive(Clone, Copy)]
pub struct Wide {
    pub lengths: bool,
    pub offset: bool,
}

impl Wide {
    pub const ALL: Self = Self { lengths: true, offset: true };

    /// Those that do not fit into 32 bits, as PyTorch does it.
    pub fn needed(length: u64, offset: u64) -> Self {
        let wide = |number: u64| number >= u64::from(u32::MAX);
        Self { lengths: wide(length), offset: wide(offset) }
    }
}

/// The extra field for numbers of 64 bits, behind another one: PyTorch pads its local headers with that.
fn extra(numbers: &[u64]) -> Vec<u8> {
    let mut extra = b"FB\x05\x00ZZZZZ".to_vec();
    if !numbers.is_empty() {
        extra.extend([1, 0]);
        extra.extend((8 * numbers.len() as u16).to_le_bytes());
        extra.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    extra
}

/// The numbers of an entry that stand in its extra field.
fn wide_numbers(length: u64, offset: Option<u64>, wide: Wide) -> Vec<u64> {
    let mut numbers = if wide.lengths { vec![length; 2] } else { Vec::new() };
    numbers.extend(offset.filter(|_| wide.offset));
    numbers
}

/// The fields that local headers and the directory share.
fn common(name: &str, length: u64, extra: &[u8], wide: Wide) -> Vec<u8> {
    let length = (if wide.lengths { u32::MAX } else { length as u32 }).to_le_bytes();
    let names = [(name.len() as u16).to_le_bytes(), (extra.len() as u16).to_le_bytes()].concat();
    // Version, flags, method, time, date, sum.
    [&[45, 0][..], &[0; 12], &length, &length, &names].concat()
}

/// A local header; the bytes of the entry follow it.
pub fn local(name: &str, length: u64, wide: Wide) -> Vec<u8> {
    let extra = extra(&wide_numbers(length, None, wide));
    [&b"PK\x03\x04"[..], &common(name, length, &extra, wide), name.as_bytes(), &extra].concat()
}

/// An entry of the directory.
pub fn entry(name: &str, length: u64, offset: u64, wide: Wide) -> Vec<u8> {
    let extra = extra(&wide_numbers(length, Some(offset), wide));
    let common = common(name, length, &extra, wide);
    let offset = (if wide.offset { u32::MAX } else { offset as u32 }).to_le_bytes();
    [&b"PK\x01\x02"[..], &[45, 0], &common, &[0; 10], &offset, name.as_bytes(), &extra].concat()
}

/// What follows a directory of `length` bytes at `start`: the 64-bit record, the locator that leads to it, and the end
/// record, none of whose numbers is the true one.
pub fn end(count: u64, start: u64, length: u64) -> Vec<u8> {
    let [record, count, start, length] = [start + length, count, start, length].map(u64::to_le_bytes);
    let record_64 = [&b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0"[..], &[0; 8], &count, &count, &length, &start];
    let locator = [&b"PK\x06\x07"[..], &[0; 4], &record, &[1, 0, 0, 0]];
    let end = [&b"PK\x05\x06"[..], &[0; 4], &[0xff; 12], &[0; 2]];
    [record_64.concat(), locator.concat(), end.concat()].concat()
}

/// A small archive in which all that may stand in 64 bits does, as far as `wide` says so of its entries.
pub fn zip(entries: &[(String, Vec<u8>)], wide: Wide) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::<u8>::new(), Vec::<u8>::new());
    for (name, bytes) in entries {
        let length = bytes.len() as u64;
        directory.extend(entry(name, length, out.len() as u64, wide));
        out.extend(local(name, length, wide));
        out.extend(bytes);
    }
    let end = end(entries.len() as u64, out.len() as u64, directory.len() as u64);
    [out, directory, end].concat()
}
