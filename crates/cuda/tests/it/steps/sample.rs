//! Tokens against `tessera_model::sampling`, from the same logits.

use tessera_cuda::{RowSampling, Sampled, Sampler};
use tessera_model::Sampling;
use tessera_model::sampling::sample;

use super::rig::{Rig, normal};
use crate::random::Random;

const GPT_OSS: usize = 201_088;
const TEMPERATURES: [f32; 4] = [0.0, 0.3, 1.0, 2.0];
const TOP_PS: [f32; 5] = [0.1, 0.5, 0.9, 0.999, 1.0];

/// Runs all rows at once.
fn run(rig: &Rig, vocab: usize, logits: &[f32], rows: &[RowSampling]) -> Vec<Sampled> {
    let sampler = Sampler::load(&rig.device, vocab).unwrap();
    let (logits, samplings) = (rig.upload(logits), rig.upload(rows));
    let filling: Sampled = bytemuck::cast([0xABAB_ABAB_u32; 4]);
    let mut out = rig.target(rows.len(), filling);
    let n_logits = logits.len() / vocab;
    sampler.sample(&rig.stream, &logits, n_logits, samplings.address(), rows.len(), &mut out).unwrap();
    rig.written(&out, filling)
}

/// Every sampling on every row of logits.
#[track_caller]
fn check(rig: &Rig, vocab: usize, logits: &[f32], samplings: &[(Sampling, usize)]) {
    let n_logits = logits.len() / vocab;
    let all: Vec<_> = (0..n_logits).flat_map(|logit| samplings.iter().map(move |s| (logit, s))).collect();
    let rows: Vec<_> = all.iter().map(|(logit, (s, position))| RowSampling::new(s, *logit as u32, *position)).collect();
    let found = run(rig, vocab, logits, &rows);
    for ((logit, (sampling, position)), found) in all.into_iter().zip(found) {
        let expect = sample(&logits[logit * vocab..][..vocab], sampling, *position);
        assert_eq!(found.token, expect, "vocabulary {vocab}, row {logit}, {sampling:?}, position {position}");
        assert_eq!(found.not_finite(), None);
    }
}

/// All temperatures, top_k and top_p, each with `n` seeds.
fn samplings(random: &mut Random, top_ks: &[usize], n: usize) -> Vec<(Sampling, usize)> {
    let mut all = Vec::new();
    for (temperature, top_p) in TEMPERATURES.into_iter().flat_map(|t| TOP_PS.map(|p| (t, p))) {
        for (&top_k, _) in top_ks.iter().flat_map(|top_k| (0..n).map(move |i| (top_k, i))) {
            let sampling = Sampling { temperature, top_k, top_p, seed: random.next() };
            all.push((sampling, (random.next() % 100_000) as usize));
        }
    }
    all
}

/// Rows that differ in kind: rough, flat, all equal, many equal, zeros of both signs, two values.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let mut rows = normal(random, vocab, 3.0);
    for at in [vocab / 3, vocab / 2, vocab - 1] {
        rows[at] = 11.0; // ties among the largest
    }
    rows.extend(normal(random, vocab, 0.3));
    rows.extend(vec![-2.5; vocab]);
    rows.extend(normal(random, vocab, 2.0).iter().map(|value| value.round()));
    rows.extend((0..vocab).map(|_| if random.next().is_multiple_of(2) { 0.0 } else { -0.0 }));
    rows.extend((0..vocab).map(|_| if random.next().is_multiple_of(3) { 2.0 } else { 1.0 }));
    rows
}

#[test]
fn small_vocabularies() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(30);
    for vocab in [1, 7, 128, 1024, 3000] {
        let logits = logits(&mut random, vocab);
        let samplings = samplings(&mut random, &[0, 1, 2, 40, 1500, vocab], if vocab > 1000 { 2 } else { 5 });
        check(&rig, vocab, &logits, &samplings);
    }
}

#[test]
fn the_published_vocabulary() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(31);
    let all = logits(&mut random, GPT_OSS);
    let some = |random: &mut Random, temperature, top_k, top_p| {
        (Sampling { temperature, top_k, top_p, seed: random.next() }, (random.next() % 100_000) as usize)
    };
    let mut samplings = Vec::new();
    for (top_k, top_p) in [(0, 1.0), (0, 0.1), (0, 0.9), (0, 0.999), (2, 0.5), (40, 0.9), (2000, 0.9), (GPT_OSS, 1.0)] {
        samplings.extend([0.3, 1.0, 2.0].map(|temperature| some(&mut random, temperature, top_k, top_p)));
    }
    samplings.push(some(&mut random, 0.0, 0, 1.0));
    check(&rig, GPT_OSS, &all, &samplings);
}

/// Plain draws and a few kept, for many seeds.
#[test]
fn many_seeds() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(32);
    let logits = normal(&mut random, GPT_OSS, 4.0);
    let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 };
    let samplings: Vec<_> = (0..500).map(|i| (Sampling { seed: random.next(), ..plain }, i * 37)).collect();
    check(&rig, GPT_OSS, &logits, &samplings);
    let small = &logits[..1024];
    let samplings: Vec<_> = (0..3000)
        .map(|i| (Sampling { seed: i as u64, top_k: i % 50, top_p: random.unit() as f32, ..plain }, i))
        .collect();
    check(&rig, 1024, small, &samplings);
}

/// Logits so far apart, temperatures so low, that weights are 0; and the largest differences that float32 has.
#[test]
fn extremes() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(33);
    let vocab = 2000;
    let mut logits = normal(&mut random, vocab, 1e4);
    logits.extend(normal(&mut random, vocab, 1e-30));
    logits.extend((0..vocab).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }));
    logits.extend((0..vocab).map(|i| if i == 1234 { f32::MAX } else { f32::MIN_POSITIVE / 4.0 }));
    let mut all = Vec::new();
    for (temperature, top_k, top_p) in [
        (1e-3, 0, 1.0),
        (1e-3, 0, 0.5),
        (1e-3, 100, 1.0),
        (1.0, 0, 0.9),
        (1.0, 0, 0.0),
        (1.0, 1500, 0.99),
        (100.0, 0, 0.5),
    ] {
        all.extend((0..4).map(|i| (Sampling { temperature, top_k, top_p, seed: random.next() }, i)));
    }
    check(&rig, vocab, &logits, &all);
}

#[test]
fn alone_and_in_batches() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(34);
    let vocab = 5000;
    let logits = logits(&mut random, vocab);
    let n_logits = logits.len() / vocab;
    let rows: Vec<_> = samplings(&mut random, &[0, 40, 3000], 2)
        .iter()
        .enumerate()
        .map(|(i, (sampling, position))| RowSampling::new(sampling, (i % n_logits) as u32, *position))
        .collect();
    let expect = run(&rig, vocab, &logits, &rows);
    for n in [1, 3] {
        for (rows, expect) in rows.chunks(n).zip(expect.chunks(n)) {
            assert_eq!(run(&rig, vocab, &logits, rows), expect, "{rows:?}");
        }
    }
}

#[test]
fn what_is_not_finite_is_told_with_its_place() {
    let Some(rig) = Rig::new() else { return };
    for vocab in [7, 1024, GPT_OSS] {
        let mut logits = vec![1.0_f32; 4 * vocab];
        logits[3] = f32::INFINITY;
        logits[5] = f32::NAN;
        logits[vocab + vocab - 1] = f32::NEG_INFINITY;
        logits[2 * vocab] = f32::NAN;
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 0.9, seed: 1 };
        for sampling in [sampling, Sampling::GREEDY, Sampling { top_p: 1.0, ..sampling }] {
            let mut rows: Vec<_> = (0..4).map(|logit| RowSampling::new(&sampling, logit, 9)).collect();
            rows.push(RowSampling::NOBODY);
            let found = run(&rig, vocab, &logits, &rows);
            assert_eq!(found[0].not_finite(), Some((3, f32::INFINITY)));
            assert_eq!(found[1].not_finite(), Some((vocab - 1, f32::NEG_INFINITY)));
            let (at, value) = found[2].not_finite().unwrap();
            assert!(at == 0 && value.is_nan(), "{at}: {value}");
            assert_eq!(found[3].not_finite(), None);
            assert_eq!(found[3].token, sample(&logits[3 * vocab..], &sampling, 9));
            assert_eq!(bytemuck::cast::<_, [u32; 4]>(found[4]), [0xABAB_ABAB; 4], "nobody's was written");
        }
    }
}
