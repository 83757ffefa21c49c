//! AVX-512 (F, BW, VL, DQ, VNNI) kernels.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;
use tessera_model::BLOCK_SIZE;
use tessera_model::mxfp4::{BLOCK, BLOCK_BYTES, e8m0};

use super::portable::{self, DOUBLED, Fused};
use super::{F32Panel, Isa, Kernels, KvBlock, MxPanel, MxRows, PANEL_ROWS};
use crate::lines::Lines;
use crate::operand::{CHUNK_BLOCKS, F32_CHUNK, I16_CHUNK, I16Row, i16_index};

/// Lanes of a float32 vector.
const LANES: usize = 16;
/// Token columns of a register tile: 2 vectors of rows each, as sums and as block sums in 24 of 32 registers.
const MXFP4_TOKENS: usize = 6;
/// Token columns of a register tile: 2 vectors of rows each in 24 of 32 registers.
const BF16_TOKENS: usize = 12;
/// BF16 rows that one pass over the activations serves.
const GEMV_ROWS: usize = 4;
/// Query heads whose scores are formed together.
const SCORE_HEADS: usize = 8;
/// Query heads whose values are summed together.
const VALUE_HEADS: usize = 4;
/// Head elements of a register tile: 4 vectors.
const VALUE_DIMS: usize = 64;
/// How far ahead of a row's codes the next ones are asked for: the hardware stops at each 4 KiB page.
const PREFETCH_BYTES: usize = 4096;

/// How far ahead packing asks for codes: some more than a panel takes of a row.
const PACK_PREFETCH_BYTES: usize = 192;

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
    isa: Isa::Avx512,
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

/// The table of doubled E2M1 values, twice, so that a lookup by 5 bits ignores the highest.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn code_table() -> __m512i {
    let table: [i16; 32] = std::array::from_fn(|i| DOUBLED[i % 16]);
    load_i16(&table)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn load_i16(x: &[i16]) -> __m512i {
    assert!(x.len() >= 2 * LANES);
    // SAFETY: 32 elements were asserted; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn load(x: &[f32]) -> __m512 {
    assert!(x.len() >= LANES);
    // SAFETY: 16 elements were asserted.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn store(x: __m512, out: &mut [f32]) {
    assert!(out.len() >= LANES);
    // SAFETY: 16 elements were asserted.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
}

/// `2^(s - 127)` of 16 scale bytes in 32-bit lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn e8m0_of(bytes: __m512i) -> __m512 {
    let bits = _mm512_slli_epi32::<23>(bytes);
    _mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_set1_epi32(0x0040_0000)))
}

/// Blocks whose scales one vector holds.
const SCALE_BLOCKS: usize = 16;
/// Bytes of codes in a chunk: one vector.
const CHUNK_BYTES: usize = CHUNK_BLOCKS * BLOCK_BYTES;

/// One vector of codes is 16-bit lanes of four elements each, block by block in its 128-bit quarters: a lookup after a
/// shift by 0, 4, 8 or 12 takes the element of each lane that the operand holds at `[j, block, lane]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn gemv_mxfp4(x: I16Row, w: MxRows, out: &mut [f32]) {
    let n_blocks = w.blocks_per_row();
    let n_chunks = n_blocks.div_ceil(CHUNK_BLOCKS);
    assert!(x.q.len() >= n_chunks * I16_CHUNK && x.scales.len() >= n_chunks * CHUNK_BLOCKS && w.rows() >= out.len());
    let x_scales = lane_scales(x);
    let table = code_table();
    for (r, out) in out.iter_mut().enumerate() {
        let (blocks, scales) = (w.row_blocks(r), w.row_scales(r));
        let mut acc = [_mm512_setzero_ps(); 2];
        for (g, scales) in scales.chunks(SCALE_BLOCKS).enumerate() {
            let scales = scales_of(scales);
            for i in 0..SCALE_BLOCKS / CHUNK_BLOCKS {
                let c = g * (SCALE_BLOCKS / CHUNK_BLOCKS) + i;
                if c >= n_chunks {
                    break;
                }
                let codes = load_codes(&blocks[c * CHUNK_BYTES..]);
                // SAFETY: chunk c is below n_chunks, which x holds as asserted.
                let sums = unsafe { dot_chunk(codes, table, x.q.as_ptr().add(c * I16_CHUNK)) };
                let index = _mm512_add_epi32(quarters(), _mm512_set1_epi32((i * CHUNK_BLOCKS) as i32));
                let scale = _mm512_permutexvar_ps(index, scales);
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), load(&x_scales[c * LANES..]));
                acc[i % 2] = _mm512_fmadd_ps(scaled, scale, acc[i % 2]);
            }
        }
        *out = _mm512_reduce_add_ps(_mm512_add_ps(acc[0], acc[1]));
    }
}

/// The number of the 128-bit quarter that each 32-bit lane lies in.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn quarters() -> __m512i {
    _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
}

/// Up to 16 scale bytes as float32 powers of two.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn scales_of(bytes: &[u8]) -> __m512 {
    let mask = (1u32 << bytes.len().min(SCALE_BLOCKS)) - 1;
    // SAFETY: the mask covers the bytes that are there; masked ones are not touched.
    let bytes = unsafe { _mm_maskz_loadu_epi8(mask as __mmask16, bytes.as_ptr().cast()) };
    e8m0_of(_mm512_cvtepu8_epi32(bytes))
}

/// The codes of four blocks, or of fewer and zeros; asks for those a page ahead.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn load_codes(blocks: &[u8]) -> __m512i {
    _mm_prefetch::<_MM_HINT_T0>(blocks.as_ptr().wrapping_add(PREFETCH_BYTES).cast());
    if blocks.len() >= CHUNK_BYTES {
        // SAFETY: 64 bytes were checked.
        unsafe { _mm512_loadu_si512(blocks.as_ptr().cast()) }
    } else {
        // SAFETY: the mask covers the bytes that are there; masked ones are not touched.
        unsafe { _mm512_maskz_loadu_epi8((1u64 << blocks.len()) - 1, blocks.as_ptr().cast()) }
    }
}

/// Integer products of a chunk, four lanes for each block.
///
/// # Safety
/// `x` points to a chunk of an `I16Operand`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn dot_chunk(codes: __m512i, table: __m512i, x: *const i16) -> __m512i {
    let shifted = [codes, _mm512_srli_epi16::<4>(codes), _mm512_srli_epi16::<8>(codes), _mm512_srli_epi16::<12>(codes)];
    let mut sums = [_mm512_setzero_si512(); 2];
    for j in 0..4 {
        let w = _mm512_permutexvar_epi16(shifted[j], table);
        // SAFETY: a chunk is four vectors.
        let x = unsafe { _mm512_loadu_si512(x.add(j * BLOCK).cast()) };
        sums[j % 2] = _mm512_dpwssd_epi32(sums[j % 2], w, x);
    }
    _mm512_add_epi32(sums[0], sums[1])
}

/// The operand's scales as the lanes of [`dot_chunk`] want them: each four times.
fn lane_scales(x: I16Row) -> Lines<f32> {
    let mut lanes = Lines::default();
    lanes.resize(x.scales.len() * 4);
    for (lanes, &scale) in lanes.chunks_exact_mut(4).zip(x.scales) {
        lanes.fill(scale);
    }
    lanes
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn gemv_bf16(x: &[f32], w: &[bf16], cols: usize, out: &mut [f32]) {
    for (w, out) in w.chunks(GEMV_ROWS * cols).zip(out.chunks_mut(GEMV_ROWS)) {
        if out.len() == GEMV_ROWS {
            gemv_bf16_rows::<GEMV_ROWS>(x, w, cols, out);
        } else {
            for (w, out) in w.chunks_exact(cols).zip(out.chunks_exact_mut(1)) {
                gemv_bf16_rows::<1>(x, w, cols, out);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn gemv_bf16_rows<const R: usize>(x: &[f32], w: &[bf16], cols: usize, out: &mut [f32]) {
    let mut even = [_mm512_setzero_ps(); R];
    let mut odd = [_mm512_setzero_ps(); R];
    for (c, x) in x.chunks_exact(F32_CHUNK).enumerate() {
        let (x_even, x_odd) = (load(x), load(&x[LANES..]));
        for r in 0..R {
            let row = &w[r * cols..][..cols];
            let ahead = row.as_ptr().wrapping_add(c * F32_CHUNK).cast::<i8>().wrapping_add(PREFETCH_BYTES / 2);
            _mm_prefetch::<_MM_HINT_T0>(ahead);
            let w = load_bf16(&row[c * F32_CHUNK..]);
            even[r] = _mm512_fmadd_ps(even_floats(w), x_even, even[r]);
            odd[r] = _mm512_fmadd_ps(odd_floats(w), x_odd, odd[r]);
        }
    }
    for r in 0..R {
        out[r] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
    }
}

/// 32 BF16 elements, or fewer and zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn load_bf16(w: &[bf16]) -> __m512i {
    if w.len() >= F32_CHUNK {
        // SAFETY: 32 elements were checked.
        unsafe { _mm512_loadu_si512(w.as_ptr().cast()) }
    } else {
        // SAFETY: the mask covers the elements that are there; masked ones are not touched.
        unsafe { _mm512_maskz_loadu_epi16((1u32 << w.len()) - 1, w.as_ptr().cast()) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn even_floats(w: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn odd_floats(w: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(0xffff_0000u32 as i32)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn pack_mxfp4(w: MxRows, blocks: Range<usize>, panel: &mut MxPanel) {
    panel.resize(blocks.clone());
    assert!(blocks.end <= w.blocks_per_row());
    let last = w.rows() - 1;
    let table = code_table();
    for group in 0..PANEL_ROWS / LANES {
        // Rows beyond the matrix repeat its last one.
        let row = |i: usize| (group * LANES + i).min(last);
        let mut codes = [std::ptr::null(); LANES];
        let mut scales = [&w.scales[..0]; LANES];
        for i in 0..LANES {
            codes[i] = w.row_blocks(row(i)).as_ptr();
            scales[i] = w.row_scales(row(i));
        }
        for (i, b) in blocks.clone().enumerate() {
            if i % CHUNK_BLOCKS == 0 {
                // What the next panel will read: the rows are too far apart for the hardware to see a stream.
                for row in codes {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(b * BLOCK_BYTES + PACK_PREFETCH_BYTES).cast());
                }
            }
            // SAFETY: each row has blocks.end blocks of 16 bytes.
            let quads = unsafe { transpose_quads(&codes, b * BLOCK_BYTES) };
            let out = &mut panel.codes[i * BLOCK * PANEL_ROWS..][..BLOCK * PANEL_ROWS];
            for d in 0..4 {
                unpack_quad(quads[d], table, d, group, out);
            }
        }
        pack_scales(&scales, blocks.clone(), group, &mut panel.scales);
    }
}

/// 16 rows x 16 bytes at `at`, as four vectors: lane r of vector d holds bytes 4d .. 4d + 4 of row r.
///
/// # Safety
/// Each row has 16 bytes at `at`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn transpose_quads(rows: &[*const u8; LANES], at: usize) -> [__m512i; 4] {
    // Vector i holds rows i, 4 + i, 8 + i, 12 + i; a 4 x 4 transposition of 32-bit lanes inside each 128 bits follows.
    let mut v = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        // SAFETY: 16 bytes of each row, as the caller promises.
        unsafe {
            let load = |r: usize| _mm_loadu_si128(rows[r].add(at).cast());
            v[i] = _mm512_castsi128_si512(load(i));
            v[i] = _mm512_inserti32x4::<1>(v[i], load(4 + i));
            v[i] = _mm512_inserti32x4::<2>(v[i], load(8 + i));
            v[i] = _mm512_inserti32x4::<3>(v[i], load(12 + i));
        }
    }
    let low = [_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpacklo_epi32(v[2], v[3])];
    let high = [_mm512_unpackhi_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[2], v[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// Decodes bytes 4d .. 4d + 4 of 16 rows: shifts by 0, 4, 8 and 12 bring columns 8d + j and 8d + 4 + j to the bottom of
/// a 32-bit lane's halves, as pair 4j + d.
///
/// A lookup reads the low 5 bits of each 16-bit lane and the table ignores the fifth, so the shift is all the unpacking
/// there is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn unpack_quad(v: __m512i, table: __m512i, d: usize, group: usize, out: &mut [i16]) {
    let shifted = [v, _mm512_srli_epi16::<4>(v), _mm512_srli_epi16::<8>(v), _mm512_srli_epi16::<12>(v)];
    for j in 0..4 {
        let out = &mut out[((4 * j + d) * PANEL_ROWS + group * LANES) * 2..][..2 * LANES];
        // SAFETY: `out` has 32 elements.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(shifted[j], table)) }
    }
}

/// Scales of 16 rows, `[blocks, PANEL_ROWS]`.
fn pack_scales(rows: &[&[u8]; LANES], blocks: Range<usize>, group: usize, out: &mut [f32]) {
    for (r, row) in rows.iter().enumerate() {
        for (i, &scale) in row[blocks.clone()].iter().enumerate() {
            out[i * PANEL_ROWS + group * LANES + r] = e8m0(scale);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn gemm_mxfp4(x: &[I16Row], panel: &MxPanel, out: &mut [f32]) {
    for (x, out) in x.chunks(MXFP4_TOKENS).zip(out.chunks_mut(MXFP4_TOKENS * PANEL_ROWS)) {
        match x.len() {
            1 => gemm_mxfp4_tile::<1>(x, panel, out),
            2 => gemm_mxfp4_tile::<2>(x, panel, out),
            3 => gemm_mxfp4_tile::<3>(x, panel, out),
            4 => gemm_mxfp4_tile::<4>(x, panel, out),
            5 => gemm_mxfp4_tile::<5>(x, panel, out),
            _ => gemm_mxfp4_tile::<MXFP4_TOKENS>(x, panel, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn gemm_mxfp4_tile<const T: usize>(x: &[I16Row], panel: &MxPanel, out: &mut [f32]) {
    let blocks = panel.blocks.clone();
    assert!(panel.codes.len() >= blocks.len() * BLOCK * PANEL_ROWS && x.len() >= T);
    let mut xs = [std::ptr::null::<i32>(); T];
    let mut acc = [[_mm512_setzero_ps(); 2]; T];
    for t in 0..T {
        assert!(x[t].q.len() >= blocks.end.div_ceil(CHUNK_BLOCKS) * I16_CHUNK && x[t].scales.len() >= blocks.end);
        xs[t] = x[t].q.as_ptr().cast();
        acc[t] = [load(&out[t * PANEL_ROWS..]), load(&out[t * PANEL_ROWS + LANES..])];
    }
    for (i, b) in blocks.enumerate() {
        let codes = panel.codes[i * BLOCK * PANEL_ROWS..][..BLOCK * PANEL_ROWS].as_ptr();
        let at = i16_index(b, 0) / 2;
        let mut sums = [[_mm512_setzero_si512(); 2]; T];
        for pair in 0..BLOCK / 2 {
            // SAFETY: a block is 16 pairs of 2 vectors of 32 codes, and `codes` was sliced to it.
            let w = unsafe {
                let w = codes.add(pair * 2 * PANEL_ROWS);
                [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(2 * LANES).cast())]
            };
            for t in 0..T {
                // SAFETY: the pair lies in the chunk of block b, which the length asserted above holds.
                let x =
                    _mm512_set1_epi32(unsafe { xs[t].add(at + pair / 4 * (BLOCK / 2) + pair % 4).read_unaligned() });
                sums[t][0] = _mm512_dpwssd_epi32(sums[t][0], w[0], x);
                sums[t][1] = _mm512_dpwssd_epi32(sums[t][1], w[1], x);
            }
        }
        let scales = &panel.scales[i * PANEL_ROWS..][..PANEL_ROWS];
        let scales = [load(scales), load(&scales[LANES..])];
        for t in 0..T {
            let x_scale = _mm512_set1_ps(x[t].scales[b]);
            for g in 0..2 {
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[t][g]), x_scale);
                acc[t][g] = _mm512_fmadd_ps(scaled, scales[g], acc[t][g]);
            }
        }
    }
    for t in 0..T {
        store(acc[t][0], &mut out[t * PANEL_ROWS..]);
        store(acc[t][1], &mut out[t * PANEL_ROWS + LANES..]);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn pack_bf16(w: &[bf16], cols: usize, part: Range<usize>, panel: &mut F32Panel) {
    panel.resize(part.clone());
    let last = w.len() / cols - 1;
    for group in 0..PANEL_ROWS / LANES {
        for (c, out) in panel.data.chunks_exact_mut(F32_CHUNK * PANEL_ROWS).enumerate() {
            let mut even = [_mm512_setzero_ps(); LANES];
            let mut odd = even;
            for r in 0..LANES {
                // Rows beyond the matrix repeat its last one.
                let row = &w[(group * LANES + r).min(last) * cols..][..cols];
                let w = load_bf16(&row[part.start + c * F32_CHUNK..part.end]);
                (even[r], odd[r]) = (even_floats(w), odd_floats(w));
            }
            let (even, odd) = (transpose(&even), transpose(&odd));
            for k in 0..LANES {
                store(even[k], &mut out[k * PANEL_ROWS + group * LANES..]);
                store(odd[k], &mut out[(LANES + k) * PANEL_ROWS + group * LANES..]);
            }
        }
    }
}

/// Transposes a 16 x 16 matrix.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn transpose(v: &[__m512; LANES]) -> [__m512; LANES] {
    // Within 128-bit lanes first: after this, lane L of q[4 i + j] holds element 4L + j of rows 4i .. 4i + 4.
    let pd = |x: __m512| _mm512_castps_pd(x);
    let mut q = [_mm512_setzero_ps(); LANES];
    for i in (0..LANES).step_by(4) {
        let low = [pd(_mm512_unpacklo_ps(v[i], v[i + 1])), pd(_mm512_unpacklo_ps(v[i + 2], v[i + 3]))];
        let high = [pd(_mm512_unpackhi_ps(v[i], v[i + 1])), pd(_mm512_unpackhi_ps(v[i + 2], v[i + 3]))];
        q[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low[0], low[1]));
        q[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low[0], low[1]));
        q[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high[0], high[1]));
        q[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high[0], high[1]));
    }
    // Then the 4 x 4 matrix of 128-bit lanes of q[j], q[4 + j], q[8 + j], q[12 + j].
    let mut out = [_mm512_setzero_ps(); LANES];
    for j in 0..4 {
        let low = [_mm512_shuffle_f32x4::<0x44>(q[j], q[4 + j]), _mm512_shuffle_f32x4::<0x44>(q[8 + j], q[12 + j])];
        let high = [_mm512_shuffle_f32x4::<0xee>(q[j], q[4 + j]), _mm512_shuffle_f32x4::<0xee>(q[8 + j], q[12 + j])];
        out[j] = _mm512_shuffle_f32x4::<0x88>(low[0], low[1]);
        out[4 + j] = _mm512_shuffle_f32x4::<0xdd>(low[0], low[1]);
        out[8 + j] = _mm512_shuffle_f32x4::<0x88>(high[0], high[1]);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(high[0], high[1]);
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn gemm_bf16(x: &[&[f32]], panel: &F32Panel, out: &mut [f32]) {
    for (x, out) in x.chunks(BF16_TOKENS).zip(out.chunks_mut(BF16_TOKENS * PANEL_ROWS)) {
        match x.len() {
            1 => gemm_bf16_tile::<1>(x, panel, out),
            2 => gemm_bf16_tile::<2>(x, panel, out),
            3 => gemm_bf16_tile::<3>(x, panel, out),
            4 => gemm_bf16_tile::<4>(x, panel, out),
            5 => gemm_bf16_tile::<5>(x, panel, out),
            6 => gemm_bf16_tile::<6>(x, panel, out),
            7 => gemm_bf16_tile::<7>(x, panel, out),
            8 => gemm_bf16_tile::<8>(x, panel, out),
            9 => gemm_bf16_tile::<9>(x, panel, out),
            10 => gemm_bf16_tile::<10>(x, panel, out),
            11 => gemm_bf16_tile::<11>(x, panel, out),
            _ => gemm_bf16_tile::<BF16_TOKENS>(x, panel, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn gemm_bf16_tile<const T: usize>(x: &[&[f32]], panel: &F32Panel, out: &mut [f32]) {
    let n = panel.data.len() / PANEL_ROWS;
    let w = panel.data.as_ptr();
    let mut xs = [std::ptr::null::<f32>(); T];
    let mut acc = [[_mm512_setzero_ps(); 2]; T];
    for t in 0..T {
        xs[t] = x[t][panel.cols.start..][..n].as_ptr();
        acc[t] = [load(&out[t * PANEL_ROWS..]), load(&out[t * PANEL_ROWS + LANES..])];
    }
    for k in 0..n {
        // SAFETY: the panel has n columns of 32 rows.
        let w = unsafe { [_mm512_loadu_ps(w.add(k * PANEL_ROWS)), _mm512_loadu_ps(w.add(k * PANEL_ROWS + LANES))] };
        for t in 0..T {
            // SAFETY: each of the T rows was sliced to n elements.
            let x = _mm512_set1_ps(unsafe { *xs[t].add(k) });
            acc[t][0] = _mm512_fmadd_ps(w[0], x, acc[t][0]);
            acc[t][1] = _mm512_fmadd_ps(w[1], x, acc[t][1]);
        }
    }
    for t in 0..T {
        store(acc[t][0], &mut out[t * PANEL_ROWS..]);
        store(acc[t][1], &mut out[t * PANEL_ROWS + LANES..]);
    }
}

/// 16 BF16 elements widened.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn widen(x: &[bf16]) -> __m512 {
    assert!(x.len() >= LANES);
    // SAFETY: 16 elements of 2 bytes were asserted.
    let x = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn scores(q: &[f32], block: KvBlock, head_dim: usize, out: &mut [f32], stride: usize) {
    let tile = SCORE_HEADS * head_dim;
    for (q, out) in q.chunks(tile).zip(out.chunks_mut(SCORE_HEADS * stride)) {
        if q.len() == tile {
            let mut acc = [_mm512_setzero_ps(); SCORE_HEADS];
            for (d, k) in block.k.chunks_exact(BLOCK_SIZE).enumerate() {
                let k = widen(k);
                for h in 0..SCORE_HEADS {
                    acc[h] = _mm512_fmadd_ps(_mm512_set1_ps(q[h * head_dim + d]), k, acc[h]);
                }
            }
            for h in 0..SCORE_HEADS {
                store(acc[h], &mut out[h * stride..]);
            }
        } else {
            portable::scores::<Fused>(q, block, head_dim, out, stride);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn weigh_values(p: &[f32], stride: usize, block: KvBlock, head_dim: usize, out: &mut [f32]) {
    let heads = out.len() / head_dim;
    if head_dim != VALUE_DIMS || !heads.is_multiple_of(VALUE_HEADS) {
        return portable::weigh_values::<Fused>(p, stride, block, head_dim, out);
    }
    const VECTORS: usize = VALUE_DIMS / LANES;
    for (p, out) in p.chunks(VALUE_HEADS * stride).zip(out.chunks_exact_mut(VALUE_HEADS * VALUE_DIMS)) {
        let mut acc: [[__m512; VECTORS]; VALUE_HEADS] =
            std::array::from_fn(|h| std::array::from_fn(|i| load(&out[h * VALUE_DIMS + i * LANES..])));
        for (j, v) in block.v.chunks_exact(VALUE_DIMS).enumerate() {
            let v: [__m512; VECTORS] = std::array::from_fn(|i| widen(&v[i * LANES..]));
            for h in 0..VALUE_HEADS {
                let p = _mm512_set1_ps(p[h * stride + j]);
                for i in 0..VECTORS {
                    acc[h][i] = _mm512_fmadd_ps(p, v[i], acc[h][i]);
                }
            }
        }
        for h in 0..VALUE_HEADS {
            for i in 0..VECTORS {
                store(acc[h][i], &mut out[h * VALUE_DIMS + i * LANES..]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    portable::exp_sum::<Fused>(x, max)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn rms_norm(x: &[f32], weight: &[bf16], eps: f32, out: &mut [f32]) {
    portable::rms_norm(x, weight, eps, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn swiglu(gate_up: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    portable::swiglu::<Fused>(gate_up, alpha, limit, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn split_row(x: &[f32], out: &mut [f32]) {
    crate::operand::split_row(x, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn quantize_row(x: &[f32], q: &mut [i16], scales: &mut [f32]) {
    crate::operand::quantize_row(x, q, scales);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn fold(memory: &[u64]) -> u64 {
    portable::fold(memory)
}
