//! Activations in the forms that the matrix kernels read.
//!
//! Both hold elements in the order in which weights come apart without being interleaved: a 32-bit lane of BF16 weights
//! is an even element and the odd one after it, and a 16-bit lane of MXFP4 codes is four elements in a row.

use tessera_model::mxfp4::BLOCK;

use crate::lines::Lines;

/// Elements of [`F32Operand`] that are reordered together: 16 evens, then 16 odds.
pub const F32_CHUNK: usize = 32;
/// Blocks of [`I16Operand`] that are reordered together: one vector of codes.
pub const CHUNK_BLOCKS: usize = 4;
/// Elements of [`I16Operand`] that are reordered together.
pub const I16_CHUNK: usize = CHUNK_BLOCKS * BLOCK;
/// 16-bit lanes of codes in a block, four elements each.
const CODE_LANES: usize = BLOCK / 4;
/// The largest magnitude of a quantised activation.
const I16_MAX: f32 = 32767.0;

/// Float32 activations for dense weights, each row padded with zeros to whole chunks.
#[derive(Default)]
pub struct F32Operand {
    data: Lines<f32>, // [rows, stride], every chunk as [16 evens, 16 odds]
    stride: usize,
}

/// Activations as 16-bit block fixed point for MXFP4 weights: element = `q * scale` of its block of 32.
///
/// The step is 2^-15 of the block's largest magnitude, so a block's total rounding error stays below what rounding its
/// largest element to bf16 alone would give (half an ulp is 2^-9 of it), while products with E2M1 codes sum exactly in
/// 32-bit integers.
#[derive(Default)]
pub struct I16Operand {
    q: Lines<i16>,      // [rows, stride], every chunk as [4, blocks, 8]: element 4w + j of block b at [j, b, w]
    scales: Lines<f32>, // [rows, stride / 32], halved: E2M1 codes are multiplied as integers, in units of 0.5
    stride: usize,
}

/// One row of an [`I16Operand`].
#[derive(Clone, Copy)]
pub struct I16Row<'a> {
    pub q: &'a [i16],      // [stride]
    pub scales: &'a [f32], // [stride / 32]
}

impl F32Operand {
    /// Makes room for `rows` rows of `cols` elements.
    pub fn resize(&mut self, rows: usize, cols: usize) {
        self.stride = cols.next_multiple_of(F32_CHUNK);
        self.data.reset(rows * self.stride);
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.stride]
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl I16Operand {
    /// Makes room for `rows` rows of `cols` elements.
    pub fn resize(&mut self, rows: usize, cols: usize) {
        self.stride = cols.next_multiple_of(I16_CHUNK);
        self.q.reset(rows * self.stride);
        self.scales.reset(rows * self.stride / BLOCK);
    }

    pub fn row(&self, row: usize) -> I16Row<'_> {
        let blocks = self.stride / BLOCK;
        I16Row { q: &self.q[row * self.stride..][..self.stride], scales: &self.scales[row * blocks..][..blocks] }
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    pub fn parts_mut(&mut self) -> (&mut [i16], &mut [f32]) {
        (&mut self.q, &mut self.scales)
    }
}

/// Writes one row of an [`F32Operand`]: `out` `[stride]`.
#[inline(always)]
pub fn split_row(x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks(F32_CHUNK).zip(out.chunks_exact_mut(F32_CHUNK)) {
        if let Ok(x) = <&[f32; F32_CHUNK]>::try_from(x) {
            for i in 0..F32_CHUNK / 2 {
                out[i] = x[2 * i];
                out[F32_CHUNK / 2 + i] = x[2 * i + 1];
            }
        } else {
            for (i, &v) in x.iter().enumerate() {
                out[i % 2 * (F32_CHUNK / 2) + i / 2] = v;
            }
        }
    }
}

/// Writes one row of an [`I16Operand`]: `q` `[stride]`, `scales` `[stride / 32]`. `x.len()` is a multiple of 32.
#[inline(always)]
pub fn quantize_row(x: &[f32], q: &mut [i16], scales: &mut [f32]) {
    for (b, x) in x.chunks_exact(BLOCK).enumerate() {
        // As bits, where NaN is above infinity and infinity above all numbers, so that neither goes unseen.
        let max = f32::from_bits(x.iter().fold(0u32, |m, v| m.max(v.abs().to_bits())));
        // A block of zeros, or one too small to divide by, is zero.
        let inverse = if max > f32::MIN_POSITIVE * I16_MAX { I16_MAX / max } else { 0.0 };
        scales[b] = if max.is_finite() { 0.5 * max / I16_MAX } else { f32::NAN };
        let chunk = &mut q[b / CHUNK_BLOCKS * I16_CHUNK..][..I16_CHUNK];
        for j in 0..4 {
            let out = &mut chunk[j * BLOCK + b % CHUNK_BLOCKS * CODE_LANES..][..CODE_LANES];
            for w in 0..CODE_LANES {
                out[w] = (x[4 * w + j] * inverse).round_ties_even() as i16;
            }
        }
    }
}

/// Where element `i` of block `b` stands in a row of an [`I16Operand`].
pub fn i16_index(b: usize, i: usize) -> usize {
    b / CHUNK_BLOCKS * I16_CHUNK + i % 4 * BLOCK + b % CHUNK_BLOCKS * CODE_LANES + i / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evens_and_odds_come_apart() {
        let x: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let mut operand = F32Operand::default();
        operand.resize(1, 40);
        split_row(&x, operand.data_mut());
        let row = operand.row(0);
        assert_eq!((row[1], row[16], row[32], row[48], row[63]), (2.0, 1.0, 32.0, 33.0, 0.0));
    }

    #[test]
    fn a_block_is_rounded_to_its_largest_element() {
        let x: Vec<f32> = (0..96).map(|i| ((i * 37 % 96) as f32 - 48.0) * if i < 32 { 1e-3 } else { 10.0 }).collect();
        let mut operand = I16Operand::default();
        operand.resize(1, 96);
        let (q, scales) = operand.parts_mut();
        quantize_row(&x, q, scales);
        for (i, &want) in x.iter().enumerate() {
            let (b, r) = (i / 32, i % 32);
            let at = b / 4 * 128 + r % 4 * 32 + b % 4 * 8 + r / 4;
            assert_eq!(at, i16_index(b, r));
            let max = x[b * 32..][..32].iter().fold(0f32, |m, v| m.max(v.abs()));
            let got = f32::from(operand.row(0).q[at]) * operand.row(0).scales[b] * 2.0;
            assert!((got - want).abs() <= max / I16_MAX * 0.501, "{i}: {got} for {want}");
        }
        assert_eq!(operand.row(0).scales.len(), 4);
    }

    #[test]
    fn what_is_not_finite_stays_visible_and_zeros_stay_zero() {
        let mut x = [0f32; 64];
        x[40] = f32::INFINITY;
        let mut operand = I16Operand::default();
        operand.resize(1, 64);
        let (q, scales) = operand.parts_mut();
        quantize_row(&x, q, scales);
        assert!(operand.row(0).scales[1].is_nan() && operand.row(0).scales[0] == 0.0);
        x[40] = f32::NAN;
        let (q, scales) = operand.parts_mut();
        quantize_row(&x, q, scales);
        assert!(operand.row(0).scales[1].is_nan() && operand.row(0).scales[0] == 0.0);
    }
}
