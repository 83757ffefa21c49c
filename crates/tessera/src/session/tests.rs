//! A fake executor that keeps what each position's key came from, and checks that a row reads only what it may.

use std::sync::{Arc, Mutex};

use tessera_model::{LayerType, StepError, Trace};

use super::*;

const WINDOW: usize = 32;
const CONTEXT: usize = 2048;

/// Answers each row with a hash of the whole sequence, read from its cache: a stale key changes the answer.
struct Fake {
    limits: Limits,
    full: Vec<(usize, Token)>,
    sliding: Vec<(usize, Token)>,
    steps: Arc<Mutex<Vec<usize>>>,
}

impl Executor for Fake {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.limits.blocks(kind)
    }
    fn max_step_tokens(&self) -> usize {
        self.limits.max_step_tokens
    }
    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        let row = &batch.rows[0];
        assert!(batch.tokens.len() <= self.limits.max_step_tokens);
        self.steps.lock().unwrap().push(batch.tokens.len());
        let slot = |table: &[u32], p: usize| table[p / BLOCK_SIZE] as usize * BLOCK_SIZE + p % BLOCK_SIZE;
        for (i, &token) in batch.tokens.iter().enumerate() {
            let p = row.start + i;
            self.full[slot(&row.block_tables.full, p)] = (p, token);
            self.sliding[slot(&row.block_tables.sliding, p)] = (p, token);
        }
        let mut hash = 7u32;
        for p in 0..row.end() {
            let (at, token) = self.full[slot(&row.block_tables.full, p)];
            assert_eq!(at, p);
            hash = hash.wrapping_mul(31).wrapping_add(token);
        }
        for p in (row.start + 1).saturating_sub(WINDOW)..row.end() {
            let (at, token) = self.sliding[slot(&row.block_tables.sliding, p)];
            assert_eq!(at, p, "the ring has lost position {p} of a row from {}", row.start);
            assert_eq!(token, self.full[slot(&row.block_tables.full, p)].1, "stale key at {p}");
        }
        Ok(row.sampling.iter().map(|_| hash % 1000).collect())
    }
    fn step_traced(&mut self, batch: &Batch, _: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        self.step(batch)
    }
    fn logits(&self) -> Result<Vec<f32>, StepError> {
        Err(StepError::NoStep)
    }
}

fn config() -> Config {
    Config { sliding_window: WINDOW, max_position_embeddings: CONTEXT, ..tessera_model::synth::Like::Tiny.config() }
}

fn session(rollback: usize) -> (Session<'static>, Arc<Mutex<Vec<usize>>>) {
    let config = config();
    let limits = limits(&config, CONTEXT, PROMPT_CHUNK.cpu, Rollback(rollback));
    let pool = |kind| vec![(usize::MAX, 0); limits.blocks(kind) * BLOCK_SIZE];
    let steps = Arc::default();
    let (full, sliding) = (pool(LayerType::Full), pool(LayerType::Sliding));
    let fake = Fake { limits, full, sliding, steps: Arc::clone(&steps) };
    (Session::new(Box::new(fake), &config, limits, CONTEXT), steps)
}

fn answer(session: &mut Session, prompt: &[Token], max_tokens: usize) -> (Vec<Token>, Finish, Timings) {
    let mut tokens = Vec::new();
    let receive = |token, _: Logits| {
        tokens.push(token);
        Ok(Flow::Continue)
    };
    let (finish, timings) = session.generate(prompt, max_tokens, Sampling::GREEDY, receive).unwrap();
    (tokens, finish, timings)
}

fn prompt(n: usize, salt: u32) -> Vec<Token> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) % 997 + salt).collect()
}

#[test]
fn prompts_are_read_in_chunks_and_answers_token_by_token() {
    let (mut session, steps) = session(0);
    let (tokens, finish, timings) = answer(&mut session, &prompt(1100, 0), 4);
    assert_eq!((tokens.len(), finish), (4, Finish::Length));
    assert_eq!((timings.prompt_tokens, timings.decode_tokens), (1100, 3));
    assert_eq!(*steps.lock().unwrap(), [512, 512, 76, 1, 1, 1]);
}

#[test]
fn the_context_ends_an_answer() {
    let (mut session, _) = session(0);
    let (tokens, finish, _) = answer(&mut session, &prompt(CONTEXT - 2, 0), 100);
    assert_eq!((tokens.len(), finish), (3, Finish::Length));
    let error = session.generate(&prompt(CONTEXT + 1, 0), 1, Sampling::GREEDY, |_, _| Ok(Flow::Stop)).unwrap_err();
    assert!(error.to_string().contains("2049 tokens"), "{error}");
    assert!(session.generate(&[], 1, Sampling::GREEDY, |_, _| Ok(Flow::Stop)).is_err());
}

/// A conversation: each turn keeps `kept` tokens of what the cache holds and adds new ones. The answers must be those of
/// a session without a past; `expect` is how many prompt tokens the second turn computes.
fn check_turn(rollback: usize, first: usize, answered: usize, kept: usize, added: usize, expect: usize) {
    let (mut session, _) = session(rollback);
    let (answer_1, ..) = answer(&mut session, &prompt(first, 0), answered);
    let mut turn_2 = prompt(first, 0);
    turn_2.extend(&answer_1);
    turn_2.truncate(kept);
    turn_2.extend(prompt(added, 5));
    let (answer_2, _, timings) = answer(&mut session, &turn_2, 3);
    let (mut fresh, _) = self::session(rollback);
    assert_eq!(answer_2, answer(&mut fresh, &turn_2, 3).0);
    assert_eq!(timings.prompt_tokens, expect, "{rollback} {first} {answered} {kept} {added}");
}

#[test]
fn a_turn_computes_only_what_is_new() {
    check_turn(0, 100, 50, 149, 20, 20); // all that is cached stays
    check_turn(0, 100, 50, 100, 20, 20); // the answer is dropped, the ring still has the window
    check_turn(0, 100, 50, 100, 0, 1); // at least one token is computed
    check_turn(0, 700, 1000, 700, 20, 720); // the window before token 700 has left the ring
    check_turn(1024, 700, 1000, 700, 20, 20); // a longer ring still has it
    check_turn(0, 100, 50, 0, 20, 20); // nothing in common
}

#[test]
fn every_cut_agrees_with_a_fresh_start() {
    for kept in (1..900).step_by(37) {
        let (mut session, _) = session(0);
        answer(&mut session, &prompt(300, 0), 600);
        let mut cut = session.cached[..kept.min(session.cached.len())].to_vec();
        cut.push(3);
        let (mut fresh, _) = self::session(0);
        assert_eq!(answer(&mut session, &cut, 2).0, answer(&mut fresh, &cut, 2).0, "cut at {kept}");
    }
}
