//! Tests' steps on an executor that only looks at them.

use std::collections::HashSet;

use tessera_model::synth::Like;
use tessera_model::{LayerType, StepError, Trace};

use super::*;

/// Refuses what an executor of these limits would, and writes down each step's shape.
struct Fake {
    config: Config,
    limits: Limits,
    steps: Vec<(usize, usize, usize)>, // rows, tokens, logits
}

impl Executor for Fake {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.limits.blocks(kind)
    }

    fn max_step_tokens(&self) -> usize {
        self.limits.max_step_tokens
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        batch.check(&self.config, |kind| self.limits.blocks(kind), self.limits.max_step_tokens)?;
        let full: HashSet<u32> = batch.rows.iter().flat_map(|row| row.block_tables.full.iter().copied()).collect();
        let n_blocks: usize = batch.rows.iter().map(|row| row.block_tables.full.len()).sum();
        assert_eq!(full.len(), n_blocks, "no block is two rows'");
        self.steps.push((batch.rows.len(), batch.tokens.len(), batch.n_logits()));
        Ok(batch.rows.iter().filter(|row| row.sampling.is_some()).map(|_| 0).collect())
    }

    fn step_traced(&mut self, _: &Batch, _: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        unreachable!("nothing is traced")
    }

    fn logits(&self) -> Result<Vec<f32>, StepError> {
        unreachable!("nobody looks at logits")
    }
}

fn plan() -> Plan {
    Plan {
        prompts: vec![100, 1000],
        prompt_depth: 20,
        decodes: vec![3],
        batches: vec![1, 70],
        decode_depth: 600,
        repetitions: 2,
    }
}

#[test]
fn steps_are_within_the_limits_that_the_plan_asks_for() {
    let (config, plan) = (Like::Tiny.config(), plan());
    let fake =
        |step_tokens| Fake { config: config.clone(), limits: plan.limits(&config, step_tokens), steps: Vec::new() };
    let mut fake = fake(1024);
    // 70 sequences of 603 positions; 16 + 512 positions and one block more in a ring.
    assert_eq!((fake.limits.full_blocks, fake.limits.sliding_blocks), (70 * 38, 70 * 34));
    let rates = Sequences::new(&mut fake, &config, &plan).prefill(1000).unwrap();
    assert_eq!(rates.0.len(), 2);
    assert_eq!(std::mem::take(&mut fake.steps), [(1, 20, 0), (1, 1000, 1), (1, 1000, 1), (1, 1000, 1)]);
    Sequences::new(&mut fake, &config, &plan).decode(70, 3).unwrap();
    let (fill, decode) = fake.steps.split_at(2 * 35);
    assert!(fill[..35].iter().all(|&step| step == (2, 1024, 0)), "{fill:?}");
    assert!(fill[35..].iter().all(|&step| step == (2, 2 * 88, 0)), "{fill:?}");
    assert_eq!(decode, [(70, 70, 70); 9]);
}

#[test]
fn long_prompts_come_in_steps() {
    let plan = plan();
    let steps: Vec<Step> = plan.prompt_steps(1000, 512).collect();
    assert_eq!(steps[0], Step { rows: 1, start: 20, tokens: 512, logits: 0 });
    assert_eq!(steps[1], Step { rows: 1, start: 532, tokens: 488, logits: 1 });
    assert_eq!(steps.len(), 2);
    let decode: Vec<Step> = plan.decode_steps(70, 3).collect();
    assert_eq!((decode.len(), decode[2]), (3, Step { rows: 70, start: 602, tokens: 1, logits: 70 }));
}

#[test]
fn tests_that_end_beyond_the_context_are_refused() {
    let config = Config { max_position_embeddings: 1020, ..Like::Tiny.config() };
    plan().check(&config).unwrap();
    let error = Plan { decode_depth: 1018, ..plan() }.check(&config).unwrap_err().to_string();
    assert_eq!(
        error,
        "the longest test ends at position 1021, beyond the model's context of 1020; lower --depth, -p or -n"
    );
    assert!(Plan { prompt_depth: usize::MAX, ..plan() }.check(&config).is_err());
}

#[test]
fn rates_have_a_mean_and_a_deviation() {
    let rates = Rates(vec![90.0, 110.0]);
    assert_eq!(rates.mean(), 100.0);
    assert!((rates.deviation() - 200f64.sqrt()).abs() < 1e-9);
    assert_eq!(Rates(vec![5.0]).deviation(), 0.0);
}
