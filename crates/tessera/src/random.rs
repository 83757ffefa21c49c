//! Seeded random numbers.

/// A number that depends on `seed` and `index` alone: SplitMix64 (Steele et al. 2014).
pub fn random(seed: u64, index: u64) -> u64 {
    let x = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Close to normal with mean 0 and variance 1: the sum of four uniform numbers (Irwin-Hall), from one random one.
pub fn normal(seed: u64, index: u64) -> f32 {
    let bits = random(seed, index);
    let sum: f32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f32 / 65536.0 - 0.5).sum();
    sum * 3f32.sqrt()
}
