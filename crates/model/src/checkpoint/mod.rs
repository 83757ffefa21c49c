//! Opening checkpoints: all or nothing.

mod error;
mod layout;
mod scan;
mod shard;
pub(crate) mod shards;
mod source;
pub(crate) mod staging;
mod survey;

use std::path::Path;

use half::bf16;

pub use error::CheckpointError;
pub use layout::{Dtype, Layout, Part, TensorSpec};
pub use shard::{MAX_HEADER_BYTES, TensorEntry, parse_header};
pub use shards::Progress;
pub use source::MAX_FILES;
pub use staging::WriteError;
pub use survey::{Depth, Survey};

use crate::weights::{Experts, LayerWeights, Linear, Matrix};
use crate::{Config, Weights};

/// An open, validated, memory-mapped checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    layout: Layout,
    survey: Survey,
}

impl Checkpoint {
    /// Opens a folder, a single `.safetensors` file or a `*.safetensors.index.json`, in the Hugging Face or the
    /// original layout. Every name, dtype, shape and byte range and the configuration are checked, and scales and small
    /// tensors are looked through, before this returns.
    ///
    /// The weights are the files, mapped: nobody may write to them or shorten them while the checkpoint is open. A file
    /// that shrinks ends the process with SIGBUS when a missing page is read; [`Checkpoint::still_unchanged`] tells.
    /// Replacing a file by renaming another over it is safe.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::from_survey(Survey::take(path, Depth::Values))
    }

    /// The checkpoint that a survey looked at, or its first reason to refuse.
    pub fn from_survey(mut survey: Survey) -> Result<Self, CheckpointError> {
        if !survey.refusals.is_empty() {
            return Err(survey.refusals.swap_remove(0));
        }
        match (survey.config.clone(), survey.layout) {
            (Some(config), Some(layout)) => Ok(Self { config, layout, survey }),
            _ => Err(CheckpointError::NoWeights { folder: survey.path }),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Views into the mapped files; nothing is copied.
    pub fn weights(&self) -> Weights<'_> {
        let c = &self.config;
        Weights {
            embed: self.matrix(None, Part::Embed, c.vocab_size, c.hidden_size),
            layers: (0..c.num_hidden_layers).map(|layer| self.layer(Some(layer))).collect(),
            final_norm: self.values(None, Part::FinalNorm),
            lm_head: self.matrix(None, Part::LmHead, c.vocab_size, c.hidden_size),
        }
    }

    /// Remarks for the user: dropped original keys, unknown tensors.
    pub fn notes(&self) -> &[String] {
        &self.survey.notes
    }

    /// Paths and lengths of the weight files.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.survey.files()
    }

    /// Every tensor of the files, unknown ones included.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.survey.tensors
    }

    /// The mapped files, whole and page-aligned, for backends that read ahead.
    pub fn mappings(&self) -> impl Iterator<Item = &[u8]> {
        self.survey.shards.iter().map(|s| &s.map[..])
    }

    /// Checks that no file's length or time of change is another than when it was opened.
    pub fn still_unchanged(&self) -> Result<(), CheckpointError> {
        self.survey.still_unchanged()
    }

    fn layer(&self, layer: Option<usize>) -> LayerWeights<'_> {
        let c = &self.config;
        let linear = |weight, bias, rows, cols| Linear {
            weight: self.matrix(layer, weight, rows, cols),
            bias: self.values(layer, bias),
        };
        let experts = |blocks, scales, bias, rows, cols| Experts {
            blocks: self.bytes(layer, blocks),
            scales: self.bytes(layer, scales),
            bias: self.values(layer, bias),
            experts: c.num_local_experts,
            rows,
            cols,
        };
        let (hidden, inter) = (c.hidden_size, c.intermediate_size);
        LayerWeights {
            attn_norm: self.values(layer, Part::AttnNorm),
            q: linear(Part::Q, Part::QBias, c.q_dim(), hidden),
            k: linear(Part::K, Part::KBias, c.kv_dim(), hidden),
            v: linear(Part::V, Part::VBias, c.kv_dim(), hidden),
            o: linear(Part::O, Part::OBias, hidden, c.q_dim()),
            sinks: self.values(layer, Part::Sinks),
            mlp_norm: self.values(layer, Part::MlpNorm),
            router: linear(Part::Router, Part::RouterBias, c.num_local_experts, hidden),
            gate_up: experts(Part::GateUpBlocks, Part::GateUpScales, Part::GateUpBias, 2 * inter, hidden),
            down: experts(Part::DownBlocks, Part::DownScales, Part::DownBias, hidden, inter),
        }
    }

    fn matrix(&self, layer: Option<usize>, part: Part, rows: usize, cols: usize) -> Matrix<'_> {
        Matrix::new(self.values(layer, part), rows, cols)
    }

    /// BF16 values; alignment and length were checked at open.
    fn values(&self, layer: Option<usize>, part: Part) -> &[bf16] {
        bytemuck::cast_slice(self.bytes(layer, part))
    }

    fn bytes(&self, layer: Option<usize>, part: Part) -> &[u8] {
        self.survey.part(layer, part)
    }
}
