//! The cache of a causal model in fewer bits, on the CPU device: near f32, smaller, and really in use.

mod common;

use std::rc::Rc;

use common::{TempDir, floats, goldens};
use kinora::decode::taehv::{frames_inward, latent_frame};
use kinora::denoise::wan::Input;
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::model::cache::CacheFormat;
use kinora::model::manifest::{CausalConfig, DType};
use kinora::pack::{Export, PackOptions, pack, read_manifest};
use kinora::selftest::relative_error;
use safetensors::tensor::SafeTensors;

/// How far a result may be from the one with an f32 cache, as a share of it. A half is off by 2^-11 of itself at most,
/// half of that on average. A q8 step is 1/127 of its group's largest value; of 32 normal values that is 2.1 deviations
/// or so, which makes the error 2.1 / 127 / sqrt(12) = 0.5 % of the values. Attention averages over keys, and the
/// residual carries most of the signal, so what comes out is nearer than that.
const BOUNDS: [(CacheFormat, f64); 2] = [(CacheFormat::F16, 2.5e-4), (CacheFormat::Q8, 5e-3)];

/// The tiny model with chunks of one frame and a sink and a window of one, packed with `cache`.
fn causal(cache: Option<CacheFormat>) -> (Engine, TempDir) {
    let dir = TempDir::new();
    let read = |name: &str| std::fs::read(goldens().join("tiny").join(name)).expect("the goldens are committed");
    let section = "\"causal\": {\"chunk_frames\": 1, \"sink_frames\": 1, \"window_frames\": 1}, \"step\": \"euler\"";
    let model_json = String::from_utf8(read("model.json")).expect("text").replace("\"step\": \"euler\"", section);
    assert!(model_json.contains(section));
    let (tokenizer_json, weights) = (read("tokenizer.json"), read("weights.safetensors"));
    let export = Export { model_json: &model_json, tokenizer_json: &tokenizer_json, weights: &weights };
    pack(&export, dir.path(), &PackOptions { format: DType::F32, cache, ..PackOptions::default() }).expect("packs");
    (Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("the tiny model loads"), dir)
}

/// Velocity of the last chunk of a golden's clip after all before it, and the bytes of the cache then.
fn last_velocity(engine: &Engine, case: &str, config: &CausalConfig) -> (Vec<f32>, u64) {
    let file = std::fs::read(goldens().join("tiny.safetensors")).expect("the goldens are committed");
    let all = SafeTensors::deserialize(&file).expect("the goldens are safetensors");
    let read = |name: &str| floats(&all.tensor(&format!("{case}.in.{name}")).expect("the golden"));
    let ([channels, frames, height, width], chunk) = ([8, 4, 4, 6], config.chunk_frames);
    let (clip, compute) = (read("latents"), &engine.compute);
    let denoiser = wait(engine.denoiser()).expect("it is there");
    let text = denoiser.text_context(compute, read("text"), 16).expect("the text fits");
    let shape = [channels, chunk, height, width];
    let part = |first: usize| {
        let frame = |frame| latent_frame(&clip, [channels, frames, height, width], frame);
        frames_inward(&(first..first + chunk).map(frame).collect::<Vec<_>>(), shape)
    };
    let mut past = denoiser.cache(config, shape);
    assert_eq!(past.bytes(), 0);
    for first in (0..frames - chunk).step_by(chunk) {
        let input = Input { latents: &part(first), shape, timesteps: &vec![0.0; chunk], text: &text };
        wait(denoiser.remember(compute, input, &mut past)).expect("remembers");
    }
    let last = Input { latents: &part(frames - chunk), shape, timesteps: &vec![640.0; chunk], text: &text };
    (wait(denoiser.velocity_after(compute, last, &past)).expect("runs"), past.bytes())
}

/// With all frames held, and with a sink and a window that some have left.
#[test]
fn fewer_bits_stay_near_f32_and_take_less_memory() {
    let (engine, _dir) = causal(None);
    for (case, chunk_frames, sink_frames, window_frames) in [("causal", 2, 0, 8), ("causal-window", 1, 1, 1)] {
        let config = |cache| CausalConfig { chunk_frames, sink_frames, window_frames, cache, ..Default::default() };
        let (exact, bytes) = last_velocity(&engine, case, &config(CacheFormat::F32));
        // Two frames of 2 x 3 tokens, keys and values.
        let wan = &engine.manifest.transformer;
        assert_eq!(bytes, (2 * 2 * 6 * wan.inner_dim() * wan.num_layers * 4) as u64, "{case}");
        for (format, bound) in BOUNDS {
            let (near, less) = last_velocity(&engine, case, &config(format));
            let error = relative_error(&near, &exact);
            println!("{case} in {}: relative error {error:.2e}, {less} of {bytes} bytes", format.name());
            assert!(error > 0.0 && error < bound, "{case} in {}: relative error {error:.2e}", format.name());
            assert_eq!(less, if format == CacheFormat::F16 { bytes / 2 } else { bytes * 9 / 32 });
        }
    }
}

#[test]
fn a_clip_is_made_with_the_cache_it_was_packed_with() {
    let run = |cache| {
        let (engine, dir) = causal(cache);
        let written = read_manifest(dir.path()).expect("a manifest").sampler.causal.expect("it is causal").cache;
        assert_eq!(written, cache.unwrap_or_default());
        let request = GenerateRequest { prompt: "a slow cat".into(), seed: 3, ..GenerateRequest::default() };
        let mut generation = wait(Rc::new(engine).begin(&request)).expect("begins");
        let mut frames = Vec::new();
        while !generation.finished() {
            while wait(generation.step()).expect("steps").is_some() {}
            while let Some(batch) = wait(generation.next_frames()).expect("decodes") {
                frames.extend(batch.rgba);
            }
        }
        frames
    };
    let exact = run(None);
    assert_eq!(run(Some(CacheFormat::F32)), exact);
    for format in [CacheFormat::F16, CacheFormat::Q8] {
        let near = run(Some(format));
        let most = near.iter().zip(&exact).map(|(a, b)| a.abs_diff(*b)).max().expect("frames");
        println!("a clip in {}: {most} of 255 at most", format.name());
        assert_eq!(near.len(), exact.len());
        assert!(most <= 8, "{}: {most} of 255", format.name());
        assert!(format == CacheFormat::F16 || near != exact, "q8 changes no pixel, so it is not in use");
    }
}
