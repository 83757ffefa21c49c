//! Dequantised experts `[experts, in, out]` to MXFP4 blocks and scales `[experts, out, in / 32]`.

use std::ops::Range;
use std::sync::Mutex;

use half::bf16;

use super::ConvertError;
use crate::Config;
use crate::checkpoint::shards::ShardSet;
use crate::checkpoint::{Part, Survey, TensorSpec};
use crate::mxfp4::{BLOCK, BLOCK_BYTES, decode_block, encode_block};

/// Output rows that are encoded together: columns of the source are read in runs of 256 bytes.
const TILE_ROWS: usize = 128;

/// What quantising did to one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorError {
    /// Name in the source.
    pub tensor: String,
    /// `sqrt(sum (x - x')^2 / sum x^2)`.
    pub relative_error: f64,
    /// `max |x - x'|`.
    pub max_abs_error: f64,
}

/// One expert's matrix of one projection.
pub(super) struct Expert {
    layer: Option<usize>,
    part: Part,
    expert: usize,
    rows: usize,   // outputs
    cols: usize,   // inputs
    blocks: usize, // position of the tensor in the target's list
    scales: usize,
}

impl Expert {
    /// The experts of one projection; `spec` is its blocks.
    pub fn all(config: &Config, spec: &TensorSpec, blocks: usize, scales: usize) -> impl Iterator<Item = Self> + use<> {
        let (layer, part) = (spec.layer, if spec.part == Part::GateUpBlocks { Part::GateUp } else { Part::Down });
        let [experts, cols, rows] = part.shape(config)[..] else { unreachable!("expert matrices have 3 dimensions") };
        (0..experts).map(move |expert| Self { layer, part, expert, rows, cols, blocks, scales })
    }

    /// Reads, encodes and writes the matrix; returns the bytes written.
    pub fn run(
        &self,
        survey: &Survey,
        shards: &ShardSet,
        source: &mut Vec<u8>,
        sums: &Sums,
    ) -> Result<u64, ConvertError> {
        source.resize(self.cols * self.rows * size_of::<bf16>(), 0);
        survey.read_part(self.layer, self.part, self.expert * source.len(), source)?;
        let (mut written, mut sum) = (0, Sum::default());
        for first_row in (0..self.rows).step_by(TILE_ROWS) {
            let rows = first_row..self.rows.min(first_row + TILE_ROWS);
            let (codes, scales) = self.encode(source, rows, &mut sum)?;
            let first = ((self.expert * self.rows + first_row) * (self.cols / BLOCK)) as u64;
            shards.write_at(self.blocks, first * BLOCK_BYTES as u64, &codes)?;
            shards.write_at(self.scales, first, &scales)?;
            written += codes.len() + scales.len();
        }
        sums.add(self.layer, self.part, sum);
        Ok(written as u64)
    }

    /// Codes and scales of some output rows of `source`, the bytes of `[cols, rows]` BF16.
    fn encode(&self, source: &[u8], rows: Range<usize>, sum: &mut Sum) -> Result<(Vec<u8>, Vec<u8>), ConvertError> {
        let (row_blocks, n_rows) = (self.cols / BLOCK, rows.len());
        let mut scales = vec![0; n_rows * row_blocks];
        let mut codes = vec![0; n_rows * row_blocks * BLOCK_BYTES];
        let mut group = vec![[0f32; BLOCK]; n_rows];
        for b in 0..row_blocks {
            for i in 0..BLOCK {
                let start = (b * BLOCK + i) * self.rows + rows.start;
                let values = source[2 * start..][..2 * n_rows].chunks_exact(2);
                for (block, value) in group.iter_mut().zip(values) {
                    block[i] = bf16::from_le_bytes([value[0], value[1]]).to_f32();
                }
            }
            for (r, values) in group.iter().enumerate() {
                let bad = |i| self.not_finite(rows.start + r, b * BLOCK + i, values[i]);
                let (block, scale) = encode_block(values).map_err(bad)?;
                sum.add(values, &decode_block(&block, scale));
                let at = r * row_blocks + b;
                scales[at] = scale;
                codes[at * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&block);
            }
        }
        Ok((codes, scales))
    }

    fn not_finite(&self, row: usize, col: usize, value: f32) -> ConvertError {
        ConvertError::NotFinite { tensor: source_name(self.layer, self.part), expert: self.expert, row, col, value }
    }
}

#[derive(Clone, Copy, Default)]
struct Sum {
    squared_error: f64,
    squared: f64,
    max: f64,
}

impl Sum {
    fn add(&mut self, values: &[f32; BLOCK], quantised: &[f32; BLOCK]) {
        for (x, q) in values.iter().zip(quantised) {
            let (x, error) = (f64::from(*x), (f64::from(*x) - f64::from(*q)).abs());
            self.squared_error += error * error;
            self.squared += x * x;
            self.max = self.max.max(error);
        }
    }
}

/// Errors of every layer's two projections, added up as matrices finish.
pub(super) struct Sums(Mutex<Vec<[Sum; 2]>>); // [layers][gate_up, down]

impl Sums {
    pub fn new(config: &Config) -> Self {
        Self(Mutex::new(vec![[Sum::default(); 2]; config.num_hidden_layers]))
    }

    fn add(&self, layer: Option<usize>, part: Part, sum: Sum) {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let slot = &mut all[layer.unwrap_or(0)][usize::from(part == Part::Down)];
        slot.squared_error += sum.squared_error;
        slot.squared += sum.squared;
        slot.max = slot.max.max(sum.max);
    }

    pub fn report(&self, config: &Config) -> Vec<TensorError> {
        let all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let of = |layer: usize, part: Part, sum: Sum| TensorError {
            tensor: source_name(Some(layer), part),
            relative_error: if sum.squared == 0.0 { 0.0 } else { (sum.squared_error / sum.squared).sqrt() },
            max_abs_error: sum.max,
        };
        (0..config.num_hidden_layers)
            .flat_map(|l| [of(l, Part::GateUp, all[l][0]), of(l, Part::Down, all[l][1])])
            .collect()
    }
}

fn source_name(layer: Option<usize>, part: Part) -> String {
    let projection = if part == Part::GateUp { "gate_up_proj" } else { "down_proj" };
    format!("model.layers.{}.mlp.experts.{projection}", layer.unwrap_or(0))
}
