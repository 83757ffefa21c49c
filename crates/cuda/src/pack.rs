//! MXFP4 weights in the order in which the kernels read them.
//!
//! One expert's matrix is cut into records of 64 rows by 64 columns, 2,176 bytes each: 2,048 bytes of codes, 16 for each
//! thread of a warpgroup, and 128 bytes of scales. What a thread loads is what it feeds to the tensor core; nothing moves
//! between lanes. Record `(strip, k_tile)` lies at `(strip * k_tiles + k_tile) * 2176`, so a strip of 64 rows, and any run
//! of records along k, is one contiguous copy.
//!
//! Within a record, thread `T` has its codes at `16 T` and its scale word at `2048 + 32 (T / 32) + 4 (T % 32 / 4)`, both
//! little-endian. Which elements they are says [`fragment`], where the bits go says [`group`], and [`decode`] reads them as
//! the device does.
//!
//! The device multiplies each code once. What is stored is therefore not a scale byte `s` but the exponent field
//! `s + 126 - shift` of a BF16 power of two, which also takes back the 2^-126 of the codes; see [`ScaleShift`].
//!
//! Matrices whose rows or columns are no multiples of 64 are padded with codes 0 under the smallest scale.

use thiserror::Error;

pub mod decode;
pub mod fragment;
pub mod group;
mod location;
mod matrix;
mod scales;
pub mod triton;
mod unpack;

pub use fragment::{LANES, REGISTERS, STEP_K, THREADS, TILE_ROWS};
pub use location::{CodeLocation, FieldLocation, locate_code, locate_field};
pub use matrix::{Matrix, Rows, Shape};
pub use scales::ScaleShift;
pub use unpack::{Unpacked, unpack, unpack_as_device};

use fragment::{Place, element};
use group::{PAIRS, SPREAD};

/// Columns of a record.
pub const TILE_K: usize = 64;
/// k16 steps of a record.
pub const STEPS: usize = TILE_K / STEP_K;
/// Bytes of codes in a record.
pub const CODE_BYTES: usize = TILE_ROWS * TILE_K / 2;
/// Bytes of scales in a record.
pub const SCALE_BYTES: usize = TILE_ROWS * TILE_BLOCKS;
/// Bytes of a record.
pub const RECORD_BYTES: usize = CODE_BYTES + SCALE_BYTES;

/// 32-blocks of a record's row.
const TILE_BLOCKS: usize = 2;
/// Threads that hold the same rows, and so share a scale word.
const QUAD: usize = 4;

/// Why a matrix cannot be packed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PackError {
    #[error("{what} of a {rows}x{k} matrix should have {expected} bytes, found {found}")]
    Length { what: &'static str, rows: usize, k: usize, expected: usize, found: usize },
    #[error("a matrix of {rows}x{k}: rows must be at least 1, k a positive multiple of 32")]
    Shape { rows: usize, k: usize },
    #[error("{rows} rows of gate and up: expected pairs, so an even number")]
    UnpairedRow { rows: usize },
    #[error("row {row}, block {block}: scale byte 255 is NaN")]
    ScaleNan { row: usize, block: usize },
    #[error(
        "row {row}, block {block}: scale byte {scale} is outside of {lowest} to {highest}, what one multiplication \
         represents exactly beside the tensor's largest scale"
    )]
    ScaleSpan { row: usize, block: usize, scale: u8, lowest: u8, highest: u8 },
}

/// A matrix whose scales are known to fit, ready to be packed strip by strip.
#[derive(Clone, Copy)]
pub struct Packer<'a> {
    matrix: Matrix<'a>,
    rows: Rows,
    shift: ScaleShift,
}

impl<'a> Packer<'a> {
    /// Checks every scale byte against `shift`, which may be that of a tensor of which `matrix` is one expert.
    pub fn new(matrix: Matrix<'a>, rows: Rows, shift: ScaleShift) -> Result<Self, PackError> {
        if rows == Rows::GateUp && !matrix.shape().rows().is_multiple_of(2) {
            return Err(PackError::UnpairedRow { rows: matrix.shape().rows() });
        }
        shift.check(matrix.scales(), matrix.shape().blocks())?;
        Ok(Self { matrix, rows, shift })
    }

    /// Packs the whole matrix into `out`, `[strips, k_tiles, 2176]`.
    ///
    /// Panics if `out` is not [`Shape::packed_bytes`] long.
    pub fn pack(&self, out: &mut [u8]) {
        let shape = self.matrix.shape();
        assert_eq!(out.len(), shape.packed_bytes());
        for (strip, out) in out.chunks_exact_mut(shape.strip_bytes()).enumerate() {
            self.pack_strip(strip, out);
        }
    }

    /// Packs 64 rows into `out`, `[k_tiles, 2176]`. Strips are independent: several may be packed at a time.
    ///
    /// Panics if there is no such strip, or `out` is not [`Shape::strip_bytes`] long.
    pub fn pack_strip(&self, strip: usize, out: &mut [u8]) {
        let shape = self.matrix.shape();
        assert!(strip < shape.strips());
        assert_eq!(out.len(), shape.strip_bytes());
        let sources: [usize; TILE_ROWS] = std::array::from_fn(|r| self.rows.source(TILE_ROWS * strip + r));
        let padding = self.shift.lowest();
        for (k_tile, record) in out.as_chunks_mut::<RECORD_BYTES>().0.iter_mut().enumerate() {
            let codes = sources.map(|row| self.matrix.tile_codes(row, k_tile));
            let scales = sources.map(|row| self.matrix.tile_scales(row, k_tile, padding));
            let (code_bytes, scale_bytes) = record.split_at_mut(CODE_BYTES);
            write_codes(&codes, code_bytes);
            write_scales(&scales, self.shift, scale_bytes);
        }
    }
}

/// Packs the matrix of one expert by itself into `out`, `[strips, k_tiles, 2176]`, and returns the shift that its products
/// must be taken back by.
///
/// Panics if `out` is not [`Shape::packed_bytes`] long.
pub fn pack(matrix: Matrix, rows: Rows, out: &mut [u8]) -> Result<ScaleShift, PackError> {
    let shift = ScaleShift::of(matrix.scales(), matrix.shape().blocks())?;
    Packer::new(matrix, rows, shift)?.pack(out);
    Ok(shift)
}

/// `codes` `[row, k / 2]`, `out` `[thread, 16]`: for each thread the groups of k16 steps 0, 1 and 2, 3.
fn write_codes(codes: &[[u8; TILE_K / 2]; TILE_ROWS], out: &mut [u8]) {
    for (quad, out) in out.as_chunks_mut::<{ 16 * QUAD }>().0.iter_mut().enumerate() {
        for two_steps in 0..STEPS / 2 {
            for q in 0..QUAD {
                let group = (0..PAIRS).fold(0, |group, i| {
                    let (step, register) = (2 * two_steps + i / REGISTERS, i % REGISTERS);
                    let at = element(Place { thread: QUAD * quad + q, register, half: 0 });
                    group | SPREAD[i][usize::from(codes[at.row][(STEP_K * step + at.k) / 2])]
                });
                out[16 * q + 8 * two_steps..][..8].copy_from_slice(&group.to_le_bytes());
            }
        }
    }
}

/// `scales` `[row, block]`, `out` `[warp, g]` words.
fn write_scales(scales: &[[u8; TILE_BLOCKS]; TILE_ROWS], shift: ScaleShift, out: &mut [u8]) {
    for (quad, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let row = |register| element(Place { thread: QUAD * quad, register, half: 0 }).row;
        let (low, high) = (scales[row(0)], scales[row(1)]);
        *out = group::scale_word([low[0], high[0], low[1], high[1]].map(|s| shift.field(s))).to_le_bytes();
    }
}
