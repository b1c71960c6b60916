//! Every kernel on a native GPU, where there is one. The browser tests run the same checks through WebGPU.

mod common;

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
    let engine = Engine::load_dir(&goldens().join("tiny-model"), device).expect("the tiny model loads");
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
}
