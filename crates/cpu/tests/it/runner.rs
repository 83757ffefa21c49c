//! Drives an executor over whole sequences.

use tessera_model::batch::sliding_blocks;
use tessera_model::{
    BLOCK_SIZE, Batch, BlockTables, Config, Executor, Limits, Row, Sampling, StepError, Token, Weights,
};

use tessera_cpu::{CpuExecutor, CpuOptions, Isa, OracleExecutor};

/// Builds a backend; the tests run the same cases over each.
pub type Backend = for<'a> fn(&Config, Weights<'a>, Limits) -> Box<dyn Executor + 'a>;

pub fn oracle<'a>(config: &Config, weights: Weights<'a>, limits: Limits) -> Box<dyn Executor + 'a> {
    Box::new(OracleExecutor::new(config, weights, limits, 2))
}

/// The fast path on every instruction set that this machine has.
pub const FAST: [(Isa, Backend); 3] =
    [(Isa::Scalar, fast::<SCALAR>), (Isa::Avx2, fast::<AVX2>), (Isa::Avx512, fast::<AVX512>)];
const SCALAR: usize = 0;
const AVX2: usize = 1;
const AVX512: usize = 2;

fn fast<'a, const ISA: usize>(config: &Config, weights: Weights<'a>, limits: Limits) -> Box<dyn Executor + 'a> {
    Box::new(CpuExecutor::new(config, weights, limits, CpuOptions { threads: 2, isa: FAST[ISA].0 }))
}

/// Runs `check` for every instruction set of this machine, and says which it lacks.
pub fn for_each_fast(check: impl Fn(&str, Backend)) {
    for (isa, backend) in FAST {
        match isa.is_available() {
            true => check(&format!("{isa:?}"), backend),
            false => println!("skipped: this machine has no {isa:?}"),
        }
    }
}

/// One of several sequences that share the pools: its blocks are strewn among the others', and the sliding layers' table
/// holds an id beyond the pool wherever the window has passed, so that touching such a block cannot go unseen.
pub struct Sequence {
    pub tokens: Vec<Token>,
    /// Tokens that have run.
    pub done: usize,
    index: usize,
    of: usize,
    max_row: usize,
}

impl Sequence {
    pub fn new(tokens: &[Token], index: usize, of: usize, max_row: usize) -> Self {
        Self { tokens: tokens.to_vec(), done: 0, index, of, max_row }
    }

    /// The row of the next `n` tokens.
    fn next(&mut self, config: &Config, n: usize, n_logits: usize, sampling: Option<Sampling>) -> Row {
        let (start, end) = (self.done, self.done + n);
        let entries = end.div_ceil(BLOCK_SIZE);
        let id = |i: usize| (i * self.of + self.index) as u32;
        let ring = sliding_blocks(config.sliding_window, self.max_row).min(self.tokens.len().div_ceil(BLOCK_SIZE));
        let first = (start + 1).saturating_sub(config.sliding_window) / BLOCK_SIZE;
        let sliding = (0..entries).map(|i| if i < first { u32::MAX } else { id(i % ring) }).collect();
        self.done = end;
        Row {
            n_tokens: n,
            start,
            block_tables: BlockTables { full: (0..entries).map(id).collect(), sliding },
            n_logits,
            sampling,
        }
    }
}

/// The batch of the next `n` tokens of each sequence, wanting logits of all of them.
pub fn batch(config: &Config, parts: &mut [(&mut Sequence, usize)]) -> Batch {
    let mut batch = Batch::default();
    for (sequence, n) in parts {
        batch.tokens.extend(&sequence.tokens[sequence.done..][..*n]);
        batch.rows.push(sequence.next(config, *n, *n, None));
    }
    batch
}

/// Logits of every position of `tokens`, read in rows of the lengths that `chunks` gives (the last one repeats).
pub fn logits(backend: Backend, config: &Config, weights: Weights, tokens: &[Token], chunks: &[usize]) -> Vec<f32> {
    drive(backend, config, weights, tokens, chunks, |executor, batch| executor.step(batch))
}

/// [`logits`], where `step` runs each batch.
pub fn drive(
    backend: Backend,
    config: &Config,
    weights: Weights,
    tokens: &[Token],
    chunks: &[usize],
    mut step: impl FnMut(&mut dyn Executor, &Batch) -> Result<Vec<Token>, StepError>,
) -> Vec<f32> {
    let max_row = *chunks.iter().max().expect("a chunk length");
    let mut executor = backend(config, weights, Limits::for_sequences(config, 1, tokens.len(), max_row));
    let mut sequence = Sequence::new(tokens, 0, 1, max_row);
    let mut out = Vec::new();
    let mut lengths = chunks.iter().chain(std::iter::repeat(chunks.last().expect("a chunk length")));
    while sequence.done < tokens.len() {
        let n = (*lengths.next().expect("endless")).min(tokens.len() - sequence.done);
        step(&mut *executor, &batch(config, &mut [(&mut sequence, n)])).expect("step");
        out.extend(executor.logits().expect("logits"));
    }
    out
}

/// The greedy continuation of `prompt`, token by token after one prefill.
pub fn greedy(backend: Backend, config: &Config, weights: Weights, prompt: &[Token], n: usize) -> Vec<Token> {
    let limits = Limits::for_sequences(config, 1, prompt.len() + n, prompt.len());
    let mut executor = backend(config, weights, limits);
    let mut sequence = Sequence::new(prompt, 0, 1, prompt.len());
    sequence.tokens.resize(prompt.len() + n, 0);
    let mut fed = prompt.to_vec();
    let mut out = Vec::new();
    while out.len() < n {
        let row = sequence.next(config, fed.len(), 1, Some(Sampling::GREEDY));
        let tokens = executor.step(&Batch { tokens: fed, rows: vec![row] }).expect("step");
        out.extend(&tokens);
        fed = tokens;
    }
    out
}

pub fn rms(values: impl Iterator<Item = f32>) -> f64 {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), v| (sum + f64::from(v).powi(2), n + 1));
    (sum / n as f64).sqrt()
}

pub fn differences<'a>(a: &'a [f32], b: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a - b)
}

/// The largest absolute difference; NaN if there is one.
pub fn max_abs(a: &[f32], b: &[f32]) -> f32 {
    differences(a, b).fold(0.0, |max, d| if d.abs() <= max { max } else { d.abs() })
}
