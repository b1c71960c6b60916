//! A pruned vocabulary: the same pieces, the same embeddings, and a clear word for what is gone.

mod common;
mod parts;
mod toy;
mod writers;

use std::path::Path;

use common::{TempDir, goldens};
use kinora::directory::TextPart;
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::error::Error;
use kinora::model::manifest::{DType, Manifest};
use kinora::pack::{Export, Keep, PackOptions, Published, pack, pack_pruned, read_manifest, verify};
use parts::{open, options, part, plain, published, unpacked};

fn tiny(out: &Path, keep: Option<&Keep>) -> kinora::Result<Manifest> {
    let read = |name: &str| std::fs::read(goldens().join("tiny").join(name)).expect("the goldens are committed");
    let model = String::from_utf8(read("model.json")).expect("text");
    let (tokenizer, weights) = (read("tokenizer.json"), read("weights.safetensors"));
    let export = Export { model_json: &model, tokenizer_json: &tokenizer, weights: &weights };
    let options = PackOptions { format: DType::F32, ..PackOptions::default() };
    match keep {
        Some(keep) => pack_pruned(&export, out, &options, keep)?,
        None => pack(&export, out, &options)?,
    };
    read_manifest(out)
}

fn keep(prompts: &[&str], pieces: &[&str], ids: &[usize]) -> Keep {
    let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    Keep { prompts: strings(prompts), pieces: strings(pieces), ids: ids.to_vec() }
}

#[test]
fn kept_prompts_have_the_same_embeddings_and_others_are_refused_by_the_missing_word() {
    let (whole, pruned) = (TempDir::new(), TempDir::new());
    let full = tiny(whole.path(), None).expect("packs");
    // The manifest's example is kept as well: a red ball bounces on green grass.
    let manifest = tiny(pruned.path(), Some(&keep(&["a slow cat", "zebra"], &["\u{2581}sea"], &[]))).expect("packs");
    assert_eq!(verify(pruned.path()).expect("a model").problem(), None);
    let (rows, all) = (manifest.text_encoder.vocab_size, full.text_encoder.vocab_size);
    assert!(rows < all / 2, "{rows} of {all} rows");
    assert_eq!(manifest.text_encoder.full_vocab_size, Some(all));
    assert_eq!(manifest.tensors["text_encoder.shared.weight"].shape, [rows, 64]);

    let open = |dir: &TempDir| TextPart::open(dir.path(), DeviceChoice::Cpu).expect("opens");
    let (whole_text, text) = (open(&whole), open(&pruned));
    for prompt in ["a slow cat", "A  red ball bounces on green GRASS", "zebra", "red cat on sea", "a zebra ball"] {
        let (ids, pruned_ids) = (
            whole_text.tokenizer.encode(prompt).expect("encodes").ids,
            text.tokenizer.encode(prompt).unwrap_or_else(|error| panic!("{prompt}: {error}")).ids,
        );
        assert_ne!(ids, pruned_ids, "{prompt}: the ids are other ones");
        let want = wait(whole_text.encoder.encode(&whole_text.compute, &ids)).expect("encodes");
        let got = wait(text.encoder.encode(&text.compute, &pruned_ids)).expect("encodes");
        assert_eq!(got, want, "{prompt}");
    }
    // The word would still be there letter by letter, and mean something else; it has to be refused instead.
    for (prompt, gone) in
        [("a slow bird", "bird"), ("white cat", "white"), ("blue cat over night", "blue, over, night")]
    {
        assert_eq!(text.tokenizer.encode(prompt), Err(Error::PrunedPrompt { pieces: gone.into() }));
    }
    let engine = Engine::load_dir(pruned.path(), DeviceChoice::Cpu).expect("loads");
    let request = GenerateRequest { prompt: "a slow bird".into(), ..GenerateRequest::default() };
    assert_eq!(engine.check(&request).map_err(|error| error.code()), Err("pruned-prompt"));
}

#[test]
fn tokens_that_do_not_exist_are_named() {
    let dir = TempDir::new();
    for (keep, code, says) in [
        (keep(&[], &["\u{2581}zebra"], &[]), "invalid-request", "zebra"),
        (keep(&[], &[], &[4, 999]), "invalid-request", "999"),
        (keep(&[" "], &[], &[]), "empty-prompt", "empty"),
    ] {
        let error = tiny(dir.path(), Some(&keep)).expect_err("it is refused");
        assert!(error.code() == code && error.to_string().contains(says), "{error}");
    }
    assert!(!dir.path().join("manifest.json").exists());
}

#[test]
fn published_weights_are_pruned_in_every_format_of_the_table() {
    // Forty rows, of which the tokenizer of this test uses five.
    let tokenizer = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"Unigram","unk_id":0,
        "vocab":[["<unk>",0.0],["a",-1.0],["b",-1.0],["c",-1.0],[" ball",-1.0]]}}"#;
    for format in [DType::F32, DType::Q8] {
        let make = |keep: Option<Keep>| {
            let dir = TempDir::new();
            let text_encoder = open(writers::safetensors(&plain(&part("text_encoder."))));
            let published = Published { tokenizer_json: tokenizer.into(), text_encoder, keep, ..published() };
            parts::pack(published, dir.path(), &options(format)).expect("packs");
            assert_eq!(verify(dir.path()).expect("a model").problem(), None);
            unpacked(dir.path())
        };
        let (whole, pruned) = (make(None), make(Some(keep(&[], &["c"], &[]))));
        for (name, values) in &pruned {
            let want = &whole[name];
            if name == "text_encoder.shared.weight" {
                // <unk>, a and the ball of the example, and c.
                let rows = [0, 1, 3, 4].map(|row| want[row * 32..(row + 1) * 32].to_vec()).concat();
                assert_eq!(*values, rows, "{format}");
            } else {
                assert_eq!(values, want, "{name}");
            }
        }
    }
}

#[test]
fn a_tokenizer_that_is_no_unigram_model_cannot_be_pruned() {
    let dir = TempDir::new();
    let tokenizer = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","unk_token":"<unk>","vocab":{"<unk>":0,"a":1,"ball":2}}}"#;
    let published = Published { tokenizer_json: tokenizer.into(), keep: Some(Keep::default()), ..published() };
    let error = parts::pack(published, dir.path(), &options(DType::F32)).expect_err("it is refused");
    assert!(error.code() == "tokenizer" && error.to_string().contains("Unigram"), "{error}");
}
