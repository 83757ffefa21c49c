//! Models, sequences of theirs, and steps of those.

use std::ops::ControlFlow;
use std::path::PathBuf;

use tessera_cuda::{CudaExecutor, Device, ModelWeights};
use tessera_model::batch::sliding_blocks;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::synth::Like;
use tessera_model::{
    BLOCK_SIZE, Batch, BlockTables, Config, Executor, LayerType, Limits, Row, Sampling, StepError, Token, Trace,
    Weights,
};

use crate::model_weights::inputs::fixtures;
use crate::random::Random;

/// Most tokens of a step here.
pub const MAX_STEP_TOKENS: usize = 1024;

/// A case of `fixtures/parity`.
pub fn fixture(case: &str) -> (PathBuf, Checkpoint) {
    let folder = fixtures().join("parity").join(case);
    let checkpoint = Checkpoint::open(&folder).expect(case);
    (folder, checkpoint)
}

/// The published widths, small in everything else.
pub fn wide() -> Config {
    let mut config = Like::Gpt20b.config();
    (config.num_hidden_layers, config.num_local_experts, config.vocab_size) = (2, 12, 1999);
    config.layer_types.truncate(2);
    config.eos_token_ids.clear();
    config
}

/// Enough for `sequences` of `context` tokens each in rows of any length.
pub fn limits(config: &Config, sequences: usize, context: usize) -> Limits {
    Limits::for_sequences(config, sequences, context, MAX_STEP_TOKENS)
}

/// An executor, and who has which blocks of its pools.
pub struct Rig {
    pub executor: CudaExecutor,
    pub config: Config,
    limits: Limits,
    random: Random,
}

impl Rig {
    pub fn load(device: &Device, config: &Config, weights: &Weights, limits: Limits) -> Self {
        let weights = ModelWeights::load(device, config, weights, &mut |_| ControlFlow::Continue(())).unwrap();
        Self::new(device, config, weights, limits)
    }

    /// With made weights.
    pub fn made(device: &Device, config: &Config, limits: Limits) -> Self {
        let weights = ModelWeights::dummy(device, config, 5, &mut |_| ControlFlow::Continue(())).unwrap();
        Self::new(device, config, weights, limits)
    }

    fn new(device: &Device, config: &Config, weights: ModelWeights, limits: Limits) -> Self {
        let executor = CudaExecutor::new(device, config, weights, limits).unwrap();
        Self { executor, config: config.clone(), limits, random: Random(29) }
    }

    /// Sequences that have the pools to themselves: every block is somebody's or nobody's, strewn over the pool. What was in
    /// the cache stays there.
    pub fn sequences(&mut self, tokens: &[Vec<Token>]) -> Vec<Sequence> {
        let mut shuffled = |kind| {
            let mut ids: Vec<u32> = (0..self.limits.blocks(kind) as u32).collect();
            self.random.shuffle(&mut ids);
            ids
        };
        let (mut full, mut sliding) = (shuffled(LayerType::Full), shuffled(LayerType::Sliding));
        let mut sequence = |tokens: &Vec<Token>| {
            let n_blocks = tokens.len().div_ceil(BLOCK_SIZE);
            let ring = sliding_blocks(self.config.sliding_window, self.limits.max_step_tokens).min(n_blocks);
            let (full, ring) = (full.split_off(full.len() - n_blocks), sliding.split_off(sliding.len() - ring));
            Sequence { tokens: tokens.clone(), done: 0, full, ring, window: self.config.sliding_window }
        };
        tokens.iter().map(&mut sequence).collect()
    }

    pub fn sequence(&mut self, tokens: &[Token]) -> Sequence {
        self.sequences(&[tokens.to_vec()]).remove(0)
    }

    pub fn random_tokens(&mut self, n: usize) -> Vec<Token> {
        (0..n).map(|_| (self.random.next() % self.config.vocab_size as u64) as Token).collect()
    }

    /// From 0 on, below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.random.next() % n as u64) as usize
    }

    /// Runs a step; the logits of each row.
    pub fn step(&mut self, batch: &Batch, how: How) -> Vec<Vec<f32>> {
        how.run(&mut self.executor, batch).unwrap();
        split(&self.config, batch, self.executor.logits().unwrap())
    }

    /// The logits of all of a sequence's tokens, read by itself in one piece.
    pub fn alone(&mut self, tokens: &[Token]) -> Vec<f32> {
        let mut sequence = self.sequence(tokens);
        let batch = batch(&[sequence.next(tokens.len(), tokens.len())]);
        self.step(&batch, How::Plain).remove(0)
    }
}

/// The ways to run a step. None changes a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// From a graph, if each row has one token and wants its logits.
    Plain,
    /// Stage by stage: nothing is fused, and everything goes to the host and comes back.
    Traced,
}

impl How {
    pub fn run(self, executor: &mut dyn Executor, batch: &Batch) -> Result<Vec<Token>, StepError> {
        match self {
            Self::Plain => executor.step(batch),
            Self::Traced => executor.step_traced(batch, &mut Untouched),
        }
    }
}

/// Changes nothing.
struct Untouched;

impl Trace for Untouched {
    fn visit(&mut self, _site: tessera_model::Site, _width: usize, _values: &mut [f32]) {}
}

/// Tokens, how many of them have been read, and the blocks that they go to.
#[derive(Clone)]
pub struct Sequence {
    pub tokens: Vec<Token>,
    pub done: usize,
    full: Vec<u32>,
    ring: Vec<u32>,
    window: usize,
}

/// A row, and its tokens.
pub struct Part {
    pub row: Row,
    tokens: Vec<Token>,
}

impl Sequence {
    pub fn left(&self) -> usize {
        self.tokens.len() - self.done
    }

    /// The row of the next `n` tokens. The sliding layers' table holds an id beyond the pool wherever the window has passed.
    pub fn next(&mut self, n: usize, n_logits: usize) -> Part {
        let (start, end) = (self.done, self.done + n);
        let n_blocks = end.div_ceil(BLOCK_SIZE);
        let first = (start + 1).saturating_sub(self.window) / BLOCK_SIZE;
        let sliding = |b: usize| if b < first { u32::MAX } else { self.ring[b % self.ring.len()] };
        let block_tables =
            BlockTables { full: self.full[..n_blocks].to_vec(), sliding: (0..n_blocks).map(sliding).collect() };
        self.done = end;
        let row = Row { n_tokens: n, start, block_tables, n_logits, sampling: None };
        Part { row, tokens: self.tokens[start..end].to_vec() }
    }
}

impl Part {
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.row.sampling = Some(sampling);
        self
    }
}

pub fn batch(parts: &[Part]) -> Batch {
    Batch {
        tokens: parts.iter().flat_map(|part| part.tokens.iter().copied()).collect(),
        rows: parts.iter().map(|part| part.row.clone()).collect(),
    }
}

/// A step's logits by rows.
pub fn split(config: &Config, batch: &Batch, mut logits: Vec<f32>) -> Vec<Vec<f32>> {
    assert_eq!(logits.len(), batch.n_logits() * config.vocab_size);
    let mut row = |row: &Row| {
        let rest = logits.split_off(row.n_logits * config.vocab_size);
        std::mem::replace(&mut logits, rest)
    };
    batch.rows.iter().map(&mut row).collect()
}

/// The logits from position `from` on of a sequence that is read in rows of the lengths that `chunks` gives (the last one
/// repeats), which `step` runs.
pub fn read(
    executor: &mut dyn Executor,
    sequence: &mut Sequence,
    chunks: &[usize],
    from: usize,
    mut step: impl FnMut(&mut dyn Executor, &Batch) -> Result<Vec<Token>, StepError>,
) -> Vec<f32> {
    let mut lengths = chunks.iter().chain(chunks.last().into_iter().cycle());
    let mut logits = Vec::new();
    while sequence.left() > 0 {
        let n = sequence.left().min(*lengths.next().unwrap());
        let n_logits = (sequence.done + n).saturating_sub(from).min(n);
        step(executor, &batch(&[sequence.next(n, n_logits)])).unwrap();
        logits.extend(executor.logits().unwrap());
    }
    logits
}

/// Where two differ first in their bits, and how.
#[track_caller]
pub fn same_bits(found: &[f32], expect: &[f32], what: impl Fn() -> String) {
    assert_eq!(found.len(), expect.len(), "{}", what());
    let differ = |(a, b): &(&f32, &f32)| a.to_bits() != b.to_bits();
    if let Some(at) = found.iter().zip(expect).position(|pair| differ(&pair)) {
        let n = found.iter().zip(expect).filter(differ).count();
        let (found, expect) = (found[at], expect[at]);
        panic!("{}: logit {at} is {found:e}, expected {expect:e}; {n} differ", what());
    }
}
