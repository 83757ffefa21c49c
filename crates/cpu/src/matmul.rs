//! Matrix products of activations with the checkpoint's weights, split over the pool.
//!
//! Few tokens read each weight row once and multiply it as it comes (GEMV); many tokens decode a panel of rows once and
//! reuse it for a block of tokens (GEMM).

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;
use tessera_model::{Experts, Linear};

use crate::operand::{F32Operand, I16Operand, I16Row};
use crate::pool::{Pool, Tile, pieces};
use crate::simd::{F32Panel, Kernels, MxPanel, MxRows, PANEL_ROWS};

/// Most tokens for which rows of MXFP4 weights are multiplied as they come; decoding a panel pays from the next on.
const MXFP4_GEMV_TOKENS: usize = 2;
/// The same for BF16 weights.
const BF16_GEMV_TOKENS: usize = 4;
/// Weight rows of one task when few tokens read them: some 200 to 400 KB of weights.
const GEMV_TILE: usize = 64;
/// Weight rows of one task when many tokens do.
const GEMM_TILE: usize = 4 * PANEL_ROWS;
/// Blocks of a panel: 10 decode to 20 KB, which the first-level cache holds.
const MXFP4_PANEL_BLOCKS: usize = 10;
/// Columns of a panel, a multiple of 32: 192 widen to 24 KB.
const BF16_PANEL_COLS: usize = 192;
/// Tokens that one pass over the panels serves: their activations stay in the second-level cache.
const TOKEN_BLOCK: usize = 144;

/// Whether a product replaces what stands in the output or is added to it.
#[derive(Clone, Copy, PartialEq)]
pub enum Write {
    Set,
    Add,
}

/// The token-expert pairs of one expert.
pub struct ExpertGroup {
    pub expert: usize,
    /// Rows of the output; pairs are sorted by expert.
    pub pairs: Range<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    mx: MxPanel,
    dense: F32Panel,
    out: Vec<f32>, // [tokens, PANEL_ROWS]
}

/// `out[t] = [W0 x[t] + b0, W1 x[t] + b1, ..]`, `out` `[tokens, sum of the parts' rows]`. An empty bias is none.
pub fn linear(pool: &mut Pool, kernels: &Kernels, x: &F32Operand, parts: &[Linear], write: Write, out: &mut [f32]) {
    let width = parts.iter().map(|p| p.weight.rows).sum();
    let tokens = out.len() / width;
    let few = tokens <= BF16_GEMV_TOKENS;
    let mut tiles = Vec::new();
    let mut sources = Vec::new();
    let mut start = 0;
    for part in parts {
        for rows in pieces(part.weight.rows, if few { GEMV_TILE } else { GEMM_TILE }) {
            tiles.push(start + rows.start..start + rows.end);
            sources.push((part, rows));
        }
        start += part.weight.rows;
    }
    pool.for_tiles(out, width, &pieces(tokens, TOKEN_BLOCK), &tiles, |_, tile, mut out| {
        let (part, rows) = &sources[tile];
        let cols = part.weight.cols;
        let w = &part.weight.data[rows.start * cols..rows.end * cols];
        let bias = if part.bias.is_empty() { &[][..] } else { &part.bias[rows.clone()] };
        if few {
            let mut product = [0f32; GEMV_TILE];
            for t in out.rows() {
                (kernels.gemv_bf16)(x.row(t), w, cols, &mut product[..rows.len()]);
                finish(&product, bias, write, out.row(t));
            }
        } else {
            gemm_bf16(kernels, x, w, cols, bias, write, &mut out);
        }
    });
}

fn gemm_bf16(kernels: &Kernels, x: &F32Operand, w: &[bf16], cols: usize, bias: &[bf16], write: Write, out: &mut Tile) {
    let xs: Vec<&[f32]> = out.rows().map(|t| x.row(t)).collect();
    SCRATCH.with_borrow_mut(|scratch| {
        for (panel, w) in w.chunks(PANEL_ROWS * cols).enumerate() {
            scratch.out.clear();
            scratch.out.resize(xs.len() * PANEL_ROWS, 0.0);
            for part in pieces(cols, BF16_PANEL_COLS) {
                (kernels.pack_bf16)(w, cols, part, &mut scratch.dense);
                (kernels.gemm_bf16)(&xs, &scratch.dense, &mut scratch.out);
            }
            unload(&scratch.out, panel * PANEL_ROWS, w.len() / cols, bias, write, out);
        }
    });
}

/// `out[p] = W[expert of p] x[x_rows[p]] + b[expert of p]` for every pair, `out` `[pairs, experts.rows]`.
pub fn expert_linear(
    pool: &mut Pool,
    kernels: &Kernels,
    x: &I16Operand,
    x_rows: &[usize],
    experts: &Experts,
    groups: &[ExpertGroup],
    out: &mut [f32],
) {
    let mut pairs = Vec::new();
    let mut expert = Vec::new();
    for group in groups {
        for piece in pieces(group.pairs.len(), TOKEN_BLOCK) {
            pairs.push(group.pairs.start + piece.start..group.pairs.start + piece.end);
            expert.push(group.expert);
        }
    }
    let few = pairs.iter().all(|p| p.len() <= MXFP4_GEMV_TOKENS);
    let tiles = pieces(experts.rows, if few { GEMV_TILE } else { GEMM_TILE });
    pool.for_tiles(out, experts.rows, &pairs, &tiles, |group, _, mut out| {
        let e = expert[group];
        let xs: Vec<I16Row> = out.rows().map(|p| x.row(x_rows[p])).collect();
        let bias = &experts.expert_bias(e)[out.cols()];
        if xs.len() <= MXFP4_GEMV_TOKENS {
            let w = rows_of(experts, e, out.cols());
            let mut product = [0f32; GEMM_TILE];
            for (p, x) in out.rows().zip(xs) {
                (kernels.gemv_mxfp4)(x, w, &mut product[..out.cols().len()]);
                finish(&product, bias, Write::Set, out.row(p));
            }
        } else {
            gemm_mxfp4(kernels, &xs, experts, e, bias, &mut out);
        }
    });
}

fn gemm_mxfp4(kernels: &Kernels, xs: &[I16Row], experts: &Experts, e: usize, bias: &[bf16], out: &mut Tile) {
    SCRATCH.with_borrow_mut(|scratch| {
        for at in (0..out.cols().len()).step_by(PANEL_ROWS) {
            let rows = PANEL_ROWS.min(out.cols().len() - at);
            let start = out.cols().start + at;
            let w = rows_of(experts, e, start..start + rows);
            scratch.out.clear();
            scratch.out.resize(xs.len() * PANEL_ROWS, 0.0);
            for blocks in pieces(w.blocks_per_row(), MXFP4_PANEL_BLOCKS) {
                (kernels.pack_mxfp4)(w, blocks, &mut scratch.mx);
                (kernels.gemm_mxfp4)(xs, &scratch.mx, &mut scratch.out);
            }
            unload(&scratch.out, at, rows, bias, Write::Set, out);
        }
    });
}

fn rows_of<'a>(experts: &Experts<'a>, e: usize, rows: Range<usize>) -> MxRows<'a> {
    let (bytes, scales) = (experts.cols / 2, experts.cols / tessera_model::mxfp4::BLOCK);
    let (start, end) = (e * experts.rows + rows.start, e * experts.rows + rows.end);
    MxRows {
        blocks: &experts.blocks[start * bytes..end * bytes],
        scales: &experts.scales[start * scales..end * scales],
        cols: experts.cols,
    }
}

/// Moves a panel's products, `[tokens, PANEL_ROWS]`, to columns `at ..` of a tile.
fn unload(products: &[f32], at: usize, rows: usize, bias: &[bf16], write: Write, out: &mut Tile) {
    let bias = if bias.is_empty() { bias } else { &bias[at..at + rows] };
    for (t, product) in out.rows().zip(products.chunks_exact(PANEL_ROWS)) {
        finish(product, bias, write, &mut out.row(t)[at..at + rows]);
    }
}

fn finish(product: &[f32], bias: &[bf16], write: Write, out: &mut [f32]) {
    for (i, (out, product)) in out.iter_mut().zip(product).enumerate() {
        let value = product + bias.get(i).map_or(0.0, |b| b.to_f32());
        *out = if write == Write::Add { *out + value } else { value };
    }
}
