//! Which backend runs a checkpoint; everything after this sees only [`Executor`].

use clap::ValueEnum;
use tessera_cpu::{CpuExecutor, CpuOptions, OracleExecutor};
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Executor, Limits};

/// How exactly to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// Every activation in float32, plain loops: the reference, slow
    F32,
    /// Weights in place, operands of 16 bits or more, float32 sums: fast
    Bf16,
}

/// A backend for `checkpoint`, on `threads` threads or all cores.
pub fn open<'a>(
    checkpoint: &'a Checkpoint,
    precision: Precision,
    limits: Limits,
    threads: Option<usize>,
) -> Box<dyn Executor + 'a> {
    let (config, weights) = (checkpoint.config(), checkpoint.weights());
    let mut options = CpuOptions::default();
    options.threads = threads.unwrap_or(options.threads);
    match precision {
        Precision::F32 => Box::new(OracleExecutor::new(config, weights, limits, options.threads)),
        Precision::Bf16 => Box::new(CpuExecutor::new(config, weights, limits, options)),
    }
}
