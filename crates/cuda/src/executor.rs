//! [`CudaExecutor`]: the GPU behind the seam.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use tessera_model::{Batch, Config, Executor, LayerType, Limits, StepError, Token, Trace};

use crate::attention::AttentionError;
use crate::dense::DenseError;
use crate::device::{Device, Pinned};
use crate::error::DeviceError;
use crate::forward::{Forward, Room};
use crate::launch::{Graph, Stream};
use crate::model_weights::{ModelWeights, ModelWeightsError};
use crate::moe::MoeError;
use crate::sampling::Sampled;
use crate::step::StepMetaError;
use crate::steps::StepsError;

mod times;
mod traced;

pub use times::StageTime;

/// The most rows of a step.
pub const MAX_STEP_ROWS: usize = 256;
/// The most vectors of logits of a step: 0.8 GB of the published models.
pub const MAX_STEP_LOGITS: usize = 1024;
/// Numbers of rows that decoding steps are padded to, one graph each.
const BUCKETS: [usize; 21] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, MAX_STEP_ROWS];

/// Why a model cannot run on the GPU, or a step failed there.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    #[error(
        "the model needs {} of GPU memory, {} for its weights and {} for the cache and a step of {} tokens, and may have {}: \
         shorten the context, compute fewer tokens or sequences together, or give it more memory",
        gb(weights_bytes + step_bytes), gb(*weights_bytes), gb(*step_bytes), max_step_tokens, gb(*budget_bytes)
    )]
    Budget { weights_bytes: u64, step_bytes: u64, max_step_tokens: usize, budget_bytes: u64 },
    #[error(transparent)]
    Weights(#[from] ModelWeightsError),
    #[error(transparent)]
    Attention(#[from] AttentionError),
    #[error(transparent)]
    Dense(#[from] DenseError),
    #[error(transparent)]
    Experts(#[from] MoeError),
    #[error(transparent)]
    Steps(#[from] StepsError),
    #[error(transparent)]
    Meta(#[from] StepMetaError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

fn gb(bytes: impl std::borrow::Borrow<u64>) -> String {
    format!("{:.1} GB", *bytes.borrow() as f64 / 1e9)
}

impl From<CudaError> for StepError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.to_string())
    }
}

/// gpt-oss on a Hopper GPU: BF16 operands, float32 sums and residual stream.
///
/// Steps in which every row has one token and wants its logits are replayed from a graph; each number of rows is padded to
/// one of a few. No bit of any row's logits depends on that, or on the other rows.
pub struct CudaExecutor {
    config: Config,
    limits: Limits,
    room: Room,
    stream: Stream,
    forward: Forward,
    graphs: HashMap<usize, Graph>,
    /// What the graphs bring.
    sampled: Pinned<Sampled>, // [rows]
    /// Vectors of logits of the last step.
    n_logits: Option<usize>,
}

impl CudaExecutor {
    /// What the model takes on the GPU with these limits: the weights, and everything else.
    pub fn bytes(config: &Config, limits: &Limits) -> Result<(u64, u64), CudaError> {
        Ok((ModelWeights::bytes(config)?, Forward::bytes(config, limits, room(limits))?))
    }

    /// An error if the model with these limits takes more than so many bytes.
    pub fn fits(config: &Config, limits: &Limits, budget_bytes: u64) -> Result<(), CudaError> {
        let (weights_bytes, step_bytes) = Self::bytes(config, limits)?;
        match weights_bytes + step_bytes <= budget_bytes {
            true => Ok(()),
            false => {
                let max_step_tokens = limits.max_step_tokens;
                Err(CudaError::Budget { weights_bytes, step_bytes, max_step_tokens, budget_bytes })
            }
        }
    }

    /// Everything that steps need is allocated here.
    pub fn new(device: &Device, config: &Config, weights: ModelWeights, limits: Limits) -> Result<Self, CudaError> {
        let room = room(&limits);
        Ok(Self {
            config: config.clone(),
            limits,
            room,
            stream: device.stream()?,
            forward: Forward::new(device, config, weights, &limits, room)?,
            graphs: HashMap::new(),
            sampled: device.alloc_pinned(room.rows)?,
            n_logits: None,
        })
    }

    fn check(&mut self, batch: &Batch) -> Result<(), StepError> {
        batch.check(&self.config, |kind| self.limits.blocks(kind), self.limits.max_step_tokens)?;
        let n_logits = batch.n_logits();
        if n_logits > self.room.logits {
            return Err(StepError::TooManyLogits { found: n_logits, max: self.room.logits });
        }
        Ok(())
    }

    fn send(&mut self, batch: &Batch, bucket: Option<usize>) -> Result<(), CudaError> {
        self.forward.step.fill(batch, bucket)?;
        // Until the step is done.
        self.n_logits = None;
        Ok(self.forward.step.send(&self.stream)?)
    }

    /// A checked step that `run` queues; nothing is queued of a batch without rows.
    fn step_by(
        &mut self,
        batch: &Batch,
        run: impl FnOnce(&mut Self, &Batch) -> Result<(), CudaError>,
    ) -> Result<Vec<Token>, StepError> {
        self.check(batch)?;
        if batch.rows.is_empty() {
            self.n_logits = Some(0);
            return Ok(Vec::new());
        }
        run(self, batch)?;
        self.tokens(batch)
    }

    fn run(&mut self, batch: &Batch) -> Result<(), CudaError> {
        let bucket = bucket(batch, self.limits.max_step_tokens);
        self.send(batch, bucket)?;
        let Self { stream, forward, graphs, sampled, .. } = self;
        let Some(bucket) = bucket else { return queue(stream, forward, sampled) };
        let graph = match graphs.entry(bucket) {
            Entry::Occupied(graph) => graph.into_mut(),
            Entry::Vacant(place) => place.insert(stream.capture(|| queue(stream, forward, sampled))?),
        };
        Ok(stream.replay(graph)?)
    }

    /// Waits for the step, and gives the tokens of the rows that sample.
    fn tokens(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        self.stream.synchronize().map_err(CudaError::from)?;
        self.n_logits = Some(batch.n_logits());
        let rows = self.forward.step.sampling_rows();
        let mut sampled = vec![<Sampled as bytemuck::Zeroable>::zeroed(); rows.len()];
        self.sampled.read(0, &mut sampled).map_err(CudaError::from)?;
        let token = |(sampled, &row): (&Sampled, &usize)| match sampled.not_finite() {
            Some((index, value)) => Err(StepError::NotFinite { row, index, value }),
            None => Ok(sampled.token),
        };
        sampled.iter().zip(rows).map(token).collect()
    }
}

impl Executor for CudaExecutor {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.limits.blocks(kind)
    }

    fn max_step_tokens(&self) -> usize {
        self.limits.max_step_tokens
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        self.step_by(batch, Self::run)
    }

    fn step_traced(&mut self, batch: &Batch, trace: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        self.step_by(batch, |executor, batch| executor.run_traced(batch, trace))
    }

    fn logits(&self) -> Result<Vec<f32>, StepError> {
        let n_logits = self.n_logits.ok_or(StepError::NoStep)?;
        let mut logits = vec![0.0; n_logits * self.config.vocab_size];
        self.stream.download(&self.forward.buffers.logits, 0, &mut logits).map_err(CudaError::from)?;
        Ok(logits)
    }
}

/// Queues the step, and the copy of its tokens to the host.
fn queue(stream: &Stream, forward: &mut Forward, sampled: &mut Pinned<Sampled>) -> Result<(), CudaError> {
    forward.run(stream)?;
    queue_tokens(stream, forward, sampled)
}

fn queue_tokens(stream: &Stream, forward: &Forward, sampled: &mut Pinned<Sampled>) -> Result<(), CudaError> {
    Ok(stream.fetch(&forward.buffers.sampled, sampled)?)
}

fn room(limits: &Limits) -> Room {
    let tokens = limits.max_step_tokens;
    Room { tokens, rows: MAX_STEP_ROWS.min(tokens), logits: MAX_STEP_LOGITS.min(tokens) }
}

/// To how many rows a batch is padded; none if a row has more tokens than one, or does not want its logits.
fn bucket(batch: &Batch, max_tokens: usize) -> Option<usize> {
    let is_decode = batch.rows.iter().all(|row| row.n_tokens == 1 && row.n_logits == 1);
    let bucket = BUCKETS.into_iter().find(|&bucket| bucket >= batch.rows.len() && bucket <= max_tokens);
    bucket.filter(|_| is_decode && !batch.rows.is_empty())
}
