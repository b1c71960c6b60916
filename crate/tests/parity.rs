//! The engine on the CPU device against PyTorch, stage by stage.
//!
//! The goldens come from `tests/goldens/make.py` (diffusers, transformers and a TAEHV in PyTorch, seeded random
//! weights); nothing here needs Python.

mod common;

use std::rc::Rc;

use common::{TempDir, floats, golden_stage, goldens};
use kinora::decode::taehv::{frames_inward, latent_frame};
use kinora::denoise::wan::Input;
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::model::manifest::{CausalConfig, DType};
use kinora::pack::{Export, PackOptions, pack};
use kinora::selftest::relative_error;
use kinora::stage::{Stage, run_stage};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

const TOLERANCE: f64 = 1e-4;

/// The tiny model packed in a format, in a directory of its own.
fn tiny(format: DType) -> (Engine, TempDir) {
    tiny_with(format, |model_json| model_json)
}

/// As `tiny`, with a changed `model.json`.
fn tiny_with(format: DType, change: impl FnOnce(String) -> String) -> (Engine, TempDir) {
    let dir = TempDir::new();
    let read = |name: &str| std::fs::read(goldens().join("tiny").join(name)).expect("the goldens are committed");
    let model_json = change(String::from_utf8(read("model.json")).expect("text"));
    let (tokenizer_json, weights) = (read("tokenizer.json"), read("weights.safetensors"));
    let export = Export { model_json: &model_json, tokenizer_json: &tokenizer_json, weights: &weights };
    let options = PackOptions { format, group: 32, ..PackOptions::default() };
    pack(&export, dir.path(), &options).expect("the tiny model packs");
    (Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("the tiny model loads"), dir)
}

#[test]
fn every_stage_matches_pytorch_in_f32() {
    let (engine, _dir) = tiny(DType::F32);
    for (name, output) in [
        ("encode-text", "embeddings"),
        ("block0", "hidden"),
        ("denoise", "velocity"),
        ("sample", "latents"),
        ("decode", "frames"),
        ("encode", "latents"),
    ] {
        let (got, want) = golden_stage(&engine, name, name, output);
        let error = relative_error(&got, &want);
        println!("{name}: relative error {error:.2e}");
        assert!(error < TOLERANCE, "{name}: relative error {error:.2e}");
    }
}

/// What no stage can compute is refused by a stage, too, and not by a panic.
#[test]
fn inputs_that_do_not_fit_a_stage_are_refused() {
    let (engine, _dir) = tiny(DType::F32);
    let width = engine.manifest.transformer.num_attention_heads * engine.manifest.transformer.attention_head_dim;
    let run = |stage: &str, tensors: &[(&str, Dtype, Vec<usize>)]| {
        let zeros = |shape: &[usize]| vec![0; 4 * shape.iter().product::<usize>()];
        let data: Vec<Vec<u8>> = tensors.iter().map(|(.., shape)| zeros(shape)).collect();
        let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
            (*name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
        });
        let input = safetensors::serialize(views, None).expect("a file");
        wait(run_stage(&engine, stage.parse::<Stage>().expect("a stage"), &input)).map_err(|error| error.code())
    };
    let block = |tokens: usize, frames: usize, text: usize| {
        let projection = ("timestep_proj", Dtype::F32, vec![frames, 6, width]);
        let hidden = ("hidden", Dtype::F32, vec![tokens, width]);
        // All zero: the grid is 0x0x0.
        run("block0", &[hidden, projection, ("text", Dtype::F32, vec![text, width]), ("grid", Dtype::I32, vec![3])])
    };
    assert_eq!(block(0, 0, 1), Err("invalid-request"));
    assert_eq!(block(1, 1, 0), Err("invalid-request"));
    let ids = |count: usize| run("encode-text", &[("input_ids", Dtype::I32, vec![count])]);
    let most = engine.manifest.text_encoder.max_tokens;
    assert!(ids(most).is_ok());
    assert_eq!(ids(most + 1), Err("prompt-too-long"));
}

/// TAEHV pads behind the last frame where the built-in model pads in front of the first; six frames need two more.
#[test]
fn trailing_padding_matches_pytorch() {
    let (engine, _dir) = tiny_with(DType::F32, |model_json| {
        let changed = model_json.replace("\"leading\"", "\"trailing\"");
        assert_ne!(changed, model_json);
        changed
    });
    let (got, want) = golden_stage(&engine, "encode", "encode-trailing", "latents");
    let error = relative_error(&got, &want);
    println!("encode with trailing padding: relative error {error:.2e}");
    assert!(error < TOLERANCE, "relative error {error:.2e}");
}

/// Two passes a step, one of them with the empty prompt.
#[test]
fn guidance_matches_pytorch() {
    let (engine, _dir) = tiny_with(DType::F32, |model_json| {
        let changed = model_json.replace("\"step\": \"euler\"", "\"step\": \"euler\", \"guidance\": 3.0");
        assert_ne!(changed, model_json);
        changed
    });
    let (got, want) = golden_stage(&engine, "sample", "sample-guided", "latents");
    let error = relative_error(&got, &want);
    println!("sample with guidance: relative error {error:.2e}");
    assert!(error < TOLERANCE, "relative error {error:.2e}");
}

/// Chunks with the cache of the ones before equal one masked pass over the whole clip, also where frames have left the
/// window.
#[test]
fn chunks_with_a_cache_match_a_masked_pass_in_pytorch() {
    let (engine, _dir) = tiny(DType::F32);
    let file = std::fs::read(goldens().join("tiny.safetensors")).expect("the goldens are committed");
    let all = SafeTensors::deserialize(&file).expect("the goldens are safetensors");
    let read = |name: &str| floats(&all.tensor(name).expect("the golden"));
    let [channels, frames, height, width] = [8, 4, 4, 6];
    for (case, chunk, sink, window) in [("causal", 2, 0, 8), ("causal-window", 1, 1, 1)] {
        let clip = read(&format!("{case}.in.latents"));
        let compute = &engine.compute;
        let denoiser = wait(engine.denoiser()).expect("it is there");
        let text = denoiser.text_context(compute, read(&format!("{case}.in.text")), 16).expect("the text fits");
        let config =
            CausalConfig { chunk_frames: chunk, sink_frames: sink, window_frames: window, ..CausalConfig::default() };
        let shape = [channels, chunk, height, width];
        let part = |first: usize| {
            let pieces: Vec<Vec<f32>> = (first..first + chunk)
                .map(|frame| latent_frame(&clip, [channels, frames, height, width], frame))
                .collect();
            frames_inward(&pieces, shape)
        };
        let mut past = denoiser.cache(&config, shape);
        for first in (0..frames - chunk).step_by(chunk) {
            let input = Input { latents: &part(first), shape, timesteps: &vec![0.0; chunk], text: &text };
            wait(denoiser.remember(compute, input, &mut past)).expect("remembers");
        }
        assert_eq!((past.position(), past.held()), (frames - chunk, (frames - chunk).min(sink + window)));
        let last = Input { latents: &part(frames - chunk), shape, timesteps: &vec![640.0; chunk], text: &text };
        let got = wait(denoiser.velocity_after(compute, last, &past)).expect("runs");
        let want = read(&format!("{case}.out.velocity"));
        let error = relative_error(&got, &want);
        println!("{case}: relative error {error:.2e}");
        assert!(error < TOLERANCE, "{case}: relative error {error:.2e}");
        // Without its past the chunk is another one.
        let alone = wait(denoiser.velocity(compute, last)).expect("runs");
        assert!(relative_error(&alone, &want) > 1e-2, "{case} does not depend on the past");
    }
}

/// A size that is no whole number of tokens shows the middle of what its latents decode to.
#[test]
fn frames_are_cut_to_the_size_of_the_clip() {
    let (engine, _dir) = tiny_with(DType::F32, |model_json| {
        let changed = model_json.replace("\"width\": 96", "\"width\": 90").replace("\"height\": 64", "\"height\": 50");
        assert_ne!(changed, model_json);
        changed
    });
    let run = |engine: Engine| {
        let request = GenerateRequest { prompt: "a slow cat".into(), seed: 3, ..GenerateRequest::default() };
        let mut generation = wait(Rc::new(engine).begin(&request)).expect("begins");
        while wait(generation.step()).expect("steps").is_some() {}
        let preview = wait(generation.preview()).expect("previews");
        let first = wait(generation.next_frames()).expect("decodes").expect("a frame");
        (preview, first.rgba)
    };
    let (whole_preview, whole) = run(tiny(DType::F32).0);
    let (cut_preview, cut) = run(engine);
    for (whole, cut) in [(whole_preview, cut_preview), (whole, cut)] {
        assert_eq!((whole.len(), cut.len()), (96 * 64 * 4, 90 * 50 * 4));
        for (y, row) in cut.chunks_exact(90 * 4).enumerate() {
            let from = ((y + 7) * 96 + 3) * 4;
            assert_eq!(row, &whole[from..from + 90 * 4], "row {y}");
        }
    }
}

/// A causal model gives the frames of a chunk before it begins the next, and all of them in the end.
#[test]
fn a_causal_clip_comes_chunk_by_chunk() {
    let causal = |chunk: usize| {
        tiny_with(DType::F32, move |model_json| {
            let section =
                format!("\"causal\": {{\"chunk_frames\": {chunk}, \"window_frames\": 4}}, \"step\": \"euler\"");
            let changed = model_json.replace("\"step\": \"euler\"", &section);
            assert_ne!(changed, model_json);
            changed
        })
    };
    let run = |engine: Engine| {
        let engine = Rc::new(engine);
        let request = GenerateRequest { prompt: "a slow cat".into(), seed: 3, ..GenerateRequest::default() };
        let mut generation = wait(engine.begin(&request)).expect("begins");
        let (mut steps, mut bursts, mut frames) = (0, Vec::new(), Vec::new());
        while !generation.finished() {
            while let Some(step) = wait(generation.step()).expect("steps") {
                assert_eq!((step.index, step.steps), (steps, generation.steps()));
                steps += 1;
            }
            let before = frames.len();
            while let Some(batch) = wait(generation.next_frames()).expect("decodes") {
                assert_eq!(batch.first * 96 * 64 * 4, frames.len());
                frames.extend(batch.rgba);
            }
            bursts.push((frames.len() - before) / (96 * 64 * 4));
        }
        assert_eq!(steps, generation.steps());
        (bursts, frames)
    };
    let (whole, plain) = run(tiny(DType::F32).0);
    assert_eq!(whole, [9]);
    // One chunk that holds all is the same as no chunks.
    assert_eq!(run(causal(3).0), (vec![9], plain.clone()));
    let (bursts, chunked) = run(causal(1).0);
    assert_eq!(bursts, [1, 4, 4]);
    assert_ne!(chunked, plain);
    assert_eq!(run(causal(2).0).0, [5, 4]);
}

/// The tiny model's weights are exact in f16, so that format must give the same. Quantizing must change the result (or
/// the test above proves nothing about these formats) and must not wreck it.
#[test]
fn other_formats_stay_near_f32() {
    for (format, at_least, at_most) in [(DType::F16, 0.0, TOLERANCE), (DType::Q8, 1e-4, 3e-2), (DType::Q4, 1e-2, 0.35)]
    {
        let (engine, _dir) = tiny(format);
        let (got, want) = golden_stage(&engine, "denoise", "denoise", "velocity");
        let error = relative_error(&got, &want);
        println!("{format:?}: relative error {error:.2e}");
        assert!(error >= at_least && error < at_most, "{format:?}: relative error {error:.2e}");
    }
}

/// The browser tests load a packed copy of the tiny model; it must be what packing gives today.
#[test]
fn the_committed_packed_model_is_current() {
    let (_engine, dir) = tiny(DType::F16);
    let mut names = 0;
    for entry in std::fs::read_dir(dir.path()).expect("the packed model") {
        let name = entry.expect("an entry").file_name();
        let fresh = std::fs::read(dir.path().join(&name)).expect("a packed file");
        let committed = std::fs::read(goldens().join("tiny-model").join(&name)).unwrap_or_default();
        assert!(fresh == committed, "{name:?} differs; pack tests/goldens/tiny again with --format f16");
        names += 1;
    }
    assert!(names >= 3);
}

/// Weights that stay packed in host memory give what weights widened at load give.
#[test]
fn packed_weights_compute_the_same() {
    use kinora::compute::Compute;
    use kinora::model::{quant, shards::RawTensor};
    use kinora::ops::Activation;
    use kinora::weights::WeightStore;

    let values = kinora::latents::noise::normal(3, 0, 48 * 64);
    let bytes = quant::encode(DType::Q4, &[48, 64], Some(32), &values).expect("encodes");
    let raw = RawTensor { name: "layer.weight".into(), dtype: DType::Q4, shape: vec![48, 64], group: Some(32), bytes };
    let mut results = Vec::new();
    for widen_on_load in [true, false] {
        let compute = Compute { widen_on_load, ..Compute::cpu() };
        let mut store = WeightStore::new(compute.clone());
        store.insert(raw.clone());
        let x = compute.tensor(kinora::latents::noise::normal(4, 0, 5 * 64), [5, 64]);
        let y = store.linear("layer").expect("a layer").forward(x, Activation::Gelu);
        results.push(wait(compute.read(y)).expect("reads"));
    }
    assert_eq!(results[0], results[1]);
}

#[test]
fn noise_matches_the_python_implementation() {
    let text = std::fs::read_to_string(goldens().join("noise.json")).expect("the goldens are committed");
    let goldens: serde_json::Value = serde_json::from_str(&text).expect("json");
    let cases = goldens["normal"].as_array().expect("cases");
    assert!(cases.len() >= 6);
    for case in cases {
        let seed = case["seed"].as_u64().expect("seed");
        let stream = case["stream"].as_u64().expect("stream") as u32;
        let count = case["count"].as_u64().expect("count") as usize;
        let got = kinora::latents::noise::normal(seed, stream, count);
        let bits: Vec<String> = got.iter().take(16).map(|v| format!("{:08x}", v.to_bits())).collect();
        let want: Vec<&str> = case["first_bits"].as_array().expect("bits").iter().filter_map(|v| v.as_str()).collect();
        assert_eq!(bits, want, "seed {seed} stream {stream}");
        let bytes: Vec<u8> = got.iter().flat_map(|v| v.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, case["sha256"].as_str().expect("hash"), "seed {seed} stream {stream}");
    }
}

/// The layout and numbering of the public TAEW2.1 file, on random weights. The fixture is not part of the repository.
#[test]
fn the_public_autoencoder_layout_matches_its_reference() {
    use kinora::compute::Compute;
    use kinora::decode::taehv::{Taehv, frames_inward, latent_frame};
    use kinora::model::manifest::{AutoencoderConfig, AutoencoderKind, EncoderPadding};
    use kinora::model::shards::RawTensor;
    use kinora::weights::WeightStore;

    let dir = goldens().join("../../../shared/fixtures");
    let (Ok(weights), Ok(golden)) = (
        std::fs::read(dir.join("taew2_1-random-weights.safetensors")),
        std::fs::read(dir.join("taew2_1-golden.safetensors")),
    ) else {
        println!("skipped: the TAEW2.1 fixtures are not here");
        return;
    };
    let compute = Compute::cpu();
    let mut store = WeightStore::new(compute.clone());
    for (name, view) in SafeTensors::deserialize(&weights).expect("weights").tensors() {
        assert_eq!(view.dtype(), Dtype::F16);
        store.insert(RawTensor {
            name: format!("autoencoder.{name}"),
            dtype: DType::F16,
            shape: view.shape().to_vec(),
            group: None,
            bytes: view.data().to_vec(),
        });
    }
    let config = AutoencoderConfig {
        kind: AutoencoderKind::Taehv,
        image_channels: 3,
        latent_channels: 16,
        patch_size: 1,
        encoder_channels: [64; 4],
        decoder_channels: [256, 128, 64, 64],
        encoder_time_downscale: [true, true, false],
        decoder_time_upscale: [false, true, true],
        decoder_space_upscale: [true; 3],
        encoder_padding: EncoderPadding::Trailing,
    };
    let model = Taehv::load(&config, &mut store).expect("the layout loads");
    let golden = SafeTensors::deserialize(&golden).expect("golden");
    let tensor = |name: &str| floats(&golden.tensor(name).expect(name));

    // N T C H W with N = 1: [3, 16, 6, 10] latents, [9, 3, 48, 80] frames.
    let latents: Vec<Vec<f32>> = tensor("latent").chunks(16 * 60).map(<[f32]>::to_vec).collect();
    let mut state = model.start_decoding();
    let mut frames = Vec::new();
    for latent in latents {
        let mut decoding = model.decoding(state);
        for (frame, size) in wait(decoding.next(&compute, latent, 6, 10)).expect("decodes") {
            assert_eq!(size, [48, 80]);
            frames.extend(frame);
        }
        state = decoding.into_state();
    }
    let error = relative_error(&frames, &tensor("frames"));
    println!("decode: relative error {error:.2e}");
    assert!(error < TOLERANCE, "decode: {error:.2e}");

    let video: Vec<Vec<f32>> = tensor("video").chunks(3 * 48 * 80).map(<[f32]>::to_vec).collect();
    let (latents, shape) = wait(model.encode(&compute, &video, 48, 80)).expect("encodes");
    assert_eq!(shape, [16, 3, 6, 10]);
    let frame_major: Vec<f32> = (0..3).flat_map(|index| latent_frame(&latents, shape, index)).collect();
    let error = relative_error(&frame_major, &tensor("encoded"));
    println!("encode: relative error {error:.2e}");
    assert!(error < TOLERANCE, "encode: {error:.2e}");
    let pieces: Vec<Vec<f32>> = (0..3).map(|index| latent_frame(&latents, shape, index)).collect();
    assert_eq!(frames_inward(&pieces, shape), latents);
}
