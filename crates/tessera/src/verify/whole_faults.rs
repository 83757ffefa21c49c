//! Faults of whole models, and a GPU that is played by the oracle: what the GPU's standard lets pass, and what it finds.

use half::bf16;
use tessera_cpu::OracleExecutor;
use tessera_model::{Batch, Executor, LayerType, Trace};

use super::faults::{compare_executors, fixture, owned, probe};
use super::lockstep::Record;
use super::whole::with_gate_up;
use super::*;

/// Something wrong with the model that is judged, and where it has to be found.
pub struct Fault {
    pub what: &'static str,
    pub case: &'static str,
    pub alter: fn(&mut Config, &mut Weights),
    pub layer: Option<usize>,
    pub stage: Stage,
}

/// In a model of 4 layers with a window of 16.
const fn window(what: &'static str, alter: fn(&mut Config, &mut Weights), layer: Option<usize>, stage: Stage) -> Fault {
    Fault { what, case: "window", alter, layer, stage }
}

/// In one with the published heads and window.
const fn real_heads(what: &'static str, alter: fn(&mut Config, &mut Weights), stage: Stage) -> Fault {
    Fault { what, case: "real_heads", alter, layer: Some(0), stage }
}

pub const FAULTS: [Fault; 31] = [
    window("window shorter", |c, _| c.sliding_window -= 1, Some(0), Stage::Attend),
    window("window longer", |c, _| c.sliding_window += 1, Some(0), Stage::Attend),
    real_heads("window shorter", |c, _| c.sliding_window -= 1, Stage::Attend),
    real_heads("window longer", |c, _| c.sliding_window += 1, Stage::Attend),
    window("no window", |c, _| c.layer_types[2] = LayerType::Full, Some(2), Stage::Attend),
    window("no sink of head 0", |_, w| no_sink(w, 0), Some(3), Stage::Attend),
    window("no sink of head 1", |_, w| no_sink(w, 1), Some(3), Stage::Attend),
    window("no sink of head 2", |_, w| no_sink(w, 2), Some(3), Stage::Attend),
    window("no sink of head 3", |_, w| no_sink(w, 3), Some(3), Stage::Attend),
    window("sinks of other heads", |_, w| w.layers[1].sinks = rotated(w.layers[1].sinks), Some(1), Stage::Attend),
    window("no bias of queries", |_, w| forget(&mut w.layers[1].q.bias), Some(1), Stage::Qkv),
    window("no bias of keys", |_, w| forget(&mut w.layers[2].k.bias), Some(2), Stage::Qkv),
    window("no bias of values", |_, w| forget(&mut w.layers[3].v.bias), Some(3), Stage::Qkv),
    window("no bias of attn_out", |_, w| forget(&mut w.layers[3].o.bias), Some(3), Stage::AttnOut),
    window("no bias of the router", |_, w| forget(&mut w.layers[0].router.bias), Some(0), Stage::Router),
    window("no bias of gate_up", |_, w| forget(&mut w.layers[0].gate_up.bias), Some(0), Stage::Swiglu),
    window("no bias of down", |_, w| forget(&mut w.layers[2].down.bias), Some(2), Stage::Down),
    window("a scale of gate_up", |_, w| nudge(&mut w.layers[0].gate_up.scales, 5), Some(0), Stage::Swiglu),
    window("a scale of down", |_, w| nudge(&mut w.layers[3].down.scales, 300), Some(3), Stage::Down),
    window("a weight of attn_norm", |_, w| negate(&mut w.layers[1].attn_norm, 33), Some(1), Stage::AttnNorm),
    window("a weight of values", |_, w| negate(&mut w.layers[2].v.weight.data, 100), Some(2), Stage::Qkv),
    window("a weight of attn_out", |_, w| negate(&mut w.layers[0].o.weight.data, 999), Some(0), Stage::AttnOut),
    window("a weight of mlp_norm", |_, w| negate(&mut w.layers[3].mlp_norm, 0), Some(3), Stage::MlpNorm),
    window("a weight of the router", |_, w| negate(&mut w.layers[3].router.weight.data, 77), Some(3), Stage::Router),
    window("a weight of final_norm", |_, w| negate(&mut w.final_norm, 63), None, Stage::FinalNorm),
    window("a weight of the head", |_, w| negate(&mut w.lm_head.data, 64 * 50), None, Stage::Logits),
    window("a weight of the embedding", |_, w| w.embed.data = rotated(w.embed.data), None, Stage::Embed),
    // The concentration, too.
    window("rope's factor", |c, _| c.rope.factor = 31.0, Some(0), Stage::RopeStore),
    window("rope's theta", |c, _| c.rope.theta *= 1.01, Some(0), Stage::RopeStore),
    window("limit of swiglu", |c, _| c.swiglu_limit = 7.5, Some(0), Stage::Swiglu),
    Fault {
        what: "epsilon",
        case: "odd_layers",
        alter: |c, _| c.rms_norm_eps = 1e-6,
        layer: Some(0),
        stage: Stage::AttnNorm,
    },
];

fn no_sink(w: &mut Weights, head: usize) {
    let sinks = owned(w.layers[3].sinks);
    sinks[head] = bf16::from_f32(-1e30);
    w.layers[3].sinks = sinks;
}

fn rotated<'a>(values: &[bf16]) -> &'a [bf16] {
    let rotated = owned(values);
    rotated.rotate_left(1);
    rotated
}

fn forget(bias: &mut &[bf16]) {
    *bias = owned(&vec![bf16::ZERO; bias.len()]);
}

fn nudge(scales: &mut &[u8], at: usize) {
    let altered = owned(scales);
    altered[at] += 1;
    *scales = altered;
}

fn negate(values: &mut &[bf16], at: usize) {
    let altered = owned(values);
    altered[at] = -altered[at];
    *values = altered;
}

/// The first failure of what `fast` makes of the altered model must be where the fault is.
pub fn check_fault(fault: &Fault, fast: impl FnOnce(&Config, &Weights, &Probe) -> anyhow::Result<Record>) {
    let checkpoint = fixture(fault.case);
    let (mut config, mut weights) = (checkpoint.config().clone(), checkpoint.weights());
    (fault.alter)(&mut config, &mut weights);
    let record = fast(&config, &weights, &probe(checkpoint.config())).expect(fault.what);
    let failure = record.first_failure.expect(fault.what);
    println!("{}: {failure}", fault.what);
    assert_eq!(failure.site, Site { layer: fault.layer, stage: fault.stage }, "{}: {failure}", fault.what);
}

/// Shows what a GPU would: no gate_up, and what meets weights in bf16.
struct Played<'t>(&'t mut dyn Trace);

impl Trace for Played<'_> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        if site.stage == Stage::GateUp {
            return;
        }
        probe::round_operands(Device::Cuda, site, values);
        self.0.visit(site, width, values);
    }
}

/// The oracle, playing a GPU. It sums as the oracle does: what is found is rounding, or a fault.
struct Player<'a>(OracleExecutor<'a>);

impl Executor for Player<'_> {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.0.kv_blocks(kind)
    }
    fn max_step_tokens(&self) -> usize {
        self.0.max_step_tokens()
    }
    fn step(&mut self, batch: &Batch) -> Result<Vec<tessera_model::Token>, tessera_model::StepError> {
        self.0.step(batch)
    }
    fn step_traced(
        &mut self,
        batch: &Batch,
        trace: &mut dyn Trace,
    ) -> Result<Vec<tessera_model::Token>, tessera_model::StepError> {
        self.0.step_traced(batch, &mut Played(trace))
    }
    fn logits(&self) -> Result<Vec<f32>, tessera_model::StepError> {
        self.0.logits()
    }
}

/// The played GPU with its own configuration and weights, by the standard of a real one.
fn play(oracle: (&Config, Weights), played: (&Config, &Weights), probe: &Probe) -> anyhow::Result<Record> {
    let mut fast = Player(OracleExecutor::new(played.0, played.1.clone(), probe.limits, 2));
    compare_executors(oracle, Device::Cuda, &mut with_gate_up(&mut fast), probe)
}

#[test]
fn rounding_to_bf16_is_no_error_on_a_gpu() {
    for case in ["narrow_k", "window", "one_kv_head", "experts_128", "real_heads", "odd_layers", "extreme_scales"] {
        let checkpoint = fixture(case);
        let (config, weights) = (checkpoint.config(), checkpoint.weights());
        let record = play((config, weights.clone()), (config, &weights), &probe(config)).expect("comparable");
        assert_eq!(record.sites.len(), 3 + 11 * config.num_hidden_layers);
        assert!(record.first_failure.is_none(), "{case}: {}", record.first_failure.expect("one"));
    }
}

#[test]
fn faults_are_found_beside_the_rounding() {
    for fault in &FAULTS {
        let sound = fixture(fault.case);
        check_fault(fault, |config, weights, probe| play((sound.config(), sound.weights()), (config, weights), probe));
    }
}
