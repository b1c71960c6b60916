//! Prompt packs: the same clip as from the prompt, without the text encoder, and nothing that is wrong gets through.

mod common;

use std::collections::HashMap;
use std::rc::Rc;

use common::{TempDir, goldens, tiny_model};
use kinora::directory::{TextPart, encoder_files};
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::error::Error;
use kinora::model::manifest::{DType, Manifest};
use kinora::model::shards::sha256_hex;
use kinora::pack::{PackOptions, read_manifest, verify};
use kinora::text::TextEncoder;
use kinora::text::prompts::{Embeddings, PromptPack};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

const RED: &str = "a red ball bounces on green grass";
const CAT: &str = "a slow cat";

/// The tiny model in small shards, so that the text encoder has some of its own.
fn tiny(change: impl FnOnce(&mut Value)) -> TempDir {
    tiny_model(&PackOptions { format: DType::F32, shard_bytes: 16 << 10, ..PackOptions::default() }, change)
}

fn guided(model: &mut Value) {
    model["sampler"]["guidance"] = json!(3.0);
    model["sampler"]["negative_prompt"] = json!("a white sea");
}

fn prompt_pack(dir: &TempDir, prompts: &[&str]) -> kinora::Result<Vec<u8>> {
    let prompts: Vec<String> = prompts.iter().map(ToString::to_string).collect();
    TextPart::open(dir.path(), DeviceChoice::Cpu)?.prompt_pack(&prompts)?.to_bytes()
}

fn clip(engine: &Rc<Engine>, prompt: &str) -> kinora::Result<Vec<u8>> {
    let request = GenerateRequest { prompt: prompt.into(), seed: 5, ..GenerateRequest::default() };
    wait(async {
        let mut generation = engine.begin(&request).await?;
        let mut frames = Vec::new();
        while generation.step().await?.is_some() {}
        while let Some(batch) = generation.next_frames().await? {
            frames.extend(batch.rgba);
        }
        Ok(frames)
    })
}

/// Removes what only the text encoder needs, and makes sure that this is something.
fn without_encoder(dir: &TempDir) {
    let files = encoder_files(&read_manifest(dir.path()).expect("a manifest"));
    assert!(files.len() > 3, "the encoder has shards of its own: {files:?}");
    for file in files {
        std::fs::remove_file(dir.path().join(file)).expect("a file");
    }
}

#[test]
fn a_clip_from_a_pack_is_the_clip_from_the_prompt_bit_for_bit() {
    for change in [(|_: &mut Value| ()) as fn(&mut Value), guided] {
        let dir = tiny(change);
        let engine = Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads"));
        let want = [RED, CAT].map(|prompt| clip(&engine, prompt).expect("a clip"));
        assert!(want[0] != want[1]);
        let bytes = prompt_pack(&dir, &[RED, CAT]).expect("a pack");
        without_encoder(&dir);
        let engine = Engine::load_dir_streamed(dir.path(), DeviceChoice::Cpu, Some(&bytes)).expect("loads");
        assert!(!engine.text_encoder().is_there() && engine.tokenizer().is_none());
        let engine = Rc::new(engine);
        for (prompt, want) in [RED, CAT].iter().zip(&want) {
            assert!(clip(&engine, prompt).expect("a clip") == *want, "{prompt}");
        }
        assert!(clip(&engine, &format!("  {RED}\n")).expect("a clip") == want[0], "spaces around it do not count");
    }
}

#[test]
fn given_embeddings_are_checked_and_give_the_clip_of_their_prompt() {
    let dir = tiny(|_| ());
    let engine = Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads"));
    let embeddings = wait(engine.embed(CAT)).expect("embeddings");
    let begin = |embeddings: &Embeddings, prompt: &str| {
        let request = GenerateRequest { prompt: prompt.into(), seed: 5, ..GenerateRequest::default() };
        wait(engine.begin_with(embeddings, &request))
    };
    let mut generation = begin(&embeddings, "").expect("the prompt is not looked at");
    while wait(generation.step()).expect("a step").is_some() {}
    let first = wait(generation.next_frames()).expect("decodes").expect("frames").rgba;
    assert!(clip(&engine, CAT).expect("a clip").starts_with(&first));

    let mut wrong = embeddings.clone();
    wrong.prompt[3] = f32::NAN;
    let mut short = embeddings.clone();
    short.prompt.pop();
    for embeddings in [wrong, short] {
        assert_eq!(begin(&embeddings, CAT).err().map(|error| error.code()), Some("invalid-request"));
    }
}

#[test]
fn a_prompt_that_is_not_in_the_pack_falls_back_to_the_encoder_or_names_those_that_are() {
    let dir = tiny(|_| ());
    let bytes = prompt_pack(&dir, &[RED, CAT]).expect("a pack");
    let resident = Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads"));
    let want = clip(&resident, "the blue bird").expect("a clip");
    let engine = Engine::load_dir_streamed(dir.path(), DeviceChoice::Cpu, Some(&bytes)).expect("loads");
    let request = |prompt: &str| GenerateRequest { prompt: prompt.into(), ..GenerateRequest::default() };
    assert!(engine.check(&request(RED)).expect("right").packed);
    assert!(!engine.check(&request("the blue bird")).expect("right").packed);
    let engine = Rc::new(engine);
    // A prompt that is there reads nothing of the encoder, one that is not does.
    let encoder = engine.text_encoder();
    let TextEncoder::Streamed(streamed) = &*encoder else { panic!("it is streamed") };
    clip(&engine, RED).expect("a clip");
    assert_eq!(streamed.meter().peak(), 0);
    assert!(clip(&engine, "the blue bird").expect("a clip") == want);
    assert!(streamed.meter().peak() > 0);

    without_encoder(&dir);
    let engine = Rc::new(Engine::load_dir_streamed(dir.path(), DeviceChoice::Cpu, Some(&bytes)).expect("loads"));
    let error = clip(&engine, "the blue bird").expect_err("it is not there");
    assert!(matches!(error, Error::UnknownPrompt { .. }), "{error}");
    assert!(error.to_string().contains(RED) && error.to_string().contains(CAT), "{error}");
    assert_eq!(clip(&engine, " "), Err(Error::EmptyPrompt));
    // Without a pack the missing files are missed.
    assert!(Engine::load_dir_streamed(dir.path(), DeviceChoice::Cpu, None).is_err());
}

#[test]
fn a_manifest_may_name_its_pack() {
    let dir = tiny(|_| ());
    let want = clip(&Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads")), RED).expect("a clip");
    let bytes = prompt_pack(&dir, &[RED]).expect("a pack");
    let path = dir.path().join("manifest.json");
    let text = std::fs::read_to_string(&path).expect("a manifest");
    let mut manifest: Value = serde_json::from_str(&text).expect("json");
    let identity = Manifest::parse(&text).expect("right").text_identity();
    manifest["prompt_pack"] = json!({"path": "p.safetensors", "bytes": bytes.len(), "sha256": sha256_hex(&bytes)});
    manifest["text_encoder"]["hosted"] = json!(false);
    let parsed = Manifest::parse(&manifest.to_string()).expect("right");
    assert_eq!(parsed.text_identity(), identity, "naming a pack does not change what it was made with");
    std::fs::write(&path, manifest.to_string()).expect("writes");
    std::fs::write(dir.path().join("p.safetensors"), &bytes).expect("writes");
    without_encoder(&dir);
    assert_eq!(verify(dir.path()).expect("a model").problem(), None, "what is left out is not missed");
    let engine = Rc::new(Engine::load_dir_streamed(dir.path(), DeviceChoice::Cpu, None).expect("loads"));
    assert!(clip(&engine, RED).expect("a clip") == want);

    let mut damaged = bytes.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    std::fs::write(dir.path().join("p.safetensors"), &damaged).expect("writes");
    let error = Engine::load_dir_streamed(dir.path(), DeviceChoice::Cpu, None).err().expect("damaged");
    assert_eq!(error.code(), "integrity");
    let checked = verify(dir.path()).expect("a model");
    assert_eq!(checked.problem().map(|error| error.code()), Some("integrity"));
    manifest["prompt_pack"]["path"] = json!("../p.safetensors");
    assert_eq!(Manifest::parse(&manifest.to_string()).map_err(|error| error.code()), Err("manifest"));
    manifest["prompt_pack"]["path"] = json!("tokenizer.json");
    assert_eq!(Manifest::parse(&manifest.to_string()).map_err(|error| error.code()), Err("manifest"));
}

#[test]
fn a_pack_of_another_model_is_refused() {
    let dir = tiny(|_| ());
    let bytes = prompt_pack(&dir, &[RED]).expect("a pack");
    let other = tiny(|model| model["text_encoder"]["layer_norm_epsilon"] = json!(1e-5));
    let negative = tiny(guided);
    let parse = |dir: &TempDir, bytes: &[u8]| PromptPack::parse(bytes, &read_manifest(dir.path()).expect("right"));
    assert!(parse(&dir, &bytes).is_ok());
    for (dir, says) in [(&other, "text encoder of \"tiny\""), (&negative, "negative prompt \"a white sea\"")] {
        let error = parse(dir, &bytes).expect_err("another model");
        assert!(error.code() == "prompt-pack" && error.to_string().contains(says), "{error}");
        let loaded = Engine::load_dir_streamed(dir.path(), DeviceChoice::Cpu, Some(&bytes));
        assert_eq!(loaded.err().map(|error| error.code()), Some("prompt-pack"));
    }
}

/// A pack with another header and other tensors.
fn forged(header: &Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let data: Vec<(&str, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, values)| (*name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views = data
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("a tensor")));
    let metadata = HashMap::from([("kinora_prompts".to_string(), header.to_string())]);
    safetensors::serialize(views, Some(metadata)).expect("a file")
}

#[test]
fn a_malformed_pack_is_refused_with_what_is_wrong() {
    let dir = tiny(|_| ());
    let manifest = read_manifest(dir.path()).expect("right");
    let header = |prompts: &[&str]| json!({"version": 1, "model": "tiny", "text_encoder": manifest.text_identity(), "prompts": prompts});
    let row = |tokens: usize| vec![0.5; 64 * tokens];
    let one = |tokens: usize| vec![("prompt.0", vec![tokens, 64], row(tokens))];
    assert!(PromptPack::parse(&forged(&header(&["a"]), &one(2)), &manifest).is_ok());
    let changed = |field: &str, value: Value| {
        let mut header = header(&["a"]);
        header[field] = value;
        header
    };
    let nan = vec![("prompt.0", vec![1, 64], vec![f32::NAN; 64])];
    let spare = [one(2), vec![("other", vec![1, 64], row(1))]].concat();
    let twice = [one(2), vec![("prompt.1", vec![1, 64], row(1))]].concat();
    for (bytes, says) in [
        (forged(&changed("version", json!(2)), &one(2)), "version 2"),
        (forged(&changed("text_encoder", json!("0")), &one(2)), "was made with"),
        (forged(&changed("prompts", json!("a")), &one(2)), "list of prompts"),
        (forged(&changed("negative", json!("")), &one(2)), "negative is missing"),
        (forged(&json!([]), &one(2)), "list of prompts"),
        (forged(&header(&[]), &[]), "no prompts"),
        (forged(&header(&["a", "b"]), &one(2)), "prompt.1 is missing"),
        (forged(&header(&["a", "a"]), &twice), "there twice"),
        (forged(&header(&[" a"]), &one(2)), "spaces"),
        (forged(&header(&[""]), &one(2)), "empty"),
        (forged(&header(&["a"]), &spare), "2 tensors"),
        (forged(&header(&["a"]), &one(17)), "[1 to 16, 64]"),
        (forged(&header(&["a"]), &[("prompt.0", vec![2, 32], row(1))]), "[1 to 16, 64]"),
        (forged(&header(&["a"]), &[("prompt.0", vec![64], row(1))]), "[1 to 16, 64]"),
        (forged(&header(&["a"]), &nan), "finite"),
        (b"not a file".to_vec(), "safetensors"),
        (std::fs::read(goldens().join("tiny.safetensors")).expect("a golden"), "another kind of file"),
    ] {
        let error = PromptPack::parse(&bytes, &manifest).expect_err(says);
        assert!(error.code() == "prompt-pack" && error.to_string().contains(says), "{says}: {error}");
    }
    // Cut anywhere, it is an error and nothing else.
    let whole = prompt_pack(&dir, &[RED]).expect("a pack");
    for length in (0..whole.len()).step_by(7) {
        let cut = PromptPack::parse(&whole[..length], &manifest);
        assert_eq!(cut.map_err(|error| error.code()).err(), Some("prompt-pack"), "{length} bytes");
    }
}

#[test]
fn a_pack_holds_real_tokens_only_and_is_the_same_file_each_time() {
    let dir = tiny(guided);
    let bytes = prompt_pack(&dir, &[RED, CAT, RED]).expect("a pack");
    assert!(bytes == prompt_pack(&dir, &[RED, CAT]).expect("a pack"), "a prompt given twice is taken once");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let manifest = read_manifest(dir.path()).expect("right");
    let text = TextPart::open(dir.path(), DeviceChoice::Cpu).expect("opens");
    for (name, prompt) in [("prompt.0", RED), ("prompt.1", CAT), ("negative", "a white sea")] {
        let tokens = text.tokenizer.encode(prompt).expect("encodes").ids.len();
        assert!(tokens < manifest.text_encoder.max_tokens);
        assert_eq!(file.tensor(name).expect("a tensor").shape(), [tokens, 64], "{name}");
    }
    assert_eq!(prompt_pack(&dir, &[]).map_err(|error| error.code()), Err("invalid-request"));
    assert_eq!(prompt_pack(&dir, &[" "]), Err(Error::EmptyPrompt));
}
