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
fn a_checkpoint_is_fetched_from_a_mirror() {
    let out = folder("turbowan");
    let weights = content(500_000, 1);
    let files = [("TurboWan2.1-T2V-1.3B-480P.pth", weights.clone()), ("x", content(9, 3))];
    let hub = FakeHub::start(Plan {
        repository: "TurboDiffusion/TurboWan2.1-T2V-1.3B-480P".into(),
        files: files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
        elsewhere: true,
        cuts: 1,
        ..Plan::default()
    });
    let output = download(&["turbowan2.1", "--to", text(&out)], &[("HF_ENDPOINT", &hub.address), ("HF_TOKEN", "hf_x")]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(errors(&output).contains(COMMIT) && errors(&output).contains("100 %"), "{}", errors(&output));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(std::fs::read(out.join("TurboWan2.1-T2V-1.3B-480P.pth")).expect("the weights") == weights);
    assert_eq!(std::fs::read_dir(&out).expect("the folder").count(), 1, "nothing else is left");
    assert!(hub.asked().iter().any(|asked| asked.token.as_deref() == Some("Bearer hf_x")));

    let again =
        download(&["turbowan2.1", "--to", text(&out), "--endpoint", &hub.address], &[("HF_ENDPOINT", "http://no")]);
    assert!(again.status.success() && errors(&again).contains("there already"), "{}", errors(&again));
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn mistakes_and_refusals_are_answered_with_one_sentence() {
    let out = folder("refused");
    let hub = FakeHub::start(Plan {
        repository: "worstcoder/rcm-Wan".into(),
        files: [("rCM_Wan2.1_T2V_1.3B_480p.pt".to_owned(), content(1000, 4))].into(),
        ..Plan::default()
    });
    let fail = |name: &str, endpoint: &str, says: &str| {
        let output = download(&[name, "--to", text(&out), "--endpoint", endpoint], &[]);
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains(says) && !errors.contains("panicked"), "{errors}");
    };
    fail("rcm", &hub.address, "has 1000 bytes and about 2838262729 are listed");
    fail("self-forcing", &hub.address, "at 2f8b779212da279d212c22a509b66ad6552f350e");
    hub.change(|plan| {
        plan.repository = "Efficient-Large-Model/LongLive-1.3B".into();
        plan.files = [("models/longlive_base.pt".to_owned(), content(1000, 5))].into();
    });
    fail("longlive", &hub.address, "and 10a2aa8fcf89c77d9033f4c117405412a690e289625766619d293f0c5a208ee7 is listed");
    fail("turbowan2.1", &hub.address, "has no TurboWan2.1-T2V-1.3B-480P.pth at main");
    fail("no-such-model", &hub.address, "there is no model");
    fail("taew2.1", &hub.address, "github.com/madebyollin/taehv");
    fail("self-forcing", "hub.example", "it has to begin with https://");
    hub.change(|plan| plan.status = Some(401));
    fail("self-forcing", &hub.address, "HF_TOKEN");
    let _ = std::fs::remove_dir_all(out);
}
