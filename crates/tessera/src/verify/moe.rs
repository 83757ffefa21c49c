//! Each mixture of experts by itself: synthetic activations, forced routing, so that every expert is visited.

use half::bf16;
use tessera_model::mxfp4::BLOCK;
use tessera_model::{
    Batch, BlockTables, Config, Experts, LayerWeights, Limits, Linear, Matrix, Row, Site, Stage, Weights,
};

use super::lockstep::Step;
use super::probe::{Probe, normal, random, round_operands};

/// Tokens that every expert gets in the first step.
const TOKENS_PER_EXPERT: usize = 8;
const DECODE_STEPS: usize = 2;
/// Every so many channels of an activation one is large, as in trained models.
const OUTLIER_EVERY: usize = 97;
const OUTLIER: f32 = 20.0;
/// Far below every router logit.
const NOT_CHOSEN: f32 = -1e30;

/// A model of one layer, whose attention is run but not judged.
pub fn single_layer<'a>(config: &Config, weights: &Weights<'a>, layer: LayerWeights<'a>) -> (Config, Weights<'a>) {
    let config = Config { num_hidden_layers: 1, layer_types: vec![config.layer_types[0]], ..config.clone() };
    (config, Weights { layers: vec![layer], ..weights.clone() })
}

/// Enough tokens that each expert gets `TOKENS_PER_EXPERT`, then single ones.
pub fn probe(config: &Config) -> Probe {
    let tokens = (config.num_local_experts * TOKENS_PER_EXPERT).div_ceil(config.num_experts_per_tok);
    let tokens = tokens.min(config.max_position_embeddings - DECODE_STEPS);
    let limits = Limits::for_sequences(config, 1, tokens + DECODE_STEPS, tokens);
    let step = |label: String, start: usize, n: usize| {
        let block_tables = BlockTables::sole(start + n, limits.sliding_blocks);
        let row = Row { n_tokens: n, start, block_tables, n_logits: 0, sampling: None };
        Step { label, batch: Batch { tokens: vec![0; n], rows: vec![row] } }
    };
    let decode = (0..DECODE_STEPS).map(|i| step(format!("decode {}", i + 1), tokens + i, 1));
    Probe { steps: std::iter::once(step("prefill".into(), 0, tokens)).chain(decode).collect(), limits }
}

pub fn judges(site: Site) -> bool {
    (Stage::MlpNorm..=Stage::Combine).contains(&site.stage)
}

/// Puts activations in place of attention's, and sends token `t` to the experts that follow those of token `t - 1`.
pub fn steer(config: &Config, step: usize, site: Site, width: usize, values: &mut [f32]) {
    match site.stage {
        Stage::AttnOut => {
            for (i, v) in values.iter_mut().enumerate() {
                let gain = if (i % width).is_multiple_of(OUTLIER_EVERY) { OUTLIER } else { 1.0 };
                *v = gain * normal(step as u64, i as u64);
            }
        }
        Stage::Router => {
            let top_k = config.num_experts_per_tok;
            for (t, logits) in values.chunks_exact_mut(width).enumerate() {
                // Each round over the experts begins one later, so that their company changes.
                let first = (t + step) * top_k;
                let chosen = |e: usize| (0..top_k).any(|i| (first + i + first / width) % width == e);
                logits.iter_mut().enumerate().filter(|(e, _)| !chosen(*e)).for_each(|(_, l)| *l = NOT_CHOSEN);
            }
        }
        _ => round_operands(site, values),
    }
}

/// Random weights of one layer's mixture of experts.
pub struct SyntheticMoe {
    config: Config,
    norm: Vec<bf16>,
    router: (Vec<bf16>, Vec<bf16>),
    gate_up: SyntheticExperts,
    down: SyntheticExperts,
}

struct SyntheticExperts {
    blocks: Vec<u8>,
    scales: Vec<u8>,
    bias: Vec<bf16>,
    rows: usize,
    cols: usize,
}

impl SyntheticMoe {
    pub fn new(config: &Config, seed: u64) -> Self {
        let (n, hidden, intermediate) = (config.num_local_experts, config.hidden_size, config.intermediate_size);
        Self {
            config: config.clone(),
            norm: normals(seed, hidden, 1.0, 0.2),
            router: (normals(seed + 1, n * hidden, 0.0, 2.0 / (hidden as f32).sqrt()), normals(seed + 2, n, 0.0, 0.5)),
            gate_up: SyntheticExperts::new(seed + 3, n, 2 * intermediate, hidden, 2.0),
            down: SyntheticExperts::new(seed + 6, n, hidden, intermediate, 0.5),
        }
    }

    /// `layer` with this mixture of experts.
    pub fn layer<'a>(&'a self, layer: LayerWeights<'a>) -> LayerWeights<'a> {
        let c = &self.config;
        LayerWeights {
            mlp_norm: &self.norm,
            router: Linear {
                weight: Matrix::new(&self.router.0, c.num_local_experts, c.hidden_size),
                bias: &self.router.1,
            },
            gate_up: self.gate_up.view(c.num_local_experts),
            down: self.down.view(c.num_local_experts),
            ..layer
        }
    }
}

impl SyntheticExperts {
    /// Codes all equally likely (their rms is 2.93), under scales around that which makes the weights' rms
    /// `gain / sqrt(cols)`.
    fn new(seed: u64, experts: usize, rows: usize, cols: usize, gain: f32) -> Self {
        let elements = experts * rows * cols;
        let centre = 127.0 + (gain / (cols as f32).sqrt() / 2.93).log2();
        let blocks = (0..elements.div_ceil(16)).flat_map(|i| random(seed, i as u64).to_le_bytes());
        let scales = (0..elements / BLOCK).map(|i| centre as u8 - 1 + (random(seed + 1, i as u64) % 3) as u8);
        Self {
            blocks: blocks.take(elements / 2).collect(),
            scales: scales.collect(),
            bias: normals(seed + 2, experts * rows, 0.0, 0.3),
            rows,
            cols,
        }
    }

    fn view(&self, experts: usize) -> Experts<'_> {
        let Self { blocks, scales, bias, rows, cols } = self;
        Experts { blocks, scales, bias, experts, rows: *rows, cols: *cols }
    }
}

fn normals(seed: u64, n: usize, mean: f32, deviation: f32) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(mean + deviation * normal(seed, i as u64))).collect()
}
