//! Writing folders that appear only when they are complete.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why a checkpoint was not written. The destination does not exist then, and nothing is left beside it.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{} already exists: choose another destination or remove it first", path.display())]
    Exists { path: PathBuf },
    #[error("{} cannot be a checkpoint's folder: it has no name or no parent folder", path.display())]
    BadDestination { path: PathBuf },
    #[error(
        "no room for {} bytes at {}: {reason}; nothing was left behind: free space or choose another destination",
        bytes,
        path.display()
    )]
    NoRoom { path: PathBuf, bytes: u64, reason: std::io::Error },
    #[error("cannot {action} {}: {reason}", path.display())]
    Io { path: PathBuf, action: &'static str, reason: std::io::Error },
    #[error("interrupted; nothing was left behind at {}", path.display())]
    Interrupted { path: PathBuf },
}

impl WriteError {
    pub(crate) fn io(path: &Path, action: &'static str, reason: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, reason }
    }

    /// A failed write of a folder of `bytes`: "disk full" in its several spellings gets its own variant.
    pub(crate) fn writing(path: &Path, bytes: u64, reason: std::io::Error) -> Self {
        match reason.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::NoRoom { path: path.to_owned(), bytes, reason }
            }
            _ => Self::io(path, "write", reason),
        }
    }
}

/// A folder next to its destination, renamed to it by [`StagedFolder::commit`] and removed when dropped before.
pub(crate) struct StagedFolder {
    staging: PathBuf,
    destination: PathBuf,
}

impl StagedFolder {
    pub fn create(destination: &Path) -> Result<Self, WriteError> {
        // The final component must be a name: `..` or `/` can be neither renamed to nor hidden beside.
        let name = destination.file_name();
        let name = name.ok_or_else(|| WriteError::BadDestination { path: destination.to_owned() })?;
        if !is_free(destination)? {
            return Err(WriteError::Exists { path: destination.to_owned() });
        }
        let staged_name = format!(".{}.partial-{}", name.to_string_lossy(), std::process::id());
        let staging = destination.with_file_name(staged_name);
        if let Some(parent) = staging.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|e| WriteError::io(parent, "create", e))?;
        }
        fs::create_dir(&staging).map_err(|e| WriteError::io(&staging, "create", e))?;
        Ok(Self { staging, destination: destination.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.staging
    }

    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Writes a small file; `name` may have folders.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), WriteError> {
        let path = self.staging.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| WriteError::io(parent, "create", e))?;
        }
        fs::write(&path, contents).map_err(|e| WriteError::writing(&self.destination, contents.len() as u64, e))
    }

    pub fn commit(mut self) -> Result<(), WriteError> {
        // `rename` replaces an empty folder and refuses anything else.
        fs::rename(&self.staging, &self.destination).map_err(|e| WriteError::io(&self.destination, "create", e))?;
        self.staging = PathBuf::new();
        Ok(())
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.staging.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.staging);
        }
    }
}

/// Whether nothing, or an empty folder, is at `path`.
fn is_free(path: &Path) -> Result<bool, WriteError> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(fs::symlink_metadata(path).is_err()),
        Err(e) if e.kind() == ErrorKind::NotADirectory => Ok(false),
        Err(e) => Err(WriteError::io(path, "read", e)),
    }
}
