//! A small server that answers as the Hugging Face hub does: the list of a repository's files, their details, their
//! bytes by range, directly or through another host. It can break off, refuse and lie.
#![allow(dead_code)] // every test file uses a part of it

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kinora::model::shards::sha256_hex;

/// What the server has and how it behaves; may be changed while it runs.
#[derive(Clone, Default)]
pub struct Plan {
    /// `OWNER/NAME`
    pub repository: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Large files lie on another host, to which the hub redirects.
    pub elsewhere: bool,
    /// Answers with bytes that stop halfway before the connection is closed.
    pub cuts: usize,
    /// This status for whole files, once the cuts are over.
    pub file_status: Option<u16>,
    /// This status for everything.
    pub status: Option<u16>,
    /// A digest that the content does not have.
    pub etag: Option<String>,
    /// Sends everything whatever range is asked for.
    pub ignores_ranges: bool,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

pub struct FakeHub {
    pub address: String,
    plan: Arc<Mutex<Plan>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeHub {
    pub fn start(plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let hub = Self { address, plan: Arc::new(Mutex::new(plan)), asked: Arc::default() };
        let (plan, asked, address) = (hub.plan.clone(), hub.asked.clone(), hub.address.clone());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that is gone is no failure of the server.
                let _ = answer(stream, &plan, &asked, &address);
            }
        });
        hub
    }

    pub fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut lock(&self.plan));
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut lock(&self.asked))
    }

    /// Where the requests for the bytes of a file began, since the last call; questions for details are left out.
    pub fn starts(&self, file: &str) -> Vec<u64> {
        let of_file = |asked: &Asked| {
            let range = asked.range.as_deref()?.strip_prefix("bytes=")?;
            let (from, to) = range.split_once('-')?;
            (asked.path.contains("/resolve/") && asked.path.ends_with(file) && to.is_empty())
                .then(|| from.parse().ok())?
        };
        self.asked().iter().filter_map(of_file).collect()
    }
}

fn answer(mut stream: TcpStream, plan: &Mutex<Plan>, asked: &Mutex<Vec<Asked>>, address: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut token) = (None, None);
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.to_owned()),
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    lock(asked).push(Asked { path: path.clone(), range: range.clone(), token });
    let mut plan = lock(plan);
    let repository = plan.repository.clone();
    let bare = |status: u16| format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    if let Some(status) = plan.status {
        return stream.write_all(bare(status).as_bytes());
    }
    let listing = format!("/api/models/{repository}/revision/");
    if path.starts_with(&listing) {
        let siblings: Vec<_> = plan.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
        return stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes());
    }
    let (hosted, name) = match path.strip_prefix(&format!("/{repository}/resolve/{COMMIT}/")) {
        Some(name) => (true, name),
        None => (false, path.strip_prefix("/elsewhere/").unwrap_or_default()),
    };
    let Some(content) = plan.files.get(name).cloned() else { return stream.write_all(bare(404).as_bytes()) };
    let etag = plan.etag.clone().unwrap_or_else(|| sha256_hex(&content));
    if hosted && plan.elsewhere {
        let head =
            format!("HTTP/1.1 302 Found\r\nlocation: {address}/elsewhere/{name}\r\nx-linked-etag: \"{etag}\"\r\n");
        let rest = format!("x-repo-commit: {COMMIT}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return stream.write_all((head + &rest).as_bytes());
    }
    let details = range.as_deref() == Some("bytes=0-0");
    let from = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    let from: usize = if plan.ignores_ranges && !details { 0 } else { from.unwrap_or(0) };
    let to = if details { 1.min(content.len()) } else { content.len() };
    if !details
        && plan.cuts == 0
        && let Some(status) = plan.file_status
    {
        return stream.write_all(bare(status).as_bytes());
    }
    let Some(body) = content.get(from..to) else { return stream.write_all(bare(416).as_bytes()) };
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-length: {}\r\n\
         content-range: bytes {from}-{}/{}\r\nconnection: close\r\n\r\n",
        body.len(),
        to.saturating_sub(1),
        content.len()
    );
    stream.write_all(head.as_bytes())?;
    let cut = !details && plan.cuts > 0;
    if cut {
        plan.cuts -= 1;
    }
    stream.write_all(if cut { &body[..body.len() / 2] } else { body })
}

/// Bytes that are different at every place.
pub fn content(length: usize, salt: u32) -> Vec<u8> {
    let mut state = salt;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}
