//! AVX2 and FMA kernels.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;
use tessera_model::mxfp4::{BLOCK, BLOCK_BYTES, e8m0};

use super::portable::{self, DOUBLED, Fused};
use super::{F32Panel, Isa, Kernels, KvBlock, MxPanel, MxRows, PANEL_ROWS};
use crate::operand::{F32_CHUNK, I16Row, i16_index};

/// Lanes of a float32 vector.
const LANES: usize = 8;
/// Rows of a register tile: 2 vectors.
const TILE_ROWS: usize = 2 * LANES;
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
    pack_mxfp4: enter!(|w, blocks, panel| pack_mxfp4(w, blocks, panel)),
    gemm_mxfp4: enter!(|x, panel, out| gemm_mxfp4(x, panel, out)),
    pack_bf16: enter!(|w, cols, part, panel| pack_bf16(w, cols, part, panel)),
    gemm_bf16: enter!(|x, panel, out| gemm_bf16(x, panel, out)),
    scores: enter!(|q, block, head_dim, out, stride| scores(q, block, head_dim, out, stride)),
    weigh_values: enter!(|p, stride, block, head_dim, out| weigh_values(p, stride, block, head_dim, out)),
    exp_sum: enter!(|x, max| exp_sum(x, max)),
    rms_norm: enter!(|x, weight, eps, out| rms_norm(x, weight, eps, out)),
    swiglu: enter!(|gate_up, alpha, limit, out| swiglu(gate_up, alpha, limit, out)),
    split_row: enter!(|x, out| split_row(x, out)),
    quantize_row: enter!(|x, q, scales| quantize_row(x, q, scales)),
    fold: enter!(|memory| fold(memory)),
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
fn load(x: &[f32]) -> __m256 {
    assert!(x.len() >= LANES);
    // SAFETY: 8 elements were asserted.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
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

/// Doubled E2M1 values, which fit a byte, so that a byte shuffle decodes 16 codes at once.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn code_table() -> __m128i {
    let bytes = DOUBLED.map(|v| v as i8);
    // SAFETY: 16 bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// The doubled values of the low and of the high nibbles of 16 bytes.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn decode(codes: __m128i, table: __m128i) -> [__m128i; 2] {
    let nibble = _mm_set1_epi8(15);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble);
    [_mm_shuffle_epi8(table, _mm_and_si128(codes, nibble)), _mm_shuffle_epi8(table, high)]
}

/// Two blocks at a time: the shuffle leaves elements 4w and 4w + 2 (and 4w + 1, 4w + 3) in the bytes of 16-bit lane w.
#[target_feature(enable = "avx2,fma")]
fn gemv_mxfp4(x: I16Row, w: MxRows, out: &mut [f32]) {
    let table = _mm256_broadcastsi128_si256(code_table());
    let nibble = _mm256_set1_epi8(15);
    let low = |v: __m256i| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v));
    for (r, out) in out.iter_mut().enumerate() {
        let mut acc = _mm256_setzero_ps();
        for (c, scales) in w.row_scales(r).chunks(2).enumerate() {
            let codes = load_codes(&w.row_blocks(r)[c * 2 * BLOCK_BYTES..]);
            let evens = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
            let odds = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble));
            let columns = [low(evens), low(odds), _mm256_srai_epi16::<8>(evens), _mm256_srai_epi16::<8>(odds)];
            let x_chunk = &x.q[i16_index(2 * c, 0)..];
            let mut sums = _mm256_setzero_si256();
            for j in 0..4 {
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(columns[j], load_i16(&x_chunk[j * BLOCK..])));
            }
            let scale = |b: usize| scales.get(b).map_or(0.0, |&s| e8m0(s));
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), halves(x.scales[2 * c], x.scales[2 * c + 1]));
            acc = _mm256_fmadd_ps(scaled, halves(scale(0), scale(1)), acc);
        }
        *out = sum(acc);
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn halves(low: f32, high: f32) -> __m256 {
    _mm256_setr_m128(_mm_set1_ps(low), _mm_set1_ps(high))
}

/// The codes of two blocks, or of one and zeros.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_codes(blocks: &[u8]) -> __m256i {
    if blocks.len() >= 2 * BLOCK_BYTES {
        // SAFETY: 32 bytes were checked.
        unsafe { _mm256_loadu_si256(blocks.as_ptr().cast()) }
    } else {
        assert!(blocks.len() >= BLOCK_BYTES);
        // SAFETY: 16 bytes were asserted.
        _mm256_zextsi128_si256(unsafe { _mm_loadu_si128(blocks.as_ptr().cast()) })
    }
}

#[target_feature(enable = "avx2,fma")]
fn gemv_bf16(x: &[f32], w: &[bf16], cols: usize, out: &mut [f32]) {
    for (w, out) in w.chunks_exact(cols).zip(out) {
        let mut acc = [_mm256_setzero_ps(); 4];
        for (x, w) in x.chunks_exact(F32_CHUNK).zip(w.chunks(F32_CHUNK)) {
            for half in 0..2 {
                let w = load_bf16(&w[(half * 2 * LANES).min(w.len())..]);
                acc[2 * half] = _mm256_fmadd_ps(even_floats(w), load(&x[half * LANES..]), acc[2 * half]);
                acc[2 * half + 1] = _mm256_fmadd_ps(odd_floats(w), load(&x[(2 + half) * LANES..]), acc[2 * half + 1]);
            }
        }
        *out = sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    }
}

/// 16 BF16 elements, or fewer and zeros.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_bf16(w: &[bf16]) -> __m256i {
    let mut padded = [bf16::ZERO; 2 * LANES];
    let w = if w.len() >= 2 * LANES {
        w
    } else {
        padded[..w.len()].copy_from_slice(w);
        &padded
    };
    // SAFETY: 16 elements of 2 bytes.
    unsafe { _mm256_loadu_si256(w.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn even_floats(w: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn odd_floats(w: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(0xffff_0000u32 as i32)))
}

#[target_feature(enable = "avx2,fma")]
fn pack_mxfp4(w: MxRows, blocks: Range<usize>, panel: &mut MxPanel) {
    panel.resize(blocks.clone());
    let last = w.rows() - 1;
    let table = code_table();
    for group in 0..PANEL_ROWS / TILE_ROWS {
        // Rows beyond the matrix repeat its last one.
        let row = |r: usize| (group * TILE_ROWS + r).min(last);
        for (i, b) in blocks.clone().enumerate() {
            let mut codes = [_mm_setzero_si128(); TILE_ROWS];
            for r in 0..TILE_ROWS {
                let bytes = &w.row_blocks(row(r))[b * BLOCK_BYTES..][..BLOCK_BYTES];
                // SAFETY: 16 bytes.
                codes[r] = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
                panel.scales[i * PANEL_ROWS + group * TILE_ROWS + r] = e8m0(w.row_scales(row(r))[b]);
            }
            let columns = transpose_bytes(codes);
            let out = &mut panel.codes[i * BLOCK * PANEL_ROWS..][..BLOCK * PANEL_ROWS];
            for byte in (0..BLOCK_BYTES).filter(|byte| byte % 4 < 2) {
                // Its nibbles are columns 8m + j for j = 2 (byte % 4) and the next; those two bytes on are 4 columns on.
                let (a, b) = (decode(columns[byte], table), decode(columns[byte + 2], table));
                for nibble in 0..2 {
                    let pair = 4 * (2 * (byte % 4) + nibble) + byte / 4;
                    store_pair(a[nibble], b[nibble], &mut out[(pair * PANEL_ROWS + group * TILE_ROWS) * 2..]);
                }
            }
        }
    }
}

/// Transposes a 16 x 16 matrix of bytes: interleaving rows r and r + 8 four times does.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transpose_bytes(mut v: [__m128i; TILE_ROWS]) -> [__m128i; TILE_ROWS] {
    for _ in 0..4 {
        let rows = v;
        for r in 0..TILE_ROWS / 2 {
            v[2 * r] = _mm_unpacklo_epi8(rows[r], rows[r + TILE_ROWS / 2]);
            v[2 * r + 1] = _mm_unpackhi_epi8(rows[r], rows[r + TILE_ROWS / 2]);
        }
    }
    v
}

/// Stores two columns of 16 rows as 16 pairs of 16 bits.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn store_pair(a: __m128i, b: __m128i, out: &mut [i16]) {
    let out = &mut out[..4 * LANES];
    let (low, high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
    // SAFETY: `out` has 32 elements.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_cvtepi8_epi16(low));
        _mm256_storeu_si256(out.as_mut_ptr().add(2 * LANES).cast(), _mm256_cvtepi8_epi16(high));
    }
}

#[target_feature(enable = "avx2,fma")]
fn gemm_mxfp4(x: &[I16Row], panel: &MxPanel, out: &mut [f32]) {
    for (x, out) in x.chunks(MXFP4_TOKENS).zip(out.chunks_mut(MXFP4_TOKENS * PANEL_ROWS)) {
        for group in 0..PANEL_ROWS / TILE_ROWS {
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
    let mut acc = load_tile::<T>(group, out);
    for (i, codes) in panel.codes.chunks_exact(BLOCK * PANEL_ROWS).enumerate() {
        let b = panel.blocks.start + i;
        let at = i16_index(b, 0);
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for (pair, codes) in codes.chunks_exact(2 * PANEL_ROWS).enumerate() {
            let codes = &codes[group * 2 * TILE_ROWS..][..2 * TILE_ROWS];
            let w = [load_i16(codes), load_i16(&codes[2 * LANES..])];
            for t in 0..T {
                let x: &[i16; 2] = x[t].q[at + pair / 4 * BLOCK + pair % 4 * 2..].first_chunk().expect("whole chunks");
                let x = _mm256_set1_epi32(i32::from(x[1]) << 16 | i32::from(x[0] as u16));
                for g in 0..2 {
                    sums[t][g] = _mm256_add_epi32(sums[t][g], _mm256_madd_epi16(w[g], x));
                }
            }
        }
        let scales = &panel.scales[i * PANEL_ROWS + group * TILE_ROWS..][..TILE_ROWS];
        for t in 0..T {
            let x_scale = _mm256_set1_ps(x[t].scales[b]);
            for g in 0..2 {
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[t][g]), x_scale);
                acc[t][g] = _mm256_fmadd_ps(scaled, load(&scales[g * LANES..]), acc[t][g]);
            }
        }
    }
    store_tile(&acc, group, out);
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_tile<const T: usize>(group: usize, out: &[f32]) -> [[__m256; 2]; T] {
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    for t in 0..T {
        for g in 0..2 {
            acc[t][g] = load(&out[t * PANEL_ROWS + group * TILE_ROWS + g * LANES..]);
        }
    }
    acc
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn store_tile<const T: usize>(acc: &[[__m256; 2]; T], group: usize, out: &mut [f32]) {
    for t in 0..T {
        for g in 0..2 {
            store(acc[t][g], &mut out[t * PANEL_ROWS + group * TILE_ROWS + g * LANES..]);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn pack_bf16(w: &[bf16], cols: usize, part: Range<usize>, panel: &mut F32Panel) {
    panel.resize(part.clone());
    let last = w.len() / cols - 1;
    for group in 0..PANEL_ROWS / LANES {
        for c in 0..panel.data.len() / (2 * LANES * PANEL_ROWS) {
            let mut even = [_mm256_setzero_ps(); LANES];
            let mut odd = even;
            for r in 0..LANES {
                // Rows beyond the matrix repeat its last one.
                let row = &w[(group * LANES + r).min(last) * cols..][..cols];
                let w = load_bf16(&row[(part.start + c * 2 * LANES).min(part.end)..part.end]);
                (even[r], odd[r]) = (even_floats(w), odd_floats(w));
            }
            let (even, odd) = (transpose(&even), transpose(&odd));
            // These 8 evens and 8 odds are one half of a chunk of 16 evens, then 16 odds.
            let at = c / 2 * F32_CHUNK + c % 2 * LANES;
            for k in 0..LANES {
                store(even[k], &mut panel.data[(at + k) * PANEL_ROWS + group * LANES..]);
                store(odd[k], &mut panel.data[(at + F32_CHUNK / 2 + k) * PANEL_ROWS + group * LANES..]);
            }
        }
    }
}

/// Transposes an 8 x 8 matrix.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transpose(v: &[__m256; LANES]) -> [__m256; LANES] {
    // Within 128-bit lanes first: after this, lane L of q[4 i + j] holds element 4L + j of rows 4i .. 4i + 4.
    let mut q = [_mm256_setzero_ps(); LANES];
    for i in (0..LANES).step_by(4) {
        let low = [_mm256_unpacklo_ps(v[i], v[i + 1]), _mm256_unpacklo_ps(v[i + 2], v[i + 3])];
        let high = [_mm256_unpackhi_ps(v[i], v[i + 1]), _mm256_unpackhi_ps(v[i + 2], v[i + 3])];
        q[i] = _mm256_shuffle_ps::<0x44>(low[0], low[1]);
        q[i + 1] = _mm256_shuffle_ps::<0xee>(low[0], low[1]);
        q[i + 2] = _mm256_shuffle_ps::<0x44>(high[0], high[1]);
        q[i + 3] = _mm256_shuffle_ps::<0xee>(high[0], high[1]);
    }
    let mut out = [_mm256_setzero_ps(); LANES];
    for j in 0..4 {
        out[j] = _mm256_permute2f128_ps::<0x20>(q[j], q[4 + j]);
        out[4 + j] = _mm256_permute2f128_ps::<0x31>(q[j], q[4 + j]);
    }
    out
}

#[target_feature(enable = "avx2,fma")]
fn gemm_bf16(x: &[&[f32]], panel: &F32Panel, out: &mut [f32]) {
    for (x, out) in x.chunks(BF16_TOKENS).zip(out.chunks_mut(BF16_TOKENS * PANEL_ROWS)) {
        for group in 0..PANEL_ROWS / TILE_ROWS {
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
    let n = panel.data.len() / PANEL_ROWS;
    let mut acc = load_tile::<T>(group, out);
    let mut xs = [&[][..]; T];
    for t in 0..T {
        xs[t] = &x[t][panel.cols.start..][..n];
    }
    for (k, w) in panel.data.chunks_exact(PANEL_ROWS).enumerate() {
        let w = &w[group * TILE_ROWS..][..TILE_ROWS];
        let w = [load(w), load(&w[LANES..])];
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

#[target_feature(enable = "avx2,fma")]
fn fold(memory: &[u64]) -> u64 {
    portable::fold(memory)
}
