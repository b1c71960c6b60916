//! LoRAs at run time: the numbers of those that packing merges, none without one, and every refusal by its kind.

mod common;
mod loras;
mod parts;
mod toy;
mod writers;

use std::rc::Rc;

use kinora::Error;
use kinora::compute::Compute;
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::error::LoraProblem;
use kinora::model::manifest::DType;
use kinora::model::quant;
use kinora::model::shards::RawTensor;
use kinora::ops::{Activation, Linear, LowRank};
use kinora::pack::{Lora, Published};
use kinora::selftest::relative_error;
use kinora::weights::Stored;
use safetensors::tensor::SafeTensors;
use toy::{Folder, Weights};
use writers::{File, Kind, stored};

const TOLERANCE: f64 = 1e-5;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(common::goldens().join("tiny").join(name)).expect("the goldens are committed")
}

/// The tiny model's weights.
fn tiny() -> Weights {
    let file = golden("weights.safetensors");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors").tensors();
    tensors.iter().map(|(name, view)| (name.clone(), (view.shape().to_vec(), common::floats(view)))).collect()
}

/// Packs weights of the tiny model as published files, with LoRAs merged into them, and loads the result.
fn packed(weights: &Weights, loras: Vec<Lora>, format: DType) -> (Engine, Folder) {
    let source = |prefix: &str| {
        let strip = |(name, tensor): (&String, &(Vec<usize>, Vec<f32>))| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        parts::open(writers::safetensors(&parts::plain(&weights.iter().filter_map(strip).collect())))
    };
    let published = Published {
        model_json: String::from_utf8(golden("model.json")).expect("text"),
        tokenizer_json: golden("tokenizer.json"),
        transformer: source("transformer."),
        text_encoder: source("text_encoder."),
        autoencoder: source("autoencoder."),
        loras,
        keep: None,
    };
    let folder = Folder::new();
    parts::pack(published, &folder.0, &parts::options(format)).expect("the tiny model packs");
    (Engine::load_dir(&folder.0, DeviceChoice::Cpu).expect("the tiny model loads"), folder)
}

fn merged(file: &File, scale: f32) -> Lora {
    Lora { source: parts::open(loras::bytes(file)), scale }
}

/// A velocity of the tiny model.
fn velocity(engine: &Engine) -> Vec<f32> {
    common::golden_stage(engine, "denoise", "denoise", "velocity").0
}

#[track_caller]
fn close(found: &[f32], wanted: &[f32]) {
    let error = relative_error(found, wanted);
    println!("relative error {error:.1e}");
    assert!(error <= TOLERANCE, "relative error {error:.1e}");
}

#[test]
fn at_run_time_a_lora_is_what_packing_merges() {
    let weights = tiny();
    let (mut engine, _folder) = packed(&weights, Vec::new(), DType::F32);
    let plain = velocity(&engine);
    let first = engine.add_lora("first", &loras::bytes(&loras::first())).unwrap();
    let second = engine.add_lora("second", &loras::bytes(&loras::second())).unwrap();
    assert_eq!(velocity(&engine), plain, "a LoRA that nobody asked for");

    for (strengths, files) in [
        (vec![(first, 1.0)], vec![(loras::first(), 1.0)]),
        (vec![(first, -0.6)], vec![(loras::first(), -0.6)]),
        (vec![(first, 0.7), (second, 1.3)], vec![(loras::first(), 0.7), (loras::second(), 1.3)]),
        (vec![(second, 1.0)], vec![(loras::second(), 1.0)]),
    ] {
        engine.use_loras(&strengths).unwrap();
        let found = velocity(&engine);
        let merge = files.iter().map(|(file, scale)| merged(file, *scale)).collect();
        let (reference, _folder) = packed(&weights, merge, DType::F32);
        close(&found, &velocity(&reference));
        let changed = relative_error(&found, &plain);
        assert!(changed > 0.01, "the LoRA changes nothing worth testing: {changed:.1e}");
    }

    for none in [vec![(first, 0.0)], vec![(first, 0.0), (second, -0.0)], vec![]] {
        engine.use_loras(&none).unwrap();
        assert_eq!(velocity(&engine), plain, "strength 0 and no LoRA are the base, bit for bit");
    }
}

#[test]
fn quantized_weights_stay_as_they_are_beside_a_lora() {
    let weights = tiny();
    for format in [DType::Q4, DType::Q8, DType::F16] {
        let (mut engine, folder) = packed(&weights, Vec::new(), format);
        let lora = engine.add_lora("first", &loras::bytes(&loras::first())).unwrap();
        engine.use_loras(&[(lora, 0.8)]).unwrap();
        // The rounded base, merged and kept in f32: no rounding comes after the merge.
        let rounded = parts::unpacked(&folder.0);
        let base = weights.iter().map(|(name, (shape, _))| (name.clone(), (shape.clone(), rounded[name].clone())));
        let (reference, _folder) = packed(&base.collect(), vec![merged(&loras::first(), 0.8)], DType::F32);
        close(&velocity(&engine), &velocity(&reference));
    }
}

#[test]
fn a_weight_that_is_widened_for_each_use_takes_a_lora_too() {
    let values = |count: usize, salt: usize| (0..count).map(|i| ((i * 37 + salt) % 101) as f32 / 50.0 - 1.0).collect();
    let raw = |dtype: DType, shape: &[usize], salt: usize| {
        let numbers: Vec<f32> = values(shape.iter().product(), salt);
        let group = dtype.quantized().then_some(32);
        let bytes = quant::encode(dtype, shape, group, &numbers).unwrap();
        Stored::Host(RawTensor { name: "layer.weight".into(), dtype, shape: shape.to_vec(), group, bytes })
    };
    let run = |widen_on_load: bool| {
        let compute = Compute { widen_on_load, ..Compute::cpu() };
        let half = |shape: &[usize], salt: usize| Linear::new(&compute, raw(DType::F32, shape, salt), None).unwrap();
        let mut layer = Linear::new(&compute, raw(DType::Q4, &[48, 64], 1), None).unwrap();
        assert_eq!(layer.name(), "layer");
        layer.set_low_rank(vec![(Rc::new(LowRank::new(half(&[4, 64], 2), half(&[48, 4], 3), 0.5)), 0.9)]);
        let x = compute.tensor(values(5 * 64, 4), [5, 64]);
        wait(compute.read(layer.forward(x, Activation::Gelu))).unwrap()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_clip_changes_with_the_strength_and_comes_back_without() {
    let (engine, _folder) = packed(&tiny(), Vec::new(), DType::Q8);
    let mut engine = Rc::new(engine);
    let request = GenerateRequest { prompt: "a red ball".into(), seed: 7, ..GenerateRequest::default() };
    let clip = |engine: &Rc<Engine>| {
        let mut generation = wait(engine.begin(&request)).unwrap();
        while wait(generation.step()).unwrap().is_some() {}
        let mut pixels = Vec::new();
        while let Some(batch) = wait(generation.next_frames()).unwrap() {
            pixels.extend(batch.rgba);
        }
        pixels
    };
    let plain = clip(&engine);
    let change = |engine: &mut Rc<Engine>, loras: &[(u32, f32)]| Rc::get_mut(engine).unwrap().use_loras(loras);
    let lora = Rc::get_mut(&mut engine).unwrap().add_lora("first", &loras::bytes(&loras::first())).unwrap();
    change(&mut engine, &[(lora, 1.0)]).unwrap();
    let full = clip(&engine);
    change(&mut engine, &[(lora, 0.5)]).unwrap();
    let half = clip(&engine);
    assert!(plain != full && plain != half && half != full);
    change(&mut engine, &[]).unwrap();
    assert!(clip(&engine) == plain, "the base is what it was");

    for (wrong, says) in [
        (vec![(lora + 1, 1.0)], "there is no LoRA"),
        (vec![(lora, 1.0), (lora, 0.5)], "twice"),
        (vec![(lora, f32::NAN)], "NaN"),
    ] {
        let error = change(&mut engine, &wrong).unwrap_err();
        assert!(matches!(error, Error::InvalidRequest(_)) && error.to_string().contains(says), "{error}");
        assert!(clip(&engine) == plain, "a refused request changes nothing");
    }
    Rc::get_mut(&mut engine).unwrap().remove_lora(lora);
    assert!(change(&mut engine, &[(lora, 1.0)]).is_err());
}

/// What a file is refused for.
fn problems(engine: &mut Engine, bytes: &[u8]) -> (Vec<LoraProblem>, String) {
    let error = engine.add_lora("wrong.safetensors", bytes).unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("lora", false));
    let text = error.to_string();
    match error {
        Error::Lora { file, problems } if file == "wrong.safetensors" => (problems, text),
        other => panic!("{other}"),
    }
}

#[test]
fn what_does_not_fit_is_refused_by_kind_and_name() {
    let (mut engine, _folder) = packed(&tiny(), Vec::new(), DType::F32);
    let good = loras::second();
    let zeros = |kind, shape: &[usize]| stored(kind, shape, &vec![0.0; shape.iter().product()]);
    let with = |more: Vec<(&str, writers::Stored)>| {
        let mut file = loras::second();
        file.extend(more.into_iter().map(|(key, tensor)| (key.to_owned(), tensor)));
        loras::bytes(&file)
    };

    let (found, text) = problems(
        &mut engine,
        &with(vec![
            ("blocks.9.attn1.to_q.lora_A.weight", zeros(Kind::F32, &[4, 64])),
            ("blocks.0.attn1.to_q.diff", zeros(Kind::F32, &[64, 64])),
            ("lora_te_x.lora_up.weight", zeros(Kind::F32, &[64, 4])),
        ]),
    );
    let unknown = |key: &str| LoraProblem::UnknownLayer(key.into());
    for key in ["blocks.9.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.diff", "lora_te_x.lora_up.weight"] {
        assert!(found.contains(&unknown(key)) && text.contains(key), "{text}");
    }
    assert_eq!(found.len(), 3);

    let key = |half: &str| format!("transformer.blocks.0.attn2.to_k.{half}.weight");
    let pair = |down: writers::Stored, up: writers::Stored| with(vec![(&key("lora_A"), down), (&key("lora_B"), up)]);
    let layer = "blocks.0.attn2.to_k";
    for (down, up) in [([4, 60], [64, 4]), ([4, 64], [60, 4]), ([4, 64], [64, 5]), ([5000, 64], [64, 5000])] {
        let (found, _) = problems(&mut engine, &pair(zeros(Kind::F32, &down), zeros(Kind::F32, &up)));
        let (up, down) = (up.to_vec(), down.to_vec());
        assert_eq!(found, [LoraProblem::WrongShape { layer: layer.into(), up, down, weight: vec![64, 64] }]);
    }
    let (found, _) = problems(&mut engine, &with(vec![(&key("lora_A"), zeros(Kind::F32, &[4, 64]))]));
    assert_eq!(found, [LoraProblem::Incomplete(layer.into())]);
    let (found, _) = problems(&mut engine, &pair(zeros(Kind::I64, &[4, 64]), zeros(Kind::F32, &[64, 4])));
    assert_eq!(found, [LoraProblem::WrongType { key: key("lora_A"), found: "I64".into() }]);
    let mut up = vec![0.0; 256];
    up[17] = f32::NAN;
    let (found, text) = problems(&mut engine, &pair(zeros(Kind::F32, &[4, 64]), stored(Kind::F32, &[64, 4], &up)));
    assert!(matches!(found[..], [LoraProblem::NotFinite(_)]) && text.contains("value 17 is NaN"), "{text}");
    let alpha = ("blocks.0.self_attn.q.alpha", zeros(Kind::F32, &[2]));
    let (found, _) = problems(&mut engine, &with(vec![alpha]));
    assert_eq!(found, [LoraProblem::WrongAlpha("blocks.0.attn1.to_q".into())]);

    let weights = golden("weights.safetensors");
    let (whole, cut) = (loras::bytes(&good), loras::bytes(&good).len() / 2);
    for no_lora in [&b"<!doctype html>"[..], b"", &weights, &whole[..cut]] {
        assert!(matches!(problems(&mut engine, no_lora).0[..], [LoraProblem::NotALora(_)]));
    }
    engine.add_lora("good", &whole).unwrap();
}
