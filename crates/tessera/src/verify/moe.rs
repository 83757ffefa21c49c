//! Each mixture of experts by itself: synthetic activations, forced routing, so that every expert is visited.

use std::ops::RangeInclusive;

use anyhow::Context;
use half::bf16;
use tessera_cpu::{CpuExecutor, CpuOptions, OracleExecutor};
use tessera_model::{
    Batch, BlockTables, Config, LayerWeights, Limits, Linear, Matrix, Row, Site, Stage, Trace, Weights,
};

use super::cuda::{self, Gpu};
use super::lockstep::{Filter, Lockstep, Record, Step, Traced, traced};
use super::measure::of_experts;
use super::probe::{Probe, round_operands};
use super::report::Section;
use crate::args::Device;
use crate::random::{RandomExperts, normal, normals};

/// Seed of the synthetic layer's weights.
const SYNTHETIC_SEED: u64 = 17;

/// Tokens that every expert gets in the first step.
const TOKENS_PER_EXPERT: usize = 8;
const DECODE_STEPS: usize = 2;
/// Every so many channels of an activation one is large, as in trained models.
const OUTLIER_EVERY: usize = 97;
const OUTLIER: f32 = 20.0;
/// Far below every router logit.
const NOT_CHOSEN: f32 = -1e30;

/// What is held against the oracle.
pub enum Fast<'a> {
    Cpu,
    Cuda(&'a mut Gpu),
}

/// How layers are judged, one by one.
pub struct Layers<'a> {
    pub config: &'a Config,
    pub probe: &'a Probe,
    pub filter: Filter,
    pub options: CpuOptions,
    pub progress: &'a dyn Fn(Site),
}

impl Layers<'_> {
    /// Each layer with the checkpoint's weights, then one with random weights.
    pub fn sections(&self, weights: &Weights, mut fast: Fast) -> anyhow::Result<Vec<Section>> {
        let (mut real, mut synthetic) = (Record::default(), Record::default());
        let layers = self.layers();
        for &layer in &layers {
            self.judge(layer, weights, weights.layers[layer], &mut fast, &mut real)?;
        }
        let moe = SyntheticMoe::new(self.config, SYNTHETIC_SEED);
        let layer = moe.layer(weights.layers[0]);
        let weights = Weights { layers: vec![layer], ..weights.clone() };
        let any_layer = Layers { filter: Filter { layer: None, ..self.filter }, ..*self };
        any_layer.judge(0, &weights, layer, &mut fast, &mut synthetic)?;
        let steps = &self.probe.steps;
        let probe = format!(
            "synthetic activations of {} tokens sent to all experts in turn, then {} single ones",
            steps[0].batch.tokens.len(),
            steps.len() - 1
        );
        Ok(vec![
            Section {
                name: "checkpoint's weights",
                probe: probe.clone(),
                layers: layers.len(),
                record: real,
                bits: None,
            },
            Section { name: "random weights", probe, layers: 1, record: synthetic, bits: None },
        ])
    }

    /// Those that are asked for.
    pub fn layers(&self) -> Vec<usize> {
        (0..self.config.num_hidden_layers).filter(|&l| self.filter.layer.is_none_or(|only| only == l)).collect()
    }

    /// Holds `fast` with the layer `judged` against the oracle with layer `layer` of `weights`: the same, unless a fault is
    /// to be found.
    pub fn judge(
        &self,
        layer: usize,
        weights: &Weights,
        judged: LayerWeights,
        fast: &mut Fast,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        match fast {
            Fast::Cpu => {
                let (config, weights_of_one) = single_layer(self.config, weights, judged);
                let mut executor = CpuExecutor::new(&config, weights_of_one, self.probe.limits, self.options);
                self.compare(layer, weights, Device::Cpu, &mut traced(&mut executor), record)
            }
            Fast::Cuda(gpu) => {
                let experts = gpu.upload(&judged).with_context(|| format!("layer {layer}"))?;
                let mut step = |batch: &Batch, trace: &mut dyn Trace| gpu.step(&experts, batch, trace);
                self.compare(layer, weights, Device::Cuda, &mut step, record)
            }
        }
    }

    /// Holds `fast`, by the standard of `device`, against the oracle with layer `layer` of `weights`.
    pub fn compare(
        &self,
        layer: usize,
        weights: &Weights,
        device: Device,
        fast: &mut Traced,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        let (config, weights) = single_layer(self.config, weights, weights.layers[layer]);
        let filter = self.filter;
        let lockstep = Lockstep {
            steps: &self.probe.steps,
            steer: &|step, site, width, values| steer(&config, device, step, site, width, values),
            judges: &|site| judges(device, site) && filter.judges(site),
            standard: &|stage| of_experts(device, stage),
            first_layer: layer,
            progress: self.progress,
        };
        let mut oracle = OracleExecutor::new(&config, weights, self.probe.limits, self.options.threads);
        lockstep.run(&mut oracle, fast, record)
    }
}

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

/// What is judged on the CPU.
pub const CPU_STAGES: RangeInclusive<Stage> = Stage::MlpNorm..=Stage::Combine;

pub fn judges(device: Device, site: Site) -> bool {
    match device {
        Device::Cpu => CPU_STAGES.contains(&site.stage),
        Device::Cuda => cuda::judges(site.stage),
    }
}

/// Puts activations in place of attention's, and sends token `t` to the experts that follow those of token `t - 1`.
pub fn steer(config: &Config, device: Device, step: usize, site: Site, width: usize, values: &mut [f32]) {
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
        _ => round_operands(device, site, values),
    }
}

/// Random weights of one layer's mixture of experts.
pub struct SyntheticMoe {
    config: Config,
    norm: Vec<bf16>,
    router: (Vec<bf16>, Vec<bf16>),
    gate_up: RandomExperts,
    down: RandomExperts,
}

impl SyntheticMoe {
    pub fn new(config: &Config, seed: u64) -> Self {
        let (n, hidden, intermediate) = (config.num_local_experts, config.hidden_size, config.intermediate_size);
        Self {
            config: config.clone(),
            norm: normals(seed, hidden, 1.0, 0.2),
            router: (normals(seed + 1, n * hidden, 0.0, 2.0 / (hidden as f32).sqrt()), normals(seed + 2, n, 0.0, 0.5)),
            gate_up: RandomExperts::new(seed + 3, n, 2 * intermediate, hidden, 2.0),
            down: RandomExperts::new(seed + 6, n, hidden, intermediate, 0.5),
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
            gate_up: self.gate_up.view(),
            down: self.down.view(),
            ..layer
        }
    }
}
