//! Faults put into the fast path, each to be found at its layer and stage; and sound models, in which nothing is found.

use std::path::PathBuf;

use half::bf16;
use tessera_cpu::{CpuExecutor, Isa};
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Batch, Executor, LayerType, StepError, Token, Trace};

use super::lockstep::{Record, Traced, traced};
use super::moe::SyntheticMoe;
use super::*;
use crate::random::normal;

/// A copy that tests may alter; the few kilobytes are never given back.
pub fn owned<'a, T: Copy>(values: &[T]) -> &'a mut [T] {
    values.to_vec().leak()
}

/// Of `fixtures/parity`; `fixtures` is elsewhere when the tests have left the repository.
pub fn fixture(case: &str) -> Checkpoint {
    let here = || format!("{}/../../fixtures", env!("CARGO_MANIFEST_DIR")).into();
    let folder: PathBuf = std::env::var_os("TESSERA_FIXTURES").map_or_else(here, PathBuf::from);
    Checkpoint::open(&folder.join("parity").join(case)).expect(case)
}

fn options(isa: Isa) -> CpuOptions {
    CpuOptions { threads: 2, isa }
}

/// The usual one, past the window.
pub fn probe(config: &Config) -> Probe {
    Probe::new(config, config.sliding_window + 24, 3, probe::ROW_LOGITS)
}

/// Oracle and fast path over the usual probe, each with its own configuration and weights.
fn compare(oracle: (&Config, Weights), fast: (&Config, Weights), isa: Isa) -> anyhow::Result<Record> {
    let probe = probe(oracle.0);
    let mut fast = CpuExecutor::new(fast.0, fast.1, probe.limits, options(isa));
    compare_executors(oracle, Device::Cpu, &mut traced(&mut fast), &probe)
}

/// What `fast` is found to be by the standard of `device`.
pub fn compare_executors(
    (config, weights): (&Config, Weights),
    device: Device,
    fast: &mut Traced,
    probe: &Probe,
) -> anyhow::Result<Record> {
    let (filter, options) = (Filter::default(), options(Isa::detect()));
    let whole = Whole { config, probe, filter, options, progress: &|_| () };
    let mut record = Record::default();
    whole.compare(&weights, device, fast, &mut record)?;
    Ok(record)
}

/// `alter` changes the fast path's copy of a model of 4 layers; the first failure must be at `layer` and `stage`.
fn check_in(case: &str, alter: impl Fn(&mut Config, &mut Weights), layer: impl Into<Option<usize>>, stage: Stage) {
    let checkpoint = fixture(case);
    let (config, weights) = (checkpoint.config(), checkpoint.weights());
    let (mut fast_config, mut fast_weights) = (config.clone(), weights.clone());
    alter(&mut fast_config, &mut fast_weights);
    let record = compare((config, weights), (&fast_config, fast_weights), Isa::detect()).expect("comparable");
    let failure = record.first_failure.expect("the fault is found");
    println!("{failure}");
    assert_eq!(failure.site, Site { layer: layer.into(), stage }, "{failure}");
    assert!(failure.to_string().starts_with(&failure.site.to_string()));
}

fn check(alter: impl Fn(&mut Config, &mut Weights), layer: impl Into<Option<usize>>, stage: Stage) {
    check_in("window", alter, layer, stage);
}

#[test]
fn sound_models_pass_on_every_instruction_set() {
    for case in ["narrow_k", "window", "one_kv_head", "experts_128", "real_heads", "odd_layers", "extreme_scales"] {
        let checkpoint = fixture(case);
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
            if !isa.is_available() {
                println!("skipped: this machine has no {isa:?}");
                continue;
            }
            let model = || (checkpoint.config(), checkpoint.weights());
            let record = compare(model(), model(), isa).expect("comparable");
            assert_eq!(record.sites.len(), 3 + 12 * checkpoint.config().num_hidden_layers);
            for (site, m) in &record.sites {
                println!("{case} {isa:?} {site}: {:.1e}", m.max_relative);
            }
            assert!(record.first_failure.is_none(), "{case} {isa:?}: {}", record.first_failure.expect("one"));
        }
    }
}

#[test]
fn one_nibble() {
    for (at, bit) in [(0, 0x01), (777, 0x10), (4321, 0x80), (6000, 0x02)] {
        let flip = |blocks: &[u8]| {
            let blocks = owned(blocks);
            blocks[at] ^= bit;
            &*blocks
        };
        check(|_, w| w.layers[2].gate_up.blocks = flip(w.layers[2].gate_up.blocks), 2, Stage::GateUp);
        check(|_, w| w.layers[1].down.blocks = flip(w.layers[1].down.blocks), 1, Stage::Down);
    }
}

/// The smallest change of the smallest code under published widths, in one of 66 million elements.
#[test]
fn one_nibble_of_a_wide_layer() {
    let checkpoint = fixture("window");
    let config =
        Config { hidden_size: 2880, intermediate_size: 2880, num_hidden_layers: 1, ..checkpoint.config().clone() };
    let synthetic = SyntheticMoe::new(&config, 3);
    let attention = WideAttention::new(&config);
    let one = attention.weights(&config, |layer| synthetic.layer(layer));
    let weights = Weights { layers: vec![one.layers[0]; 8], ..one };
    let blocks = owned(weights.layers[0].gate_up.blocks);
    let at = (3 * 5760 + 1234) * 1440 + 77; // expert 3, row 1234
    // 0.5 and 0 are one step apart, as are 0.5 and 1.
    blocks[at] ^= 1;
    let mut faulty = weights.clone();
    faulty.layers[7].gate_up.blocks = blocks;
    let probe = moe::probe(&config);
    let layers = Layers {
        config: &config,
        probe: &probe,
        filter: Filter::default(),
        options: options(Isa::detect()),
        progress: &|_| (),
    };
    let judge = |judged: &Weights| {
        let mut record = Record::default();
        layers.judge(7, &weights, judged.layers[7], &mut Fast::Cpu, &mut record).expect("comparable");
        record
    };
    let sound = judge(&weights);
    assert!(sound.first_failure.is_none(), "{}", sound.first_failure.expect("one"));
    assert_eq!(sound.experts.len(), config.num_local_experts);
    let failure = judge(&faulty).first_failure.expect("the nibble is found");
    println!("{failure}");
    assert_eq!(failure.site, Site { layer: Some(7), stage: Stage::GateUp });
    assert_eq!((failure.place.expert, failure.place.column), (Some(3), 1234));
}

#[test]
fn one_scale_byte() {
    let nudge = |scales: &[u8], at: usize| {
        let scales = owned(scales);
        scales[at] += 1;
        &*scales
    };
    check(|_, w| w.layers[0].gate_up.scales = nudge(w.layers[0].gate_up.scales, 5), 0, Stage::GateUp);
    check(|_, w| w.layers[3].down.scales = nudge(w.layers[3].down.scales, 300), 3, Stage::Down);
}

#[test]
fn gate_and_up_swapped() {
    let swap = |experts: &mut tessera_model::Experts| {
        let (blocks, scales, bias) = (owned(experts.blocks), owned(experts.scales), owned(experts.bias));
        let swap_rows = |n: usize| move |pair: &mut [u8]| pair.rotate_left(n);
        let (row, row_scales) = (experts.cols / 2, experts.cols / 32);
        blocks.chunks_exact_mut(2 * row).for_each(swap_rows(row));
        scales.chunks_exact_mut(2 * row_scales).for_each(swap_rows(row_scales));
        bias.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        (experts.blocks, experts.scales, experts.bias) = (blocks, scales, bias);
    };
    check(|_, w| swap(&mut w.layers[1].gate_up), 1, Stage::GateUp);
}

#[test]
fn window_off_by_one() {
    for window in [15, 17] {
        check(|c, _| c.sliding_window = window, 0, Stage::Attend);
    }
    for window in [127, 129] {
        check_in("real_heads", |c, _| c.sliding_window = window, 0, Stage::Attend);
    }
    check(|c, _| c.layer_types[2] = LayerType::Full, 2, Stage::Attend);
}

#[test]
fn a_sink_dropped() {
    for head in 0..4 {
        check(
            |_, w| {
                let sinks = owned(w.layers[3].sinks);
                sinks[head] = bf16::from_f32(-1e30);
                w.layers[3].sinks = sinks;
            },
            3,
            Stage::Attend,
        );
    }
}

#[test]
fn a_bias_forgotten() {
    let forget = |bias: &mut &[bf16]| *bias = owned(&vec![bf16::ZERO; bias.len()]);
    check(|_, w| forget(&mut w.layers[1].q.bias), 1, Stage::Qkv);
    check(|_, w| forget(&mut w.layers[2].k.bias), 2, Stage::Qkv);
    check(|_, w| forget(&mut w.layers[3].v.bias), 3, Stage::Qkv);
    check(|_, w| forget(&mut w.layers[3].o.bias), 3, Stage::AttnOut);
    check(|_, w| forget(&mut w.layers[0].router.bias), 0, Stage::Router);
    check(|_, w| forget(&mut w.layers[0].gate_up.bias), 0, Stage::GateUp);
    check(|_, w| forget(&mut w.layers[2].down.bias), 2, Stage::Down);
}

#[test]
fn one_dense_weight() {
    let negate = |values: &mut &[bf16], at: usize| {
        let altered = owned(values);
        altered[at] = -altered[at];
        *values = altered;
    };
    check(|_, w| negate(&mut w.layers[1].attn_norm, 33), 1, Stage::AttnNorm);
    check(|_, w| negate(&mut w.layers[2].v.weight.data, 100), 2, Stage::Qkv);
    check(|_, w| negate(&mut w.layers[0].o.weight.data, 999), 0, Stage::AttnOut);
    check(|_, w| negate(&mut w.layers[3].mlp_norm, 0), 3, Stage::MlpNorm);
    check(|_, w| negate(&mut w.layers[3].router.weight.data, 77), 3, Stage::Router);
    check(|_, w| negate(&mut w.final_norm, 63), None, Stage::FinalNorm);
    check(|_, w| negate(&mut w.lm_head.data, 64 * 50), None, Stage::Logits);
}

#[test]
fn wrong_constants() {
    check(|c, _| c.rope.factor = 31.0, 0, Stage::RopeStore);
    check(|c, _| c.rope.truncate = true, 0, Stage::RopeStore);
    check(|c, _| c.swiglu_alpha = 1.7, 0, Stage::Swiglu);
    check(|c, _| c.swiglu_limit = 7.5, 0, Stage::Swiglu);
    check_in("odd_layers", |c, _| c.rms_norm_eps = 1e-6, 0, Stage::AttnNorm);
}

#[test]
fn the_first_value_that_is_not_finite() {
    let spoil = |w: &mut Weights, value: f32| {
        let weight = owned(w.layers[2].o.weight.data);
        weight[5 * w.layers[2].o.weight.cols + 8] = bf16::from_f32(value);
        w.layers[2].o.weight.data = weight;
    };
    let checkpoint = fixture("window");
    let (config, sound) = (checkpoint.config(), checkpoint.weights());
    for value in [f32::NAN, f32::INFINITY] {
        let mut broken = sound.clone();
        spoil(&mut broken, value);
        let found = |oracle: &Weights| {
            let record =
                compare((config, oracle.clone()), (config, broken.clone()), Isa::detect()).expect("comparable");
            record.first_not_finite.expect("found")
        };
        let of_the_program = found(&sound);
        assert_eq!(of_the_program.site, Site { layer: Some(2), stage: Stage::AttnOut });
        assert_eq!((of_the_program.place.row, of_the_program.place.column), (0, 5));
        assert!(of_the_program.to_string().contains("is not finite: prefill 1, row 0, column 5"), "{of_the_program}");
        assert!(found(&broken).to_string().contains("even in the oracle"));
    }
}

/// A backend of which one kind of step is wrong.
struct Tampered<'a> {
    inner: CpuExecutor<'a>,
    site: Site,
    tokens: usize,
}

struct Tampering<'t> {
    trace: &'t mut dyn Trace,
    site: Site,
}

impl Trace for Tampering<'_> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        if site == self.site {
            values[width / 2] *= 1.001;
        }
        self.trace.visit(site, width, values);
    }
}

impl Executor for Tampered<'_> {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.inner.kv_blocks(kind)
    }
    fn max_step_tokens(&self) -> usize {
        self.inner.max_step_tokens()
    }
    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        self.inner.step(batch)
    }
    fn step_traced(&mut self, batch: &Batch, trace: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        match batch.tokens.len() == self.tokens {
            true => self.inner.step_traced(batch, &mut Tampering { trace, site: self.site }),
            false => self.inner.step_traced(batch, trace),
        }
    }
    fn logits(&self) -> Result<Vec<f32>, StepError> {
        self.inner.logits()
    }
}

/// Every stage of decode alone, whose kernels are not those of prefill.
#[test]
fn decode_kernels_are_judged_too() {
    let checkpoint = fixture("window");
    let (config, weights) = (checkpoint.config(), checkpoint.weights());
    let probe = Probe::new(config, 40, 2, probe::ROW_LOGITS);
    for stage in [Stage::Qkv, Stage::Attend, Stage::GateUp, Stage::Swiglu, Stage::Down] {
        let site = Site { layer: Some(3), stage };
        let inner = CpuExecutor::new(config, weights.clone(), probe.limits, options(Isa::detect()));
        let mut fast = Tampered { inner, site, tokens: 1 };
        let record = compare_executors((config, weights.clone()), Device::Cpu, &mut traced(&mut fast), &probe);
        let record = record.expect("comparable");
        let failure = record.first_failure.expect("found");
        assert_eq!((failure.site, failure.place.step.as_str()), (site, "decode 1"), "{failure}");
    }
}

#[test]
fn executors_that_cannot_be_compared() {
    let checkpoint = fixture("window");
    let (config, weights) = (checkpoint.config(), checkpoint.weights());
    let fail = |config: &Config| {
        let fast = (config, weights.clone());
        let error = compare((checkpoint.config(), weights.clone()), fast, Isa::detect()).err().expect("an error");
        format!("{error:#}")
    };
    let top_1 = fail(&Config { num_experts_per_tok: 1, ..config.clone() });
    assert!(top_1.contains("out of step: the oracle shows layer 0 gate_up"), "{top_1}");
    let short = fail(&Config { num_hidden_layers: 3, ..config.clone() });
    assert!(short.contains("out of step: the oracle shows layer 3 attn_norm"), "{short}");
    let refused = fail(&Config { max_position_embeddings: 8, ..config.clone() });
    assert!(refused.contains("the fast path failed") && refused.contains("beyond the context of 8"), "{refused}");
}

/// Random attention weights of any width, for layers whose mixture of experts is judged.
pub struct WideAttention {
    values: Vec<bf16>,
}

impl WideAttention {
    pub fn new(config: &Config) -> Self {
        let n = config.hidden_size * (config.qkv_dim() + config.q_dim()).max(config.vocab_size);
        Self { values: (0..n).map(|i| bf16::from_f32(0.02 * normal(1, i as u64))).collect() }
    }

    pub fn weights<'a>(
        &'a self,
        c: &Config,
        moe: impl Fn(tessera_model::LayerWeights<'a>) -> tessera_model::LayerWeights<'a>,
    ) -> Weights<'a> {
        use tessera_model::{Experts, LayerWeights, Linear, Matrix};
        let vector = |n: usize| &self.values[..n];
        let matrix = |rows: usize, cols: usize| Matrix::new(&self.values[..rows * cols], rows, cols);
        let linear = |rows: usize, cols: usize| Linear { weight: matrix(rows, cols), bias: vector(rows) };
        let none = Experts { blocks: &[], scales: &[], bias: &[], experts: 0, rows: 0, cols: 0 };
        let layer = LayerWeights {
            attn_norm: vector(c.hidden_size),
            q: linear(c.q_dim(), c.hidden_size),
            k: linear(c.kv_dim(), c.hidden_size),
            v: linear(c.kv_dim(), c.hidden_size),
            o: linear(c.hidden_size, c.q_dim()),
            sinks: vector(c.num_attention_heads),
            mlp_norm: vector(c.hidden_size),
            router: linear(c.num_local_experts, c.hidden_size),
            gate_up: none,
            down: none,
        };
        Weights {
            embed: matrix(c.vocab_size, c.hidden_size),
            layers: vec![moe(layer)],
            final_norm: vector(c.hidden_size),
            lm_head: matrix(c.vocab_size, c.hidden_size),
        }
    }
}
