//! Scales, whole columns, sums, and how the work is shared.

use super::Bench;
use super::matrix::Matrix;
use super::numbers::{ONE, SCALE_ONE, noise, power, weight};
use super::rig::{Rig, one_hot};
use crate::kernels::moe_gemm::MoeKernel;
use crate::moe::MoeError;

/// Columns of the published models' matrices.
const K: usize = 2880;
const BLOCK: usize = 32;
const N_BLOCKS: usize = K / BLOCK;
/// Of float32 sums, relative to the Frobenius norm; 1.8e-6 was measured for 2,880 terms.
const MAX_SUM_ERROR: f64 = 1e-5;

/// All weights are 1 but for their scales; each token has one element in a block.
pub fn scales(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    const ROWS: usize = 64;
    const EDGES: [u8; 5] = [0, 1, 2, 127, 128];
    let spread: fn(usize, usize) -> u8 = |row, block| 119 + ((3 * row + 7 * block) % 16) as u8;
    let edges: fn(usize, usize) -> u8 = |row, block| EDGES[(row + block) % EDGES.len()];
    // Under the smallest scale a 1 makes a sum that is subnormal, a 256 does not.
    for (scale, exponent) in [(spread, 0), (edges, 8), (edges, 0)] {
        let matrix = Matrix::new(ROWS, K, |_, _| ONE, scale);
        let mut rig = Rig::down(bench, 1, matrix)?;
        let mut h = one_hot(N_BLOCKS, K, |token| BLOCK * token + 11 * token % BLOCK);
        h.iter_mut().for_each(|h| *h *= power(exponent) as f32);
        let mut batch = rig.route_to_down(&[0; N_BLOCKS], &h)?;
        let y = rig.run_down(&mut batch, kernel, bench.usual_blocks())?;
        for (i, found) in y.into_iter().enumerate() {
            let (block, row) = (i / ROWS, i % ROWS);
            let s = scale(row, block);
            let expect = (weight(ONE, s) * power(exponent)) as f32;
            if found != expect {
                let what = format!("row {row}, block {block}, scale byte {s}, times 2^{exponent}");
                return Ok(Some(format!("{what}: {found:e}, expected {expect:e}")));
            }
        }
    }
    Ok(None)
}

/// Token k picks column k of random weights: what comes back are the weights, exactly.
pub fn walk(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    const ROWS: usize = 96;
    let matrix = random_matrix(ROWS);
    let mut rig = Rig::down(bench, 1, matrix.clone())?;
    let mut batch = rig.route_to_down(&[0; K], &one_hot(K, K, |token| token))?;
    let y = rig.run_down(&mut batch, kernel, bench.usual_blocks())?;
    Ok(y.into_iter().enumerate().find_map(|(i, found)| {
        let (k, row) = (i / ROWS, i % ROWS);
        let expect = matrix.value(row, k) as f32;
        (found != expect).then(|| format!("row {row}, k {k}: {found}, expected {expect}"))
    }))
}

/// Ones times ones, of four experts whose ones differ by their scale; what is no token is NaN.
pub fn counts(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    const ROWS: usize = 64;
    const EXPERTS: usize = 4;
    let matrix = Matrix::new(EXPERTS * ROWS, K, |_, _| ONE, |row, _| SCALE_ONE + (row / ROWS) as u8);
    let mut rig = Rig::down(bench, EXPERTS, matrix)?;
    for n in counts_around(kernel.max_tokens()) {
        let ids = ids_with(n);
        let mut batch = rig.route_to_down(&ids, &vec![1.0; ids.len() * K])?;
        let y = rig.run_down(&mut batch, kernel, bench.usual_blocks())?;
        for (i, found) in y.into_iter().enumerate() {
            let (slot, row) = (i / ROWS, i % ROWS);
            let expect = u32::try_from(ids[slot]).map_or(f32::NAN, |expert| (K << expert) as f32);
            if found != expect && !(found.is_nan() && expect.is_nan()) {
                let what = format!("{n} tokens, token {slot} of expert {}, row {row}", ids[slot]);
                return Ok(Some(format!("{what}: {found}, expected {expect}")));
            }
        }
    }
    Ok(None)
}

/// Tokens of one expert: the fewest and the most of every width of a product, and around one tile and two. A product has
/// `most` tokens at most.
fn counts_around(most: usize) -> Vec<usize> {
    let widths = (8..=most).step_by(8).flat_map(|width| [width - 7, width - 1, width]);
    widths.chain([most + 1, 2 * most - 1, 2 * most, 2 * most + 1]).collect()
}

/// `n` tokens of expert 0 between nine of expert 3, one of nobody and one of expert 2.
fn ids_with(n: usize) -> Vec<i32> {
    [vec![3; 9], vec![-1], vec![0; n], vec![2]].concat()
}

/// The bits of one body's products, alone and in tiles, from few blocks and many, against those of the first body; and those
/// against float64.
pub fn blocks(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    const ROWS: usize = 288; // four strips and a half
    const GRIDS: [usize; 7] = [1, 2, 3, 131, 132, 264, 1000];
    let most = kernel.max_tokens();
    let n_most = 2 * most + 1;
    let matrix = random_matrix(ROWS);
    let x: Vec<f32> = (0..n_most * K).map(random_element).collect();
    let mut rig = Rig::down(bench, 1, matrix.clone())?;
    let mut batch = rig.route_to_down(&vec![0; n_most], &x)?;
    let expect = rig.run_down(&mut batch, MoeKernel::Stream, bench.usual_blocks())?;
    for token in [0, most - 1, n_most - 1] {
        let (x, y) = (&x[token * K..][..K], &expect[token * ROWS..][..ROWS]);
        if let Some(fault) = far_from_float64(&matrix, x, y) {
            return Ok(Some(format!("{n_most} tokens, stream, token {token}: {fault}")));
        }
    }
    for n_tokens in [1, most - 1, most, most + 1, n_most] {
        let mut batch = rig.route_to_down(&vec![0; n_tokens], &x[..n_tokens * K])?;
        for n_blocks in GRIDS {
            let y = rig.run_down(&mut batch, kernel, n_blocks)?;
            let differ = y.iter().zip(&expect).position(|(found, expect)| found.to_bits() != expect.to_bits());
            if let Some(i) = differ {
                let what = format!("{n_tokens} tokens, {n_blocks} blocks, token {}, row {}", i / ROWS, i % ROWS);
                let than = "of stream with the usual blocks";
                return Ok(Some(format!("{what}: {:e}, not the {:e} {than}", y[i], expect[i])));
            }
        }
    }
    Ok(None)
}

/// One token `x` `[cols]` times all rows, `y` `[rows]`.
fn far_from_float64(matrix: &Matrix, x: &[f32], y: &[f32]) -> Option<String> {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (row, &y) in y.iter().enumerate() {
        let sum: f64 = x.iter().enumerate().map(|(k, &x)| matrix.value(row, k) * f64::from(x)).sum();
        difference += (f64::from(y) - sum).powi(2);
        norm += sum.powi(2);
    }
    let error = (difference / norm).sqrt();
    // Not a number is far, too.
    let is_near = error <= MAX_SUM_ERROR;
    (!is_near).then(|| format!("{error:.1e} from float64, expected at most {MAX_SUM_ERROR:.0e}"))
}

/// Every code, and scales of a few octaves, some beyond what needs no factor.
fn random_matrix(rows: usize) -> Matrix {
    let scale = move |row: usize, block: usize| 119 + (noise(rows * K + row * N_BLOCKS + block) % 12) as u8;
    Matrix::new(rows, K, |row, k| noise(row * K + k) as u8, scale)
}

/// Of about one, either sign, and a bf16: eight bits of significand under one of eight exponents.
fn random_element(i: usize) -> f32 {
    let bits = noise(usize::MAX / 2 + i);
    let significand = (128 + bits % 128) as f32 / 128.0;
    let sign = if bits >> 7 & 1 == 1 { -1.0 } else { 1.0 };
    sign * significand * power(-((bits >> 8 & 7) as i32)) as f32
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn random_elements_are_bf16() {
        assert!((0..10_000).map(random_element).all(|x| bf16::from_f32(x).to_f32() == x));
    }

    #[test]
    fn counts_are_around_every_width() {
        assert_eq!(counts_around(8), [1, 7, 8, 9, 15, 16, 17]);
        assert_eq!(counts_around(24), [1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 47, 48, 49]);
    }

    #[test]
    fn what_is_far_from_float64_is_told() {
        let matrix = random_matrix(32);
        let x: Vec<f32> = (0..K).map(random_element).collect();
        let sum = |row| (0..K).map(|k| matrix.value(row, k) * f64::from(x[k])).sum::<f64>() as f32;
        let mut y: Vec<f32> = (0..32).map(sum).collect();
        assert_eq!(far_from_float64(&matrix, &x, &y), None);
        y[3] *= 1.001;
        assert!(far_from_float64(&matrix, &x, &y).is_some());
        y[3] = f32::NAN;
        assert!(far_from_float64(&matrix, &x, &y).unwrap().starts_with("NaN from float64"));
    }
}
