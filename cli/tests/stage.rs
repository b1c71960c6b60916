//! `kinora stage`: every stage on the goldens' inputs gives the goldens' outputs, and the help says what goes in and out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kinora::selftest::relative_error;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Of root mean squares; the tiny model's weights are exact in f16, in which it is committed.
const TOLERANCE: f64 = 1e-4;

const STAGES: [&str; 6] = ["encode-text", "block0", "denoise", "sample", "decode", "encode"];

fn goldens() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../tests/goldens")
}

fn golden_file() -> Vec<u8> {
    std::fs::read(goldens().join("tiny.safetensors")).expect("the goldens are committed")
}

/// The golden's tensors of a stage that go `in` or come `out`, by their names in the stage's files.
fn part<'a>(file: &'a SafeTensors<'_>, stage: &str, way: &str) -> BTreeMap<String, TensorView<'a>> {
    let prefix = format!("{stage}.{way}.");
    let tensors = file.names().into_iter().filter_map(|name| {
        let view = file.tensor(name).expect("a tensor that is listed");
        Some((name.strip_prefix(&prefix)?.to_string(), view))
    });
    tensors.collect()
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(view.dtype(), Dtype::F32);
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Runs the program and gives its standard output.
fn succeed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kinora")).args(arguments).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kinora {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_stage_writes_what_the_reference_gives() {
    let bytes = golden_file();
    let file = SafeTensors::deserialize(&bytes).expect("the goldens are safetensors");
    let folder = std::env::temp_dir().join(format!("kinora-cli-{}-stage", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let model = goldens().join("tiny-model");
    for stage in STAGES {
        let [input, output] = ["in", "out"].map(|way| folder.join(format!("{stage}-{way}.safetensors")));
        let inputs = safetensors::serialize(part(&file, stage, "in"), None).expect("inputs serialize");
        std::fs::write(&input, inputs).expect("writes");
        let [model, input, output_path] = [&model, &input, &output].map(|path| path.to_str().expect("a readable path"));
        succeed(&["stage", stage, "--model", model, "--in", input, "--out", output_path]);

        let written = std::fs::read(&output).expect("the output");
        let written = SafeTensors::deserialize(&written).expect("the output is safetensors");
        let wanted = part(&file, stage, "out");
        assert!(!wanted.is_empty() && written.len() == wanted.len(), "{stage}: {:?}", written.names());
        for (name, wanted) in &wanted {
            let found = written.tensor(name).expect("the golden's output");
            assert_eq!(found.shape(), wanted.shape(), "{stage}: {name}");
            let error = relative_error(&floats(&found), &floats(wanted));
            println!("{stage}: {name}: relative error {error:.1e}");
            assert!(error < TOLERANCE, "{stage}: {name}: relative error {error:.1e}");
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn the_help_names_inputs_and_outputs_with_their_shapes() {
    let help = succeed(&["stage", "--help"]);
    let bytes = golden_file();
    let file = SafeTensors::deserialize(&bytes).expect("the goldens are safetensors");
    // The rows of the table, each with the stage's name in front; what continues a row begins with spaces alone.
    let mut rows: BTreeMap<&str, [String; 2]> = BTreeMap::new();
    let (mut columns, mut stage) = (None, None);
    for line in help.lines() {
        if line.trim_start().starts_with("STAGE ") {
            columns = line.find("INPUT").zip(line.find("OUTPUT"));
            continue;
        }
        let Some((input, output)) = columns else { continue };
        if line.trim().is_empty() {
            columns = None;
            continue;
        }
        let cell = |from: usize, to: usize| line.get(from.min(line.len())..to.min(line.len())).expect("ASCII").trim();
        if !cell(0, input).is_empty() {
            stage = Some(cell(0, input));
        }
        let row = rows.entry(stage.expect("the first row has a name")).or_default();
        for (text, cell) in row.iter_mut().zip([cell(input, output), cell(output, line.len())]) {
            text.push_str(cell);
        }
    }
    let mut stages = STAGES;
    stages.sort_unstable();
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), stages);
    for (stage, texts) in &rows {
        for (way, text) in ["in", "out"].into_iter().zip(texts) {
            let tensors = part(&file, stage, way);
            for (name, view) in &tensors {
                let start =
                    text.find(&format!("{name} [")).unwrap_or_else(|| panic!("{stage} {way}: no {name} in {text}"));
                let shape = text[start + name.len() + 2..].split(']').next().expect("a shape");
                assert_eq!(shape.split(", ").count(), view.shape().len(), "{stage} {way}: {name} [{shape}]");
            }
            assert_eq!(text.matches('[').count(), tensors.len(), "{stage} {way}: {text}");
        }
    }
}
