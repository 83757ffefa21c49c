//! Which backend runs a checkpoint; everything after this sees only [`Executor`].

use clap::ValueEnum;
use tessera_cpu::{CpuExecutor, CpuOptions, OracleExecutor};
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{BLOCK_SIZE, Config, Executor, Limits};

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

/// What the keys and values of `limits` take when all of them are used.
pub fn cache_bytes(config: &Config, precision: Precision, limits: Limits) -> u64 {
    let element: u64 = match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let blocks: u64 = config.layer_types.iter().map(|&kind| limits.blocks(kind) as u64).sum();
    blocks.saturating_mul(2 * (BLOCK_SIZE * config.kv_dim()) as u64 * element)
}
