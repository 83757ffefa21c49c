//! The router's weights as its kernel reads them.

use half::bf16;
use tessera_model::Linear;

use crate::device::{Buffer, Device};
use crate::kernels::router::STRIP_EXPERTS;
use crate::launch::Stream;
use crate::moe::MAX_EXPERTS;
use crate::moe::grouped::{PANEL, panels};
use crate::steps::{StepsError, exact, hidden_size, within};

/// Rows of a strip.
const STRIP: usize = STRIP_EXPERTS as usize;
/// Elements of a record: 16 rows of 64 columns, two groups of 8 rows in panel form, one after the other.
const RECORD: usize = STRIP * PANEL;
/// Rows of a group.
const GROUP: usize = 8;
/// Elements of a 16-byte piece.
const PIECE: usize = 8;

/// A layer's router in the GPU's memory.
pub struct RouterWeights {
    pub(crate) experts: usize,
    pub(crate) hidden: usize,
    pub(crate) records: Buffer<bf16>, // [strips, k_records, 16 x 64], padding is 0
    pub(crate) bias: Buffer<f32>,     // [strips * 16], padding is 0
}

impl RouterWeights {
    /// All zero.
    pub fn alloc(device: &Device, experts: usize, hidden: usize) -> Result<Self, StepsError> {
        within("num_local_experts", experts, MAX_EXPERTS)?;
        hidden_size(hidden)?;
        let strips = experts.div_ceil(STRIP);
        let records = device.alloc(strips * panels(hidden) * RECORD)?;
        Ok(Self { experts, hidden, records, bias: device.alloc(strips * STRIP)? })
    }

    /// Packs and uploads `[experts, hidden]`; waits.
    pub fn upload(device: &Device, stream: &Stream, router: &Linear) -> Result<Self, StepsError> {
        let (experts, hidden) = (router.weight.rows, router.weight.cols);
        exact("router's weights", router.weight.data.len(), experts * hidden)?;
        exact("router's bias", router.bias.len(), experts)?;
        let mut weights = Self::alloc(device, experts, hidden)?;
        let bias: Vec<f32> = router.bias.iter().map(|bias| bias.to_f32()).collect();
        stream.upload(&records(router.weight.data, hidden), &mut weights.records, 0)?;
        stream.upload(&bias, &mut weights.bias, 0)?;
        Ok(weights)
    }

    pub fn experts(&self) -> usize {
        self.experts
    }

    pub fn hidden(&self) -> usize {
        self.hidden
    }
}

/// `matrix` `[rows, cols]` in records, `[strips, k_records, 16 x 64]`: of a record, piece c of row r lies where piece `c ^ r %
/// 8` would without the swizzle. Rows and columns are filled up with 0.
pub(crate) fn records(matrix: &[bf16], cols: usize) -> Vec<bf16> {
    let (rows, k_records) = (matrix.len() / cols, panels(cols));
    let mut records = vec![bf16::ZERO; rows.div_ceil(STRIP) * k_records * RECORD];
    for (row, values) in matrix.chunks_exact(cols).enumerate() {
        let (strip, r) = (row / STRIP, row % STRIP);
        for (column, piece) in values.chunks(PIECE).enumerate() {
            let (k, c) = (column / (PANEL / PIECE), column % (PANEL / PIECE));
            let at = (strip * k_records + k) * RECORD + r * PANEL + (c ^ (r % GROUP)) * PIECE;
            records[at..][..piece.len()].copy_from_slice(piece);
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::records;

    /// By the bytes' formula: record (strip, k) at 2048 (strip k_records + k), the group of 8 rows at 1024 of it.
    #[test]
    fn every_element_is_where_the_formula_has_it() {
        for (rows, cols) in [(1, 32), (16, 64), (17, 96), (40, 160)] {
            let value = |row: usize, column: usize| bf16::from_bits((1 + row * cols + column) as u16);
            let matrix: Vec<bf16> = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
            let (strips, k_records) = (rows.div_ceil(16), cols.div_ceil(64));
            let found = records(&matrix, cols);
            assert_eq!(found.len() * 2, strips * k_records * 2048);
            for (row, column) in (0..strips * 16).flat_map(|r| (0..k_records * 64).map(move |c| (r, c))) {
                let expect = if row < rows && column < cols { value(row, column) } else { bf16::ZERO };
                let (group, r, piece) = (row % 16 / 8, row % 8, column % 64 / 8);
                let byte = 2048 * (row / 16 * k_records + column / 64)
                    + 1024 * group
                    + 128 * r
                    + 16 * (piece ^ r)
                    + 2 * (column % 8);
                assert_eq!(found[byte / 2].to_bits(), expect.to_bits(), "[{rows}, {cols}] at ({row}, {column})");
            }
        }
    }
}
