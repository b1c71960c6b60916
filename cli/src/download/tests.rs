//! Downloads of a made-up entry of the list.

#[path = "../../tests/hub/mod.rs"]
mod fake;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiError;
use kinora::pack::registry::{Registry, Remote};

use super::error::{Context, DownloadError};
use super::hub::Hub;
use fake::{COMMIT, FakeHub, Plan, content};

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kinora-download-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the command makes of a list with this one checkpoint.
fn entry(file: &str, revision: Option<&str>, bytes: Option<u64>) -> Remote {
    let checkpoint = serde_json::json!({
        "id": "made-up", "title": "Made up", "repository": "someone/something", "file": file, "revision": COMMIT,
        "bytes": 1, "license": "CC0-1.0", "format": "safetensors", "samplers": []
    });
    let list = serde_json::json!({"checkpoints": [checkpoint]}).to_string();
    let listed = Registry::parse(&list).unwrap().remote("made-up").unwrap().remove(0);
    Remote { revision: revision.map(str::to_owned), bytes, ..listed }
}

fn plan(files: &[(&str, Vec<u8>)]) -> Plan {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
    Plan { repository: "someone/something".into(), files, ..Plan::default() }
}

/// All files below a folder, hidden ones too.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn download(hub: &FakeHub, remote: &Remote, folder: &Path) -> Result<Vec<PathBuf>, DownloadError> {
    Hub::new(&hub.address, None).unwrap().download(remote, folder)
}

#[test]
fn a_file_arrives_whole_and_is_not_fetched_twice() {
    for elsewhere in [false, true] {
        let folder = Folder::new(if elsewhere { "whole-elsewhere" } else { "whole" });
        let bytes = content(300_000, 1);
        let hub = FakeHub::start(Plan { elsewhere, ..plan(&[("a/b.safetensors", bytes.clone())]) });
        let remote = entry("a/b.safetensors", Some(COMMIT), Some(300_100));
        let paths = download(&hub, &remote, &folder.0).unwrap();
        assert_eq!(paths, [folder.0.join("a/b.safetensors")]);
        assert!(fs::read(&paths[0]).unwrap() == bytes);
        assert_eq!(files(&folder.0), ["a/b.safetensors"], "nothing is left of the store");
        let first = &hub.asked()[0];
        assert!(first.path.ends_with(&format!("/revision/{COMMIT}")), "{first:?}");

        assert_eq!(download(&hub, &remote, &folder.0).unwrap(), paths);
        assert_eq!(hub.starts("b.safetensors"), Vec::<u64>::new(), "no byte is fetched again");
        fs::write(&paths[0], content(300_000, 2)).unwrap();
        assert!(matches!(download(&hub, &remote, &folder.0), Err(DownloadError::InTheWay(_))));
    }
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    for elsewhere in [false, true] {
        let folder = Folder::new(if elsewhere { "cut-elsewhere" } else { "cut" });
        let bytes = content(400_000, 3);
        let hub = FakeHub::start(Plan { elsewhere, cuts: 2, ..plan(&[("w.pt", bytes.clone())]) });
        let remote = entry("w.pt", None, None);
        let paths = download(&hub, &remote, &folder.0).unwrap();
        assert!(fs::read(&paths[0]).unwrap() == bytes);
        assert_eq!(hub.starts("w.pt"), [0, 200_000, 300_000]);
    }
}

#[test]
fn what_has_arrived_is_kept_for_the_next_run() {
    let folder = Folder::new("kept");
    let bytes = content(400_000, 4);
    let hub = FakeHub::start(Plan { cuts: 1, file_status: Some(503), ..plan(&[("w.pt", bytes.clone())]) });
    let remote = entry("w.pt", None, None);
    let error = download(&hub, &remote, &folder.0).unwrap_err();
    assert!(matches!(error, DownloadError::Server { status: 503, .. }), "{error}");
    assert!(!folder.0.join("w.pt").exists());
    assert_eq!(hub.starts("w.pt"), [0, 200_000, 200_000, 200_000]);

    hub.change(|plan| plan.file_status = None);
    let paths = download(&hub, &remote, &folder.0).unwrap();
    assert!(fs::read(&paths[0]).unwrap() == bytes);
    assert_eq!(hub.starts("w.pt"), [200_000]);
    assert_eq!(files(&folder.0), ["w.pt"]);
}

#[test]
fn a_server_that_starts_over_gives_no_file_but_an_error() {
    let folder = Folder::new("ranges");
    let bytes = content(400_000, 5);
    let hub = FakeHub::start(Plan { cuts: 1, ignores_ranges: true, ..plan(&[("w.pt", bytes.clone())]) });
    let error = download(&hub, &entry("w.pt", None, None), &folder.0).unwrap_err();
    assert!(matches!(error, DownloadError::Damaged { .. }), "{error}");
    assert!(!folder.0.join("w.pt").exists());
    let paths = download(&hub, &entry("w.pt", None, None), &folder.0).unwrap();
    assert!(fs::read(&paths[0]).unwrap() == bytes, "the next run begins from nothing");
}

#[test]
fn folders_and_names_without_their_folder_are_found() {
    let folder = Folder::new("folders");
    let all = [
        ("README.md", content(10, 6)),
        ("transformer/config.json", content(20, 7)),
        ("transformer/w-00001.safetensors", content(5000, 8)),
        ("transformer2/w.safetensors", content(30, 9)),
    ];
    let hub = FakeHub::start(plan(&all));
    download(&hub, &entry("transformer", None, None), &folder.0).unwrap();
    assert_eq!(files(&folder.0), ["transformer/config.json", "transformer/w-00001.safetensors"]);
    download(&hub, &entry("w.safetensors", None, None), &folder.0).unwrap();
    assert!(folder.0.join("transformer2/w.safetensors").exists());
    let error = download(&hub, &entry("v.safetensors", None, None), &folder.0).unwrap_err();
    assert!(matches!(error, DownloadError::NotFound { .. }) && error.to_string().contains("v.safetensors"), "{error}");
}

#[test]
fn wrong_lengths_contents_commits_and_names_are_refused() {
    let folder = Folder::new("wrong");
    let hub = FakeHub::start(plan(&[("w.pt", content(1000, 10)), ("../evil.pt", content(10, 11))]));
    let error = download(&hub, &entry("w.pt", None, Some(1020)), &folder.0).unwrap_err();
    assert!(matches!(error, DownloadError::WrongSize { found: 1000, listed: 1020, .. }), "{error}");
    let other = "f".repeat(40);
    for (remote, etag) in [
        (entry("w.pt", Some(&other), None), None),
        (entry("evil.pt", None, None), None),
        (entry("w.pt", None, None), Some("../../x".to_owned())),
    ] {
        hub.change(|plan| plan.etag = etag);
        let error = download(&hub, &remote, &folder.0).unwrap_err();
        assert!(matches!(error, DownloadError::NotTheHub { .. }), "{error}");
    }
    hub.change(|plan| plan.etag = Some("0".repeat(64)));
    let error = download(&hub, &entry("w.pt", None, None), &folder.0).unwrap_err();
    assert!(matches!(error, DownloadError::Damaged { .. }) && error.to_string().contains("SHA-256"), "{error}");
    assert!(files(&folder.0).iter().all(|name| name.starts_with(".kinora-download/") && !name.ends_with(".part")));
}

#[test]
fn refusals_say_what_to_do() {
    let folder = Folder::new("refusals");
    let hub = FakeHub::start(plan(&[("w.pt", content(1000, 12))]));
    let remote = entry("w.pt", None, None);
    for (status, says) in [
        (401, "set HF_TOKEN"),
        (403, "accept the terms"),
        (404, "has no w.pt at main"),
        (429, "try again later"),
        (500, "try again later"),
        (418, "does not answer as the hub"),
    ] {
        hub.change(|plan| plan.status = Some(status));
        let error = download(&hub, &remote, &folder.0).unwrap_err().to_string();
        assert!(error.contains(says), "{status}: {error}");
    }
    // A port that was free a moment ago: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Hub::new(&format!("http://{free}"), None).unwrap().download(&remote, &folder.0).unwrap_err();
    assert!(matches!(error, DownloadError::Offline { .. }), "{error}");
    for wrong in ["", "huggingface.co", "https://", "ftp://x", "https://a b"] {
        assert!(matches!(Hub::new(wrong, None), Err(DownloadError::Endpoint(_))), "{wrong}");
    }

    let context = Context { endpoint: "https://hub", folder: &folder.0, remote: &remote, revision: "main" };
    let explain = |kind: ErrorKind| context.explain(ApiError::IoError(kind.into()));
    let full = explain(ErrorKind::StorageFull);
    assert!(matches!(full, DownloadError::DiskFull(_)) && full.to_string().contains("make room"), "{full}");
    assert!(matches!(explain(ErrorKind::PermissionDenied), DownloadError::Folder { .. }));
    assert!(explain(ErrorKind::UnexpectedEof).passes() && !full.passes());
}
