//! Files of which some bytes were changed: a typed error or other numbers, never a panic, and never more memory than the
//! file justifies. The formats of weights are in `sources.rs` and `published.rs`.

mod changes;
mod common;
mod counted;
mod loras;
mod parts;
mod toy;
mod writers;

use std::collections::HashMap;
use std::fs;

use changes::Changes;
use counted::{justified, most};
use kinora::Error;
use kinora::engine::{DeviceChoice, Engine};
use kinora::model::manifest::{DType, Manifest};
use kinora::pack::source::Source;
use kinora::pack::{Lora, Published, read_manifest};
use kinora::text::prompts::PromptPack;
use kinora::text::tokenizer::Tokenizer;
use safetensors::tensor::{Dtype, TensorView};
use writers::{File, Kind, stored};

/// How many changed files were read, and how many refused.
#[derive(Default)]
struct Tally {
    read: usize,
    refused: usize,
}

impl Tally {
    /// Both must have happened often, or the changes are not worth trying.
    #[track_caller]
    fn check(&self, what: &str, least: usize) {
        let Self { read, refused } = self;
        println!("{what}: {read} read, {refused} refused");
        assert!(*read >= least && *refused >= least, "{what}: {read} read, {refused} refused");
    }
}

/// Bytes of the header of a safetensors file, its length included.
fn header(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize
}

#[test]
fn changed_loras_are_refused_or_applied_at_run_time() {
    let mut engine = Engine::load_dir(&common::goldens().join("tiny-model"), DeviceChoice::Cpu).unwrap();
    let mut changes = Changes::new(21);
    for good in [loras::bytes(&loras::first()), loras::bytes(&loras::second())] {
        let mut tally = Tally::default();
        for round in 0..1500 {
            // Most of the file are values, which may be anything.
            let places = if round % 3 == 0 { header(&good)..good.len() } else { 0..header(&good) };
            let bytes = changes.apply(&good, places);
            let (result, peak) = most(|| engine.add_lora("changed", &bytes));
            assert!(peak <= justified(bytes.len()), "{peak} bytes for a file of {}", bytes.len());
            match result {
                Ok(id) => {
                    engine.use_loras(&[(id, 1.0)]).unwrap();
                    engine.use_loras(&[]).unwrap();
                    engine.remove_lora(id);
                    tally.read += 1;
                }
                Err(Error::Lora { .. }) => tally.refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        tally.check("LoRAs at run time", 50);
    }
}

/// A LoRA of three layers of the toy model, with all sorts of keys.
fn toy_lora() -> File {
    let values = [0.5; 64];
    File::from([
        ("diffusion_model.blocks.2.self_attn.q.lora_down.weight".into(), stored(Kind::F32, &[1, 32], &values[..32])),
        ("diffusion_model.blocks.2.self_attn.q.lora_up.weight".into(), stored(Kind::Bf16, &[32, 1], &values[..32])),
        ("diffusion_model.blocks.2.self_attn.q.alpha".into(), stored(Kind::F32, &[], &[2.0])),
        ("lora_unet__blocks_3_self_attn_k.lora_down.weight".into(), stored(Kind::F16, &[2, 32], &values)),
        ("lora_unet__blocks_3_self_attn_k.lora_up.weight".into(), stored(Kind::F16, &[32, 2], &values)),
    ])
}

#[test]
fn changed_loras_are_refused_or_merged_while_packing() {
    let base = parts::published();
    let folder = toy::Folder::new();
    let mut changes = Changes::new(22);
    for (what, good) in [
        ("LoRAs in safetensors", writers::safetensors(&toy_lora())),
        ("LoRAs of PyTorch", writers::torch(&toy_lora(), Some("generator_lora"))),
    ] {
        let mut tally = Tally::default();
        for round in 0..300 {
            // The values are at the end of the one and in the middle of the other.
            let places = if round % 2 == 0 { 0..good.len() } else { good.len() / 2..good.len() };
            let bytes = changes.apply(&good, places);
            let merged = Source::from_bytes("changed", bytes, None).and_then(|source| {
                let published = Published {
                    model_json: base.model_json.clone(),
                    tokenizer_json: base.tokenizer_json.clone(),
                    transformer: base.transformer.clone(),
                    text_encoder: base.text_encoder.clone(),
                    autoencoder: base.autoencoder.clone(),
                    loras: vec![Lora { source, scale: 1.0 }],
                    keep: None,
                };
                parts::pack(published, &folder.0, &parts::options(DType::F16))
            });
            match merged {
                Ok(_) => tally.read += 1,
                Err(Error::Lora { .. } | Error::WeightFile(_) | Error::Tensor(_)) => tally.refused += 1,
                Err(other) => panic!("{what}: {other}"),
            }
        }
        tally.check(what, 20);
    }
}

#[test]
fn changed_prompt_packs_are_refused_or_read() {
    let manifest = read_manifest(&common::goldens().join("tiny-model")).unwrap();
    let head = serde_json::json!({
        "version": 1, "model": "tiny", "text_encoder": manifest.text_identity(), "prompts": ["a red ball", "a slow cat"],
        "negative": "a white sea",
    });
    let values = vec![0u8; 4 * 64 * 3];
    let views = [("prompt.0", 3), ("prompt.1", 2), ("negative", 1)]
        .map(|(name, tokens)| (name, TensorView::new(Dtype::F32, vec![tokens, 64], &values[..256 * tokens]).unwrap()));
    let metadata = HashMap::from([("kinora_prompts".to_string(), head.to_string())]);
    let good = safetensors::serialize(views, Some(metadata)).unwrap();
    PromptPack::parse(&good, &manifest).unwrap();
    let (mut changes, mut tally) = (Changes::new(23), Tally::default());
    for round in 0..4000 {
        let places = if round % 2 == 0 { 0..good.len() } else { 0..header(&good) };
        let bytes = changes.apply(&good, places);
        let (result, peak) = most(|| PromptPack::parse(&bytes, &manifest));
        assert!(peak <= justified(bytes.len()), "{peak} bytes for a file of {}", bytes.len());
        match result {
            Ok(_) => tally.read += 1,
            Err(Error::PromptPack(_)) => tally.refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    tally.check("prompt packs", 200);
}

#[test]
fn changed_indices_are_refused_or_read() {
    let folder = toy::Folder::new();
    let tensor = |count: usize| stored(Kind::F32, &[count], &vec![1.0; count]);
    let files = [
        ("a.safetensors", File::from([("x.weight".into(), tensor(4)), ("y.weight".into(), tensor(5))])),
        ("b.safetensors", File::from([("x.bias".into(), tensor(1)), ("a".into(), tensor(2))])),
    ];
    let mut map = serde_json::Map::new();
    for (name, file) in &files {
        fs::write(folder.0.join(name), writers::safetensors(file)).unwrap();
        map.extend(file.keys().map(|tensor| (tensor.clone(), (*name).into())));
    }
    let good = serde_json::json!({"metadata": {"total_size": 48}, "weight_map": map}).to_string();
    let path = folder.0.join("model.safetensors.index.json");
    fs::write(&path, &good).unwrap();
    assert_eq!(Source::open(&path, None).unwrap().tensors().len(), 4);
    let (mut changes, mut tally) = (Changes::new(24), Tally::default());
    for _ in 0..3000 {
        let bytes = changes.apply_to_text(&good, 0..good.len());
        fs::write(&path, &bytes).unwrap();
        let (result, peak) = most(|| Source::open(&path, None));
        assert!(peak <= justified(bytes.len() + 1024), "{peak} bytes for a file of {}", bytes.len());
        match result {
            Ok(source) => {
                assert!(source.files().all(|stamp| stamp.name == "a.safetensors" || stamp.name == "b.safetensors"));
                tally.read += 1;
            }
            // A name that no file has, or bytes that are no text: the file cannot be read.
            Err(Error::WeightFile(_) | Error::InvalidRequest(_)) => tally.refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    tally.check("indices", 80);
}

#[test]
fn changed_tokenizers_are_refused_or_cut_prompts_otherwise() {
    let manifest: Manifest = read_manifest(&common::goldens().join("tiny-model")).unwrap();
    let good = fs::read_to_string(common::goldens().join("tiny-model/tokenizer.json")).unwrap();
    let prompts = ["a red ball bounces on green grass", "a slow cat </s> <unk>", "Ünïcode 北京 \u{1f600} zzz"];
    let (mut changes, mut tally) = (Changes::new(25), Tally::default());
    for _ in 0..4000 {
        let bytes = changes.apply_to_text(&good, 0..good.len());
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let (result, peak) = most(|| -> kinora::Result<()> {
            let tokenizer = Tokenizer::parse(&text, &manifest)?;
            for prompt in prompts {
                match tokenizer.encode(prompt) {
                    Ok(_) | Err(Error::PromptTooLong { .. } | Error::PrunedPrompt { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        // The crate makes a cache of one size whatever the file is.
        assert!(peak <= (1 << 20) + justified(text.len()), "{peak} bytes for a file of {}", text.len());
        match result {
            Ok(()) => tally.read += 1,
            Err(Error::Tokenizer(_)) => tally.refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    tally.check("tokenizers", 400);
}
