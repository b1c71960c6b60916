//! Headers that lie on purpose: lengths that overflow, offsets that overlap, counts without end. Each is a typed error,
//! and none makes a reader take more memory than the file justifies.

mod counted;
mod writers;

use counted::{justified, most};
use kinora::Error;
use kinora::pack::source::Source;
use writers::{File, Kind, stored};

fn open(bytes: Vec<u8>) -> kinora::Result<Source> {
    Source::from_bytes("test", bytes, None)
}

/// Opens a file and reads all of it; it must be refused for what it is, and cheaply.
#[track_caller]
fn refused(what: &str, bytes: Vec<u8>, says: &str) {
    let length = bytes.len();
    let (result, peak) = most(|| {
        let source = open(bytes)?;
        let mut out = Vec::new();
        source.tensors().iter().try_for_each(|(name, entry)| source.read(name, 0, entry.values(), &mut out))
    });
    let error = result.expect_err(what);
    assert!(matches!(&error, Error::WeightFile(reason) if reason.contains(says)), "{what}: {error}");
    assert!(peak <= justified(length), "{what}: {peak} bytes for a file of {length}");
}

/// A safetensors file with this header and so many bytes of values.
fn headed(header: &str, values: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; values]].concat()
}

fn tensor(name: &str, dtype: &str, shape: &str, offsets: [u64; 2]) -> String {
    format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":{offsets:?}}}")
}

#[test]
fn hostile_safetensors_end_in_an_error() {
    let one = |dtype: &str, shape: &str, offsets| format!("{{{}}}", tensor("x", dtype, shape, offsets));
    let two = |first, second| format!("{{{},{}}}", tensor("x", "F32", "2", first), tensor("y", "F32", "2", second));
    open(headed(&one("F32", "2", [0, 8]), 8)).unwrap();
    open(headed(&two([0, 8], [8, 16]), 16)).unwrap();
    let lengths = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    for length in [3, 100_000_000, 100_000_001, 1 << 32, i64::MAX as u64, u64::MAX - 8, u64::MAX] {
        refused(&format!("a header of {length} bytes"), lengths(length), "safetensors: ");
    }
    let huge = 1u64 << 61;
    for (what, bytes) in [
        ("no header", headed("", 8)),
        ("the same bytes twice", headed(&two([0, 8], [0, 8]), 8)),
        ("bytes that overlap", headed(&two([0, 8], [4, 12]), 12)),
        ("a tensor in another one", headed(&two([0, 16], [4, 12]), 16)),
        ("bytes that nobody has", headed(&two([0, 8], [16, 24]), 24)),
        ("an end before the begin", headed(&one("F32", "2", [8, 0]), 8)),
        ("an end behind the file", headed(&one("F32", "2", [0, 8]), 4)),
        ("bytes behind the end", headed(&one("F32", "2", [0, 8]), 12)),
        ("offsets beyond all counting", headed(&one("F32", "2", [u64::MAX - 8, u64::MAX]), 8)),
        ("more bytes than its shape has", headed(&one("F32", "1", [0, 8]), 8)),
        ("a shape beyond all counting", headed(&one("F32", "4294967296,4294967296,2", [0, 8]), 8)),
        ("bits beyond all counting", headed(&one("F32", &huge.to_string(), [0, 8]), 8)),
        ("a length below 0", headed(&one("F32", "-2", [0, 8]), 8)),
        ("a length that is no number", headed(&one("F32", "1e400", [0, 8]), 8)),
        ("a length of 65 bits", headed(&one("F32", "18446744073709551616", [0, 8]), 8)),
        ("an unknown type", headed(&one("F33", "2", [0, 8]), 8)),
        ("one name for two tensors", headed(&two([0, 8], [8, 16]).replace('y', "x"), 16)),
        ("lists in lists", headed(&"[".repeat(1 << 16), 0)),
        ("objects in objects", headed(&"{\"x\":".repeat(1 << 14), 0)),
        ("axes without end", headed(&one("F32", &vec!["9"; 1 << 16].join(","), [0, 8]), 8)),
    ] {
        refused(what, bytes, "safetensors: ");
    }
    let many: Vec<String> = (0..=1 << 17).map(|index| tensor(&index.to_string(), "U8", "0", [0, 0])).collect();
    refused("more tensors than any model", headed(&format!("{{{}}}", many.join(",")), 0), "more than any model has");
    // Eight tensors that end where counting does. The crate adds the header to that: without checks, as in a release, the
    // sum is a wrong length; with them it panics, which no build that anyone uses does.
    if !cfg!(debug_assertions) {
        let length = huge - 1;
        let eight =
            (0..8).map(|at| tensor(&at.to_string(), "U8", &length.to_string(), [at * length, (at + 1) * length]));
        refused("a sum beyond all counting", headed(&format!("{{{}}}", eight.collect::<Vec<_>>().join(",")), 8), "");
    }
}

/// A text of GGUF, with its length in front or another one.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A GGUF file that says it has so many tensors and keys, and what follows.
fn gguf(tensors: u64, keys: u64, rest: &[Vec<u8>]) -> Vec<u8> {
    [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes(), &rest.concat()].concat()
}

fn described(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let rank = (dims.len() as u32).to_le_bytes();
    [text(name), rank.to_vec(), dims_bytes, kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
}

#[test]
fn hostile_gguf_files_end_in_an_error() {
    let values = |rest: Vec<u8>| vec![rest, vec![0; 512]];
    let one = |dims: &[u64], kind: u32, offset: u64| gguf(1, 0, &values(described("x", dims, kind, offset)));
    let two = |first: u64, second: u64| {
        let both = [described("x", &[16], 0, first), described("y", &[16], 0, second)].concat();
        gguf(2, 0, &values(both))
    };
    let number = |value: u64| value.to_le_bytes().to_vec();
    let key = |name: &str, kind: u32, value: Vec<u8>| [text(name), kind.to_le_bytes().to_vec(), value].concat();
    let list = |kind: u32, count: u64, items: &[u8]| [&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat();
    let with_key = |value: Vec<u8>| gguf(0, 1, &[value]);
    let shaped = |shape: Vec<u8>| {
        gguf(1, 1, &values([key("comfy.gguf.orig_shape.x", 9, shape), described("x", &[16], 0, 0)].concat()))
    };
    let aligned = |to: u32| {
        gguf(
            1,
            1,
            &values([key("general.alignment", 4, to.to_le_bytes().into()), described("x", &[16], 0, 0)].concat()),
        )
    };
    for good in [one(&[16], 0, 0), two(0, 64), two(64, 0), shaped(list(5, 1, &[16, 0, 0, 0])), aligned(64)] {
        open(good).unwrap();
    }
    for (what, bytes, says) in [
        ("tensors without end", gguf(u64::MAX, 0, &[]), "more than any model has"),
        ("one tensor too many", gguf((1 << 17) + 1, 0, &[]), "more than any model has"),
        ("as many tensors as may be", gguf(1 << 17, 0, &[]), "ends at byte"),
        ("keys without end", gguf(0, u64::MAX, &[]), "more than any model has"),
        ("as many keys as may be", gguf(0, 1 << 16, &[]), "ends at byte"),
        ("a name without end", gguf(0, 1, &[number(u64::MAX)]), "too long"),
        ("a name longer than the file", gguf(0, 1, &[number(1 << 10)]), "ends at byte"),
        ("a tensor's name without end", gguf(1, 0, &[number(u64::MAX)]), "too long"),
        ("a text without end", with_key(key("k", 8, number(u64::MAX))), "ends at byte"),
        ("a text longer than the file", with_key(key("k", 8, number(1 << 40))), "ends at byte"),
        ("a list without end", with_key(key("k", 9, list(10, u64::MAX, &[]))), "longer than can be counted"),
        ("a list longer than the file", with_key(key("k", 9, list(0, 1 << 60, &[]))), "ends at byte"),
        ("texts without end", with_key(key("k", 9, list(8, u64::MAX, &[0; 4096]))), "ends at byte"),
        ("lists without end", with_key(key("k", 9, list(9, u64::MAX, &[0; 4096]))), "ends at byte"),
        ("lists in lists", with_key(key("k", 9, [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(64))), "type 9"),
        ("values of no type", with_key(key("k", 9, list(13, 1, &[0; 64]))), "type 13"),
        ("a value of no type", with_key(key("k", u32::MAX, Vec::new())), "unknown type"),
        ("axes without end", gguf(1, 0, &[text("x"), vec![0xff; 4]]), "axes"),
        ("a shape beyond all counting", one(&[1 << 32, 1 << 32], 0, 0), "more values than can be counted"),
        ("bytes beyond all counting", one(&[u64::MAX], 0, 0), "beyond what can be counted"),
        ("Q8_0 beyond all counting", one(&[u64::MAX - 31], 8, 0), "beyond what can be counted"),
        ("Q5_K that is longer than the file", one(&[1 << 40], 13, 0), "goes on after the end"),
        ("a row that is no whole block", one(&[255], 12, 0), "no whole blocks"),
        ("an offset beyond all counting", one(&[16], 0, u64::MAX), "beyond what can be counted"),
        ("an offset behind the file", one(&[16], 0, 1 << 40), "goes on after the end"),
        ("the same bytes twice", two(64, 64), "overlap"),
        ("bytes that overlap", two(32, 0), "overlap"),
        ("one name for two tensors", two(0, 64).iter().map(|&b| if b == b'y' { b'x' } else { b }).collect(), "twice"),
        ("an alignment of 0", aligned(0), "alignment of 0"),
        ("an alignment that is no power of 2", aligned(3), "alignment of 3"),
        ("an alignment beyond the file", aligned(1 << 20), "goes on after the end"),
        ("an alignment beyond all bounds", aligned(1 << 31), "alignment of 2147483648"),
        ("more axes than there can be", shaped(list(5, u64::MAX, &[])), "no list of up to 8"),
        ("an axis below 0", shaped(list(5, 1, &[0xff; 4])), "axis of -1"),
        ("another number of values", shaped(list(5, 1, &[17, 0, 0, 0])), "is said to be"),
        ("axes beyond all counting", shaped(list(5, 8, &[0xff, 0xff, 0xff, 0x7f].repeat(8))), "is said to be"),
    ] {
        refused(what, bytes, says);
    }
}

fn small() -> File {
    let numbers: Vec<f32> = (0..12).map(|index| index as f32 - 4.0).collect();
    File::from([
        ("bias".into(), stored(Kind::F16, &[3], &numbers[..3])),
        ("weight".into(), stored(Kind::F32, &[3, 4], &numbers)),
    ])
}

/// The 64-bit extension is in `zip64.rs`.
#[test]
fn hostile_archives_end_in_an_error() {
    let good = writers::torch(&small(), None);
    open(good.clone()).unwrap();
    let end = good.len() - 22;
    let first = good.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let second = first + 46 + "archive/data.pkl".len();
    let local = good.windows(4).rposition(|window| window == b"PK\x03\x04").unwrap();
    let put = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let lengths = |length: u32| put(first + 20, &[length.to_le_bytes(), length.to_le_bytes()].concat());
    let offset = |entry: usize, offset: u32| put(entry + 42, &offset.to_le_bytes());
    let start = |offset: u32| put(end + 16, &offset.to_le_bytes());
    for (what, bytes, says) in [
        ("an entry too many", put(end + 10, &[4, 0]), "directory is damaged"),
        ("an entry too few", put(end + 10, &[2, 0]), "are missing"),
        ("65535 entries", put(end + 10, &[0xff; 2]), "directory is damaged"),
        ("a directory behind the end", start(u32::MAX - 1), "ends at byte"),
        ("a directory that needs 64 bits and has none", start(u32::MAX), "ends at byte"),
        ("a directory somewhere else", start(4), "directory is damaged"),
        ("a comment longer than the file", put(end + 20, &[0xff; 2]), "ends at byte"),
        ("a name longer than the file", put(first + 28, &[0xff; 2]), "ends at byte"),
        ("an extra field longer than the file", put(first + 30, &[0xff; 2]), "ends at byte"),
        ("a name that is no text", put(first + 46, &[0xff]), "not UTF-8"),
        ("an entry longer than the file", lengths(1 << 30), "runs into"),
        ("an entry that needs 64 bits and has none", lengths(u32::MAX), "runs into"),
        ("an entry that runs into the next one", lengths((good.len() / 2) as u32), "runs into"),
        ("two entries in one place", offset(second, 0), "runs into"),
        ("an entry within another one", offset(second, 8), "runs into"),
        ("an entry behind the directory", offset(first, end as u32), "runs into"),
        ("an entry that is compressed", put(first + 10, &[8]), "compressed"),
        ("an entry that is encrypted", put(first + 8, &[1]), "encrypted"),
        ("an entry without its header", put(local, b"PK\x03\x05"), "has no header"),
        ("a header longer than the file", put(26, &[0xff; 4]), "ends at byte"),
    ] {
        refused(what, bytes, says);
    }
    let twice = [("a/data.pkl".to_string(), b"}.".to_vec()), ("a/data.pkl".to_string(), b"}.".to_vec())];
    refused("one name for two entries", writers::zip(&twice), "twice");
}

/// What one byte can make a pickle's reader take.
#[test]
fn a_pickle_takes_no_more_memory_than_its_length_justifies() {
    let pickle = |start: &[u8], part: &[u8]| {
        let body = part.repeat((1 << 16) / part.len());
        writers::zip(&[("a/data.pkl".to_string(), [start, &body, b"."].concat())])
    };
    for (what, start, part) in [
        ("nothings", &b""[..], &b"N"[..]),
        ("numbers", b"", b"K\x01"),
        ("empty tuples", b"", b")"),
        ("empty lists", b"", b"]"),
        ("empty dictionaries", b"", b"}"),
        ("tuples of one", b"N", b"\x85"),
        ("tuples of two", b"N", b"N\x86"),
        ("marks", b"N", b"("),
        ("copies of the top", b"N", b"2"),
        ("values remembered", b"N", b"\x94"),
        ("values recalled", b"Nq\x00", b"h\x00"),
        ("a list that grows", b"]", b"Na"),
        ("a dictionary that grows", b"}", b"NNs"),
        ("names", b"", b"cbuiltins\ndict\n"),
        ("types of storages", b"", b"ctorch\nFloatStorage\n"),
        ("sizes", b"ctorch\nSize\nq\x00(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t\x85q\x01", b"h\x00h\x01R"),
    ] {
        refused(what, pickle(start, part), "");
    }
    let long = writers::zip(&[("a/data.pkl".to_string(), vec![b'N'; (8 << 20) + 1])]);
    refused("a pickle longer than that of any model", long, "more than the");
}
