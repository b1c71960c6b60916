//! Sizes with a low-rank change of their own: the numbers of merged weights, nothing for the other sizes, in turns and on a
//! GPU as well, and every refusal.

mod common;
mod loras;
mod writers;

use std::collections::BTreeMap;
use std::rc::Rc;

use common::{TempDir, floats, goldens, psnr, strict};
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::error::Error;
use kinora::generation::Generation;
use kinora::model::layout;
use kinora::model::manifest::{DType, Manifest, VideoSize};
use kinora::model::plan::Residency;
use kinora::pack::{Export, MANIFEST_FILE, PackOptions, pack, read_manifest};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use writers::{Kind, stored};

/// Not a multiple of four, as the GPU's kernel needs it.
const RANK: usize = 6;
const OWN: [u32; 2] = [96, 64];
const CHANGED: [u32; 2] = [64, 96];

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The tiny model's weights.
fn tiny() -> Tensors {
    let file = std::fs::read(goldens().join("tiny/weights.safetensors")).expect("the goldens are committed");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors").tensors();
    tensors.iter().map(|(name, view)| (name.clone(), (view.shape().to_vec(), floats(view)))).collect()
}

/// A change of every layer that has one, of size `CHANGED`.
fn change(manifest: &Manifest) -> Tensors {
    let [width, height] = CHANGED;
    let size = VideoSize { width, height, frames: vec![9], lora_rank: Some(RANK) };
    let values =
        |count: usize, salt: usize| (0..count).map(|i| ((i * 53 + salt * 17) % 97) as f32 / 220.0 - 0.22).collect();
    let with_values = |(salt, tensor): (usize, layout::Expected)| {
        (tensor.name, (tensor.shape.clone(), values(tensor.shape.iter().product(), salt)))
    };
    layout::size_lora(&manifest.transformer, &size).into_iter().enumerate().map(with_values).collect()
}

/// Weights with the change added to them.
fn merged(weights: &Tensors, change: &Tensors) -> Tensors {
    let mut merged = weights.clone();
    for (name, (shape, down)) in change {
        let Some(layer) = name.strip_suffix(".lora_A.weight") else { continue };
        let (_, up) = &change[&format!("{layer}.lora_B.weight")];
        let own = layer.strip_prefix("transformer.size_loras.64x96.").expect("the size's prefix");
        let (_, weight) = merged.get_mut(&format!("transformer.{own}.weight")).expect("the layer");
        let columns = shape[1];
        for (at, value) in weight.iter_mut().enumerate() {
            let (row, column) = (at / columns, at % columns);
            *value += (0..RANK).map(|rank| up[row * RANK + rank] * down[rank * columns + column]).sum::<f32>();
        }
    }
    merged
}

/// The tiny model in both sizes, packed.
fn packed(weights: &Tensors, lora_rank: Option<usize>, format: DType) -> Result<TempDir, Error> {
    let dir = TempDir::new();
    let read = |name: &str| std::fs::read(goldens().join("tiny").join(name)).expect("the goldens are committed");
    let mut model: Value = serde_json::from_slice(&read("model.json")).expect("json");
    let size = |[width, height]: [u32; 2]| json!({"width": width, "height": height, "frames": [9]});
    model["video"]["sizes"] = json!([size(OWN), size(CHANGED)]);
    if let Some(rank) = lora_rank {
        model["video"]["sizes"][1]["lora_rank"] = json!(rank);
    }
    let bytes: BTreeMap<&String, Vec<u8>> = weights
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let view = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f32>))| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).expect("a view"))
    };
    let weights = safetensors::serialize(weights.iter().map(view), None).expect("weights");
    let tokenizer = read("tokenizer.json");
    let export = Export { model_json: &model.to_string(), tokenizer_json: &tokenizer, weights: &weights };
    pack(&export, dir.path(), &PackOptions { format, ..PackOptions::default() })?;
    Ok(dir)
}

/// The tiny model with a change for one size, without, and with the change merged into its weights.
fn models(format: DType) -> [TempDir; 3] {
    let weights = tiny();
    let plain = packed(&weights, None, format).expect("packs");
    let change = change(&read_manifest(plain.path()).expect("a manifest"));
    let with: Tensors = weights.iter().chain(&change).map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    let changed = packed(&with, Some(RANK), format).expect("packs");
    [changed, plain, packed(&merged(&weights, &change), None, format).expect("packs")]
}

fn load(dir: &TempDir) -> Engine {
    Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("the model loads")
}

fn request([width, height]: [u32; 2]) -> GenerateRequest {
    let prompt = "a red ball bounces on green grass".into();
    GenerateRequest { prompt, seed: 5, width: Some(width), height: Some(height), ..Default::default() }
}

fn rest(generation: &mut Generation) -> Vec<u8> {
    while wait(generation.step()).expect("a step").is_some() {}
    let mut pixels = Vec::new();
    while let Some(batch) = wait(generation.next_frames()).expect("frames") {
        pixels.extend(batch.rgba);
    }
    pixels
}

fn clip(engine: &Rc<Engine>, size: [u32; 2]) -> Vec<u8> {
    rest(&mut wait(engine.begin(&request(size))).expect("a clip begins"))
}

#[test]
fn a_size_has_its_change_and_the_others_have_none() {
    let [changed, plain, merged] = models(DType::F32).map(|dir| Rc::new(load(&dir)));
    let (own, wide) = (clip(&plain, OWN), clip(&changed, CHANGED));
    let (same, other) = (psnr(&wide, &clip(&merged, CHANGED)), psnr(&wide, &clip(&plain, CHANGED)));
    println!("with the change beside the weights against merged: {same:.1} dB, against none: {other:.1} dB");
    assert!(same > 60.0, "{same:.1} dB");
    assert!(other < 35.0, "the change changes nothing worth testing: {other:.1} dB");
    // After a clip that needed it, and after one that did not.
    assert!(clip(&changed, OWN) == own, "a size without a change is the base, bit for bit");
    assert!(clip(&changed, CHANGED) == wide);

    // Two clips in the making, step by step.
    let begin = |size| wait(changed.begin(&request(size))).expect("a clip begins");
    let (mut first, mut second) = (begin(OWN), begin(CHANGED));
    for _ in 0..2 {
        wait(first.step()).expect("a step");
        wait(second.step()).expect("a step");
    }
    assert!(rest(&mut first) == own && rest(&mut second) == wide, "each clip has its own");
}

#[test]
fn other_loras_come_on_top() {
    let [mut changed, _, mut merged] = models(DType::F32).map(|dir| load(&dir));
    let file = loras::bytes(&loras::first());
    for engine in [&mut changed, &mut merged] {
        let lora = engine.add_lora("first", &file).expect("a LoRA");
        engine.use_loras(&[(lora, 0.7)]).expect("it is used");
    }
    let [changed, merged] = [changed, merged].map(Rc::new);
    let same = psnr(&clip(&changed, CHANGED), &clip(&merged, CHANGED));
    assert!(same > 60.0, "{same:.1} dB");
}

#[test]
fn in_turns_the_change_is_read_with_the_denoiser() {
    let [dir, ..] = models(DType::Q8);
    let together = Rc::new(load(&dir));
    let clips = [CHANGED, OWN].map(|size| clip(&together, size));
    // The least memory that is enough.
    let turns = (1..4096)
        .map(|part| part << 16)
        .find_map(|memory| Engine::load_dir_within(dir.path(), DeviceChoice::Cpu, None, memory, &request(CHANGED)).ok())
        .expect("so much memory that the parts fit in turns");
    let turns = Rc::new(turns);
    for (size, together) in [CHANGED, OWN].into_iter().zip(clips) {
        let mut generation = wait(turns.begin(&request(size))).expect("a clip begins");
        assert_eq!(generation.residency(), Residency::Turns);
        assert!(rest(&mut generation) == together);
    }
}

#[test]
fn a_gpu_fills_up_the_rank() {
    if strict().is_none() {
        return;
    }
    let [dir, ..] = models(DType::Q8);
    let gpu = Engine::load_dir(dir.path(), DeviceChoice::Gpu { strict_limits: true }).expect("the model loads");
    let (gpu, cpu) = (Rc::new(gpu), Rc::new(load(&dir)));
    for size in [CHANGED, OWN] {
        let same = psnr(&clip(&gpu, size), &clip(&cpu, size));
        println!("{size:?} on the GPU against the CPU: {same:.1} dB");
        assert!(same > 45.0, "{same:.1} dB");
    }
}

#[test]
fn wrong_manifests_are_refused() {
    let [dir, ..] = models(DType::F16);
    let text = std::fs::read_to_string(dir.path().join(MANIFEST_FILE)).expect("text");
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut manifest: Value = serde_json::from_str(&text).expect("json");
        change(&mut manifest);
        Manifest::parse(&manifest.to_string()).expect_err("it is wrong").to_string()
    };
    Manifest::parse(&text).expect("it is right");
    for rank in [json!(0), json!(257), json!(-1), json!("6")] {
        let message = refused(&|manifest| manifest["video"]["sizes"][1]["lora_rank"] = rank.clone());
        assert!(message.contains("lora_rank") || message.contains("cannot be read"), "{message}");
    }
    let message = refused(&|manifest| manifest["video"]["sizes"][1]["lora_rank"] = json!(RANK + 1));
    assert!(message.contains("of the wrong shape: transformer.size_loras.64x96."), "{message}");
    let message = refused(&|manifest| {
        let tensors = manifest["tensors"].as_object_mut().expect("tensors");
        tensors.remove("transformer.size_loras.64x96.blocks.1.ffn.net.2.lora_B.weight");
    });
    assert!(message.contains("1 missing: transformer.size_loras.64x96.blocks.1.ffn.net.2.lora_B.weight"), "{message}");
    let message = refused(&|manifest| {
        manifest["video"]["sizes"][1].as_object_mut().expect("a size").remove("lora_rank");
    });
    assert!(message.contains("unknown: transformer.size_loras."), "{message}");
    // 62x96 is the middle of 64x96: its latents are the same.
    let message = refused(&|manifest| {
        let sizes = manifest["video"]["sizes"].as_array_mut().expect("sizes");
        sizes.push(json!({"width": 62, "height": 96, "frames": [9]}));
    });
    assert!(message.contains("another size with the latents of 62x96"), "{message}");
}

#[test]
fn a_change_is_no_layer_that_a_lora_may_change() {
    let [dir, ..] = models(DType::F32);
    let mut engine = load(&dir);
    let mut file = loras::first();
    let change = "transformer.size_loras.64x96.blocks.0.attn1.to_q.lora_A";
    file.insert(format!("{change}.lora_A.weight"), stored(Kind::F32, &[2, 64], &[0.0; 128]));
    file.insert(format!("{change}.lora_B.weight"), stored(Kind::F32, &[RANK, 2], &[0.0; 2 * RANK]));
    let error = engine.add_lora("wrong", &loras::bytes(&file)).expect_err("there is no such layer").to_string();
    assert!(error.contains("size_loras.64x96.blocks.0.attn1.to_q"), "{error}");
}
