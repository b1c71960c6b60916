//! The commands as a user runs them, on the tiny model of the goldens.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, TensorView};

fn goldens() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../tests/goldens")
}

fn kinora(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kinora")).args(arguments).output().expect("the program starts")
}

fn succeed(arguments: &[&str]) -> String {
    let output = kinora(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "kinora {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Exit code 1 and one line that holds `part`.
fn fail(arguments: &[&str], part: &str) {
    let output = kinora(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "kinora {arguments:?}: {errors}");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && last.contains(part), "kinora {arguments:?}: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

/// A folder of its own for a test.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("kinora-cli-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}

#[test]
fn a_model_is_packed_inspected_verified_and_damage_is_found() {
    let out = folder("pack");
    succeed(&["pack", "--in", text(&goldens().join("tiny")), "--out", text(&out), "--format", "q4"]);
    let report = succeed(&["inspect", text(&out)]);
    assert!(report.contains("q4") && report.contains("text encoder"), "{report}");
    succeed(&["verify", text(&out)]);

    let shard = out.join("tiny-00001-of-00001.bin");
    let mut bytes = std::fs::read(&shard).expect("the shard");
    bytes[1000] ^= 1;
    std::fs::write(&shard, bytes).expect("writes");
    fail(&["verify", text(&out)], "SHA-256");
    fail(&["generate", "--model", text(&out), "--prompt", "a red ball", "--out", text(&out.join("frames"))], "SHA-256");
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn what_a_clip_needs_is_told_and_what_does_not_fit_is_refused() {
    let tiny = goldens().join("tiny-model");
    fn inspect<'a>(model: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        [&["inspect", text(model)], more].concat()
    }
    let tiny = tiny.as_path();
    let clip = |frames| ["--size", "96x64", "--frames", frames, "--device", "cpu"];
    let report = succeed(&inspect(tiny, &clip("5")));
    for part in ["96x64, 5 frames", "to fetch", "tokenizer", "denoise", "decode", "peak"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(succeed(&inspect(tiny, &[&clip("9")[..], &["--memory", "1GiB"]].concat())).contains("It fits."));
    let needed = |frames, more: &[&str]| {
        let report = succeed(&inspect(tiny, &[&clip(frames)[..], &["--json"], more].concat()));
        let plan: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        plan["peak"]["host"].as_u64().expect("a number of bytes")
    };
    let (long, turns) = (needed("9", &[]), needed("9", &["--turns"]));
    let short = needed("5", &["--turns"]);
    assert!(short < turns && turns < long, "{short}, {turns}, {long}");
    let report = succeed(&inspect(tiny, &[&clip("9")[..], &["--memory", &turns.to_string()]].concat()));
    for part in ["denoiser and decoder in turns", "read denoiser", "It fits, with the parts of the model in turns."] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let limited =
        |memory: &str, part: &str| fail(&inspect(tiny, &[&clip("9")[..], &["--memory", memory]].concat()), part);
    limited(&short.to_string(), "Choose 96x64 (5 frames)");
    limited("1kB", "choose a smaller model");
    fail(&inspect(tiny, &["--size", "98x64"]), "96x64");
    let both = succeed(&inspect(tiny, &["--device", "gpu"]));
    assert!(both.contains("largest buffer"), "{both}");
}

#[test]
fn a_clip_is_written_as_pictures_and_as_raw_video() {
    let out = folder("generate");
    let model = goldens().join("tiny-model");
    let frames = out.join("frames");
    let seeded = |seed: &str, to: &Path| {
        succeed(&["generate", "--model", text(&model), "--prompt", "a red ball", "--seed", seed, "--out", text(to)]);
    };
    seeded("7", &frames);
    let pictures = std::fs::read_dir(&frames)
        .expect("frames")
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("frame-")));
    assert_eq!(pictures.count(), 9);
    assert!(frames.join("contact-sheet.png").exists());

    let video = |name: &str| out.join(name);
    for (name, seed) in [("a.y4m", "7"), ("b.y4m", "7"), ("c.y4m", "8")] {
        seeded(seed, &video(name));
    }
    let read = |name: &str| std::fs::read(video(name)).expect("a video");
    assert!(read("a.y4m").starts_with(b"YUV4MPEG2 W96 H64 F12:1"));
    assert!(read("a.y4m") == read("b.y4m"), "one seed, one clip");
    // Too little memory for the model as a whole, and too little for anything.
    let plan = succeed(&["inspect", text(&model), "--device", "cpu", "--turns", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    let memory = plan["peak"]["host"].to_string();
    let (in_turns, none) = (video("d.y4m"), video("e.y4m"));
    let clip = ["generate", "--model", text(&model), "--prompt", "a red ball", "--seed", "7", "--out"];
    let output = kinora(&[&clip[..], &[text(&in_turns), "--memory", &memory]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("seed 7, parts of the model in turns"), "{said}");
    assert!(read("a.y4m") == read("d.y4m"), "the same clip");
    fail(&[&clip[..], &[text(&none), "--memory", "1MB"]].concat(), "choose a smaller model");
    assert!(!none.exists());
    assert!(read("a.y4m") != read("c.y4m"), "another seed, another clip");
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn words_that_the_model_does_not_know_are_named() {
    let out = folder("words");
    let (model, clip) = (goldens().join("tiny-model"), out.join("clip.y4m"));
    let said = |prompt: &str| {
        let output = kinora(&["generate", "--model", text(&model), "--out", text(&clip), "--prompt", prompt]);
        assert!(output.status.success(), "{prompt}");
        let lines = String::from_utf8_lossy(&output.stderr).into_owned();
        lines.lines().find(|line| line.contains("never seen")).map(str::to_string)
    };
    let told = said("a red Dragon flies").expect("a line about them");
    assert!(told.contains("seen \"dragon\",") && !told.contains("red"), "{told}");
    assert_eq!(said("a red ball flies over the hill"), None);
    let _ = std::fs::remove_dir_all(out);
}

/// A LoRA for one layer of the tiny model.
fn write_lora(path: &Path) {
    let bytes: Vec<u8> = (0..256).flat_map(|index| ((index % 7) as f32 - 3.0).to_le_bytes()).collect();
    let view = |shape: [usize; 2]| TensorView::new(Dtype::F32, shape.to_vec(), &bytes).expect("a view");
    let tensors = [
        ("diffusion_model.blocks.0.cross_attn.o.lora_A.weight", view([4, 64])),
        ("diffusion_model.blocks.0.cross_attn.o.lora_B.weight", view([64, 4])),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).expect("serializes")).expect("writes");
}

#[test]
fn loras_change_a_clip_by_their_strength() {
    let out = folder("loras");
    let model = goldens().join("tiny-model");
    let lora = out.join("a lora=1.safetensors");
    write_lora(&lora);
    let clip = |loras: &[String]| {
        let video = out.join("clip.y4m");
        let mut arguments = vec!["generate", "--model", text(&model), "--prompt", "a red ball", "--out", text(&video)];
        arguments.extend(loras.iter().flat_map(|lora| ["--lora", lora.as_str()]));
        succeed(&arguments);
        std::fs::read(video).expect("a video")
    };
    let with = |strength: &str| clip(&[format!("{}{strength}", text(&lora))]);
    let plain = clip(&[]);
    assert!(with("=0") == plain, "strength 0 is none");
    assert!(with("") != plain && with("") == with("=1") && with("=0.5") != with(""), "the strength counts");
    let twice = clip(&[format!("{}=0.25", text(&lora)), format!("{}=0.25", text(&lora))]);
    assert!(twice != plain);

    let tokenizer = model.join("tokenizer.json");
    let generate = ["generate", "--model", text(&model), "--prompt", "a red ball", "--out", text(&out), "--lora"];
    fail(&[&generate[..], &[text(&tokenizer)]].concat(), "LoRA");
    fail(&[&generate[..], &["no-such-file"]].concat(), "no-such-file");
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn mistakes_are_answered_with_one_sentence() {
    let out = folder("mistakes");
    let model = goldens().join("tiny-model");
    let generate = |more: &[&str], part: &str| {
        let mut arguments = vec!["generate", "--model", text(&model), "--out", text(&out)];
        arguments.extend(more);
        fail(&arguments, part);
    };
    generate(&["--prompt", "   "], "empty");
    generate(&["--prompt", &"red ball ".repeat(30)], "tokens");
    generate(&["--prompt", "a red ball", "--width", "4096"], "4096");
    fail(&["verify", text(&out)], "manifest.json");
    fail(
        &[
            "stage",
            "denoise",
            "--model",
            text(&model),
            "--in",
            text(&model.join("tokenizer.json")),
            "--out",
            text(&out.join("x")),
        ],
        "safetensors",
    );
    let _ = std::fs::remove_dir_all(out);
}

/// A safetensors file of f16 whose values are a hole: it takes no space, and only its header is read.
fn hollow(path: &Path, tensors: &[(String, Vec<u64>)]) {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 2 * shape.iter().product::<u64>();
        let entry = serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]});
        header.insert(name.clone(), entry);
        offset = end;
    }
    let text = serde_json::Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    std::fs::write(path, &bytes).expect("writes");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    file.set_len(bytes.len() as u64 + offset).expect("a longer file");
}

/// Shapes of Wan2.1-T2V-1.3B in its authors' names, from wan/modules/model.py with dim 1536, ffn 8960, 30 layers.
fn wan_1_3b() -> Vec<(String, Vec<u64>)> {
    let (dim, ffn, mut list) = (1536, 8960, Vec::new());
    let mut linear = |name: String, out: u64, input: u64| {
        list.push((format!("{name}.weight"), vec![out, input]));
        list.push((format!("{name}.bias"), vec![out]));
    };
    for (name, out, input) in [
        ("text_embedding.0", dim, 4096),
        ("text_embedding.2", dim, dim),
        ("time_embedding.0", dim, 256),
        ("time_embedding.2", dim, dim),
        ("time_projection.1", 6 * dim, dim),
        ("head.head", 64, dim),
    ] {
        linear(name.into(), out, input);
    }
    for block in 0..30 {
        for attention in ["self_attn", "cross_attn"] {
            for part in ["q", "k", "v", "o"] {
                linear(format!("blocks.{block}.{attention}.{part}"), dim, dim);
            }
        }
        linear(format!("blocks.{block}.ffn.0"), ffn, dim);
        linear(format!("blocks.{block}.ffn.2"), dim, ffn);
    }
    for block in 0..30 {
        for attention in ["self_attn", "cross_attn"] {
            for part in ["norm_q", "norm_k"] {
                list.push((format!("blocks.{block}.{attention}.{part}.weight"), vec![dim]));
            }
        }
        list.push((format!("blocks.{block}.norm3.weight"), vec![dim]));
        list.push((format!("blocks.{block}.norm3.bias"), vec![dim]));
        list.push((format!("blocks.{block}.modulation"), vec![1, 6, dim]));
    }
    list.push(("head.modulation".into(), vec![1, 2, dim]));
    list.push(("patch_embedding.weight".into(), vec![dim, 16, 1, 2, 2]));
    list.push(("patch_embedding.bias".into(), vec![dim]));
    list
}

/// Shapes of the UMT5-XXL encoder in the names of wan/modules/t5.py: dim 4096, ffn 10240, 64 heads, 24 layers.
fn umt5_xxl() -> Vec<(String, Vec<u64>)> {
    let (dim, ffn) = (4096, 10240);
    let mut list = vec![("token_embedding.weight".into(), vec![256_384, dim]), ("norm.weight".into(), vec![dim])];
    for block in 0..24 {
        for (name, shape) in [
            ("norm1", vec![dim]),
            ("attn.q", vec![dim, dim]),
            ("attn.k", vec![dim, dim]),
            ("attn.v", vec![dim, dim]),
            ("attn.o", vec![dim, dim]),
            ("norm2", vec![dim]),
            ("ffn.gate.0", vec![ffn, dim]),
            ("ffn.fc1", vec![ffn, dim]),
            ("ffn.fc2", vec![dim, ffn]),
            ("pos_embedding.embedding", vec![32, 64]),
        ] {
            list.push((format!("blocks.{block}.{name}.weight"), shape));
        }
    }
    list
}

/// Shapes of taew2_1.pth, from taehv.py.
fn taew2_1() -> Vec<(String, Vec<u64>)> {
    let mut list: Vec<(String, Vec<u64>)> = Vec::new();
    let mut conv = |name: String, out: u64, input: u64, size: u64, bias: bool| {
        list.push((format!("{name}.weight"), vec![out, input, size, size]));
        if bias {
            list.push((format!("{name}.bias"), vec![out]));
        }
    };
    conv("encoder.0".into(), 64, 3, 3, true);
    for (stage, frames) in [2, 2, 1].into_iter().enumerate() {
        conv(format!("encoder.{}.conv", 2 + 5 * stage), 64, 64 * frames, 1, false);
        conv(format!("encoder.{}", 3 + 5 * stage), 64, 64, 3, false);
    }
    conv("encoder.17".into(), 16, 64, 3, true);
    conv("decoder.1".into(), 256, 16, 3, true);
    for (stage, (width, next, frames)) in [(256, 128, 1), (128, 64, 2), (64, 64, 2)].into_iter().enumerate() {
        conv(format!("decoder.{}.conv", 7 + 6 * stage), width * frames, width, 1, false);
        conv(format!("decoder.{}", 8 + 6 * stage), next, width, 3, false);
    }
    conv("decoder.22".into(), 3, 64, 3, true);
    let encoder = [4, 5, 6, 9, 10, 11, 14, 15, 16].map(|index| (format!("encoder.{index}"), 64));
    let decoder = [(3, 256), (9, 128), (15, 64)]
        .map(|(first, width)| [0, 1, 2].map(|block| (format!("decoder.{}", first + block), width)));
    for (block, width) in encoder.into_iter().chain(decoder.into_iter().flatten()) {
        for (index, input) in [(0, 2 * width), (2, width), (4, width)] {
            conv(format!("{block}.conv.{index}"), width, input, 3, true);
        }
    }
    list
}

#[test]
fn the_published_shapes_are_accepted_and_measured_without_reading_a_value() {
    let out = folder("family");
    let file = |name: &str| out.join(name);
    hollow(&file("wan.safetensors"), &wan_1_3b());
    hollow(&file("umt5.safetensors"), &umt5_xxl());
    hollow(&file("taew2_1.safetensors"), &taew2_1());
    let packed = out.join("packed");
    let tokenizer = goldens().join("tiny/tokenizer.json");
    let paths = [file("wan.safetensors"), file("umt5.safetensors"), file("taew2_1.safetensors"), tokenizer, packed];
    let [wan, umt5, tae, tokenizer, packed] = paths.each_ref().map(|path| text(path));
    let mut arguments = vec![
        "pack",
        "--family",
        "wan2.1-t2v-1.3b",
        "--transformer",
        wan,
        "--text-encoder",
        umt5,
        "--autoencoder",
        tae,
        "--tokenizer",
        tokenizer,
        "--sampler",
        "fastwan-3",
        "--format",
        "q4",
        "--out",
        packed,
        "--dry-run",
    ];
    let report = succeed(&arguments);
    // models.md: 1.419 B and 5.681 B parameters.
    for part in ["1418996800", "5680910336", "wan2.1-t2v-1.3b-fastwan-3-q4"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(!paths[4].exists(), "a dry run writes nothing");

    fail(&[&arguments[..], &["--lora", umt5]].concat(), "none of the two matrices of a LoRA");
    let missing = kinora(&arguments[..3]);
    let usage = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(2) && usage.contains("--transformer"), "{usage}");
    // The token table in f32 is more than one tensor may have: said before anything is written.
    arguments[14] = "f32";
    arguments.pop();
    fail(&arguments, "text_encoder.shared.weight");
    assert!(!paths[4].exists());
    arguments[14] = "q4";
    arguments.push("--dry-run");
    arguments[12] = "ddim";
    fail(&arguments, "fastwan-3, self-forcing-4");
    arguments[12] = "fastwan-3";
    arguments[4] = umt5;
    fail(&arguments, "token_embedding.weight");
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn the_known_models_are_listed() {
    let table = succeed(&["models"]);
    for part in ["checkpoints/self_forcing_dmd.pt", "fastwan-3", "as q4: denoiser 801 MiB"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let json: serde_json::Value = serde_json::from_str(&succeed(&["models", "--json"])).expect("JSON");
    assert_eq!(json["families"][0]["transformer"]["num_layers"], 30);
    assert_eq!(json["sizes"].as_array().map(Vec::len), Some(3));
    assert!(json["checkpoints"].as_array().is_some_and(|list| list.len() > 5));
}

/// Packs the tiny model otherwise than the committed one is.
fn packed_tiny(out: &Path, more: &[&str]) {
    let input = goldens().join("tiny");
    let arguments = ["pack", "--in", text(&input), "--out", text(out), "--format", "q8"];
    succeed(&[&arguments[..], more].concat());
}

#[test]
fn prompts_are_packed_and_make_the_same_clip_without_the_text_encoder() {
    let out = folder("prompts");
    let (model, pack) = (goldens().join("tiny-model"), out.join("p.safetensors"));
    let (red, list) = ("a red ball", out.join("list.txt"));
    std::fs::write(&list, "a slow cat\n\n  the blue bird \n").expect("writes");
    succeed(&["prompts", "--model", text(&model), "--prompt", red, "--list", text(&list), "--out", text(&pack)]);
    let [a, b] = ["a.y4m", "b.y4m"].map(|name| out.join(name));
    let common = ["generate", "--model", text(&model), "--seed", "7", "--prompt", red, "--out"];
    succeed(&[&common[..], &[text(&a)]].concat());
    succeed(&[&common[..], &[text(&b), "--prompts", text(&pack)]].concat());
    let read = |path: &Path| std::fs::read(path).expect("a video");
    assert!(read(&a) == read(&b), "from the pack as from the prompt");

    // A model without its text encoder makes the prompts of its pack and names them when it is asked for another.
    let bare = out.join("bare");
    packed_tiny(&bare, &[]);
    let attach = ["prompts", "--model", text(&bare), "--attach", "--without-encoder", "--list", text(&list)];
    let spare = succeed(&attach);
    let files: Vec<&str> = spare.lines().collect();
    assert!(files.contains(&"tokenizer.json"), "{spare}");
    for file in files {
        std::fs::remove_file(bare.join(file)).expect("a file of the encoder");
    }
    let clip = out.join("bare.y4m");
    let make = |prompt: &'static str| ["generate", "--model", text(&bare), "--out", text(&clip), "--prompt", prompt];
    succeed(&make("the blue bird"));
    fail(&make("a red ball"), "a slow cat");
    succeed(&["inspect", text(&bare)]);
    fail(&[&common[..], &[text(&b), "--prompts", text(&bare.join("prompts.safetensors"))]].concat(), "text encoder of");
    fail(&["prompts", "--model", text(&model), "--out", text(&pack)], "--prompt");
    fail(&["prompts", "--model", text(&model), "--prompt", " ", "--out", text(&pack)], "empty");
    fail(&[&common[..], &[text(&b), "--prompts", text(&list)]].concat(), "prompt pack cannot be used");
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn a_vocabulary_is_pruned_and_other_words_are_refused() {
    let out = folder("prune");
    let (prompts, ids) = (out.join("prompts.txt"), out.join("ids.txt"));
    std::fs::write(&prompts, "a slow cat\n").expect("writes");
    std::fs::write(&ids, "6\n").expect("writes");
    let model = out.join("model");
    packed_tiny(&model, &["--keep-prompts", text(&prompts), "--keep-ids", text(&ids)]);
    succeed(&["verify", text(&model)]);
    let clip = out.join("clip.y4m");
    let make = |prompt: &'static str| ["generate", "--model", text(&model), "--out", text(&clip), "--prompt", prompt];
    succeed(&make("a blue cat"));
    fail(&make("a blue bird"), "bird");
    std::fs::write(&ids, "six\n").expect("writes");
    let input = goldens().join("tiny");
    fail(&["pack", "--in", text(&input), "--out", text(&model), "--keep-ids", text(&ids)], "six");
    let _ = std::fs::remove_dir_all(out);
}
