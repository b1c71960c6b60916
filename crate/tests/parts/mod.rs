//! The toy model as its parts are published, and packing it.
#![allow(dead_code)] // every test file uses a part of it

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use kinora::model::manifest::DType;
use kinora::model::shards::ShardAssembler;
use kinora::pack::source::Source;
use kinora::pack::{PackOptions, PackedPublished, Published, pack_published, read_manifest, verify};
use serde_json::Value;

use crate::toy::{self, Folder, Weights};
use crate::writers::{self, File, Kind, stored};

pub const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
    "pre_tokenizer":null,"post_processor":null,"decoder":null,
    "model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.0]]}}"#;

/// Weights of one part by our names without its prefix.
pub fn part(prefix: &str) -> Weights {
    part_of(&toy::model(), prefix)
}

/// As `part`, of a toy model that was changed.
pub fn part_of(model: &Value, prefix: &str) -> Weights {
    let strip = |(name, tensor): (String, _)| Some((name.strip_prefix(prefix)?.to_owned(), tensor));
    toy::weights(model).into_iter().filter_map(strip).collect()
}

pub fn file(weights: &Weights, kind: impl Fn(&str, &[usize]) -> Kind, name: impl Fn(&str) -> String) -> File {
    let tensor = |(ours, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
        (name(ours), stored(kind(ours, shape), shape, values))
    };
    weights.iter().map(tensor).collect()
}

pub fn plain(weights: &Weights) -> File {
    file(weights, |_, _| Kind::F32, str::to_owned)
}

pub fn open(bytes: Vec<u8>) -> Source {
    Source::from_bytes("test", bytes, None).unwrap()
}

/// All parts under our names, as f32.
pub fn published() -> Published {
    let source = |prefix| open(writers::safetensors(&plain(&part(prefix))));
    Published {
        model_json: toy::model().to_string(),
        tokenizer_json: TOKENIZER.into(),
        transformer: source("transformer."),
        text_encoder: source("text_encoder."),
        autoencoder: source("autoencoder."),
        loras: Vec::new(),
        keep: None,
    }
}

pub fn options(format: DType) -> PackOptions {
    PackOptions { format, ..PackOptions::default() }
}

pub fn pack(published: Published, out: &Path, options: &PackOptions) -> kinora::Result<PackedPublished> {
    pack_published(published, out, options, &mut |_| ControlFlow::Continue(()))
}

/// The values of a packed model by full name.
pub fn unpacked(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let manifest = read_manifest(folder).unwrap();
    let mut assembler = ShardAssembler::new(&manifest);
    let read = |(index, path): (usize, &String)| assembler.add(index, &fs::read(folder.join(path)).unwrap()).unwrap();
    let tensors = manifest.shards.iter().map(|shard| &shard.path).enumerate().flat_map(read);
    tensors.map(|tensor| (tensor.name.clone(), tensor.to_f32().unwrap())).collect()
}

pub fn packed_values(published: Published) -> BTreeMap<String, Vec<f32>> {
    let folder = Folder::new();
    pack(published, &folder.0, &options(DType::F32)).unwrap();
    assert_eq!(verify(&folder.0).unwrap().problem(), None);
    unpacked(&folder.0)
}
