//! What is run through both executors: two sequences whose prefill, decode and mixture touch every kernel.

use half::bf16;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Config, Limits, Row, Site, Stage, Token, mxfp4};

use super::lockstep::Step;
use crate::args::Device;
use crate::random::random;

/// Logits that a row asks for where the head is judged: they are most of a small step's work.
pub const ROW_LOGITS: usize = 4;
/// Tokens of the second sequence's prompt, which shares a step with the first one's decode.
const COMPANION_TOKENS: usize = 9;
/// How far past the window a prompt goes where time allows.
const PAST_WINDOW: usize = 24;
/// Multiplications that a prompt may cost unless told otherwise: a few minutes of the oracle on two cores, and enough for
/// the published models.
const MAX_WORK: usize = 800_000_000_000;
const MIN_PROMPT: usize = 12;
/// Sequences that share the pools.
const SEQUENCES: usize = 2;

/// Stages whose values meet weights.
pub const CUDA_OPERANDS: [Stage; 5] = [Stage::AttnNorm, Stage::Attend, Stage::MlpNorm, Stage::Swiglu, Stage::FinalNorm];

pub struct Probe {
    pub steps: Vec<Step>,
    pub limits: Limits,
}

/// The longest prompt that is worth its time: past the window if that costs at most `MAX_WORK`.
pub fn prompt_tokens(config: &Config) -> usize {
    let attention = (config.qkv_dim() + config.q_dim()) * config.hidden_size;
    let experts = config.num_experts_per_tok * 3 * config.intermediate_size * config.hidden_size;
    let affordable = MAX_WORK / (config.num_hidden_layers * (attention + experts));
    (config.sliding_window + PAST_WINDOW).min(affordable).max(MIN_PROMPT)
}

impl Probe {
    /// A prompt of `prompt` tokens in two chunks, `decode` single tokens, and a step in which one more of them shares the
    /// batch with another sequence's prompt. Rows want the logits of their last `row_logits` tokens.
    pub fn new(config: &Config, prompt: usize, decode: usize, row_logits: usize) -> Self {
        let first = (prompt * 2).div_ceil(3);
        let max_row = first.max(COMPANION_TOKENS + 1);
        let limits = Limits::for_sequences(config, SEQUENCES, prompt + decode + 1, max_row);
        let mut steps = vec![];
        let mut at = 0;
        let mut push = |label: String, n: usize, companion: usize| {
            let mut batch = Batch::default();
            for (sequence, start, n) in [(0, at, n), (1, 0, companion)] {
                if n > 0 {
                    batch.tokens.extend((start..start + n).map(|p| token(config, sequence, p)));
                    batch.rows.push(row(&limits, sequence, start, n, row_logits));
                }
            }
            at += n;
            steps.push(Step { label, batch });
        };
        push("prefill 1".into(), first, 0);
        if prompt > first {
            push("prefill 2".into(), prompt - first, 0);
        }
        for i in 1..=decode {
            push(format!("decode {i}"), 1, 0);
        }
        push("mixture".into(), 1, COMPANION_TOKENS);
        Self { steps, limits }
    }
}

/// A row whose blocks are interleaved with the other sequence's.
fn row(limits: &Limits, sequence: usize, start: usize, n_tokens: usize, logits: usize) -> Row {
    let ring = limits.sliding_blocks / SEQUENCES;
    let entries = (start + n_tokens).div_ceil(BLOCK_SIZE);
    let id = |i: usize| (i * SEQUENCES + sequence) as u32;
    let block_tables =
        BlockTables { full: (0..entries).map(id).collect(), sliding: (0..entries).map(|i| id(i % ring)).collect() };
    Row { n_tokens, start, block_tables, n_logits: n_tokens.min(logits), sampling: None }
}

/// Tokens from all over the vocabulary, always the same.
fn token(config: &Config, sequence: usize, position: usize) -> Token {
    (random(sequence as u64, position as u64) % config.vocab_size as u64) as Token
}

/// Rounds, on both sides, what the fast path keeps in fewer bits than float32, so that this rounding, which is its nature
/// and is judged by its distance in logits, does not hide errors of its arithmetic: cached keys and values are bf16, and
/// what meets MXFP4 weights is 16-bit fixed point in blocks on the CPU. On the GPU, what meets any weights is bf16.
pub fn round_operands(device: Device, site: Site, values: &mut [f32]) {
    match (device, site.stage) {
        (_, Stage::RopeStore) => round_to_bf16(values),
        (Device::Cpu, Stage::MlpNorm | Stage::Swiglu) => round_to_fixed_point(values),
        (Device::Cuda, stage) if CUDA_OPERANDS.contains(&stage) => round_to_bf16(values),
        _ => (),
    }
}

fn round_to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
}

fn round_to_fixed_point(values: &mut [f32]) {
    const MAX: f32 = 32767.0;
    for block in values.chunks_exact_mut(mxfp4::BLOCK) {
        let step = block.iter().fold(0f32, |max, v| max.max(v.abs())) / MAX;
        if step >= f32::MIN_POSITIVE && step.is_finite() {
            block.iter_mut().for_each(|v| *v = (*v / step).round_ties_even() * step);
        }
    }
}
