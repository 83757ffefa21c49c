//! Seeded random numbers, and experts made of them.

use half::bf16;
use tessera_model::Experts;
use tessera_model::mxfp4::BLOCK;

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

/// Mean and deviation given, rounded to bf16.
pub fn normals(seed: u64, n: usize, mean: f32, deviation: f32) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(mean + deviation * normal(seed, i as u64))).collect()
}

/// Random matrices of some experts, `[experts, rows, cols]`, with biases.
pub struct RandomExperts {
    blocks: Vec<u8>,
    scales: Vec<u8>,
    bias: Vec<bf16>,
    experts: usize,
    rows: usize,
    cols: usize,
}

impl RandomExperts {
    /// Codes all equally likely (their rms is 2.93), under scales around that which makes the weights' rms
    /// `gain / sqrt(cols)`.
    pub fn new(seed: u64, experts: usize, rows: usize, cols: usize, gain: f32) -> Self {
        let elements = experts * rows * cols;
        let centre = 127.0 + (gain / (cols as f32).sqrt() / 2.93).log2();
        let blocks = (0..elements.div_ceil(16)).flat_map(|i| random(seed, i as u64).to_le_bytes());
        let scales = (0..elements / BLOCK).map(|i| centre as u8 - 1 + (random(seed + 1, i as u64) % 3) as u8);
        Self {
            blocks: blocks.take(elements / 2).collect(),
            scales: scales.collect(),
            bias: normals(seed + 2, experts * rows, 0.0, 0.3),
            experts,
            rows,
            cols,
        }
    }

    pub fn view(&self) -> Experts<'_> {
        let Self { blocks, scales, bias, experts, rows, cols } = self;
        Experts { blocks, scales, bias, experts: *experts, rows: *rows, cols: *cols }
    }
}
