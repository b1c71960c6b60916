//! PyTorch files above 4 GiB: archives whose numbers stand in 64 bits, right ones, wrong ones and hostile ones.

mod toy;
mod writers;

use kinora::Error;
use kinora::pack::source::Source;
use writers::zip64::{self, Wide};
use writers::{File, Kind, Stored, stored};

/// Places in an archive, counted from its end: the end record, the locator, the 64-bit record.
const END: usize = 22;
const LOCATOR: usize = END + 20;
const RECORD: usize = LOCATOR + 56;

fn open(bytes: Vec<u8>) -> kinora::Result<Source> {
    Source::from_bytes("test", bytes, None)
}

fn read(source: &Source, name: &str, first: usize, count: usize) -> Vec<f32> {
    let mut out = Vec::new();
    source.read(name, first, count, &mut out).unwrap();
    out
}

/// Numbers that differ and are exact in half precision.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 % 101) as f32 - 50.0) / 16.0).collect()
}

fn small() -> File {
    File::from([
        ("blocks.0.bias".into(), stored(Kind::F16, &[3], &numbers(3))),
        ("blocks.0.weight".into(), stored(Kind::F32, &[3, 4], &numbers(12))),
        ("norm.weight".into(), stored(Kind::Bf16, &[4], &numbers(4))),
    ])
}

fn archive(wide: Wide) -> Vec<u8> {
    zip64::zip(&writers::torch_entries(&small(), Some("generator_ema")), wide)
}

#[test]
fn numbers_in_64_bits_are_those_in_32() {
    let plain = open(writers::torch(&small(), Some("generator_ema"))).unwrap();
    for wide in [
        Wide::ALL,
        Wide { lengths: true, offset: false },
        Wide { lengths: false, offset: true },
        Wide { lengths: false, offset: false },
    ] {
        let source = open(archive(wide)).unwrap();
        assert_eq!(source.path(), ["generator_ema"]);
        assert_eq!(source.tensors().keys().collect::<Vec<_>>(), plain.tensors().keys().collect::<Vec<_>>());
        for (name, tensor) in small() {
            let (entry, count) = (source.entry(&name).unwrap(), tensor.shape.iter().product());
            assert_eq!((&entry.shape, &entry.encoding), (&tensor.shape, &plain.entry(&name).unwrap().encoding));
            assert_eq!(read(&source, &name, 0, count), numbers(count), "{name}");
        }
    }
}

#[test]
fn hostile_numbers_in_64_bits_end_in_an_error() {
    let good = archive(Wide::ALL);
    open(good.clone()).unwrap();
    let end = good.len();
    let directory = good.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    // The extra field of the first entry, behind its 46 bytes, its name and the 9 bytes of another field.
    let extra = directory + 46 + "archive/data.pkl".len() + 9;
    assert_eq!(good[extra..extra + 4], [1, 0, 24, 0]);
    let put = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let number = |at: usize, value: u64| put(at, &value.to_le_bytes());
    let locator = |value: u64| number(end - LOCATOR + 8, value);
    let count = |value: u64| number(end - RECORD + 32, value);
    let start = |value: u64| number(end - RECORD + 48, value);
    let lengths = |value: u64| put(extra + 4, &[value.to_le_bytes(), value.to_le_bytes()].concat());
    let offset = |value: u64| number(extra + 20, value);
    for (what, bytes, says) in [
        ("a locator to the end", locator(end as u64), "ends at byte"),
        ("a locator beyond all counting", locator(u64::MAX), "ends at byte"),
        ("a locator to the last bytes that can be counted", locator(u64::MAX - 3), "ends at byte"),
        ("a locator to something else", locator(0), "not where it should be"),
        ("no locator", put(end - LOCATOR, b"PK\0\0"), "ends at byte"),
        ("an entry too many", count(5), "directory is damaged"),
        ("an entry too few", count(3), "are missing"),
        ("no entry", count(0), "no data.pkl"),
        ("as many entries as may be", count(1 << 18), "directory is damaged"),
        ("more entries than may be", count((1 << 18) + 1), "more than any checkpoint has"),
        ("entries beyond all counting", count(u64::MAX), "more than any checkpoint has"),
        ("a directory within itself", start(directory as u64 + 1), "directory is damaged"),
        ("a directory at the end", start(end as u64), "ends at byte"),
        ("a directory beyond all counting", start(u64::MAX), "ends at byte"),
        ("an entry as long as the file", lengths(end as u64), "runs into"),
        ("an entry beyond all counting", lengths(u64::MAX), "runs into"),
        ("a packed length of its own", number(extra + 12, 1), "compressed"),
        ("a local header in the middle of one", offset(1), "has no header"),
        ("a local header at the end", offset(end as u64 - 3), "runs into"),
        ("a local header beyond all counting", offset(u64::MAX), "runs into"),
        ("a local header longer than the file", put(28, &[0xff; 2]), "ends at byte"),
        ("a field without its last numbers", put(extra + 2, &[8, 0]), "a 64-bit zip entry ends"),
        ("a field that is longer than all fields", put(extra + 2, &[0xff; 2]), "a 64-bit zip entry ends"),
        ("numbers without their field", put(extra, &[2, 0]), "runs into"),
    ] {
        let error = open(bytes).expect_err(what);
        assert!(matches!(&error, Error::WeightFile(reason) if reason.contains(says)), "{what}: {error}");
    }
}

/// One storage longer than 4 GiB, one that begins behind it, and the directory behind both. All between the headers is a
/// hole, which takes no disk.
#[cfg(all(unix, target_pointer_width = "64"))]
#[test]
fn a_file_above_4_gib_is_read() {
    use std::os::unix::fs::FileExt;

    let count = (1 << 30) + 4;
    let long = Stored { kind: Kind::F32, shape: vec![count], bytes: Vec::new() };
    let file = File::from([("long".into(), long), ("small".into(), stored(Kind::F16, &[5], &numbers(5)))]);
    let pickle = writers::pickle(&file, Some("generator_ema"));
    let last = writers::encode(Kind::F32, &numbers(4));
    let folder = toy::Folder::new();
    let path = folder.0.join("model.pt");
    let out = std::fs::File::create(&path).unwrap();
    let (mut at, mut directory) = (0, Vec::<u8>::new());
    for (name, length, content) in [
        ("archive/data.pkl", pickle.len() as u64, &pickle),
        ("archive/data/0", 4 * count as u64, &last),
        ("archive/data/1", 10, &file["small"].bytes),
    ] {
        let wide = Wide::needed(length, at);
        assert_eq!((wide.lengths, wide.offset), (name.ends_with("/0"), name.ends_with("/1")));
        directory.extend(zip64::entry(name, length, at, wide));
        let header = zip64::local(name, length, wide);
        out.write_all_at(&header, at).unwrap();
        at += header.len() as u64 + length;
        out.write_all_at(content, at - content.len() as u64).unwrap();
    }
    let end = zip64::end(3, at, directory.len() as u64);
    out.write_all_at(&[directory, end].concat(), at).unwrap();

    let source = Source::open(&path, None).unwrap();
    assert!(source.files().all(|stamp| stamp.bytes > 1 << 32));
    assert_eq!(source.entry("long").unwrap().shape, [count]);
    assert_eq!(read(&source, "long", count - 6, 6), [vec![0.0; 2], numbers(4)].concat());
    assert_eq!(read(&source, "small", 0, 5), numbers(5));
}
