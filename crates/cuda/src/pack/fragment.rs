//! Which element of a 64x16 tile each thread of a warpgroup holds.
//!
//! The A operand of `wgmma.m64nNk16` for 16-bit types, from registers: PTX ISA, "Register Fragments for
//! wgmma.mma_async.m64nNk16". A warp's 16 rows of it are the A operand of `mma.sync.m16n8k16`.

/// Threads of a warpgroup.
pub const THREADS: usize = 128;
/// Threads of a warp.
pub const LANES: usize = 32;
/// Registers of one thread; each has two BF16 halves.
pub const REGISTERS: usize = 4;
/// Rows of the tile.
pub const TILE_ROWS: usize = 64;
/// Columns of the tile: one step of the instruction along k.
pub const STEP_K: usize = 16;

/// A position in the 64x16 tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    pub row: usize,
    pub k: usize,
}

/// A place where a position is held: half `half` (0 low, 1 high) of register `register` of thread `thread`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub thread: usize,
    pub register: usize,
    pub half: usize,
}

/// What is held at a place. With warp `w = thread / 32`, `g = lane / 4`, `q = lane % 4`:
/// `row = 16 w + g + 8 (register & 1)`, `k = 2 q + 8 (register >> 1) + half`.
#[inline(always)]
pub const fn element(at: Place) -> Element {
    let (warp, lane) = (at.thread / LANES, at.thread % LANES);
    Element { row: 16 * warp + lane / 4 + 8 * (at.register & 1), k: 2 * (lane % 4) + 8 * (at.register >> 1) + at.half }
}

/// Every place, by thread, register and half.
pub fn places() -> impl Iterator<Item = Place> {
    let of_thread = |thread| (0..2 * REGISTERS).map(move |i| Place { thread, register: i / 2, half: i % 2 });
    (0..THREADS).flat_map(of_thread)
}

/// Where a position is held: the inverse of [`element`], found by trying every place.
///
/// Panics if the position is not in the tile.
pub fn place(of: Element) -> Place {
    places().find(|&at| element(at) == of).expect("the tile is 64x16")
}
