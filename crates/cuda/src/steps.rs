//! What stands between the large products of a forward pass: embedding, norms, the router, the experts' weighted sum.
//!
//! A token's values do not depend on the step around it. Fused steps give the same bits as their parts. All queue work and do
//! not wait; without tokens they do nothing.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use crate::dense::DenseWeights;
use crate::device::{Address, Buffer, Device};
use crate::error::DeviceError;
use crate::kernels::combine::{CombineAddArgs, CombineKernels, CombineNormArgs};
use crate::kernels::embed::{EmbedArgs, EmbedKernel};
use crate::kernels::norm::{NormArgs, NormKernel, NormTargets};
use crate::kernels::router::{NormRouterArgs, RouterArgs, RouterKernels};
use crate::launch::Stream;
use crate::moe::grouped::panels_len;
use crate::moe::{MAX_EXPERTS, MAX_WIDTH, MoeWorkspace};

/// Of the hidden size.
const BLOCK: usize = 32;
/// With more tokens, norming them once for all strips of experts is faster than a launch less.
const MAX_FUSED_TOKENS: usize = 128;

/// Why a step cannot be loaded or run.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum StepsError {
    #[error("{what} is {found}: expected {expected}")]
    Size { what: &'static str, expected: String, found: usize },
    #[error("{what}: expected {expected} elements, found {found}")]
    Length { what: &'static str, expected: usize, found: usize },
    #[error("the buffer of {what} is too short: expected {expected} elements at least, found {found}")]
    TooShort { what: &'static str, expected: usize, found: usize },
    #[error("the hidden size of the {what} is {found}: expected the model's, {expected}")]
    Hidden { what: &'static str, expected: usize, found: usize },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Where a norm's bf16 rows go.
pub enum NormOut<'a> {
    /// The operand of a dense product: `[panels, groups of 8 rows, 8, 64]`, 16-byte piece c of a group's row r at `c ^ r`.
    /// The columns that fill the last panel are 0; rows that fill the last group are not written.
    Panels(&'a mut Buffer<bf16>),
    /// `[rows, hidden]`
    Rows(&'a mut Buffer<bf16>),
    Both {
        panels: &'a mut Buffer<bf16>,
        rows: &'a mut Buffer<bf16>,
    },
}

/// The kernels for one hidden size.
pub struct Steps {
    hidden: usize,
    eps: f32,
    embed: EmbedKernel,
    norm: NormKernel,
    router: RouterKernels,
    combine: CombineKernels,
}

impl Steps {
    pub fn load(device: &Device, hidden: usize, rms_norm_eps: f32) -> Result<Self, StepsError> {
        hidden_size(hidden)?;
        Ok(Self {
            hidden,
            eps: rms_norm_eps,
            embed: EmbedKernel::load(device)?,
            norm: NormKernel::load(device)?,
            router: RouterKernels::load(device)?,
            combine: CombineKernels::load(device)?,
        })
    }

    /// Rows of `table` `[vocab, hidden]` by `tokens`, `n_tokens` of `u32`, to `residual` `[n_tokens, hidden]`. A token beyond
    /// the vocabulary is nobody's, and gets NaN.
    pub fn embed(
        &self,
        stream: &Stream,
        tokens: Address,
        n_tokens: usize,
        table: &Buffer<bf16>,
        residual: &mut Buffer<f32>,
    ) -> Result<(), StepsError> {
        long_enough("residual", residual, n_tokens * self.hidden)?;
        if n_tokens == 0 {
            return Ok(());
        }
        let args = EmbedArgs {
            tokens,
            table: table.address(),
            residual: residual.address(),
            vocab: (table.len() / self.hidden) as u32,
            hidden: self.hidden as u32,
        };
        Ok(self.embed.launch(stream, n_tokens as u32, &args)?)
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` of `residual` `[n_tokens, hidden]`; `weight` `[hidden]`.
    pub fn rms_norm(
        &self,
        stream: &Stream,
        residual: &Buffer<f32>,
        weight: &Buffer<f32>,
        n_tokens: usize,
        out: NormOut,
    ) -> Result<(), StepsError> {
        long_enough("residual", residual, n_tokens * self.hidden)?;
        self.norm_rows(stream, residual, weight, Address::zeroed(), n_tokens, out)
    }

    /// The same of some tokens: `tokens`, `n_rows` of `u32`, are the rows of `residual` `[tokens, hidden]`, which must exist.
    pub fn rms_norm_of(
        &self,
        stream: &Stream,
        residual: &Buffer<f32>,
        weight: &Buffer<f32>,
        tokens: Address,
        n_rows: usize,
        out: NormOut,
    ) -> Result<(), StepsError> {
        self.norm_rows(stream, residual, weight, tokens, n_rows, out)
    }

    fn norm_rows(
        &self,
        stream: &Stream,
        residual: &Buffer<f32>,
        weight: &Buffer<f32>,
        tokens: Address,
        n_rows: usize,
        out: NormOut,
    ) -> Result<(), StepsError> {
        exact("norm's weight", weight.len(), self.hidden)?;
        let out = self.targets(n_rows, &out)?;
        if n_rows == 0 {
            return Ok(());
        }
        let args = NormArgs {
            residual: residual.address(),
            weight: weight.address(),
            tokens,
            out,
            n_rows: n_rows as u32,
            hidden: self.hidden as u32,
            eps: self.eps,
            padding: 0,
        };
        Ok(self.norm.launch(stream, &args)?)
    }

    /// `logits` `[n_tokens, experts]` of `x` `[n_tokens, hidden]`.
    pub fn router(
        &self,
        stream: &Stream,
        weights: &DenseWeights,
        x: &Buffer<bf16>,
        n_tokens: usize,
        logits: &mut Buffer<f32>,
    ) -> Result<(), StepsError> {
        let args = self.router_args(weights, x, n_tokens, logits)?;
        if n_tokens == 0 {
            return Ok(());
        }
        Ok(self.router.router(stream, &args)?)
    }

    /// [`Steps::rms_norm`] to `x` `[n_tokens, hidden]`, then [`Steps::router`]; of few tokens in one launch.
    pub fn norm_router(
        &self,
        stream: &Stream,
        residual: &Buffer<f32>,
        norm_weight: &Buffer<f32>,
        weights: &DenseWeights,
        n_tokens: usize,
        x: &mut Buffer<bf16>,
        logits: &mut Buffer<f32>,
    ) -> Result<(), StepsError> {
        if n_tokens > MAX_FUSED_TOKENS {
            self.rms_norm(stream, residual, norm_weight, n_tokens, NormOut::Rows(x))?;
            return self.router(stream, weights, x, n_tokens, logits);
        }
        long_enough("residual", residual, n_tokens * self.hidden)?;
        exact("norm's weight", norm_weight.len(), self.hidden)?;
        let router = self.router_args(weights, x, n_tokens, logits)?;
        if n_tokens == 0 {
            return Ok(());
        }
        let args = NormRouterArgs {
            router,
            residual: residual.address(),
            norm_weight: norm_weight.address(),
            eps: self.eps,
            block_tokens: 0,
        };
        Ok(self.router.norm_router(stream, &args)?)
    }

    /// Adds to `residual` `[tokens, hidden]` each token's weighted sum of the experts' outputs, in the order of their ranks.
    pub fn combine_add(
        &self,
        stream: &Stream,
        workspace: &MoeWorkspace,
        residual: &mut Buffer<f32>,
    ) -> Result<(), StepsError> {
        let args = self.combine_args(workspace, residual)?;
        if workspace.n_tokens == 0 {
            return Ok(());
        }
        Ok(self.combine.add(stream, workspace.n_tokens as u32, &args)?)
    }

    /// [`Steps::combine_add`], then [`Steps::rms_norm`], in one launch.
    pub fn combine_norm(
        &self,
        stream: &Stream,
        workspace: &MoeWorkspace,
        residual: &mut Buffer<f32>,
        norm_weight: &Buffer<f32>,
        out: NormOut,
    ) -> Result<(), StepsError> {
        let add = self.combine_args(workspace, residual)?;
        exact("norm's weight", norm_weight.len(), self.hidden)?;
        let out = self.targets(workspace.n_tokens, &out)?;
        if workspace.n_tokens == 0 {
            return Ok(());
        }
        let tokens = workspace.n_tokens as u32;
        let args = CombineNormArgs { add, norm_weight: norm_weight.address(), out, tokens, eps: self.eps };
        Ok(self.combine.norm(stream, &args)?)
    }

    fn router_args(
        &self,
        weights: &DenseWeights,
        x: &Buffer<bf16>,
        n_tokens: usize,
        logits: &Buffer<f32>,
    ) -> Result<RouterArgs, StepsError> {
        self.is_hidden("router", weights.shape.cols)?;
        within("number of experts", weights.shape.rows, MAX_EXPERTS)?;
        long_enough("normed rows", x, n_tokens * self.hidden)?;
        long_enough("router's logits", logits, n_tokens * weights.shape.rows)?;
        Ok(RouterArgs {
            records: weights.records.address(),
            bias: weights.bias.address(),
            x: x.address(),
            logits: logits.address(),
            tokens: n_tokens as u32,
            hidden: self.hidden as u32,
            experts: weights.shape.rows as u32,
            padding: 0,
        })
    }

    fn combine_args(&self, workspace: &MoeWorkspace, residual: &Buffer<f32>) -> Result<CombineAddArgs, StepsError> {
        self.is_hidden("experts", workspace.shape.hidden)?;
        long_enough("residual", residual, workspace.n_tokens * self.hidden)?;
        Ok(CombineAddArgs {
            y: workspace.y.address(),
            positions: workspace.positions.address(),
            weights: workspace.weights.address(),
            residual: residual.address(),
            hidden: self.hidden as u32,
            top_k: workspace.shape.top_k as u32,
        })
    }

    /// Addresses of buffers that have room for `n_rows` rows.
    fn targets(&self, n_rows: usize, out: &NormOut) -> Result<NormTargets, StepsError> {
        let to_panels = |buffer: &Buffer<bf16>| {
            long_enough("normed panels", buffer, panels_len(n_rows, self.hidden)).map(|()| buffer.address())
        };
        let to_rows =
            |buffer: &Buffer<bf16>| long_enough("normed rows", buffer, n_rows * self.hidden).map(|()| buffer.address());
        let null = Address::zeroed();
        Ok(match out {
            NormOut::Panels(panels) => NormTargets { panels: to_panels(panels)?, rows: null },
            NormOut::Rows(rows) => NormTargets { panels: null, rows: to_rows(rows)? },
            NormOut::Both { panels, rows } => NormTargets { panels: to_panels(panels)?, rows: to_rows(rows)? },
        })
    }

    fn is_hidden(&self, what: &'static str, found: usize) -> Result<(), StepsError> {
        match found == self.hidden {
            true => Ok(()),
            false => Err(StepsError::Hidden { what, expected: self.hidden, found }),
        }
    }
}

pub(crate) fn hidden_size(found: usize) -> Result<(), StepsError> {
    match found.is_multiple_of(BLOCK) && (1..=MAX_WIDTH).contains(&found) {
        true => Ok(()),
        false => Err(StepsError::Size {
            what: "hidden_size",
            expected: format!("a multiple of {BLOCK}, at most {MAX_WIDTH}"),
            found,
        }),
    }
}

pub(crate) fn within(what: &'static str, found: usize, most: usize) -> Result<(), StepsError> {
    match (1..=most).contains(&found) {
        true => Ok(()),
        false => Err(StepsError::Size { what, expected: format!("1 to {most}"), found }),
    }
}

pub(crate) fn exact(what: &'static str, found: usize, expected: usize) -> Result<(), StepsError> {
    match found == expected {
        true => Ok(()),
        false => Err(StepsError::Length { what, expected, found }),
    }
}

pub(crate) fn long_enough<T: Pod>(what: &'static str, buffer: &Buffer<T>, expected: usize) -> Result<(), StepsError> {
    match buffer.len() >= expected {
        true => Ok(()),
        false => Err(StepsError::TooShort { what, expected, found: buffer.len() }),
    }
}
