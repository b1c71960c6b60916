//! Where files are written before they get their names, and what an interrupted run leaves there for the next one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::writer::file_name;
use super::{MANIFEST_FILE, TOKENIZER_FILE, cannot};
use crate::error::Result;
use crate::model::manifest::{Manifest, ShardInfo};
use crate::model::shards::sha256_hex;

/// What the folder of a run that can be taken up again begins with; the rest says what is being packed.
const RESUMABLE: &str = ".kinora-resume-";
/// Lists the finished shards, one JSON object a line.
const JOURNAL: &str = "finished.jsonl";

/// A folder below the output folder, so that moving its files is a rename. It goes with all it has on any error,
/// unless it is kept.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    /// Whether the folder outlives an error.
    pub(super) keep: bool,
}

impl Staging {
    pub(super) fn new(out: &Path) -> Result<Self> {
        let path = out.join(format!(".kinora-pack-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| cannot("create", &path, &error))?;
        Ok(Self { path, keep: false })
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(|error| cannot("write", &path, &error))
    }

    /// The folder of a run that may have been interrupted before. `identity` stands for everything that decides
    /// about the bytes: only a run with the same one finds what this one leaves.
    pub(super) fn resumable(out: &Path, identity: &str) -> Result<Self> {
        let path = out.join(format!("{RESUMABLE}{identity}"));
        fs::create_dir_all(&path).map_err(|error| cannot("create", &path, &error))?;
        Ok(Self { path, keep: true })
    }

    /// Finished shards of an interrupted run whose bytes are still what the journal says, up to the first that are
    /// not; and the journal, for those to come.
    pub(super) fn finished(&self, name: &str, lengths: &[u64]) -> Result<(Vec<ShardInfo>, File)> {
        let path = self.path.join(JOURNAL);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().map_while(|line| serde_json::from_str::<ShardInfo>(line).ok());
        let good = |(index, info): &(usize, ShardInfo)| {
            lengths.get(*index) == Some(&info.bytes)
                && info.path == file_name(name, *index, lengths.len())
                && fs::read(self.path.join(&info.path)).is_ok_and(|bytes| sha256_hex(&bytes) == info.sha256)
        };
        let done: Vec<ShardInfo> = lines.enumerate().take_while(good).map(|(_, info)| info).collect();
        let failed = |error: std::io::Error| cannot("write", &path, &error);
        let mut journal = OpenOptions::new().create(true).write(true).truncate(true).open(&path).map_err(failed)?;
        for info in &done {
            let line = serde_json::to_string(info).map_err(|error| failed(error.into()))?;
            writeln!(journal, "{line}").map_err(failed)?;
        }
        Ok((done, journal))
    }

    /// Moves everything out. The manifest goes first and comes last: a folder without one is no model, so a reader
    /// never sees an old manifest with new shards.
    pub(super) fn publish(&self, out: &Path, manifest: &Manifest) -> Result<()> {
        match fs::remove_file(out.join(MANIFEST_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(cannot("replace", &out.join(MANIFEST_FILE), &error));
            }
            _ => {}
        }
        remove_old_shards(out, &manifest.name)?;
        let shards = manifest.shards.iter().map(|shard| shard.path.as_str());
        let mut moved = Vec::new();
        for name in shards.chain([TOKENIZER_FILE, MANIFEST_FILE]) {
            let to = out.join(name);
            if let Err(error) = fs::rename(self.path.join(name), &to) {
                moved.iter().for_each(|path| drop(fs::remove_file(path)));
                return Err(cannot("write", &to, &error));
            }
            moved.push(to);
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing can be done about a failure here, and the error that led here matters more.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes `<name>-00001-of-00002.bin` and the like; no other file is touched.
fn remove_old_shards(out: &Path, name: &str) -> Result<()> {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let ours = |file: &str| {
        let rest = file.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".bin")?;
        let (index, count) = rest.split_once("-of-")?;
        (number(index) && number(count)).then_some(())
    };
    for entry in fs::read_dir(out).map_err(|error| cannot("read", out, &error))? {
        let entry = entry.map_err(|error| cannot("read", out, &error))?;
        if entry.file_name().to_str().and_then(ours).is_some() {
            fs::remove_file(entry.path()).map_err(|error| cannot("replace", &entry.path(), &error))?;
        }
    }
    Ok(())
}

/// Removes what interrupted runs left in `out`; called when a run is complete, and nothing waits any more.
pub(super) fn remove_interrupted(out: &Path) {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(RESUMABLE)) {
        // The model is complete; a folder that stays costs space and nothing else.
        let _ = fs::remove_dir_all(entry.path());
    }
}
