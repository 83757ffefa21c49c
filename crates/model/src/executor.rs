//! The seam between backends: a whole step, not an op.

use crate::batch::{BLOCK_SIZE, Batch, BatchError, Token, sliding_blocks};
use crate::config::{Config, LayerType};
use crate::trace::Trace;

/// What a backend allocates at start; a batch that asks for more is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of the full-attention layers' pool.
    pub full_blocks: usize,
    /// Blocks of the sliding layers' pool.
    pub sliding_blocks: usize,
    /// The most tokens that one step takes.
    pub max_step_tokens: usize,
}

impl Limits {
    /// Room for `sequences` sequences of `context` tokens each, read in rows of at most `max_step_tokens`.
    pub fn for_sequences(config: &Config, sequences: usize, context: usize, max_step_tokens: usize) -> Self {
        let full = context.div_ceil(BLOCK_SIZE);
        let sliding = sliding_blocks(config.sliding_window, max_step_tokens).min(full);
        Self { full_blocks: sequences * full, sliding_blocks: sequences * sliding, max_step_tokens }
    }

    pub fn blocks(&self, kind: LayerType) -> usize {
        match kind {
            LayerType::Full => self.full_blocks,
            LayerType::Sliding => self.sliding_blocks,
        }
    }
}

/// A backend that runs whole steps of one model.
pub trait Executor: Send {
    /// Block ids of a batch's tables are below this, for each layer type's pool.
    fn kv_blocks(&self, kind: LayerType) -> usize;
    /// The most tokens that one step takes.
    fn max_step_tokens(&self) -> usize;
    /// Runs one step: one token per row that samples, in row order.
    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError>;
    /// [`Executor::step`], showing every stage's values to `trace`, which may change them.
    fn step_traced(&mut self, batch: &Batch, trace: &mut dyn Trace) -> Result<Vec<Token>, StepError>;
    /// Logits that the last step computed, `[sum of the rows' n_logits, vocab]`, in row and position order.
    fn logits(&self) -> Result<Vec<f32>, StepError>;
}

/// Why a step did not run, or did not give a token.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StepError {
    #[error("bad batch: {0}")]
    Batch(#[from] BatchError),
    #[error(
        "row {row}: logit {index} is {value}: the weights or the backend are broken; `tessera verify` finds the layer"
    )]
    NotFinite { row: usize, index: usize, value: f32 },
    #[error("the batch wants {found} vectors of logits, more than a step's limit of {max}")]
    TooManyLogits { found: usize, max: usize },
    #[error("logits were asked for before any step ran")]
    NoStep,
    /// Of the device that computes; what was cached there may be lost.
    #[error("{0}")]
    Device(String),
}
