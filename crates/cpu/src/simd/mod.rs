//! The inner loops, once per instruction set, chosen at run time.
//!
//! Why 16-bit integers for the experts: on Sapphire Rapids `vdpbf16ps` does 16 multiply-adds a cycle, float32 FMA 32 and
//! `vpdpwssd` 64 (measured, see docs/performance.md), and with one scale per 32 weights an integer sum over a block is
//! exact, so every instruction set computes the same block sums.

use std::ops::Range;

use half::bf16;

use tessera_model::mxfp4::BLOCK;

use crate::lines::Lines;
use crate::operand::{F32_CHUNK, I16Row};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

/// Weight rows that the blocked kernels take together.
pub const PANEL_ROWS: usize = 32;

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
}

/// Consecutive rows of one expert's MXFP4 matrix.
#[derive(Clone, Copy)]
pub struct MxRows<'a> {
    pub blocks: &'a [u8], // [rows, cols / 2]
    pub scales: &'a [u8], // [rows, cols / 32]
    pub cols: usize,
}

/// Some blocks of up to [`PANEL_ROWS`] rows of MXFP4 weights, decoded and transposed so that a vector holds one column
/// pair of 16 rows. What stands in rows beyond the matrix is finite and means nothing.
#[derive(Default)]
pub struct MxPanel {
    /// Which of a row's blocks these are.
    pub blocks: Range<usize>,
    codes: Lines<i16>, // [blocks, 16 column pairs, PANEL_ROWS, 2], value * 2; pair 4j + m is columns 8m + j and 8m + 4 + j
    scales: Lines<f32>, // [blocks, PANEL_ROWS]
}

/// Some columns of up to [`PANEL_ROWS`] rows of BF16 weights, widened and transposed. What stands in rows beyond the
/// matrix is finite and means nothing.
#[derive(Default)]
pub struct F32Panel {
    /// Which columns these are; the first is a multiple of 32.
    pub cols: Range<usize>,
    data: Lines<f32>, // [columns rounded up to 32, PANEL_ROWS], columns in the order of `F32Operand`
}

/// Keys and values of one KV head in one block of the cache.
#[derive(Clone, Copy)]
pub struct KvBlock<'a> {
    pub k: &'a [bf16], // [head_dim, BLOCK_SIZE]
    pub v: &'a [bf16], // [BLOCK_SIZE, head_dim]
}

/// The kernels of one instruction set.
pub struct Kernels {
    pub isa: Isa,
    /// `out[r] = w[r] . x` for consecutive MXFP4 rows.
    pub gemv_mxfp4: fn(x: I16Row, w: MxRows, out: &mut [f32]),
    /// `out[r] = w[r] . x` for consecutive BF16 rows `[out.len(), cols]`; `x` is a row of an `F32Operand`.
    pub gemv_bf16: fn(x: &[f32], w: &[bf16], cols: usize, out: &mut [f32]),
    pub pack_mxfp4: fn(w: MxRows, blocks: Range<usize>, panel: &mut MxPanel),
    /// `out[t][r] += panel[r] . x[t]` over the panel's blocks, `out` `[tokens, PANEL_ROWS]`.
    pub gemm_mxfp4: fn(x: &[I16Row], panel: &MxPanel, out: &mut [f32]),
    /// Packs some columns of consecutive BF16 rows `[rows <= PANEL_ROWS, cols]`.
    pub pack_bf16: fn(w: &[bf16], cols: usize, part: Range<usize>, panel: &mut F32Panel),
    /// `out[t][r] += panel[r] . x[t]` over the panel's columns, `out` `[tokens, PANEL_ROWS]`.
    pub gemm_bf16: fn(x: &[&[f32]], panel: &F32Panel, out: &mut [f32]),
    /// Scores of queries `q` `[heads, head_dim]` against the keys of a block: head `h`'s go to
    /// `out[h * stride..][..BLOCK_SIZE]`.
    pub scores: fn(q: &[f32], block: KvBlock, head_dim: usize, out: &mut [f32], stride: usize),
    /// `out[h] += sum_j p[h * stride + j] * v[j]`, `out` `[heads, head_dim]`.
    pub weigh_values: fn(p: &[f32], stride: usize, block: KvBlock, head_dim: usize, out: &mut [f32]),
    /// `x[i] = exp(x[i] - max)`; returns their sum.
    pub exp_sum: fn(x: &mut [f32], max: f32) -> f32,
    /// `x / rms(x) * weight`.
    pub rms_norm: fn(x: &[f32], weight: &[bf16], eps: f32, out: &mut [f32]),
    /// gpt-oss SwiGLU of interleaved gate and up `[2 n]` into `[n]`.
    pub swiglu: fn(gate_up: &[f32], alpha: f32, limit: f32, out: &mut [f32]),
    pub split_row: fn(x: &[f32], out: &mut [f32]),
    pub quantize_row: fn(x: &[f32], q: &mut [i16], scales: &mut [f32]),
    /// Reads memory and does next to nothing with it.
    pub fold: fn(memory: &[u64]) -> u64,
}

impl Isa {
    /// The best that this machine has.
    pub fn detect() -> Self {
        [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
                    && Isa::Avx2.is_available()
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The kernels for this instruction set, or for the best one below it that this machine has.
    pub fn kernels(self) -> &'static Kernels {
        #[cfg(target_arch = "x86_64")]
        {
            if self == Isa::Avx512 && self.is_available() {
                return &avx512::KERNELS;
            }
            if self >= Isa::Avx2 && Isa::Avx2.is_available() {
                return &avx2::KERNELS;
            }
        }
        &portable::KERNELS
    }

    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

impl MxPanel {
    /// Makes room for `blocks`; whatever stood there may stay.
    fn resize(&mut self, blocks: Range<usize>) {
        self.codes.resize(blocks.len() * BLOCK * PANEL_ROWS);
        self.scales.resize(blocks.len() * PANEL_ROWS);
        self.blocks = blocks;
    }
}

impl F32Panel {
    /// Makes room for `cols`; whatever stood there may stay.
    fn resize(&mut self, cols: Range<usize>) {
        assert!(cols.start.is_multiple_of(F32_CHUNK));
        self.data.resize(cols.len().next_multiple_of(F32_CHUNK) * PANEL_ROWS);
        self.cols = cols;
    }
}

impl<'a> MxRows<'a> {
    pub fn rows(&self) -> usize {
        self.scales.len() / self.blocks_per_row()
    }

    pub fn blocks_per_row(&self) -> usize {
        self.cols / BLOCK
    }

    pub fn row_blocks(&self, r: usize) -> &'a [u8] {
        &self.blocks[r * self.cols / 2..][..self.cols / 2]
    }

    pub fn row_scales(&self, r: usize) -> &'a [u8] {
        &self.scales[r * self.blocks_per_row()..][..self.blocks_per_row()]
    }
}

#[cfg(test)]
mod tests;
