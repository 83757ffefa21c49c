//! Against transformers in float32, no further than transformers in bf16 is; where there is no transformers, the oracle.

use half::bf16;
use serde_json::Value;
use tessera_cpu::OracleExecutor;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Executor, Limits, Site, Stage, Token, Trace};

use super::rig::{How, Rig, Sequence, fixture, limits, read, same_bits};
use crate::gpu::gpu;
use crate::model_weights::inputs::{demo, fixtures};

/// Tokens of a row of a prompt.
const MAX_ROW: usize = 1000;
/// How far the GPU may be from float32, as a multiple of the oracle with the GPU's operands rounded to bf16. The weights that
/// multiply values in attention are bf16, too: 1.61 was measured on an H200.
const DEMO_BOUND: f64 = 2.0;

struct Case {
    name: &'static str,
    checkpoint: Checkpoint,
    prompt: Vec<Token>,
    greedy: Vec<Token>,
    /// transformers in float32, `[last positions of the prompt, vocab]`.
    logits: Vec<f32>,
    meta: Value,
}

impl Case {
    fn open(name: &'static str) -> Self {
        let (folder, checkpoint) = fixture(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
        let json = |file: &str| -> Value { serde_json::from_slice(&read(file)).expect(file) };
        let ids = |file: &str| serde_json::from_value(json(file)).expect(file);
        let (prompt, greedy) = (ids("tokens.json"), ids("greedy.json"));
        let logits = npy(&read("logits_f32.npy"), checkpoint.config().vocab_size);
        Self { name, checkpoint, prompt, greedy, logits, meta: json("meta.json") }
    }

    fn meta(&self, pointer: &str) -> f64 {
        self.meta.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("meta.json lacks {pointer}"))
    }

    /// The prompt, and the greedy continuation but for its last token.
    fn forced(&self) -> Vec<Token> {
        [&self.prompt[..], &self.greedy[..self.greedy.len() - 1]].concat()
    }

    fn limits(&self) -> Limits {
        limits(self.checkpoint.config(), 1, self.forced().len())
    }

    fn check(&self) {
        let Some(device) = gpu() else { return };
        let (config, weights) = (self.checkpoint.config(), self.checkpoint.weights());
        let mut rig = Rig::load(&device, config, &weights, self.limits());
        self.check_prompt(&mut rig);
        self.check_greedy(&mut rig);
    }

    fn check_prompt(&self, rig: &mut Rig) {
        let from = self.prompt.len() - self.logits.len() / rig.config.vocab_size;
        let mut run = |chunks: &[usize], how: How| {
            let mut sequence = rig.sequence(&self.prompt);
            read(&mut rig.executor, &mut sequence, chunks, from, |executor, batch| how.run(executor, batch))
        };
        let logits = run(&[MAX_ROW], How::Plain);
        let (distance, bound) = (rms_distance(&logits, &self.logits), self.meta("/bf16/rms_distance"));
        println!("{}: prompt: rms {distance:.2e} (transformers bf16 {bound:.2e})", self.name);
        assert!(distance <= bound, "{}: rms {distance} from float32, transformers bf16 has {bound}", self.name);
        for (chunks, how) in [(&[320, 100][..], How::Plain), (&[MAX_ROW], How::Traced)] {
            same_bits(&run(chunks, how), &logits, || format!("{}: chunks {chunks:?}, {how:?}", self.name));
        }
    }

    /// Token by token along the greedy continuation, where the oracle is the truth.
    fn check_greedy(&self, rig: &mut Rig) {
        let (tokens, n_prompt) = (self.forced(), self.prompt.len());
        let mut router = Router::default();
        let truth = forced(&mut oracle(&self.checkpoint, self.limits()), rig.sequence(&tokens), n_prompt, &mut router);
        router.replay();
        let sequence = rig.sequence(&tokens);
        let found = forced(&mut rig.executor, sequence, n_prompt, &mut router);
        let (distance, bound) = (rms_distance(&found, &truth), self.meta("/bf16/rms_distance_teacher_forced_greedy"));
        println!("{}: decode: rms {distance:.2e} (transformers bf16 {bound:.2e})", self.name);
        assert!(distance <= bound, "{}: decode: {distance} from float32, transformers bf16 has {bound}", self.name);
    }
}

/// Logits of the last token of the prompt, which is read in rows, and of those that follow one by one.
fn forced(executor: &mut dyn Executor, mut sequence: Sequence, n_prompt: usize, router: &mut Router) -> Vec<f32> {
    let mut rows = vec![MAX_ROW; n_prompt / MAX_ROW];
    rows.extend([n_prompt % MAX_ROW, 1].into_iter().filter(|&n| n > 0));
    read(executor, &mut sequence, &rows, n_prompt - 1, |executor, batch| executor.step_traced(batch, router))
}

fn oracle(checkpoint: &Checkpoint, limits: Limits) -> OracleExecutor<'_> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    OracleExecutor::new(checkpoint.config(), checkpoint.weights(), limits, threads)
}

fn rms(values: impl Iterator<Item = f32>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), v| (sum + f64::from(v).powi(2), n + 1.0));
    f64::sqrt(sum / n)
}

#[track_caller]
fn rms_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    rms(a.iter().zip(b).map(|(a, b)| a - b))
}

/// A version 1 `.npy` of little-endian float32 in C order, `[rows, width]`.
fn npy(file: &[u8], width: usize) -> Vec<f32> {
    assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
    let header = std::str::from_utf8(&file[10..end]).expect("header");
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
    assert!(header.contains(&format!(", {width})")), "{header}: expected rows of {width}");
    file[end..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
}

/// Router logits of one run, put in place in the next: a choice of experts that rounding decides says nothing about
/// arithmetic.
#[derive(Default)]
struct Router {
    seen: Vec<Vec<f32>>,
    at: Option<usize>,
    /// Rounds what the GPU has in bf16.
    rounds: bool,
}

impl Router {
    fn replay(&mut self) {
        self.at = Some(0);
    }
}

impl Trace for Router {
    fn visit(&mut self, site: Site, _width: usize, values: &mut [f32]) {
        match (site.stage, &mut self.at) {
            (Stage::Router, None) => self.seen.push(values.to_vec()),
            (Stage::Router, Some(at)) => {
                values.copy_from_slice(&self.seen[*at]);
                *at += 1;
            }
            (stage, _) if self.rounds && ROUNDED.contains(&stage) => {
                values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
            }
            _ => (),
        }
    }
}

/// What the GPU has in bf16.
const ROUNDED: [Stage; 6] =
    [Stage::AttnNorm, Stage::RopeStore, Stage::Attend, Stage::MlpNorm, Stage::Swiglu, Stage::FinalNorm];

#[test]
fn narrow_k() {
    Case::open("narrow_k").check();
}

#[test]
fn window() {
    Case::open("window").check();
}

#[test]
fn long_yarn() {
    Case::open("long_yarn").check();
}

#[test]
fn one_kv_head() {
    Case::open("one_kv_head").check();
}

#[test]
fn experts_128() {
    Case::open("experts_128").check();
}

#[test]
fn real_heads() {
    Case::open("real_heads").check();
}

#[test]
fn odd_layers() {
    Case::open("odd_layers").check();
}

#[test]
fn extreme_scales() {
    Case::open("extreme_scales").check();
}

/// A case that is added to the folder must be added here.
#[test]
fn every_case_is_checked() {
    let entries = std::fs::read_dir(fixtures().join("parity")).expect("fixtures/parity");
    assert_eq!(entries.filter(|e| e.as_ref().is_ok_and(|e| e.path().is_dir())).count(), 8);
}

/// Conversations one after the other, the end of the last token by token.
#[test]
fn the_demo_model() {
    let Some(device) = gpu() else { return };
    let (_folder, checkpoint) = demo();
    let file = std::fs::read(fixtures().join("demo/prompts.json")).unwrap();
    let prompts: Value = serde_json::from_slice(&file).unwrap();
    let ids = |i: usize| -> Vec<Token> { serde_json::from_value(prompts[i.to_string()].clone()).unwrap() };
    let tokens: Vec<Token> = (0..12).flat_map(ids).collect();
    let (n_prompt, limits) = (tokens.len() - 40, limits(checkpoint.config(), 1, tokens.len()));
    let mut rig = Rig::load(&device, checkpoint.config(), &checkpoint.weights(), limits);
    let mut router = Router::default();
    let truth = forced(&mut oracle(&checkpoint, limits), rig.sequence(&tokens), n_prompt, &mut router);
    router.replay();
    let sequence = rig.sequence(&tokens);
    let found = forced(&mut rig.executor, sequence, n_prompt, &mut router);
    router.replay();
    router.rounds = true;
    let rounded = forced(&mut oracle(&checkpoint, limits), rig.sequence(&tokens), n_prompt, &mut router);
    let [found, rounded] = [found, rounded].map(|logits| rms_distance(&logits, &truth));
    println!("demo: rms {found:.2e} (operands in bf16 {rounded:.2e}; logits {:.2e})", rms(truth.into_iter()));
    assert!(found <= DEMO_BOUND * rounded, "rms {found} from float32, rounding of operands alone gives {rounded}");
}
