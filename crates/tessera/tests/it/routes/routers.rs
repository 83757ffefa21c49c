//! That the choices are the routers': known answers, and the oracle's logits.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tessera_cpu::OracleExecutor;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Batch, BlockTables, Executor, Limits, Row, Site, Stage, Trace};

use super::{EXPERTS, LAYERS, TOP_K, choices, ids, loads, routes};
use crate::runner::Model;

/// Weights are printed with all their digits, and made by a softmax in float32.
const ROUNDING: f64 = 1e-6;

/// Changes the bytes of a layer's router.
fn alter_router(model: &Model, layer: usize, name: &str, alter: impl FnOnce(&mut [u8])) {
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let offsets = &header[format!("model.layers.{layer}.mlp.router.{name}")]["data_offsets"];
    let [start, end] = [0, 1].map(|i| data + offsets[i].as_u64().unwrap() as usize);
    alter(&mut bytes[start..end]);
    std::fs::write(&path, bytes).unwrap();
}

/// Makes a layer's router answer `logits` whatever it reads; they must be BF16 numbers.
fn force(model: &Model, layer: usize, logits: [f32; EXPERTS]) {
    let bf16 = |logit: &f32| [2, 3].map(|byte| logit.to_le_bytes()[byte]);
    let bias: Vec<u8> = logits.iter().flat_map(bf16).collect();
    alter_router(model, layer, "weight", |bytes| bytes.fill(0));
    alter_router(model, layer, "bias", |bytes| bytes.copy_from_slice(&bias));
}

/// Routers of known answers: the choice, the weights and the loads are arithmetic.
#[test]
fn layers_choose_what_their_routers_say() {
    let model = Model::tiny();
    let lowest = -300.0;
    let forced: [([f32; EXPERTS], [usize; TOP_K]); LAYERS] = [
        ([0.0, 1.0, -1.0, 4.0, 2.0, -2.0, 3.0, 0.5], [3, 6, 4, 1]),
        ([2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.5, 0.0], [6, 0, 1, 2]), // among equals, the lower id
        ([lowest, -250.0, lowest, lowest, lowest, 1.0, -280.0, lowest], [5, 1, 6, 0]), // weights that are 0 in float32
        ([0.0; EXPERTS], [0, 1, 2, 3]),
    ];
    forced.iter().enumerate().for_each(|(layer, (logits, _))| force(&model, layer, *logits));
    for precision in ["bf16", "f32"] {
        let json = routes(&model, &["--json", "--precision", precision, "--raw", "some tokens"]).json();
        for ((layer, chosen), (logits, expect)) in choices(&json).iter().enumerate().zip(&forced) {
            let total: f64 = expect.iter().map(|&e| f64::from(logits[e]).exp()).sum();
            assert_eq!(chosen.len(), "some tokens".len());
            for token in chosen {
                let experts: Vec<usize> = token.iter().map(|(expert, _)| *expert).collect();
                assert_eq!(experts, expect, "{precision}, layer {layer}");
                for (expert, weight) in token {
                    let share = f64::from(logits[*expert]).exp() / total;
                    assert!((weight - share).abs() < ROUNDING, "{precision}, layer {layer}: {token:?}");
                }
            }
            let even = |e: usize| if expect.contains(&e) { 0.25 } else { 0.0 };
            assert_eq!(loads(&json)[layer], (0..EXPERTS).map(even).collect::<Vec<_>>());
            let report = &json["layers"][layer];
            assert_eq!((&report["max_over_mean"], &report["never_chosen"]), (&json!(2.0), &json!(4)));
        }
    }
}

/// Router logits of every layer, `[layers][tokens * experts]`.
#[derive(Default)]
struct Logits(Vec<Vec<f32>>);

impl Trace for Logits {
    fn visit(&mut self, site: Site, _: usize, values: &mut [f32]) {
        if site.stage == Stage::Router {
            self.0.push(values.to_vec());
        }
    }
}

/// The oracle's router logits for all tokens in one step, without the program.
fn oracle_logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let (config, n) = (checkpoint.config(), tokens.len());
    let limits = Limits::for_sequences(config, 1, n, n);
    let block_tables = BlockTables::sole(n, limits.sliding_blocks);
    let row = Row { n_tokens: n, start: 0, block_tables, n_logits: 0, sampling: None };
    let mut logits = Logits::default();
    let mut oracle = OracleExecutor::new(config, checkpoint.weights(), limits, 2);
    oracle.step_traced(&Batch { tokens: tokens.to_vec(), rows: vec![row] }, &mut logits).unwrap();
    logits.0
}

/// The model's rule in float64: the largest logits, weighted by the softmax over them.
fn choose(logits: &[f32]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    let top = &order[..TOP_K];
    let total: f64 = top.iter().map(|&e| f64::from(logits[e]).exp()).sum();
    top.iter().map(|&e| (e, f64::from(logits[e]).exp() / total)).collect()
}

/// From the last expert that is chosen to the first that is not.
fn margin(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[TOP_K - 1] - sorted[TOP_K]
}

/// Of 2,800 sets of experts, how many may differ between the precisions. Measured with AVX-512: 15.
const MAX_DIFFERENT: usize = 45;
/// Logits, of rms 1, that are farther apart than this are in the same order in both. Measured: 0.08 for a token
/// that went to another expert two layers before, else 0.005.
const MAX_MARGIN: f32 = 0.25;

#[test]
fn choices_agree_with_the_routers_logits() {
    let model = Model::tiny();
    // More than one step of the session.
    let prompt: String = (0..700u32).map(|i| char::from(b' ' + (i * i % 94) as u8)).collect();
    let with = |precision: &str| routes(&model, &["--json", "--precision", precision, "--raw", &prompt]).json();
    let (exact, fast) = (with("f32"), with("bf16"));
    let logits = oracle_logits(&model, &ids(&exact));
    assert_eq!((logits.len(), ids(&exact).len()), (LAYERS, 700));
    let experts = |token: &[(usize, f64)]| token.iter().map(|(expert, _)| *expert).collect::<Vec<_>>();
    let set = |token: &[(usize, f64)]| experts(token).into_iter().collect::<BTreeSet<_>>();
    let (mut different, mut widest) = (0, 0.0f32);
    for ((logits, exact), fast) in logits.iter().zip(choices(&exact)).zip(choices(&fast)) {
        for ((logits, exact), fast) in logits.chunks(EXPERTS).zip(&exact).zip(&fast) {
            let expect = choose(logits);
            assert_eq!(experts(exact), experts(&expect));
            assert!(exact.iter().zip(&expect).all(|(a, b)| (a.1 - b.1).abs() < ROUNDING), "{exact:?} {expect:?}");
            if set(exact) != set(fast) {
                different += 1;
                widest = widest.max(margin(logits));
            }
        }
    }
    println!("{different} of {} sets differ, by {widest:.1e} at most", LAYERS * 700);
    assert!(different <= MAX_DIFFERENT && widest <= MAX_MARGIN);
}

/// A token whose weights are not numbers, while the last one, which the sampler would refuse, is sound.
#[test]
fn routers_without_an_answer_are_named() {
    let model = Model::tiny();
    let last = LAYERS - 1;
    alter_router(&model, last, "weight", |weight| {
        // A few channels times the largest number: too large where they sum to more than 1.
        weight.fill(0);
        let rows = weight.chunks_exact_mut(weight.len() / EXPERTS);
        rows.for_each(|row| row[..8].fill(0x7f));
    });
    let run = |c: char| routes(&model, &["--precision", "f32", "--raw", &format!("{c}b")]);
    let refused = ('a'..='z').map(run).find(|end| end.stderr.contains("the router of"));
    refused.expect("a prompt whose last token is sound").fails_with(&["layer 3", "not finite", "tessera verify"]);
}
