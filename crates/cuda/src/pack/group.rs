//! The 64-bit groups of codes and the scale words: how a record's bits are laid out, from the packer's side.
//!
//! A pair of codes (even k low, odd k high) has a home pattern: the bits where a BF16 pair has them if the value is taken
//! times 2^-126. In each half the sign is bit 15 and the three bits of exponent and mantissa are bits 8 to 6; E2M1's
//! subnormal falls together with BF16's. A group holds eight pairs, the registers of two k16 steps, in two words: each
//! word has three of its own pairs at distances from home that a rotate or a shift undoes, and the four bits left over
//! in every half of both words hold the fourth pairs. Sixteen codes cost the device 9 LOP3 and 7 shifts.

/// The bits of a pair at home.
pub const HOME: u32 = 0x81C0_81C0;
/// The bits of the two fourth pairs that the first word keeps, two places to the right.
pub const FOURTH: u32 = 0x180C_180C;
/// The bits of a pair of scales in a scale word.
pub const FIELDS: u32 = 0x7F80_7F80;
/// Pairs of one group: the four registers of two k16 steps.
pub const PAIRS: usize = 8;

/// The home pattern of a byte of the checkpoint: the low nibble, which has even k, into the low half.
#[inline(always)]
pub const fn home(byte: u8) -> u32 {
    let halves = (byte as u32 | (byte as u32) << 12) & 0x000F_000F;
    (halves & 0x0008_0008) << 12 | (halves & 0x0007_0007) << 6
}

/// The byte of the checkpoint that has a home pattern: the inverse of [`home`].
#[inline(always)]
pub const fn byte(home: u32) -> u8 {
    let halves = (home >> 12) & 0x0008_0008 | (home >> 6) & 0x0007_0007;
    (halves | halves >> 12) as u8
}

/// Merges eight pairs at home into the two words of a group.
#[inline(always)]
pub const fn merge(pairs: [u32; PAIRS]) -> [u32; 2] {
    let [a0, a1, a2, a3, a4, a5, a6, a7] = pairs;
    let fourths = a3.rotate_left(4) | a7 >> 6;
    [a0 | a1.rotate_left(6) | a2 >> 4 | (fourths & FOURTH) >> 2, a4 | a5.rotate_left(6) | a6 >> 4 | (fourths & !FOURTH)]
}

/// What each byte of the checkpoint puts into a group, by pair: as [`merge`] permutes bits, a group is the union of eight.
pub static SPREAD: [[u64; 256]; PAIRS] = {
    let mut table = [[0; 256]; PAIRS];
    let mut i = 0;
    while i < PAIRS * 256 {
        let mut pairs = [0; PAIRS];
        pairs[i / 256] = home((i % 256) as u8);
        let [first, second] = merge(pairs);
        table[i / 256][i % 256] = first as u64 | (second as u64) << 32;
        i += 1;
    }
    table
};

/// The word of a thread's four scales: exponent fields of (row g, block 0), (row g + 8, block 0), (row g, block 1),
/// (row g + 8, block 1), where blocks are those of 32 along k.
#[inline(always)]
pub const fn scale_word(fields: [u8; 4]) -> u32 {
    let [low0, high0, low1, high1] = fields;
    let block0 = (low0 as u32) << 7 | (high0 as u32) << 23;
    let block1 = (low1 as u32) << 7 | (high1 as u32) << 23;
    block0 | block1.rotate_left(8)
}

/// The bit of a group, of 64, that holds bit `bit` of the code in half `half` of pair `pair`.
///
/// Read off [`merge`]: it permutes bits.
pub fn bit_position(pair: usize, half: usize, bit: usize) -> usize {
    let mut pairs = [0; PAIRS];
    pairs[pair] = home(1 << (4 * half + bit));
    let [first, second] = merge(pairs);
    (u64::from(first) | u64::from(second) << 32).trailing_zeros() as usize
}
