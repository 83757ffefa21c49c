//! Dense products `out = W x + b`: BF16 operands, float32 sums. Query, key and value at once, the attention's output, the head.
//!
//! A token's result does not depend on the tokens beside it, nor on which kernel ran: the bits are the same.

use bytemuck::Pod;
use half::bf16;

mod error;
mod shape;
mod weights;

pub use error::DenseError;
pub use shape::{DenseShape, MAX_COLS, MAX_ROWS};
pub use weights::DenseWeights;

use crate::device::{Buffer, Device};
use crate::kernels::dense::{DenseArgs, DenseKernel, DenseKernels};
use crate::launch::Stream;
use crate::moe::MAX_TOKENS;
use crate::moe::grouped::{panels, panels_len};

/// The kernels of dense products, of any shape.
pub struct Dense {
    kernels: DenseKernels,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseOut {
    /// `out = W x + b`
    Store,
    /// `out += W x + b`
    Add,
}

/// Who chooses the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseChoice {
    /// [`Dense::kernel`]
    Auto,
    Fixed(DenseKernel),
}

impl Dense {
    pub fn load(device: &Device) -> Result<Self, DenseError> {
        Ok(Self { kernels: DenseKernels::load(device)? })
    }

    /// From now on so many blocks share a product, instead of one per multiprocessor. No bit of the result depends on it.
    pub fn set_blocks(&mut self, n_blocks: usize) {
        self.kernels.set_blocks(n_blocks);
    }

    /// The kernel that should be the fastest.
    pub fn kernel(&self, shape: DenseShape, n_tokens: usize) -> DenseKernel {
        self.kernels.auto(shape, n_tokens)
    }

    /// Queues the product of `n_tokens` rows of `x`, panels of `[tokens, cols]`, to rows of `out`, `[tokens, rows]`, whose other
    /// rows stay as they are. The name of the kernel; without tokens nothing runs, and it is empty.
    pub fn forward(
        &self,
        stream: &Stream,
        weights: &DenseWeights,
        x: &Buffer<bf16>,
        n_tokens: usize,
        out: &mut Buffer<f32>,
        what: DenseOut,
    ) -> Result<&'static str, DenseError> {
        self.forward_by(DenseChoice::Auto, stream, weights, x, n_tokens, out, what)
    }

    /// The same by a given kernel; [`DenseKernel::Stream`] has room for some tokens only.
    pub fn forward_by(
        &self,
        choice: DenseChoice,
        stream: &Stream,
        weights: &DenseWeights,
        x: &Buffer<bf16>,
        n_tokens: usize,
        out: &mut Buffer<f32>,
        what: DenseOut,
    ) -> Result<&'static str, DenseError> {
        let shape = weights.shape;
        at_most(MAX_TOKENS, n_tokens)?;
        long_enough("x", x, panels_len(n_tokens, shape.cols))?;
        long_enough("out", out, n_tokens * shape.rows)?;
        if n_tokens == 0 {
            return Ok("");
        }
        let kernel = match choice {
            DenseChoice::Auto => self.kernel(shape, n_tokens),
            DenseChoice::Fixed(kernel) => kernel,
        };
        at_most(kernel.max_tokens(shape), n_tokens)?;
        let args = DenseArgs {
            records: weights.records.address(),
            bias: weights.bias.address(),
            tokens: x.address(),
            out: out.address(),
            k_records: panels(shape.cols) as u32,
            strips: shape.strips() as u32,
            rows: shape.rows as u32,
            n_tokens: n_tokens as u32,
            adds: u32::from(what == DenseOut::Add),
            stages: 0,
            tile_units: 0,
            tile_groups: 0,
            same_rows: 0,
            unused: 0,
        };
        Ok(self.kernels.launch(stream, kernel, shape, args)?)
    }
}

fn at_most(limit: usize, found: usize) -> Result<(), DenseError> {
    match found <= limit {
        true => Ok(()),
        false => Err(DenseError::TooManyTokens { limit, found }),
    }
}

fn long_enough<T: Pod>(what: &'static str, buffer: &Buffer<T>, expected: usize) -> Result<(), DenseError> {
    match buffer.len() >= expected {
        true => Ok(()),
        false => Err(DenseError::TooShort { what, expected, found: buffer.len() }),
    }
}
