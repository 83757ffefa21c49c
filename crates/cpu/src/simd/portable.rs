//! Plain Rust kernels: the scalar instruction set, and the bodies that others compile with their own features.

use std::ops::Range;

use half::bf16;
use tessera_model::BLOCK_SIZE;
use tessera_model::mxfp4::{BLOCK, BLOCK_BYTES, E2M1, e8m0};

use super::{F32Panel, Isa, Kernels, KvBlock, MxPanel, MxRows, PANEL_ROWS};
use crate::operand::{F32_CHUNK, I16Row, i16_index, quantize_row, split_row};

pub static KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    gemv_mxfp4,
    gemv_bf16,
    pack_mxfp4,
    gemm_mxfp4,
    pack_bf16,
    gemm_bf16,
    scores: |q, block, head_dim, out, stride| scores::<Separate>(q, block, head_dim, out, stride),
    weigh_values: |p, stride, block, head_dim, out| weigh_values::<Separate>(p, stride, block, head_dim, out),
    exp_sum: |x, max| exp_sum::<Separate>(x, max),
    rms_norm: |x, weight, eps, out| rms_norm(x, weight, eps, out),
    swiglu: |gate_up, alpha, limit, out| swiglu::<Separate>(gate_up, alpha, limit, out),
    split_row: |x, out| split_row(x, out),
    quantize_row: |x, q, scales| quantize_row(x, q, scales),
    fold: |memory| fold(memory),
};

/// `a * b + c`, fused where the instruction set does it in one go.
pub trait MulAdd {
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// Rounds the product and the sum.
pub struct Separate;
/// Rounds once; only for code compiled with FMA, where it is one instruction.
pub struct Fused;

impl MulAdd for Separate {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

impl MulAdd for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Twice the value of a code: the E2M1 values are multiples of 0.5.
const fn doubled_codes() -> [i16; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (E2M1[i] * 2.0) as i16;
        i += 1;
    }
    table
}

pub const DOUBLED: [i16; 16] = doubled_codes();

fn gemv_mxfp4(x: I16Row, w: MxRows, out: &mut [f32]) {
    for (r, out) in out.iter_mut().enumerate() {
        let (blocks, scales) = (w.row_blocks(r), w.row_scales(r));
        *out = 0.0;
        for (b, codes) in blocks.chunks_exact(BLOCK_BYTES).enumerate() {
            let mut sum = 0i32;
            for (i, &byte) in codes.iter().enumerate() {
                sum += i32::from(DOUBLED[usize::from(byte & 15)]) * i32::from(x.q[i16_index(b, 2 * i)]);
                sum += i32::from(DOUBLED[usize::from(byte >> 4)]) * i32::from(x.q[i16_index(b, 2 * i + 1)]);
            }
            *out += sum as f32 * x.scales[b] * e8m0(scales[b]);
        }
    }
}

fn gemv_bf16(x: &[f32], w: &[bf16], cols: usize, out: &mut [f32]) {
    for (w, out) in w.chunks_exact(cols).zip(out) {
        let mut lanes = [0f32; F32_CHUNK / 2];
        for (x, w) in x.chunks_exact(F32_CHUNK).zip(w.chunks(F32_CHUNK)) {
            for (i, w) in w.iter().enumerate() {
                lanes[i / 2] += w.to_f32() * x[i % 2 * (F32_CHUNK / 2) + i / 2];
            }
        }
        *out = lanes.iter().sum();
    }
}

fn pack_mxfp4(w: MxRows, blocks: Range<usize>, panel: &mut MxPanel) {
    panel.resize(blocks.clone());
    for r in 0..w.rows() {
        for (i, b) in blocks.clone().enumerate() {
            let out = &mut panel.codes[i * BLOCK * PANEL_ROWS..][..BLOCK * PANEL_ROWS];
            for (i, &byte) in w.row_blocks(r)[b * BLOCK_BYTES..][..BLOCK_BYTES].iter().enumerate() {
                // Column c = 8m + 4h + j is element h of pair 4j + m.
                let at = |c: usize| ((c % 4 * 4 + c / 8) * PANEL_ROWS + r) * 2 + c / 4 % 2;
                out[at(2 * i)] = DOUBLED[usize::from(byte & 15)];
                out[at(2 * i + 1)] = DOUBLED[usize::from(byte >> 4)];
            }
            panel.scales[i * PANEL_ROWS + r] = e8m0(w.row_scales(r)[b]);
        }
    }
}

fn gemm_mxfp4(x: &[I16Row], panel: &MxPanel, out: &mut [f32]) {
    for (x, out) in x.iter().zip(out.chunks_exact_mut(PANEL_ROWS)) {
        for (i, codes) in panel.codes.chunks_exact(BLOCK * PANEL_ROWS).enumerate() {
            let b = panel.blocks.start + i;
            let mut sums = [0i32; PANEL_ROWS];
            for (pair, codes) in codes.chunks_exact(2 * PANEL_ROWS).enumerate() {
                let at = i16_index(b, pair % 4 * 8 + pair / 4);
                let (x0, x1) = (i32::from(x.q[at]), i32::from(x.q[at + 1]));
                for (sum, w) in sums.iter_mut().zip(codes.chunks_exact(2)) {
                    *sum += i32::from(w[0]) * x0 + i32::from(w[1]) * x1;
                }
            }
            for (r, out) in out.iter_mut().enumerate() {
                *out += sums[r] as f32 * x.scales[b] * panel.scales[i * PANEL_ROWS + r];
            }
        }
    }
}

fn pack_bf16(w: &[bf16], cols: usize, part: Range<usize>, panel: &mut F32Panel) {
    panel.resize(part.clone());
    panel.data.fill(0.0);
    for (r, w) in w.chunks_exact(cols).enumerate() {
        for (c, w) in w[part.clone()].iter().enumerate() {
            let (chunk, i) = (c / F32_CHUNK, c % F32_CHUNK);
            panel.data[(chunk * F32_CHUNK + i % 2 * (F32_CHUNK / 2) + i / 2) * PANEL_ROWS + r] = w.to_f32();
        }
    }
}

fn gemm_bf16(x: &[&[f32]], panel: &F32Panel, out: &mut [f32]) {
    for (x, out) in x.iter().zip(out.chunks_exact_mut(PANEL_ROWS)) {
        for (x, w) in x[panel.cols.start..].iter().zip(panel.data.chunks_exact(PANEL_ROWS)) {
            for (out, w) in out.iter_mut().zip(w) {
                *out += x * w;
            }
        }
    }
}

#[inline(always)]
pub fn scores<M: MulAdd>(q: &[f32], block: KvBlock, head_dim: usize, out: &mut [f32], stride: usize) {
    for (q, out) in q.chunks_exact(head_dim).zip(out.chunks_mut(stride)) {
        let mut lanes = [0f32; BLOCK_SIZE];
        for (q, k) in q.iter().zip(block.k.chunks_exact(BLOCK_SIZE)) {
            for j in 0..BLOCK_SIZE {
                lanes[j] = M::mul_add(*q, k[j].to_f32(), lanes[j]);
            }
        }
        out[..BLOCK_SIZE].copy_from_slice(&lanes);
    }
}

#[inline(always)]
pub fn weigh_values<M: MulAdd>(p: &[f32], stride: usize, block: KvBlock, head_dim: usize, out: &mut [f32]) {
    for (p, out) in p.chunks(stride).zip(out.chunks_exact_mut(head_dim)) {
        for (p, v) in p.iter().zip(block.v.chunks_exact(head_dim)) {
            for (out, v) in out.iter_mut().zip(v) {
                *out = M::mul_add(*p, v.to_f32(), *out);
            }
        }
    }
}

#[inline(always)]
pub fn exp_sum<M: MulAdd>(x: &mut [f32], max: f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            *x = exp::<M>(*x - max);
            *sum += *x;
        }
    }
    for (x, sum) in chunks.into_remainder().iter_mut().zip(&mut sums) {
        *x = exp::<M>(*x - max);
        *sum += *x;
    }
    sums.iter().sum()
}

/// `e^x` with a relative error below 3e-7 for `x <= 88`; 0 below -87.3, NaN stays NaN.
///
/// Cody and Waite reduction by ln 2 in two parts, then a degree 6 Taylor polynomial on [-0.347, 0.347].
#[inline(always)]
pub fn exp<M: MulAdd>(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = M::mul_add(n, -LN2_LO, M::mul_add(n, -LN2_HI, clamped));
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = M::mul_add(p, r, c);
    }
    let scaled = p * f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.3 { 0.0 } else { scaled }
}

#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[bf16], eps: f32, out: &mut [f32]) {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    for x in chunks.remainder() {
        sums[0] += x * x;
    }
    for chunk in chunks {
        for (x, sum) in chunk.iter().zip(&mut sums) {
            *sum += x * x;
        }
    }
    let scale = 1.0 / (sums.iter().sum::<f32>() / x.len() as f32 + eps).sqrt();
    for ((x, w), out) in x.iter().zip(weight).zip(out) {
        *out = x * scale * w.to_f32();
    }
}

#[inline(always)]
pub fn swiglu<M: MulAdd>(gate_up: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    for (gu, out) in gate_up.chunks_exact(2).zip(out) {
        let gate = if gu[0] > limit { limit } else { gu[0] };
        let up = if gu[1] > limit { limit } else { gu[1] };
        let up = if up < -limit { -limit } else { up };
        *out = gate / (1.0 + exp::<M>(-alpha * gate)) * (up + 1.0);
    }
}

/// Exclusive or of independent lanes, as many as keep the memory busy.
#[inline(always)]
pub fn fold(memory: &[u64]) -> u64 {
    const LANES: usize = 64;
    let mut lanes = [0u64; LANES];
    for chunk in memory.chunks_exact(LANES) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane ^= v;
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}
