//! `kinora download` as a user runs it, against a server on this machine.

mod hub;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hub::{COMMIT, FakeHub, Plan, content};

/// Runs the command away from the tokens, mirrors and proxies of whoever runs the tests.
fn download(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinora"));
    for name in ["HF_TOKEN", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", std::env::temp_dir().join("kinora-no-login"));
    command.arg("download").args(arguments).envs(variables.iter().copied()).output().expect("the program starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("kinora-download-cli-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}

/// A list with one checkpoint, as a file.
fn list(name: &str, repository: &str, file: &str, bytes: usize) -> PathBuf {
    let checkpoint = serde_json::json!({
        "id": "own", "title": "Our own", "repository": repository, "file": file, "revision": COMMIT, "bytes": bytes,
        "license": "CC0-1.0", "format": "pytorch", "samplers": []
    });
    let path = folder(name).with_extension("json");
    std::fs::write(&path, serde_json::json!({"checkpoints": [checkpoint]}).to_string()).expect("a temporary file");
    path
}

#[test]
fn a_checkpoint_is_fetched_from_a_mirror() {
    let out = folder("own");
    let weights = content(500_000, 1);
    let list = list("own-list", "someone/something", "weights.pth", weights.len());
    let files = [("weights.pth", weights.clone()), ("x", content(9, 3))];
    let hub = FakeHub::start(Plan {
        repository: "someone/something".into(),
        files: files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
        elsewhere: true,
        cuts: 1,
        ..Plan::default()
    });
    let arguments = ["own", "--list", text(&list), "--to", text(&out)];
    let output = download(&arguments, &[("HF_ENDPOINT", &hub.address), ("HF_TOKEN", "hf_x")]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(errors(&output).contains(COMMIT) && errors(&output).contains("100 %"), "{}", errors(&output));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(std::fs::read(out.join("weights.pth")).expect("the weights") == weights);
    assert_eq!(std::fs::read_dir(&out).expect("the folder").count(), 1, "nothing else is left");
    assert!(hub.asked().iter().any(|asked| asked.token.as_deref() == Some("Bearer hf_x")));

    let again = [&arguments[..], &["--endpoint", &hub.address]].concat();
    let again = download(&again, &[("HF_ENDPOINT", "http://no")]);
    assert!(again.status.success() && errors(&again).contains("there already"), "{}", errors(&again));
    let _ = (std::fs::remove_dir_all(out), std::fs::remove_file(list));
}

#[test]
fn mistakes_and_refusals_are_answered_with_one_sentence() {
    let out = folder("refused");
    let hub = FakeHub::start(Plan {
        repository: "someone/something".into(),
        files: [("weights.pth".to_owned(), content(1000, 4))].into(),
        ..Plan::default()
    });
    let [short, missing, wrong] = [
        list("short", "someone/something", "weights.pth", 2000),
        list("missing", "someone/something", "other.pth", 1000),
        folder("wrong").with_extension("json"),
    ];
    std::fs::write(&wrong, "{\"checkpoints\": 3}").expect("a temporary file");
    let fail = |name: &str, endpoint: &str, says: &str| {
        let mut arguments = vec!["own", "--to", text(&out), "--endpoint", endpoint];
        match name.strip_prefix("own ") {
            Some(list) => arguments.extend(["--list", list]),
            None => arguments[0] = name,
        }
        let output = download(&arguments, &[]);
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains(says) && !errors.contains("panicked"), "{errors}");
    };
    fail(&format!("own {}", text(&short)), &hub.address, "has 1000 bytes and about 2000 are listed");
    fail(&format!("own {}", text(&missing)), &hub.address, &format!("has no other.pth at {COMMIT}"));
    fail(&format!("own {}", text(&wrong)), &hub.address, "the list of models cannot be read");
    fail("own /no/such/list", &hub.address, "/no/such/list cannot be read");
    fail("self-forcing", &hub.address, "at 2f8b779212da279d212c22a509b66ad6552f350e");
    hub.change(|plan| {
        plan.repository = "OzzyGT/taew2_1".into();
        plan.files = [("taew2_1.safetensors".to_owned(), content(22_642_902, 5))].into();
    });
    fail("taew2.1", &hub.address, "and 04766eac0221b5390b985ae3fdcca652cbb4b1e8b82b28ea7ff89dfad1b1a93f is listed");
    fail("no-such-model", &hub.address, "there is no model");
    fail("taew2.1-pth", &hub.address, "github.com/madebyollin/taehv");
    fail("self-forcing", "hub.example", "it has to begin with https://");
    hub.change(|plan| plan.status = Some(401));
    fail("self-forcing", &hub.address, "HF_TOKEN");
    for file in [short, missing, wrong] {
        let _ = std::fs::remove_file(file);
    }
    let _ = std::fs::remove_dir_all(out);
}
