//! How fast steps are; not part of a test run.

use std::time::Instant;

use tessera_cuda::StageTime;
use tessera_model::synth::Like;
use tessera_model::{Batch, Limits, Sampling, Token};

use super::rig::{How, Rig, Sequence, batch};
use crate::gpu::gpu;

const CONTEXT: usize = 1024;
const PREFILL: [usize; 2] = [1024, 8192];
const MAX_ROWS: usize = 256;
const WARM_UP: usize = 4;
const STEPS: usize = 32;

/// Milliseconds of the middle one.
fn median(mut ms: Vec<f64>) -> f64 {
    ms.sort_by(f64::total_cmp);
    ms[ms.len() / 2]
}

fn timed(rig: &mut Rig, batch: &Batch) -> f64 {
    let start = Instant::now();
    How::Plain.run(&mut rig.executor, batch).unwrap();
    start.elapsed().as_secs_f64() * 1e3
}

/// Reads all but the last tokens of each, in steps of as many rows as fit.
fn fill(rig: &mut Rig, sequences: &mut [Sequence], max_tokens: usize) {
    for sequences in sequences.chunks_mut(max_tokens / CONTEXT) {
        let parts: Vec<_> = sequences.iter_mut().map(|sequence| sequence.next(CONTEXT - 1, 0)).collect();
        rig.step(&batch(&parts), How::Plain);
    }
}

/// One token of each, the first of those that are left.
fn decode(sequences: &mut [Sequence]) -> Batch {
    let part = |sequence: &mut Sequence| sequence.next(1, 1).sampling(Sampling::GREEDY);
    batch(&sequences.iter_mut().map(part).collect::<Vec<_>>())
}

/// Times of one kind of stage, all layers together.
fn print_stages(all: &[Vec<StageTime>]) {
    let mut names: Vec<&str> = Vec::new();
    all[0].iter().for_each(|stage| {
        if !names.contains(&stage.name) {
            names.push(stage.name)
        }
    });
    for name in names {
        let of = |times: &Vec<StageTime>| -> f64 {
            times.iter().filter(|stage| stage.name == name).map(|stage| f64::from(stage.ms)).sum()
        };
        let n = all[0].iter().filter(|stage| stage.name == name).count();
        let ms = median(all.iter().map(of).collect());
        eprintln!("    {name:32} {n:3} x {:8.2} us = {ms:8.3} ms", 1e3 * ms / n as f64);
    }
}

fn stages(rig: &mut Rig, batch: &Batch) {
    let all: Vec<_> = (0..8).map(|_| rig.executor.time_stages(batch).unwrap()).collect();
    print_stages(&all[1..]);
}

#[test]
#[ignore = "takes 20 GB of GPU memory, and measures"]
fn speed() {
    let Some(device) = gpu() else { return };
    let config = Like::Gpt20b.config();
    let max_tokens = PREFILL[1];
    let per_sequence = CONTEXT + WARM_UP + STEPS + 8;
    let limits = Limits::for_sequences(&config, MAX_ROWS, per_sequence, CONTEXT);
    let limits = Limits { max_step_tokens: max_tokens, ..limits };
    let before = device.memory().unwrap().free_bytes;
    let start = Instant::now();
    let mut rig = Rig::made(&device, &config, limits);
    let used = (before - device.memory().unwrap().free_bytes) as f64 / 1e9;
    let (weights, step) = tessera_cuda::CudaExecutor::bytes(&config, &limits).unwrap();
    let counted = (weights + step) as f64 / 1e9;
    eprintln!("made in {:.1} s; {used:.2} GB used, {counted:.2} GB counted", start.elapsed().as_secs_f64());
    for n_tokens in PREFILL {
        prefill(&mut rig, n_tokens);
    }
    for n_rows in [1, 8, 64, MAX_ROWS] {
        let prompts: Vec<Vec<Token>> = (0..n_rows).map(|_| rig.random_tokens(per_sequence)).collect();
        let mut sequences = rig.sequences(&prompts);
        fill(&mut rig, &mut sequences, max_tokens);
        let ms = (0..WARM_UP + STEPS).map(|_| timed(&mut rig, &decode(&mut sequences))).skip(WARM_UP).collect();
        let ms = median(ms);
        eprintln!("decode, {n_rows} rows of {CONTEXT}: {ms:.3} ms, {:.0} tokens/s", n_rows as f64 / ms * 1e3);
        let batch = decode(&mut sequences);
        stages(&mut rig, &batch);
    }
}

fn prefill(rig: &mut Rig, n_tokens: usize) {
    let tokens = rig.random_tokens(n_tokens);
    let mut sequence = rig.sequence(&tokens);
    let batch = batch(&[sequence.next(n_tokens, 1).sampling(Sampling::GREEDY)]);
    let ms = median((0..6).map(|_| timed(rig, &batch)).skip(1).collect());
    eprintln!("prefill, {n_tokens} tokens: {ms:.2} ms, {:.0} tokens/s", n_tokens as f64 / ms * 1e3);
    stages(rig, &batch);
}
