//! The backends against Hugging Face transformers: float32, dequantised, eager.

use crate::fixture::Fixture;
use crate::runner::{self, Backend, differences, greedy, max_abs, rms};

/// Largest difference of the oracle's logits from transformers', where logits have rms 1: ten times the largest measured.
const ORACLE_BOUND: f64 = 2e-4;

fn prompt_logits(backend: Backend, f: &Fixture) -> Vec<f32> {
    let logits = runner::logits(backend, &f.config, f.weights(), &f.prompt, &[f.prompt.len()]);
    logits[logits.len() - f.last() * f.config.vocab_size..].to_vec()
}

fn check_oracle(case: &str) {
    let f = Fixture::open(case);
    let got = prompt_logits(runner::oracle, &f);
    let scale = f.meta("/logits_rms");
    let distance = f64::from(max_abs(&got, &f.logits)) / scale;
    println!("{case}: oracle: max {distance:.2e}, rms {:.2e}", rms(differences(&got, &f.logits)) / scale);
    assert!(distance <= ORACLE_BOUND, "{case}: logits differ by {distance} of their rms");
    assert_eq!(greedy(runner::oracle, &f.config, f.weights(), &f.prompt, f.greedy.len()), f.greedy, "{case}: greedy");
}

#[test]
fn narrow_k() {
    check_oracle("narrow_k");
}

#[test]
fn window() {
    check_oracle("window");
}
