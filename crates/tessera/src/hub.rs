//! Checkpoints by hub id: found in the Hugging Face cache, else downloaded into it.
//!
//! The cache layout is the one that `hf download` and transformers use, so that each finds what another fetched.

use std::path::{Path, PathBuf};
use std::time::Duration;

mod cache;
mod client;
mod download;
mod error;
mod select;

use cache::RepoCache;
use client::Client;
pub use error::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";
/// How long a connection may say nothing, unless `HF_HUB_DOWNLOAD_TIMEOUT` names other seconds.
const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest repository name or revision taken for one; the hub's own limit is 96 for a name.
const MAX_NAME: usize = 96;

/// `owner/name`, optionally `@revision` (a branch, a tag or a commit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    /// `owner/name`.
    pub name: String,
    pub revision: String,
}

/// Where the hub is, who asks, and where files are kept: read from the environment once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Without a trailing slash.
    pub endpoint: String,
    pub token: Option<String>,
    /// Never touch the network.
    pub offline: bool,
    /// The folder with `models--owner--name`.
    pub cache: PathBuf,
    pub read_timeout: Duration,
}

/// The folder of a checkpoint: a snapshot that is complete in the cache, else a fresh download.
///
/// # Errors
/// When the snapshot is not cached and the hub cannot or must not be asked, refuses, or breaks off.
pub fn locate(repo: &RepoId, settings: &Settings) -> Result<PathBuf, HubError> {
    let cache = RepoCache::new(&settings.cache, repo);
    if let Some(folder) = cache.complete_snapshot() {
        return Ok(folder);
    }
    if settings.offline {
        return Err(HubError::Offline { repo: repo.clone(), cache: settings.cache.clone() });
    }
    download::download(repo, &cache, &Client::new(settings))
}

impl RepoId {
    /// `None` where `spec` cannot be a hub id.
    pub fn parse(spec: &str) -> Option<Self> {
        let (name, revision) = spec.split_once('@').unwrap_or((spec, DEFAULT_REVISION));
        let (owner, model) = name.split_once('/')?;
        let revision_is_fine = revision.len() <= MAX_NAME && revision.split('/').all(is_name);
        (is_name(owner) && is_name(model) && revision_is_fine)
            .then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl std::fmt::Display for RepoId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            DEFAULT_REVISION => f.write_str(&self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

/// Whether a part of a hub id, a commit or an ETag is safe to use as a file name.
fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && part.len() <= MAX_NAME && part.chars().all(allowed) && !part.starts_with('.')
}

impl Settings {
    pub fn from_env() -> Self {
        Self::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The variables and their precedence are those of the Python library `huggingface_hub`.
    fn read(var: impl Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| var(name).map(PathBuf::from);
        let user_cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        let home = path("HF_HOME").unwrap_or_else(|| user_cache.unwrap_or_default().join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let timeout = var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|v| v.parse().ok());
        Self {
            endpoint: var("HF_ENDPOINT").as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/').to_owned(),
            token: var("HF_TOKEN").or_else(|| read_token(&token_file)),
            offline: var("HF_HUB_OFFLINE").is_some_and(|v| is_true(&v)),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            read_timeout: timeout.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(DEFAULT_READ_TIMEOUT),
        }
    }
}

fn read_token(file: &Path) -> Option<String> {
    let token = std::fs::read_to_string(file).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_id(spec: &str, expect: Option<(&str, &str)>) {
        let got = RepoId::parse(spec);
        let got = got.as_ref().map(|id| (id.name.as_str(), id.revision.as_str()));
        assert_eq!(got, expect, "{spec}");
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        check_id("openai/gpt-oss-20b", Some(("openai/gpt-oss-20b", "main")));
        check_id("openai/gpt-oss-20b@refs/pr/7", Some(("openai/gpt-oss-20b", "refs/pr/7")));
        for not_an_id in ["model", "/a/b", "./a/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "a/b c", "", "a/"] {
            check_id(not_an_id, None);
        }
    }

    fn check_settings(vars: &[(&str, &str)], expect: impl Fn(&Settings) -> bool) {
        let settings =
            Settings::read(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()));
        assert!(expect(&settings), "{vars:?} gave {settings:?}");
    }

    #[test]
    fn the_environment_decides() {
        check_settings(&[("HOME", "/h")], |s| s.cache == Path::new("/h/.cache/huggingface/hub"));
        check_settings(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], |s| s.cache == Path::new("/x/huggingface/hub"));
        check_settings(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")], |s| s.cache == Path::new("/f/hub"));
        check_settings(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], |s| s.cache == Path::new("/c"));
        check_settings(&[], |s| s.endpoint == DEFAULT_ENDPOINT && !s.offline && s.token.is_none());
        check_settings(&[("HF_ENDPOINT", "http://mirror/")], |s| s.endpoint == "http://mirror");
        check_settings(&[("HF_HUB_OFFLINE", "True")], |s| s.offline);
        check_settings(&[("HF_HUB_OFFLINE", "0")], |s| !s.offline);
        check_settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", "2")], |s| s.read_timeout == Duration::from_secs(2));
        check_settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", "-2")], |s| s.read_timeout == DEFAULT_READ_TIMEOUT);
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        check_settings(&[("HF_HOME", home)], |s| s.token.as_deref() == Some("hf_file"));
        check_settings(&[("HF_HOME", home), ("HF_TOKEN", "hf_var")], |s| s.token.as_deref() == Some("hf_var"));
    }
}
