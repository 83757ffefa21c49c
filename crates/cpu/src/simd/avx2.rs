//! AVX2 and FMA kernels.

use std::arch::x86_64::*;

use half::bf16;
use tessera_model::mxfp4::{BLOCK, BLOCK_BYTES, e8m0};

use super::portable::{self, DOUBLED, Fused};
use super::{F32Panel, Isa, Kernels, KvBlock, MxPanel, MxRows, PANEL_ROWS};
use crate::operand::{I16_CHUNK, I16Row};

/// Lanes of a float32 vector.
const LANES: usize = 8;
/// Token columns of a register tile: 2 vectors of rows each, as sums and as block sums in 12 of 16 registers.
const MXFP4_TOKENS: usize = 3;
/// Token columns of a register tile: 2 vectors of rows each in 12 of 16 registers.
const BF16_TOKENS: usize = 6;

/// A safe function pointer that enters a function compiled for this module's features.
macro_rules! enter {
    (|$($arg:ident),*| $call:expr) => {
        |$($arg),*| {
            // SAFETY: `Isa::kernels` hands this table out only where these features were detected.
            unsafe { $call }
        }
    };
}

pub static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
    gemv_mxfp4: enter!(|x, w, out| gemv_mxfp4(x, w, out)),
    gemv_bf16: enter!(|x, w, cols, out| gemv_bf16(x, w, cols, out)),
    pack_mxfp4: enter!(|w, panel| pack_mxfp4(w, panel)),
    gemm_mxfp4: enter!(|x, panel, out| gemm_mxfp4(x, panel, out)),
    pack_bf16: enter!(|w, cols, panel| pack_bf16(w, cols, panel)),
    gemm_bf16: enter!(|x, panel, out| gemm_bf16(x, panel, out)),
    scores: enter!(|q, block, head_dim, out, stride| scores(q, block, head_dim, out, stride)),
    weigh_values: enter!(|p, stride, block, head_dim, out| weigh_values(p, stride, block, head_dim, out)),
    exp_sum: enter!(|x, max| exp_sum(x, max)),
    rms_norm: enter!(|x, weight, eps, out| rms_norm(x, weight, eps, out)),
    swiglu: enter!(|gate_up, alpha, limit, out| swiglu(gate_up, alpha, limit, out)),
    split_row: enter!(|x, out| split_row(x, out)),
    quantize_row: enter!(|x, q, scales| quantize_row(x, q, scales)),
};

#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_i16(x: &[i16]) -> __m256i {
    assert!(x.len() >= 2 * LANES);
    // SAFETY: 16 elements were asserted.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn store(x: __m256, out: &mut [f32]) {
    assert!(out.len() >= LANES);
    // SAFETY: 8 elements were asserted.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn sum(x: __m256) -> f32 {
    let mut lanes = [0f32; LANES];
    store(x, &mut lanes);
    lanes.iter().sum()
}

#[target_feature(enable = "avx2,fma")]
fn gemv_mxfp4(x: I16Row, w: MxRows, out: &mut [f32]) {
    // Doubled values fit a byte, so 16-byte lookups decode a whole block at once.
    let bytes = DOUBLED.map(|v| v as i8);
    // SAFETY: 16 bytes.
    let table = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let nibble = _mm_set1_epi8(15);
    for (r, out) in out.iter_mut().enumerate() {
        let scales = w.row_scales(r);
        let mut acc = _mm256_setzero_ps();
        for (b, codes) in w.row_blocks(r).chunks_exact(BLOCK_BYTES).enumerate() {
            // SAFETY: a block is 16 bytes.
            let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
            let evens = _mm_shuffle_epi8(table, _mm_and_si128(codes, nibble));
            let odds = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble));
            let x_even = &x.q[b / 2 * I16_CHUNK + b % 2 * (BLOCK / 2)..];
            let even_sums = _mm256_madd_epi16(_mm256_cvtepi8_epi16(evens), load_i16(x_even));
            let odd_sums = _mm256_madd_epi16(_mm256_cvtepi8_epi16(odds), load_i16(&x_even[BLOCK..]));
            let sums = _mm256_cvtepi32_ps(_mm256_add_epi32(even_sums, odd_sums));
            acc =
                _mm256_fmadd_ps(_mm256_mul_ps(sums, _mm256_set1_ps(x.scales[b])), _mm256_set1_ps(e8m0(scales[b])), acc);
        }
        *out = sum(acc);
    }
}

#[target_feature(enable = "avx2,fma")]
fn gemv_bf16(x: &[f32], w: &[bf16], cols: usize, out: &mut [f32]) {
    portable::gemv_bf16(x, w, cols, out);
}

#[target_feature(enable = "avx2,fma")]
fn pack_mxfp4(w: MxRows, panel: &mut MxPanel) {
    portable::pack_mxfp4(w, panel);
}

#[target_feature(enable = "avx2,fma")]
fn gemm_mxfp4(x: &[I16Row], panel: &MxPanel, out: &mut [f32]) {
    for (x, out) in x.chunks(MXFP4_TOKENS).zip(out.chunks_mut(MXFP4_TOKENS * PANEL_ROWS)) {
        for group in 0..PANEL_ROWS / (2 * LANES) {
            match x.len() {
                1 => gemm_mxfp4_tile::<1>(x, panel, group, out),
                2 => gemm_mxfp4_tile::<2>(x, panel, group, out),
                _ => gemm_mxfp4_tile::<MXFP4_TOKENS>(x, panel, group, out),
            }
        }
    }
}

/// `T` tokens x 16 rows, the `group`th 16 of the panel.
#[target_feature(enable = "avx2,fma")]
fn gemm_mxfp4_tile<const T: usize>(x: &[I16Row], panel: &MxPanel, group: usize, out: &mut [f32]) {
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    for (b, codes) in panel.codes.chunks_exact(BLOCK * PANEL_ROWS).enumerate() {
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for (pair, codes) in codes.chunks_exact(2 * PANEL_ROWS).enumerate() {
            let codes = &codes[group * 4 * LANES..][..4 * LANES];
            let w = [load_i16(codes), load_i16(&codes[2 * LANES..])];
            let at = b / 2 * I16_CHUNK + pair / 8 * BLOCK + b % 2 * (BLOCK / 2) + pair % 8 * 2;
            for t in 0..T {
                let x: &[i16; 2] = x[t].q[at..].first_chunk().expect("an operand row is whole chunks");
                let x = _mm256_set1_epi32(i32::from(x[1]) << 16 | i32::from(x[0] as u16));
                for g in 0..2 {
                    sums[t][g] = _mm256_add_epi32(sums[t][g], _mm256_madd_epi16(w[g], x));
                }
            }
        }
        let scales = &panel.scales[b * PANEL_ROWS + group * 2 * LANES..][..2 * LANES];
        for t in 0..T {
            let x_scale = _mm256_set1_ps(x[t].scales[b]);
            for g in 0..2 {
                // SAFETY: `scales` has 16 elements.
                let scale = unsafe { _mm256_loadu_ps(scales.as_ptr().add(g * LANES)) };
                acc[t][g] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[t][g]), x_scale), scale, acc[t][g]);
            }
        }
    }
    store_tile(&acc, group, out);
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn store_tile<const T: usize>(acc: &[[__m256; 2]; T], group: usize, out: &mut [f32]) {
    for t in 0..T {
        for g in 0..2 {
            store(acc[t][g], &mut out[t * PANEL_ROWS + (2 * group + g) * LANES..]);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn pack_bf16(w: &[bf16], cols: usize, panel: &mut F32Panel) {
    portable::pack_bf16(w, cols, panel);
}

#[target_feature(enable = "avx2,fma")]
fn gemm_bf16(x: &[&[f32]], panel: &F32Panel, out: &mut [f32]) {
    for (x, out) in x.chunks(BF16_TOKENS).zip(out.chunks_mut(BF16_TOKENS * PANEL_ROWS)) {
        for group in 0..PANEL_ROWS / (2 * LANES) {
            match x.len() {
                1 => gemm_bf16_tile::<1>(x, panel, group, out),
                2 => gemm_bf16_tile::<2>(x, panel, group, out),
                3 => gemm_bf16_tile::<3>(x, panel, group, out),
                4 => gemm_bf16_tile::<4>(x, panel, group, out),
                5 => gemm_bf16_tile::<5>(x, panel, group, out),
                _ => gemm_bf16_tile::<BF16_TOKENS>(x, panel, group, out),
            }
        }
    }
}

/// `T` tokens x 16 rows, the `group`th 16 of the panel.
#[target_feature(enable = "avx2,fma")]
fn gemm_bf16_tile<const T: usize>(x: &[&[f32]], panel: &F32Panel, group: usize, out: &mut [f32]) {
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    let xs: [&[f32]; T] = std::array::from_fn(|t| &x[t][..panel.data.len() / PANEL_ROWS]);
    for (k, w) in panel.data.chunks_exact(PANEL_ROWS).enumerate() {
        let w = &w[group * 2 * LANES..][..2 * LANES];
        // SAFETY: `w` has 16 elements.
        let w = unsafe { [_mm256_loadu_ps(w.as_ptr()), _mm256_loadu_ps(w.as_ptr().add(LANES))] };
        for t in 0..T {
            let x = _mm256_set1_ps(xs[t][k]);
            for g in 0..2 {
                acc[t][g] = _mm256_fmadd_ps(w[g], x, acc[t][g]);
            }
        }
    }
    store_tile(&acc, group, out);
}

#[target_feature(enable = "avx2,fma")]
fn scores(q: &[f32], block: KvBlock, head_dim: usize, out: &mut [f32], stride: usize) {
    portable::scores::<Fused>(q, block, head_dim, out, stride);
}

#[target_feature(enable = "avx2,fma")]
fn weigh_values(p: &[f32], stride: usize, block: KvBlock, head_dim: usize, out: &mut [f32]) {
    portable::weigh_values::<Fused>(p, stride, block, head_dim, out);
}

#[target_feature(enable = "avx2,fma")]
fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    portable::exp_sum::<Fused>(x, max)
}

#[target_feature(enable = "avx2,fma")]
fn rms_norm(x: &[f32], weight: &[bf16], eps: f32, out: &mut [f32]) {
    portable::rms_norm(x, weight, eps, out);
}

#[target_feature(enable = "avx2,fma")]
fn swiglu(gate_up: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    portable::swiglu::<Fused>(gate_up, alpha, limit, out);
}

#[target_feature(enable = "avx2,fma")]
fn split_row(x: &[f32], out: &mut [f32]) {
    crate::operand::split_row(x, out);
}

#[target_feature(enable = "avx2,fma")]
fn quantize_row(x: &[f32], q: &mut [i16], scales: &mut [f32]) {
    crate::operand::quantize_row(x, q, scales);
}
