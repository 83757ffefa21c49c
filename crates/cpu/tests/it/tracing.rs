//! Traces see every stage in order, and what they leave behind is what the next stage reads.

use tessera_model::{Batch, BlockTables, Limits, Row, Sampling, Site, Stage, StepError, Token, Trace};

use crate::fixture::Fixture;
use crate::runner::{self, Backend};

const CASE: &str = "narrow_k";
const N_LOGITS: usize = 2;

struct Closure<F: FnMut(Site, usize, &mut [f32])>(F);

impl<F: FnMut(Site, usize, &mut [f32])> Trace for Closure<F> {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        (self.0)(site, width, values);
    }
}

fn run(backend: Backend, f: &Fixture, visit: impl FnMut(Site, usize, &mut [f32])) -> Result<Vec<Token>, StepError> {
    let n = f.prompt.len();
    let mut executor = backend(&f.config, f.weights(), Limits::for_sequences(&f.config, 1, n, n));
    let row = Row {
        n_tokens: n,
        start: 0,
        block_tables: BlockTables::sole(n, executor.kv_blocks(tessera_model::LayerType::Sliding)),
        n_logits: N_LOGITS,
        sampling: Some(Sampling::GREEDY),
    };
    executor.step_traced(&Batch { tokens: f.prompt.clone(), rows: vec![row] }, &mut Closure(visit))
}

fn check_order(backend: Backend) {
    let f = Fixture::open(CASE);
    let c = &f.config;
    let mut seen = vec![];
    run(backend, &f, |site, width, values| seen.push((site, width, values.len() / width))).expect("step");
    let (n, pairs) = (f.prompt.len(), f.prompt.len() * c.num_experts_per_tok);
    let shape = |stage| match stage {
        Stage::Qkv | Stage::RopeStore => (c.qkv_dim(), n),
        Stage::Attend => (c.q_dim(), n),
        Stage::Router | Stage::Route => (c.num_local_experts, n),
        Stage::GateUp => (2 * c.intermediate_size, pairs),
        Stage::Swiglu => (c.intermediate_size, pairs),
        Stage::Down => (c.hidden_size, pairs),
        Stage::FinalNorm => (c.hidden_size, N_LOGITS),
        Stage::Logits => (c.vocab_size, N_LOGITS),
        _ => (c.hidden_size, n),
    };
    let once = |stage| (Site { layer: None, stage }, shape(stage).0, shape(stage).1);
    let mut expected = vec![once(Stage::Embed)];
    for layer in 0..c.num_hidden_layers {
        let inner = &Stage::ALL[1..13];
        expected.extend(inner.iter().map(|&s| (Site { layer: Some(layer), stage: s }, shape(s).0, shape(s).1)));
    }
    expected.extend([once(Stage::FinalNorm), once(Stage::Logits)]);
    assert_eq!(seen, expected);
}

/// Values recorded in one run and put in place at `stage` of layer 1 in another, whose values were spoilt before it,
/// restore what that stage alone decides.
fn check_overwrite(backend: Backend, spoilt: Stage, restored: Stage) {
    let f = Fixture::open(CASE);
    let at = |stage| Site { layer: Some(1), stage };
    let (mut values_at, mut truth) = (vec![], vec![]);
    run(backend, &f, |site, _, values| {
        if site == at(restored) {
            values_at = values.to_vec();
        }
        if site.stage == Stage::Logits {
            truth = values.to_vec();
        }
    })
    .expect("step");
    let finish = |restore: bool| {
        let mut logits = vec![];
        run(backend, &f, |site, _, values| {
            if site == at(spoilt) {
                values.iter_mut().rev().enumerate().for_each(|(i, v)| *v = *v * 0.5 - (i % 7) as f32);
            }
            if site == at(restored) {
                assert_ne!(values, values_at, "{spoilt} does not reach {restored}");
                if restore {
                    values.copy_from_slice(&values_at);
                }
            }
            if site.stage == Stage::Logits {
                logits = values.to_vec();
            }
        })
        .expect("step");
        logits
    };
    assert_ne!(finish(false), truth, "{spoilt} does not reach the logits");
    assert_eq!(finish(true), truth, "{restored} is read from elsewhere than the trace's values");
}

fn check_overwrites(backend: Backend) {
    for (spoilt, restored) in [
        (Stage::AttnNorm, Stage::Qkv),
        (Stage::Qkv, Stage::RopeStore),
        (Stage::RopeStore, Stage::Attend),
        (Stage::Attend, Stage::AttnOut),
        (Stage::AttnOut, Stage::Combine),
        (Stage::MlpNorm, Stage::Combine),
        (Stage::Swiglu, Stage::Down),
        (Stage::GateUp, Stage::Swiglu),
        (Stage::Down, Stage::Combine),
        (Stage::Route, Stage::Combine),
        (Stage::Router, Stage::Combine),
    ] {
        check_overwrite(backend, spoilt, restored);
    }
}

/// Experts are chosen by the router's values as the trace leaves them; equal ones by the lower id.
fn check_routing(backend: Backend) {
    let f = Fixture::open(CASE);
    let experts = f.config.num_local_experts;
    run(backend, &f, |site, _, values| match site.stage {
        Stage::Router => values.chunks_exact_mut(experts).for_each(|r| {
            r.copy_from_slice(&[1.0, 3.0, 2.0, 2.0, 2.0, -1.0]);
        }),
        Stage::Route => values.chunks_exact(experts).for_each(|r| {
            let (one, rest) = (1.0 / (1.0 + 2.0 * (-1f32).exp()), 1.0 / (2.0 + 1f32.exp()));
            for (got, want) in r.iter().zip([0.0, one, rest, rest, 0.0, 0.0]) {
                assert!((got - want).abs() < 1e-6, "{r:?}");
            }
        }),
        _ => (),
    })
    .expect("step");
}

fn check_not_finite(backend: Backend) {
    let f = Fixture::open(CASE);
    let vocab = f.config.vocab_size;
    let run = |spoilt: usize| {
        run(backend, &f, |site, _, values| {
            if site.stage == Stage::Logits {
                values[spoilt] = f32::NEG_INFINITY;
            }
        })
    };
    let error = StepError::NotFinite { row: 0, index: 5, value: f32::NEG_INFINITY };
    assert_eq!(run(vocab + 5), Err(error));
    assert!(run(5).is_ok(), "only the logits that are sampled from matter");
}

fn check(backend: Backend) {
    check_order(backend);
    check_overwrites(backend);
    check_routing(backend);
    check_not_finite(backend);
}

#[test]
fn oracle() {
    check(runner::oracle);
}

#[test]
fn fast() {
    runner::for_each_fast(|_, backend| check(backend));
}
