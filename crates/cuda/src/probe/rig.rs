//! The experts' own kernels with operands made by hand.

use half::bf16;

use super::matrix::Matrix;
use super::{Bench, Spoil};
use crate::kernels::moe_gemm::MoeKernel;
use crate::launch::Stream;
use crate::moe::{Moe, MoeError, MoeShape, MoeWeights, MoeWorkspace, Swiglu};

/// An alpha that makes the sigmoid of 1 a 1 in float32: SwiGLU of a gate of 0 or 1 and an up of 0 or 1 is exact.
const STEEP: Swiglu = Swiglu { limit: 7.0, alpha: 100.0 };
/// Room for tokens behind the last one.
const SPARE_TOKENS: usize = 16;

/// A layer whose experts have one interesting projection, on the GPU.
pub struct Rig<'a> {
    bench: &'a Bench<'a>,
    stream: Stream,
    moe: Moe,
    weights: MoeWeights,
}

/// Tokens that were sent to experts, one to each.
pub struct Batch {
    workspace: MoeWorkspace,
    n_tokens: usize,
}

impl<'a> Rig<'a> {
    /// `down` `[experts * hidden, intermediate]`.
    pub fn down(bench: &'a Bench, experts: usize, down: Matrix) -> Result<Self, MoeError> {
        let shape = MoeShape { hidden: down.rows / experts, intermediate: down.cols, experts, top_k: 1 };
        let gate_up = Matrix::zero(2 * experts * shape.intermediate, shape.hidden);
        Self::new(bench, shape, &gate_up, &bench.spoilt(down))
    }

    /// `gate_up` `[2 * intermediate, hidden]` of the only expert, even rows gates.
    pub fn gate_up(bench: &'a Bench, gate_up: Matrix) -> Result<Self, MoeError> {
        let shape = MoeShape { hidden: gate_up.cols, intermediate: gate_up.rows / 2, experts: 1, top_k: 1 };
        let down = Matrix::zero(shape.hidden, shape.intermediate);
        Self::new(bench, shape, &bench.spoilt(gate_up), &down)
    }

    fn new(bench: &'a Bench, shape: MoeShape, gate_up: &Matrix, down: &Matrix) -> Result<Self, MoeError> {
        let stream = bench.device.stream()?;
        let moe = Moe::load(bench.device, shape, STEEP)?;
        let (gate_up, down) = (gate_up.view(shape.experts), down.view(shape.experts));
        let weights = MoeWeights::upload(bench.device, &stream, shape, &gate_up, &down)?;
        Ok(Self { bench, stream, moe, weights })
    }

    /// Sends token i, row i of `x` `[tokens, hidden]`, to expert `ids[i]`. What no token has is NaN.
    pub fn route(&self, ids: &[i32], x: &[f32]) -> Result<Batch, MoeError> {
        let shape = self.weights.shape();
        let mut workspace = MoeWorkspace::new(self.bench.device, shape, ids.len() + SPARE_TOKENS)?;
        workspace.poison(&self.stream)?;
        let rounded: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        let mut x = self.bench.device.alloc(rounded.len())?;
        self.stream.upload(&rounded, &mut x, 0)?;
        self.moe.route_to(&self.stream, ids, &vec![1.0; ids.len()], &x, ids.len(), &mut workspace)?;
        self.stream.synchronize()?;
        Ok(Batch { workspace, n_tokens: ids.len() })
    }

    /// [`Rig::route`] and [`Rig::set_h`].
    pub fn route_to_down(&self, ids: &[i32], h: &[f32]) -> Result<Batch, MoeError> {
        let mut batch = self.route(ids, &vec![0.0; ids.len() * self.weights.shape().hidden])?;
        self.set_h(&mut batch, h)?;
        Ok(batch)
    }

    /// The down projection's operand, `[tokens, intermediate]`, rounded to bf16.
    pub fn set_h(&self, batch: &mut Batch, h: &[f32]) -> Result<(), MoeError> {
        let mut h = h.to_vec();
        self.bench.spoil_tokens(&mut h, self.weights.shape().intermediate);
        batch.workspace.set_h(&self.stream, &h)
    }

    /// What the down projection by `n_blocks` blocks gives, `[tokens, hidden]`; NaN where it writes nothing.
    pub fn run_down(&mut self, batch: &mut Batch, kernel: MoeKernel, n_blocks: usize) -> Result<Vec<f32>, MoeError> {
        let poison = vec![f32::NAN; batch.n_tokens * self.weights.shape().hidden];
        batch.workspace.set_y(&self.stream, &poison)?;
        self.moe.set_blocks(n_blocks as u32);
        self.moe.down(&self.stream, &self.weights, kernel, &mut batch.workspace)?;
        Ok(batch.workspace.y(&self.stream)?)
    }

    /// What SwiGLU gives after gate and up by `n_blocks` blocks, `[tokens, intermediate]`; NaN where nothing is written.
    pub fn run_gate_up(&mut self, batch: &mut Batch, kernel: MoeKernel, n_blocks: usize) -> Result<Vec<f32>, MoeError> {
        let poison = vec![f32::NAN; batch.n_tokens * self.weights.shape().intermediate];
        batch.workspace.set_h(&self.stream, &poison)?;
        self.moe.set_blocks(n_blocks as u32);
        self.moe.gate_up(&self.stream, &self.weights, kernel, &mut batch.workspace)?;
        Ok(batch.workspace.h(&self.stream)?)
    }
}

/// Row i is 1 in column `column(i)` and 0 elsewhere, `[n_rows, width]`.
pub fn one_hot(n_rows: usize, width: usize, column: impl Fn(usize) -> usize) -> Vec<f32> {
    let mut rows = vec![0.0; n_rows * width];
    rows.chunks_exact_mut(width).enumerate().for_each(|(i, row)| row[column(i)] = 1.0);
    rows
}

impl Bench<'_> {
    /// One block for each multiprocessor: what the kernels are launched with.
    pub fn usual_blocks(&self) -> usize {
        self.device.properties().n_sms
    }

    pub fn spoilt(&self, mut matrix: Matrix) -> Matrix {
        if let Spoil::Weights(spoil) = self.spoil {
            spoil(&mut matrix);
        }
        matrix
    }

    fn spoil_tokens(&self, values: &mut [f32], width: usize) {
        if let Spoil::Tokens(spoil) = self.spoil {
            spoil(values, width);
        }
    }
}
