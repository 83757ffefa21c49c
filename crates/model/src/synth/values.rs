//! Which random values each tensor has: chosen so that activations stay near their size through all layers, logits have
//! rms 1, and routing is spread over the experts.
//!
//! The residual stream starts at rms 2; attention adds about 0.5 and the experts about 0.7 per layer. Queries and keys
//! have rms 1, so attention is neither flat nor a single key.

use super::random::{key, normals, word};
use crate::Config;
use crate::checkpoint::Part;
use crate::mxfp4::{BLOCK, BLOCK_BYTES, decode_block};

/// Distance of a scale byte from its tensor's base, by a random nibble: most at the base, some two binades around it.
const SCALE_SPREAD: [i8; 16] = [-2, -2, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2];
/// The largest of those distances, either way.
const SCALE_REACH: i8 = 2;
/// Root mean square of `2^distance` over [`SCALE_SPREAD`].
const SPREAD_RMS: f64 = 1.482;
/// Root mean square of the sixteen E2M1 values, all equally likely.
const CODE_RMS: f64 = 2.926;
/// Rms of `gate * sigmoid(1.702 gate) * (up + 1)` where gate and up have rms 1.4 (measured; 1.1 where they have 1.1).
const SWIGLU_RMS: f64 = 1.6;

/// Random nibbles that set these bits make a block's largest magnitude 4 or 6, as the OCP rule leaves every block whose
/// maximum is not at the format's lower end: so that quantising the dequantised values gives the same bytes.
const LARGE_CODE: u8 = 0x6;

/// The weights of a seed, by part and layer.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    config: &'a Config,
    seed: u64,
}

impl<'a> Source<'a> {
    pub fn new(config: &'a Config, seed: u64) -> Self {
        Self { config, seed }
    }

    /// The bytes of consecutive elements of a part, from element `start`, which is a multiple of 32.
    pub(super) fn fill(&self, part: Part, layer: Option<usize>, start: usize, out: &mut [u8]) {
        let key = self.key(part, layer);
        match part {
            Part::GateUpBlocks | Part::DownBlocks => {
                for (i, block) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                    block.copy_from_slice(&codes(key, start / BLOCK_BYTES + i));
                }
            }
            Part::GateUpScales | Part::DownScales => {
                let base = self.scale_base(part);
                for (i, chunk) in out.chunks_mut(16).enumerate() {
                    let word = word(key, (start / 16 + i) as u64);
                    for (j, scale) in chunk.iter_mut().enumerate() {
                        *scale = scale_byte(base, word, j);
                    }
                }
            }
            _ => {
                let (mean, deviation) = self.distribution(part);
                for (i, pair) in out.chunks_mut(4).enumerate() {
                    let values = normals(word(key, (start / 2 + i) as u64)).map(|x| mean + deviation * x);
                    let bits = u32::from(round(values[0])) | u32::from(round(values[1])) << 16;
                    pair.copy_from_slice(&bits.to_le_bytes()[..pair.len()]);
                }
            }
        }
    }

    /// The values of one block of an expert's matrix.
    pub(super) fn block(&self, blocks: Part, scales: Part, layer: Option<usize>, index: usize) -> [f32; BLOCK] {
        let word = word(self.key(scales, layer), (index / 16) as u64);
        let scale = scale_byte(self.scale_base(scales), word, index % 16);
        decode_block(&codes(self.key(blocks, layer), index), scale)
    }

    /// Of the words that a part's values are made of.
    pub fn key(&self, part: Part, layer: Option<usize>) -> u64 {
        key(self.seed, part as u64, layer.map_or(u64::MAX, |l| l as u64))
    }

    /// Mean and deviation of a part stored as BF16.
    pub fn distribution(&self, part: Part) -> (f32, f32) {
        let c = self.config;
        let over_root = |gain: f64, fan_in: usize| (0.0, (gain / (fan_in as f64).sqrt()) as f32);
        match part {
            Part::Embed => (0.0, 2.0),
            Part::AttnNorm | Part::MlpNorm | Part::FinalNorm => (1.0, 0.1),
            Part::Q | Part::K | Part::V | Part::LmHead => over_root(1.0, c.hidden_size),
            Part::O => over_root(1.0, c.q_dim()),
            Part::Router => over_root(1.5, c.hidden_size),
            Part::Sinks => (0.5, 1.0),
            _ => (0.0, 0.1),
        }
    }

    /// The smallest and the largest scale byte of a part's blocks.
    pub fn scale_range(&self, part: Part) -> [u8; 2] {
        let base = self.scale_base(part);
        [-SCALE_REACH, SCALE_REACH].map(|distance| base.saturating_add_signed(distance))
    }

    /// The commonest scale byte of a part's blocks, so that its outputs have the rms named at the top of this file.
    pub fn scale_base(&self, part: Part) -> u8 {
        let c = self.config;
        let (fan_in, input_rms, output_rms) = match part {
            Part::DownScales => (c.intermediate_size, SWIGLU_RMS, 1.5),
            _ => (c.hidden_size, 1.0, 1.5),
        };
        let unscaled = CODE_RMS * SPREAD_RMS * (fan_in as f64).sqrt() * input_rms;
        (127.0 + (output_rms / unscaled).log2()).round() as u8
    }
}

/// The codes of block `index`: sixteen random bytes, one nibble of them made large.
fn codes(key: u64, index: usize) -> [u8; BLOCK_BYTES] {
    let (low, high) = (word(key, 2 * index as u64), word(key, 2 * index as u64 + 1));
    let mut codes = [0; BLOCK_BYTES];
    codes[..8].copy_from_slice(&low.to_le_bytes());
    codes[8..].copy_from_slice(&high.to_le_bytes());
    codes[(low >> 60) as usize] |= LARGE_CODE;
    codes
}

fn scale_byte(base: u8, word: u64, nibble: usize) -> u8 {
    base.saturating_add_signed(SCALE_SPREAD[(word >> (4 * nibble)) as usize & 0xf])
}

/// Round to nearest even, without the branch for NaN.
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}
