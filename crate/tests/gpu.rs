//! Every kernel on a native GPU, where there is one. The browser tests run the same checks through WebGPU.

mod common;
mod loras;
mod writers;

use common::{goldens, strict};
use kinora::engine::{DeviceChoice, Engine, wait};
use kinora::error::Error;
use kinora::gpu::{self, GpuOptions};
use kinora::model::manifest::{ClipSize, DType, VideoSize};
use kinora::model::plan::{Limits, MemoryPlan, PlanRequest, Residency, Target, TextWeights};
use kinora::model::shards::RawTensor;
use kinora::ops::Conv;
use kinora::pack::read_manifest;
use kinora::selftest;

/// What an adapter offers beyond that is of no use on a phone.
#[test]
fn no_buffer_is_longer_than_every_device_binds() {
    for strict_limits in [true, false] {
        match wait(gpu::open(GpuOptions { strict_limits })) {
            Ok(compute) => assert_eq!(compute.longest_buffer, Some(128 << 20), "{}", compute.adapter),
            Err(Error::NoAdapter(why)) => println!("skipped: no graphics adapter here ({why})"),
            Err(error) => panic!("{error}"),
        }
    }
    // A clip that would need a longer one is refused, with the clip that does not.
    let manifest = read_manifest(&goldens().join("tiny-model")).expect("a manifest");
    let mut large = manifest.clone();
    let size = ClipSize { width: 4096, height: 4096, frames: 9 };
    large.video.sizes.push(VideoSize { width: 4096, height: 4096, frames: vec![9], lora_rank: None });
    let asked = PlanRequest {
        size,
        tokens: None,
        target: Target::Gpu,
        text: TextWeights::Resident,
        packed: false,
        lora_bytes: 0,
        residency: Residency::Together,
    };
    let limits = Limits { buffer: Some(gpu::LONGEST_BUFFER), ..Limits::default() };
    let error = MemoryPlan::within(&large, &asked, &limits).expect_err("too long a buffer");
    let text = error.to_string();
    assert!(
        text.contains("and the longest that is used here has 128.00 MiB") && text.contains("Choose 96x64"),
        "{text}"
    );
}

/// A picture of 4098 x 4096 takes more workgroups than a device has to allow in a row, 65,535.
#[test]
fn a_convolution_of_a_huge_picture_reaches_its_last_row() {
    let Some(compute) = strict() else { return };
    let raw = |value: f32, shape: &[usize]| RawTensor {
        name: "constant".into(),
        dtype: DType::F32,
        shape: shape.to_vec(),
        group: None,
        bytes: value.to_le_bytes().to_vec(),
    };
    let conv = Conv::new(&compute, &raw(2.0, &[1, 1, 1, 1]), Some(&raw(1.0, &[1])), 1).expect("a convolution");
    let (height, width) = (2049, 2048);
    let values: Vec<f32> = (0..height * width).map(|at| (at % 1009) as f32).collect();
    let x = compute.tensor(values.clone(), [1, 1, height, width]);
    let out = wait(compute.read(conv.forward(&compute, x, None, None, true, false))).expect("runs");
    assert_eq!(out.len(), 4 * values.len());
    let wrong = out.iter().enumerate().find(|&(at, &value)| {
        let (y, x) = (at / (2 * width), at % (2 * width));
        value != 2.0 * values[y / 2 * width + x / 2] + 1.0
    });
    assert_eq!(wrong, None);
}

#[test]
fn kernels_agree_with_the_cpu_and_stages_with_pytorch() {
    let Some(compute) = strict() else { return };
    for check in wait(selftest::run(&compute)).expect("the device computes right") {
        println!("{}: {:.1e}", check.name, check.error);
    }

    let device = DeviceChoice::Gpu { strict_limits: true };
    let load = |device| Engine::load_dir(&goldens().join("tiny-model"), device).expect("the tiny model loads");
    let mut engine = load(device);
    for (name, output) in [
        ("encode-text", "embeddings"),
        ("denoise", "velocity"),
        ("sample", "latents"),
        ("decode", "frames"),
        ("encode", "latents"),
    ] {
        let (got, want) = common::golden_stage(&engine, name, name, output);
        let error = selftest::relative_error(&got, &want);
        println!("{name}: relative error {error:.1e}");
        assert!(error < 1e-4, "{name}: relative error {error:.1e}");
    }

    let velocity = |engine: &Engine| common::golden_stage(engine, "denoise", "denoise", "velocity").0;
    let plain = velocity(&engine);
    let mut reference = load(DeviceChoice::Cpu);
    for engine in [&mut engine, &mut reference] {
        let first = engine.add_lora("first", &loras::bytes(&loras::first())).expect("a LoRA");
        let second = engine.add_lora("second", &loras::bytes(&loras::second())).expect("a LoRA");
        engine.use_loras(&[(first, 0.7), (second, 1.3)]).expect("both are there");
    }
    let with_loras = velocity(&engine);
    let error = selftest::relative_error(&with_loras, &velocity(&reference));
    println!("denoise with two LoRAs: relative error {error:.1e}");
    assert!(error < 1e-4 && with_loras != plain, "with two LoRAs: relative error {error:.1e}");
    engine.use_loras(&[]).expect("none");
    assert_eq!(velocity(&engine), plain, "without LoRAs the base is what it was, bit for bit");
}
