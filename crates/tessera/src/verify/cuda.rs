//! The experts of one layer at a time on the GPU, stage by stage, with the stages of a trace.

use std::collections::BTreeSet;

use anyhow::Context;
use half::bf16;
use tessera_cuda::{Buffer, Moe, MoeChoice, MoeShape, MoeWeights, MoeWorkspace, Stream, Swiglu};
use tessera_model::{Batch, Config, LayerWeights, Site, Stage, Trace};

use tessera_cuda::slots::{self, Slots};

/// The GPU, and room for a batch.
pub struct Gpu {
    config: Config,
    device: tessera_cuda::Device,
    stream: Stream,
    moe: Moe,
    workspace: MoeWorkspace,
    logits: Buffer<f32>, // [tokens, experts]
    x: Buffer<bf16>,     // [tokens, hidden]
    out: Buffer<bf16>,   // [tokens, hidden]
    choice: MoeChoice,
    launched: Launched,
}

/// The names of the kernels that ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launched {
    pub gate_up: BTreeSet<&'static str>,
    pub down: BTreeSet<&'static str>,
}

/// What the GPU computes by itself: norm and router are not its, and gate_up is not seen, as SwiGLU is part of its kernel.
pub fn judges(stage: Stage) -> bool {
    matches!(stage, Stage::Route | Stage::Swiglu | Stage::Down | Stage::Combine)
}

impl Gpu {
    /// For experts as `config` has them, and at most so many tokens in a batch.
    pub fn new(
        device: tessera_cuda::Device,
        config: &Config,
        max_tokens: usize,
        choice: MoeChoice,
    ) -> anyhow::Result<Self> {
        let swiglu = Swiglu { limit: config.swiglu_limit, alpha: config.swiglu_alpha };
        Ok(Self {
            stream: device.stream()?,
            moe: Moe::load(&device, MoeShape::of(config), swiglu)?,
            workspace: MoeWorkspace::new(&device, MoeShape::of(config), max_tokens)?,
            logits: device.alloc(max_tokens * config.num_local_experts)?,
            x: device.alloc(max_tokens * config.hidden_size)?,
            out: device.alloc(max_tokens * config.hidden_size)?,
            config: config.clone(),
            device,
            choice,
            launched: Launched::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.device.properties().name
    }

    pub fn launched(&self) -> &Launched {
        &self.launched
    }

    /// A layer's experts in the GPU's memory, for as long as they are kept.
    pub fn upload(&self, layer: &LayerWeights) -> anyhow::Result<MoeWeights> {
        MoeWeights::upload(&self.device, &self.stream, MoeShape::of(&self.config), &layer.gate_up, &layer.down)
            .context("cannot upload the experts to the GPU")
    }

    /// The stages of a model of one layer that has the experts `weights`. What the GPU does not compute is shown as zeros, and
    /// taken as the trace leaves it.
    pub fn step(&mut self, weights: &MoeWeights, batch: &Batch, trace: &mut dyn Trace) -> anyhow::Result<()> {
        let mut show = Show { trace, config: &self.config.clone(), n_tokens: batch.tokens.len() };
        for stage in [Stage::Embed, Stage::AttnNorm, Stage::Qkv, Stage::RopeStore, Stage::Attend] {
            show.given(stage);
        }
        let residual = show.given(Stage::AttnOut);
        let x = show.given(Stage::MlpNorm);
        let logits = show.given(Stage::Router);
        self.forget()?;
        let slots = self.route(&x, &logits, &mut show)?;
        show.given(Stage::GateUp);
        self.gate_up(weights, &slots, &mut show)?;
        self.down(weights, &slots, &mut show)?;
        self.combine(&residual, &mut show)
    }

    /// What a stage does not write is not a number then, rather than what the step before has left.
    fn forget(&mut self) -> anyhow::Result<()> {
        self.workspace.poison(&self.stream)?;
        Ok(self.stream.upload(&vec![bf16::NAN; self.out.len()], &mut self.out, 0)?)
    }

    /// The GPU's own choice by `logits` `[tokens, experts]`; where it is not the oracle's, the oracle's replaces it, so that
    /// later stages are about the same experts.
    fn route(&mut self, x: &[f32], logits: &[f32], show: &mut Show) -> anyhow::Result<Slots> {
        let (stream, workspace, n_tokens) = (&self.stream, &mut self.workspace, show.n_tokens);
        let (top_k, n_experts) = (self.config.num_experts_per_tok, self.config.num_local_experts);
        let x: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        stream.upload(&x, &mut self.x, 0)?;
        stream.upload(logits, &mut self.logits, 0)?;
        self.moe.route(stream, &self.logits, &self.x, n_tokens, workspace)?;
        let mut ids = workspace.ids(stream)?;
        let found = slots::dense(&ids, &workspace.weights(stream)?, top_k, n_experts);
        let agreed = show.computed(Stage::Route, found);
        if !slots::agree(&ids, &agreed, top_k, n_experts) {
            let weights;
            (ids, weights) = slots::choice(&agreed, top_k, n_experts);
            self.moe.route_to(stream, &ids, &weights, &self.x, n_tokens, workspace)?;
        }
        Ok(Slots::new(&ids, top_k))
    }

    /// The gate and up projections with SwiGLU.
    fn gate_up(&mut self, weights: &MoeWeights, slots: &Slots, show: &mut Show) -> anyhow::Result<()> {
        let (stream, workspace, width) = (&self.stream, &mut self.workspace, self.config.intermediate_size);
        let kernel = self.choice.kernel(show.n_tokens, MoeShape::of(&self.config));
        self.launched.gate_up.extend(self.moe.gate_up(stream, weights, kernel, workspace)?);
        let h = show.computed(Stage::Swiglu, slots.to_pairs(&workspace.h(stream)?, width));
        Ok(workspace.set_h(stream, &slots.to_slots(&h, width))?)
    }

    fn down(&mut self, weights: &MoeWeights, slots: &Slots, show: &mut Show) -> anyhow::Result<()> {
        let (stream, workspace, width) = (&self.stream, &mut self.workspace, self.config.hidden_size);
        let kernel = self.choice.kernel(show.n_tokens, MoeShape::of(&self.config));
        self.launched.down.extend(self.moe.down(stream, weights, kernel, workspace)?);
        let y = show.computed(Stage::Down, slots.to_pairs(&workspace.y(stream)?, width));
        Ok(workspace.set_y(stream, &slots.to_slots(&y, width))?)
    }

    /// The GPU's sums, and `residual` `[tokens, hidden]`, which is added here.
    fn combine(&mut self, residual: &[f32], show: &mut Show) -> anyhow::Result<()> {
        self.moe.combine(&self.stream, &self.workspace, &mut self.out)?;
        let mut sums = vec![bf16::ZERO; residual.len()];
        self.stream.download(&self.out, 0, &mut sums)?;
        let added = sums.iter().zip(residual).map(|(sum, residual)| sum.to_f32() + residual);
        show.computed(Stage::Combine, added.collect());
        Ok(())
    }
}

/// The trace of a step.
struct Show<'a> {
    trace: &'a mut dyn Trace,
    config: &'a Config,
    n_tokens: usize,
}

impl Show<'_> {
    /// Shows `values` of a stage; what the trace leaves of them.
    fn computed(&mut self, stage: Stage, mut values: Vec<f32>) -> Vec<f32> {
        let layer = (stage != Stage::Embed).then_some(0);
        self.trace.visit(Site { layer, stage }, width(self.config, stage), &mut values);
        values
    }

    /// What the trace has for a stage that the GPU does not compute or does not show.
    fn given(&mut self, stage: Stage) -> Vec<f32> {
        let n_rows = match stage {
            Stage::GateUp | Stage::Swiglu | Stage::Down => self.n_tokens * self.config.num_experts_per_tok,
            _ => self.n_tokens,
        };
        self.computed(stage, vec![0.0; n_rows * width(self.config, stage)])
    }
}

/// Columns of a stage.
fn width(config: &Config, stage: Stage) -> usize {
    match stage {
        Stage::Qkv | Stage::RopeStore => config.qkv_dim(),
        Stage::Attend => config.q_dim(),
        Stage::Router | Stage::Route => config.num_local_experts,
        Stage::GateUp => 2 * config.intermediate_size,
        Stage::Swiglu => config.intermediate_size,
        Stage::Logits => config.vocab_size,
        _ => config.hidden_size,
    }
}

#[cfg(test)]
mod tests {
    use tessera_cpu::CpuOptions;
    use tessera_cuda::MoeKernel;

    use super::super::lockstep::{Filter, Record};
    use super::super::moe::{self, Layers};
    use super::super::moe_faults::Demo;
    use super::*;
    use crate::args::Device;

    /// Nothing is computed here: the stages' order and sizes must be the oracle's.
    #[test]
    fn stages_are_shown_as_the_oracle_shows_them() {
        let demo = Demo::open();
        let (config, weights) = (demo.checkpoint.config(), demo.checkpoint.weights());
        let probe = moe::probe(config);
        let filter = Filter { layer: Some(4), stage: None };
        let layers = Layers { config, probe: &probe, filter, options: CpuOptions::default(), progress: &|_| () };
        let mut record = Record::default();
        let mut shown = |batch: &Batch, trace: &mut dyn Trace| {
            let mut show = Show { trace, config, n_tokens: batch.tokens.len() };
            let stages = Stage::ALL.into_iter().filter(|stage| *stage < Stage::FinalNorm);
            stages.for_each(|stage| _ = show.given(stage));
            Ok(())
        };
        layers.compare(4, &weights, Device::Cuda, &mut shown, &mut record).expect("in step");
        let stages: Vec<Stage> = record.sites.iter().map(|(site, _)| site.stage).collect();
        assert_eq!(stages, [Stage::Route, Stage::Swiglu, Stage::Down, Stage::Combine]);
        assert!(record.sites.iter().all(|(site, m)| site.layer == Some(4) && m.fails()));
    }

    #[test]
    fn auto_goes_by_the_tokens_and_experts_of_the_model() {
        let config = Demo::open().checkpoint.config().clone(); // 4 of 8 experts
        let of = |choice: MoeChoice, n_tokens| choice.kernel(n_tokens, MoeShape::of(&config));
        assert_eq!(of(MoeChoice::Auto, 1), MoeKernel::auto(4, 8));
        assert_eq!(of(MoeChoice::Auto, 1000), MoeKernel::auto(4000, 8));
        assert_eq!(of(MoeChoice::Fixed(MoeKernel::Mid), 1), MoeKernel::Mid);
    }
}
