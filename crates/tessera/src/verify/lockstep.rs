//! Oracle and fast path in lockstep: the oracle's values of every stage are sent to the fast path, judged there, and put in
//! place of its own. Every stage is so judged by itself, errors do not add up, and memory stays constant.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, bail};
use tessera_model::{Batch, Executor, Site, Stage, Trace};

use super::measure::{Finding, Kind, Measure, Standard, measure};

/// Stages that the oracle may be ahead; each holds one stage's values.
const STAGES_AHEAD: usize = 1;

/// One batch of a probe, and its name in reports.
pub struct Step {
    pub label: String,
    pub batch: Batch,
}

/// Changes the oracle's values of a stage, `[rows, width]`, after they were judged and before either side reads on:
/// `(step, site, width, values)`.
pub type Steer<'a> = dyn Fn(usize, Site, usize, &mut [f32]) + Sync + 'a;

/// What is judged; `None` is everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub layer: Option<usize>,
    pub stage: Option<Stage>,
}

/// Runs a batch on the fast path, and shows the stages that the oracle shows.
pub type Traced<'a> = dyn FnMut(&Batch, &mut dyn Trace) -> anyhow::Result<()> + 'a;

/// An executor as the fast path.
pub fn traced(executor: &mut dyn Executor) -> impl FnMut(&Batch, &mut dyn Trace) -> anyhow::Result<()> {
    |batch, trace| Ok(executor.step_traced(batch, trace).map(drop)?)
}

/// How to run the two against each other.
pub struct Lockstep<'a> {
    pub steps: &'a [Step],
    pub steer: &'a Steer<'a>,
    pub judges: &'a (dyn Fn(Site) -> bool + Sync),
    pub standard: &'a dyn Fn(Stage) -> Standard,
    /// The layer of the checkpoint that the executors call layer 0.
    pub first_layer: usize,
    pub progress: &'a dyn Fn(Site),
}

/// What was seen: every judged site in the order of the forward pass, over all steps.
#[derive(Default)]
pub struct Record {
    pub sites: Vec<(Site, Measure)>,
    /// The first value that is out of tolerance or not finite, in the order of steps and stages.
    pub first_failure: Option<Finding>,
    pub first_not_finite: Option<Finding>,
    /// Layers and experts that any token went to.
    pub experts: BTreeSet<(usize, usize)>,
}

impl Filter {
    pub fn judges(&self, site: Site) -> bool {
        self.layer.is_none_or(|l| site.layer == Some(l)) && self.stage.is_none_or(|s| site.stage == s)
    }
}

impl Record {
    fn add(&mut self, site: Site, measured: Measure) {
        if let Some(place) = measured.not_finite.clone() {
            let finding = Finding { site, place, kind: Kind::NotFinite };
            self.first_failure.get_or_insert(finding.clone());
            self.first_not_finite.get_or_insert(finding);
        } else if measured.fails() {
            let kind = Kind::Differs { relative: measured.max_relative, tolerance: measured.tolerance };
            self.first_failure.get_or_insert(Finding { site, place: measured.worst.clone(), kind });
        }
        match self.sites.iter_mut().find(|(s, _)| *s == site) {
            Some((_, m)) => m.merge(measured),
            None => self.sites.push((site, measured)),
        }
    }
}

impl Lockstep<'_> {
    /// Runs all steps on both, and adds what is seen to `record`. Both must have been built alike: same configuration,
    /// pools and step size.
    pub fn run(&self, oracle: &mut dyn Executor, fast: &mut Traced, record: &mut Record) -> anyhow::Result<()> {
        (0..self.steps.len()).try_for_each(|index| {
            self.run_step(index, oracle, fast, record).with_context(|| format!("step {}", self.steps[index].label))
        })
    }

    fn run_step(
        &self,
        index: usize,
        oracle: &mut dyn Executor,
        fast: &mut Traced,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        let step = &self.steps[index];
        let (sender, receiver) = sync_channel(STAGES_AHEAD);
        std::thread::scope(|scope| {
            let mut teller = Teller { index, steer: self.steer, sender };
            let oracle = scope.spawn(move || oracle.step_traced(&step.batch, &mut teller).map(drop));
            let mut judge = Judge { lockstep: self, label: &step.label, receiver, record, state: State::default() };
            let fast = fast(&step.batch, &mut judge);
            let lost = judge.finish();
            let oracle = oracle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            oracle.context("the oracle failed")?;
            fast.context("the fast path failed")?;
            lost.map_or(Ok(()), |lost| bail!(lost))
        })
    }
}

/// One stage's values on their way from the oracle to the fast path.
struct Message {
    site: Site,
    expected: Vec<f32>,
    /// What both sides read on with, where it is not `expected`.
    steered: Option<Vec<f32>>,
}

/// The oracle's trace.
struct Teller<'a> {
    index: usize,
    steer: &'a Steer<'a>,
    sender: SyncSender<Message>,
}

impl Trace for Teller<'_> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        if values.is_empty() {
            return;
        }
        let expected = values.to_vec();
        (self.steer)(self.index, site, width, values);
        let same = expected.iter().zip(values.iter()).all(|(a, b)| a.to_bits() == b.to_bits());
        let steered = (!same).then(|| values.to_vec());
        // A fast path that has already failed hangs up; the oracle's step then ends unheard.
        let _ = self.sender.send(Message { site, expected, steered });
    }
}

/// The fast path's trace.
struct Judge<'a, 'r> {
    lockstep: &'a Lockstep<'a>,
    label: &'a str,
    receiver: Receiver<Message>,
    record: &'r mut Record,
    state: State,
}

/// What the judge must remember between stages.
#[derive(Default)]
struct State {
    /// The residual stream, `[tokens, hidden]`.
    residual: Vec<f32>,
    /// The expert of each pair.
    pairs: Vec<usize>,
    /// Why the two can no longer be compared.
    lost: Option<String>,
}

impl Trace for Judge<'_, '_> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        if values.is_empty() || self.state.lost.is_some() {
            return;
        }
        let message = match self.receiver.recv() {
            Ok(m) if m.site == site && m.expected.len() == values.len() => m,
            Ok(m) => {
                let (theirs, ours) = (m.expected.len(), values.len());
                self.state.lost =
                    Some(format!("out of step: the oracle shows {} ({theirs}), the fast path {site} ({ours})", m.site));
                return;
            }
            Err(_) => {
                self.state.lost = Some(format!("the oracle ended before {site}"));
                return;
            }
        };
        self.judge(site, width, values, &message.expected);
        values.copy_from_slice(message.steered.as_ref().unwrap_or(&message.expected));
        self.remember(site, width, values);
        (self.lockstep.progress)(site);
    }
}

impl Judge<'_, '_> {
    /// Why the two came apart, if they did. Ends the conversation.
    fn finish(self) -> Option<String> {
        let unheard = || self.receiver.recv().ok().map(|m| format!("the fast path never showed {}", m.site));
        self.state.lost.or_else(unheard)
    }

    fn judge(&mut self, site: Site, width: usize, values: &[f32], expected: &[f32]) {
        let named = Site { layer: site.layer.map(|l| l + self.lockstep.first_layer), ..site };
        if !(self.lockstep.judges)(named) {
            return;
        }
        let adds = matches!(site.stage, Stage::AttnOut | Stage::Combine);
        let base = if adds { self.state.residual.as_slice() } else { &[] };
        let mut measured = measure(values, expected, base, width, (self.lockstep.standard)(site.stage));
        let expert = |row| self.expert(site.stage, row);
        for place in [Some(&mut measured.worst), measured.not_finite.as_mut()].into_iter().flatten() {
            (place.step, place.expert) = (self.label.into(), expert(place.row));
        }
        self.record.add(named, measured);
    }

    /// The expert whose values stand in `row` of a stage.
    fn expert(&self, stage: Stage, row: usize) -> Option<usize> {
        let by_pair = matches!(stage, Stage::GateUp | Stage::Swiglu | Stage::Down);
        by_pair.then(|| self.state.pairs.get(row).copied()).flatten()
    }

    /// Keeps what later stages are judged with; `values` are those that both sides read on with.
    fn remember(&mut self, site: Site, width: usize, values: &[f32]) {
        match (site.stage, site.layer) {
            (Stage::Embed | Stage::AttnOut | Stage::Combine, _) => self.state.residual = values.to_vec(),
            (Stage::Route, Some(layer)) => {
                let chosen = |row: &[f32]| (0..width).filter(|&e| row[e] != 0.0).collect::<Vec<_>>();
                self.state.pairs = values.chunks_exact(width).flat_map(chosen).collect();
                let layer = layer + self.lockstep.first_layer;
                self.record.experts.extend(self.state.pairs.iter().map(|&e| (layer, e)));
            }
            _ => (),
        }
    }
}
