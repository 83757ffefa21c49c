//! One expert's matrix as checkpoints have it, and the order of its rows in the packed form.

use tessera_model::mxfp4::BLOCK;

use super::{PackError, RECORD_BYTES, TILE_BLOCKS, TILE_K, TILE_ROWS};

/// Rows and columns of a matrix, and what follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    rows: usize,
    k: usize,
}

/// The order of rows in the packed form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// As they are: the down projection.
    Natural,
    /// Of alternating gate and up rows, 8 gates and then their 8 ups in every 16: gate `c` and up `c` are then in rows `g`
    /// and `g + 8` of a warp's tile, accumulators of one thread, and SwiGLU needs no exchange.
    GateUp,
}

/// A matrix of MXFP4 as checkpoints have it.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    blocks: &'a [u8], // [rows, k / 32, 16], low nibble = even k
    scales: &'a [u8], // [rows, k / 32], E8M0
    shape: Shape,
}

impl Shape {
    pub fn new(rows: usize, k: usize) -> Result<Self, PackError> {
        if rows == 0 || k == 0 || !k.is_multiple_of(BLOCK) {
            return Err(PackError::Shape { rows, k });
        }
        Ok(Self { rows, k })
    }

    pub fn rows(self) -> usize {
        self.rows
    }

    pub fn k(self) -> usize {
        self.k
    }

    /// 32-blocks of a row, padding not counted.
    pub fn blocks(self) -> usize {
        self.k / BLOCK
    }

    /// Strips of 64 rows, the last one padded.
    pub fn strips(self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Records of a strip, the last one padded.
    pub fn k_tiles(self) -> usize {
        self.k.div_ceil(TILE_K)
    }

    /// Bytes of a packed strip.
    pub fn strip_bytes(self) -> usize {
        self.k_tiles() * RECORD_BYTES
    }

    /// Bytes of the packed matrix.
    pub fn packed_bytes(self) -> usize {
        self.strips() * self.strip_bytes()
    }

    /// Whether `what` of a matrix of this shape, `found` bytes, has the `expected` length.
    pub(super) fn check(self, what: &'static str, found: usize, expected: usize) -> Result<(), PackError> {
        let Self { rows, k } = self;
        if found == expected { Ok(()) } else { Err(PackError::Length { what, rows, k, expected, found }) }
    }
}

impl Rows {
    /// The row of the checkpoint that is packed as row `packed`; in the padding, one beyond the last.
    pub fn source(self, packed: usize) -> usize {
        match self {
            Self::Natural => packed,
            Self::GateUp => {
                let (sixteen, r) = (packed / 16, packed % 16);
                2 * (8 * sixteen + r % 8) + r / 8
            }
        }
    }

    /// The row of the packed form that holds row `source` of the checkpoint: the inverse of [`Rows::source`].
    pub fn packed(self, source: usize) -> usize {
        match self {
            Self::Natural => source,
            Self::GateUp => {
                let (channel, up) = (source / 2, source % 2);
                16 * (channel / 8) + channel % 8 + 8 * up
            }
        }
    }
}

impl<'a> Matrix<'a> {
    /// `blocks` `[rows, k / 32, 16]` with even k in the low nibbles, `scales` `[rows, k / 32]`.
    pub fn new(blocks: &'a [u8], scales: &'a [u8], shape: Shape) -> Result<Self, PackError> {
        shape.check("blocks", blocks.len(), shape.rows * shape.k / 2)?;
        shape.check("scales", scales.len(), shape.rows * shape.blocks())?;
        Ok(Self { blocks, scales, shape })
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// `[rows, k / 32]`
    pub fn scales(&self) -> &'a [u8] {
        self.scales
    }

    /// The codes of a row, `[k / 2]`.
    pub(super) fn row_codes(&self, row: usize) -> &'a [u8] {
        &self.blocks[row * self.shape.k / 2..][..self.shape.k / 2]
    }

    /// The codes of 64 columns of a row; beyond the matrix, zeros.
    #[inline(always)]
    pub(super) fn tile_codes(&self, row: usize, k_tile: usize) -> [u8; TILE_K / 2] {
        tile(self.blocks, self.shape.rows, row, k_tile, 0)
    }

    /// The scale bytes of 64 columns of a row; beyond the matrix, `padding`.
    #[inline(always)]
    pub(super) fn tile_scales(&self, row: usize, k_tile: usize, padding: u8) -> [u8; TILE_BLOCKS] {
        tile(self.scales, self.shape.rows, row, k_tile, padding)
    }
}

/// Tile `i` of row `row` of `data`, `[rows, len / rows]`; beyond it, `padding`.
#[inline(always)]
fn tile<const N: usize>(data: &[u8], rows: usize, row: usize, i: usize, padding: u8) -> [u8; N] {
    if row >= rows {
        return [padding; N];
    }
    let width = data.len() / rows;
    let rest = &data[row * width..(row + 1) * width][i * N..];
    if let Some(whole) = rest.first_chunk() {
        return *whole;
    }
    let mut tile = [padding; N];
    tile[..rest.len()].copy_from_slice(rest);
    tile
}
