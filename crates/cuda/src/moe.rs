//! The experts of a layer: route, gate and up with SwiGLU, down, combine. Four stages, each by itself or all in one call.
//!
//! With `e` the experts of a token and `w` a softmax over their logits:
//! `out = sum over e of w_e (down_e swiglu(gate_up_e x + bias_e) + bias'_e)`, where for gates `g` and ups `u`
//! `swiglu = min(g, limit) sigmoid(alpha min(g, limit)) (clamp(u, -limit, limit) + 1)`.
//!
//! A token's result does not depend on the batch around it, nor on which kernel ran: the bits are the same.

use bytemuck::Zeroable;
use half::bf16;

mod error;
pub(crate) mod grouped;
mod shape;
mod weights;
mod workspace;

pub use error::MoeError;
pub(crate) use shape::Tiles;
pub use shape::{MAX_EXPERTS, MAX_TOKENS, MAX_TOP_K, MAX_WIDTH, MoeShape};
pub use weights::MoeWeights;
pub(crate) use weights::Projection;
pub use workspace::MoeWorkspace;

use crate::device::{Address, Buffer, Device};
use crate::error::DeviceError;
use crate::kernels::moe_gemm::{GemmArgs, GemmKernels, MAX_ROUTED_TOKENS, MoeKernel, RoutedArgs};
use crate::kernels::moe_route::{CombineArgs, RouteArgs, RouteKernels};
use crate::launch::Stream;

/// The kernels of experts of one shape.
pub struct Moe {
    shape: MoeShape,
    swiglu: Swiglu,
    route: RouteKernels,
    gemm: GemmKernels,
}

/// `swiglu_limit` and `swiglu_alpha` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Swiglu {
    pub limit: f32,
    pub alpha: f32,
}

/// Who chooses the matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoeChoice {
    /// [`MoeKernel::auto`]
    Auto,
    Fixed(MoeKernel),
}

impl MoeChoice {
    /// What runs for so many tokens.
    pub fn kernel(self, n_tokens: usize, shape: MoeShape) -> MoeKernel {
        match self {
            Self::Auto => MoeKernel::auto(n_tokens * shape.top_k, shape.experts),
            Self::Fixed(kernel) => kernel,
        }
    }
}

/// Which matrix products ran, by the names of their kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeLaunched {
    pub gate_up: &'static str,
    pub down: &'static str,
}

/// Hears the name of what has been queued.
pub(crate) type StageDone<'a> = &'a mut dyn FnMut(&'static str) -> Result<(), DeviceError>;

/// All stages queue work and do not wait, except [`Moe::route_to`]. Without tokens they do nothing.
impl Moe {
    pub fn load(device: &Device, shape: MoeShape, swiglu: Swiglu) -> Result<Self, MoeError> {
        let shape = shape.checked()?;
        Ok(Self { shape, swiglu, route: RouteKernels::load(device)?, gemm: GemmKernels::load(device)? })
    }

    /// From now on so many blocks share a matrix product, instead of one per multiprocessor.
    pub(crate) fn set_blocks(&mut self, n_blocks: u32) {
        self.gemm.set_blocks(n_blocks);
    }

    /// All stages: `logits` `[tokens, experts]` and `x` `[tokens, hidden]` to `out` `[tokens, hidden]`, whose other rows stay
    /// as they are. None ran without tokens.
    pub fn forward(
        &self,
        stream: &Stream,
        weights: &MoeWeights,
        logits: &Buffer<f32>,
        x: &Buffer<bf16>,
        n_tokens: usize,
        choice: MoeChoice,
        workspace: &mut MoeWorkspace,
        out: &mut Buffer<bf16>,
    ) -> Result<Option<MoeLaunched>, MoeError> {
        workspace.has_room(n_tokens)?;
        long_enough("out", out, n_tokens * self.shape.hidden)?;
        let launched = self.experts(stream, weights, logits, x, n_tokens, choice, workspace)?;
        self.combine(stream, workspace, out)?;
        Ok(launched)
    }

    /// All stages but the last: what the experts give stays in the workspace.
    pub fn experts(
        &self,
        stream: &Stream,
        weights: &MoeWeights,
        logits: &Buffer<f32>,
        x: &Buffer<bf16>,
        n_tokens: usize,
        choice: MoeChoice,
        workspace: &mut MoeWorkspace,
    ) -> Result<Option<MoeLaunched>, MoeError> {
        self.experts_with(stream, weights, logits, x, n_tokens, choice, workspace, &mut |_| Ok(()))
    }

    /// The same. When the launches of a stage are queued, or of those that are fused, `done` gets its name.
    pub(crate) fn experts_with(
        &self,
        stream: &Stream,
        weights: &MoeWeights,
        logits: &Buffer<f32>,
        x: &Buffer<bf16>,
        n_tokens: usize,
        choice: MoeChoice,
        workspace: &mut MoeWorkspace,
        done: StageDone,
    ) -> Result<Option<MoeLaunched>, MoeError> {
        self.both_match(weights, workspace)?;
        workspace.has_room(n_tokens)?;
        let kernel = choice.kernel(n_tokens, self.shape);
        if kernel == MoeKernel::Stream && (1..=MAX_ROUTED_TOKENS).contains(&n_tokens) {
            return self.experts_of_few(stream, weights, logits, x, n_tokens, workspace, done).map(Some);
        }
        self.route(stream, logits, x, n_tokens, workspace)?;
        done("route")?;
        if n_tokens == 0 {
            return Ok(None);
        }
        // After a routing both run, once: down need not wait for all of gate_up.
        let together = |args: GemmArgs| match kernel.counts_strips() {
            true => GemmArgs { strips_done: workspace.strips_done.address(), ..args },
            false => args,
        };
        let gate_up = self.gemm.gate_up(stream, kernel, &together(self.gate_up_args(weights, workspace)))?;
        done("gate_up, swiglu")?;
        let down = self.gemm.down(stream, kernel, &together(self.down_args(weights, workspace)))?;
        done("down")?;
        Ok(Some(MoeLaunched { gate_up, down }))
    }

    /// The same for a few tokens, whose experts the matrix products choose by themselves: nothing waits for their grouping.
    fn experts_of_few(
        &self,
        stream: &Stream,
        weights: &MoeWeights,
        logits: &Buffer<f32>,
        x: &Buffer<bf16>,
        n_tokens: usize,
        workspace: &mut MoeWorkspace,
        done: StageDone,
    ) -> Result<MoeLaunched, MoeError> {
        self.begin(logits, x, n_tokens, workspace)?;
        let args = |gemm| RoutedArgs {
            gemm,
            logits: logits.address(),
            x: x.address(),
            ids: workspace.ids.address(),
            weights: workspace.weights.address(),
            positions: workspace.positions.address(),
            counts: workspace.counts.address(),
            tokens: n_tokens as u32,
            top_k: self.shape.top_k as u32,
            hidden: self.shape.hidden as u32,
            padding: 0,
        };
        let gate_up = self.gemm.gate_up_routed(stream, &args(self.gate_up_args(weights, workspace)))?;
        done("route, gate_up, swiglu")?;
        let down = self.gemm.down_routed(stream, &args(self.down_args(weights, workspace)))?;
        done("down")?;
        Ok(MoeLaunched { gate_up, down })
    }

    /// Each token's experts, those of the largest logits (of equal ones, the first), and their weights; its row of `x` to
    /// each. Logits that are NaN are never chosen.
    pub fn route(
        &self,
        stream: &Stream,
        logits: &Buffer<f32>,
        x: &Buffer<bf16>,
        n_tokens: usize,
        workspace: &mut MoeWorkspace,
    ) -> Result<(), MoeError> {
        self.begin(logits, x, n_tokens, workspace)?;
        if n_tokens == 0 {
            return Ok(());
        }
        Ok(self.route.route(stream, &self.route_args(logits.address(), x, workspace))?)
    }

    /// As [`Moe::route`], but with given experts and weights, `[tokens, top_k]`: a negative id is no expert, its slot is
    /// skipped. A token may have an expert twice.
    pub fn route_to(
        &self,
        stream: &Stream,
        ids: &[i32],
        weights: &[f32],
        x: &Buffer<bf16>,
        n_tokens: usize,
        workspace: &mut MoeWorkspace,
    ) -> Result<(), MoeError> {
        self.clear(n_tokens, workspace)?;
        let n_slots = n_tokens * self.shape.top_k;
        exact("ids", ids.len(), n_slots)?;
        exact("weights of choices", weights.len(), n_slots)?;
        self.are_experts(ids)?;
        long_enough("x", x, n_tokens * self.shape.hidden)?;
        workspace.n_tokens = n_tokens;
        if n_tokens == 0 {
            return Ok(());
        }
        stream.upload(ids, &mut workspace.ids, 0)?;
        stream.upload(weights, &mut workspace.weights, 0)?;
        Ok(self.route.group(stream, &self.route_args(Address::zeroed(), x, workspace))?)
    }

    /// Gate and up projections and SwiGLU of every slot. The name of the kernel that ran; without tokens, none did.
    pub fn gate_up(
        &self,
        stream: &Stream,
        weights: &MoeWeights,
        kernel: MoeKernel,
        workspace: &mut MoeWorkspace,
    ) -> Result<Option<&'static str>, MoeError> {
        self.both_match(weights, workspace)?;
        if workspace.n_tokens == 0 {
            return Ok(None);
        }
        Ok(Some(self.gemm.gate_up(stream, kernel, &self.gate_up_args(weights, workspace))?))
    }

    /// The down projection of every slot. The name of the kernel that ran; without tokens, none did.
    pub fn down(
        &self,
        stream: &Stream,
        weights: &MoeWeights,
        kernel: MoeKernel,
        workspace: &mut MoeWorkspace,
    ) -> Result<Option<&'static str>, MoeError> {
        self.both_match(weights, workspace)?;
        if workspace.n_tokens == 0 {
            return Ok(None);
        }
        Ok(Some(self.gemm.down(stream, kernel, &self.down_args(weights, workspace))?))
    }

    /// Each token's weighted sum, to its row of `out` `[tokens, hidden]`.
    pub fn combine(&self, stream: &Stream, workspace: &MoeWorkspace, out: &mut Buffer<bf16>) -> Result<(), MoeError> {
        self.matches("buffers of the workspace", workspace.shape)?;
        long_enough("out", out, workspace.n_tokens * self.shape.hidden)?;
        if workspace.n_tokens == 0 {
            return Ok(());
        }
        let args = CombineArgs {
            y: workspace.y.address(),
            positions: workspace.positions.address(),
            weights: workspace.weights.address(),
            out: out.address(),
            hidden: self.shape.hidden as u32,
            top_k: self.shape.top_k as u32,
        };
        Ok(self.route.combine(stream, workspace.n_tokens as u32, &args)?)
    }

    /// Checks what routing reads; the workspace is for `n_tokens` from now on.
    fn begin(
        &self,
        logits: &Buffer<f32>,
        x: &Buffer<bf16>,
        n_tokens: usize,
        workspace: &mut MoeWorkspace,
    ) -> Result<(), MoeError> {
        self.clear(n_tokens, workspace)?;
        long_enough("logits", logits, n_tokens * self.shape.experts)?;
        long_enough("x", x, n_tokens * self.shape.hidden)?;
        workspace.n_tokens = n_tokens;
        Ok(())
    }

    /// The workspace has no tokens from now on, and room for `n_tokens`.
    fn clear(&self, n_tokens: usize, workspace: &mut MoeWorkspace) -> Result<(), MoeError> {
        self.matches("buffers of the workspace", workspace.shape)?;
        workspace.n_tokens = 0;
        workspace.has_room(n_tokens)
    }

    fn route_args(&self, logits: Address, x: &Buffer<bf16>, workspace: &MoeWorkspace) -> RouteArgs {
        RouteArgs {
            logits,
            x: x.address(),
            ids: workspace.ids.address(),
            weights: workspace.weights.address(),
            counts: workspace.counts.address(),
            strips_done: workspace.strips_done.address(),
            slots: workspace.slots.address(),
            positions: workspace.positions.address(),
            grouped: workspace.x.address(),
            tokens: workspace.n_tokens as u32,
            experts: self.shape.experts as u32,
            top_k: self.shape.top_k as u32,
            hidden: self.shape.hidden as u32,
        }
    }

    fn gate_up_args(&self, weights: &MoeWeights, workspace: &MoeWorkspace) -> GemmArgs {
        let (tokens, out) = (workspace.x.address(), workspace.h.address());
        self.gemm_args(&weights.gate_up, self.shape.gate_up(), workspace, tokens, out)
    }

    fn down_args(&self, weights: &MoeWeights, workspace: &MoeWorkspace) -> GemmArgs {
        let (tokens, out) = (workspace.h.address(), workspace.y.address());
        self.gemm_args(&weights.down, self.shape.down(), workspace, tokens, out)
    }

    fn gemm_args(
        &self,
        projection: &Projection,
        tiles: Tiles,
        workspace: &MoeWorkspace,
        tokens: Address,
        out: Address,
    ) -> GemmArgs {
        GemmArgs {
            records: projection.records.address(),
            bias: projection.bias.address(),
            tokens,
            counts: workspace.counts.address(),
            strips_done: Address::zeroed(),
            out,
            k_records: tiles.k_records as u32,
            strips: tiles.strips as u32,
            out_columns: self.shape.hidden as u32,
            experts: self.shape.experts as u32,
            weight_scale: projection.weight_scale,
            swiglu_limit: self.swiglu.limit,
            swiglu_alpha: self.swiglu.alpha,
            strips_before: self.shape.gate_up().strips as u32,
        }
    }

    fn matches(&self, what: &'static str, found: MoeShape) -> Result<(), MoeError> {
        match found == self.shape {
            true => Ok(()),
            false => Err(MoeError::Mismatch { what, expected: self.shape, found }),
        }
    }

    fn both_match(&self, weights: &MoeWeights, workspace: &MoeWorkspace) -> Result<(), MoeError> {
        self.matches("weights", weights.shape)?;
        self.matches("buffers of the workspace", workspace.shape)
    }

    fn are_experts(&self, ids: &[i32]) -> Result<(), MoeError> {
        let (experts, top_k) = (self.shape.experts, self.shape.top_k);
        match ids.iter().position(|&id| id >= experts as i32) {
            None => Ok(()),
            Some(at) => Err(MoeError::ExpertId { token: at / top_k, rank: at % top_k, id: ids[at], experts }),
        }
    }
}

fn exact(what: &'static str, found: usize, expected: usize) -> Result<(), MoeError> {
    match found == expected {
        true => Ok(()),
        false => Err(MoeError::Length { what, expected, found }),
    }
}

fn long_enough<T: bytemuck::Pod>(what: &'static str, buffer: &Buffer<T>, expected: usize) -> Result<(), MoeError> {
    match buffer.len() >= expected {
        true => Ok(()),
        false => Err(MoeError::TooShort { what, expected, found: buffer.len() }),
    }
}
