//! How long each step takes: `cargo test -p tessera-cuda steps::speed -- --ignored --nocapture`.

use half::bf16;
use tessera_cuda::{
    Buffer, DenseShape, DenseWeights, Moe, MoeShape, MoeWorkspace, NormOut, RowSampling, Sampled, Sampler, StepsError,
    Swiglu,
};
use tessera_model::Sampling;

use super::rig::{Rig, normal, panels_len};
use crate::random::Random;

const HIDDEN: usize = 2880;
const VOCAB: usize = 201_088;
const TOP_K: usize = 4;
/// Launches in a graph, each after the one before.
const LAUNCHES: usize = 24;
const REPLAYS: usize = 9;
/// Sets of activations that take turns.
const SETS: usize = 4;
/// Of the routers' weights that take turns: more than the L2 cache holds, as in a model, whose other weights come between.
const WEIGHT_BYTES: usize = 80 << 20;

/// Microseconds of one launch: the median of some replays.
fn time(rig: &Rig, launches: usize, mut launch: impl FnMut(usize) -> Result<(), StepsError>) -> f64 {
    let graph = rig.stream.capture(|| (0..launches).try_for_each(&mut launch)).unwrap();
    let (start, end) = (rig.device.event().unwrap(), rig.device.event().unwrap());
    let mut times: Vec<f32> = (0..REPLAYS + 2)
        .map(|_| {
            rig.stream.record(&start).unwrap();
            rig.stream.replay(&graph).unwrap();
            rig.stream.record(&end).unwrap();
            end.ms_since(&start).unwrap()
        })
        .skip(2)
        .collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[REPLAYS / 2]) * 1e3 / launches as f64
}

fn show(what: &str, n: usize, us: f64, bytes: usize) {
    println!("{what:<28} {n:>5}  {us:>8.2} us  {:>7.3} TB/s", bytes as f64 / us / 1e6);
}

fn sets<T>(make: impl Fn() -> T) -> Vec<T> {
    (0..SETS).map(|_| make()).collect()
}

#[test]
#[ignore = "measures"]
fn speed() {
    let Some(rig) = Rig::new() else { return };
    for n in [1, 8, 64, 256, 8192] {
        stream_steps(&rig, n);
        for experts in [32, 128] {
            routers(&rig, n, experts);
        }
    }
    for n in [1, 8, 64, 256] {
        samplers(&rig, n);
    }
}

/// Embedding, norm, combine.
fn stream_steps(rig: &Rig, n: usize) {
    let steps = rig.steps(HIDDEN);
    let norms = sets(|| rig.upload(&normal(&mut Random(1), HIDDEN, 1.0)));
    let mut residuals = sets(|| rig.upload(&vec![1.0_f32; n * HIDDEN]));
    let mut panels = sets(|| rig.device.alloc::<bf16>(panels_len(n, HIDDEN)).unwrap());
    let table = rig.device.alloc::<bf16>(VOCAB * HIDDEN).unwrap();
    let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % VOCAB) as u32).collect();
    let tokens = rig.upload(&tokens);
    let (row, row_bf16) = (4 * n * HIDDEN, 2 * n * HIDDEN);
    let us = time(rig, LAUNCHES, |i| steps.embed(&rig.stream, tokens.address(), n, &table, &mut residuals[i % SETS]));
    show("embed", n, us, row + row_bf16);
    let us = time(rig, LAUNCHES, |i| {
        let out = NormOut::Panels(&mut panels[i % SETS]);
        steps.rms_norm(&rig.stream, &residuals[i % SETS], &norms[i % SETS], n, out)
    });
    show("rms_norm", n, us, row + row_bf16);
    let workspaces = sets(|| workspace(rig, n));
    let us = time(rig, LAUNCHES, |i| steps.combine_add(&rig.stream, &workspaces[i % SETS], &mut residuals[i % SETS]));
    show("combine_add", n, us, (TOP_K + 2) * row);
    let us = time(rig, LAUNCHES, |i| {
        let (set, out) = (i % SETS, NormOut::Panels(&mut panels[i % SETS]));
        steps.combine_norm(&rig.stream, &workspaces[set], &mut residuals[set], &norms[set], out)
    });
    show("combine_norm", n, us, (TOP_K + 2) * row + row_bf16);
}

fn workspace(rig: &Rig, n: usize) -> MoeWorkspace {
    let shape = MoeShape { hidden: HIDDEN, intermediate: 32, experts: 32, top_k: TOP_K };
    let moe = Moe::load(&rig.device, shape, Swiglu { limit: 7.0, alpha: 1.702 }).unwrap();
    let mut workspace = MoeWorkspace::new(&rig.device, shape, n).unwrap();
    let ids: Vec<i32> = (0..n * TOP_K).map(|i| (i * 5 % 32) as i32).collect();
    let x = rig.device.alloc(n * HIDDEN).unwrap();
    moe.route_to(&rig.stream, &ids, &vec![0.25; n * TOP_K], &x, n, &mut workspace).unwrap();
    rig.stream.synchronize().unwrap();
    workspace
}

fn routers(rig: &Rig, n: usize, experts: usize) {
    let steps = rig.steps(HIDDEN);
    let norms = sets(|| rig.upload(&normal(&mut Random(1), HIDDEN, 1.0)));
    let weight_bytes = 2 * experts * HIDDEN;
    let weights: Vec<DenseWeights> = (0..WEIGHT_BYTES / weight_bytes)
        .map(|_| DenseWeights::alloc(&rig.device, DenseShape { rows: experts, cols: HIDDEN }).unwrap())
        .collect();
    let residuals = sets(|| rig.upload(&vec![1.0_f32; n * HIDDEN]));
    let mut x: Vec<Buffer<bf16>> = sets(|| rig.device.alloc(n * HIDDEN).unwrap());
    let mut logits: Vec<Buffer<f32>> = sets(|| rig.device.alloc(n * experts).unwrap());
    let us =
        time(rig, weights.len(), |i| steps.router(&rig.stream, &weights[i], &x[i % SETS], n, &mut logits[i % SETS]));
    show(&format!("router of {experts}"), n, us, weight_bytes + n * (2 * HIDDEN + 4 * experts));
    let us = time(rig, weights.len(), |i| {
        let s = i % SETS;
        steps.norm_router(&rig.stream, &residuals[s], &norms[s], &weights[i], n, &mut x[s], &mut logits[s])
    });
    show(&format!("norm_router of {experts}"), n, us, weight_bytes + n * (6 * HIDDEN + 4 * experts));
}

fn samplers(rig: &Rig, n: usize) {
    let sampler = Sampler::load(&rig.device, VOCAB).unwrap();
    let row = normal(&mut Random(4), VOCAB, 3.0);
    let logits: Vec<f32> = (0..n).flat_map(|_| row.iter().copied()).collect();
    let logits = rig.upload(&logits);
    let mut out = rig.device.alloc::<Sampled>(n).unwrap();
    let plain = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    for (what, sampling) in [
        ("sample, greedy", Sampling::GREEDY),
        ("sample, temperature 1", plain),
        ("sample, top_p 0.9", Sampling { top_p: 0.9, ..plain }),
        ("sample, top_k 40", Sampling { top_k: 40, ..plain }),
        ("sample, top_k 40, top_p 0.9", Sampling { top_k: 40, top_p: 0.9, ..plain }),
    ] {
        let rows: Vec<_> =
            (0..n).map(|i| RowSampling::new(&Sampling { seed: i as u64, ..sampling }, i as u32, 1000 + i)).collect();
        let rows = rig.upload(&rows);
        let us = time(rig, LAUNCHES, |_| sampler.sample(&rig.stream, &logits, n, rows.address(), n, &mut out));
        show(what, n, us, 4 * n * VOCAB);
    }
}
