//! What is not finite, and what is refused.

use std::ops::ControlFlow;

use half::bf16;
use tessera_cuda::{
    CudaError, CudaExecutor, DeviceError, MAX_STEP_LOGITS, MAX_STEP_ROWS, ModelWeights, ModelWeightsError,
};
use tessera_model::batch::BatchError;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::synth::Like;
use tessera_model::{Config, Executor, Limits, Matrix, Sampling, StepError, Token, Weights};

use super::rig::{How, Part, Rig, batch, fixture, limits, same_bits, wide};
use crate::gpu::gpu;

/// `matrix` with another value at the start of row `row`; the few kilobytes are never given back.
fn poked<'a>(matrix: Matrix, row: usize, value: f32) -> Matrix<'a> {
    let data = matrix.data.to_vec().leak();
    data[row * matrix.cols] = bf16::from_f32(value);
    Matrix::new(data, matrix.rows, matrix.cols)
}

fn load(device: &tessera_cuda::Device, checkpoint: &Checkpoint, alter: impl Fn(&mut Weights)) -> Rig {
    let (config, mut weights) = (checkpoint.config(), checkpoint.weights());
    alter(&mut weights);
    Rig::load(device, config, &weights, limits(config, 20, 64))
}

#[test]
fn logits_that_are_not_finite_are_named() {
    let Some(device) = gpu() else { return };
    let (_, checkpoint) = fixture("window");
    for (value, at) in [(f32::NAN, 5), (f32::INFINITY, 127), (f32::NEG_INFINITY, 0)] {
        let mut rig = load(&device, &checkpoint, |w| w.lm_head = poked(w.lm_head, at, value));
        let prompts: Vec<Vec<Token>> = (0..9).map(|_| rig.random_tokens(4)).collect();
        let mut sequences = rig.sequences(&prompts);
        let mut rows = |n: usize, who: usize| -> Vec<Part> {
            let part = |(i, part): (usize, Part)| if i >= who { part.sampling(Sampling::GREEDY) } else { part };
            sequences.iter_mut().map(|sequence| sequence.next(n, 1)).enumerate().map(part).collect()
        };
        for (n, how, who) in [(2, How::Plain, 3), (1, How::Plain, 8), (1, How::Traced, 2)] {
            match how.run(&mut rig.executor, &batch(&rows(n, who))) {
                Err(StepError::NotFinite { row, index, value: found }) => {
                    assert_eq!((row, index), (who, at), "{how:?}");
                    assert!(!found.is_finite() && (found.is_nan() || !value.is_nan()), "{found}");
                }
                other => panic!("{value} at {at}, {how:?}: {other:?}"),
            }
            assert!(rig.executor.logits().unwrap()[at..].iter().step_by(rig.config.vocab_size).all(|l| !l.is_finite()));
        }
    }
}

/// A token whose values are not numbers leaves other sequences alone.
#[test]
fn what_is_not_finite_stays_in_its_row() {
    let Some(device) = gpu() else { return };
    let (_, checkpoint) = fixture("window");
    let mut sound = load(&device, &checkpoint, |_| ());
    let mut broken = load(&device, &checkpoint, |w| w.embed = poked(w.embed, 77, f32::NAN));
    let mut prompts: Vec<Vec<Token>> = (0..17).map(|_| sound.random_tokens(20)).collect();
    prompts.iter_mut().flatten().filter(|token| **token == 77).for_each(|token| *token = 76);
    let alone: Vec<Vec<f32>> = prompts.iter().map(|prompt| sound.alone(prompt)).collect();
    prompts[4][3] = 77;
    prompts[9][18] = 77;
    let mut sequences = broken.sequences(&prompts);
    let vocab = broken.config.vocab_size;
    for (n, how) in [(10, How::Plain), (7, How::Traced), (1, How::Plain), (1, How::Plain), (1, How::Traced)] {
        let parts: Vec<Part> = sequences.iter_mut().map(|sequence| sequence.next(n, n)).collect();
        let step = batch(&parts);
        let logits = broken.step(&step, how);
        for (i, ((row, logits), alone)) in step.rows.iter().zip(&logits).zip(&alone).enumerate() {
            // Tokens that see a key that is not a number are none themselves; those before it in the same step may be.
            let first =
                prompts[i].iter().position(|&token| token == 77).unwrap_or(row.end()).clamp(row.start, row.end());
            let seen = &logits[(first - row.start) * vocab..];
            assert!(seen.iter().all(|logit| logit.is_nan()), "sequence {i} has seen what is no number");
            if first == row.end() {
                let expect = &alone[row.start * vocab..first * vocab];
                same_bits(logits, expect, || format!("sequence {i}, {n} tokens from {}, {how:?}", row.start));
            }
        }
    }
}

#[test]
fn steps_that_are_too_large_are_refused_and_the_next_one_runs() {
    let Some(device) = gpu() else { return };
    let (_, checkpoint) = fixture("window");
    let config = checkpoint.config();
    let limits = Limits { max_step_tokens: 2000, ..Limits::for_sequences(config, 300, 16, 2000) };
    let mut rig = Rig::load(&device, config, &checkpoint.weights(), limits);
    assert_eq!(rig.executor.logits(), Err(StepError::NoStep));
    let prompts: Vec<Vec<Token>> = (0..300).map(|_| rig.random_tokens(8)).collect();
    let sequences = rig.sequences(&prompts);
    let rows = |n_rows: usize, n: usize, n_logits: usize| {
        let part = |sequence: &super::rig::Sequence| sequence.clone().next(n, n_logits);
        batch(&sequences[..n_rows].iter().map(part).collect::<Vec<_>>())
    };
    let logits = rig.step(&rows(3, 4, 4), How::Plain);
    for how in [How::Plain, How::Traced] {
        let mut error = |batch| how.run(&mut rig.executor, &batch).unwrap_err();
        let found = MAX_STEP_LOGITS + 8;
        assert_eq!(error(rows(found / 8, 8, 8)), StepError::TooManyLogits { found, max: MAX_STEP_LOGITS });
        assert_eq!(
            error(rows(MAX_STEP_ROWS + 1, 1, 1)).to_string(),
            format!("the batch has {} rows, more than the limit of {MAX_STEP_ROWS}", MAX_STEP_ROWS + 1)
        );
        let mut nobody = rows(1, 1, 1);
        nobody.tokens[0] = 128;
        assert_eq!(error(nobody), StepError::Batch(BatchError::Token { row: 0, token: 128, vocab_size: 128 }));
        assert_eq!(how.run(&mut rig.executor, &rows(0, 1, 1)), Ok(vec![]));
        assert_eq!(rig.step(&rows(3, 4, 4), how), logits);
    }
    // As many as are allowed.
    assert_eq!(rig.step(&rows(MAX_STEP_LOGITS / 8, 8, 8), How::Plain)[..3].len(), 3);
    rig.step(&rows(MAX_STEP_ROWS, 7, 1), How::Plain);
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let config = Like::Gpt20b.config();
    let limits = limits(&config, 8, 131_072);
    let (weights_bytes, step_bytes) = CudaExecutor::bytes(&config, &limits).unwrap();
    // 12 layers with 2 KiB for each token of 8 times 131,072 are 25.8 GB; the rest goes to a step of 1,024 tokens.
    assert!((12_500_000_000..15_000_000_000).contains(&weights_bytes), "{weights_bytes}");
    assert!((26_000_000_000..29_000_000_000).contains(&step_bytes), "{step_bytes}");
    assert_eq!(CudaExecutor::fits(&config, &limits, weights_bytes + step_bytes), Ok(()));
    let (max_step_tokens, budget_bytes) = (limits.max_step_tokens, 30_000_000_000);
    let error = CudaExecutor::fits(&config, &limits, budget_bytes).unwrap_err();
    assert_eq!(error, CudaError::Budget { weights_bytes, step_bytes, max_step_tokens, budget_bytes });
    assert!(error.to_string().contains("and may have 30.0 GB: shorten the context"), "{error}");
}

/// Weights of 65.2 GB, and the whole context in steps of 8,192 tokens.
#[test]
fn the_120b_fits_a_card_of_80_gb_with_its_whole_context() {
    let config = Like::Gpt120b.config();
    let limits = Limits::for_sequences(&config, 1, config.max_position_embeddings, 8192);
    // What such a card says is free when nothing else runs, about, and the default share of it.
    let budget_bytes = 84_000_000_000 / 10 * 9;
    assert_eq!(config.max_position_embeddings, 131_072);
    assert_eq!(CudaExecutor::fits(&config, &limits, budget_bytes), Ok(()));
}

#[test]
fn limits_beyond_the_memory_are_refused() {
    let Some(device) = gpu() else { return };
    let config = wide();
    let weights = ModelWeights::dummy(&device, &config, 1, &mut |_| ControlFlow::Continue(())).unwrap();
    let too_many = Limits { full_blocks: 1 << 27, ..limits(&config, 1, 64) }; // of 32 KiB
    let error = CudaExecutor::new(&device, &config, weights, too_many).err().unwrap();
    assert!(matches!(error, CudaError::Device(DeviceError::OutOfMemory { .. })), "{error}");
}

#[test]
fn shapes_that_the_kernels_lack_are_refused() {
    let config = Config { head_dim: 128, ..Like::Tiny.config() };
    let error = CudaExecutor::bytes(&config, &limits(&config, 1, 64)).unwrap_err();
    let expected = "32 or 64".to_owned();
    assert_eq!(error, CudaError::Weights(ModelWeightsError::Field { field: "head_dim", expected, found: 128 }));
}
