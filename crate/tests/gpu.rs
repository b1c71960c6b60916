//! Every kernel on a native GPU, where there is one. The browser tests run the same checks through WebGPU.

mod common;
mod loras;
mod writers;

use common::goldens;
use kinora::engine::{DeviceChoice, Engine, wait};
use kinora::error::Error;
use kinora::gpu::{self, GpuOptions};
use kinora::selftest;

#[test]
fn kernels_agree_with_the_cpu_and_stages_with_pytorch() {
    let compute = match wait(gpu::open(GpuOptions { strict_limits: true, ..GpuOptions::default() })) {
        Ok(compute) => compute,
        Err(Error::NoAdapter(why)) => {
            println!("skipped: no graphics adapter here ({why})");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    println!("adapter: {}", compute.adapter);
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
