//! The orders of triton_kernels for Hopper, there and back: `HopperMXValueLayout(mx_axis, mma_version=3)` and
//! `HopperMXScaleLayout(mx_axis, num_warps)` of triton-lang/triton, `python/triton_kernels`, `tensor_details/layout_details`.
//!
//! They differ from records in what is near what: a word has the four registers of one k16 step, four words in turn are
//! the steps of 64 columns, and rows `g` and `g + 1` lie in one line of 128 bytes. `mx_axis` names the packed axis and does
//! not change the memory: with -2 the tensor is the transposed view of the one described here, which has -1.
//!
//! Rows and columns are padded with zeros to whole tiles, of 16 rows and 64 columns for values. Later versions of
//! triton_kernels pad them to 256 rows and 128 columns, which is the same order for a larger matrix.

use super::fragment::{Element, LANES, Place, STEP_K, element};
use super::group::{HOME, byte, home};
use super::{Matrix, PackError, REGISTERS, STEPS, Shape, TILE_K};

/// Rows of a tile of values: those of one warp's instruction.
const VALUE_ROWS: usize = 16;
/// Bytes of a tile of values in one row of the swizzled tensor, which has four rows of the tile.
const VALUE_BYTES: usize = 2 * TILE_K;
/// Rows of the matrix in one row of swizzled scales.
const SCALE_ROWS: usize = 32;
/// The bits of a fourth code, shifted to where the other three leave room: the sign, the exponent, the mantissa.
const FOURTH: [(u32, i32); 3] = [(0x8000_8000, 1), (0x0180_0180, -3), (0x0040_0040, -7)];

/// `num_warps` of the scales' layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warps {
    Four,
    Eight,
}

/// Swizzles values: `[rows / 4, 2 k]` bytes, rows and k those of whole tiles.
pub fn swizzle_values(matrix: Matrix) -> Vec<u8> {
    let shape = matrix.shape();
    let mut out = vec![0; values_bytes(shape)];
    for (tile_row, tile_k, lane, step) in value_words(shape) {
        let pairs = std::array::from_fn(|register| {
            let (row, pair) = pair_of(tile_row, tile_k, lane, step, register);
            if row < shape.rows() { matrix.row_codes(row).get(pair).map_or(0, |pair| home(*pair)) } else { 0 }
        });
        out[value_offset(shape, tile_row, tile_k, lane, step)..][..4].copy_from_slice(&merge(pairs).to_le_bytes());
    }
    out
}

/// The inverse of [`swizzle_values`]: `[rows, k / 32, 16]`.
pub fn unswizzle_values(swizzled: &[u8], shape: Shape) -> Result<Vec<u8>, PackError> {
    shape.check("swizzled values", swizzled.len(), values_bytes(shape))?;
    let width = shape.k() / 2;
    let mut out = vec![0; shape.rows() * width];
    for (tile_row, tile_k, lane, step) in value_words(shape) {
        let word = swizzled[value_offset(shape, tile_row, tile_k, lane, step)..].first_chunk().expect("whole words");
        for (register, pair) in split(u32::from_le_bytes(*word)).into_iter().enumerate() {
            let (row, column) = pair_of(tile_row, tile_k, lane, step, register);
            if row < shape.rows() && column < width {
                out[row * width + column] = byte(pair);
            }
        }
    }
    Ok(out)
}

/// Swizzles scales: `[rows / 32, k]` bytes, rows those of whole tiles and k a multiple of 64.
pub fn swizzle_scales(matrix: Matrix, warps: Warps) -> Vec<u8> {
    let shape = matrix.shape();
    let mut out = vec![0; scales_bytes(shape, warps)];
    for (row, scales) in matrix.scales().chunks_exact(shape.blocks()).enumerate() {
        for (block, scale) in scales.iter().enumerate() {
            out[scale_offset(shape, warps, row, block)] = *scale;
        }
    }
    out
}

/// The inverse of [`swizzle_scales`]: `[rows, k / 32]`.
pub fn unswizzle_scales(swizzled: &[u8], shape: Shape, warps: Warps) -> Result<Vec<u8>, PackError> {
    shape.check("swizzled scales", swizzled.len(), scales_bytes(shape, warps))?;
    let at = |i: usize| swizzled[scale_offset(shape, warps, i / shape.blocks(), i % shape.blocks())];
    Ok((0..shape.rows() * shape.blocks()).map(at).collect())
}

impl Warps {
    fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

fn values_bytes(shape: Shape) -> usize {
    shape.rows().div_ceil(VALUE_ROWS) * VALUE_ROWS * shape.k_tiles() * TILE_K / 2
}

/// Tile row, tile column, lane and step of every word.
fn value_words(shape: Shape) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let tiles = (0..shape.rows().div_ceil(VALUE_ROWS)).flat_map(move |r| (0..shape.k_tiles()).map(move |k| (r, k)));
    tiles.flat_map(|(r, k)| (0..LANES * STEPS).map(move |i| (r, k, i / STEPS, i % STEPS)))
}

/// Where the word of a lane and a step is: even and odd `g` side by side, then `q`, then the steps.
fn value_offset(shape: Shape, tile_row: usize, tile_k: usize, lane: usize, step: usize) -> usize {
    let (g, q) = (lane / 4, lane % 4);
    let row = tile_row * VALUE_ROWS / 4 + g / 2;
    (row * shape.k_tiles() + tile_k) * VALUE_BYTES + (g % 2) * VALUE_BYTES / 2 + q * 4 * STEPS + 4 * step
}

/// The row, and the byte of the row, that are a register of a word.
fn pair_of(tile_row: usize, tile_k: usize, lane: usize, step: usize, register: usize) -> (usize, usize) {
    let Element { row, k } = element(Place { thread: lane, register, half: 0 });
    (VALUE_ROWS * tile_row + row, (TILE_K * tile_k + STEP_K * step + k) / 2)
}

/// Four pairs at home in one word: three at distances of three bits, the fourth in what they leave.
fn merge(pairs: [u32; REGISTERS]) -> u32 {
    let [a0, a1, a2, a3] = pairs;
    FOURTH.iter().fold(a0 | a1 >> 3 | a2 >> 6, |word, (mask, left)| word | shifted(a3 & mask, -left))
}

/// The inverse of [`merge`].
fn split(word: u32) -> [u32; REGISTERS] {
    let fourth = FOURTH.iter().fold(0, |pair, (mask, left)| pair | shifted(word, *left) & mask);
    [word & HOME, word << 3 & HOME, word << 6 & HOME, fourth]
}

/// `word` shifted to the left, or to the right if that is negative.
fn shifted(word: u32, left: i32) -> u32 {
    if left < 0 { word >> -left } else { word << left }
}

fn scales_bytes(shape: Shape, warps: Warps) -> usize {
    let tile_rows = SCALE_ROWS * warps.count();
    shape.rows().div_ceil(tile_rows) * tile_rows * shape.blocks().next_multiple_of(2)
}

/// Where the scale of a row and block is. Neighbours are rows `g` and `g + 8`, then the two blocks of 64 columns, then `g`,
/// then the two halves of the tile's rows; every warp has a row of its own.
fn scale_offset(shape: Shape, warps: Warps, row: usize, block: usize) -> usize {
    let n = warps.count();
    let (warp, half, tile) = (row / 16 % n, row / 16 / n % 2, row / (SCALE_ROWS * n));
    let (g, below) = (row % 8, row / 8 % 2);
    let width = SCALE_ROWS * shape.blocks().next_multiple_of(2);
    (tile * n + warp) * width + 64 * (block / 2) + 32 * half + 4 * g + 2 * (block % 2) + below
}
