//! Tokenizer files over which the `tokenizers` crate would panic, or take gigabytes: each is a typed error, and what is
//! near it and right is read.

mod common;

use kinora::Error;
use kinora::model::manifest::Manifest;
use kinora::pack::read_manifest;
use kinora::text::tokenizer::Tokenizer;
use serde_json::{Value, json};

fn manifest() -> Manifest {
    read_manifest(&common::goldens().join("tiny-model")).unwrap()
}

/// The tiny model's tokenizer with a change.
fn changed(change: impl FnOnce(&mut Value)) -> String {
    let text = std::fs::read_to_string(common::goldens().join("tiny-model/tokenizer.json")).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    change(&mut file);
    file.to_string()
}

fn with(place: &str, value: Value) -> String {
    changed(|file| *file.pointer_mut(place).unwrap() = value)
}

fn ids(json: &str, prompt: &str) -> kinora::Result<Vec<u32>> {
    Ok(Tokenizer::parse(json, &manifest())?.encode(prompt)?.ids)
}

#[track_caller]
fn refused(what: &str, json: &str, says: &str) {
    let error = ids(json, "a red ball").expect_err(what);
    assert!(matches!(&error, Error::Tokenizer(reason) if reason.contains(says)), "{what}: {error}");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, &byte| (bits << 8) | u32::from(byte)) << (8 * (3 - three.len()));
        let digit = |at: usize| DIGITS[((bits >> (18 - 6 * at)) & 63) as usize] as char;
        text.extend((0..4).map(|at| if at <= three.len() { digit(at) } else { '=' }));
    }
    text
}

/// Units of a double array that knows one text, "A", whose replacement begins at `value`: the root's block is at 256,
/// the value of the unit for "A" (0x41) within it is at 0x41.
fn units(value: u32) -> Vec<u32> {
    let mut units = vec![0; 512];
    units[0] = 256 << 10;
    units[256 + 0x41] = 0x41 | (1 << 8) | (256 << 10);
    units[0x41] = (1 << 31) | value;
    units
}

/// SentencePiece's table of these units and replacements.
fn charsmap(units: &[u32], texts: &[u8]) -> Vec<u8> {
    let units: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    [&(units.len() as u32).to_le_bytes(), &units[..], texts].concat()
}

#[test]
fn a_table_of_replacements_is_used_where_it_is_sound() {
    let file = |table: Vec<u8>| {
        let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": base64(&table)});
        with("/normalizer", json!({"type": "Sequence", "normalizers": [precompiled, {"type": "Lowercase"}]}))
    };
    let texts = "xx\0 blue \u{e9}\0".as_bytes();
    let unchanged = with("/normalizer", json!({"type": "Lowercase"}));
    // Whatever the number of digits that base64 fills up.
    for more in 0..3 {
        let texts = [texts, &b"abc"[..more]].concat();
        let read = |value: u32| ids(&file(charsmap(&units(value), &texts)), "red A ball").unwrap();
        assert_eq!(read(3), ids(&unchanged, "red  blue \u{e9} ball").unwrap());
        assert_eq!(read(0), ids(&unchanged, "red xx ball").unwrap());
    }
    let good = charsmap(&units(3), texts);
    let with_unit = |at: usize, unit: u32| {
        let mut units = units(3);
        units[at] = unit;
        charsmap(&units, texts)
    };
    let mut long = good.clone();
    long[..4].copy_from_slice(&0xffff_fffcu32.to_le_bytes());
    for (what, table) in [
        ("nothing", Vec::new()),
        ("a length alone", good[..4].to_vec()),
        ("no unit", charsmap(&[], texts)),
        ("half of the units", good[..1024].to_vec()),
        ("a length of 4 GiB", long),
        ("a walk out of the array", with_unit(0, 512 << 10)),
        ("a walk far out of the array", with_unit(0, (0x3f_ffff << 10) | (1 << 9))),
        ("a value out of the array", with_unit(256 + 0x41, 0x41 | (1 << 8) | (512 << 10))),
        ("an array that ends within a block", charsmap(&units(3)[..400], texts)),
        ("a replacement behind the end", charsmap(&units(99), texts)),
        ("a replacement from the middle of a character on", charsmap(&units(10), texts)),
        ("replacements that are no text", charsmap(&units(3), b"xx\0\xff\0")),
    ] {
        refused(what, &file(table), "precompiled_charsmap is damaged");
    }
    for text in ["AAA", "AAA?", "=", "AA=A", "AB==", "AAE=", "\u{e9}AA"] {
        let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": text});
        refused(text, &with("/normalizer", precompiled), "precompiled_charsmap is damaged");
    }
    refused("no table", &with("/normalizer", json!({"type": "Precompiled"})), "precompiled_charsmap is damaged");
}

#[test]
fn templates_use_what_is_there() {
    let piece = |piece: Value| with("/post_processor/single/1", piece);
    let plain = changed(|_| ());
    let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let twice = ids(&piece(json!({"Sequence": {"id": "A", "type_id": 0}})), "a red ball").unwrap();
    assert_eq!(twice.len(), 2 * (ids(&plain, "a red ball").unwrap().len() - 1));
    assert_eq!(ids(&piece(end), "a red ball").unwrap(), ids(&plain, "a red ball").unwrap());
    for unknown in [
        json!({"SpecialToken": {"id": "<s>", "type_id": 0}}),
        json!({"Sequence": {"id": "B", "type_id": 0}}),
        json!({"Sequence": {"id": "C", "type_id": 0}}),
        json!("$B"),
        json!(null),
    ] {
        refused("a piece that is not there", &piece(unknown), "its template has the piece");
    }
    let mark = |key: &str, value: Value| with(&format!("/post_processor/special_tokens/<~1s>/{key}"), value);
    refused("an id too many", &mark("ids", json!([1, 2])), "an id for each token");
    refused("no ids", &mark("ids", json!(1)), "an id for each token");
    refused("no marks", &with("/post_processor/special_tokens", json!({})), "its template has the piece");
    refused("no list of marks", &with("/post_processor/special_tokens", json!(null)), "lacks single or special_tokens");
    let both = changed(|file| {
        file["post_processor"]["sep"] = json!(["</s>", 1]);
        file["post_processor"]["cls"] = json!(["<s>", 0]);
    });
    refused("what BERT has", &both, "the key");
}

#[test]
fn parts_of_other_kinds_are_refused() {
    let steps = json!({"type": "Sequence", "processors": [json!({"type": "ByteLevel"})]});
    let deep = (0..9).fold(json!({"type": "NFC"}), |part, _| json!({"type": "Sequence", "normalizers": [part]}));
    for (what, file, says) in [
        ("no JSON", "<html>".to_string(), "expected"),
        ("no object", "[]".to_string(), "invalid length"),
        ("no model", changed(|file| *file = json!({"version": "1.0"})), "missing field `model`"),
        ("a model of another kind", with("/model/type", json!("BPE")), "must be Unigram"),
        ("chunks of no characters", with("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})), "FixedLength"),
        ("bytes for characters", with("/normalizer", json!({"type": "ByteLevel"})), "ByteLevel"),
        ("another processor", with("/post_processor", json!({"type": "RobertaProcessing"})), "RobertaProcessing"),
        ("another processor in a list", with("/post_processor", steps), "ByteLevel"),
        ("lists in lists", with("/normalizer", deep), "Sequence"),
        ("a list that is none", with("/normalizer", json!({"type": "Sequence"})), "no list"),
        ("a part without a type", with("/normalizer", json!({})), "without a type"),
        ("an unknown mark for what is unknown", with("/model/unk_id", json!(1000)), "UnkIdNotInVocabulary"),
        (
            "a decoder beyond all numbers",
            changed(|_| ()).replace("\"decoder\":{", "\"decoder\":{\"x\":1e999,"),
            "number",
        ),
        (
            "spaces that are taken twice",
            changed(|file| {
                file["added_tokens"][0]["rstrip"] = json!(true);
                file["added_tokens"][1]["content"] = json!(" ");
            }),
            "strip spaces",
        ),
    ] {
        refused(what, &file, says);
    }
}
