//! A checkpoint's files into the cache: small ones first, then the weights, a few at a time, each resumed where an
//! earlier try stopped.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::cache::{RepoCache, create_parent, remove_if_there};
use super::client::{Client, RemoteFile, Stream};
use super::select::{INDEX, Selection, select, shards_of_index};
use super::{HubError, RepoId};

/// Files downloaded at the same time.
const PARALLEL_FILES: usize = 4;
/// Tries without a single new byte before a file is given up.
const MAX_TRIES: u32 = 4;
/// Wait before the first new try; each further wait is [`BACKOFF_FACTOR`] times longer.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_FACTOR: u32 = 4;
const COPY_BYTES: usize = 1 << 20;

/// Downloads what a checkpoint needs and returns its folder.
pub fn download(repo: &RepoId, cache: &RepoCache, client: &Client) -> Result<PathBuf, HubError> {
    let listing = with_retries(|| client.list(repo))?;
    let commit = listing.commit.as_str();
    let selection = select(&listing.files).ok_or_else(|| HubError::NoWeights { repo: repo.clone() })?;
    eprintln!("downloading {repo} ({}) to {}", short(commit), cache.snapshot(commit).display());
    let job = Job { repo, cache, client, commit, bar: progress_bar() };
    job.fetch_all(&selection.small)?;
    cache.write_ref(commit)?;
    job.fetch_all(&job.needed_weights(&selection))?;
    job.bar.finish_and_clear();
    Ok(cache.snapshot(commit).join(selection.folder))
}

struct Job<'a> {
    repo: &'a RepoId,
    cache: &'a RepoCache,
    client: &'a Client,
    commit: &'a str,
    bar: ProgressBar,
}

impl Job<'_> {
    /// The weights that the index names, where there is one: a repository may hold others.
    fn needed_weights(&self, selection: &Selection) -> Vec<String> {
        let folder = self.cache.snapshot(self.commit).join(selection.folder);
        let Some(shards) = fs::read(folder.join(INDEX)).ok().and_then(|index| shards_of_index(&index)) else {
            return selection.weights.clone();
        };
        let file_name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        selection.weights.iter().filter(|path| shards.contains(&file_name(path))).cloned().collect()
    }

    fn fetch_all(&self, names: &[String]) -> Result<(), HubError> {
        let mut files = Vec::new();
        for name in names {
            files.push(with_retries(|| self.client.head(self.repo, self.commit, name))?);
        }
        self.bar.inc_length(files.iter().map(|file| file.size).sum());
        let workers = PARALLEL_FILES.min(files.len());
        let queue = Mutex::new(files.into_iter());
        let next = || queue.lock().ok()?.next();
        let work = || {
            while let Some(file) = next() {
                if let Err(error) = self.fetch(&file) {
                    queue.lock().map(|mut rest| rest.by_ref().for_each(drop)).ok();
                    return Err(error);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            // Wait for all; the first error tells most.
            let results: Vec<_> =
                workers.into_iter().map(|worker| worker.join().expect("a download panicked")).collect();
            results.into_iter().collect()
        })
    }

    fn fetch(&self, file: &RemoteFile) -> Result<(), HubError> {
        let blob = self.cache.blob(&file.etag);
        let is_there = || fs::metadata(&blob).is_ok_and(|meta| meta.len() == file.size);
        if is_there() {
            self.bar.inc(file.size);
        } else {
            let _lock = self.cache.lock(&file.etag, || {
                self.bar.suspend(|| eprintln!("another process is downloading {}; waiting for it", file.name));
            })?;
            if !is_there() {
                self.fetch_blob(file)?;
            }
        }
        self.cache.link(self.commit, &file.name, &file.etag)
    }

    /// Completes `ETAG.incomplete`, proves its bytes where the ETag is their SHA-256, and gives it its name.
    fn fetch_blob(&self, file: &RemoteFile) -> Result<(), HubError> {
        let mut partial = Partial::open(self.cache, file, &self.bar)?;
        with_retries(|| partial.complete(self.repo, self.client, &self.bar))?;
        partial.finish(self.cache)
    }
}

/// A blob on its way.
struct Partial<'a> {
    remote: &'a RemoteFile,
    path: PathBuf,
    file: File,
    len: u64,
    hash: Sha256,
}

impl<'a> Partial<'a> {
    fn open(cache: &RepoCache, remote: &'a RemoteFile, bar: &ProgressBar) -> Result<Self, HubError> {
        let path = cache.incomplete_blob(&remote.etag);
        create_parent(&path)?;
        let mut partial = {
            let open = || File::options().create(true).read(true).append(true).open(&path);
            let file = open().map_err(|source| HubError::Io { path: path.clone(), source })?;
            Self { remote, path, file, len: 0, hash: Sha256::new() }
        };
        partial.take_up().map_err(|error| partial.io_error(error))?;
        bar.inc(partial.len);
        bar.reset_eta();
        Ok(partial)
    }

    /// Hashes what an earlier try left; more than the whole file cannot be its beginning.
    fn take_up(&mut self) -> io::Result<()> {
        let left = self.file.metadata()?;
        if !left.is_file() {
            return Ok(()); // a device: nothing to resume
        }
        if left.len() > self.remote.size {
            return self.file.set_len(0);
        }
        self.len = io::copy(&mut &self.file, &mut self.hash)?;
        Ok(())
    }

    /// Asks for the missing bytes, again at once where a request broke off after bringing some.
    fn complete(&mut self, repo: &RepoId, client: &Client, bar: &ProgressBar) -> Result<(), HubError> {
        loop {
            let before = self.len;
            match self.extend(repo, client, bar) {
                Err(error) if error.is_passing() && self.len > before => tracing::warn!("{error}; resuming"),
                result => return result,
            }
        }
    }

    fn extend(&mut self, repo: &RepoId, client: &Client, bar: &ProgressBar) -> Result<(), HubError> {
        if self.len == self.remote.size {
            return Ok(());
        }
        let mut stream = client.stream(repo, self.remote, self.len)?;
        if stream.offset != self.len {
            self.start_over(&stream, bar)?;
        }
        let mut buffer = vec![0; COPY_BYTES];
        while self.len < self.remote.size {
            let n = stream.bytes.read(&mut buffer).map_err(|error| self.broken_off(&error.to_string()))?;
            if n == 0 {
                return Err(self.broken_off("the connection was closed early"));
            }
            let missing = usize::try_from(self.remote.size - self.len).unwrap_or(usize::MAX);
            let bytes = &buffer[..n.min(missing)];
            self.file.write_all(bytes).map_err(|error| self.io_error(error))?;
            self.hash.update(bytes);
            self.len += bytes.len() as u64;
            bar.inc(bytes.len() as u64);
        }
        Ok(())
    }

    /// The server did not resume: it sends the file from the beginning.
    fn start_over(&mut self, stream: &Stream, bar: &ProgressBar) -> Result<(), HubError> {
        if stream.offset != 0 {
            return Err(self.broken_off(&format!("asked for byte {}, got byte {}", self.len, stream.offset)));
        }
        self.file.set_len(0).map_err(|error| self.io_error(error))?;
        bar.dec(self.len);
        self.len = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    fn finish(self, cache: &RepoCache) -> Result<(), HubError> {
        let found = hex(&self.hash.clone().finalize());
        if self.remote.etag.len() == found.len() && self.remote.etag != found {
            remove_if_there(&self.path).map_err(|error| self.io_error(error))?;
            let (file, expected) = (self.remote.name.clone(), self.remote.etag.clone());
            return Err(HubError::Checksum { file, expected, found });
        }
        let done = self.file.sync_all().and_then(|()| fs::rename(&self.path, cache.blob(&self.remote.etag)));
        done.map_err(|error| self.io_error(error))
    }

    fn broken_off(&self, problem: &str) -> HubError {
        let (name, done, all) = (&self.remote.name, HumanBytes(self.len), HumanBytes(self.remote.size));
        HubError::Network { url: name.clone(), problem: format!("download broke off at {done} of {all}: {problem}") }
    }

    fn io_error(&self, source: io::Error) -> HubError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let missing = HumanBytes(self.remote.size - self.len).to_string();
                HubError::DiskFull { file: self.remote.name.clone(), path, missing }
            }
            _ => HubError::Io { path, source },
        }
    }
}

/// Repeats `attempt` after errors that may pass.
fn with_retries<T>(mut attempt: impl FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
    let mut tries = 1;
    loop {
        match attempt() {
            Err(error) if error.is_passing() && tries < MAX_TRIES => {
                tracing::warn!("{error}; try {tries} of {MAX_TRIES}");
                std::thread::sleep(FIRST_BACKOFF * BACKOFF_FACTOR.pow(tries - 1));
                tries += 1;
            }
            result => return result,
        }
    }
}

/// Hidden where stderr is no terminal.
fn progress_bar() -> ProgressBar {
    let template = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("a fixed template");
    ProgressBar::new(0).with_style(style)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn short(commit: &str) -> &str {
    commit.get(..8).unwrap_or(commit)
}
