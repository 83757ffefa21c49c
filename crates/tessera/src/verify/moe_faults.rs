//! Faults of experts, and a GPU that is played by the CPU: what the GPU's standard lets pass, and what it finds.

use half::bf16;
use tessera_cpu::OracleExecutor;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Batch, Executor, LayerWeights, Trace};

use super::faults::{WideAttention, owned};
use super::lockstep::Record;
use super::moe::SyntheticMoe;
use super::*;

/// Something wrong with the experts that are judged, and where it has to be found.
pub struct Fault {
    pub what: &'static str,
    pub layer: usize,
    pub alter: fn(&mut LayerWeights),
    pub stage: Stage,
}

/// In the demo model, whose layers have 8 experts: gate_up of 256 rows by 256 columns, down of 256 by 128.
pub const FAULTS: [Fault; 8] = [
    Fault {
        what: "all scales of an expert of gate_up",
        layer: 2,
        alter: |w| {
            let scales = owned(w.gate_up.scales);
            scales[3 * 256 * 8..][..256 * 8].iter_mut().for_each(|s| *s += 1);
            w.gate_up.scales = scales;
        },
        stage: Stage::Swiglu,
    },
    Fault {
        what: "one scale of gate_up",
        layer: 2,
        alter: |w| {
            w.gate_up.scales = poked(w.gate_up.scales, (3 * 256 + 11) * 8, w.gate_up.scales[(3 * 256 + 11) * 8] + 1)
        },
        stage: Stage::Swiglu,
    },
    Fault {
        what: "one sign of gate_up",
        layer: 5,
        alter: |w| w.gate_up.blocks = poked(w.gate_up.blocks, 777, w.gate_up.blocks[777] ^ 0x80),
        stage: Stage::Swiglu,
    },
    Fault {
        what: "one bias of gate_up is not a number",
        layer: 0,
        alter: |w| w.gate_up.bias = poked(w.gate_up.bias, 256 + 9, bf16::NAN),
        stage: Stage::Swiglu,
    },
    Fault {
        what: "one scale of down",
        layer: 4,
        alter: |w| w.down.scales = poked(w.down.scales, 300, w.down.scales[300] + 1),
        stage: Stage::Down,
    },
    Fault {
        what: "one sign of down",
        layer: 1,
        alter: |w| w.down.blocks = poked(w.down.blocks, 4321, w.down.blocks[4321] ^ 0x80),
        stage: Stage::Down,
    },
    Fault {
        what: "one bias of down is not a number",
        layer: 3,
        alter: |w| w.down.bias = poked(w.down.bias, 2 * 256 + 7, bf16::NAN),
        stage: Stage::Down,
    },
    Fault {
        what: "the biases of down are forgotten",
        layer: 5,
        alter: |w| w.down.bias = owned(&vec![bf16::ZERO; w.down.bias.len()]),
        stage: Stage::Down,
    },
];

/// A copy with another element.
pub fn poked<'a, T: Copy>(values: &[T], at: usize, value: T) -> &'a [T] {
    let values = owned(values);
    values[at] = value;
    values
}

/// The demo model, layer by layer.
pub struct Demo {
    pub checkpoint: Checkpoint,
    pub probe: Probe,
}

impl Demo {
    pub fn open() -> Self {
        let checkpoint = Checkpoint::open(&crate::demo::folder().unwrap()).unwrap();
        let probe = moe::probe(checkpoint.config());
        Self { checkpoint, probe }
    }

    pub fn layers(&self) -> Layers<'_> {
        Layers {
            config: self.checkpoint.config(),
            probe: &self.probe,
            filter: Filter::default(),
            options: CpuOptions { threads: 2, ..CpuOptions::default() },
            progress: &|_| (),
        }
    }
}

/// Shows what a GPU would: its own gate_up goes on whatever the trace has, h and the experts' sum are bf16.
struct Played<'t> {
    trace: &'t mut dyn Trace,
    residual: Vec<f32>,
}

impl Trace for Played<'_> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        let round = |v: f32| bf16::from_f32(v).to_f32();
        match site.stage {
            Stage::GateUp => return self.trace.visit(site, width, &mut values.to_vec()),
            Stage::Swiglu => values.iter_mut().for_each(|v| *v = round(*v)),
            Stage::Combine => values.iter_mut().zip(&self.residual).for_each(|(v, r)| *v = round(*v - r) + r),
            _ => (),
        }
        self.trace.visit(site, width, values);
        if site.stage == Stage::AttnOut {
            self.residual = values.to_vec();
        }
    }
}

/// Layer `layer` of `weights` against the played GPU with the layer `judged`. It sums as the oracle does: what is found is
/// rounding, or a fault.
fn play_layer(layers: &Layers, layer: usize, weights: &Weights, judged: LayerWeights, record: &mut Record) {
    let (config, judged) = moe::single_layer(layers.config, weights, judged);
    let mut executor = OracleExecutor::new(&config, judged, layers.probe.limits, 2);
    let mut fast = |batch: &Batch, trace: &mut dyn Trace| {
        Ok(executor.step_traced(batch, &mut Played { trace, residual: vec![] }).map(drop)?)
    };
    layers.compare(layer, weights, Device::Cuda, &mut fast, record).expect("comparable");
}

/// All layers of the demo model; `alter` changes layer `layer` of the played GPU's.
fn play(demo: &Demo, layer: usize, alter: fn(&mut LayerWeights)) -> Record {
    let (layers, weights) = (demo.layers(), demo.checkpoint.weights());
    let mut record = Record::default();
    for l in layers.layers() {
        let mut judged = weights.layers[l];
        if l == layer {
            alter(&mut judged);
        }
        play_layer(&layers, l, &weights, judged, &mut record);
    }
    record
}

#[test]
fn rounding_to_bf16_is_no_error_on_a_gpu() {
    let demo = Demo::open();
    let record = play(&demo, 0, |_| ());
    for (site, m) in &record.sites {
        println!("{site}: {:.1e} of {:.1e}", m.max_relative, m.tolerance);
    }
    assert_eq!(record.sites.len(), 4 * demo.checkpoint.config().num_hidden_layers);
    assert!(record.first_failure.is_none(), "{}", record.first_failure.expect("one"));
}

#[test]
fn faults_are_found_beside_the_rounding() {
    let demo = Demo::open();
    for fault in &FAULTS {
        let failure = play(&demo, fault.layer, fault.alter).first_failure.expect(fault.what);
        println!("{}: {failure}", fault.what);
        assert_eq!(failure.site, Site { layer: Some(fault.layer), stage: fault.stage }, "{}: {failure}", fault.what);
    }
}

/// One step of one code under published widths, in one of 66 million elements.
#[test]
fn one_nibble_of_a_wide_layer_is_found_beside_the_rounding() {
    let demo = Demo::open();
    let config = Config {
        hidden_size: 2880,
        intermediate_size: 2880,
        num_hidden_layers: 1,
        vocab_size: 64,
        num_local_experts: 4,
        ..demo.checkpoint.config().clone()
    };
    let (synthetic, attention) = (SyntheticMoe::new(&config, 3), WideAttention::new(&config));
    let weights = attention.weights(&config, |layer| synthetic.layer(layer));
    let probe = moe::probe(&config);
    let layers = Layers { config: &config, probe: &probe, ..demo.layers() };
    let mut sound = Record::default();
    play_layer(&layers, 0, &weights, weights.layers[0], &mut sound);
    assert!(sound.first_failure.is_none(), "{}", sound.first_failure.expect("one"));
    let mut faulty = weights.layers[0];
    let at = (3 * 5760 + 1235) * 1440 + 77; // expert 3, row 1235: up of column 617
    faulty.gate_up.blocks = poked(faulty.gate_up.blocks, at, faulty.gate_up.blocks[at] ^ 1);
    let mut record = Record::default();
    play_layer(&layers, 0, &weights, faulty, &mut record);
    let failure = record.first_failure.expect("the nibble is found");
    println!("{failure}");
    assert_eq!(failure.site, Site { layer: Some(0), stage: Stage::Swiglu });
    assert_eq!((failure.place.expert, failure.place.column), (Some(3), 617));
}
