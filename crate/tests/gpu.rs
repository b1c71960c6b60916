//! Every kernel on a native GPU, where there is one. The browser tests run the same checks through WebGPU.

mod common;

use common::goldens;
use kinora::engine::{DeviceChoice, Engine, wait};
use kinora::error::Error;
use kinora::gpu::{self, GpuOptions};
use kinora::selftest;
use kinora::stage::{Stage, run_stage};
use safetensors::tensor::{SafeTensors, TensorView};

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
    let file = std::fs::read(goldens().join("tiny.safetensors")).expect("the goldens are committed");
    let all = SafeTensors::deserialize(&file).expect("safetensors");
    for (name, output) in [
        ("encode-text", "embeddings"),
        ("denoise", "velocity"),
        ("sample", "latents"),
        ("decode", "frames"),
        ("encode", "latents"),
    ] {
        let prefix = format!("{name}.in.");
        let inputs: Vec<(String, TensorView<'_>)> = all
            .tensors()
            .into_iter()
            .filter_map(|(key, view)| key.strip_prefix(&prefix).map(|key| (key.to_string(), view)))
            .collect();
        let input = safetensors::serialize(inputs, None).expect("inputs");
        let stage: Stage = name.parse().expect("a stage");
        let result = wait(run_stage(&engine, stage, &input)).expect("the stage runs");
        let result = SafeTensors::deserialize(&result).expect("safetensors");
        let got = common::floats(&result.tensor(output).expect("the result"));
        let want = common::floats(&all.tensor(&format!("{name}.out.{output}")).expect("the golden"));
        let error = selftest::relative_error(&got, &want);
        println!("{name}: relative error {error:.1e}");
        assert!(error < 1e-4, "{name}: relative error {error:.1e}");
    }
}
