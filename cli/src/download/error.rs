//! What can go wrong with a download, said so that it can be helped.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiError;
use kinora::pack::registry::Remote;

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("the address {0:?} is none; it has to begin with https:// or http://")]
    Endpoint(String),
    #[error(
        "the connection to {endpoint} failed ({reason}); what has arrived is kept, so give the command again, or name \
         a mirror with --endpoint"
    )]
    Offline { endpoint: String, reason: String },
    #[error("{endpoint} answers with the status {status}; what has arrived is kept, so try again later")]
    Server { endpoint: String, status: u16 },
    #[error(
        "{0} is gated, private or not there: look at its page, accept its terms if it asks for that, and set HF_TOKEN \
         to a token of your account"
    )]
    Unauthorized(String),
    #[error("the token does not open {0}: accept the terms on its page with the account of HF_TOKEN")]
    Forbidden(String),
    #[error("{repository} has no {path} at {revision}; the list may be out of date, look at the repository")]
    NotFound { repository: String, path: String, revision: String },
    #[error(
        "{path} has {found} bytes and about {listed} are listed; the repository has changed, or the server is not the \
         hub"
    )]
    WrongSize { path: String, found: u64, listed: u64 },
    #[error(
        "{path} has the SHA-256 {found} and {listed} is listed; the repository has another file under that name now, or \
         the server is not the hub"
    )]
    Changed { path: String, found: String, listed: String },
    #[error("{path} arrived damaged ({reason}) and was thrown away; give the command again")]
    Damaged { path: String, reason: String },
    #[error("another file is in the way, remove it or choose another --to: {}", .0.display())]
    InTheWay(PathBuf),
    #[error("the disk is full; what has arrived is kept, make room and give the command again: {}", .0.display())]
    DiskFull(PathBuf),
    #[error("{reason}: {}", .folder.display())]
    Folder { folder: PathBuf, reason: String },
    #[error("another download works on this folder: {}", .0.display())]
    Busy(PathBuf),
    #[error("{endpoint} does not answer as the hub does ({reason})")]
    NotTheHub { endpoint: String, reason: String },
}

impl DownloadError {
    /// Whether the same request may succeed in a moment.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Offline { .. } | Self::Server { .. })
    }

    /// An error of reading or writing a file of the folder.
    pub fn of_file(error: &std::io::Error, folder: &Path) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull(folder.into()),
            _ => Self::Folder { folder: folder.into(), reason: error.to_string() },
        }
    }
}

/// What was being done when an error came up.
pub struct Context<'a> {
    pub endpoint: &'a str,
    pub folder: &'a Path,
    pub remote: &'a Remote,
    /// As it was asked for.
    pub revision: &'a str,
}

impl Context<'_> {
    /// The client's error in our words.
    pub fn explain(&self, error: ApiError) -> DownloadError {
        let endpoint = self.endpoint.to_owned();
        match error {
            ApiError::RequestError(error) => self.explain_request(*error),
            // The client copies from the network to the disk in one go: the kind tells which of them it was.
            ApiError::IoError(error) => match error.kind() {
                ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::PermissionDenied
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::NotADirectory
                | ErrorKind::NotFound
                | ErrorKind::AlreadyExists => DownloadError::of_file(&error, self.folder),
                _ => DownloadError::Offline { endpoint, reason: error.to_string() },
            },
            ApiError::TooManyRetries(error) => self.explain(*error),
            ApiError::LockAcquisition(_) => DownloadError::Busy(self.folder.into()),
            ApiError::InvalidResume => {
                let reason = "more has arrived than there is".into();
                DownloadError::Damaged { path: self.remote.path.clone(), reason }
            }
            other => DownloadError::NotTheHub { endpoint, reason: other.to_string() },
        }
    }

    fn explain_request(&self, error: ureq::Error) -> DownloadError {
        let endpoint = self.endpoint.to_owned();
        let page = format!("{}/{}", self.endpoint, self.remote.repository);
        match error {
            ureq::Error::StatusCode(401) => DownloadError::Unauthorized(page),
            ureq::Error::StatusCode(403) => DownloadError::Forbidden(page),
            ureq::Error::StatusCode(404) => self.not_found(),
            ureq::Error::StatusCode(status @ (408 | 429 | 500..)) => DownloadError::Server { endpoint, status },
            error @ (ureq::Error::StatusCode(_) | ureq::Error::Json(_)) => {
                DownloadError::NotTheHub { endpoint, reason: error.to_string() }
            }
            error => DownloadError::Offline { endpoint, reason: error.to_string() },
        }
    }

    pub fn not_found(&self) -> DownloadError {
        DownloadError::NotFound {
            repository: self.remote.repository.clone(),
            path: self.remote.path.clone(),
            revision: self.revision.to_owned(),
        }
    }

    pub fn not_the_hub(&self, reason: String) -> DownloadError {
        DownloadError::NotTheHub { endpoint: self.endpoint.to_owned(), reason }
    }
}
