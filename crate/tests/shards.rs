//! Shards: in any order, split or not, and not one wrong byte gets through.

mod toy;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use kinora::model::manifest::{DType, Manifest};
use kinora::model::quant;
use kinora::model::shards::{RawTensor, ShardAssembler, sha256_hex};
use kinora::pack::{PackOptions, read_manifest};
use proptest::prelude::*;
use serde_json::json;
use toy::Folder;

/// A packed toy model in small shards, so that many tensors are split.
fn packed(format: DType, shard_bytes: u64) -> (Manifest, Vec<Vec<u8>>) {
    let folder = Folder::new();
    let weights = toy::safetensors(&toy::weights(&toy::model()));
    toy::pack_weights(&weights, &folder.0, &PackOptions { format, shard_bytes, ..PackOptions::default() }).unwrap();
    let manifest = read_manifest(&folder.0).unwrap();
    let shards = manifest.shards.iter().map(|shard| std::fs::read(folder.0.join(&shard.path)).unwrap()).collect();
    (manifest, shards)
}

fn by_name(tensors: Vec<RawTensor>) -> BTreeMap<String, RawTensor> {
    let count = tensors.len();
    let tensors: BTreeMap<_, _> = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    assert_eq!(tensors.len(), count, "a tensor was given back twice");
    tensors
}

#[test]
fn tensors_come_as_soon_as_they_are_complete() {
    let (manifest, shards) = packed(DType::F32, 2048);
    let mut assembler = ShardAssembler::new(&manifest);
    let mut seen = Vec::new();
    for (index, bytes) in shards.iter().enumerate() {
        assert_eq!(assembler.missing(), (index..shards.len()).collect::<Vec<_>>());
        let added = assembler.add(index, bytes).unwrap();
        for (name, info) in &manifest.tensors {
            let ends_here = info.parts.last().unwrap().shard == index;
            assert_eq!(added.iter().any(|tensor| tensor.name == *name), ends_here, "{name} in shard {index}");
        }
        // What is held is what began here or before and goes on later, no more.
        let open = manifest
            .tensors
            .values()
            .filter(|info| info.parts[0].shard <= index && info.parts.last().unwrap().shard > index);
        assert_eq!(assembler.held_bytes() as u64, open.map(|info| info.bytes()).sum::<u64>());
        seen.extend(added);
    }
    assert!(assembler.is_complete() && assembler.held_bytes() == 0);
    assert!(manifest.tensors.values().any(|info| info.parts.len() > 2), "the test needs tensors over three shards");
    let weights = toy::weights(&toy::model());
    let tensors = by_name(seen);
    assert_eq!(tensors.len(), weights.len());
    for (name, (shape, values)) in weights {
        assert_eq!(tensors[&name].shape, shape);
        assert_eq!(tensors[&name].to_f32().unwrap(), values, "{name}");
    }
}

#[test]
fn a_shard_that_comes_twice_gives_nothing_twice() {
    let (manifest, shards) = packed(DType::Q8, 4096);
    let mut assembler = ShardAssembler::new(&manifest);
    assert!(!assembler.add(0, &shards[0]).unwrap().is_empty());
    assert!(assembler.add(0, &shards[0]).unwrap().is_empty());
    assert_eq!(assembler.add(shards.len(), &shards[0]).unwrap_err().code(), "invalid-request");
}

#[test]
fn wrong_bytes_are_named_for_what_they_are() {
    let (manifest, shards) = packed(DType::Q8, 4096);
    let right = &shards[1];
    let mut flipped = right.clone();
    flipped[7] ^= 1;
    let mut page = b"\n <!DOCTYPE html><html><head><title>404</title></head></html>".to_vec();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n".to_vec();
    let short_page = page.clone();
    page.resize(right.len(), b' ');
    let cases: [(&[u8], &str); 7] = [
        (&flipped, "SHA-256"),
        (&right[..right.len() - 1], "bytes instead of"),
        (&[], "0 bytes instead of"),
        (&short_page, "it is a web page"),
        (&page, "it is a web page"),
        (&pointer, "Git LFS pointer"),
        (&shards[0], "instead of"),
    ];
    let mut assembler = ShardAssembler::new(&manifest);
    for (bytes, says) in cases {
        let error = assembler.add(1, bytes).unwrap_err();
        assert_eq!(error.code(), "integrity");
        assert!(error.retryable() && error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains("toy-00002-of-"), "{error}");
        assert_eq!((assembler.missing().len(), assembler.held_bytes()), (shards.len(), 0));
    }
    assert!(assembler.add(1, right).is_ok(), "the right bytes are taken after wrong ones");
}

#[test]
fn a_scale_that_is_not_finite_is_refused_though_the_hash_is_right() {
    let (manifest, mut shards) = packed(DType::Q8, 16 << 20);
    let name = "transformer.blocks.3.attn1.to_k.weight";
    let info = &manifest.tensors[name];
    let end = (info.parts[0].offset + info.parts[0].bytes) as usize;
    shards[0][end - 2..end].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let mut json = serde_json::to_value(&manifest).unwrap();
    json["shards"][0]["sha256"] = json!(sha256_hex(&shards[0]));
    let manifest = Manifest::parse(&json.to_string()).unwrap();
    let error = ShardAssembler::new(&manifest).add(0, &shards[0]).unwrap_err();
    assert_eq!(error.code(), "tensor");
    assert!(error.to_string().contains(name), "{error}");
}

#[test]
fn hashes_are_sha256() {
    assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_any_shard_size_gives_the_same_tensors(
        shard_bytes in (16u64..400).prop_map(|blocks| 64 * blocks),
        ranks in prop::collection::vec(any::<u32>(), 1..200),
    ) {
        let (manifest, shards) = packed(DType::Q8, shard_bytes);
        let mut order: Vec<usize> = (0..shards.len()).collect();
        order.sort_by_key(|index| (ranks[index % ranks.len()], *index));
        let mut assembler = ShardAssembler::new(&manifest);
        let mut tensors = Vec::new();
        for index in order {
            tensors.extend(assembler.add(index, &shards[index]).unwrap());
        }
        prop_assert!(assembler.is_complete() && assembler.held_bytes() == 0);
        let tensors = by_name(tensors);
        for (name, (shape, values)) in toy::weights(&toy::model()) {
            let tensor = &tensors[&name];
            prop_assert_eq!(&tensor.bytes, &quant::encode(tensor.dtype, &shape, tensor.group, &values).unwrap());
        }
    }

    #[test]
    fn no_single_changed_byte_gets_through(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        static PACKED: LazyLock<(Manifest, Vec<Vec<u8>>)> = LazyLock::new(|| packed(DType::F16, 1 << 20));
        let (manifest, shards) = &*PACKED;
        let mut shard = shards[0].clone();
        shard[at.index(shards[0].len())] ^= 1u8 << bit;
        let error = ShardAssembler::new(manifest).add(0, &shard).unwrap_err();
        prop_assert_eq!(error.code(), "integrity");
    }
}
