//! Schedules on an executor with a cache and without a model: its next token is a hash of all that the cache has where
//! a row's tables point, so that one wrong position makes another answer.

use std::hash::{DefaultHasher, Hash, Hasher};

use tessera_model::synth::Like;
use tessera_model::{LayerType, StepError, Trace};

use super::*;

const VOCAB: u64 = 500;
const STOP: Token = 7;

struct Fake {
    config: Config,
    limits: Limits,
    full: Vec<Token>,    // [blocks * BLOCK_SIZE]
    sliding: Vec<Token>, // [blocks * BLOCK_SIZE]
}

impl Fake {
    fn new(config: &Config, limits: Limits) -> Self {
        let pool = |blocks: usize| vec![0; blocks * BLOCK_SIZE];
        let (full, sliding) = (pool(limits.full_blocks), pool(limits.sliding_blocks));
        Self { config: config.clone(), limits, full, sliding }
    }
}

fn slot(table: &[u32], position: usize) -> usize {
    table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE
}

fn next(before: &[Token]) -> Token {
    let mut hasher = DefaultHasher::new();
    before.hash(&mut hasher);
    (hasher.finish() % VOCAB) as Token
}

impl Executor for Fake {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.limits.blocks(kind)
    }

    fn max_step_tokens(&self) -> usize {
        self.limits.max_step_tokens
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        batch.check(&self.config, |kind| self.limits.blocks(kind), self.limits.max_step_tokens)?;
        for (range, row) in batch.rows_with_ranges() {
            for (i, &token) in batch.tokens[range].iter().enumerate() {
                self.full[slot(&row.block_tables.full, row.start + i)] = token;
                self.sliding[slot(&row.block_tables.sliding, row.start + i)] = token;
            }
        }
        let mut sampled = Vec::new();
        for row in &batch.rows {
            let seen: Vec<Token> = (0..row.end()).map(|at| self.full[slot(&row.block_tables.full, at)]).collect();
            let window = (row.start + 1).saturating_sub(self.config.sliding_window)..row.end();
            let in_ring: Vec<Token> =
                window.clone().map(|at| self.sliding[slot(&row.block_tables.sliding, at)]).collect();
            assert_eq!(in_ring, seen[window], "the row from {} on", row.start);
            sampled.extend(row.sampling.map(|_| next(&seen)));
        }
        Ok(sampled)
    }

    fn step_traced(&mut self, batch: &Batch, _: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        self.step(batch)
    }

    fn logits(&self) -> Result<Vec<f32>, StepError> {
        Err(StepError::NoStep)
    }
}

/// The answer, from the prompt alone.
fn answer(prompt: &Prompt) -> Vec<Token> {
    let mut tokens = prompt.tokens.clone();
    while tokens.last() != Some(&STOP) && tokens.len() < prompt.tokens.len() + prompt.max_new {
        tokens.push(next(&tokens));
    }
    tokens.split_off(prompt.tokens.len())
}

#[test]
fn sequences_keep_their_own_caches_however_many_run() {
    let config = Like::Tiny.config();
    let length = |n: usize| 1 + n * n * 37 % 2400; // the ring holds 544
    let prompt = |n: usize| Prompt {
        tokens: (0..length(n)).map(|i| (n * 131 + i * i) as Token % 500 + 8).collect(),
        max_new: 1 + n * 29 % 90,
    };
    let prompts: Vec<Prompt> = (0..100).map(prompt).collect();
    let context = prompts.iter().map(|prompt| prompt.tokens.len() + prompt.max_new).max().unwrap();
    for sequences in [1, 2, 3, 7, 50, 128] {
        let room = Room::new(&config, sequences, context, 512);
        let mut answers = vec![None; prompts.len()];
        let outcome = greedy(&mut Fake::new(&config, room.limits()), room, &prompts, &[STOP], |n, tokens| {
            assert!(answers[n].replace(tokens.to_vec()).is_none(), "prompt {n} is answered twice");
            Ok(())
        });
        assert_eq!(outcome.unwrap(), Outcome::Complete);
        for (n, (found, prompt)) in answers.into_iter().zip(&prompts).enumerate() {
            assert_eq!(found, Some(answer(prompt)), "prompt {n} of {sequences} together");
        }
    }
}
