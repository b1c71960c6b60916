//! Packing from published files: every naming and format, refusals by name, interruptions, nothing half-written.

mod parts;
mod toy;
mod writers;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use kinora::Error;
use kinora::model::manifest::DType;
use kinora::pack::source::Source;
use kinora::pack::{PackOptions, Published, estimate_published, pack_published, read_manifest, verify};
use parts::{file, open, options, pack, packed_values, part, part_of, plain, published, unpacked};
use toy::{Folder, files};
use writers::{Affine, File, Kind, fastvideo_name, rounded, stored, umt5_name, wan_name};

/// Every value of the toy model, as a file of `kind` gives it back, for the parts whose names begin so.
fn expect(found: &BTreeMap<String, Vec<f32>>, prefix: &str, kind: impl Fn(&str, &[usize]) -> Kind) {
    for (name, (shape, values)) in toy::weights(&toy::model()) {
        let kind = if name.starts_with(prefix) { kind(&name, &shape) } else { Kind::F32 };
        assert_eq!(found[&name], rounded(kind, &values), "{name}");
    }
    assert_eq!(found.len(), toy::weights(&toy::model()).len());
}

#[test]
fn transformers_of_every_naming_are_the_same() {
    let weights = part("transformer.");
    let prefixed = |prefix: &'static str| move |name: &str| format!("{prefix}{}", wan_name(name));
    let f32 = |_: &str, _: &[usize]| Kind::F32;
    for (what, bytes) in [
        ("diffusers", writers::safetensors(&plain(&weights))),
        ("Wan", writers::safetensors(&file(&weights, f32, wan_name))),
        ("ComfyUI", writers::safetensors(&file(&weights, f32, prefixed("model.diffusion_model.")))),
        ("FSDP", writers::torch(&file(&weights, f32, prefixed("model._fsdp_wrapped_module.")), Some("generator_ema"))),
        ("rCM", writers::torch(&file(&weights, f32, prefixed("net.")), None)),
        ("FastVideo", writers::safetensors(&file(&weights, f32, fastvideo_name))),
        ("GGUF", writers::gguf(&file(&weights, f32, wan_name), 3)),
    ] {
        let found = packed_values(Published { transformer: open(bytes), ..published() });
        expect(&found, "none", |_, _| Kind::F32);
        assert!(!found.is_empty(), "{what}");
    }
}

#[test]
fn a_patch_embedding_that_is_a_matrix_is_the_convolution() {
    let mut weights = part("transformer.");
    let (shape, _) = weights.get_mut("patch_embedding.weight").unwrap();
    *shape = vec![shape[0], shape[1..].iter().product()];
    let transformer = open(writers::torch(&file(&weights, |_, _| Kind::F32, wan_name), None));
    expect(&packed_values(Published { transformer, ..published() }), "none", |_, _| Kind::F32);
}

#[test]
fn text_encoders_of_every_naming_and_format_are_the_same() {
    let weights = part("text_encoder.");
    let quantized = |kind: Kind| {
        move |_: &str, shape: &[usize]| if shape.len() == 2 && shape[1].is_multiple_of(32) { kind } else { Kind::F32 }
    };
    let half = |_: &str, _: &[usize]| Kind::Bf16;
    let bytes = writers::torch(&file(&weights, half, |name| umt5_name(name, 0)), None);
    expect(&packed_values(Published { text_encoder: open(bytes), ..published() }), "text_encoder.", half);
    for kind in [Kind::F16, Kind::Q8_0, Kind::Q4_0] {
        let bytes = writers::gguf(&file(&weights, quantized(kind), |name| umt5_name(name, 1)), 3);
        let found = packed_values(Published { text_encoder: open(bytes), ..published() });
        expect(&found, "text_encoder.", quantized(kind));
    }
    // transformers: the table under its other name, the half that writes text, and ComfyUI's tokenizer.
    let mut both = plain(&weights);
    let table = both.remove("shared.weight").unwrap();
    both.insert("encoder.embed_tokens.weight".into(), table);
    both.insert("decoder.final_layer_norm.weight".into(), stored(Kind::F32, &[1], &[1.0]));
    both.insert("spiece_model".into(), stored(Kind::I64, &[1], &[1.0]));
    let text_encoder = open(writers::safetensors(&both));
    expect(&packed_values(Published { text_encoder, ..published() }), "none", |_, _| Kind::F32);
}

#[test]
fn mlx_weights_are_scaled_back() {
    for (fastvideo, bits) in [(true, 8), (false, 8), (true, 4), (false, 4)] {
        let weights = part("transformer.");
        let mut file = file(&weights, |_, _| Kind::F32, if fastvideo { fastvideo_name } else { str::to_owned });
        let (ours, groups) = ("blocks.3.attn1.to_q", 1);
        let stem = if fastvideo { fastvideo_name(ours) } else { ours.into() };
        let (rows, columns) = (32usize, 32usize);
        let q: Vec<u32> = (0..rows * columns).map(|index| (index * 7 % (1 << bits)) as u32).collect();
        let scales: Vec<f32> = (0..rows * groups).map(|index| 0.25 + index as f32 / 64.0).collect();
        let biases: Vec<f32> = (0..rows * groups).map(|index| index as f32 / 8.0 - 2.0).collect();
        let matrix = Affine { bits, rows, q: &q, kind: Kind::F16, scales: &scales, biases: &biases };
        writers::mlx(&mut file, &stem, fastvideo, &matrix);
        let transformer = open(writers::safetensors(&file));
        let found = packed_values(Published { transformer, ..published() });
        for (index, value) in found[&format!("transformer.{ours}.weight")].iter().enumerate() {
            let row = index / columns;
            assert_eq!(*value, q[index] as f32 * scales[row] + biases[row], "int{bits}, value {index}");
        }
    }
}

/// FastMetal's groups are of 64 values and its rows of 1536 to 8960: many groups a row, with scales in bf16.
#[test]
fn mlx_rows_of_several_groups_are_scaled_back() {
    let mut model = toy::model();
    for (key, value) in [("num_layers", 1), ("attention_head_dim", 64), ("ffn_dim", 256)] {
        model["transformer"][key] = value.into();
    }
    let (ours, rows, columns) = ("blocks.0.ffn.net.2", 128usize, 256usize);
    for (group, bits) in [(32, 8), (64, 8), (128, 8), (32, 4), (64, 4), (128, 4)] {
        for (fastvideo, kind) in [(true, Kind::Bf16), (false, Kind::Bf16), (false, Kind::F16), (true, Kind::F32)] {
            let name = |ours: &str| if fastvideo { fastvideo_name(ours) } else { ours.to_owned() };
            let mut file = file(&part_of(&model, "transformer."), |_, _| Kind::F32, name);
            let groups = rows * columns / group;
            let q: Vec<u32> = (0..rows * columns).map(|index| (index * 7 % 251 % (1 << bits)) as u32).collect();
            let scales: Vec<f32> = (0..groups).map(|index| 0.25 + index as f32 / 700.0).collect();
            let biases: Vec<f32> = (0..groups).map(|index| index as f32 / 90.0 - 2.0).collect();
            let matrix = Affine { bits, rows, q: &q, kind, scales: &scales, biases: &biases };
            writers::mlx(&mut file, &name(ours), fastvideo, &matrix);
            let transformer = open(writers::safetensors(&file));
            let found = packed_values(Published { model_json: model.to_string(), transformer, ..published() });
            let (scales, biases) = (rounded(kind, &scales), rounded(kind, &biases));
            for (index, value) in found[&format!("transformer.{ours}.weight")].iter().enumerate() {
                let wanted = q[index] as f32 * scales[index / group] + biases[index / group];
                assert_eq!(*value, wanted, "int{bits} in groups of {group}, value {index}");
            }
        }
    }
}

#[test]
fn changed_mlx_files_are_an_error_or_other_numbers_and_never_a_panic() {
    let mut file = plain(&part("transformer."));
    let (scales, biases) = ([0.5; 32], [-1.0; 32]);
    let matrix = Affine { bits: 8, rows: 32, q: &[7; 1024], kind: Kind::F16, scales: &scales, biases: &biases };
    writers::mlx(&mut file, "blocks.0.attn1.to_q", false, &matrix);
    let good = writers::safetensors(&file);
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    // Digits of the shapes and offsets of the three tensors, all within this stretch of the header.
    let text = String::from_utf8_lossy(&good[8..header]).into_owned();
    let places: Vec<usize> = ["to_q.weight", "to_q.scales", "to_q.biases"]
        .iter()
        .filter_map(|name| text.find(&format!("blocks.0.attn1.{name}")))
        .flat_map(|at| (at..(at + 110).min(text.len())).filter(|&at| text.as_bytes()[at].is_ascii_digit()))
        .collect();
    let (mut refused, mut count) = (0, 0);
    for place in places {
        for digit in b"0159" {
            let mut bytes = good.clone();
            bytes[8 + place] = *digit;
            count += 1;
            let source = Source::from_bytes("test", bytes, None);
            let estimate = source.and_then(|transformer| {
                estimate_published(Published { transformer, ..published() }, &options(DType::F32))
            });
            match estimate {
                Ok(_) => {}
                Err(Error::WeightFile(_) | Error::Tensor(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(refused > count / 2 && refused < count, "{refused} of {count} refused");
}

#[test]
fn several_files_with_an_index_are_one() {
    let folder = Folder::new();
    let (mut first, mut second) = (File::new(), File::new());
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in plain(&part("transformer.")).into_iter().enumerate() {
        let (file, target) =
            if index % 2 == 0 { ("a.safetensors", &mut first) } else { ("b.safetensors", &mut second) };
        map.insert(name.clone(), file.into());
        target.insert(name, tensor);
    }
    let index = folder.0.join("model.safetensors.index.json");
    fs::write(folder.0.join("a.safetensors"), writers::safetensors(&first)).unwrap();
    fs::write(folder.0.join("b.safetensors"), writers::safetensors(&second)).unwrap();
    fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    for path in [&index, &folder.0] {
        let transformer = Source::open(path, None).unwrap();
        assert_eq!(transformer.files().count(), 2);
        expect(&packed_values(Published { transformer, ..published() }), "none", |_, _| Kind::F32);
    }
    map.insert("more.weight".into(), "a.safetensors".into());
    fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).unwrap();
    assert!(Source::open(&index, None).unwrap_err().to_string().contains("more.weight"));
    fs::write(&index, r#"{"weight_map": {"x": "../a.safetensors"}}"#).unwrap();
    assert!(Source::open(&index, None).unwrap_err().to_string().contains("no file name"));
    fs::remove_file(&index).unwrap();
    let error = Source::open(&folder.0, None).unwrap_err().to_string();
    assert!(error.contains("not clear") && error.contains("a.safetensors, b.safetensors"), "{error}");
}

#[test]
fn taehv_files_for_more_frames_lose_their_leading_rows() {
    let mut weights = part("autoencoder.");
    let (shape, values) = weights.get_mut("decoder.7.conv.weight").unwrap();
    let kept = values.clone();
    *values = [vec![9.0; kept.len()], kept].concat();
    shape[0] *= 2;
    let autoencoder = open(writers::torch(&plain(&weights), None));
    expect(&packed_values(Published { autoencoder, ..published() }), "none", |_, _| Kind::F32);
}

#[test]
fn every_tensor_that_is_amiss_is_named() {
    let mut transformer = file(&part("transformer."), |_, _| Kind::F32, wan_name);
    for block in 0..11 {
        transformer.remove(&format!("blocks.{block}.norm3.bias")).unwrap();
        transformer.remove(&format!("blocks.{block}.ffn.0.bias")).unwrap();
        transformer.insert(format!("blocks.{block}.img_attn.q.weight"), stored(Kind::F32, &[1], &[0.0]));
        transformer.insert(format!("blocks.{block}.ffn.0.weight"), stored(Kind::F32, &[32, 48], &[0.0; 32 * 48]));
    }
    let mut autoencoder = plain(&part("autoencoder."));
    // Swapped names: both have the wrong shape now.
    let (a, b) = (autoencoder.remove("decoder.1.weight").unwrap(), autoencoder.remove("encoder.0.weight").unwrap());
    autoencoder.insert("decoder.1.weight".into(), b);
    autoencoder.insert("encoder.0.weight".into(), a);
    let published = Published {
        transformer: open(writers::safetensors(&transformer)),
        autoencoder: open(writers::safetensors(&autoencoder)),
        ..published()
    };
    let folder = Folder::new();
    let error = pack(published, &folder.0, &options(DType::F16)).unwrap_err();
    assert_eq!(error.code(), "tensor");
    let text = error.to_string();
    assert!(
        text.contains("22 missing") && text.contains("11 of the wrong shape") && text.contains("11 unknown"),
        "{text}"
    );
    for block in 0..11 {
        for name in ["norm2.bias", "ffn.net.0.proj.bias", "img_attn.q.weight", "ffn.0.weight is [32, 48]"] {
            assert!(text.contains(&format!("blocks.{block}.{name}")), "{block} {name}: {text}");
        }
    }
    assert!(text.contains("decoder.1.weight is ") && text.contains("encoder.0.weight is "), "{text}");
    assert_eq!(files(&folder.0), Vec::<String>::new());
}

#[test]
fn wrong_numbers_are_refused_by_name_and_leave_nothing() {
    let name = "blocks.1.attn1.to_k.weight";
    let with = |change: &dyn Fn(&mut File)| {
        let mut file = plain(&part("transformer."));
        change(&mut file);
        open(writers::safetensors(&file))
    };
    let mut nan = part("transformer.")[name].1.clone();
    nan[5] = f32::NAN;
    let (scales, biases) = ([f32::NAN; 32], [0.0; 32]);
    let matrix = Affine { bits: 8, rows: 32, q: &[1; 1024], kind: Kind::F16, scales: &scales, biases: &biases };
    let nan_scale = |file: &mut File| writers::mlx(file, "blocks.1.attn1.to_k", false, &matrix);
    let integers = with(&|file| drop(file.insert(name.into(), stored(Kind::I64, &[32, 32], &[1.0; 1024]))));
    let three_bits = with(&|file| {
        let words = writers::Stored { kind: Kind::Raw(32), shape: vec![32, 3], bytes: vec![0; 384] };
        file.insert(name.into(), words);
        file.insert("blocks.1.attn1.to_k.scales".into(), stored(Kind::F16, &[32, 1], &[1.0; 32]));
        file.insert("blocks.1.attn1.to_k.biases".into(), stored(Kind::F16, &[32, 1], &[1.0; 32]));
    });
    for (transformer, code, says) in [
        (with(&|file| drop(file.insert(name.into(), stored(Kind::F32, &[32, 32], &nan)))), "tensor", "value 5 is NaN"),
        (with(&nan_scale), "tensor", "is NaN"),
        (integers, "tensor", "I64"),
        (three_bits, "weight-file", "no 32 values of 4 or 8 bits"),
    ] {
        let folder = Folder::new();
        let error = pack(Published { transformer, ..published() }, &folder.0, &options(DType::Q4)).unwrap_err();
        assert!(error.code() == code && error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains("blocks.1.attn1.to_k"), "{error}");
        assert_eq!(files(&folder.0), Vec::<String>::new());
    }
    // A block of ggml whose scale is NaN.
    let mut text = file(&part("text_encoder."), |_, _| Kind::F32, |name| umt5_name(name, 1));
    let mut table = stored(Kind::Q8_0, &[40, 32], &part("text_encoder.")["shared.weight"].1);
    table.bytes[34..36].copy_from_slice(&[0xff, 0x7f]);
    text.insert("token_embd.weight".into(), table);
    let folder = Folder::new();
    let wrong = Published { text_encoder: open(writers::gguf(&text, 3)), ..published() };
    let error = pack(wrong, &folder.0, &options(DType::Q8)).unwrap_err().to_string();
    assert!(error.contains("text_encoder.shared.weight: value 32 is NaN"), "{error}");
    let wrong = Published { tokenizer_json: b"{}".to_vec(), ..published() };
    assert_eq!(pack(wrong, &folder.0, &options(DType::Q8)).unwrap_err().code(), "tokenizer");
    assert_eq!(files(&folder.0), Vec::<String>::new());
}

#[test]
fn formats_go_by_the_class_of_a_tensor_and_a_dry_run_knows_the_sizes() {
    for format in [DType::Q4, DType::Q8, DType::F16, DType::F32] {
        let options = PackOptions { shard_bytes: 65536, ..options(format) };
        let (estimate, merged) = estimate_published(published(), &options).unwrap();
        let folder = Folder::new();
        let packed = pack(published(), &folder.0, &options).unwrap();
        let mut found = packed.packed.summary.clone();
        assert_eq!((merged, packed.merged, packed.kept_shards), (0, 0, 0));
        found.requires = estimate.requires.clone();
        assert_eq!(found, estimate, "{format}");
        let manifest = read_manifest(&folder.0).unwrap();
        let quantized = matches!(format, DType::Q4 | DType::Q8);
        let or = |class| if quantized { class } else { format };
        assert_eq!(manifest.tensors["text_encoder.shared.weight"].dtype, or(DType::Q8));
        assert_eq!(manifest.tensors["transformer.blocks.0.attn1.to_q.weight"].dtype, format);
        assert_eq!(manifest.tensors["transformer.patch_embedding.weight"].dtype, or(DType::F16));
        assert_eq!(manifest.tensors["transformer.blocks.0.norm2.weight"].dtype, or(DType::F32));
        assert_eq!(packed.packed.worst.is_some(), quantized);
    }
}

#[test]
fn pieces_make_the_same_bytes_as_the_whole() {
    // `pack` encodes a tensor in one piece, `pack_published` in pieces: the shards must not differ. The table is the
    // one tensor that they store differently, so everything is compared in f16, and the blocks in q4.
    let whole = Folder::new();
    let weights = toy::safetensors(&toy::weights(&toy::model()));
    for format in [DType::F16, DType::Q4] {
        toy::pack_weights(&weights, &whole.0, &options(format)).unwrap();
        let pieces = Folder::new();
        pack(published(), &pieces.0, &options(format)).unwrap();
        let (whole, pieces) = (unpacked(&whole.0), unpacked(&pieces.0));
        for (name, values) in &whole {
            assert!(*values == pieces[name] || (format == DType::Q4 && name == "text_encoder.shared.weight"), "{name}");
        }
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_where_it_was() {
    let options = PackOptions { shard_bytes: 16384, ..options(DType::Q8) };
    let straight = Folder::new();
    pack(published(), &straight.0, &options).unwrap();
    let folder = Folder::new();
    let stop_at = |limit: u64, folder: &Path| {
        let mut calls = 0;
        let error = pack_published(published(), folder, &options, &mut |progress| {
            calls += 1;
            assert!(progress.done <= progress.total && !progress.tensor.is_empty());
            if progress.done > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(error.unwrap_err(), Error::Aborted);
        calls
    };
    stop_at(100_000, &folder.0);
    let left = files(&folder.0);
    assert!(left.len() == 1 && left[0].starts_with(".kinora-resume-"), "nothing has a name yet: {left:?}");
    let staging = folder.0.join(&left[0]);
    let finished = files(&staging).iter().filter(|name| name.ends_with(".bin")).count();
    assert!(finished > 3);
    // The second run goes on, and is stopped later.
    let calls = stop_at(200_000, &folder.0);
    assert!(calls > 0);
    // A shard that was damaged meanwhile is made again, with all after it.
    let damaged = staging.join(files(&staging).into_iter().find(|name| name.contains("-00003-of-")).unwrap());
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[100] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    // Other options have nothing to do with what lies there.
    let other = Folder::new();
    fs::rename(&staging, other.0.join(&left[0])).unwrap();
    let fresh = pack(published(), &other.0, &PackOptions { group: 64, ..options }).unwrap();
    assert_eq!(fresh.kept_shards, 0);
    assert!(files(&other.0).iter().all(|name| !name.starts_with('.')));

    stop_at(200_000, &folder.0);
    let staging = folder.0.join(&files(&folder.0)[0]);
    let third = files(&staging).into_iter().find(|name| name.contains("-00003-of-")).unwrap();
    fs::write(staging.join(third), b"damaged").unwrap();
    let packed = pack(published(), &folder.0, &options).unwrap();
    assert_eq!(packed.kept_shards, 2);
    assert_eq!(files(&folder.0), files(&straight.0));
    for name in files(&folder.0) {
        assert_eq!(fs::read(folder.0.join(&name)).unwrap(), fs::read(straight.0.join(&name)).unwrap(), "{name}");
    }
    assert_eq!(verify(&folder.0).unwrap().problem(), None);
}

#[test]
fn finished_shards_are_kept() {
    let options = PackOptions { shard_bytes: 16384, ..options(DType::F32) };
    let folder = Folder::new();
    let stopped = pack_published(published(), &folder.0, &options, &mut |progress| {
        if progress.done > 300_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(stopped.unwrap_err(), Error::Aborted);
    let mut first = None;
    let packed = pack_published(published(), &folder.0, &options, &mut |progress| {
        first.get_or_insert(progress.done);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(packed.kept_shards >= 300_000 / 16384 - 1, "{}", packed.kept_shards);
    assert!(first.unwrap() > 250_000, "the second run begins where the first one was: {first:?}");
    expect(&unpacked(&folder.0), "none", |_, _| Kind::F32);
}
