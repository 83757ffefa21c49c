use std::path::PathBuf;

use super::layout::Dtype;
use crate::config::ConfigError;

/// Why a checkpoint is not opened. Every variant names the file or tensor, what was expected and found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(
        "{} does not exist: give a checkpoint's folder, a .safetensors file or a .safetensors.index.json",
        path.display()
    )]
    NotFound { path: PathBuf },
    #[error("{} is no checkpoint: expected a folder, a .safetensors file or a .safetensors.index.json", path.display())]
    NotACheckpoint { path: PathBuf },
    #[error("cannot {action} {}: {reason}", path.display())]
    Io { path: PathBuf, action: &'static str, reason: std::io::Error },
    #[error("{} has no weights: expected *.safetensors in it or in its folder `original`", folder.display())]
    NoWeights { folder: PathBuf },
    #[error("{} is missing: take it from the checkpoint's own repository", path.display())]
    NoConfig { path: PathBuf },
    #[error("{}: {reason}", folder.display())]
    Config { folder: PathBuf, reason: ConfigError },
    #[error("{} is no index of safetensors files: {reason}; fetch it again", file.display())]
    Index { file: PathBuf, reason: String },
    #[error("{} names the file {shard}, which is missing: fetch it again", index.display())]
    MissingShard { index: PathBuf, shard: String },
    #[error(
        "{} says that tensor {tensor} is in {shard}, but it is not: index and files are of different versions, \
         fetch both again",
        index.display()
    )]
    IndexMismatch { index: PathBuf, tensor: String, shard: String },
    #[error("{} has {files} safetensors files, more than the limit of {limit}", folder.display())]
    TooManyFiles { folder: PathBuf, files: usize, limit: usize },
    #[error("{} has {found} bytes, a safetensors file has at least {expected}: fetch it again", file.display())]
    TooShort { file: PathBuf, expected: u64, found: u64 },
    #[error(
        "{}: header length is {found}, expected at most {expected}: this is no safetensors file, or a damaged one",
        file.display()
    )]
    HeaderLength { file: PathBuf, expected: u64, found: u64 },
    #[error("{}: the header cannot be read: {reason}; fetch the file again", file.display())]
    Header { file: PathBuf, reason: String },
    #[error(
        "{}: the byte range of tensor {tensor} overlaps another or leaves a gap; fetch the file again",
        file.display()
    )]
    Offsets { file: PathBuf, tensor: String },
    #[error(
        "{}: tensor {tensor} has a byte range of {found} bytes, its shape and dtype need {expected}",
        file.display()
    )]
    ByteCount { file: PathBuf, tensor: String, expected: String, found: u64 },
    #[error(
        "{} is truncated: its header describes {expected} bytes, the file has {found}; fetch it again",
        file.display()
    )]
    Truncated { file: PathBuf, expected: u64, found: u64 },
    #[error(
        "{} has bytes after its last tensor: its header describes {expected} bytes, the file has {found}; fetch it \
         again",
        file.display()
    )]
    TrailingBytes { file: PathBuf, expected: u64, found: u64 },
    #[error(
        "tensor {tensor} is in both {} and {}: keep the files of one checkpoint only",
        first.display(),
        second.display()
    )]
    DuplicateTensor { tensor: String, first: PathBuf, second: PathBuf },
    #[error(
        "{}: no tensor is named as in a gpt-oss checkpoint (expected `model.layers.N.*` or `block.N.*`, found \
         {found})",
        path.display()
    )]
    UnknownLayout { path: PathBuf, found: String },
    #[error(
        "tensor {missing} is missing: the experts are dequantised (BF16), which does not run; quantise them first: \
         tessera convert {} DESTINATION",
        path.display()
    )]
    Bf16Only { path: PathBuf, missing: String },
    #[error("{}: tensor {tensor} is missing, expected {dtype} {shape:?}: fetch the checkpoint again", path.display())]
    MissingTensor { path: PathBuf, tensor: String, dtype: Dtype, shape: Vec<usize> },
    #[error(
        "{} is one of {files} files, tensor {tensor} is in another: name their folder, or the index beside them",
        file.display()
    )]
    OneOfSeveral { file: PathBuf, files: usize, tensor: String },
    #[error(
        "tensor {tensor} is missing and config.json says tie_word_embeddings: gpt-oss checkpoints have a head of their \
         own; store the embedding a second time under that name"
    )]
    TiedHead { tensor: String },
    #[error("{}: tensor {tensor} is {found}, expected {expected}", file.display())]
    Dtype { file: PathBuf, tensor: String, expected: Dtype, found: Dtype },
    #[error("{}: tensor {tensor} has shape {found:?}, expected {expected:?} by config.json", file.display())]
    Shape { file: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error(
        "{}: tensor {tensor} starts at the odd byte {offset}, BF16 needs an even one; write it anew: tessera \
         convert SOURCE DESTINATION",
        file.display()
    )]
    Misaligned { file: PathBuf, tensor: String, offset: u64 },
    #[error(
        "the weights are {tensors} tensors of {bytes} bytes, gpt-oss-{model} has {expected_tensors} of {expected_bytes}: \
         fetch the checkpoint again"
    )]
    PublishedTotal { model: &'static str, tensors: usize, bytes: u64, expected_tensors: usize, expected_bytes: u64 },
    #[error(
        "tensor {tensor}: scale byte 255 (NaN) at expert {expert}, row {row}, block {block}: the file is damaged, \
         fetch it again"
    )]
    NanScale { tensor: String, expert: usize, row: usize, block: usize },
    #[error("tensor {tensor}: value {index} is {value}, expected a finite number: the file is damaged, fetch it again")]
    NotFinite { tensor: String, index: usize, value: f32 },
    #[error(
        "{} changed while it was open: {what} was {expected}, now {found}; open it again when nothing writes to it",
        file.display()
    )]
    Changed { file: PathBuf, what: &'static str, expected: String, found: String },
}

impl CheckpointError {
    pub(super) fn io(path: &std::path::Path, action: &'static str, reason: std::io::Error) -> Self {
        if reason.kind() == std::io::ErrorKind::NotFound {
            return Self::NotFound { path: path.to_owned() };
        }
        Self::Io { path: path.to_owned(), action, reason }
    }
}
