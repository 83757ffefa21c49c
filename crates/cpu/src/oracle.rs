//! The oracle.

use tessera_model::{Batch, Config, Executor, LayerType, Limits, StepError, Token, Trace, Weights};

pub struct OracleExecutor<'a> {
    config: Config,
    weights: Weights<'a>,
    limits: Limits,
}

impl<'a> OracleExecutor<'a> {
    pub fn new(config: &Config, weights: Weights<'a>, limits: Limits, _threads: usize) -> Self {
        Self { config: config.clone(), weights, limits }
    }
}

impl Executor for OracleExecutor<'_> {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.limits.blocks(kind)
    }
    fn max_step_tokens(&self) -> usize {
        self.limits.max_step_tokens
    }
    fn step(&mut self, _batch: &Batch) -> Result<Vec<Token>, StepError> {
        let _ = (&self.config, &self.weights);
        Err(StepError::NoStep)
    }
    fn step_traced(&mut self, batch: &Batch, _trace: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        self.step(batch)
    }
    fn logits(&self) -> Result<Vec<f32>, StepError> {
        Err(StepError::NoStep)
    }
}
