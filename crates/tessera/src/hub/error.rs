//! What can go wrong between a hub id and a folder.

use std::path::PathBuf;

use super::RepoId;

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "{repo}: not in the cache {} and HF_HUB_OFFLINE is set; unset it to download, or name a checkpoint folder",
        cache.display()
    )]
    Offline { repo: RepoId, cache: PathBuf },
    #[error(
        "{repo}: the hub answered {status}: the repository is private, gated or misspelt; set HF_TOKEN to a token that \
         may read it (or run `hf auth login`)"
    )]
    Denied { repo: RepoId, status: u16 },
    #[error("{repo}: the hub answered 404 for {what}; check the id and the revision")]
    NotFound { repo: RepoId, what: String },
    #[error("{url}: the hub answered {status}; try again later")]
    Status { url: String, status: u16 },
    #[error("{url}: {problem}; check the connection and run the command again, it resumes where it stopped")]
    Network { url: String, problem: String },
    #[error("{url}: unexpected answer: {problem}; is HF_ENDPOINT a Hugging Face hub?")]
    Protocol { url: String, problem: String },
    #[error("{repo}: no safetensors weights among its files; a gpt-oss checkpoint has model*.safetensors")]
    NoWeights { repo: RepoId },
    #[error(
        "{file}: downloaded bytes have SHA-256 {found}, expected {expected}; they were discarded: run the command again"
    )]
    Checksum { file: String, expected: String, found: String },
    #[error(
        "{}: disk full, {missing} of {file} still to come; free space, or set HF_HOME to a folder on another disk, and \
         run the command again",
        path.display()
    )]
    DiskFull { file: String, path: PathBuf, missing: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl HubError {
    /// Whether the same request may succeed a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            _ => false,
        }
    }
}
