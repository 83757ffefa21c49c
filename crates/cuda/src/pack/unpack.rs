//! Back from records to the checkpoint's form: once by the inverse of what the packer does, once by what the device does.

use tessera_model::mxfp4::BLOCK;

use super::decode::Share;
use super::fragment::{Place, element};
use super::group::byte;
use super::location::{CodeLocation, FieldLocation, locate_code, locate_field};
use super::{RECORD_BYTES, REGISTERS, Rows, STEP_K, STEPS, ScaleShift, Shape, THREADS, TILE_BLOCKS, TILE_K, TILE_ROWS};

/// A matrix as checkpoints have it.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpacked {
    pub blocks: Vec<u8>, // [rows, k / 32, 16], low nibble = even k
    pub scales: Vec<u8>, // [rows, k / 32], E8M0
}

/// The inverse of the packer: for every element of the matrix, its bits are looked up where they were put.
///
/// Panics if `packed` is not [`Shape::packed_bytes`] long.
pub fn unpack(packed: &[u8], shape: Shape, rows: Rows, shift: ScaleShift) -> Unpacked {
    let mut out = Unpacked::zeroed(shape);
    let locations = Locations::new();
    let records = records(packed, shape);
    for row in 0..shape.rows() {
        let (strip, r) = (rows.packed(row) / TILE_ROWS, rows.packed(row) % TILE_ROWS);
        for block in 0..shape.blocks() {
            let (k_tile, in_tile) = (block / TILE_BLOCKS, block % TILE_BLOCKS);
            let record = &records[strip * shape.k_tiles() + k_tile];
            out.scales[row * shape.blocks() + block] = shift.scale(locations.field(record, r, in_tile));
            let codes = &mut out.blocks[(row * shape.blocks() + block) * BLOCK / 2..][..BLOCK / 2];
            for (i, byte) in codes.iter_mut().enumerate() {
                let k = in_tile * BLOCK + 2 * i;
                *byte = locations.code(record, r, k) | locations.code(record, r, k + 1) << 4;
            }
        }
    }
    out
}

/// What 128 threads get from every record by their loads and the device's decode, put where the fragment map says.
///
/// Panics if `packed` is not [`Shape::packed_bytes`] long.
pub fn unpack_as_device(packed: &[u8], shape: Shape, rows: Rows, shift: ScaleShift) -> Unpacked {
    let mut out = Unpacked::zeroed(shape);
    for (i, record) in records(packed, shape).iter().enumerate() {
        let (strip, k_tile) = (i / shape.k_tiles(), i % shape.k_tiles());
        for thread in 0..THREADS {
            let share = Share::load(record, thread);
            for (step, register) in (0..STEPS * REGISTERS).map(|i| (i / REGISTERS, i % REGISTERS)) {
                let at = element(Place { thread, register, half: 0 });
                let row = rows.source(TILE_ROWS * strip + at.row);
                let k = TILE_K * k_tile + STEP_K * step + at.k;
                if row < shape.rows() && k < shape.k() {
                    out.blocks[(row * shape.k() + k) / 2] = byte(share.pairs[step][register]);
                    let field = (share.multipliers(step, register) >> 7) as u8;
                    out.scales[row * shape.blocks() + k / BLOCK] = shift.scale(field);
                }
            }
        }
    }
    out
}

impl Unpacked {
    fn zeroed(shape: Shape) -> Self {
        Self { blocks: vec![0; shape.rows() * shape.k() / 2], scales: vec![0; shape.rows() * shape.blocks()] }
    }
}

fn records(packed: &[u8], shape: Shape) -> &[[u8; RECORD_BYTES]] {
    assert_eq!(packed.len(), shape.packed_bytes());
    packed.as_chunks().0
}

/// Where the packer puts what, as tables.
struct Locations {
    codes: Vec<CodeLocation>,   // [row, k]
    fields: Vec<FieldLocation>, // [row, block]
}

impl Locations {
    fn new() -> Self {
        Self {
            codes: (0..TILE_ROWS * TILE_K).map(|i| locate_code(i / TILE_K, i % TILE_K)).collect(),
            fields: (0..TILE_ROWS * TILE_BLOCKS).map(|i| locate_field(i / TILE_BLOCKS, i % TILE_BLOCKS)).collect(),
        }
    }

    fn code(&self, record: &[u8; RECORD_BYTES], row: usize, k: usize) -> u8 {
        let at = &self.codes[row * TILE_K + k];
        gather(&record[at.group..], &at.bits)
    }

    fn field(&self, record: &[u8; RECORD_BYTES], row: usize, block: usize) -> u8 {
        let at = &self.fields[row * TILE_BLOCKS + block];
        gather(&record[at.word..], &at.bits)
    }
}

/// The number whose bits, lowest first, are bits `bits` of `bytes`.
fn gather(bytes: &[u8], bits: &[usize]) -> u8 {
    bits.iter().enumerate().fold(0, |number, (i, bit)| number | (bytes[bit / 8] >> (bit % 8) & 1) << i)
}
