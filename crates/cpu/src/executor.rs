//! [`CpuExecutor`]: the fast path behind the seam.

use tessera_model::sampling::sample;
use tessera_model::{Batch, Config, Executor, LayerType, Limits, StepError, Token, Trace, Weights};

use crate::forward::Forward;
use crate::simd::Isa;

/// How the CPU is used.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included.
    pub threads: usize,
    pub isa: Isa,
}

impl Default for CpuOptions {
    /// Every core, and the best instruction set that it has.
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, usize::from), isa: Isa::detect() }
    }
}

/// gpt-oss on the CPU: weights used in place, float32 accumulation and residual stream.
pub struct CpuExecutor<'a> {
    config: Config,
    limits: Limits,
    forward: Forward<'a>,
    logits: Option<Vec<f32>>, // [n_logits, vocab]
}

impl<'a> CpuExecutor<'a> {
    pub fn new(config: &Config, weights: Weights<'a>, limits: Limits, options: CpuOptions) -> Self {
        Self { config: config.clone(), limits, forward: Forward::new(config, weights, &limits, options), logits: None }
    }

    fn run(&mut self, batch: &Batch, trace: Option<&mut dyn Trace>) -> Result<Vec<Token>, StepError> {
        batch.check(&self.config, |kind| self.limits.blocks(kind), self.limits.max_step_tokens)?;
        let logits = self.logits.get_or_insert_default();
        self.forward.step(batch, trace, logits);
        let mut next = 0;
        let mut tokens = Vec::new();
        for (row, r) in batch.rows.iter().enumerate() {
            next += r.n_logits;
            if let Some(sampling) = &r.sampling {
                let logits = &logits[(next - 1) * self.config.vocab_size..next * self.config.vocab_size];
                if let Some(index) = logits.iter().position(|l| !l.is_finite()) {
                    return Err(StepError::NotFinite { row, index, value: logits[index] });
                }
                tokens.push(sample(logits, sampling, r.end()));
            }
        }
        Ok(tokens)
    }
}

impl Executor for CpuExecutor<'_> {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.limits.blocks(kind)
    }

    fn max_step_tokens(&self) -> usize {
        self.limits.max_step_tokens
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        self.run(batch, None)
    }

    fn step_traced(&mut self, batch: &Batch, trace: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        self.run(batch, Some(trace))
    }

    fn logits(&self) -> Result<Vec<f32>, StepError> {
        self.logits.clone().ok_or(StepError::NoStep)
    }
}
