//! Packing: order, formats, refusals, and nothing half-written.

mod toy;

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use kinora::model::cache::CacheFormat;
use kinora::model::layout;
use kinora::model::manifest::DType;
use kinora::model::shards::{RawTensor, ShardAssembler};
use kinora::pack::{Export, PackOptions, inspect, pack, read_manifest, verify};
use safetensors::tensor::Dtype;
use serde_json::json;
use toy::{Folder, TOKENIZER, files, pack_weights};

fn options(format: DType) -> PackOptions {
    PackOptions { format, ..PackOptions::default() }
}

fn tensors(folder: &Path) -> Vec<RawTensor> {
    let manifest = read_manifest(folder).unwrap();
    let mut assembler = ShardAssembler::new(&manifest);
    let read = |(index, path): (usize, &String)| assembler.add(index, &fs::read(folder.join(path)).unwrap()).unwrap();
    manifest.shards.iter().map(|shard| &shard.path).enumerate().flat_map(read).collect()
}

#[test]
fn tensors_lie_in_order_of_first_use_and_aligned() {
    let folder = Folder::new();
    let weights = toy::safetensors(&toy::weights(&toy::model()));
    pack_weights(&weights, &folder.0, &PackOptions { shard_bytes: 8192, ..options(DType::Q8) }).unwrap();
    let manifest = read_manifest(&folder.0).unwrap();
    let mut found: Vec<_> = manifest.tensors.iter().map(|(name, info)| (info.parts[0], name.clone())).collect();
    found.sort_by_key(|(part, _)| (part.shard, part.offset));
    assert!(found.iter().all(|(part, _)| part.offset % 16 == 0));
    let names: Vec<String> = found.into_iter().map(|(_, name)| name).collect();
    let expected: Vec<String> = layout::expected(&manifest).into_iter().map(|tensor| tensor.name).collect();
    assert_eq!(names, expected);
    // The list itself is checked by what must come before what.
    let at = |name: &str| names.iter().position(|other| other == name).expect(name);
    for pair in [
        "text_encoder.shared.weight",
        "text_encoder.encoder.block.0.layer.0.SelfAttention.q.weight",
        "text_encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight",
        "text_encoder.encoder.final_layer_norm.weight",
        "transformer.condition_embedder.time_embedder.linear_1.weight",
        "transformer.blocks.0.attn1.to_q.weight",
        "transformer.blocks.2.attn1.to_q.weight",
        "transformer.blocks.10.ffn.net.2.bias",
        "transformer.proj_out.weight",
        "autoencoder.decoder.1.weight",
        "autoencoder.decoder.22.bias",
        "autoencoder.encoder.0.weight",
        "autoencoder.encoder.17.bias",
    ]
    .windows(2)
    {
        assert!(at(pair[0]) < at(pair[1]), "{} comes after {}", pair[0], pair[1]);
    }
    assert!(manifest.shards.len() > 3);
    let count = manifest.shards.len();
    for (index, shard) in manifest.shards.iter().enumerate() {
        assert!(shard.bytes <= 8192);
        assert_eq!(shard.path, format!("toy-{:05}-of-{count:05}.bin", index + 1));
    }
}

#[test]
fn only_matrices_of_the_blocks_are_quantized() {
    for (format, group) in [(DType::Q8, 32), (DType::Q4, 32), (DType::Q4, 64)] {
        let folder = Folder::new();
        let weights = toy::safetensors(&toy::weights(&toy::model()));
        pack_weights(&weights, &folder.0, &PackOptions { format, group, ..PackOptions::default() }).unwrap();
        let manifest = read_manifest(&folder.0).unwrap();
        let dtype = |name: &str| manifest.tensors[name].dtype;
        let block = if group == 32 { format } else { DType::F16 };
        for (name, wanted) in [
            ("text_encoder.shared.weight", DType::F16),
            ("text_encoder.encoder.block.1.layer.0.SelfAttention.o.weight", block),
            ("text_encoder.encoder.block.1.layer.1.DenseReluDense.wi_0.weight", block),
            ("text_encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight", format),
            ("text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", DType::F32),
            ("text_encoder.encoder.final_layer_norm.weight", DType::F32),
            ("transformer.condition_embedder.time_proj.weight", DType::F16),
            ("transformer.condition_embedder.time_proj.bias", DType::F32),
            ("transformer.patch_embedding.weight", DType::F16),
            ("transformer.blocks.10.attn2.to_out.0.weight", block),
            ("transformer.blocks.10.attn2.to_out.0.bias", DType::F32),
            ("transformer.blocks.10.attn2.norm_q.weight", DType::F32),
            ("transformer.blocks.10.scale_shift_table", DType::F32),
            ("transformer.blocks.10.ffn.net.0.proj.weight", block),
            // Its last axis is 48: no group divides it.
            ("transformer.blocks.10.ffn.net.2.weight", DType::F16),
            ("transformer.proj_out.weight", DType::F16),
            ("transformer.scale_shift_table", DType::F32),
            ("autoencoder.decoder.3.conv.0.weight", DType::F16),
            ("autoencoder.decoder.3.conv.0.bias", DType::F32),
        ] {
            assert_eq!(dtype(name), wanted, "{name} as {format} in groups of {group}");
        }
    }
}

#[test]
fn convolutions_are_quantized_where_it_is_asked_for_and_fits() {
    let mut model = toy::model();
    model["autoencoder"]["decoder_channels"] = json!([32, 6, 4, 4]);
    let source = toy::weights(&model);
    let export =
        Export { model_json: &model.to_string(), tokenizer_json: TOKENIZER, weights: &toy::safetensors(&source) };
    let folder = Folder::new();
    for (format, convolutions) in [(DType::Q8, DType::Q8), (DType::Q4, DType::Q8), (DType::Q8, DType::F16)] {
        pack(&export, &folder.0, &PackOptions { convolutions, ..options(format) }).unwrap();
        let stored = tensors(&folder.0);
        for (name, wanted) in [
            // 64 * 9, 32 * 9 and 32 values make an output
            ("autoencoder.decoder.3.conv.0.weight", convolutions),
            ("autoencoder.decoder.5.conv.4.weight", convolutions),
            ("autoencoder.decoder.7.conv.weight", convolutions),
            ("autoencoder.decoder.3.conv.0.bias", DType::F32),
            // 6 * 9 values
            ("autoencoder.decoder.9.conv.2.weight", DType::F16),
            ("transformer.patch_embedding.weight", DType::F16),
        ] {
            let tensor = stored.iter().find(|tensor| tensor.name == name).unwrap();
            assert_eq!(tensor.dtype, wanted, "{name} as {format} with {convolutions}");
            let values = &source[name].1;
            let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= largest / 127.0;
            assert!(values.iter().zip(&tensor.to_f32().unwrap()).all(close), "{name} as {wanted}");
        }
        verify(&folder.0).unwrap();
    }
}

#[test]
fn values_survive_in_every_format() {
    let source = toy::weights(&toy::model());
    let weights = toy::safetensors(&source);
    for (format, bound) in [(DType::F32, 0.0), (DType::F16, 5e-4), (DType::Q8, 4.1e-3), (DType::Q4, 0.2)] {
        let folder = Folder::new();
        let packed = pack_weights(&weights, &folder.0, &options(format)).unwrap();
        let tensors = tensors(&folder.0);
        assert_eq!(tensors.len(), source.len());
        for tensor in tensors {
            let values = tensor.to_f32().unwrap();
            let difference = values.iter().zip(&source[&tensor.name].1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference <= bound, "{} as {format} is off by {difference}", tensor.name);
        }
        let worst = packed.worst.map_or(0.0, |(_, error)| error);
        match format {
            DType::Q8 => assert!(worst > 0.0 && worst < 0.01, "{worst}"),
            DType::Q4 => assert!(worst > 0.01 && worst < 0.12, "{worst}"),
            _ => assert_eq!(worst, 0.0),
        }
    }
}

#[test]
fn half_precision_sources_are_read() {
    let source = toy::weights(&toy::model());
    let half = |values: &[f32]| values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
    let brain = |values: &[f32]| values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    let name = "transformer.blocks.0.attn1.to_q.weight";
    for (bytes, rounded) in [
        (toy::safetensors_of(&source, Dtype::F16, half), f16::from_f32(source[name].1[5]).to_f32()),
        (toy::safetensors_of(&source, Dtype::BF16, brain), bf16::from_f32(source[name].1[5]).to_f32()),
    ] {
        let folder = Folder::new();
        pack_weights(&bytes, &folder.0, &options(DType::F32)).unwrap();
        let tensors = tensors(&folder.0);
        let tensor = tensors.iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(tensor.to_f32().unwrap()[5], rounded);
    }
}

#[test]
fn wrong_weights_are_refused_by_name_and_leave_nothing() {
    let good = toy::weights(&toy::model());
    let mut nan = good.clone();
    nan.get_mut("transformer.blocks.10.ffn.net.2.bias").unwrap().1[1] = f32::NAN;
    let mut infinite = good.clone();
    infinite.get_mut("transformer.blocks.4.attn1.to_q.weight").unwrap().1[3] = f32::INFINITY;
    let mut large = good.clone();
    large.get_mut("text_encoder.shared.weight").unwrap().1[0] = 1e6;
    let mut list = good.clone();
    list.remove("autoencoder.decoder.1.bias");
    list.remove("transformer.blocks.7.norm2.weight");
    list.insert("transformer.blocks.7.norm3.weight".into(), (vec![1], vec![0.0]));
    list.get_mut("transformer.proj_out.bias").unwrap().0 = vec![4, 8];
    let cases: [(_, &[&str]); 4] = [
        (nan, &["transformer.blocks.10.ffn.net.2.bias", "value 1 is NaN"]),
        (infinite, &["transformer.blocks.4.attn1.to_q.weight", "inf"]),
        (large, &["text_encoder.shared.weight", "1000000 is too large"]),
        (
            list,
            &[
                "2 missing: transformer.blocks.7.norm2.weight, autoencoder.decoder.1.bias",
                "1 of the wrong shape: transformer.proj_out.bias is [4, 8] and must be [32]",
                "1 unknown: transformer.blocks.7.norm3.weight",
            ],
        ),
    ];
    for (weights, says) in cases {
        let folder = Folder::new();
        let error = pack_weights(&toy::safetensors(&weights), &folder.0, &options(DType::Q8)).unwrap_err();
        assert_eq!(error.code(), "tensor");
        for text in says {
            assert!(error.to_string().contains(text), "{error}");
        }
        assert_eq!(files(&folder.0), Vec::<String>::new());
    }
}

#[test]
fn integers_and_broken_files_are_refused() {
    let source = toy::weights(&toy::model());
    let folder = Folder::new();
    let integers = |values: &[f32]| values.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect();
    let bytes = toy::safetensors_of(&source, Dtype::I32, integers);
    let error = pack_weights(&bytes, &folder.0, &options(DType::F16)).unwrap_err();
    assert!(error.to_string().contains("must be F32, F16 or BF16"), "{error}");
    let good = toy::safetensors(&source);
    for broken in [&good[..good.len() - 1], &good[..100], &[][..], b"version https://git-lfs.github.com/spec/v1"] {
        assert_eq!(pack_weights(broken, &folder.0, &options(DType::F16)).unwrap_err().code(), "weight-file");
    }
    let long = [&good[..], b"PK"].concat();
    assert_eq!(pack_weights(&long, &folder.0, &options(DType::F16)).unwrap_err().code(), "weight-file");
    assert_eq!(files(&folder.0), Vec::<String>::new());
}

#[test]
fn a_failed_pack_leaves_the_model_that_was_there() {
    let folder = Folder::new();
    let mut weights = toy::weights(&toy::model());
    pack_weights(&toy::safetensors(&weights), &folder.0, &options(DType::F16)).unwrap();
    let before = files(&folder.0);
    // The very last tensor: everything before it has been written by then.
    weights.get_mut("autoencoder.encoder.17.bias").unwrap().1[0] = f32::NAN;
    assert!(pack_weights(&toy::safetensors(&weights), &folder.0, &options(DType::Q4)).is_err());
    assert_eq!(files(&folder.0), before);
    assert_eq!(verify(&folder.0).unwrap().problem(), None);
    assert!(read_manifest(&folder.0).unwrap().tensors.values().all(|info| info.dtype == DType::F16));
}

#[test]
fn a_new_pack_replaces_the_old_one_and_nothing_else() {
    let folder = Folder::new();
    let weights = toy::safetensors(&toy::weights(&toy::model()));
    fs::write(folder.0.join("toy-notes.bin"), "mine").unwrap();
    pack_weights(&weights, &folder.0, &PackOptions { shard_bytes: 8192, ..options(DType::F32) }).unwrap();
    assert!(files(&folder.0).len() > 10);
    pack_weights(&weights, &folder.0, &options(DType::Q4)).unwrap();
    assert_eq!(files(&folder.0), ["manifest.json", "tokenizer.json", "toy-00001-of-00001.bin", "toy-notes.bin"]);
    assert_eq!(verify(&folder.0).unwrap().problem(), None);
}

#[test]
fn the_manifest_keeps_what_it_does_not_know_and_gets_what_was_left_open() {
    let folder = Folder::new();
    let weights = toy::safetensors(&toy::weights(&toy::model()));
    pack_weights(&weights, &folder.0, &options(DType::Q8)).unwrap();
    let text = fs::read_to_string(folder.0.join("manifest.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["extra"]["kept"], true);
    assert_eq!(json["training"]["steps"], 3);
    let manifest = read_manifest(&folder.0).unwrap();
    assert_eq!(manifest.text_encoder.tokenizer.bytes, toy::TOKENIZER.len() as u64);
    assert_eq!(fs::read(folder.0.join("tokenizer.json")).unwrap(), toy::TOKENIZER);
    assert!(manifest.requires.max_buffer_size > 0 && manifest.requires.memory_bytes > manifest.total_bytes());
}

#[test]
fn wrong_calls_are_told_so() {
    let folder = Folder::new();
    let model = toy::model();
    let weights = toy::safetensors(&toy::weights(&model));
    let wrong = |options: PackOptions| pack_weights(&weights, &folder.0, &options).unwrap_err().code();
    assert_eq!(wrong(PackOptions { group: 48, ..PackOptions::default() }), "invalid-request");
    for shard_bytes in [0, 100, (16 << 20) + 16] {
        assert_eq!(wrong(PackOptions { shard_bytes, ..PackOptions::default() }), "invalid-request");
    }
    for convolutions in [DType::F32, DType::Q4] {
        assert_eq!(wrong(PackOptions { convolutions, ..PackOptions::default() }), "invalid-request");
    }
    let cache = Some(CacheFormat::Q8);
    let refused = pack_weights(&weights, &folder.0, &PackOptions { cache, ..PackOptions::default() }).unwrap_err();
    assert_eq!(refused.code(), "invalid-request");
    assert!(refused.to_string().contains("not causal"), "{refused}");
    let file = folder.0.join("file");
    fs::write(&file, "").unwrap();
    let error = pack_weights(&weights, &file, &PackOptions::default()).unwrap_err();
    assert_eq!(error.code(), "invalid-request");
    let mut packed = model.clone();
    packed["shards"] = serde_json::json!([]);
    let mut no_text = model;
    no_text["text_encoder"] = serde_json::json!(1);
    for (json, says) in [
        ("{", "model.json"),
        ("[]", "not an object"),
        (&packed.to_string(), "packed"),
        (&no_text.to_string(), "text_encoder"),
    ] {
        let export = Export { model_json: json, tokenizer_json: b"{}", weights: &weights };
        let error = pack(&export, &folder.0, &PackOptions::default()).unwrap_err();
        assert!(error.code() == "manifest" && error.to_string().contains(says), "{error}");
    }
}

#[test]
fn verify_finds_every_kind_of_damage_and_says_where() {
    let folder = Folder::new();
    let weights = toy::safetensors(&toy::weights(&toy::model()));
    pack_weights(&weights, &folder.0, &PackOptions { shard_bytes: 65536, ..options(DType::F32) }).unwrap();
    let good = verify(&folder.0).unwrap();
    assert_eq!((good.problem(), good.tensors), (None, read_manifest(&folder.0).unwrap().tensors.len()));
    let shard = &good.files[2].path;
    let bytes = fs::read(folder.0.join(shard)).unwrap();
    let mut flipped = bytes.clone();
    flipped[1000] ^= 0x80;
    for (name, damaged, says) in [
        (shard.as_str(), Some(flipped), "SHA-256"),
        (shard, Some(bytes[1..].to_vec()), "bytes instead of"),
        (shard, None, "cannot be read"),
        ("tokenizer.json", Some(vec![b' '; toy::TOKENIZER.len()]), "SHA-256"),
    ] {
        let path = folder.0.join(name);
        let right = fs::read(&path).unwrap();
        match damaged {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let result = verify(&folder.0).unwrap();
        let wrong: Vec<_> = result.files.iter().filter(|file| file.problem.is_some()).collect();
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].path, name);
        assert!(result.to_string().contains(&format!("WRONG {name}")) && result.to_string().contains(says), "{result}");
        assert_eq!(result.problem().unwrap().code(), "integrity");
        fs::write(&path, right).unwrap();
    }
    assert_eq!(verify(&folder.0).unwrap().problem(), None);
}

#[test]
fn totals_add_up() {
    let folder = Folder::new();
    let weights = toy::safetensors(&toy::weights(&toy::model()));
    pack_weights(&weights, &folder.0, &PackOptions { shard_bytes: 65536, ..options(DType::Q8) }).unwrap();
    let summary = inspect(&folder.0).unwrap();
    let manifest = read_manifest(&folder.0).unwrap();
    let tensors = manifest.tensors.len();
    assert_eq!(summary.parts.iter().map(|part| part.tensors).sum::<usize>(), tensors);
    assert_eq!(summary.formats.iter().map(|format| format.tensors).sum::<usize>(), tensors);
    let bytes: u64 = summary.parts.iter().map(|part| part.bytes).sum();
    assert_eq!(bytes, summary.formats.iter().map(|format| format.bytes).sum::<u64>());
    let shards: u64 = summary.shards.iter().map(|shard| shard.bytes).sum();
    assert!(bytes <= shards && shards < bytes + 16 * tensors as u64);
    assert_eq!(summary.total_bytes, shards + toy::TOKENIZER.len() as u64);
    assert_eq!(
        summary.parts.iter().map(|part| part.part.to_string()).collect::<Vec<_>>(),
        ["text encoder", "transformer", "decoder", "encoder"]
    );
    assert!(summary.to_string().contains("toy-00001-of-"));
}

/// The golden export was written by the PyTorch reference classes, so this holds names and shapes to theirs.
#[test]
fn the_reference_export_packs_in_every_format() {
    let export = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../tests/goldens/tiny");
    let model = fs::read_to_string(export.join("model.json")).unwrap();
    let tokenizer = fs::read(export.join("tokenizer.json")).unwrap();
    let weights = fs::read(export.join("weights.safetensors")).unwrap();
    for format in [DType::F32, DType::F16, DType::Q8, DType::Q4] {
        let folder = Folder::new();
        let export = Export { model_json: &model, tokenizer_json: &tokenizer, weights: &weights };
        pack(&export, &folder.0, &options(format)).unwrap();
        assert_eq!(verify(&folder.0).unwrap().problem(), None);
    }
}
