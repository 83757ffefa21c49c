//! One safetensors file: its mapping and the tensors that its header describes.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata as Header, SafeTensors};
use serde_json::Value;

use super::{CheckpointError, Dtype};

/// Bytes of the length that stands before the header.
const LENGTH_BYTES: usize = 8;
/// Longest header that is read; the published ones have less than 100 KB. The `safetensors` crate has the same limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor as a header describes it.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Position in [`Checkpoint::files`](super::Checkpoint::files).
    pub file: usize,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

/// A mapped file.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    pub map: Mmap,
    file: File,
    pub len: u64,
    modified: Option<SystemTime>,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let fail = |e| CheckpointError::io(path, "open", e);
        // Checked before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(CheckpointError::NotACheckpoint { path: path.to_owned() });
        }
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let len = metadata.len();
        if len < LENGTH_BYTES as u64 {
            return Err(CheckpointError::TooShort { file: path.to_owned(), expected: LENGTH_BYTES as u64, found: len });
        }
        // SAFETY: the mapping is private to reads; that nobody changes the file meanwhile is a documented condition of
        // `Checkpoint::open`, checked as far as it can be by `still_unchanged`.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| CheckpointError::io(path, "map", e))?;
        Ok(Self { path: path.to_owned(), map, file, len, modified: modified(&metadata) })
    }

    /// Reads without the mapping: memory does not grow, and a file that shrank is an error.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<(), CheckpointError> {
        self.file.read_exact_at(out, offset as u64).map_err(|e| CheckpointError::io(&self.path, "read", e))
    }

    /// Length and time of change are what they were when the file was opened.
    pub fn still_unchanged(&self) -> Result<(), CheckpointError> {
        let metadata = std::fs::metadata(&self.path).map_err(|e| CheckpointError::io(&self.path, "look at", e))?;
        let changed = |what, expected: String, found: String| {
            Err(CheckpointError::Changed { file: self.path.clone(), what, expected, found })
        };
        if metadata.len() != self.len {
            return changed("its length", format!("{} bytes", self.len), format!("{} bytes", metadata.len()));
        }
        let now = modified(&metadata);
        if now != self.modified {
            return changed("its time of change", format!("{:?}", self.modified), format!("{now:?}"));
        }
        Ok(())
    }
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}

/// The tensors of a file's bytes, in the order of their offsets. `path` is for errors, `file` goes into the entries.
pub fn parse_header(path: &Path, file: usize, bytes: &[u8]) -> Result<Vec<TensorEntry>, CheckpointError> {
    let found = bytes.len() as u64;
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Err(CheckpointError::TooShort { file: path.to_owned(), expected: LENGTH_BYTES as u64, found });
    };
    let length = u64::from_le_bytes(*length);
    let longest = MAX_HEADER_BYTES.min(found - LENGTH_BYTES as u64);
    if length > longest {
        return Err(CheckpointError::HeaderLength { file: path.to_owned(), expected: longest, found: length });
    }
    let header = &bytes[LENGTH_BYTES..][..length as usize];
    let parsed = serde_json::from_slice::<Value>(header).unwrap_or(Value::Null);
    // Before the crate adds up the offsets, which overflows where they are absurd.
    let data_start = LENGTH_BYTES as u64 + length;
    let expected = spans(&parsed).map(|(_, (_, end))| data_start.saturating_add(end)).max().unwrap_or(data_start);
    if expected > found {
        return Err(CheckpointError::Truncated { file: path.to_owned(), expected, found });
    }
    match SafeTensors::read_metadata(bytes) {
        Ok((_, header)) => Ok(entries(file, data_start, &header)),
        Err(SafeTensorError::MetadataIncompleteBuffer) => {
            Err(CheckpointError::TrailingBytes { file: path.to_owned(), expected, found })
        }
        Err(error) => Err(explain(path, &parsed, error)),
    }
}

fn entries(file: usize, data_start: u64, header: &Header) -> Vec<TensorEntry> {
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| TensorEntry {
        name,
        dtype: Dtype::from(info.dtype),
        shape: info.shape.clone(),
        file,
        offset: data_start + info.data_offsets.0 as u64,
        bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
    };
    let mut entries: Vec<_> = header.tensors().into_iter().map(entry).collect();
    entries.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    entries
}

/// Puts names and numbers to the `safetensors` crate's errors, from a header that it refused.
fn explain(path: &Path, parsed: &Value, error: SafeTensorError) -> CheckpointError {
    let file = path.to_owned();
    let needed = |name: &String| parsed.get(name).and_then(bytes_needed);
    match error {
        SafeTensorError::InvalidOffset(tensor) => CheckpointError::Offsets { file, tensor },
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => {
            let lengths = spans(parsed).map(|(name, (start, end))| (name, end.saturating_sub(start)));
            match lengths.into_iter().find(|(name, found)| needed(name) != Some(*found)) {
                Some((tensor, found)) => {
                    let expected = needed(tensor).map_or("more than can be addressed".into(), |n| n.to_string());
                    CheckpointError::ByteCount { file, tensor: tensor.clone(), expected, found }
                }
                None => CheckpointError::Header { file, reason: error.to_string() },
            }
        }
        other => CheckpointError::Header { file, reason: other.to_string() },
    }
}

/// Name and `data_offsets` of a header's entries.
fn spans(header: &Value) -> impl Iterator<Item = (&String, (u64, u64))> {
    header.as_object().into_iter().flatten().filter_map(|(name, entry)| Some((name, span(entry)?)))
}

fn span(entry: &Value) -> Option<(u64, u64)> {
    let offsets = entry.get("data_offsets")?.as_array()?;
    Some((offsets.first()?.as_u64()?, offsets.get(1)?.as_u64()?))
}

/// Bytes of a header's entry by its shape and dtype; `None` if that does not fit 64 bits.
fn bytes_needed(entry: &Value) -> Option<u64> {
    let dtype: safetensors::Dtype = serde_json::from_value(entry.get("dtype")?.clone()).ok()?;
    let shape = entry.get("shape")?.as_array()?;
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(d.as_u64()?))?;
    Some(elements.checked_mul(dtype.bitsize() as u64)? / 8)
}

impl From<safetensors::Dtype> for Dtype {
    fn from(dtype: safetensors::Dtype) -> Self {
        match dtype {
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::U8 => Dtype::U8,
            other => Dtype::Other(other.to_string()),
        }
    }
}
