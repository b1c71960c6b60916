//! The data of the registry against formulas and against the sizes that the papers give.

use super::*;
use crate::model::cache::CacheFormat;
use crate::model::manifest::{SamplerConfig, SamplerStep};
use crate::ops::TILE_BYTES;

/// `k s / (1 + (k - 1) s)`
fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

fn close(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-6, "{found} is not {wanted}");
    }
}

#[test]
fn every_entry_refers_to_what_is_there_and_makes_a_valid_model() {
    let registry = registry().unwrap();
    for checkpoint in &registry.checkpoints {
        assert!(!checkpoint.samplers.is_empty(), "{}", checkpoint.id);
        assert!(!checkpoint.file.is_empty() && !checkpoint.license.is_empty(), "{}", checkpoint.id);
        // 1.419 billion weights of at least a byte each
        assert!((1_419_000_000..6_000_000_000).contains(&checkpoint.bytes), "{}", checkpoint.id);
        for sampler in &checkpoint.samplers {
            registry.sampler(sampler).unwrap();
        }
    }
    for sampler in &registry.samplers {
        assert_eq!(sampler.sigmas.len(), sampler.timesteps.len(), "{}", sampler.id);
        assert_eq!(sampler.kind == SamplerKind::Causal, sampler.chunk_frames.is_some(), "{}", sampler.id);
        assert!(!sampler.source.is_empty());
        for family in &registry.families {
            family.sizes(sampler, &PackOptions::default()).unwrap();
        }
    }
    assert!(registry.family("wan").unwrap_err().to_string().contains("wan2.1-t2v-1.3b"));
    assert!(registry.sampler("x").unwrap_err().to_string().contains("fastwan-3"));
}

#[test]
fn names_lead_to_files_on_the_hub() {
    let registry = registry().unwrap();
    let mut names: Vec<&String> = registry.checkpoints.iter().map(|checkpoint| &checkpoint.id).collect();
    names.extend(registry.families.iter().flat_map(|family| &family.companions).map(|companion| &companion.id));
    for name in &names {
        assert_eq!(names.iter().filter(|other| other == &name).count(), 1, "{name} is there twice");
        match registry.remote(name) {
            Ok(files) => assert!(files.iter().all(|file| file.repository.split('/').count() == 2), "{name}"),
            Err(error) => assert!(error.to_string().contains("github.com") && *name == "taew2.1-pth", "{error}"),
        }
    }
    let base = &registry.remote("wan2.1-t2v-1.3b-base").unwrap()[..];
    let [Remote { path, revision: Some(revision), bytes: Some(5_676_070_424), .. }] = base else { panic!("{base:?}") };
    assert_eq!((path.as_str(), revision.len()), ("diffusion_pytorch_model.safetensors", 40));
    let paths: Vec<String> = registry.remote("longlive").unwrap().into_iter().map(|file| file.path).collect();
    assert_eq!(paths, ["models/longlive_base.pt", "models/lora.pt"]);
    assert!(registry.remote("longlive").unwrap().iter().all(|file| file.bytes.is_some()));
    let hex =
        |text: &String, length| text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let files: Vec<Remote> = names.iter().filter_map(|name| registry.remote(name).ok()).flatten().collect();
    assert!(files.iter().all(|file| file.revision.as_ref().is_none_or(|commit| hex(commit, 40))));
    assert!(files.iter().all(|file| file.sha256.as_ref().is_none_or(|digest| hex(digest, 64))));
    assert!(files.iter().filter(|file| file.sha256.is_some()).count() >= 10);
    let unknown = registry.remote("x").unwrap_err().to_string();
    assert!(unknown.contains("longlive") && unknown.contains("umt5-tokenizer"), "{unknown}");
}

#[test]
fn step_tables_are_what_the_formulas_give() {
    let registry = registry().unwrap();
    let table = |id: &str| registry.sampler(id).unwrap();
    // Self-Forcing: entries 1000 - t of a table of 1000 steps, shifted by 5.
    let causal: Vec<f64> = [1000.0, 750.0, 500.0, 250.0].iter().map(|t| shifted(t / 1000.0, 5.0)).collect();
    close(&causal, &[1.0, 0.9375, 0.833_333_333, 0.625]);
    for id in ["self-forcing-4", "causal-forcing-4", "causal-forcing-frame-4", "longlive-4"] {
        close(&table(id).sigmas, &causal);
        close(&table(id).timesteps, &causal.iter().map(|sigma| 1000.0 * sigma).collect::<Vec<_>>());
    }
    close(&table("causal-forcing-frame-2").sigmas, &[1.0, 0.833_333_333]);
    close(table("causal-forcing-frame-2").first_sigmas.as_ref().unwrap(), &causal);
    // FastWan: the entry of a table of 1000 steps, shifted by 8, that is nearest to each timestep.
    let nearest = |timestep: f64| {
        let entries = (1..=1000).map(|index| shifted(f64::from(index) / 1000.0, 8.0));
        entries.min_by(|a, b| (1000.0 * a - timestep).abs().total_cmp(&(1000.0 * b - timestep).abs())).unwrap()
    };
    close(&table("fastwan-3").timesteps, &[1000.0, 757.0, 522.0]);
    close(&table("fastwan-3").sigmas, &[1000.0, 757.0, 522.0].map(nearest));
    // rCM: sin / (sin + cos) of its angles.
    let flow = |angle: f64| angle.sin() / (angle.sin() + angle.cos());
    close(&table("rcm-4").sigmas, &[80f64.atan(), 1.5, 1.4, 1.0].map(flow));
    close(&table("rcm-2").sigmas, &table("rcm-4").sigmas[..2]);
    assert_eq!(table("rcm-1").initial_scale, Some(table("rcm-4").sigmas[0]));
    // Three steps, by another way: a part `sin` of noise to a part `cos` of signal, made to add up to 1. The first angle
    // is that of sigma 80.
    let share = |ratio: f64| ratio / (1.0 + ratio);
    let three = [80.0, 1.5f64.tan(), 1.4f64.tan()].map(share);
    close(&three, &[80.0 / 81.0, 0.933_781_061, 0.852_895_395]);
    let rcm = table("rcm-3");
    close(&rcm.sigmas, &three);
    close(&rcm.timesteps, &three.map(|sigma| 1000.0 * sigma));
    assert!((rcm.initial_scale.unwrap() - 80.0 / 81.0).abs() < 1e-9);
    assert_eq!((rcm.kind, rcm.step.as_str(), rcm.guidance), (SamplerKind::Bidirectional, "renoise", None));
    // UniPC: 50 of 51 points from 1 to 1/1000, shifted by 8.
    let points: Vec<f64> = (0..50).map(|index| 1.0 - f64::from(index) / 50.0 * 0.999).collect();
    close(&table("unipc-50").sigmas, &points.iter().map(|&sigma| shifted(sigma, 8.0)).collect::<Vec<_>>());
    assert_eq!(table("unipc-50").guidance, Some(6.0));
    // Euler: 50 of 51 points from 1 to 0, shifted by 5: with n of 50 points to go, 5 n / (50 + 4 n).
    let points: Vec<f64> = (1..=50).rev().map(f64::from).map(|left| 5.0 * left / (50.0 + 4.0 * left)).collect();
    close(&[points[0], points[25], points[49]], &[1.0, 5.0 / 6.0, 5.0 / 54.0]);
    close(&table("euler-50").sigmas, &points);
    close(&table("euler-50").timesteps, &points.iter().map(|sigma| 1000.0 * sigma).collect::<Vec<_>>());
    assert_eq!((table("euler-50").kind, table("euler-50").guidance), (SamplerKind::Guided, Some(5.0)));
}

#[test]
fn every_checkpoint_can_be_sampled_as_it_was_trained() {
    let registry = registry().unwrap();
    let samplers = |id: &str| {
        let checkpoint = registry.checkpoints.iter().find(|checkpoint| checkpoint.id == id).unwrap();
        checkpoint.samplers.iter().map(String::as_str).collect::<Vec<_>>()
    };
    for id in ["wan2.1-t2v-1.3b-base", "wan2.1-t2v-1.3b-comfy"] {
        assert_eq!(samplers(id), ["unipc-50", "euler-50"]);
    }
    assert_eq!(samplers("rcm"), ["rcm-4", "rcm-3", "rcm-2", "rcm-1"]);
}

#[test]
fn samplers_reach_the_manifest() {
    let registry = registry().unwrap();
    let read = |id: &str| -> SamplerConfig {
        serde_json::from_value(registry.sampler(id).unwrap().manifest()).expect("a sampler of a manifest")
    };
    let long = read("longlive-4");
    let causal = long.causal.expect("it is causal");
    assert_eq!((causal.chunk_frames, causal.sink_frames, causal.window_frames), (3, 3, 12));
    assert_eq!(causal.cache, CacheFormat::Q8);
    assert_eq!((long.step, long.guidance), (SamplerStep::Renoise, 1.0));
    let frame = read("causal-forcing-frame-2").causal.expect("it is causal");
    assert_eq!((frame.chunk_frames, frame.first_sigmas.map(|first| first.len())), (1, Some(4)));
    assert_eq!((read("unipc-50").step, read("unipc-50").guidance), (SamplerStep::Unipc, 6.0));
    let euler = read("euler-50");
    assert_eq!((euler.step, euler.guidance, euler.sigmas.len()), (SamplerStep::Euler, 5.0, 50));
    assert!(euler.causal.is_none());
    assert!((read("rcm-2").initial_scale - 0.987_654_321).abs() < 1e-9);
    assert_eq!((read("rcm-3").step, read("rcm-3").sigmas.len()), (SamplerStep::Renoise, 3));
    assert!(read("fastwan-3").causal.is_none());
    assert_eq!(read("fastwan-3").timesteps, Some(vec![1000.0, 757.0, 522.0]));
    assert_eq!((read("rcm-4").timesteps, read("unipc-50").timesteps), (None, None));
}

#[test]
fn the_family_has_the_published_numbers_of_parameters_and_bytes() {
    let registry = registry().unwrap();
    let family = registry.family("wan2.1-t2v-1.3b").unwrap();
    let sampler = registry.sampler("fastwan-3").unwrap();
    let sizes = |format| {
        let options = PackOptions { format, ..PackOptions::default() };
        family.sizes(sampler, &options).unwrap()
    };
    let q4 = sizes(DType::Q4);
    let part = |summary: &Summary, part: Part| summary.parts.iter().find(|row| row.part == part).unwrap().clone();
    // models.md: denoiser 1.419 B, UMT5-XXL encoder 5.681 B, TAEW2.1 9.84 M and 1.47 M.
    assert_eq!((part(&q4, Part::Transformer).parameters as f64 / 1e6).round(), 1419.0);
    assert_eq!((part(&q4, Part::TextEncoder).parameters as f64 / 1e6).round(), 5681.0);
    assert_eq!((part(&q4, Part::Decoder).parameters as f64 / 1e4).round(), 984.0);
    assert_eq!((part(&q4, Part::Encoder).parameters as f64 / 1e4).round(), 147.0);
    // 4.5 bits a value in the blocks, f16 around them.
    let gigabytes = |summary: &Summary, which| part(summary, which).bytes as f64 / 1e9;
    assert!((0.80..0.90).contains(&gigabytes(&q4, Part::Transformer)), "{}", gigabytes(&q4, Part::Transformer));
    assert!((3.6..3.8).contains(&gigabytes(&q4, Part::TextEncoder)), "{}", gigabytes(&q4, Part::TextEncoder));
    let f16 = sizes(DType::F16);
    assert!((2.83..2.85).contains(&gigabytes(&f16, Part::Transformer)));
    // What a device must offer is a tile of the feed-forward of 416x240x49, half of what every WebGPU device binds.
    assert_eq!(q4.requires.max_buffer_size, TILE_BYTES as u64);
    assert_eq!(q4.requires.max_storage_buffer_binding_size, TILE_BYTES as u64);
    // Packed weights and what a clip takes beside them stay below what a wasm memory and most adapters have.
    let [clip, ..] = q4.requires.clips[..] else { panic!("no figures for {:?}", q4.clips) };
    println!("in q4: {:?}", q4.requires.clips);
    assert!(clip.cpu_bytes > part(&q4, Part::Transformer).bytes && clip.cpu_bytes < 4 << 30, "{clip:?}");
    assert!(clip.webgpu_bytes > part(&q4, Part::Transformer).bytes && clip.webgpu_bytes < 4 << 30, "{clip:?}");
    // A tensor that fits into a shard is not split, which takes more shards than the bytes alone would.
    assert!(q4.shards.len() as u64 <= q4.total_bytes.div_ceil(16 << 20) * 130 / 100, "{}", q4.shards.len());
    assert!(q4.shards.iter().all(|shard| shard.bytes <= 16 << 20));
    let rows = registry.sizes().unwrap();
    assert_eq!(rows.len(), 3 * registry.families.len());
    assert_eq!((rows[0].transformer, rows[0].shards), (part(&q4, Part::Transformer).bytes, q4.shards.len()));
    assert_eq!(rows[2].transformer, part(&f16, Part::Transformer).bytes);
    assert!(rows[0].to_string().contains("as q4: denoiser 801 MiB"), "{}", rows[0]);
    let text = registry.to_string();
    assert!(text.contains("self_forcing_dmd.pt") && text.contains("fastwan-3"), "{text}");
}
