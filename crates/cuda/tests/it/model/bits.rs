//! The same bits: however a prompt is cut, whatever shares its steps, from graphs and without, fused and not, each time.

use tessera_cuda::{Device, MAX_STEP_LOGITS, MAX_STEP_ROWS};
use tessera_model::{Batch, Sampling, Token};

use super::rig::{How, MAX_STEP_TOKENS, Part, Rig, Sequence, batch, fixture, limits, read, same_bits, wide};
use crate::gpu::{cases, gpu};

/// Chunks around a block (16), a matrix tile (8, 64), a window (16, 128) and a split of keys (256); the last one repeats.
const CHUNKINGS: [&[usize]; 10] =
    [&[1], &[7], &[16], &[64], &[100], &[2, 1], &[15, 17, 16, 1], &[257, 1, 3], &[127, 1, 1, 129], &[33, 1, 5, 256]];

/// The models that the bits are looked at in: what is in the name is what is awkward.
fn rigs(device: &Device, cases: &[&str], sequences: usize, context: usize) -> Vec<(String, Rig)> {
    let of = |case: &&str| {
        let (_, checkpoint) = fixture(case);
        let limits = limits(checkpoint.config(), sequences, context);
        ((*case).to_owned(), Rig::load(device, checkpoint.config(), &checkpoint.weights(), limits))
    };
    let config = wide();
    let wide = Rig::made(device, &config, limits(&config, sequences, context));
    cases.iter().map(of).chain([("wide".to_owned(), wide)]).collect()
}

#[test]
fn in_one_piece_in_chunks_and_one_by_one() {
    const N_TOKENS: usize = 600;
    let Some(device) = gpu() else { return };
    for (name, mut rig) in rigs(&device, &["window", "real_heads", "narrow_k"], 1, N_TOKENS) {
        let tokens = rig.random_tokens(N_TOKENS);
        let whole = rig.alone(&tokens);
        assert!(whole.iter().all(|logit| logit.is_finite()), "{name}");
        for chunks in cases(CHUNKINGS) {
            let mut sequence = rig.sequence(&tokens);
            let logits = read(&mut rig.executor, &mut sequence, chunks, 0, |e, batch| e.step(batch));
            same_bits(&logits, &whole, || format!("{name}: chunks {chunks:?}"));
        }
        for (n_tokens, chunks) in [(600, &[600][..]), (600, &[100, 257]), (40, &[1])] {
            let mut sequence = rig.sequence(&tokens[..n_tokens]);
            let logits = read(&mut rig.executor, &mut sequence, chunks, 0, |e, batch| How::Traced.run(e, batch));
            same_bits(&logits, &whole[..logits.len()], || format!("{name}: traced, chunks {chunks:?}"));
        }
    }
}

/// The first tokens of a prompt do not know of its others.
#[test]
fn prompts_of_every_length() {
    let Some(device) = gpu() else { return };
    for (name, mut rig) in rigs(&device, &["window", "one_kv_head", "odd_layers"], 1, 300) {
        let tokens = rig.random_tokens(300);
        let whole = rig.alone(&tokens);
        for n_tokens in cases([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 130, 255, 256, 257]) {
            let logits = rig.alone(&tokens[..n_tokens]);
            same_bits(&logits, &whole[..logits.len()], || format!("{name}: {n_tokens} tokens"));
        }
    }
}

/// Sequences that are read beside each other, and the logits of each of their tokens alone.
struct Crowd {
    sequences: Vec<Sequence>,
    alone: Vec<Vec<f32>>, // of each, [tokens, vocab]
}

impl Crowd {
    /// Prompts of `shortest` tokens, one more each up to twice as many.
    fn new(rig: &mut Rig, n: usize, shortest: usize) -> Self {
        let tokens: Vec<Vec<Token>> = (0..n).map(|i| rig.random_tokens(shortest + i % shortest)).collect();
        let alone = tokens.iter().map(|tokens| rig.alone(tokens)).collect();
        Self { sequences: rig.sequences(&tokens), alone }
    }

    /// Compares what a step gave for the rows of `who`.
    fn check(&self, rig: &Rig, who: &[usize], step: &Batch, logits: &[Vec<f32>], what: &str) {
        let vocab = rig.config.vocab_size;
        for ((&who, row), logits) in who.iter().zip(&step.rows).zip(logits) {
            let expect = &self.alone[who][(row.end() - row.n_logits) * vocab..row.end() * vocab];
            same_bits(logits, expect, || {
                let (n_rows, n_tokens) = (step.rows.len(), step.tokens.len());
                format!(
                    "{what}: {n_rows} rows, {n_tokens} tokens: sequence {who}, {} tokens from {}",
                    row.n_tokens, row.start
                )
            });
        }
    }

    /// Runs a step of the next tokens of each that has some left: one, or, if `mixes`, sometimes more.
    fn step(&mut self, rig: &mut Rig, mixes: bool, what: &str) {
        let (mut who, mut parts) = (Vec::new(), Vec::new());
        let (mut tokens_left, mut logits_left) = (MAX_STEP_TOKENS, MAX_STEP_LOGITS);
        let n_others = self.sequences.len();
        for (i, sequence) in self.sequences.iter_mut().enumerate().filter(|(_, sequence)| sequence.left() > 0) {
            let others = n_others - i - 1; // each gets a token, too
            let n = match mixes && rig.below(3) == 0 {
                true => (1 + rig.below(40)).min(sequence.left()).min(tokens_left - others),
                false => 1,
            };
            let n_logits = match mixes {
                true => rig.below(n + 1).min(logits_left - others),
                false => 1,
            };
            (tokens_left, logits_left) = (tokens_left - n, logits_left - n_logits);
            who.push(i);
            parts.push(sequence.next(n, n_logits));
        }
        let step = batch(&parts);
        let logits = rig.step(&step, How::Plain);
        self.check(rig, &who, &step, &logits, what);
    }

    fn left(&self) -> usize {
        self.sequences.iter().map(Sequence::left).max().unwrap_or(0)
    }
}

#[test]
fn in_batches_of_decoding_and_reading_rows() {
    let Some(device) = gpu() else { return };
    for (name, mut rig) in rigs(&device, &["window", "real_heads", "experts_128"], MAX_STEP_ROWS, 60) {
        for n in cases([3, 8, 64, MAX_STEP_ROWS]) {
            let mut crowd = Crowd::new(&mut rig, n, 20);
            while crowd.left() > 0 {
                crowd.step(&mut rig, true, &name);
            }
        }
    }
}

/// From graphs; what does not fill one is padded.
#[test]
fn in_batches_of_decoding_rows() {
    let Some(device) = gpu() else { return };
    for (name, mut rig) in rigs(&device, &["window", "narrow_k"], MAX_STEP_ROWS, 40) {
        for n in cases([1, 3, 5, 8, 9, 64, 100, 250, MAX_STEP_ROWS]) {
            let mut crowd = Crowd::new(&mut rig, n, 18);
            // Shorter ones end earlier, so that the batch shrinks.
            while crowd.left() > 0 {
                crowd.step(&mut rig, false, &name);
            }
        }
    }
}

/// Rows that decode, each at another position, in all ways: from a graph; again; beside a row that reads, so without a graph;
/// and with nothing fused. The tokens, too.
#[test]
fn from_graphs_without_them_and_unfused() {
    let Some(device) = gpu() else { return };
    for (name, mut rig) in rigs(&device, &["window", "real_heads", "one_kv_head"], MAX_STEP_ROWS + 1, 64) {
        for n in [1, 2, 5, 9, 13, 33, 100, MAX_STEP_ROWS - 1] {
            let mut crowd = Crowd::new(&mut rig, n + 1, 24);
            for sequence in &mut crowd.sequences {
                let n_tokens = sequence.left() - 1;
                rig.step(&batch(&[sequence.next(n_tokens, 0)]), How::Plain);
            }
            let who: Vec<usize> = (0..n).collect();
            let seeded = |i: usize| Sampling { temperature: (i % 3) as f32 * 0.5, seed: i as u64, ..Sampling::GREEDY };
            let next = |(i, sequence): (usize, &Sequence)| sequence.clone().next(1, 1).sampling(seeded(i));
            let mut parts: Vec<Part> = crowd.sequences[..n].iter().enumerate().map(next).collect();
            let decode = batch(&parts);
            let tokens = tokens_of(&mut rig, &decode, How::Plain);
            for how in [How::Plain, How::Plain, How::Traced] {
                let logits = rig.step(&decode, how);
                crowd.check(&rig, &who, &decode, &logits, &format!("{name}, {how:?}"));
                assert_eq!(tokens_of(&mut rig, &decode, how), tokens, "{name}, {how:?}, {n} rows");
            }
            let mut reader = crowd.sequences[n].clone();
            reader.done = 0;
            parts.push(reader.next(11, 3));
            let beside = batch(&parts);
            let logits = rig.step(&beside, How::Plain);
            crowd.check(&rig, &[who, vec![n]].concat(), &beside, &logits, &format!("{name}, beside a row that reads"));
            assert_eq!(tokens_of(&mut rig, &beside, How::Plain), tokens, "{name}, beside a row that reads, {n} rows");
        }
    }
}

#[track_caller]
fn tokens_of(rig: &mut Rig, batch: &Batch, how: How) -> Vec<Token> {
    how.run(&mut rig.executor, batch).unwrap()
}

/// Contexts of several spans of keys (2,048), where decoding is shared among multiprocessors.
#[test]
fn in_long_contexts() {
    const N_TOKENS: usize = 4300;
    let Some(device) = gpu() else { return };
    for (name, mut rig) in rigs(&device, &["long_yarn"], 3, N_TOKENS) {
        let tokens = rig.random_tokens(N_TOKENS);
        let from = 4090;
        let run = |rig: &mut Rig, n_tokens: usize, chunks: &[usize]| {
            let mut sequence = rig.sequence(&tokens[..n_tokens]);
            read(&mut rig.executor, &mut sequence, chunks, from, |e, batch| e.step(batch))
        };
        let whole = run(&mut rig, N_TOKENS, &[1024]);
        let one_by_one = run(&mut rig, N_TOKENS, &[1000, 1000, 1000, 1000, 90, 1]);
        same_bits(&one_by_one, &whole, || format!("{name}: one by one"));
        same_bits(&run(&mut rig, N_TOKENS, &[333]), &whole, || format!("{name}: in chunks of 333"));
        for n_tokens in [4095, 4096, 4097] {
            let logits = run(&mut rig, n_tokens, &[1024]);
            assert!(!logits.is_empty());
            same_bits(&logits, &whole[..logits.len()], || format!("{name}: {n_tokens} tokens"));
        }
    }
}

/// To the last position that the published models have: in even and uneven chunks, and one by one at the end.
#[test]
fn the_longest_context() {
    let Some(device) = gpu() else { return };
    let config = wide();
    let n_tokens = config.max_position_embeddings;
    assert_eq!(n_tokens, 131_072);
    let mut rig = Rig::made(&device, &config, limits(&config, 1, n_tokens));
    let tokens = rig.random_tokens(n_tokens);
    let run = |rig: &mut Rig, chunks: &[usize]| {
        let mut sequence = rig.sequence(&tokens);
        read(&mut rig.executor, &mut sequence, chunks, n_tokens - 70, |e, batch| e.step(batch))
    };
    let whole = run(&mut rig, &[MAX_STEP_TOKENS]);
    assert!(whole.iter().all(|logit| logit.is_finite()));
    same_bits(&run(&mut rig, &[&[1000; 131][..], &[8, 1]].concat()), &whole, || "one by one at the end".to_owned());
    same_bits(&run(&mut rig, &[999]), &whole, || "in chunks of 999".to_owned());
}
