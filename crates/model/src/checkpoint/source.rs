//! Which files a path stands for.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::CheckpointError;

/// More files than any published checkpoint by far.
pub const MAX_FILES: usize = 4096;
/// Larger than any `config.json` or index; what claims to be more is not read into memory.
const MAX_JSON_BYTES: u64 = 64 << 20;

const INDEX_SUFFIX: &str = ".safetensors.index.json";
const ORIGINAL_FOLDER: &str = "original";

/// The files of one checkpoint.
#[derive(Debug)]
pub(super) struct Source {
    /// Where the weights and their `config.json` lie.
    pub folder: PathBuf,
    pub shards: Vec<PathBuf>,
    pub index: Option<Index>,
    /// Other weights that were seen and left alone.
    pub notes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Index {
    pub path: PathBuf,
    /// Tensor and file name, in the index's order.
    pub weight_map: Vec<(String, String)>,
}

impl Source {
    pub fn resolve(path: &Path) -> Result<Self, CheckpointError> {
        let metadata = fs::metadata(path).map_err(|e| CheckpointError::io(path, "open", e))?;
        if metadata.is_dir() {
            return Self::of_folder(path);
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(INDEX_SUFFIX) {
            Self::of_index(folder, path)
        } else if name.ends_with(".safetensors") {
            Ok(Self { folder, shards: vec![path.to_owned()], index: None, notes: Vec::new() })
        } else {
            Err(CheckpointError::NotACheckpoint { path: path.to_owned() })
        }
    }

    /// The folder's own safetensors files or, if there are none, those of the folder `original` in it.
    fn of_folder(folder: &Path) -> Result<Self, CheckpointError> {
        let original = folder.join(ORIGINAL_FOLDER);
        let in_original = if original.is_dir() { weights_in(&original)? } else { Weights::default() };
        let here = weights_in(folder)?;
        let (folder, weights, notes) = match (here.is_empty(), in_original.is_empty()) {
            (true, true) => return Err(CheckpointError::NoWeights { folder: folder.to_owned() }),
            (true, false) => (original, in_original, Vec::new()),
            (false, true) => (folder.to_owned(), here, Vec::new()),
            (false, false) => {
                let note =
                    format!("both layouts are there: {} is left alone, the converted one is used", original.display());
                (folder.to_owned(), here, vec![note])
            }
        };
        let mut source = match weights.index {
            Some(index) => Self::of_index(folder, &index)?,
            None => Self { folder, shards: weights.files, index: None, notes: Vec::new() },
        };
        source.notes.splice(0..0, notes);
        if source.shards.len() > MAX_FILES {
            let files = source.shards.len();
            return Err(CheckpointError::TooManyFiles { folder: source.folder, files, limit: MAX_FILES });
        }
        Ok(source)
    }

    fn of_index(folder: PathBuf, path: &Path) -> Result<Self, CheckpointError> {
        let bad = |reason: String| CheckpointError::Index { file: path.to_owned(), reason };
        let text = read_text(path)?;
        let value: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let map = value.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| bad("it has no object `weight_map`".into()))?;
        let (mut weight_map, mut names) = (Vec::new(), Vec::new());
        for (tensor, shard) in map {
            let shard = shard.as_str().filter(|s| is_plain(s));
            let shard = shard.ok_or_else(|| bad(format!("the file of tensor {tensor} is not a file name")))?;
            weight_map.push((tensor.clone(), shard.to_owned()));
            names.push(shard.to_owned());
        }
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Err(bad("its `weight_map` is empty".into()));
        }
        if let Some(shard) = names.iter().find(|n| !folder.join(n).exists()) {
            return Err(CheckpointError::MissingShard { index: path.to_owned(), shard: shard.clone() });
        }
        let shards = names.iter().map(|n| folder.join(n)).collect();
        let index = Some(Index { path: path.to_owned(), weight_map });
        Ok(Self { folder, shards, index, notes: Vec::new() })
    }

    /// The text of `config.json`, and of `generation_config.json` if there is one. The folder `original` may leave
    /// either to the folder around it.
    pub fn configs(&self) -> Result<(String, Option<String>), CheckpointError> {
        let mut folders = vec![self.folder.as_path()];
        if self.folder.file_name().is_some_and(|n| n == ORIGINAL_FOLDER) {
            folders.extend(self.folder.parent());
        }
        let find = |name: &str| folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
        let Some(config) = find("config.json") else {
            return Err(CheckpointError::NoConfig { path: self.folder.join("config.json") });
        };
        let generation = find("generation_config.json").map(|p| read_text(&p)).transpose()?;
        Ok((read_text(&config)?, generation))
    }
}

#[derive(Default)]
struct Weights {
    index: Option<PathBuf>,
    files: Vec<PathBuf>,
}

impl Weights {
    fn is_empty(&self) -> bool {
        self.index.is_none() && self.files.is_empty()
    }
}

/// The safetensors files of a folder by name, and the first index.
fn weights_in(folder: &Path) -> Result<Weights, CheckpointError> {
    let fail = |e| CheckpointError::io(folder, "read", e);
    let mut weights = Weights::default();
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        paths.push(entry.map_err(fail)?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(INDEX_SUFFIX) {
            weights.index.get_or_insert(path);
        } else if name.ends_with(".safetensors") {
            weights.files.push(path);
        }
    }
    Ok(weights)
}

pub(super) fn read_text(path: &Path) -> Result<String, CheckpointError> {
    let fail = |e| CheckpointError::io(path, "read", e);
    let len = fs::metadata(path).map_err(fail)?.len();
    if len > MAX_JSON_BYTES {
        let reason = std::io::Error::other(format!("{len} bytes are more than the limit of {MAX_JSON_BYTES}"));
        return Err(fail(reason));
    }
    fs::read_to_string(path).map_err(fail)
}

/// Whether a file name from an index stays in the index's folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}
