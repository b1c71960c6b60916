//! A manifest is believed in nothing: every way to be wrong has its typed error, and no input makes the reader panic.

mod toy;

use std::sync::LazyLock;

use kinora::model::layout;
use kinora::model::manifest::{MAX_MANIFEST_BYTES, Manifest};
use kinora::model::shards::ShardAssembler;
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn a_right_manifest_is_read() {
    let manifest = Manifest::parse(&toy::manifest().to_string()).unwrap();
    assert_eq!(manifest.latent_shape(64, 32, 9), [8, 3, 2, 4]);
    assert_eq!(manifest.latent_shape(64, 32, 5), [8, 2, 2, 4]);
    // Tokens of 32 pixels: the latents of 50x34 cover 64x64.
    assert_eq!(manifest.latent_shape(50, 34, 5), [8, 2, 4, 4]);
    assert_eq!(manifest.default_size().to_string(), "64x32 (9 frames)");
    let shards: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    assert_eq!(manifest.total_bytes(), shards + 100);
    assert_eq!(manifest.autoencoder.frames_to_trim(), 3);
}

#[test]
fn sizes_are_found_or_all_of_them_named() {
    let manifest = Manifest::parse(&toy::manifest().to_string()).unwrap();
    assert_eq!(manifest.find_size(None, None, None).unwrap().frames, 9);
    assert_eq!(manifest.find_size(Some(64), None, Some(5)).unwrap().frames, 5);
    for (width, height, frames) in [(Some(65), None, None), (None, Some(64), None), (None, None, Some(17))] {
        let error = manifest.find_size(width, height, frames).unwrap_err();
        assert_eq!(error.code(), "unsupported-size");
        assert!(error.to_string().contains("64x32 (9 frames), 64x32 (5 frames)"), "{error}");
    }
}

#[test]
fn timesteps_belong_to_the_sigmas() {
    let steps = toy::manifest()["sampler"]["sigmas"].as_array().unwrap().len();
    let with = |timesteps: Value, first: bool| {
        let mut model = toy::manifest();
        model["sampler"]["timesteps"] = timesteps;
        if first {
            model["sampler"]["causal"] = json!({"chunk_frames": 1, "window_frames": 2, "first_sigmas": [1.0]});
        }
        Manifest::parse(&model.to_string()).map(|manifest| manifest.sampler.timesteps)
    };
    assert_eq!(with(json!(vec![7.0; steps]), false).unwrap(), Some(vec![7.0; steps]));
    for (timesteps, first, says) in [
        (vec![7.0; steps + 1], false, "numbers for"),
        (vec![0.0; steps], false, "sampler.timesteps[0]"),
        (vec![1e9; steps], false, "sampler.timesteps[0]"),
        (vec![7.0; steps], true, "exclude each other"),
    ] {
        let error = with(json!(timesteps), first).unwrap_err();
        assert_eq!(error.code(), "manifest");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn causal_models_make_clips_of_any_length() {
    let mut model = toy::manifest();
    let longest = 4 * (model["transformer"]["rope_max_seq_len"].as_u64().unwrap() as u32 - 1) + 1;
    assert_eq!(Manifest::parse(&model.to_string()).unwrap().most_frames(), None);
    model["sampler"]["causal"] = json!({"chunk_frames": 1, "window_frames": 2});
    let manifest = Manifest::parse(&model.to_string()).unwrap();
    assert_eq!(manifest.most_frames(), Some(longest));
    for frames in [1, 5, 9, 13, longest] {
        let size = manifest.find_size(Some(64), Some(32), Some(frames)).unwrap();
        assert_eq!((size.width, size.height, size.frames), (64, 32, frames));
    }
    assert_eq!(manifest.find_size(None, None, None).unwrap().frames, 9, "the default is what it was");
    for (width, frames) in [(64, 0), (64, 2), (64, 4), (64, longest + 4), (64, u32::MAX), (65, 13)] {
        let error = manifest.find_size(Some(width), Some(32), Some(frames)).unwrap_err();
        assert_eq!(error.code(), "unsupported-size");
        assert!(error.to_string().contains(&format!("or 1 to {longest} frames, a multiple of 4 plus 1")), "{error}");
    }
}

const LINEAR: &str = "transformer.blocks.0.attn1.to_q.weight";
const BIAS: &str = "transformer.blocks.0.attn1.to_q.bias";

/// Where, what to put there, and what the error must be and say.
fn hostile() -> Vec<(String, Value, &'static str, &'static str)> {
    let mut list: Vec<(String, Value, &str, &str)> = Vec::new();
    let mut add = |at: &str, value: Value, code, says| list.push((at.into(), value, code, says));
    add("/schema_version", json!(2), "manifest", "schema_version is 2");
    add("/interface", json!("kinora-wan-2"), "manifest", "interface");
    add("/name", json!("../x"), "manifest", "name");
    add("/name", json!(""), "manifest", "name");
    add("/text_encoder/kind", json!("t5"), "manifest", "unknown variant");
    add("/text_encoder/vocab_size", json!(-1), "manifest", "invalid value");
    add("/text_encoder/vocab_size", json!(1u64 << 40), "manifest", "");
    add("/text_encoder/num_layers", json!(1_000_000_000), "manifest", "num_layers");
    add("/text_encoder/relative_attention_num_buckets", json!(7), "manifest", "multiple of 4");
    add("/text_encoder/relative_attention_max_distance", json!(1), "manifest", "max_distance");
    add("/text_encoder/layer_norm_epsilon", json!(0.0), "manifest", "epsilon");
    add("/text_encoder/max_tokens", json!(0), "manifest", "max_tokens");
    add("/text_encoder/tokenizer/bytes", json!(1u64 << 40), "manifest", "tokenizer");
    add("/text_encoder/tokenizer/sha256", json!("AB".repeat(32)), "manifest", "sha256");
    add("/transformer/num_layers", json!(4_000_000_000u64), "manifest", "num_layers");
    add("/transformer/attention_head_dim", json!(15), "manifest", "even");
    add("/transformer/in_channels", json!(9), "manifest", "equal");
    add("/transformer/text_dim", json!(31), "manifest", "equal");
    add("/transformer/freq_dim", json!(31), "manifest", "even");
    add("/transformer/patch_size", json!([2, 2, 2]), "manifest", "patch_size");
    add("/transformer/patch_size", json!([1, 0, 2]), "manifest", "patch_size");
    add("/transformer/patch_size", json!([1, 2]), "manifest", "");
    add("/transformer/eps", json!(-1e-6), "manifest", "eps");
    add("/transformer/rope_max_seq_len", json!(1), "manifest", "tokens along");
    add("/transformer/ffn_dim", json!(64), "tensor", "ffn.net.0.proj.weight is [48, 32] and must be [64, 32]");
    add("/transformer/num_layers", json!(12), "tensor", "missing: transformer.blocks.11.scale_shift_table");
    add("/transformer/num_layers", json!(10), "tensor", "unknown: transformer.blocks.10.attn1");
    add("/autoencoder/image_channels", json!(4), "manifest", "image_channels");
    add("/autoencoder/encoder_channels", json!([4, 4, 4]), "manifest", "");
    add("/autoencoder/decoder_channels/1", json!(0), "manifest", "decoder_channels[1]");
    add("/autoencoder/encoder_time_downscale", json!([true, true, true]), "manifest", "frame rate");
    add("/autoencoder/decoder_space_upscale", json!([true, false, true]), "manifest", "space_upscale");
    add("/autoencoder/encoder_padding", json!("middle"), "manifest", "unknown variant");
    for sigmas in [json!([]), json!([1.0, 1.0]), json!([0.5, 0.7]), json!([1.5]), json!([1.0, 0.0]), json!([null])] {
        add("/sampler/sigmas", sigmas, "manifest", "");
    }
    add("/sampler/shift", json!(0), "manifest", "shift");
    add("/sampler/step", json!("heun"), "manifest", "unknown variant");
    add("/sampler/guidance", json!(0), "manifest", "guidance");
    add("/sampler/initial_scale", json!(-1), "manifest", "initial_scale");
    add("/sampler/causal", json!({"chunk_frames": 0, "window_frames": 3}), "manifest", "chunk_frames");
    add("/sampler/causal", json!({"chunk_frames": 3, "window_frames": 2}), "manifest", "window_frames");
    let first = json!({"chunk_frames": 1, "window_frames": 2, "first_sigmas": [0.5, 0.5]});
    add("/sampler/causal", first, "manifest", "first_sigmas");
    let cache = |format: Value| json!({"chunk_frames": 1, "window_frames": 2, "cache": format});
    add("/sampler/causal", cache(json!("q5")), "manifest", "unknown variant `q5`, expected one of `f32`, `f16`, `q8`");
    add("/sampler/causal", cache(json!(8)), "manifest", "");
    add("/video/fps", json!(0), "manifest", "fps");
    add("/video/sizes", json!([]), "manifest", "sizes");
    add("/video/sizes/0/width", json!(81), "manifest", "even");
    add("/video/sizes/0/height", json!(0), "manifest", "height");
    add("/video/sizes/0/frames", json!([8]), "manifest", "multiple of 4, plus 1");
    add("/video/sizes/0/frames", json!([0]), "manifest", "frames");
    add("/video/sizes/0/frames", json!([]), "manifest", "frames");
    add("/video/sizes/0/frames", json!([5, 5]), "manifest", "twice");
    add("/video/sizes/0/frames", json!([4097]), "manifest", "tokens along time");
    for path in [
        "",
        "/x",
        "../x",
        "a/../x",
        "a//x",
        "./x",
        "a/",
        "https://x/y",
        "//x/y",
        "x?y",
        "x#y",
        "a\\x",
        "C:x",
        "x%2e",
        "x y",
        "x\0",
    ] {
        add("/shards/0/path", json!(path), "manifest", "path");
        add("/text_encoder/tokenizer/path", json!(path), "manifest", "path");
    }
    add("/shards/0/path", json!("toy-00002-of-00002.bin"), "manifest", "two files");
    add("/shards/0/path", json!("tokenizer.json"), "manifest", "two files");
    add("/shards/0/bytes", json!(0), "manifest", "shard 0");
    add("/shards/0/bytes", json!((16 << 20) + 1), "manifest", "shard 0");
    add("/shards/0/bytes", json!(u64::MAX), "manifest", "shard 0");
    add("/shards/0/bytes", json!(1.5), "manifest", "invalid type");
    add("/shards/0/sha256", json!("ab"), "manifest", "sha256");
    add("/shards", json!([]), "manifest", "shards");
    add("/tensors", json!({}), "manifest", "tensors");
    add("/tensors", json!([]), "manifest", "invalid type");
    let mut tensor = |field: &str, value: Value, says| {
        list.push((format!("/tensors/{LINEAR}{field}"), value, "manifest", says));
    };
    tensor("/dtype", json!("q5"), "unknown variant");
    tensor("/dtype", json!("f16"), "needs 2048 bytes and has 4096");
    tensor("/dtype", json!("q8"), "must have a group");
    tensor("/group", json!(32), "has a group");
    tensor("/shape", json!([]), "axes");
    tensor("/shape", json!([1, 1, 1, 1, 1, 1, 1, 32, 32]), "axes");
    tensor("/shape", json!([0, 32]), "axis of 0");
    tensor("/shape", json!([1u64 << 32, 1]), "");
    tensor("/shape", json!([1 << 30, 1 << 30, 1 << 30]), "values");
    tensor("/shape", json!([65536, 65536, 65536, 65536]), "values");
    tensor("/shape", json!([1 << 30]), "needs more than");
    tensor("/shape", json!([32, 33]), "needs 4224 bytes");
    tensor("/shape", json!([-32, 32]), "invalid value");
    tensor("/parts", json!([]), "no parts");
    tensor("/parts/0/shard", json!(2), "does not exist");
    tensor("/parts/0/shard", json!(u64::MAX), "");
    tensor("/parts/0/offset", json!(u64::MAX - 15), "has 4096 bytes from");
    tensor("/parts/0/offset", json!(1 << 20), "has 4096 bytes from 1048576 on, shard 0 has");
    tensor("/parts/0/offset", json!(8), "not at a multiple of 16");
    tensor("/parts/0/bytes", json!(0), "has 0 bytes from");
    tensor("/parts/0/bytes", json!(u64::MAX), "bytes from");
    tensor("/parts/0", json!({"shard": 0, "offset": 0, "bytes": 4096}), "overlap");
    tensor(
        "/parts",
        json!([{"shard": 0, "offset": 0, "bytes": 2048}, {"shard": 0, "offset": 4096, "bytes": 2048}]),
        "later",
    );
    tensor("", json!({"dtype": "q8", "group": 48, "shape": [32, 48], "parts": []}), "group of 32 or 64");
    tensor("", json!({"dtype": "q4", "group": 64, "shape": [32, 32], "parts": []}), "do not divide");
    tensor("", json!({"dtype": "q4", "group": 0, "shape": [32, 32], "parts": []}), "group of 32 or 64");
    list.push((format!("/tensors/{BIAS}"), Value::Null, "manifest", "invalid type"));
    list
}

#[test]
fn every_way_to_be_wrong_has_its_error() {
    let right = toy::manifest();
    for (at, value, code, says) in hostile() {
        let mut wrong = right.clone();
        match wrong.pointer_mut(&at) {
            Some(place) => *place = value.clone(),
            None => {
                let (parent, field) = at.rsplit_once('/').unwrap();
                wrong.pointer_mut(parent).unwrap()[field] = value.clone();
            }
        }
        let error = Manifest::parse(&wrong.to_string()).expect_err(&format!("{at} = {value} was accepted"));
        assert_eq!(error.code(), code, "{at} = {value}: {error}");
        assert!(error.to_string().contains(says), "{at} = {value}: {error}");
    }
}

/// A word of a packed cache holds values of one head only.
#[test]
fn a_cache_in_fewer_bits_needs_heads_that_fill_its_words() {
    let mut manifest = toy::manifest();
    manifest["sampler"]["causal"] = json!({"chunk_frames": 1, "window_frames": 2, "cache": "q8"});
    assert!(Manifest::parse(&manifest.to_string()).is_ok());
    manifest["transformer"]["attention_head_dim"] = json!(14);
    for (cache, says) in [("q8", "sampler.causal.cache is \"q8\""), ("f16", "\"f16\""), ("f32", "is [")] {
        manifest["sampler"]["causal"]["cache"] = json!(cache);
        let error = Manifest::parse(&manifest.to_string()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("multiple of 4") == (cache != "f32"), "{cache}: {error}");
    }
}

#[test]
fn the_last_byte_of_a_tensor_must_lie_in_its_shard() {
    for shard in [0, 1] {
        let mut wrong = toy::manifest();
        let bytes = wrong["shards"][shard]["bytes"].as_u64().unwrap();
        wrong["shards"][shard]["bytes"] = json!(bytes - 1);
        let error = Manifest::parse(&wrong.to_string()).unwrap_err();
        assert!(error.to_string().contains(&format!("shard {shard} has {}", bytes - 1)), "{error}");
    }
}

#[test]
fn no_field_may_be_missing() {
    let right = toy::manifest();
    for section in ["", "/text_encoder", "/transformer", "/autoencoder", "/sampler", "/video", "/shards/0"] {
        for field in right.pointer(section).unwrap().as_object().unwrap().keys() {
            let mut wrong = right.clone();
            wrong.pointer_mut(section).unwrap().as_object_mut().unwrap().remove(field);
            let optional = ["vocabulary", "examples", "training", "extra", "requires", "description"];
            let accepted = Manifest::parse(&wrong.to_string()).is_ok();
            assert_eq!(accepted, optional.contains(&field.as_str()), "{section}/{field}");
        }
    }
}

#[test]
fn a_tensor_may_not_be_there_twice() {
    let text = toy::manifest().to_string();
    let key = format!("\"{BIAS}\":");
    let at = text.find(&key).unwrap();
    let end = text[at..].find("]}").unwrap() + 2;
    // The shape's bracket is closed by `],`, so the first `]}` closes the parts and the tensor.
    let twice = format!("{}{},{}", &text[..at], &text[at..at + end], &text[at..]);
    let error = Manifest::parse(&twice).unwrap_err();
    assert!(error.code() == "manifest" && error.to_string().contains("twice"), "{error}");
}

#[test]
fn a_manifest_that_is_too_long_is_not_parsed() {
    let long = format!("{}{}", toy::manifest(), " ".repeat(MAX_MANIFEST_BYTES));
    let error = Manifest::parse(&long).unwrap_err();
    assert!(error.to_string().contains("4194304"), "{error}");
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let mut text = toy::manifest().to_string();
    let deep = "[".repeat(100_000);
    text = text.replace("{\"steps\":3}", &deep);
    assert_eq!(Manifest::parse(&text).unwrap_err().code(), "manifest");
}

#[test]
fn the_layout_is_that_of_the_taew2_1_file() {
    let mut model = toy::model();
    model["autoencoder"]["patch_size"] = json!(1);
    model["autoencoder"]["latent_channels"] = json!(16);
    model["autoencoder"]["encoder_channels"] = json!([64, 64, 64, 64]);
    model["autoencoder"]["decoder_channels"] = json!([256, 128, 64, 64]);
    let expected = layout::expected(&toy::config(&model));
    let auto: Vec<_> = expected.iter().filter(|tensor| tensor.name.starts_with("autoencoder.")).collect();
    // 11.32 million parameters, as the published file has.
    let parameters: usize = auto.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    assert_eq!((auto.len(), parameters), (128, 11_315_539));
    for (name, shape) in [
        ("encoder.0.weight", vec![64, 3, 3, 3]),
        ("encoder.2.conv.weight", vec![64, 128, 1, 1]),
        ("encoder.3.weight", vec![64, 64, 3, 3]),
        ("encoder.12.conv.weight", vec![64, 64, 1, 1]),
        ("encoder.16.conv.4.bias", vec![64]),
        ("encoder.17.weight", vec![16, 64, 3, 3]),
        ("decoder.1.weight", vec![256, 16, 3, 3]),
        ("decoder.3.conv.0.weight", vec![256, 512, 3, 3]),
        ("decoder.7.conv.weight", vec![256, 256, 1, 1]),
        ("decoder.13.conv.weight", vec![256, 128, 1, 1]),
        ("decoder.14.weight", vec![64, 128, 3, 3]),
        ("decoder.22.bias", vec![3]),
    ] {
        let tensor = auto.iter().find(|tensor| tensor.name == format!("autoencoder.{name}")).expect(name);
        assert_eq!(tensor.shape, shape, "{name}");
    }
}

/// Anything that was accepted must be safe to use.
fn use_manifest(manifest: &Manifest) {
    for size in manifest.sizes() {
        let shape = manifest.latent_shape(size.width, size.height, size.frames);
        assert!(shape.iter().all(|&length| length > 0));
        assert_eq!((shape[1] - 1) * manifest.autoencoder.time_compression() + 1, size.frames as usize);
    }
    let mut assembler = ShardAssembler::new(manifest);
    assert_eq!(assembler.missing().len(), manifest.shards.len());
    assert!(assembler.add(0, b"x").is_err());
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, 2, 3])),
    ]
}

/// Paths of all values of the manifest, tensors thinned out so that the rest gets its share.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.into());
    match value {
        Value::Object(fields) => {
            let step = if fields.len() > 50 { 40 } else { 1 };
            fields.iter().step_by(step).for_each(|(name, value)| pointers(value, &format!("{at}/{name}"), out));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), out));
        }
        _ => {}
    }
}

static MANIFEST: LazyLock<Value> = LazyLock::new(toy::manifest);

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_values_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), leaf()), 1..4)) {
        let mut manifest = MANIFEST.clone();
        for (index, value) in changes {
            let mut places = Vec::new();
            pointers(&manifest, "", &mut places);
            *manifest.pointer_mut(&places[index.index(places.len())]).unwrap() = value;
        }
        if let Ok(manifest) = Manifest::parse(&manifest.to_string()) {
            use_manifest(&manifest);
        }
    }

    #[test]
    fn changed_bytes_never_panic(at in any::<prop::sample::Index>(), with in any::<char>(), cut in any::<bool>()) {
        let text: Vec<char> = MANIFEST.to_string().chars().collect();
        let at = at.index(text.len());
        let rest = if cut { &[][..] } else { &text[at + 1..] };
        let changed: String = text[..at].iter().chain([&with]).chain(rest).collect();
        if let Ok(manifest) = Manifest::parse(&changed) {
            use_manifest(&manifest);
        }
    }

    #[test]
    fn random_text_never_panics(text in ".{0,200}") {
        prop_assert!(Manifest::parse(&text).is_err());
    }
}
