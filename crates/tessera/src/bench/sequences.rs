//! Sequences side by side through an executor, for a stopwatch: all of one length, of tokens that mean nothing.

use std::ops::Range;
use std::time::Instant;

use anyhow::ensure;
use tessera_model::batch::sliding_blocks;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Config, Executor, Limits, Row, Sampling, Token};

use super::cost::Step;

/// Tokens of a row while contexts are filled that nobody measures: it bounds the sliding layers' rings.
const FILL_TOKENS: usize = 512;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Prompts of one sequence, and what stands before them.
    pub prompts: Vec<usize>,
    pub prompt_depth: usize,
    /// Numbers of tokens to decode, by each of so many sequences, and what stands before.
    pub decodes: Vec<usize>,
    pub batches: Vec<usize>,
    pub decode_depth: usize,
    pub repetitions: usize,
}

/// Room for `rows` sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    rows: usize,
    /// Blocks of one sequence in the full layers' pool, and in the sliding layers'.
    full: usize,
    ring: usize,
}

/// Sequences on an executor that was made with [`Plan::limits`].
pub struct Sequences<'e> {
    executor: &'e mut dyn Executor,
    config: &'e Config,
    plan: &'e Plan,
}

/// Tokens per second of each repetition.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates(pub Vec<f64>);

impl Plan {
    /// Refuses what the model has no positions for.
    pub fn check(&self, config: &Config) -> anyhow::Result<()> {
        let longest =
            |depth: usize, lengths: &[usize]| depth.saturating_add(lengths.iter().copied().max().unwrap_or(0));
        let end = longest(self.prompt_depth, &self.prompts).max(longest(self.decode_depth, &self.decodes));
        ensure!(
            end <= config.max_position_embeddings,
            "the longest test ends at position {end}, beyond the model's context of {}; lower --depth, -p or -n",
            config.max_position_embeddings
        );
        Ok(())
    }

    /// What all tests need, in steps of at most `step_tokens`.
    pub fn limits(&self, config: &Config, step_tokens: usize) -> Limits {
        let prompts = self.prompts.iter().map(|&n| self.prompt_room(config, n, step_tokens));
        let decodes = self
            .decodes
            .iter()
            .flat_map(|&n| self.batches.iter().map(move |&rows| self.decode_room(config, rows, n, step_tokens)));
        let rooms: Vec<Room> = prompts.chain(decodes).collect();
        let most = |blocks: fn(&Room) -> usize| rooms.iter().map(blocks).max().unwrap_or(1);
        Limits {
            full_blocks: most(|room| room.rows * room.full),
            sliding_blocks: most(|room| room.rows * room.ring),
            max_step_tokens: step_tokens,
        }
    }

    /// The first step in which `rows` sequences decode, of `n`.
    pub fn decode_batch(&self, config: &Config, rows: usize, n: usize, step_tokens: usize) -> Batch {
        let room = self.decode_room(config, rows, n, step_tokens);
        batch(room, 0..rows, Step::decode(rows, self.decode_depth), config.vocab_size)
    }

    fn prompt_room(&self, config: &Config, n: usize, step_tokens: usize) -> Room {
        Room::new(config, 1, self.prompt_depth + n, step_tokens)
    }

    fn decode_room(&self, config: &Config, rows: usize, n: usize, step_tokens: usize) -> Room {
        Room::new(config, rows, self.decode_depth + n, step_tokens.min(FILL_TOKENS))
    }

    /// The steps of a prompt of `n` tokens.
    pub fn prompt_steps(&self, n: usize, step_tokens: usize) -> impl Iterator<Item = Step> + use<> {
        let depth = self.prompt_depth;
        (0..n).step_by(step_tokens).map(move |at| {
            let tokens = step_tokens.min(n - at);
            Step { rows: 1, start: depth + at, tokens, logits: usize::from(at + tokens == n) }
        })
    }

    /// The steps in which `rows` sequences decode `n` tokens.
    pub fn decode_steps(&self, rows: usize, n: usize) -> impl Iterator<Item = Step> + use<> {
        let depth = self.decode_depth;
        (0..n).map(move |at| Step::decode(rows, depth + at))
    }
}

impl Room {
    fn new(config: &Config, rows: usize, context: usize, row_tokens: usize) -> Self {
        let full = context.div_ceil(BLOCK_SIZE).max(1);
        let ring = sliding_blocks(config.sliding_window, row_tokens.min(context)).min(full);
        Self { rows, full, ring }
    }

    /// The tables of sequence `n`, whole.
    fn tables(self, n: usize) -> BlockTables {
        let ids = 0..self.full;
        BlockTables {
            full: ids.clone().map(|i| (n * self.full + i) as u32).collect(),
            sliding: ids.map(|i| (n * self.ring + i % self.ring) as u32).collect(),
        }
    }
}

impl<'e> Sequences<'e> {
    pub fn new(executor: &'e mut dyn Executor, config: &'e Config, plan: &'e Plan) -> Self {
        Self { executor, config, plan }
    }

    /// Reads prompts of `n` tokens.
    pub fn prefill(&mut self, n: usize) -> anyhow::Result<Rates> {
        let step_tokens = self.executor.max_step_tokens();
        let vocab = self.config.vocab_size;
        let room = self.plan.prompt_room(self.config, n, step_tokens);
        self.fill(room, self.plan.prompt_depth, step_tokens)?;
        let steps: Vec<Batch> =
            self.plan.prompt_steps(n, step_tokens).map(|step| batch(room, 0..1, step, vocab)).collect();
        self.measure(n, |executor| steps.iter().try_for_each(|batch| Ok(executor.step(batch).map(drop)?)))
    }

    /// Lets each of `rows` sequences decode `n` tokens.
    pub fn decode(&mut self, rows: usize, n: usize) -> anyhow::Result<Rates> {
        let step_tokens = self.executor.max_step_tokens();
        let room = self.plan.decode_room(self.config, rows, n, step_tokens);
        self.fill(room, self.plan.decode_depth, step_tokens.min(FILL_TOKENS))?;
        let (depth, vocab) = (self.plan.decode_depth, self.config.vocab_size);
        let mut batch = self.plan.decode_batch(self.config, rows, n, step_tokens);
        self.measure(rows * n, |executor| {
            for position in depth..depth + n {
                for (i, row) in batch.rows.iter_mut().enumerate() {
                    row.start = position;
                    batch.tokens[i] = token(i, position, vocab);
                }
                executor.step(&batch)?;
            }
            Ok(())
        })
    }

    fn measure(
        &mut self,
        n_tokens: usize,
        mut work: impl FnMut(&mut dyn Executor) -> anyhow::Result<()>,
    ) -> anyhow::Result<Rates> {
        work(self.executor)?; // warms up
        let rate = |_| {
            let start = Instant::now();
            work(self.executor)?;
            Ok(n_tokens as f64 / start.elapsed().as_secs_f64())
        };
        (0..self.plan.repetitions).map(rate).collect::<anyhow::Result<_>>().map(Rates)
    }

    /// Reads the first `depth` tokens of every sequence, in rows of at most `row_tokens`.
    fn fill(&mut self, room: Room, depth: usize, row_tokens: usize) -> anyhow::Result<()> {
        let rows = (self.executor.max_step_tokens() / row_tokens).max(1);
        for start in (0..depth).step_by(row_tokens) {
            let tokens = row_tokens.min(depth - start);
            for first in (0..room.rows).step_by(rows) {
                let n = rows.min(room.rows - first);
                let step = Step { rows: n, start, tokens, logits: 0 };
                self.executor.step(&batch(room, first..first + n, step, self.config.vocab_size))?;
            }
        }
        Ok(())
    }
}

/// A step of some of the sequences. Where it has logits, each row samples from those of its last token.
fn batch(room: Room, sequences: Range<usize>, step: Step, vocab: usize) -> Batch {
    let Step { start, tokens, logits, .. } = step;
    let row = |n: usize| Row {
        n_tokens: tokens,
        start,
        block_tables: room.tables(n),
        n_logits: usize::from(logits > 0),
        sampling: (logits > 0).then_some(Sampling::GREEDY),
    };
    let of_sequence = |n: usize| (start..start + tokens).map(move |position| token(n, position, vocab));
    Batch { tokens: sequences.clone().flat_map(of_sequence).collect(), rows: sequences.map(row).collect() }
}

/// No two of a step's sequences read the same.
fn token(sequence: usize, position: usize, vocab: usize) -> Token {
    ((position * 7919 + sequence * 104_729 + 13) % vocab) as Token
}

impl Rates {
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Of one repetition.
    pub fn deviation(&self) -> f64 {
        let mean = self.mean();
        let variance = self.0.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (self.0.len().max(2) - 1) as f64;
        variance.sqrt()
    }
}

#[cfg(test)]
mod tests;
