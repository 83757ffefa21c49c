//! The Hugging Face cache: `models--owner--name/{blobs/ETAG, snapshots/COMMIT/file -> ../../blobs/ETAG, refs/REVISION}`.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{HubError, RepoId};

/// One repository's part of the cache.
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl RepoCache {
    pub fn new(cache: &Path, repo: &RepoId) -> Self {
        let name = format!("models--{}", repo.name.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(&name), revision: repo.revision.clone() }
    }

    /// The snapshot that the revision stands for, if it holds a whole checkpoint.
    pub fn complete_snapshot(&self) -> Option<PathBuf> {
        let named = fs::read_to_string(self.folder.join("refs").join(&self.revision));
        let commit = named.map_or_else(|_| self.revision.clone(), |commit| commit.trim().to_owned());
        let snapshot = self.snapshot(&commit);
        [snapshot.clone(), snapshot.join("original")].into_iter().find(|folder| is_complete(folder))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub fn incomplete_blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no other process downloads this blob; the lock lasts as long as the file returned.
    pub fn lock(&self, etag: &str, when_busy: impl FnOnce()) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let lock = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    when_busy();
                    file.lock()?;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            Ok(file)
        };
        lock().map_err(|source| HubError::Io { path: path.clone(), source })
    }

    /// Makes the blob appear in the snapshot under its name, `a/b` included.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|old| old == target) {
            return Ok(());
        }
        let link = || {
            remove_if_there(&path)?;
            match std::os::unix::fs::symlink(&target, &path) {
                // Another process was faster; all of them link the same blob.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        };
        link().map_err(|source| HubError::Io { path: path.clone(), source })
    }

    /// Records which commit the revision stands for.
    pub fn write_ref(&self, commit: &str) -> Result<(), HubError> {
        if self.revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&self.revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(|source| HubError::Io { path, source })
    }
}

/// Creates the folders above `path`.
pub fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| HubError::Io { path: parent.to_owned(), source })
}

pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether a folder has a config and all the weights that its index names, or a single weights file without an index.
/// Everything else in a snapshot is downloaded before the weights.
fn is_complete(folder: &Path) -> bool {
    if !folder.join("config.json").exists() {
        return false;
    }
    match fs::read(folder.join("model.safetensors.index.json")) {
        Ok(index) => match super::select::shards_of_index(&index) {
            Some(shards) => shards.iter().all(|shard| folder.join(shard).exists()),
            None => true, // broken: opening it says how
        },
        Err(_) => folder.join("model.safetensors").exists(),
    }
}
