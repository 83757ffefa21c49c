//! `--device cuda` on a GPU: sound experts pass, and faults put into what is uploaded are found at their layer and stage.

use std::collections::BTreeSet;
use std::io::Write;

use clap::ValueEnum;
use half::bf16;
use tessera_cuda::{MoeChoice, MoeKernel};
use tessera_model::{Batch, LayerWeights, Trace};

use super::faults::{compare_executors, fixture, probe};
use super::lockstep::Record;
use super::measure::Kind;
use super::moe_faults::{Demo, FAULTS, poked};
use super::whole::{cuda_executor, with_gate_up};
use super::whole_faults::{self, check_fault};
use super::*;

/// The GPU; none where there is none. With `REQUIRE_GPU=1` in the environment that is a failure.
#[track_caller]
fn gpu() -> Option<tessera_cuda::Device> {
    let reason = match tessera_cuda::Device::open() {
        Ok(device) => return Some(device),
        Err(reason) => reason,
    };
    if std::env::var_os("REQUIRE_GPU").is_some_and(|required| required == "1") {
        panic!("REQUIRE_GPU=1, but {reason}");
    }
    // On the real stderr: libtest hides what a passing test prints.
    let thread = std::thread::current();
    let line = format!("SKIPPED: no GPU ({reason}): {}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).expect("stderr can be written");
    None
}

/// The demo model's layers, one by one on the GPU, against the oracle with the checkpoint's weights; `alter` changes those
/// of layer `layer` that are uploaded.
fn record(gpu: &mut Gpu, demo: &Demo, layer: usize, alter: fn(&mut LayerWeights)) -> Record {
    let (layers, weights) = (demo.layers(), demo.checkpoint.weights());
    let mut record = Record::default();
    for l in layers.layers() {
        let mut judged = weights.layers[l];
        if l == layer {
            alter(&mut judged);
        }
        layers.judge(l, &weights, judged, &mut Fast::Cuda(gpu), &mut record).unwrap();
    }
    record
}

fn open(device: tessera_cuda::Device, demo: &Demo, kernel: MoeKernelArg) -> Gpu {
    Gpu::new(device, demo.checkpoint.config(), demo.probe.limits.max_step_tokens, kernel.into()).unwrap()
}

/// A model with its own configuration and weights on the GPU, against the oracle.
fn compare(
    device: &tessera_cuda::Device,
    oracle: (&Config, Weights),
    (config, weights): (&Config, &Weights),
    probe: &Probe,
) -> anyhow::Result<Record> {
    let mut fast = cuda_executor(device, config, weights, probe.limits)?;
    compare_executors(oracle, Device::Cuda, &mut with_gate_up(&mut fast), probe)
}

#[test]
fn sound_models_pass() {
    let Some(device) = gpu() else { return };
    for case in ["narrow_k", "window", "one_kv_head", "experts_128", "real_heads", "odd_layers", "extreme_scales"] {
        let checkpoint = fixture(case);
        let (config, weights) = (checkpoint.config(), checkpoint.weights());
        let record = compare(&device, (config, weights.clone()), (config, &weights), &probe(config)).unwrap();
        for (site, m) in &record.sites {
            println!("{case} {site}: {:.1e} of {:.1e}", m.max_relative, m.tolerance);
        }
        assert_eq!(record.sites.len(), 3 + 11 * config.num_hidden_layers);
        assert!(record.first_failure.is_none(), "{case}: {}", record.first_failure.expect("one"));
    }
}

#[test]
fn faults_of_whole_models_are_found_where_they_are() {
    let Some(device) = gpu() else { return };
    for fault in &whole_faults::FAULTS {
        let sound = fixture(fault.case);
        check_fault(fault, |config, weights, probe| {
            compare(&device, (sound.config(), sound.weights()), (config, weights), probe)
        });
    }
}

/// As `verify demo --device cuda` does it.
#[test]
fn stages_that_are_fused_have_the_same_bits() {
    let Some(device) = gpu() else { return };
    let demo = Demo::open();
    let (config, weights) = (demo.checkpoint.config(), demo.checkpoint.weights());
    let options = CpuOptions { threads: 2, ..CpuOptions::default() };
    let (probe, filter) = (probe(config), Filter::default());
    let whole = Whole { config, probe: &probe, filter, options, progress: &|_| () };
    let section = whole.section(&weights, Some(&device), String::new()).unwrap();
    assert!(section.record.first_failure.is_none(), "{}", section.record.first_failure.expect("one"));
    let bits = section.bits.expect("logits are compared");
    assert_eq!((bits.values > 0, bits.differs), (true, None));
}

/// The names of the kernels of a projection that the steps should have launched.
fn asked_for(projection: &str, kernel: MoeKernelArg, demo: &Demo) -> BTreeSet<&'static str> {
    let config = demo.checkpoint.config();
    let of_step = |step: &lockstep::Step| {
        let n_slots = step.batch.tokens.len() * config.num_experts_per_tok;
        let kernel = match kernel.into() {
            MoeChoice::Fixed(kernel) => kernel,
            MoeChoice::Auto => MoeKernel::auto(n_slots, config.num_local_experts),
        };
        &*format!("{projection}_{kernel:?}").to_lowercase().leak()
    };
    demo.probe.steps.iter().map(of_step).collect()
}

#[test]
fn sound_experts_pass_by_the_kernels_that_were_asked_for() {
    for &kernel in MoeKernelArg::value_variants() {
        let Some(device) = gpu() else { return };
        let demo = Demo::open();
        let mut gpu = open(device, &demo, kernel);
        let record = record(&mut gpu, &demo, 0, |_| ());
        for (site, m) in &record.sites {
            println!("{kernel:?} {site}: {:.1e} of {:.1e}", m.max_relative, m.tolerance);
        }
        if let Some(failure) = record.first_failure {
            panic!("{kernel:?}: {failure}");
        }
        let config = demo.checkpoint.config();
        assert_eq!(record.sites.len(), 4 * config.num_hidden_layers);
        assert_eq!(record.experts.len(), config.num_hidden_layers * config.num_local_experts);
        assert_eq!(gpu.launched().gate_up, asked_for("moe_gate_up", kernel, &demo));
        assert_eq!(gpu.launched().down, asked_for("moe_down", kernel, &demo));
    }
}

#[test]
fn faults_are_found_where_they_are() {
    let demo = Demo::open();
    for kernel in [MoeKernelArg::Auto, MoeKernelArg::Mid, MoeKernelArg::Prefill] {
        let Some(device) = gpu() else { return };
        let mut gpu = open(device, &demo, kernel);
        for fault in &FAULTS {
            let failure = record(&mut gpu, &demo, fault.layer, fault.alter).first_failure.expect(fault.what);
            println!("{kernel:?}, {}: {failure}", fault.what);
            assert_eq!(
                failure.site,
                Site { layer: Some(fault.layer), stage: fault.stage },
                "{}: {failure}",
                fault.what
            );
        }
    }
}

/// One bias each of a gate, an up and down.
#[test]
fn what_is_not_finite_is_named() {
    let demo = Demo::open();
    for kernel in [MoeKernelArg::Auto, MoeKernelArg::Mid, MoeKernelArg::Prefill] {
        let Some(device) = gpu() else { return };
        let mut gpu = open(device, &demo, kernel);
        check_not_finite(&mut gpu, &demo, Stage::Swiglu, (1, 4), |w| {
            w.gate_up.bias = poked(w.gate_up.bias, 256 + 2 * 4, bf16::NAN);
        });
        check_not_finite(&mut gpu, &demo, Stage::Swiglu, (5, 100), |w| {
            w.gate_up.bias = poked(w.gate_up.bias, 5 * 256 + 2 * 100 + 1, bf16::NAN);
        });
        check_not_finite(&mut gpu, &demo, Stage::Down, (2, 7), |w| {
            w.down.bias = poked(w.down.bias, 2 * 256 + 7, bf16::NAN);
        });
    }
}

/// Layer 3 with what `alter` does fails first at `stage`, for what is not finite in `column` of `expert`.
#[track_caller]
fn check_not_finite(
    gpu: &mut Gpu,
    demo: &Demo,
    stage: Stage,
    (expert, column): (usize, usize),
    alter: fn(&mut LayerWeights),
) {
    let record = record(gpu, demo, 3, alter);
    let failure = record.first_not_finite.expect("found");
    assert_eq!(failure.site, Site { layer: Some(3), stage }, "{failure}");
    assert_eq!((failure.place.expert, failure.place.column), (Some(expert), column), "{failure}");
    assert!(failure.place.expected.is_finite(), "{failure}");
    let first = record.first_failure.expect("found");
    assert!(matches!(first.kind, Kind::NotFinite) && first.site == failure.site, "{first}");
}

/// Lets a GPU read the logits of each step's first token in reverse.
struct Misled<'t> {
    trace: &'t mut dyn Trace,
}

impl Trace for Misled<'_> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        self.trace.visit(site, width, values);
        if site.stage == Stage::Router {
            values[..width].reverse();
        }
    }
}

#[test]
fn wrong_experts_are_found_and_later_stages_are_about_the_right_ones() {
    let Some(device) = gpu() else { return };
    let demo = Demo::open();
    let mut gpu = open(device, &demo, MoeKernelArg::Auto);
    let weights = demo.checkpoint.weights();
    let experts = gpu.upload(&weights.layers[1]).unwrap();
    let mut record = Record::default();
    let mut step = |batch: &Batch, trace: &mut dyn Trace| gpu.step(&experts, batch, &mut Misled { trace });
    demo.layers().compare(1, &weights, Device::Cuda, &mut step, &mut record).unwrap();
    let failure = record.first_failure.expect("found");
    assert_eq!(failure.site, Site { layer: Some(1), stage: Stage::Route }, "{failure}");
    assert_eq!((failure.place.step.as_str(), failure.place.row), ("prefill", 0), "{failure}");
    for (site, m) in &record.sites {
        assert_eq!(m.fails(), site.stage == Stage::Route, "{site}: {}", m.worst);
    }
}
