//! The experts' weighted sum, into the residual stream, by itself and with the next norm.

use half::bf16;
use tessera_cuda::{Moe, MoeShape, MoeWorkspace, NormOut, Swiglu};

use super::rig::{HIDDEN, Rig, TOKENS, UNTOUCHED, bf16_bits, bits, from_panels, normal, panels_len, pick};
use crate::random::Random;

/// Of an element, relative to the sum of its summands' sizes: nine float32 roundings of 6e-8 at most.
const MAX_ERROR: f64 = 5.4e-7;
const EXPERTS: usize = 9;

/// Tokens after their experts.
#[derive(Clone)]
struct Inputs {
    hidden: usize,
    top_k: usize,
    ids: Vec<i32>,      // [tokens, top_k]
    weights: Vec<f32>,  // [tokens, top_k]
    y: Vec<f32>,        // [tokens, top_k, hidden]
    residual: Vec<f32>, // [tokens, hidden]
}

impl Inputs {
    fn random(random: &mut Random, hidden: usize, top_k: usize, n_tokens: usize) -> Self {
        let n_slots = n_tokens * top_k;
        // One in five is nobody's.
        let ids = (0..n_slots).map(|_| (random.next() % EXPERTS as u64) as i32);
        let ids = ids.map(|id| if id < 2 { -1 } else { id }).collect();
        Self {
            hidden,
            top_k,
            ids,
            weights: (0..n_slots).map(|_| random.unit() as f32).collect(),
            y: normal(random, n_slots * hidden, 1.0),
            residual: normal(random, n_tokens * hidden, 2.0),
        }
    }

    fn n_tokens(&self) -> usize {
        self.residual.len() / self.hidden
    }

    fn pick(&self, places: &[usize]) -> Self {
        Self {
            ids: pick(&self.ids, self.top_k, places),
            weights: pick(&self.weights, self.top_k, places),
            y: pick(&self.y, self.top_k * self.hidden, places),
            residual: pick(&self.residual, self.hidden, places),
            ..*self
        }
    }

    /// A workspace in which the experts have done their part.
    fn workspace(&self, rig: &Rig) -> MoeWorkspace {
        let shape = MoeShape { hidden: self.hidden, intermediate: 32, experts: EXPERTS, top_k: self.top_k };
        let moe = Moe::load(&rig.device, shape, Swiglu { limit: 7.0, alpha: 1.702 }).unwrap();
        let mut workspace = MoeWorkspace::new(&rig.device, shape, self.n_tokens()).unwrap();
        workspace.poison(&rig.stream).unwrap();
        let x = rig.upload(&vec![bf16::ZERO; self.residual.len()]);
        moe.route_to(&rig.stream, &self.ids, &self.weights, &x, self.n_tokens(), &mut workspace).unwrap();
        workspace.set_y(&rig.stream, &self.y).unwrap();
        workspace
    }

    /// The residual afterwards.
    fn combined(&self, rig: &Rig) -> Vec<f32> {
        let mut residual = rig.target(self.residual.len(), f32::NAN);
        rig.stream.upload(&self.residual, &mut residual, 0).unwrap();
        rig.steps(self.hidden).combine_add(&rig.stream, &self.workspace(rig), &mut residual).unwrap();
        rig.written(&residual, f32::NAN)
    }

    fn error(&self, found: &[f32]) -> f64 {
        let mut worst = 0.0_f64;
        for (i, &found) in found.iter().enumerate() {
            let (token, column) = (i / self.hidden, i % self.hidden);
            let mut sum = f64::from(self.residual[i]);
            let mut size = sum.abs();
            for slot in token * self.top_k..(token + 1) * self.top_k {
                if self.ids[slot] >= 0 {
                    let product = f64::from(self.weights[slot]) * f64::from(self.y[slot * self.hidden + column]);
                    (sum, size) = (sum + product, size + product.abs());
                }
            }
            let error = (f64::from(found) - sum).abs() / size;
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
        worst
    }
}

#[test]
fn sums_against_float64() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(20);
    for (hidden, n_tokens) in HIDDEN.iter().flat_map(|&h| TOKENS.map(|t| (h, t))) {
        for top_k in if hidden > 256 { vec![4] } else { vec![1, 4, 5, 8] } {
            if hidden > 256 && n_tokens > 256 {
                continue;
            }
            let inputs = Inputs::random(&mut random, hidden, top_k, n_tokens);
            let error = inputs.error(&inputs.combined(&rig));
            assert!(error <= MAX_ERROR, "hidden {hidden}, {n_tokens} tokens, top {top_k}: {error:.2e}");
        }
    }
}

#[test]
fn fused_and_alone_and_in_batches_the_bits_are_the_same() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(21);
    for (hidden, top_k) in [(32, 1), (96, 8), (2880, 4), (2944, 4)] {
        let steps = rig.steps(hidden);
        let all = Inputs::random(&mut random, hidden, top_k, 100);
        let norm = rig.upload(&normal(&mut random, hidden, 1.0));
        let expect = all.combined(&rig);
        let mut expect_rows = rig.target(expect.len(), UNTOUCHED);
        steps.rms_norm(&rig.stream, &rig.upload(&expect), &norm, 100, NormOut::Rows(&mut expect_rows)).unwrap();
        let expect_rows = rig.written(&expect_rows, UNTOUCHED);
        for n in [1, 2, 9, 33, 100] {
            let mut places: Vec<usize> = (0..100).collect();
            random.shuffle(&mut places);
            places.truncate(n);
            let some = all.pick(&places);
            let what = format!("hidden {hidden}, {n} tokens");
            let expect = bits(&pick(&expect, hidden, &places));
            assert!(bits(&some.combined(&rig)) == expect, "{what}: by itself");
            let mut residual = rig.target(n * hidden, f32::NAN);
            rig.stream.upload(&some.residual, &mut residual, 0).unwrap();
            let (mut panels, mut rows) =
                (rig.target(panels_len(n, hidden), UNTOUCHED), rig.target(n * hidden, UNTOUCHED));
            let out = NormOut::Both { panels: &mut panels, rows: &mut rows };
            steps.combine_norm(&rig.stream, &some.workspace(&rig), &mut residual, &norm, out).unwrap();
            assert!(bits(&rig.written(&residual, f32::NAN)) == expect, "{what}: fused");
            let expect_rows = pick(&expect_rows, hidden, &places);
            assert!(bf16_bits(&rig.written(&rows, UNTOUCHED)) == bf16_bits(&expect_rows), "{what}: normed rows");
            let panels = from_panels(&rig.written(&panels, UNTOUCHED), n, hidden);
            let columns = hidden.next_multiple_of(64);
            for (panel_row, row) in panels.chunks_exact(columns).zip(expect_rows.chunks_exact(hidden)) {
                assert!(bf16_bits(&panel_row[..hidden]) == bf16_bits(row), "{what}: normed panels");
                assert!(panel_row[hidden..].iter().all(|value| value.to_bits() == 0), "{what}: padding");
            }
        }
    }
}
