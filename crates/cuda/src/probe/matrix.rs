use half::bf16;
use tessera_model::mxfp4::BLOCK;
use tessera_model::weights::Experts;

use super::numbers::{SCALE_ONE, ZERO, weight};

/// The matrices of all experts, one after the other, as checkpoints have them.
#[derive(Clone)]
pub struct Matrix {
    /// Of all experts.
    pub rows: usize,
    pub cols: usize,
    pub blocks: Vec<u8>,        // [rows, cols / 32, 16], low nibble = even column
    pub scales: Vec<u8>,        // [rows, cols / 32], E8M0
    pub(super) bias: Vec<bf16>, // [rows], 0
}

impl Matrix {
    /// With the code that `code` gives for a row and a column, and the scale byte that `scale` gives for a row and a block of
    /// 32 columns.
    pub(super) fn new(
        rows: usize,
        cols: usize,
        code: impl Fn(usize, usize) -> u8,
        scale: impl Fn(usize, usize) -> u8,
    ) -> Self {
        let byte = |i: usize| {
            let (row, k) = (2 * i / cols, 2 * i % cols);
            code(row, k) & 15 | code(row, k + 1) << 4
        };
        let n_blocks = cols / BLOCK;
        Self {
            rows,
            cols,
            blocks: (0..rows * cols / 2).map(byte).collect(),
            scales: (0..rows * n_blocks).map(|i| scale(i / n_blocks, i % n_blocks)).collect(),
            bias: vec![bf16::ZERO; rows],
        }
    }

    /// All 0.
    pub(super) fn zero(rows: usize, cols: usize) -> Self {
        Self::new(rows, cols, |_, _| ZERO, |_, _| SCALE_ONE)
    }

    pub fn code(&self, row: usize, k: usize) -> u8 {
        self.blocks[(row * self.cols + k) / 2] >> (4 * (k % 2)) & 15
    }

    pub fn set_code(&mut self, row: usize, k: usize, code: u8) {
        let shift = 4 * (k % 2);
        let byte = &mut self.blocks[(row * self.cols + k) / 2];
        *byte = *byte & !(15 << shift) | (code & 15) << shift;
    }

    /// What the weight is.
    pub(super) fn value(&self, row: usize, k: usize) -> f64 {
        weight(self.code(row, k), self.scales[(row * self.cols + k) / BLOCK])
    }

    pub(super) fn view(&self, experts: usize) -> Experts<'_> {
        let Self { rows, cols, blocks, scales, bias } = self;
        Experts { blocks, scales, bias, experts, rows: rows / experts, cols: *cols }
    }
}

#[cfg(test)]
mod tests {
    use super::Matrix;

    #[test]
    fn codes_are_where_checkpoints_have_them() {
        let mut matrix = Matrix::new(2, 64, |row, k| (row * 7 + k) as u8, |row, block| 120 + (2 * row + block) as u8);
        assert_eq!((matrix.blocks[0], matrix.blocks[32]), (0x10, 0x87));
        assert_eq!(matrix.scales, [120, 121, 122, 123]);
        assert_eq!((matrix.code(1, 0), matrix.code(1, 1), matrix.code(0, 63)), (7, 8, 15));
        assert_eq!(matrix.value(1, 34), -1.0 / 32.0);
        matrix.set_code(1, 1, 3);
        assert_eq!((matrix.code(1, 0), matrix.code(1, 1)), (7, 3));
    }
}
