//! The whole forward pass: on the CPU's fast path, or on the GPU.

use std::ops::ControlFlow;

use anyhow::Context;
use tessera_cpu::{CpuExecutor, CpuOptions, OracleExecutor};
use tessera_cuda::{CudaExecutor, ModelWeights};
use tessera_model::{Batch, Config, Executor, Limits, Site, Stage, Trace, Weights};

use super::lockstep::{Filter, Lockstep, Record, Step, Traced, traced};
use super::measure;
use super::probe::{Probe, round_operands};
use super::report::{Bits, Section};
use crate::args::Device;

/// What is run, and what of it is judged.
pub struct Whole<'a> {
    pub config: &'a Config,
    pub probe: &'a Probe,
    pub filter: Filter,
    pub options: CpuOptions,
    pub progress: &'a dyn Fn(Site),
}

/// What the GPU shows: SwiGLU is part of the kernel of gate_up.
pub fn cuda_judges(stage: Stage) -> bool {
    stage != Stage::GateUp
}

impl Whole<'_> {
    /// The model on `gpu`, or on the CPU where there is none, against the oracle; `probe` says in words what is run.
    pub fn section(
        &self,
        weights: &Weights,
        gpu: Option<&tessera_cuda::Device>,
        probe: String,
    ) -> anyhow::Result<Section> {
        let mut record = Record::default();
        let (config, limits) = (self.config, self.probe.limits);
        let bits = match gpu {
            None => {
                let mut fast = CpuExecutor::new(config, weights.clone(), limits, self.options);
                self.compare(weights, Device::Cpu, &mut traced(&mut fast), &mut record)?;
                None
            }
            Some(gpu) => {
                let mut fast = cuda_executor(gpu, config, weights, limits)?;
                self.compare(weights, Device::Cuda, &mut with_gate_up(&mut fast), &mut record)?;
                let has_logits = self.probe.steps.iter().any(|step| step.batch.n_logits() > 0);
                has_logits.then(|| same_bits(&mut fast, &self.probe.steps)).transpose()?
            }
        };
        Ok(Section { name: "model", probe, layers: config.num_hidden_layers, record, bits })
    }

    /// Holds `fast`, by the standard of `device`, against the oracle with `weights`.
    pub fn compare(
        &self,
        weights: &Weights,
        device: Device,
        fast: &mut Traced,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        let filter = self.filter;
        let lockstep = Lockstep {
            steps: &self.probe.steps,
            steer: &|_, site, _, values| round_operands(device, site, values),
            judges: &|site| (device == Device::Cpu || cuda_judges(site.stage)) && filter.judges(site),
            standard: &|stage| measure::of_models(device, stage),
            first_layer: 0,
            progress: self.progress,
        };
        let mut oracle = OracleExecutor::new(self.config, weights.clone(), self.probe.limits, self.options.threads);
        lockstep.run(&mut oracle, fast, record)
    }
}

/// The model in the GPU's memory.
pub fn cuda_executor(
    gpu: &tessera_cuda::Device,
    config: &Config,
    weights: &Weights,
    limits: Limits,
) -> anyhow::Result<CudaExecutor> {
    CudaExecutor::fits(config, &limits, gpu.memory()?.free_bytes as u64)?;
    let weights = ModelWeights::load(gpu, config, weights, &mut |_| ControlFlow::Continue(()))
        .context("cannot load the model into the GPU's memory")?;
    Ok(CudaExecutor::new(gpu, config, weights, limits)?)
}

/// An executor that has no gate_up to show, as the fast path.
pub fn with_gate_up(executor: &mut dyn Executor) -> impl FnMut(&Batch, &mut dyn Trace) -> anyhow::Result<()> {
    |batch, trace| Ok(executor.step_traced(batch, &mut WithGateUp(trace)).map(drop)?)
}

/// Shows gate_up, which nobody judges, as zeros.
struct WithGateUp<'t>(&'t mut dyn Trace);

impl Trace for WithGateUp<'_> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        if site.stage == Stage::Swiglu {
            let gate_up = Site { stage: Stage::GateUp, ..site };
            self.0.visit(gate_up, 2 * width, &mut vec![0.0; 2 * values.len()]);
        }
        self.0.visit(site, width, values);
    }
}

/// Changes nothing.
struct Untouched;

impl Trace for Untouched {
    fn visit(&mut self, _site: Site, _width: usize, _values: &mut [f32]) {}
}

/// Whether steps as they usually run, with stages fused and from graphs, have the bits of those that are shown stage by stage.
fn same_bits(executor: &mut dyn Executor, steps: &[Step]) -> anyhow::Result<Bits> {
    let mut logits = |is_traced: bool| -> anyhow::Result<Vec<Vec<f32>>> {
        let mut run = |step: &Step| {
            match is_traced {
                true => executor.step_traced(&step.batch, &mut Untouched)?,
                false => executor.step(&step.batch)?,
            };
            Ok(executor.logits()?)
        };
        steps.iter().map(&mut run).collect()
    };
    let (usual, shown) = (logits(false)?, logits(true)?);
    let mut bits = Bits { values: usual.iter().map(Vec::len).sum(), differs: None };
    for ((step, usual), shown) in steps.iter().zip(&usual).zip(&shown) {
        if let Some(at) = usual.iter().zip(shown).position(|(usual, shown)| usual.to_bits() != shown.to_bits()) {
            let (label, usual, shown) = (&step.label, usual[at], shown[at]);
            bits.differs =
                Some(format!("{label}, value {at} of the logits: {usual:e} where stage by stage it is {shown:e}"));
            break;
        }
    }
    Ok(bits)
}
