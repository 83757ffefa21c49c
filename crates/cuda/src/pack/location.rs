//! Where in a record the bits of one element and of one scale are: the packer's forms, followed for one of them.

use super::fragment::{Element, Place, place};
use super::group::{bit_position, scale_word};
use super::{CODE_BYTES, QUAD, REGISTERS, STEP_K, TILE_BLOCKS, TILE_K, TILE_ROWS};

/// Where the code of an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeLocation {
    /// The k16 step that multiplies it.
    pub step: usize,
    /// Where the tensor core takes it from in that step.
    pub place: Place,
    /// The pair of the group: register and which of the group's two steps.
    pub pair: usize,
    /// The byte of the record where its 64-bit group begins.
    pub group: usize,
    /// The bits of the group that hold it, the code's lowest first.
    pub bits: [usize; 4],
}

/// Where the exponent field of a 32-block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLocation {
    /// The first of the four lanes that load it.
    pub thread: usize,
    /// The byte of the record where its scale word begins.
    pub word: usize,
    /// The bits of the word that hold it, the field's lowest first.
    pub bits: [usize; 8],
}

/// Locates the code of row `row`, column `k` of a record.
///
/// Panics if the record has no such element.
pub fn locate_code(row: usize, k: usize) -> CodeLocation {
    assert!(row < TILE_ROWS && k < TILE_K);
    let (step, place) = (k / STEP_K, place(Element { row, k: k % STEP_K }));
    let pair = REGISTERS * (step % 2) + place.register;
    CodeLocation {
        step,
        place,
        pair,
        group: 16 * place.thread + 8 * (step / 2),
        bits: std::array::from_fn(|bit| bit_position(pair, place.half, bit)),
    }
}

/// Locates the exponent field of row `row`, 32-block `block` of a record.
///
/// Panics if the record has no such block.
pub fn locate_field(row: usize, block: usize) -> FieldLocation {
    assert!(row < TILE_ROWS && block < TILE_BLOCKS);
    let at = place(Element { row, k: 0 });
    let below = at.register; // register 0 has row g, register 1 row g + 8
    let bit_of = |bit: usize| {
        let mut fields = [0; 2 * TILE_BLOCKS];
        fields[2 * block + below] = 1 << bit;
        scale_word(fields).trailing_zeros() as usize
    };
    FieldLocation { thread: at.thread, word: CODE_BYTES + 4 * (at.thread / QUAD), bits: std::array::from_fn(bit_of) }
}
