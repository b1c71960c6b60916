//! A small made-up model for the tests of manifest, shards and packing.
#![allow(dead_code)] // every test file uses a part of it

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kinora::model::layout;
use kinora::model::manifest::Manifest;
use kinora::pack::{Export, PackOptions, Packed, pack};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

pub const TOKENIZER: &[u8] = b"{\"model\":{\"type\":\"Unigram\"}}";

/// An export's `model.json`.
pub fn model() -> Value {
    json!({
        "interface": "kinora-wan-1", "name": "toy", "title": "Toy", "license": "CC0-1.0 (weights)",
        "text_encoder": {
            "kind": "umt5", "vocab_size": 40, "d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-6,
            "max_tokens": 16, "tokenizer": {"path": "tokenizer.json"}
        },
        "transformer": {
            "kind": "wan", "num_layers": 11, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48,
            "in_channels": 8, "out_channels": 8, "text_dim": 32, "freq_dim": 32, "patch_size": [1, 2, 2], "eps": 1e-6,
            "cross_attn_norm": true, "rope_max_seq_len": 64
        },
        "autoencoder": {
            "kind": "taehv", "image_channels": 3, "latent_channels": 8, "patch_size": 2,
            "encoder_channels": [4, 4, 6, 6], "decoder_channels": [8, 6, 4, 4],
            "encoder_time_downscale": [true, true, false], "decoder_time_upscale": [false, true, true],
            "decoder_space_upscale": [true, true, true], "encoder_padding": "leading"
        },
        "sampler": {"sigmas": [1.0, 0.5], "shift": 3.0, "step": "euler", "timestep_scale": 1000.0},
        "video": {"fps": 12, "sizes": [{"width": 64, "height": 32, "frames": [9, 5]}]},
        "vocabulary": ["a", "ball"], "examples": ["a ball"], "training": {"steps": 3}, "extra": {"kept": true}
    })
}

/// The typed configuration of `model.json`, without shards and tensors.
pub fn config(model: &Value) -> Manifest {
    let mut model = model.clone();
    model["schema_version"] = json!(1);
    model["text_encoder"]["tokenizer"] = json!({"path": "tokenizer.json", "bytes": 1, "sha256": "0".repeat(64)});
    model["shards"] = json!([]);
    model["tensors"] = json!({});
    serde_json::from_value(model).unwrap()
}

/// A complete manifest: all tensors as f32, laid out one after the other over two shards.
pub fn manifest() -> Value {
    let mut model = model();
    let mut tensors = serde_json::Map::new();
    let mut lengths = [0u64; 2];
    for (index, tensor) in layout::expected(&config(&model)).into_iter().enumerate() {
        let shard = usize::from(index >= 60);
        let bytes = 4 * tensor.shape.iter().product::<usize>() as u64;
        let offset = lengths[shard].next_multiple_of(16);
        lengths[shard] = offset + bytes;
        let parts = json!([{"shard": shard, "offset": offset, "bytes": bytes}]);
        tensors.insert(tensor.name, json!({"dtype": "f32", "shape": tensor.shape, "parts": parts}));
    }
    let file = |path: &str, bytes: u64| json!({"path": path, "bytes": bytes, "sha256": "ab".repeat(32)});
    model["schema_version"] = json!(1);
    model["text_encoder"]["tokenizer"] = file("tokenizer.json", 100);
    model["shards"] = json!([file("toy-00001-of-00002.bin", lengths[0]), file("toy-00002-of-00002.bin", lengths[1])]);
    model["tensors"] = Value::Object(tensors);
    model
}

/// Weights by name, as f32.
pub type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Made-up weights for every expected tensor.
pub fn weights(model: &Value) -> Weights {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut weights = Weights::new();
    for tensor in layout::expected(&config(model)) {
        let count = tensor.shape.iter().product();
        weights.insert(tensor.name, (tensor.shape, (0..count).map(|_| next()).collect()));
    }
    weights
}

/// A safetensors file of f32.
pub fn safetensors(weights: &Weights) -> Vec<u8> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    safetensors_of(weights, Dtype::F32, bytes)
}

/// A safetensors file in another format.
pub fn safetensors_of(weights: &Weights, dtype: Dtype, bytes: impl Fn(&[f32]) -> Vec<u8>) -> Vec<u8> {
    let data: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        weights.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
    let views =
        data.iter().map(|(name, shape, bytes)| (*name, TensorView::new(dtype, (*shape).clone(), bytes).unwrap()));
    serialize(views, None).unwrap()
}

pub fn pack_weights(weights: &[u8], out: &Path, options: &PackOptions) -> kinora::Result<Packed> {
    let model = model().to_string();
    pack(&Export { model_json: &model, tokenizer_json: TOKENIZER, weights }, out, options)
}

/// Names of the files in a folder, in order.
pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder that goes away at the end of the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kinora-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
