//! The router, by itself and with its norm.

use half::bf16;
use tessera_cuda::{DenseWeights, NormOut};
use tessera_model::{Linear, Matrix};

use super::rig::{HIDDEN, Rig, TOKENS, UNTOUCHED, bf16_bits, bits, normal, pick, rounded};
use crate::random::Random;

/// Of a logit, relative to the sum of its products' sizes. Float32 rounds each of at most 190 sums that follow each other
/// by 6e-8 of what it has so far; as the errors have either sign, a tenth of the worst is far beyond what happens.
const MAX_ERROR: f64 = 1.2e-6;

struct Router {
    weight: Vec<bf16>, // [experts, hidden]
    bias: Vec<bf16>,   // [experts]
    hidden: usize,
}

impl Router {
    fn random(random: &mut Random, experts: usize, hidden: usize) -> Self {
        let weight = rounded(&normal(random, experts * hidden, 0.1));
        Self { weight, bias: rounded(&normal(random, experts, 1.0)), hidden }
    }

    fn upload(&self, rig: &Rig) -> DenseWeights {
        let weight = Matrix { data: &self.weight, rows: self.bias.len(), cols: self.hidden };
        DenseWeights::upload(&rig.device, &rig.stream, &[Linear { weight, bias: &self.bias }]).unwrap()
    }

    /// The largest error of `logits` `[tokens, experts]`.
    fn error(&self, x: &[bf16], logits: &[f32]) -> f64 {
        let mut worst = 0.0_f64;
        for (x, logits) in x.chunks_exact(self.hidden).zip(logits.chunks_exact(self.bias.len())) {
            for ((row, bias), &found) in self.weight.chunks_exact(self.hidden).zip(&self.bias).zip(logits) {
                let products = x.iter().zip(row).map(|(x, w)| x.to_f64() * w.to_f64());
                let (sum, size) = products.fold((bias.to_f64(), bias.to_f64().abs()), |(s, a), p| (s + p, a + p.abs()));
                let error = (f64::from(found) - sum).abs() / size;
                worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
            }
        }
        worst
    }
}

#[test]
fn logits_against_float64() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(10);
    for (hidden, experts) in HIDDEN.into_iter().zip([6, 32, 128, 17, 256, 32, 16]) {
        let router = Router::random(&mut random, experts, hidden);
        let (weights, steps) = (router.upload(&rig), rig.steps(hidden));
        for n_tokens in TOKENS {
            let x = rounded(&normal(&mut random, n_tokens * hidden, 1.0));
            let mut logits = rig.target(n_tokens * experts, f32::NAN);
            steps.router(&rig.stream, &weights, &rig.upload(&x), n_tokens, &mut logits).unwrap();
            let logits = rig.written(&logits, f32::NAN);
            // Of many tokens the first, the last and some between: the float64 sums take time.
            let some: Vec<usize> =
                (0..n_tokens).filter(|t| n_tokens <= 33 || t % 61 == 0 || t + 9 > n_tokens).collect();
            let error = router.error(&pick(&x, hidden, &some), &pick(&logits, experts, &some));
            assert!(error <= MAX_ERROR, "hidden {hidden}, {experts} experts, {n_tokens} tokens: {error:.2e}");
            assert!(logits.iter().all(|logit| logit.is_finite()), "hidden {hidden}, {n_tokens} tokens");
        }
    }
}

/// Small whole numbers have exact sums: every weight meets its own column.
#[test]
fn whole_numbers_are_exact() {
    let Some(rig) = Rig::new() else { return };
    for (hidden, experts) in HIDDEN.into_iter().zip([16, 6, 40, 32, 128, 32, 17]) {
        let whole = |i: usize, n: u64| bf16::from_f32((Random(i as u64).next() % (2 * n + 1)) as f32 - n as f32);
        let weight: Vec<bf16> = (0..experts * hidden).map(|i| whole(i, 8)).collect();
        let router = Router { weight, bias: (0..experts).map(|i| whole(i + 7, 100)).collect(), hidden };
        let n_tokens = 19;
        let x: Vec<bf16> = (0..n_tokens * hidden).map(|i| whole(i + 1_000_000, 8)).collect();
        let mut logits = rig.target(n_tokens * experts, f32::NAN);
        let steps = rig.steps(hidden);
        steps.router(&rig.stream, &router.upload(&rig), &rig.upload(&x), n_tokens, &mut logits).unwrap();
        assert_eq!(router.error(&x, &rig.written(&logits, f32::NAN)), 0.0, "hidden {hidden}, {experts} experts");
    }
}

#[test]
fn fused_and_alone_and_in_batches_the_bits_are_the_same() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(11);
    for (hidden, experts) in [(32, 6), (96, 40), (2880, 32), (2880, 128), (2944, 16)] {
        let router = Router::random(&mut random, experts, hidden);
        let (weights, steps) = (router.upload(&rig), rig.steps(hidden));
        let n_all = 200;
        let (x, norm) = (normal(&mut random, n_all * hidden, 3.0), normal(&mut random, hidden, 1.0));
        let (x_there, norm) = (rig.upload(&x), rig.upload(&norm));
        let mut rows = rig.target(n_all * hidden, UNTOUCHED);
        steps.rms_norm(&rig.stream, &x_there, &norm, n_all, NormOut::Rows(&mut rows)).unwrap();
        let mut logits = rig.target(n_all * experts, f32::NAN);
        steps.router(&rig.stream, &weights, &rows, n_all, &mut logits).unwrap();
        let (rows, logits) = (rig.written(&rows, UNTOUCHED), rig.written(&logits, f32::NAN));
        for n in [1, 2, 7, 8, 9, 33, 128, 129, 200] {
            let mut places: Vec<usize> = (0..n_all).collect();
            random.shuffle(&mut places);
            places.truncate(n);
            let what = format!("hidden {hidden}, {experts} experts, {n} tokens");
            let some = rig.upload(&pick(&x, hidden, &places));
            let (mut x_out, mut logits_out) = (rig.target(n * hidden, UNTOUCHED), rig.target(n * experts, f32::NAN));
            steps.norm_router(&rig.stream, &some, &norm, &weights, n, &mut x_out, &mut logits_out).unwrap();
            assert!(
                bf16_bits(&rig.written(&x_out, UNTOUCHED)) == bf16_bits(&pick(&rows, hidden, &places)),
                "{what}: normed"
            );
            let expect = bits(&pick(&logits, experts, &places));
            assert!(bits(&rig.written(&logits_out, f32::NAN)) == expect, "{what}: fused");
            let mut logits_out = rig.target(n * experts, f32::NAN);
            steps.router(&rig.stream, &weights, &x_out, n, &mut logits_out).unwrap();
            assert!(bits(&rig.written(&logits_out, f32::NAN)) == expect, "{what}: by itself");
        }
    }
}

/// Tokens that only fill up are NaN; their neighbours stay what they are.
#[test]
fn nan_stays_in_its_row() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(12);
    // So many experts that a block has several tokens of 100 and of 128, four in the last one of 100.
    let (hidden, experts) = (160, 256);
    let router = Router::random(&mut random, experts, hidden);
    let (weights, steps) = (router.upload(&rig), rig.steps(hidden));
    let norm = rig.upload(&normal(&mut random, hidden, 1.0));
    for n in [5, 100, 128, 150] {
        let run = |x: &[f32]| {
            let mut logits = rig.target(n * experts, 0.0);
            let mut x_out = rig.target(n * hidden, bf16::ZERO);
            steps.norm_router(&rig.stream, &rig.upload(x), &norm, &weights, n, &mut x_out, &mut logits).unwrap();
            rig.written(&logits, 0.0)
        };
        let mut x = normal(&mut random, n * hidden, 1.0);
        let expect = run(&x);
        x[2 * hidden..3 * hidden].fill(f32::NAN);
        for (token, (found, expect)) in run(&x).chunks(experts).zip(expect.chunks(experts)).enumerate() {
            match token {
                2 => assert!(found.iter().all(|logit| logit.is_nan())),
                _ => assert!(bits(found) == bits(expect), "{n} tokens: token {token}"),
            }
        }
    }
}
