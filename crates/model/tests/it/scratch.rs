//! Small checkpoints to damage.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tessera_model::checkpoint::Layout;
use tessera_model::synth::{Like, Spec};

/// A checkpoint in a folder that goes away with it.
pub struct Scratch {
    _dir: TempDir,
    pub path: PathBuf,
}

/// The tiny checkpoint of seed 1 in a layout.
pub fn tiny(layout: Layout) -> Scratch {
    write(Spec::new(Like::Tiny.config(), 1).layout(layout))
}

pub fn write(spec: Spec) -> Scratch {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    spec.write(&path, &|_, _| ControlFlow::Continue(())).unwrap();
    Scratch { _dir: dir, path }
}

impl Scratch {
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// A safetensors header, parsed without the code under test.
pub fn read_header(file: &Path) -> (serde_json::Map<String, serde_json::Value>, Vec<u8>) {
    let bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    (header, bytes[8 + length..].to_vec())
}

/// A file of this header and these tensor bytes.
pub fn write_file(file: &Path, header: &serde_json::Map<String, serde_json::Value>, data: &[u8]) {
    let mut json = serde_json::to_vec(header).unwrap();
    json.resize(json.len().next_multiple_of(8), b' ');
    let bytes = [&(json.len() as u64).to_le_bytes()[..], &json, data].concat();
    std::fs::write(file, bytes).unwrap();
}

/// Changes a JSON file.
pub fn edit(file: &Path, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let mut map = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    change(&mut map);
    std::fs::write(file, serde_json::to_string(&map).unwrap()).unwrap();
}
