use half::bf16;
use tessera_model::Linear;

use super::shape::{RECORD, STRIP_ROWS};
use super::{DenseError, DenseShape};
use crate::device::{Address, Buffer, Device};
use crate::launch::Stream;
use crate::moe::grouped::{GROUP_ROWS, PANEL, PIECE, panels};

/// Strips that are packed before they are uploaded: some megabytes.
const STRIPS_AT_ONCE: usize = 64;

/// A dense matrix in the GPU's memory, as `dense.cuh` has it.
pub struct DenseWeights {
    pub(crate) shape: DenseShape,
    pub(crate) records: Buffer<bf16>, // [strips, k_records, 1024]
    pub(crate) bias: Buffer<f32>,     // [strips * 16]; padding is 0, as all of it where there is no bias
}

impl DenseWeights {
    /// Zeros, for somebody who fills them. A kernel that does must be done before a product is queued, not only be queued before:
    /// products ask for their weights before they wait for the kernel before them.
    pub fn alloc(device: &Device, shape: DenseShape) -> Result<Self, DenseError> {
        let shape = shape.checked()?;
        let (records, bias) = (device.alloc(shape.records_len())?, device.alloc(shape.bias_len())?);
        Ok(Self { shape, records, bias })
    }

    /// Packs and uploads matrices of the same width, one under the other, and waits. An empty bias is none.
    pub fn upload(device: &Device, stream: &Stream, linears: &[Linear]) -> Result<Self, DenseError> {
        let shape = stacked(linears)?;
        let mut to = Self::alloc(device, shape)?;
        let rows: Vec<&[bf16]> = linears.iter().flat_map(|l| (0..l.weight.rows).map(|r| l.weight.row(r))).collect();
        let rows_at_once = STRIPS_AT_ONCE * STRIP_ROWS;
        for (i, rows) in rows.chunks(rows_at_once).enumerate() {
            let at = i * STRIPS_AT_ONCE * panels(shape.cols) * RECORD;
            stream.upload(&pack(rows, shape.cols), &mut to.records, at)?;
        }
        let bias_of = |l: &Linear| match l.bias.is_empty() {
            true => vec![0.0; l.weight.rows],
            false => l.bias.iter().map(|bias| bias.to_f32()).collect(),
        };
        let bias: Vec<f32> = linears.iter().flat_map(bias_of).collect();
        stream.upload(&bias, &mut to.bias, 0)?;
        Ok(to)
    }

    pub fn shape(&self) -> DenseShape {
        self.shape
    }

    /// Where the strip that begins with this row, a multiple of 16, lies.
    pub(crate) fn strip(&self, first_row: usize) -> Address {
        self.records.address().plus(first_row / STRIP_ROWS * self.shape.strip_bytes())
    }
}

/// The shape of matrices one under the other.
fn stacked(linears: &[Linear]) -> Result<DenseShape, DenseError> {
    let cols = linears.first().map_or(0, |l| l.weight.cols);
    for (index, l) in linears.iter().enumerate() {
        let n_bias = if l.bias.is_empty() { l.weight.rows } else { l.bias.len() };
        for (what, found, expected) in [("columns", l.weight.cols, cols), ("biases", n_bias, l.weight.rows)] {
            if found != expected {
                return Err(DenseError::Mismatch { index, n: linears.len(), what, expected, found });
            }
        }
    }
    DenseShape { rows: linears.iter().map(|l| l.weight.rows).sum(), cols }.checked()
}

/// Rows `[cols]` as records `[strips, k_records, 1024]`.
fn pack(rows: &[&[bf16]], cols: usize) -> Vec<bf16> {
    let k_records = panels(cols);
    let mut records = vec![bf16::ZERO; rows.len().div_ceil(STRIP_ROWS) * k_records * RECORD];
    for (row, values) in rows.iter().enumerate() {
        let (strip, r) = (row / STRIP_ROWS, row % GROUP_ROWS);
        let group = row % STRIP_ROWS / GROUP_ROWS;
        for (i, piece) in values.chunks(PIECE).enumerate() {
            let (k, c) = (i / (PANEL / PIECE), i % (PANEL / PIECE));
            let record = (strip * k_records + k) * RECORD;
            let at = record + (group * GROUP_ROWS + r) * PANEL + (c ^ r) * PIECE;
            records[at..][..piece.len()].copy_from_slice(piece);
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use tessera_model::{Linear, Matrix};

    use super::{pack, stacked};
    use crate::dense::DenseShape;

    /// The layout by bytes, as its description has it; every other byte is zero.
    #[test]
    fn every_element_is_where_the_kernels_look() {
        for (n_rows, cols) in [(1, 1), (15, 32), (17, 64), (40, 100)] {
            let value = |row: usize, col: usize| bf16::from_bits((row * cols + col + 1) as u16);
            let rows: Vec<Vec<bf16>> = (0..n_rows).map(|row| (0..cols).map(|col| value(row, col)).collect()).collect();
            let views: Vec<&[bf16]> = rows.iter().map(Vec::as_slice).collect();
            let mut packed = pack(&views, cols);
            let k_records = cols.div_ceil(64);
            assert_eq!(packed.len(), n_rows.div_ceil(16) * k_records * 1024);
            for (row, col) in (0..n_rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                let record = (row / 16 * k_records + col / 64) * 2048;
                let (r, c) = (row % 8, col % 64 / 8);
                let byte = record + row / 8 % 2 * 1024 + 128 * r + 16 * (c ^ r) + col % 8 * 2;
                let found = std::mem::replace(&mut packed[byte / 2], bf16::ZERO);
                assert_eq!(found.to_bits(), value(row, col).to_bits(), "({row}, {col}) of {n_rows} x {cols}");
            }
            assert!(packed.iter().all(|value| value.to_bits() == 0), "{n_rows} x {cols}");
        }
    }

    #[test]
    fn matrices_that_do_not_fit_are_refused() {
        let data = [bf16::ONE; 96];
        let linear = |rows, cols, n_bias| Linear {
            weight: Matrix::new(&data[..rows * cols], rows, cols),
            bias: &data[..n_bias],
        };
        let check = |linears: &[Linear]| stacked(linears).map_err(|error| error.to_string());
        assert_eq!(check(&[linear(2, 32, 2), linear(1, 32, 0)]), Ok(DenseShape { rows: 3, cols: 32 }));
        let two = "matrix 1 of 2 that stand one under the other";
        assert_eq!(check(&[linear(1, 32, 1), linear(1, 64, 1)]), Err(format!("{two}: expected 32 columns, found 64")));
        assert_eq!(check(&[linear(1, 32, 1), linear(3, 32, 2)]), Err(format!("{two}: expected 3 biases, found 2")));
        assert!(check(&[]).is_err());
    }
}
