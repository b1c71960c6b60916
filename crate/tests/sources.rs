//! Reading published files: right numbers from good ones, a typed error from bad ones, and never anything run.

mod changes;
mod writers;

use std::path::Path;

use changes::Changes;
use kinora::Error;
use kinora::pack::source::{Block, Encoding, Source};
use writers::zip64::{self, Wide};
use writers::{File, Kind, Stored, stored};

fn open(bytes: Vec<u8>) -> kinora::Result<Source> {
    Source::from_bytes("test", bytes, None)
}

fn values(source: &Source, name: &str) -> Vec<f32> {
    let mut out = Vec::new();
    source.read(name, 0, source.entry(name).expect(name).values(), &mut out).unwrap();
    out
}

/// Numbers that differ and are exact in half precision.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 % 101) as f32 - 50.0) / 16.0).collect()
}

/// The bytes of a linear congruential generator: the same in the script that made the reference values.
fn noise(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn small() -> File {
    File::from([
        ("blocks.0.weight".into(), stored(Kind::F32, &[3, 4], &numbers(12))),
        ("blocks.0.bias".into(), stored(Kind::F16, &[3], &numbers(3))),
        ("norm.weight".into(), stored(Kind::Bf16, &[4], &numbers(4))),
    ])
}

/// Every format with the same content, GGUF with quantized tensors on top.
fn formats() -> Vec<(&'static str, Vec<u8>)> {
    let (mut ggml, mut k) = (small(), small());
    ggml.insert("q8".into(), stored(Kind::Q8_0, &[2, 32], &numbers(64)));
    ggml.insert("q4".into(), stored(Kind::Q4_0, &[1, 64], &numbers(64)));
    for (name, kind, bytes) in [("q4k", 12, 144), ("q5k", 13, 176), ("q6k", 14, 210)] {
        k.insert(name.into(), Stored { kind: Kind::Raw(kind), shape: vec![2, 256], bytes: noise(2 * bytes, kind) });
    }
    vec![
        ("safetensors", writers::safetensors(&small())),
        ("pytorch", writers::torch(&small(), Some("generator"))),
        ("pytorch, 64 bits", zip64::zip(&writers::torch_entries(&small(), Some("generator")), Wide::ALL)),
        ("gguf 2", writers::gguf(&ggml, 2)),
        ("gguf 3", writers::gguf(&ggml, 3)),
        ("gguf with blocks of 256", writers::gguf(&k, 3)),
    ]
}

#[test]
fn what_pytorch_itself_saved_is_read() {
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("tests/data");
    let source = Source::open(&folder.join("checkpoint.pt"), None).unwrap();
    let expected = Source::open(&folder.join("expected.safetensors"), None).unwrap();
    assert_eq!(source.path(), ["generator_ema"]);
    assert_eq!(source.tensors().keys().collect::<Vec<_>>(), expected.tensors().keys().collect::<Vec<_>>());
    for (name, entry) in expected.tensors() {
        assert_eq!(source.entry(name).unwrap().shape, entry.shape, "{name}");
        assert_eq!(values(&source, name), values(&expected, name), "{name}");
    }
    assert_eq!(source.entry("brain").unwrap().encoding, Encoding::BF16);
    // A piece from the middle of a tensor that does not lie in order.
    let (mut piece, whole) = (Vec::new(), values(&source, "transposed"));
    source.read("transposed", 5, 20, &mut piece).unwrap();
    assert_eq!(piece, whole[5..25]);

    let other = Source::open(&folder.join("checkpoint.pt"), Some("generator")).unwrap();
    assert_eq!(other.tensors().keys().collect::<Vec<_>>(), ["bias", "weight"]);
    let error = Source::open(&folder.join("checkpoint.pt"), Some("critic")).unwrap_err().to_string();
    assert!(error.contains("\"critic\"") && error.contains("generator, generator_ema"), "{error}");
}

#[test]
fn blocks_of_ggml_have_the_values_that_gguf_py_gives() {
    // dequantize() of gguf-py 0.19.0 on the same bytes: sum of (index % 7 + 1) * value, and values here and there.
    let cases: [(u32, usize, usize, f64, [f32; 14]); 5] = [
        (
            2,
            18,
            64,
            -11.375,
            [
                -0.125, -0.09375, -0.09375, -0.1875, -0.09375, 0.03125, -0.0625, -0.21875, 0.03125, -0.125, 0.25,
                -0.3125, -0.375, -0.3125,
            ],
        ),
        (
            8,
            34,
            64,
            -224.84375,
            [
                0.78125, -0.59375, -1.375, -3.71875, -1.65625, -0.0625, 1.78125, -2.59375, -0.0625, -4.3125, 1.875,
                -5.1875, -0.1875, -6.4375,
            ],
        ),
        (
            12,
            144,
            512,
            15221.8125,
            [
                2.25, -0.1875, 9.5625, 4.6875, 1.4375, 3.875, 17.09375, 7.25, 13.84375, 13.8125, 22.8125, 8.3125,
                11.5625, 10.625,
            ],
        ),
        (
            13,
            176,
            512,
            49132.6875,
            [33.875, 8.0, 15.1875, 35.3125, -0.625, 28.125, -2.4375, 21.8125, 17.25, 0.0625, 5.6875, 45.5, 40.5, 40.5],
        ),
        (
            14,
            210,
            512,
            5374.96875,
            [
                -36.5625, 46.3125, -26.8125, 0.6875, -0.0, -3.09375, -68.25, -20.25, -35.03125, 117.0, -8.8125, -50.75,
                -181.5, -15.125,
            ],
        ),
    ];
    for (kind, size, count, sum, some) in cases {
        let mut bytes = noise(2 * size, size as u32);
        for block in 0..2 {
            let scale = half::f16::from_f32(0.03125 * (block + 1) as f32).to_le_bytes();
            let at = block * size + if kind == 14 { 208 } else { 0 };
            bytes[at..at + 2].copy_from_slice(&scale);
            if kind == 12 || kind == 13 {
                bytes[at + 2..at + 4].copy_from_slice(&half::f16::from_f32(0.0625).to_le_bytes());
            }
        }
        let tensor = Stored { kind: Kind::Raw(kind), shape: vec![2, count / 2], bytes };
        let source = open(writers::gguf(&File::from([("x".into(), tensor)]), 3)).unwrap();
        let found = values(&source, "x");
        let weighted = |(index, &value): (usize, &f32)| (index % 7 + 1) as f64 * f64::from(value);
        assert_eq!(found.iter().enumerate().map(weighted).sum::<f64>(), sum, "type {kind}");
        let far = if count > 64 { count / 2 + 33 } else { count / 2 + 1 };
        let places = [
            0,
            1,
            15,
            16,
            17,
            31,
            count / 8,
            count / 4 + 3,
            count / 2 - 1,
            count / 2,
            far,
            3 * count / 4 + 5,
            count - 2,
            count - 1,
        ];
        for (place, value) in places.into_iter().zip(some) {
            assert_eq!(found[place], value, "type {kind}, value {place}");
        }
    }
}

#[test]
fn every_format_gives_back_what_was_written() {
    for (format, bytes) in formats() {
        let source = open(bytes).unwrap();
        for (name, tensor) in small() {
            let entry = source.entry(&name).expect(format);
            assert_eq!(entry.shape, tensor.shape, "{format}");
            assert_eq!(values(&source, &name), numbers(entry.values()), "{format} {name}");
        }
        for (name, block) in [("q4k", Block::Q4K), ("q5k", Block::Q5K), ("q6k", Block::Q6K)] {
            let encoding = source.entry(name).map(|entry| entry.encoding.clone());
            assert_eq!(encoding, format.ends_with("256").then_some(Encoding::Ggml(block)), "{format} {name}");
        }
    }
}

#[test]
fn more_axes_than_ggml_has_come_from_the_metadata() {
    let tensor = stored(Kind::F32, &[2, 3, 1, 2, 2], &numbers(24));
    let source = open(writers::gguf(&File::from([("patch".into(), tensor)]), 3)).unwrap();
    assert_eq!(source.entry("patch").unwrap().shape, [2, 3, 1, 2, 2]);
    assert_eq!(values(&source, "patch"), numbers(24));
}

#[test]
fn a_file_that_is_cut_short_is_an_error_at_every_length() {
    for (format, bytes) in formats() {
        for length in 0..bytes.len() {
            let error = open(bytes[..length].to_vec()).expect_err(format);
            assert!(matches!(error, Error::WeightFile(_)), "{format} of {length} bytes: {error}");
        }
    }
}

/// Reads all of a source; whatever comes out, it must come back.
fn read_all(source: &Source) -> kinora::Result<()> {
    let mut out = Vec::new();
    for (name, entry) in source.tensors() {
        out.clear();
        source.read(name, 0, entry.values(), &mut out)?;
    }
    Ok(())
}

#[test]
fn changed_bytes_are_an_error_or_other_numbers_and_never_a_panic() {
    let mut changes = Changes::new(11);
    for (format, good) in formats() {
        let (mut fine, mut refused) = (0, 0);
        for _ in 0..4000 {
            let bytes = changes.apply(&good, 0..good.len());
            match open(bytes).and_then(|source| read_all(&source)) {
                Ok(()) => fine += 1,
                Err(Error::WeightFile(_) | Error::Tensor(_)) => refused += 1,
                Err(other) => panic!("{format}: {other}"),
            }
        }
        // Changed headers must be noticed, changed values cannot be.
        assert!(refused > 400 && fine > 40, "{format}: {fine} read, {refused} refused");
    }
}

fn pickled(pickle: &[u8]) -> kinora::Result<Source> {
    open(writers::zip(&[("archive/data.pkl".into(), pickle.to_vec())]))
}

#[test]
fn a_pickle_is_never_run() {
    for (pickle, says) in [
        (&b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch /xyz\x85R."[..], "os.system"),
        (b"cposix\nsystem\n(X\x02\x00\x00\x00lstR.", "posix.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"\x80\x02}X\x01\x00\x00\x00acsubprocess\nPopen\n)Rs.", "subprocess.Popen"),
        (b"ctorch._utils\n_rebuild_from_type_v2\n.", "_rebuild_from_type_v2"),
    ] {
        let error = pickled(pickle).unwrap_err();
        assert!(matches!(&error, Error::WeightFile(reason) if reason.contains(says)), "{error}");
        assert!(error.to_string().contains("nothing in a weight file is ever run"), "{error}");
    }
    // `INST`, `OBJ`, `NEWOBJ` and the extension registry also call things; they are not even known.
    for opcode in [b'i', b'o', 0x81, 0x82, 0x92, b'P'] {
        let error = pickled(&[b'}', opcode, b'.']).unwrap_err().to_string();
        assert!(error.contains(&format!("the opcode {opcode:#04x}")), "{error}");
    }
}

#[test]
fn hostile_pickles_end_in_an_error() {
    let deep = [vec![b']'; 1 << 20], vec![b'a'; (1 << 20) - 1], vec![b'.']].concat();
    let circle = b"}q\x00X\x05\x00\x00\x00modelh\x00s.".to_vec();
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let tensor = |shape: &[u8], stride: &[u8]| {
        let storage = [b"(".to_vec(), text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu")];
        let start = [b"}".to_vec(), text("x"), b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(), storage.concat()];
        [&start.concat()[..], b"K\x01tQK\x00", shape, stride, b"\x89)tRs."].concat()
    };
    let archive =
        |pickle: Vec<u8>| open(writers::zip(&[("a/data.pkl".into(), pickle), ("a/data/0".into(), vec![0; 64])]));
    for (what, pickle) in [
        ("nesting", deep),
        ("a circle", circle),
        ("an empty stack", b".".to_vec()),
        ("a lost mark", b"}t.".to_vec()),
        ("an unknown memo", b"h\x05.".to_vec()),
        ("text without its bytes", b"X\xff\xff\xff\xffa.".to_vec()),
        ("64-bit text", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec()),
        ("a negative shape", tensor(b"J\xff\xff\xff\xff\x85", b"K\x01\x85")),
        (
            "a shape beyond all counting",
            tensor(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87", b"K\x01K\x01K\x01\x87"),
        ),
        ("a repeating stride", tensor(b"J\x00\x00\x00\x40\x85", b"K\x00\x85")),
        ("a stride out of the storage", tensor(b"K\x02\x85", b"K\x10\x85")),
        ("more axes than strides", tensor(b"K\x01K\x01\x86", b"K\x01\x85")),
    ] {
        let error = archive(pickle).expect_err(what);
        assert!(matches!(error, Error::WeightFile(_)), "{what}: {error}");
    }
    // Calls that copy: of 64 entries, two hundred times, in 2 kB; and a size that no tensor has.
    let entries = [text("k"), b"K\x01\x86".to_vec()].concat().repeat(64);
    let calls = b"h\x01h\x00\x85R".repeat(200);
    let copies = [&b"]q\x00("[..], &entries, b"eccollections\nOrderedDict\nq\x01", &calls, b"."].concat();
    let size = [&b"ctorch\nSize\n("[..], &b"K\x01".repeat(99), b"t\x85R."].concat();
    for (pickle, says) in [(copies, "over and over"), (size, "99 axes")] {
        let error = archive(pickle).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    // The same shapes within the storage are fine: the cases above fail for what they say.
    assert_eq!(archive(tensor(b"K\x02\x85", b"K\x0f\x85")).unwrap().entry("x").unwrap().shape, [2]);
}

#[test]
fn strangers_are_named() {
    let zipped = writers::zip(&[("readme.txt".into(), b"x".to_vec())]);
    let mut packed = writers::torch(&small(), None);
    // The method of the first entry in the directory: deflated.
    let directory = packed.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    packed[directory + 10] = 8;
    let mut version = writers::gguf(&small(), 3);
    version[4] = 1;
    for (bytes, says) in [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n".to_vec(), "Git LFS"),
        (b"<!doctype html><title>404</title>".to_vec(), "web page"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "old format"),
        (zipped, "data.pkl"),
        (packed, "compressed"),
        (version, "version 0x1"),
        (vec![0; 64], "safetensors"),
    ] {
        let error = open(bytes).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn ggml_types_that_are_not_read_are_named_when_they_are_needed() {
    let tensor = Stored { kind: Kind::Raw(11), shape: vec![1, 256], bytes: vec![0; 110] };
    let source = open(writers::gguf(&File::from([("x".into(), tensor)]), 3)).unwrap();
    let error = source.read("x", 0, 256, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("Q3_K") && error.contains('x'), "{error}");
}
