//! Writing the safetensors files of a checkpoint: planned first, then filled in any order by several threads.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde_json::{Map, Value, json};

use super::layout::TensorSpec;
use super::staging::WriteError;

/// Sees bytes done and bytes in all; `Break` stops the work.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) -> ControlFlow<()> + Sync);

/// Headers are padded to this, so that tensors are aligned for every view.
const HEADER_ALIGN: usize = 8;

/// The files of a checkpoint under construction.
pub(crate) struct ShardSet {
    destination: PathBuf, // for errors
    files: Vec<File>,
    tensors: Vec<Planned>,
    bytes: u64,
}

struct Planned {
    file: usize,
    offset: u64,
}

impl ShardSet {
    /// Creates the files in `folder`, at most `max_shard_bytes` of tensors each, with their headers and, when there are
    /// several, their index. Errors name `destination`. Tensors keep the order of `specs` and are addressed by their
    /// position in it.
    pub fn create(
        folder: &Path,
        destination: &Path,
        specs: &[TensorSpec],
        max_shard_bytes: u64,
    ) -> Result<Self, WriteError> {
        fs::create_dir_all(folder).map_err(|e| WriteError::io(folder, "create", e))?;
        let shards = split(specs, max_shard_bytes);
        let bytes = specs.iter().map(TensorSpec::bytes).sum();
        check_free(folder, destination, bytes)?;
        let mut set = Self { destination: destination.to_owned(), files: Vec::new(), tensors: Vec::new(), bytes };
        let mut weight_map = Map::new();
        for (i, shard) in shards.iter().enumerate() {
            let name = shard_name(i, shards.len());
            let (header, mut offset) = (header(shard), 0);
            offset += header.len() as u64;
            for spec in *shard {
                set.tensors.push(Planned { file: i, offset });
                offset += spec.bytes();
                weight_map.insert(spec.name.clone(), json!(name));
            }
            let path = folder.join(&name);
            let file = File::create_new(&path).map_err(|e| WriteError::io(&path, "create", e))?;
            file.write_all_at(&header, 0)
                .and_then(|()| file.set_len(offset))
                .map_err(|e| WriteError::writing(destination, bytes, e))?;
            set.files.push(file);
        }
        if shards.len() > 1 {
            let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
            let path = folder.join("model.safetensors.index.json");
            fs::write(&path, crate::config::pretty(&index)).map_err(|e| WriteError::writing(destination, bytes, e))?;
        }
        Ok(set)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes part of a tensor.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let planned = &self.tensors[tensor];
        self.files[planned.file]
            .write_all_at(bytes, planned.offset + offset)
            .map_err(|e| WriteError::writing(&self.destination, self.bytes, e))
    }
}

/// Runs `work` over all jobs on `threads` threads, each with its own scratch memory, until one fails or `progress`
/// says stop. `work` returns the bytes it wrote; of several failures the first to happen is returned.
pub(crate) fn run_jobs<J: Sync, E: From<WriteError> + Send>(
    jobs: &[J],
    threads: usize,
    folder: &Path,
    total_bytes: u64,
    progress: Progress,
    work: impl Fn(&J, &mut Vec<u8>) -> Result<u64, E> + Sync,
) -> Result<(), E> {
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failure = Mutex::new(None);
    let fail = |error: E| {
        next.store(jobs.len(), Ordering::Relaxed);
        failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
    };
    let worker = || {
        let mut scratch = Vec::new();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match work(job, &mut scratch) {
                Err(error) => fail(error),
                Ok(bytes) => {
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    if progress(done, total_bytes).is_break() {
                        fail(WriteError::Interrupted { path: folder.to_owned() }.into());
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(worker);
        }
        worker();
    });
    failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

/// Consecutive tensors that fit a file; a tensor larger than the limit gets a file of its own.
fn split(specs: &[TensorSpec], max_bytes: u64) -> Vec<&[TensorSpec]> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0);
    for (i, spec) in specs.iter().enumerate() {
        if i > start && size + spec.bytes() > max_bytes {
            shards.push(&specs[start..i]);
            (start, size) = (i, 0);
        }
        size += spec.bytes();
    }
    shards.push(&specs[start..]);
    shards
}

/// Before anything is written: a disk that is nearly full would be full for everybody until the writing fails.
fn check_free(folder: &Path, destination: &Path, bytes: u64) -> Result<(), WriteError> {
    let disk = rustix::fs::statvfs(folder).map_err(|e| WriteError::io(folder, "read", e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // Some network filesystems do not tell: all their sizes are 0.
    if bytes <= free || disk.f_blocks == 0 {
        return Ok(());
    }
    let reason = std::io::Error::new(std::io::ErrorKind::StorageFull, format!("{free} bytes are free"));
    Err(WriteError::NoRoom { path: destination.to_owned(), bytes, reason })
}

fn shard_name(i: usize, n: usize) -> String {
    if n == 1 { "model.safetensors".into() } else { format!("model-{:05}-of-{n:05}.safetensors", i + 1) }
}

/// The length and the JSON that stand before a file's tensors.
fn header(specs: &[TensorSpec]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut at = 0;
    for spec in specs {
        let end = at + spec.bytes();
        let entry = json!({ "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [at, end] });
        entries.insert(spec.name.clone(), entry);
        at = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(HEADER_ALIGN), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Dtype, Part};
    use super::*;

    #[test]
    fn more_than_the_disk_holds_is_refused_before_a_byte_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, destination) = (dir.path().join("staged"), dir.path().join("out"));
        fs::create_dir(&folder).unwrap();
        let bytes = 1 << 60;
        let (part, dtype, shape) = (Part::Embed, Dtype::Bf16, vec![bytes / 2]);
        let spec = TensorSpec { name: "large".into(), part, layer: None, dtype, shape };
        let error = ShardSet::create(&folder, &destination, &[spec], u64::MAX).err().unwrap();
        let text = error.to_string();
        let begin = format!("no room for {bytes} bytes at {}: ", destination.display());
        assert!(text.starts_with(&begin) && text.contains(" bytes are free; nothing was left behind"), "{text}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}
