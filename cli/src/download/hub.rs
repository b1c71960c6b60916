//! Files of a repository on the Hugging Face hub, through its own client, into a plain folder.
//!
//! The client keeps what it fetches by content. Here that store lies within the folder, holds unfinished files between
//! two runs, and goes away when a repository's files have got their places.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use kinora::model::shards::sha256_hex;
use kinora::pack::registry::Remote;
use memmap2::Mmap;

use super::error::{Context, DownloadError};
use crate::progress::Bar;

/// The store of unfinished files within the folder.
const STORE: &str = ".kinora-download";
/// A listed length is right to its three digits.
const LISTED_WITHIN: f64 = 0.01;
/// Failures in a row, once something has arrived, before it is given up.
const MAX_FAILURES: u32 = 3;
/// Wait after the first failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Where files come from.
pub struct Hub {
    endpoint: String,
    token: Option<String>,
}

/// One file on its way, and what the hub says of it.
struct Item<'a> {
    context: &'a Context<'a>,
    api: &'a ApiRepo,
    /// Path within the repository.
    path: &'a str,
    bytes: u64,
    /// Of the content: a SHA-256 for large files, another digest for small ones.
    etag: String,
    /// Where the client puts it.
    blob: PathBuf,
    /// The client's link to that, where links can be made; in its place otherwise.
    link: PathBuf,
}

impl Hub {
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self, DownloadError> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        let host = ["https://", "http://"].iter().find_map(|scheme| endpoint.strip_prefix(scheme));
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            return Err(DownloadError::Endpoint(endpoint.into()));
        }
        Ok(Self { endpoint: endpoint.into(), token })
    }

    /// Downloads a file, or all files of a folder, to the same paths below `folder`; gives their new paths.
    pub fn download(&self, remote: &Remote, folder: &Path) -> Result<Vec<PathBuf>, DownloadError> {
        let revision = remote.revision.as_deref().unwrap_or("main");
        let context = Context { endpoint: &self.endpoint, folder, remote, revision };
        fs::create_dir_all(folder).map_err(|error| DownloadError::of_file(&error, folder))?;
        // The client wants an absolute path.
        let store = folder.canonicalize().map_err(|error| DownloadError::of_file(&error, folder))?.join(STORE);
        let cache = Cache::new(store.clone());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_user_agent("kinora", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| context.explain(error))?;

        let name = &remote.repository;
        let repo = |revision: &str| Repo::with_revision(name.clone(), RepoType::Model, revision.to_owned());
        let listing = api.repo(repo(revision)).info().map_err(|error| context.explain(error))?;
        if !is_commit(&listing.sha) || remote.revision.as_ref().is_some_and(|wanted| *wanted != listing.sha) {
            return Err(context.not_the_hub(format!("{revision} is said to be the commit {:?}", listing.sha)));
        }
        // From here on that commit, whatever happens to the branch meanwhile.
        let pinned = repo(&listing.sha);
        let kept = cache.repo(pinned.clone());
        let names: Vec<&str> = listing.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let chosen = select(&names, &remote.path);
        if chosen.is_empty() {
            return Err(context.not_found());
        }
        eprintln!("{} at commit {}", remote.repository, listing.sha);
        let repository = api.repo(pinned.clone());
        let mut places = Vec::with_capacity(chosen.len());
        for path in chosen {
            if !is_plain(path) {
                return Err(context.not_the_hub(format!("a file is said to be called {path:?}")));
            }
            let item = Item::ask(&context, &api, &repository, path, &kept)?;
            places.push(item.fetch()?);
        }
        // What is left is links to files that have moved. Another repository may have unfinished files there.
        let _ = fs::remove_dir_all(store.join(pinned.folder_name()));
        let _ = fs::remove_dir(&store);
        Ok(places)
    }
}

impl<'a> Item<'a> {
    /// Asks the hub about a file and compares the answer with the list.
    fn ask(
        context: &'a Context<'a>,
        api: &Api,
        repository: &'a ApiRepo,
        path: &'a str,
        kept: &CacheRepo,
    ) -> Result<Self, DownloadError> {
        let about = api.metadata(&repository.url(path)).map_err(|error| context.explain(error))?;
        let (etag, bytes) = (about.etag().to_owned(), about.size() as u64);
        // It becomes a file name.
        let name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if etag.is_empty() || !etag.bytes().all(name) || !is_commit(about.commit_hash()) {
            return Err(context.not_the_hub(format!("{path} is said to have the digest {etag:?}")));
        }
        if let Some(listed) = context.remote.bytes
            && (bytes as f64 - listed as f64).abs() > LISTED_WITHIN * listed as f64
        {
            return Err(DownloadError::WrongSize { path: path.into(), found: bytes, listed });
        }
        // The digest of a large file is its SHA-256.
        if let Some(listed) = &context.remote.sha256
            && etag != *listed
        {
            return Err(DownloadError::Changed { path: path.into(), found: etag, listed: listed.clone() });
        }
        let (blob, link) = (kept.blob_path(&etag), kept.pointer_path(about.commit_hash()).join(path));
        Ok(Self { context, api: repository, path, bytes, etag, blob, link })
    }

    /// Brings the file to its place, unless it is there already.
    fn fetch(&self) -> Result<PathBuf, DownloadError> {
        let folder = self.context.folder;
        let of_file = |error: std::io::Error| DownloadError::of_file(&error, folder);
        let place = folder.join(self.path);
        if place.exists() {
            if self.problem(&place).map_err(of_file)?.is_some() {
                return Err(DownloadError::InTheWay(place));
            }
            eprintln!("{} is there already", self.path);
            return Ok(place);
        }
        // The part is complete if a run ended just before it was renamed.
        let part = self.blob.with_extension("part");
        match length(&part) {
            Some(length) if length == self.bytes && !self.blob.exists() => {
                fs::rename(&part, &self.blob).map_err(of_file)?;
            }
            Some(length) if length > self.bytes => fs::remove_file(&part).map_err(of_file)?,
            _ => {}
        }
        if !self.blob.exists() {
            self.transfer(&part)?;
        }
        if let Some(reason) = self.problem(&self.blob).map_err(of_file)? {
            fs::remove_file(&self.blob).map_err(of_file)?;
            return Err(DownloadError::Damaged { path: self.path.into(), reason });
        }
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(of_file)?;
        }
        fs::rename(&self.blob, &place).map_err(of_file)?;
        Ok(place)
    }

    /// Fetches what is missing, with patience as long as something arrives.
    fn transfer(&self, part: &Path) -> Result<(), DownloadError> {
        let of_file = |error: std::io::Error| DownloadError::of_file(&error, self.context.folder);
        // A link that an earlier run left would be in the client's way.
        let _ = fs::remove_file(&self.link);
        let mut bar = Bar::new();
        let mut failures = 0;
        let before = length(part).unwrap_or(0);
        if before > 0 {
            eprintln!("{}: going on after {before} of {} bytes", self.path, self.bytes);
        }
        let mut arrived = before;
        loop {
            let follow = Follow { bar: &mut bar, name: self.path, done: 0, total: self.bytes };
            let error = match self.api.download_with_progress(self.path, follow) {
                Ok(link) if self.blob.exists() => return fs::remove_file(link).map_err(of_file),
                Ok(moved) => return fs::rename(moved, &self.blob).map_err(of_file),
                Err(error) => self.context.explain(error),
            };
            let now = length(part).unwrap_or(0);
            failures = if now > arrived { 1 } else { failures + 1 };
            arrived = now;
            // A server that cannot be reached at all will not be there in a second either.
            if !error.passes() || arrived == before || failures > MAX_FAILURES {
                return Err(error);
            }
            sleep(FIRST_WAIT * 2u32.pow(failures - 1));
        }
    }

    /// How a file differs from what the hub says, if it does.
    fn problem(&self, path: &Path) -> std::io::Result<Option<String>> {
        let file = File::open(path)?;
        let found = file.metadata()?.len();
        if found != self.bytes {
            return Ok(Some(format!("it has {found} bytes instead of {}", self.bytes)));
        }
        // Large files go by their SHA-256, small ones by a digest of git's.
        if self.etag.len() != 64 || found == 0 {
            return Ok(None);
        }
        // SAFETY: the map is only read, and the file is this program's own or one that nobody is asked to change.
        let map = unsafe { Mmap::map(&file) }?;
        let sum = sha256_hex(&map);
        Ok((sum != self.etag.to_ascii_lowercase()).then(|| format!("its SHA-256 is {sum} instead of {}", self.etag)))
    }
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|about| about.len())
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a path leads to a place below the folder, on every system.
fn is_plain(path: &str) -> bool {
    !path.contains(['\\', ':']) && path.split('/').all(|name| !name.is_empty() && name != "." && name != "..")
}

/// The files meant by a path: that file, those of that folder, or the only file of that name in another folder.
fn select<'a>(names: &[&'a str], path: &str) -> Vec<&'a str> {
    let pick = |fits: &dyn Fn(&str) -> bool| names.iter().copied().filter(|name| fits(name)).collect::<Vec<_>>();
    let exact = pick(&|name| name == path);
    if !exact.is_empty() {
        return exact;
    }
    let below = pick(&|name| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')));
    if !below.is_empty() {
        return below;
    }
    let elsewhere = pick(&|name| name.strip_suffix(path).is_some_and(|rest| rest.ends_with('/')));
    if elsewhere.len() == 1 { elsewhere } else { Vec::new() }
}

/// Shows the client's progress on our bar.
struct Follow<'a> {
    bar: &'a mut Bar,
    name: &'a str,
    done: u64,
    total: u64,
}

impl Progress for Follow<'_> {
    fn init(&mut self, _: usize, _: &str) {
        self.done = 0;
    }

    fn update(&mut self, bytes: usize) {
        self.done = self.total.min(self.done + bytes as u64);
        self.bar.show(self.done, self.total, self.name);
    }

    fn finish(&mut self) {}
}
