//! One sequence at a time through an executor: prompt in chunks, then token by token.

use std::time::{Duration, Instant};

use anyhow::bail;
use tessera_model::batch::sliding_blocks;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Config, Executor, Limits, Row, Sampling, Token, Trace};

use crate::executor::StepTokens;
use crate::interrupt;

/// Prompt tokens that one step reads: enough to use every expert's rows well, few enough that Ctrl-C is heard soon.
pub const PROMPT_CHUNK: StepTokens = StepTokens { cpu: 512, gpu: 8192 };

/// An executor and what its cache holds.
pub struct Session<'a> {
    executor: Box<dyn Executor + 'a>,
    limits: Limits,
    sliding_window: usize,
    /// Positions that the cache has room for.
    context: usize,
    model_max: usize,
    /// The tokens whose keys and values are in the cache, from position 0 on.
    cached: Vec<Token>,
    trace: Option<&'a mut dyn Trace>,
}

/// The logits `[vocab]` that a token was chosen from, while the next one is not: read only by those who ask.
pub struct Logits<'a>(&'a dyn Executor);

impl Logits<'_> {
    pub fn read(&self) -> anyhow::Result<Vec<f32>> {
        Ok(self.0.logits()?)
    }
}

/// Whether to go on after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Stop,
}

/// Why no more tokens came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The receiver of the tokens had enough: a stop token or a stop string.
    Stop,
    /// The limit on new tokens, or the end of the context.
    Length,
    /// Ctrl-C.
    Interrupted,
}

/// How long the parts of an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Prompt tokens that were computed; those already in the cache do not count.
    pub prompt_tokens: usize,
    pub prompt: Duration,
    /// Steps after the first token.
    pub decode_tokens: usize,
    pub decode: Duration,
}

/// What the sliding layers' ring keeps beyond the window, for [`Session::generate`] to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback(pub usize);

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Sizes for one sequence of `context` positions, read in steps of at most `chunk` tokens, that can be cut back by
/// `rollback` tokens.
pub fn limits(config: &Config, context: usize, chunk: usize, rollback: Rollback) -> Limits {
    let chunk = chunk.min(context);
    let limits = Limits::for_sequences(config, 1, context, chunk);
    let ring = sliding_blocks(config.sliding_window, chunk + rollback.0).min(limits.full_blocks);
    Limits { sliding_blocks: ring, ..limits }
}

impl<'a> Session<'a> {
    /// `executor` was made with `limits`, which came from [`limits`].
    pub fn new(executor: Box<dyn Executor + 'a>, config: &Config, limits: Limits, context: usize) -> Self {
        Self {
            executor,
            limits,
            sliding_window: config.sliding_window,
            context,
            model_max: config.max_position_embeddings,
            cached: Vec::new(),
            trace: None,
        }
    }

    /// Shows the values of every step to `trace`.
    pub fn traced(self, trace: &'a mut dyn Trace) -> Self {
        Self { trace: Some(trace), ..self }
    }

    /// Whether a prompt can be answered.
    pub fn check(&self, prompt: &[Token]) -> anyhow::Result<()> {
        check_prompt(prompt, self.context, self.model_max)
    }

    /// Reads `prompt` and hands each new token to `receive`, at most `max_tokens`, until that or the user says stop. What it was
    /// chosen from comes with it. Of a prompt that begins like the last one, only the rest is computed.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room in the context, or a step fails.
    pub fn generate(
        &mut self,
        prompt: &[Token],
        max_tokens: usize,
        sampling: Sampling,
        mut receive: impl FnMut(Token, Logits) -> anyhow::Result<Flow>,
    ) -> anyhow::Result<(Finish, Timings)> {
        self.check(prompt)?;
        let mut timings = Timings::default();
        self.cached.truncate(self.reusable(prompt));
        timings.prompt_tokens = prompt.len() - self.cached.len();
        let started = Instant::now();
        let Some(mut token) = self.read_prompt(prompt, sampling)? else {
            return Ok((Finish::Interrupted, timings));
        };
        timings.prompt = started.elapsed();
        let started = Instant::now();
        let mut generated = 0;
        let finish = loop {
            generated += 1;
            if receive(token, Logits(self.executor.as_ref()))? == Flow::Stop {
                break Finish::Stop;
            }
            if interrupt::stopped() {
                break Finish::Interrupted;
            }
            if generated >= max_tokens || self.cached.len() == self.context {
                break Finish::Length;
            }
            token = self.step(&[token], Some(sampling))?.expect("a row that samples gives a token");
            timings.decode_tokens += 1;
        };
        timings.decode = started.elapsed();
        Ok((finish, timings))
    }

    /// Logits of the last `n` positions of `tokens`, `[n, vocab]`, handed over in parts of whole positions.
    pub fn logits(
        &mut self,
        tokens: &[Token],
        n: usize,
        mut receive: impl FnMut(&[f32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.cached.clear();
        let first = tokens.len() - n;
        for chunk in tokens.chunks(self.executor.max_step_tokens()) {
            if interrupt::stopped() {
                bail!(interrupt::Interrupted);
            }
            let n_logits = (self.cached.len() + chunk.len()).saturating_sub(first).min(chunk.len());
            self.run(chunk, n_logits, None)?;
            if n_logits > 0 {
                receive(&self.executor.logits()?)?;
            }
        }
        Ok(())
    }

    /// The token after the prompt, or `None` if the user stopped before it was there.
    fn read_prompt(&mut self, prompt: &[Token], sampling: Sampling) -> anyhow::Result<Option<Token>> {
        let mut token = None;
        while token.is_none() {
            if interrupt::stopped() {
                return Ok(None);
            }
            let rest = &prompt[self.cached.len()..];
            let n = rest.len().min(self.executor.max_step_tokens());
            token = self.step(&rest[..n], (n == rest.len()).then_some(sampling))?;
        }
        Ok(token)
    }

    fn step(&mut self, tokens: &[Token], sampling: Option<Sampling>) -> anyhow::Result<Option<Token>> {
        let n_logits = usize::from(sampling.is_some());
        Ok(self.run(tokens, n_logits, sampling)?.first().copied())
    }

    fn run(&mut self, tokens: &[Token], n_logits: usize, sampling: Option<Sampling>) -> anyhow::Result<Vec<Token>> {
        let start = self.cached.len();
        let block_tables = BlockTables::sole(start + tokens.len(), self.limits.sliding_blocks);
        let row = Row { n_tokens: tokens.len(), start, block_tables, n_logits, sampling };
        let batch = Batch { tokens: tokens.to_vec(), rows: vec![row] };
        let sampled = match self.trace.as_deref_mut() {
            Some(trace) => self.executor.step_traced(&batch, trace),
            None => self.executor.step(&batch),
        };
        match sampled {
            Ok(sampled) => {
                self.cached.extend_from_slice(tokens);
                Ok(sampled)
            }
            Err(error) => {
                self.cached.clear(); // the step may have written some of its keys
                Err(error.into())
            }
        }
    }

    /// How many of the cached tokens `prompt` can build on: the common beginning, but not all of the prompt, and only if
    /// the sliding layers' ring still holds the window before the first token that is new.
    fn reusable(&self, prompt: &[Token]) -> usize {
        let common = prompt.iter().zip(&self.cached).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len() - 1);
        let first_needed = (common + 1).saturating_sub(self.sliding_window) / BLOCK_SIZE;
        let last_written = self.cached.len().saturating_sub(1) / BLOCK_SIZE;
        if last_written < first_needed + self.limits.sliding_blocks { common } else { 0 }
    }
}

/// Whether a prompt can be answered at all, in a context of a model that has `model_max` at most.
pub fn check_prompt(prompt: &[Token], context: usize, model_max: usize) -> anyhow::Result<()> {
    if prompt.is_empty() {
        bail!("the prompt is empty: nothing to continue");
    }
    let len = prompt.len();
    if len > model_max {
        bail!("the prompt has {len} tokens, more than the model's own limit of {model_max}; shorten it");
    }
    if len > context {
        bail!(
            "the prompt has {len} tokens, more than the context of {context}; shorten it, or raise --context up to the \
             model's own limit of {model_max}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
