//! Tokens from logits, on the GPU, as [`tessera_model::sampling`] defines them.

use bytemuck::{Pod, Zeroable};
use tessera_model::Sampling;

use crate::device::{Address, Buffer, Device};
use crate::kernels::sample::{self, SampleArgs, SampleKernel};
use crate::launch::Stream;
use crate::steps::{StepsError, long_enough, within};

/// The largest vocabulary that is sampled from.
pub const MAX_VOCAB: usize = sample::MAX_VOCAB as usize;

/// How a row chooses its token, as the kernel reads it (`RowSampling` of `sample.cu`).
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowSampling {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    /// Row of the logits. One that does not exist is nobody's: its result is not written.
    pub logit: u32,
    pub seed: u64,
    /// Of the token that is chosen.
    pub position: u64,
}

impl RowSampling {
    /// Fills up a batch.
    pub const NOBODY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, logit: u32::MAX, seed: 0, position: 0 };

    pub fn new(sampling: &Sampling, logit: u32, position: usize) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            // No vocabulary is larger.
            top_k: u32::try_from(sampling.top_k).unwrap_or(u32::MAX),
            logit,
            seed: sampling.seed,
            position: position as u64,
        }
    }
}

/// What a row got (`Sampled` of `sample.cu`).
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sampled {
    /// 0 if a logit was not finite.
    pub token: u32,
    not_finite: u32,
    value: f32,
    padding: u32,
}

impl Sampled {
    /// Index and value of the row's first logit that is not finite; none if all are.
    pub fn not_finite(&self) -> Option<(usize, f32)> {
        (self.not_finite != u32::MAX).then_some((self.not_finite as usize, self.value))
    }
}

/// The kernel for one vocabulary.
pub struct Sampler {
    kernel: SampleKernel,
    vocab: usize,
}

impl Sampler {
    pub fn load(device: &Device, vocab: usize) -> Result<Self, StepsError> {
        within("vocab_size", vocab, MAX_VOCAB)?;
        Ok(Self { kernel: SampleKernel::load(device)?, vocab })
    }

    /// Queues the choice of `n_rows` tokens: of `logits` `[n_logits, vocab]` by the `samplings`, as many [`RowSampling`], to
    /// `out` `[n_rows]`. What a row gets depends on its logits and its sampling alone.
    pub fn sample(
        &self,
        stream: &Stream,
        logits: &Buffer<f32>,
        n_logits: usize,
        samplings: Address,
        n_rows: usize,
        out: &mut Buffer<Sampled>,
    ) -> Result<(), StepsError> {
        long_enough("logits", logits, n_logits * self.vocab)?;
        long_enough("sampled tokens", out, n_rows)?;
        if n_rows == 0 {
            return Ok(());
        }
        let args = SampleArgs {
            logits: logits.address(),
            samplings,
            out: out.address(),
            vocab: self.vocab as u32,
            n_logits: n_logits as u32,
        };
        Ok(self.kernel.launch(stream, n_rows as u32, &args)?)
    }
}
