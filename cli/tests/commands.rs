//! The commands as a user runs them, on the tiny model of the goldens.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
    assert!(read("a.y4m") != read("c.y4m"), "another seed, another clip");
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
