//! The text encoder: only real tokens, and read layer by layer with the result it has as a whole.

mod common;
mod toy;

use std::path::Path;
use std::rc::Rc;

use common::{TempDir, floats, goldens, strict};
use kinora::compute::Compute;
use kinora::engine::wait;
use kinora::error::Error;
use kinora::model::manifest::{DType, Manifest};
use kinora::model::quant;
use kinora::model::reader::{ShardFolder, TensorReader};
use kinora::model::shards::ShardAssembler;
use kinora::pack::{Export, PackOptions, pack, read_file, read_manifest};
use kinora::selftest::relative_error;
use kinora::text::stream::StreamedUmt5;
use kinora::text::umt5::Umt5;
use kinora::weights::WeightStore;
use safetensors::tensor::SafeTensors;
use serde_json::json;

const TABLE: &str = "text_encoder.shared.weight";

/// The toy model with more layers and a table that dwarfs them, in shards smaller than a layer.
fn deep(format: DType, shard_bytes: u64) -> (TempDir, Manifest) {
    let dir = TempDir::new();
    let mut model = toy::model();
    model["text_encoder"]["num_layers"] = json!(6);
    model["text_encoder"]["vocab_size"] = json!(4000);
    let weights = toy::safetensors(&toy::weights(&model));
    let model = model.to_string();
    let export = Export { model_json: &model, tokenizer_json: toy::TOKENIZER, weights: &weights };
    pack(&export, dir.path(), &PackOptions { format, shard_bytes, ..PackOptions::default() }).expect("packs");
    let manifest = read_manifest(dir.path()).expect("a manifest");
    (dir, manifest)
}

fn resident(dir: &Path, manifest: &Manifest, compute: &Compute) -> Umt5 {
    let mut assembler = ShardAssembler::new(manifest);
    let mut store = WeightStore::new(compute.clone());
    for (index, info) in manifest.shards.iter().enumerate() {
        for tensor in assembler.add(index, &read_file(dir, info).expect("a shard")).expect("right") {
            store.insert(tensor);
        }
    }
    Umt5::load(&manifest.text_encoder, &mut store).expect("loads")
}

fn streamed(dir: &Path, manifest: &Manifest) -> StreamedUmt5 {
    StreamedUmt5::new(manifest, Rc::new(ShardFolder(dir.into())))
}

/// Padding a prompt and masking the padding, as the reference pipelines do, gives what the real tokens alone give.
#[test]
fn real_tokens_alone_equal_the_padded_computation_of_the_reference() {
    let dir = goldens().join("tiny-model");
    let manifest = read_manifest(&dir).expect("a manifest");
    let compute = Compute::cpu();
    let encoder = resident(&dir, &manifest, &compute);
    let file = std::fs::read(goldens().join("padded.safetensors")).expect("the goldens are committed");
    let all = SafeTensors::deserialize(&file).expect("safetensors");
    let mut lengths = Vec::new();
    for index in 0..all.len() / 2 {
        let ids = all.tensor(&format!("{index}.input_ids")).expect("ids");
        let ids: Vec<u32> = ids.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let want = floats(&all.tensor(&format!("{index}.embeddings")).expect("embeddings"));
        let got = wait(encoder.encode(&compute, &ids)).expect("encodes");
        // One row a token and none for padding.
        assert_eq!(got.len(), ids.len() * manifest.text_encoder.d_model);
        let error = relative_error(&got, &want);
        println!("prompt {index}, {} of {} tokens: {error:.2e}", ids.len(), manifest.text_encoder.max_tokens);
        assert!(error < 1e-4, "prompt {index}: {error:.2e}");
        lengths.push(ids.len());
        // What was not asked for is not computed: padding would change the values if it were seen.
        let padded: Vec<u32> = ids.iter().copied().chain([0; 3]).collect();
        let seen = wait(encoder.encode(&compute, &padded)).expect("encodes");
        assert!(relative_error(&seen[..got.len()], &want) > 1e-3);
    }
    assert!(lengths.iter().min() < lengths.iter().max(), "{lengths:?}");
}

#[test]
fn layer_by_layer_gives_the_bits_of_the_whole() {
    let texts: [&[u32]; 3] = [&[7, 3999, 7, 1], &[2], &[11, 12, 13, 14, 15, 16, 17, 1500, 1]];
    for (format, shard_bytes) in
        [(DType::F32, 16 << 10), (DType::F16, 8 << 10), (DType::Q8, 4 << 10), (DType::Q4, 1 << 20)]
    {
        let (dir, manifest) = deep(format, shard_bytes);
        let compute = Compute::cpu();
        let whole = resident(dir.path(), &manifest, &compute);
        let parts = streamed(dir.path(), &manifest);
        let all = wait(parts.encode_all(&compute, &texts)).expect("encodes");
        assert_eq!(all.len(), texts.len());
        for (ids, got) in texts.iter().zip(&all) {
            let want = wait(whole.encode(&compute, ids)).expect("encodes");
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(got), bits(&want), "{format} {ids:?}");
        }
        assert!(all[0][..32] != all[1][..32]);
        assert_eq!(parts.meter().now(), 0, "everything is let go");
    }
}

/// The most that is held at a time, counted where weights are read and kept: two layers and a shard, however many
/// layers there are and however large the table is.
#[test]
fn no_more_than_two_layers_and_a_shard_are_held() {
    holds_two_layers(&Compute::cpu());
}

/// Where the next layer is read while one runs.
#[test]
fn a_gpu_holds_two_layers_too() {
    if let Some(compute) = strict() {
        holds_two_layers(&compute);
    }
}

fn holds_two_layers(compute: &Compute) {
    for (format, shard_bytes) in [(DType::F32, 16 << 10), (DType::Q8, 4 << 10)] {
        let (dir, manifest) = deep(format, shard_bytes);
        let encoder = streamed(dir.path(), &manifest);
        wait(encoder.encode_all(compute, &[&[7, 2000, 3999, 1]])).expect("encodes");
        let bytes = |prefix: &str| -> u64 {
            let tensors = manifest.tensors.iter().filter(|(name, _)| name.starts_with(prefix));
            tensors.map(|(_, info)| info.bytes()).sum()
        };
        let (layer, all) = (bytes("text_encoder.encoder.block.0."), bytes("text_encoder."));
        let shard = manifest.shards.iter().map(|shard| shard.bytes).max().expect("shards");
        let peak = encoder.meter().peak();
        println!("{format}: peak {peak}, a layer {layer}, a shard {shard}, the encoder {all}");
        assert!(peak >= layer, "a layer is held while it runs");
        // A matrix of the second one is there twice for the moment in which a GPU is handed it.
        let block = manifest.tensors.iter().filter(|(name, _)| name.starts_with("text_encoder.encoder.block.0."));
        let largest = block.map(|(_, info)| info.bytes()).max().expect("tensors");
        let twice = if compute.name() == "cpu" { 0 } else { largest };
        assert!(peak <= 2 * layer + shard + twice, "{format}: {peak} bytes, a layer has {layer}, a shard {shard}");
        assert!(peak < all / 7, "{format}: {peak} of {all} bytes");
    }
}

#[test]
fn rows_are_those_of_the_table_and_only_their_shards_are_read() {
    for format in [DType::F32, DType::F16] {
        let (dir, manifest) = deep(format, 4 << 10);
        let table = &manifest.tensors[TABLE];
        let reader = TensorReader::new(&manifest, |name| name == TABLE, Rc::new(ShardFolder(dir.path().into())));
        let whole = wait(reader.tensor(TABLE)).expect("the table");
        let rows = [5, 3999, 0, 5, 2047];
        assert_eq!(wait(reader.rows(TABLE, &rows)).expect("rows"), whole.rows_to_f32(&rows).expect("rows"));
        assert_eq!(wait(reader.rows(TABLE, &[4000])).map_err(|error| error.code()), Err("tensor"));
        // Shards without these rows may as well not be there.
        let width = table.bytes() / 4000;
        let holds = |part_from: u64, part_to: u64| {
            rows.iter().any(|&row| {
                let from = row as u64 * width;
                from < part_to && from + width > part_from
            })
        };
        let (mut first, mut gone) = (0, 0);
        for part in &table.parts {
            if !holds(first, first + part.bytes) {
                std::fs::remove_file(dir.path().join(&manifest.shards[part.shard].path)).expect("a shard");
                gone += 1;
            }
            first += part.bytes;
        }
        assert!(gone > 10, "{gone} shards");
        let reader = TensorReader::new(&manifest, |name| name == TABLE, Rc::new(ShardFolder(dir.path().into())));
        assert_eq!(wait(reader.rows(TABLE, &rows)).expect("rows"), whole.rows_to_f32(&rows).expect("rows"));
    }
}

#[test]
fn a_row_lies_where_the_format_puts_it() {
    let values = kinora::latents::noise::normal(9, 0, 6 * 64);
    for (format, group) in [(DType::F32, None), (DType::F16, None), (DType::Q8, Some(32)), (DType::Q4, Some(64))] {
        let bytes = quant::encode(format, &[6, 64], group, &values).expect("encodes");
        let all = quant::decode(format, &[6, 64], group, &bytes).expect("decodes");
        for row in 0..6 {
            let (own, scales) = quant::row_bytes(format, &[6, 64], group, row).expect("a row");
            let cut = |range: std::ops::Range<u64>| &bytes[range.start as usize..range.end as usize];
            let stored = [cut(own), cut(scales)].concat();
            let found = quant::decode(format, &[1, 64], group, &stored).expect("decodes");
            assert_eq!(found, all[row * 64..(row + 1) * 64], "{format} row {row}");
        }
        assert!(quant::row_bytes(format, &[6, 64], group, 6).is_err());
    }
    assert!(quant::row_bytes(DType::Q8, &[6, 60], Some(32), 0).is_err());
}

#[test]
fn a_damaged_or_missing_shard_is_an_error_and_the_next_try_may_succeed() {
    let (dir, manifest) = deep(DType::Q8, 4 << 10);
    let encoder = streamed(dir.path(), &manifest);
    let run = || wait(encoder.encode_all(&Compute::cpu(), &[&[3, 1]]));
    let right = run().expect("encodes");
    let wo = &manifest.tensors["text_encoder.encoder.block.5.layer.1.DenseReluDense.wo.weight"];
    let path = dir.path().join(&manifest.shards[wo.parts[0].shard].path);
    let bytes = std::fs::read(&path).expect("a shard");
    let mut damaged = bytes.clone();
    damaged[wo.parts[0].offset as usize] ^= 1;
    std::fs::write(&path, &damaged).expect("writes");
    assert_eq!(run().map_err(|error| error.code()), Err("integrity"));
    assert_eq!(encoder.meter().now(), 0, "an error lets everything go, too");
    std::fs::remove_file(&path).expect("removes");
    assert_eq!(run().map_err(|error| error.code()), Err("integrity"));
    std::fs::write(&path, &bytes).expect("writes");
    assert_eq!(run().expect("encodes"), right);
    let wrong = |ids: &[u32]| wait(encoder.encode_all(&Compute::cpu(), &[ids]));
    assert_eq!(wrong(&[]), Err(Error::EmptyPrompt));
    assert_eq!(wrong(&[4000]).map_err(|error| error.code()), Err("tokenizer"));
}
