use crate::device::{Address, Buffer, Device};
use crate::error::DeviceError;
use crate::kernels::pack::{DENSE_COLS, DENSE_ROWS};

/// A BF16 matrix and its biases in the GPU's memory, in records of 16 rows by 64 columns.
pub(crate) struct DenseBuffers {
    pub rows: usize,
    pub cols: usize,
    pub records: Buffer<u8>, // [strips, k_records, 2048], padding is 0
    pub bias: Buffer<f32>,   // [strips * 16], padding is 0, as all of it is where the matrix has none
}

impl DenseBuffers {
    /// All zero.
    pub fn alloc(device: &Device, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let n_strips = rows.div_ceil(DENSE_ROWS);
        let records = device.alloc(n_strips * strip_bytes(cols))?;
        Ok(Self { rows, cols, records, bias: device.alloc(n_strips * DENSE_ROWS)? })
    }

    /// Bytes that such a matrix takes.
    pub fn bytes(rows: usize, cols: usize) -> u64 {
        (rows.div_ceil(DENSE_ROWS) * (strip_bytes(cols) + DENSE_ROWS * size_of::<f32>())) as u64
    }

    /// Where the strip that begins with this row, a multiple of 16, lies.
    pub fn strip(&self, first_row: usize) -> Address {
        self.records.address().plus(first_row / DENSE_ROWS * strip_bytes(self.cols))
    }
}

/// Bytes of 16 packed rows.
pub(super) fn strip_bytes(cols: usize) -> usize {
    cols.div_ceil(DENSE_COLS) * DENSE_COLS * DENSE_ROWS * size_of::<half::bf16>()
}
