//! Opening checkpoints: all or nothing.

use std::path::Path;

use crate::{Config, Weights};

/// An open, validated, memory-mapped checkpoint.
pub struct Checkpoint {
    config: Config,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {}

impl Checkpoint {
    /// Opens a folder, a single `.safetensors` file or a `*.safetensors.index.json`.
    pub fn open(_path: &Path) -> Result<Self, CheckpointError> {
        todo!()
    }
    pub fn config(&self) -> &Config {
        &self.config
    }
    pub fn weights(&self) -> Weights<'_> {
        todo!()
    }
    /// Remarks for the user: dropped original keys, unknown tensors.
    pub fn notes(&self) -> &[String] {
        &[]
    }
}
