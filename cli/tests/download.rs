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

#[test]
fn a_checkpoint_and_its_lora_are_fetched_from_a_mirror() {
    let out = folder("longlive");
    let (base, lora) = (content(500_000, 1), content(70_000, 2));
    let files = [("models/longlive_base.pt", base.clone()), ("models/lora.pt", lora.clone()), ("x", content(9, 3))];
    let hub = FakeHub::start(Plan {
        repository: "Efficient-Large-Model/LongLive-1.3B".into(),
        files: files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
        elsewhere: true,
        cuts: 1,
        ..Plan::default()
    });
    let output = download(&["longlive", "--to", text(&out)], &[("HF_ENDPOINT", &hub.address), ("HF_TOKEN", "hf_x")]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(errors(&output).contains(COMMIT) && errors(&output).contains("100 %"), "{}", errors(&output));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(std::fs::read(out.join("models/longlive_base.pt")).expect("the base") == base);
    assert!(std::fs::read(out.join("models/lora.pt")).expect("the LoRA") == lora);
    assert_eq!(std::fs::read_dir(&out).expect("the folder").count(), 1, "only models/ is left");
    assert!(hub.asked().iter().any(|asked| asked.token.as_deref() == Some("Bearer hf_x")));

    let again =
        download(&["longlive", "--to", text(&out), "--endpoint", &hub.address], &[("HF_ENDPOINT", "http://no")]);
    assert!(again.status.success() && errors(&again).contains("there already"), "{}", errors(&again));
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn mistakes_and_refusals_are_answered_with_one_sentence() {
    let out = folder("refused");
    let hub = FakeHub::start(Plan {
        repository: "gdhe17/Self-Forcing".into(),
        files: [("checkpoints/self_forcing_dmd.pt".to_owned(), content(1000, 4))].into(),
        ..Plan::default()
    });
    let fail = |name: &str, endpoint: &str, says: &str| {
        let output = download(&[name, "--to", text(&out), "--endpoint", endpoint], &[]);
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains(says) && !errors.contains("panicked"), "{errors}");
    };
    fail("self-forcing", &hub.address, "has 1000 bytes and about 5680000000 are listed");
    fail("rcm", &hub.address, "has no rCM_Wan2.1_T2V_1.3B_480p.pt at main");
    fail("no-such-model", &hub.address, "there is no model");
    fail("taew2.1", &hub.address, "github.com/madebyollin/taehv");
    fail("self-forcing", "hub.example", "it has to begin with https://");
    hub.change(|plan| plan.status = Some(401));
    fail("self-forcing", &hub.address, "HF_TOKEN");
    let _ = std::fs::remove_dir_all(out);
}
