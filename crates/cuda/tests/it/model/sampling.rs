//! Tokens are those that the definition gives for the same logits.

use tessera_model::sampling::sample;
use tessera_model::{Sampling, Token};

use super::rig::{How, Part, Rig, Sequence, batch, limits, wide};
use crate::gpu::gpu;
use crate::model_weights::inputs::demo;

/// Of row `i`.
fn sampling(i: usize) -> Sampling {
    let temperature = [0.0, 0.3, 1.0, 2.0][i % 4];
    let (top_k, top_p) = ([0, 1, 7, 50, 5000][i % 5], [1.0, 0.9, 0.4][i % 3]);
    Sampling { temperature, top_k, top_p, seed: 1000 + i as u64 }
}

/// `parts` sample, but for every fifth row, which does not.
fn check(rig: &mut Rig, parts: Vec<Part>, how: How) {
    let given = |(i, part): (usize, Part)| match i % 5 {
        3 => part,
        _ => part.sampling(sampling(i)),
    };
    let batch = batch(&parts.into_iter().enumerate().map(given).collect::<Vec<_>>());
    let tokens = how.run(&mut rig.executor, &batch).unwrap();
    let logits = rig.step(&batch, how);
    let expect: Vec<Token> = batch
        .rows
        .iter()
        .zip(&logits)
        .filter_map(|(row, logits)| {
            let last = &logits[logits.len() - rig.config.vocab_size..];
            row.sampling.as_ref().map(|sampling| sample(last, sampling, row.end()))
        })
        .collect();
    assert_eq!(tokens, expect, "{how:?}, {} rows", batch.rows.len());
}

fn check_model(mut rig: Rig) {
    for n in [1, 2, 5, 16, 61, 200] {
        let prompts: Vec<Vec<Token>> = (0..n).map(|i| rig.random_tokens(3 + i % 9)).collect();
        let mut sequences = rig.sequences(&prompts);
        let rows = |sequences: &mut [Sequence], n: usize, n_logits: usize| -> Vec<Part> {
            sequences.iter_mut().map(|sequence| sequence.next(n, n_logits)).collect()
        };
        let parts = rows(&mut sequences, 2, 2);
        check(&mut rig, parts, How::Plain);
        for how in [How::Plain, How::Traced] {
            let parts = rows(&mut sequences.clone(), 1, 1);
            check(&mut rig, parts, how);
        }
    }
}

#[test]
fn of_the_demo_model() {
    let Some(device) = gpu() else { return };
    let (_folder, checkpoint) = demo();
    let config = checkpoint.config();
    check_model(Rig::load(&device, config, &checkpoint.weights(), limits(config, 200, 16)));
}

#[test]
fn of_a_wide_model() {
    let Some(device) = gpu() else { return };
    check_model(Rig::made(&device, &wide(), limits(&wide(), 200, 16)));
}
