//! The backends against Hugging Face transformers: float32, dequantised, eager.

use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Config, Site, Stage, Trace};

use crate::fixture::Fixture;
use crate::runner::{self, Backend, differences, greedy, max_abs, rms};

/// Largest difference of the oracle's logits from transformers', where logits have rms 1: three times the
/// largest measured (6e-5 past 4,096 tokens, 1.4e-5 elsewhere).
const ORACLE_BOUND: f64 = 2e-4;

fn prompt_logits(backend: Backend, f: &Fixture) -> Vec<f32> {
    let logits = runner::logits(backend, &f.config, f.weights(), &f.prompt, &[f.prompt.len()]);
    logits[logits.len() - f.last() * f.config.vocab_size..].to_vec()
}

fn check(case: &str) {
    let f = Fixture::open(case);
    check_oracle(case, &f);
    runner::for_each_fast(|isa, backend| check_fast(case, &f, isa, backend));
}

fn check_oracle(case: &str, f: &Fixture) {
    let got = prompt_logits(runner::oracle, f);
    let scale = f.meta("/logits_rms");
    let distance = f64::from(max_abs(&got, &f.logits)) / scale;
    println!("{case}: oracle: max {distance:.2e}, rms {:.2e}", rms(differences(&got, &f.logits)) / scale);
    assert!(distance <= ORACLE_BOUND, "{case}: logits differ by {distance} of their rms");
    assert_eq!(greedy(runner::oracle, &f.config, f.weights(), &f.prompt, f.greedy.len()), f.greedy, "{case}: greedy");
}

/// The fast path is at least as close to float32 as transformers in bf16 is: on the prompt, and token by token along the
/// greedy continuation, where the oracle is the truth.
fn check_fast(case: &str, f: &Fixture, isa: &str, backend: Backend) {
    let bound = f.meta("/bf16/rms_distance");
    let distance = rms(differences(&prompt_logits(backend, f), &f.logits));
    println!("{case}: {isa}: prompt: rms {distance:.2e} (transformers bf16 {bound:.2e})");
    assert!(distance <= bound, "{case}: {isa}: rms distance {distance} from float32, transformers bf16 has {bound}");

    let bound = f.meta("/bf16/rms_distance_teacher_forced_greedy");
    let mut router = Router::default();
    let truth = decode(runner::oracle, f, &mut router);
    router.at = Some(0);
    let distance = rms(differences(&decode(backend, f, &mut router), &truth));
    println!("{case}: {isa}: decode: rms {distance:.2e} (transformers bf16 {bound:.2e})");
    assert!(distance <= bound, "{case}: {isa}: decode: {distance} from float32, transformers bf16 has {bound}");
}

/// Logits along the greedy continuation, `[greedy tokens, vocab]`: each token but the last is fed back by itself.
fn decode(backend: Backend, f: &Fixture, router: &mut Router) -> Vec<f32> {
    let tokens: Vec<u32> = f.prompt.iter().chain(&f.greedy[..f.greedy.len() - 1]).copied().collect();
    let chunks = [f.prompt.len(), 1];
    let all = runner::drive(backend, &f.config, f.weights(), &tokens, &chunks, |e, b| e.step_traced(b, router));
    all[(f.prompt.len() - 1) * f.config.vocab_size..].to_vec()
}

/// Router logits of one run, put in place in the next. Greedy tokens, unlike the prompts, were not chosen to route
/// clearly: in `narrow_k` two logits are 0.0035 apart, and a choice that rounding decides says nothing about arithmetic.
#[derive(Default)]
struct Router {
    seen: Vec<Vec<f32>>,
    at: Option<usize>,
}

impl Trace for Router {
    fn visit(&mut self, site: Site, _width: usize, values: &mut [f32]) {
        match (site.stage, &mut self.at) {
            (Stage::Router, None) => self.seen.push(values.to_vec()),
            (Stage::Router, Some(at)) => {
                values.copy_from_slice(&self.seen[*at]);
                *at += 1;
            }
            _ => (),
        }
    }
}

#[test]
fn narrow_k() {
    check("narrow_k");
}

#[test]
fn window() {
    check("window");
}

#[test]
fn long_yarn() {
    check("long_yarn");
}

#[test]
fn one_kv_head() {
    check("one_kv_head");
}

#[test]
fn experts_128() {
    check("experts_128");
}

#[test]
fn real_heads() {
    check("real_heads");
}

#[test]
fn odd_layers() {
    check("odd_layers");
}

#[test]
fn extreme_scales() {
    check("extreme_scales");
}

/// A case that is added to the folder must be added here.
#[test]
fn every_case_is_checked() {
    let folder = crate::fixture::folder("");
    let entries = std::fs::read_dir(folder).expect("fixtures/parity");
    let cases = entries.filter(|e| e.as_ref().is_ok_and(|e| e.path().is_dir())).count();
    assert_eq!(cases, 8);
}

/// The tests' loader and `Checkpoint` share no code and agree on every value that a model reads.
#[test]
fn checkpoints_open_to_the_same_weights() {
    let f = Fixture::open("narrow_k");
    let checkpoint = Checkpoint::open(&crate::fixture::folder("narrow_k")).expect("open");
    assert_eq!(
        Config { eos_token_ids: vec![], ..checkpoint.config().clone() },
        Config { eos_token_ids: vec![], ..f.config.clone() }
    );
    let run = |weights| runner::logits(runner::oracle, &f.config, weights, &f.prompt, &[f.prompt.len()]);
    assert_eq!(run(checkpoint.weights()), run(f.weights()));
}
