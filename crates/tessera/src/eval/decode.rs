//! Many sequences at once, greedily: as soon as one is done, the next takes its place.

use tessera_model::batch::sliding_blocks;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Config, Executor, Limits, Row, Sampling, Token};

use crate::interrupt;

/// Room for a number of sequences of a context each.
#[derive(Clone, Copy)]
pub struct Room {
    pub sequences: usize,
    pub context: usize,
    /// Different blocks of the sliding layers' pool that a sequence goes round in.
    ring: usize,
    step_tokens: usize,
}

/// What a sequence is asked to go on from.
pub struct Prompt {
    pub tokens: Vec<Token>,
    pub max_new: usize,
}

/// Why no more answers come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    Interrupted,
}

struct Slot {
    /// Which prompt.
    index: usize,
    /// Prompt and what came after.
    tokens: Vec<Token>,
    prompt_len: usize,
    cached: usize,
}

impl Room {
    /// For steps of `step_tokens` tokens, or more if there are more sequences.
    pub fn new(config: &Config, sequences: usize, context: usize, step_tokens: usize) -> Self {
        let step_tokens = step_tokens.max(sequences);
        let ring = sliding_blocks(config.sliding_window, step_tokens.min(context)).min(context.div_ceil(BLOCK_SIZE));
        Self { sequences, context, ring, step_tokens }
    }

    pub fn limits(&self) -> Limits {
        Limits {
            full_blocks: self.sequences * self.context.div_ceil(BLOCK_SIZE),
            sliding_blocks: self.sequences * self.ring,
            max_step_tokens: self.step_tokens,
        }
    }

    /// The tables of the sequence in `slot`, up to position `end`.
    fn tables(&self, slot: usize, end: usize) -> BlockTables {
        let n = end.div_ceil(BLOCK_SIZE);
        let full = slot * self.context.div_ceil(BLOCK_SIZE);
        BlockTables {
            full: (full..full + n).map(|id| id as u32).collect(),
            sliding: (0..n).map(|i| (slot * self.ring + i % self.ring) as u32).collect(),
        }
    }
}

/// Generates from every prompt until one of `stop_ids` or its limit; `receive` gets each answer's tokens, stop token
/// included, as soon as it is there, with the prompt's index. On Ctrl-C, answers on the way are dropped.
///
/// # Errors
/// When a step fails, or `receive` does.
pub fn greedy(
    executor: &mut dyn Executor,
    room: Room,
    prompts: &[Prompt],
    stop_ids: &[Token],
    mut receive: impl FnMut(usize, &[Token]) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let mut waiting = prompts.iter().enumerate();
    let mut slots: Vec<Option<Slot>> = (0..room.sequences).map(|_| None).collect();
    loop {
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = waiting.next().map(|(index, prompt)| Slot::new(index, prompt));
        }
        if slots.iter().all(Option::is_none) {
            return Ok(Outcome::Complete);
        }
        if interrupt::stopped() {
            return Ok(Outcome::Interrupted);
        }
        step(executor, room, &mut slots)?;
        for slot in &mut slots {
            let Some(s) = slot else { continue };
            let answer = &s.tokens[s.prompt_len..];
            let is_done = answer.last().is_some_and(|last| stop_ids.contains(last))
                || answer.len() >= prompts[s.index].max_new
                || s.tokens.len() > room.context;
            if is_done {
                receive(s.index, answer)?;
                *slot = None;
            }
        }
    }
}

/// One step of all sequences: those that have answers on the way first, then as much of prompts as there is room for.
fn step(executor: &mut dyn Executor, room: Room, slots: &mut [Option<Slot>]) -> anyhow::Result<()> {
    let mut left = executor.max_step_tokens();
    let mut batch = Batch::default();
    let mut taken: Vec<(usize, usize)> = Vec::new();
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&n| slots[n].as_ref().map_or(0, Slot::waiting));
    for n in order {
        let Some(s) = &slots[n] else { continue };
        let n_tokens = s.waiting().min(left);
        if n_tokens == 0 {
            break;
        }
        left -= n_tokens;
        let end = s.cached + n_tokens;
        let samples = end == s.tokens.len();
        batch.tokens.extend_from_slice(&s.tokens[s.cached..end]);
        batch.rows.push(Row {
            n_tokens,
            start: s.cached,
            block_tables: room.tables(n, end),
            n_logits: usize::from(samples),
            sampling: samples.then_some(Sampling::GREEDY),
        });
        taken.push((n, end));
    }
    let mut sampled = executor.step(&batch)?.into_iter();
    for (n, end) in taken {
        let slot = slots[n].as_mut().expect("only full slots are taken");
        slot.cached = end;
        if end == slot.tokens.len() {
            slot.tokens.extend(sampled.next());
        }
    }
    Ok(())
}

impl Slot {
    fn new(index: usize, prompt: &Prompt) -> Self {
        Self { index, tokens: prompt.tokens.clone(), prompt_len: prompt.tokens.len(), cached: 0 }
    }

    /// Tokens that are not in the cache yet.
    fn waiting(&self) -> usize {
        self.tokens.len() - self.cached
    }
}

#[cfg(test)]
mod tests;
