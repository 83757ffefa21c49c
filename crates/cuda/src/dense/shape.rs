use super::DenseError;
use crate::moe::grouped::panels;

/// Of a matrix: more than any vocabulary.
pub const MAX_ROWS: usize = 1 << 20;
/// Of a matrix: 8 rows of so many columns stay in a multiprocessor's shared memory (`dense_stream.cu`).
pub const MAX_COLS: usize = 8192;
/// Rows of a strip, as in `dense.cuh`.
pub(crate) const STRIP_ROWS: usize = 16;
/// Elements of a record: a strip's 64 columns.
pub(crate) const RECORD: usize = 1024;

/// The sizes of a dense matrix `[rows, cols]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenseShape {
    pub rows: usize,
    pub cols: usize,
}

impl DenseShape {
    /// The shape, if the kernels can work on it.
    pub fn checked(self) -> Result<Self, DenseError> {
        for (what, found, limit) in [("rows", self.rows, MAX_ROWS), ("columns", self.cols, MAX_COLS)] {
            if !(1..=limit).contains(&found) {
                return Err(DenseError::Size { what, limit, found });
            }
        }
        Ok(self)
    }

    /// Bytes of the weights in the GPU's memory, bias included.
    pub fn bytes(self) -> usize {
        self.records_len() * 2 + self.bias_len() * size_of::<f32>()
    }

    /// Bytes of 16 packed rows.
    pub(crate) fn strip_bytes(self) -> usize {
        panels(self.cols) * RECORD * 2
    }

    pub(crate) fn strips(self) -> usize {
        self.rows.div_ceil(STRIP_ROWS)
    }

    /// Elements of all records.
    pub(crate) fn records_len(self) -> usize {
        self.strips() * panels(self.cols) * RECORD
    }

    pub(crate) fn bias_len(self) -> usize {
        self.strips() * STRIP_ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::{DenseShape, MAX_COLS, MAX_ROWS};

    #[test]
    fn shapes_that_the_kernels_cannot_work_on_are_refused() {
        let check = |rows, cols| DenseShape { rows, cols }.checked().map_err(|error| error.to_string());
        assert_eq!(check(1, 1), Ok(DenseShape { rows: 1, cols: 1 }));
        assert!(check(MAX_ROWS, MAX_COLS).is_ok());
        let error = |text: &str| Err(text.to_owned());
        assert_eq!(check(0, 32), error("a dense matrix has 0 rows: expected 1 to 1048576"));
        assert_eq!(check(MAX_ROWS + 1, 32), error("a dense matrix has 1048577 rows: expected 1 to 1048576"));
        assert_eq!(check(16, 0), error("a dense matrix has 0 columns: expected 1 to 8192"));
        assert_eq!(check(16, 8193), error("a dense matrix has 8193 columns: expected 1 to 8192"));
    }

    #[test]
    fn bytes_are_those_of_whole_records() {
        assert_eq!(DenseShape { rows: 5120, cols: 2880 }.bytes(), 5120 * 2880 * 2 + 5120 * 4);
        assert_eq!(DenseShape { rows: 17, cols: 96 }.bytes(), 2 * 2 * 2048 + 32 * 4);
    }
}
