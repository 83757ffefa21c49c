//! What one thread of the device does with a record, operation for operation: two loads, no exchange between lanes.

use super::group::{FIELDS, FOURTH, HOME, PAIRS};
use super::{CODE_BYTES, LANES, RECORD_BYTES, REGISTERS, STEPS};

/// A thread's share of a record.
pub struct Share {
    /// `[k16 step, register]`: pairs of codes at home, E2M1 times 2^-126 as BF16 pairs.
    pub pairs: [[u32; REGISTERS]; STEPS],
    /// `[32-block]`: the multipliers of rows `g` (low half) and `g + 8` (high half), BF16.
    pub scales: [u32; 2],
}

impl Share {
    /// Loads 16 bytes of codes and 4 of scales, and decodes them.
    #[inline(always)]
    pub fn load(record: &[u8; RECORD_BYTES], thread: usize) -> Self {
        let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        let codes = 16 * thread;
        let scale = CODE_BYTES + 32 * (thread / LANES) + 4 * (thread % LANES / 4);
        let first = codes_of(word(codes), word(codes + 4));
        let second = codes_of(word(codes + 8), word(codes + 12));
        let step = |pairs: [u32; PAIRS], i: usize| [pairs[i], pairs[i + 1], pairs[i + 2], pairs[i + 3]];
        Self {
            pairs: [step(first, 0), step(first, 4), step(second, 0), step(second, 4)],
            scales: scales_of(word(scale)),
        }
    }

    /// The multipliers of a register: both halves have the same row, so the same one.
    #[inline(always)]
    pub fn multipliers(&self, step: usize, register: usize) -> u32 {
        let half = self.scales[step / 2] >> (16 * (register & 1)) & 0xFFFF; // PRMT 0x1010 or 0x3232
        half | half << 16
    }

    /// The BF16 pair that the tensor core gets: one multiplication.
    #[inline(always)]
    pub fn operand(&self, step: usize, register: usize) -> u32 {
        multiply(self.pairs[step][register], self.multipliers(step, register))
    }
}

/// The eight pairs of a group: 9 LOP3, 3 rotates, 4 left shifts.
#[inline(always)]
pub fn codes_of(w0: u32, w1: u32) -> [u32; PAIRS] {
    let fourths = (FOURTH & (w0 << 2)) | (!FOURTH & w1);
    [
        w0 & HOME,
        w0.rotate_right(6) & HOME,
        (w0 << 4) & HOME,
        fourths.rotate_right(4) & HOME,
        w1 & HOME,
        w1.rotate_right(6) & HOME,
        (w1 << 4) & HOME,
        (fourths << 6) & HOME,
    ]
}

/// The two BF16 pairs of a scale word.
#[inline(always)]
pub fn scales_of(word: u32) -> [u32; 2] {
    [word & FIELDS, word.rotate_right(8) & FIELDS]
}

/// `mul.rn.bf16x2`: products rounded to nearest even, subnormals kept.
pub fn multiply(a: u32, b: u32) -> u32 {
    multiply_half(a & 0xFFFF, b & 0xFFFF) | multiply_half(a >> 16, b >> 16) << 16
}

/// Products of BF16 have 16 significant bits, so float32 rounds them only below 2^-149, and BF16 from there as if from the
/// exact product.
fn multiply_half(a: u32, b: u32) -> u32 {
    let product = f32::from_bits(a << 16) * f32::from_bits(b << 16);
    if product.is_nan() {
        return 0x7FFF; // what the device returns for every NaN
    }
    let bits = product.to_bits();
    (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
}
