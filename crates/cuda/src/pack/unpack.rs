//! Back from records to the checkpoint's form: once by the inverse of what the packer does, once by what the device does.

use tessera_model::mxfp4::BLOCK;

use super::decode::Share;
use super::fragment::{Element, Place, element, place};
use super::group::{FIELDS, bit_position, byte};
use super::{
    CODE_BYTES, PAIRS, QUAD, RECORD_BYTES, REGISTERS, Rows, STEP_K, STEPS, ScaleShift, Shape, THREADS, TILE_BLOCKS,
    TILE_K, TILE_ROWS,
};

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
    let places = Places::new();
    let records = records(packed, shape);
    for row in 0..shape.rows() {
        let (strip, r) = (rows.packed(row) / TILE_ROWS, rows.packed(row) % TILE_ROWS);
        for block in 0..shape.blocks() {
            let (k_tile, in_tile) = (block / TILE_BLOCKS, block % TILE_BLOCKS);
            let record = &records[strip * shape.k_tiles() + k_tile];
            out.scales[row * shape.blocks() + block] = shift.scale(places.field(record, r, in_tile));
            let codes = &mut out.blocks[(row * shape.blocks() + block) * BLOCK / 2..][..BLOCK / 2];
            for (i, byte) in codes.iter_mut().enumerate() {
                *byte = places.byte(record, r, in_tile * BLOCK + 2 * i);
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
struct Places {
    groups: [[Place; STEP_K]; TILE_ROWS], // of each element of a k16 step
    bits: [[usize; 8]; PAIRS],            // of each bit of a pair, low nibble first, in its group
}

impl Places {
    fn new() -> Self {
        Self {
            groups: std::array::from_fn(|row| std::array::from_fn(|k| place(Element { row, k }))),
            bits: std::array::from_fn(|pair| std::array::from_fn(|bit| bit_position(pair, bit / 4, bit % 4))),
        }
    }

    /// The byte of codes `k` (even) and `k + 1` of a row of a record.
    fn byte(&self, record: &[u8; RECORD_BYTES], row: usize, k: usize) -> u8 {
        let step = k / STEP_K;
        let at = self.groups[row][k % STEP_K];
        let group = record[16 * at.thread + 8 * (step / 2)..].first_chunk().expect("a group has 8 bytes");
        let group = u64::from_le_bytes(*group);
        let bits = &self.bits[REGISTERS * (step % 2) + at.register];
        bits.iter().enumerate().fold(0, |byte, (i, &bit)| byte | ((group >> bit & 1) as u8) << i)
    }

    /// The exponent field of a row and 32-block of a record.
    fn field(&self, record: &[u8; RECORD_BYTES], row: usize, block: usize) -> u8 {
        let at = self.groups[row][0];
        let word = record[CODE_BYTES + 4 * (at.thread / QUAD)..].first_chunk().expect("a scale word has 4 bytes");
        let pair = u32::from_le_bytes(*word).rotate_right(8 * block as u32) & FIELDS;
        (pair >> (7 + 16 * (at.register & 1))) as u8
    }
}
