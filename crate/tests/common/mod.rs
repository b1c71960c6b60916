//! What several test files need: places, temporary folders, safetensors to numbers.
#![allow(dead_code, reason = "every test file uses a part")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use kinora::compute::Compute;
use kinora::engine::{Engine, wait};
use kinora::error::Error;
use kinora::gpu::{self, GpuOptions};
use kinora::pack::{Export, PackOptions, pack};
use kinora::stage::{Stage, run_stage};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

/// Folder of the committed goldens.
pub fn goldens() -> PathBuf {
    root().join("tests/goldens")
}

/// A GPU with no more than the guaranteed limits, if there is one.
pub fn strict() -> Option<Compute> {
    match wait(gpu::open(GpuOptions { strict_limits: true })) {
        Ok(compute) => {
            println!("adapter: {}", compute.adapter);
            Some(compute)
        }
        Err(Error::NoAdapter(why)) => {
            println!("skipped: no graphics adapter here ({why})");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..")
}

/// The tiny model with changes to its `model.json`, packed.
pub fn tiny_model(options: &PackOptions, change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = TempDir::new();
    let read = |name: &str| std::fs::read(goldens().join("tiny").join(name)).expect("the goldens are committed");
    let mut model: Value = serde_json::from_slice(&read("model.json")).expect("json");
    change(&mut model);
    let (model, tokenizer, weights) = (model.to_string(), read("tokenizer.json"), read("weights.safetensors"));
    let export = Export { model_json: &model, tokenizer_json: &tokenizer, weights: &weights };
    pack(&export, dir.path(), options).expect("the tiny model packs");
    dir
}

/// f32 values of a tensor.
pub fn floats(view: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(view.dtype(), Dtype::F32);
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Runs a stage on the tiny model's golden inputs and gives (got, want) of one output. `case` is the stage's name, with a
/// suffix after a dash where a stage has several goldens: `encode`, `encode-trailing`.
pub fn golden_stage(engine: &Engine, stage: &str, case: &str, output: &str) -> (Vec<f32>, Vec<f32>) {
    let file = std::fs::read(goldens().join("tiny.safetensors")).expect("the goldens are committed");
    let all = SafeTensors::deserialize(&file).expect("the goldens are safetensors");
    let prefix = format!("{case}.in.");
    let inputs: Vec<(String, TensorView<'_>)> = all
        .tensors()
        .into_iter()
        .filter_map(|(key, view)| key.strip_prefix(&prefix).map(|key| (key.to_string(), view)))
        .collect();
    assert!(!inputs.is_empty(), "no inputs for {case}");
    let input = safetensors::serialize(inputs, None).expect("inputs serialize");
    let stage: Stage = stage.parse().expect("a stage");
    let result = wait(run_stage(engine, stage, &input)).expect("the stage runs");
    let result = SafeTensors::deserialize(&result).expect("the result is safetensors");
    let got = result.tensor(output).expect("the named result");
    let want = all.tensor(&format!("{case}.out.{output}")).expect("the golden result");
    assert_eq!(got.shape(), want.shape(), "{case} {output}");
    (floats(&got), floats(&want))
}

/// Decibels between two runs of bytes; infinite where they are equal.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let error: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / error).log10()
}

/// A directory that goes away with the test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("kinora-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
