//! The same bits: whatever the batch, the place in it, the kernel, the blocks and the time.

use tessera_cuda::{DenseChoice, DenseError, DenseKernel, DenseOut};

use super::rig::{Rig, Rows, differ};
use crate::gpu::gpu;
use crate::random::Random;

const N_TOKENS: usize = 256;
const ROWS: usize = 336;
const COLS: usize = 416;
const MANY: usize = 4096;

/// What a token has, whoever computed it.
fn expected(rig: &Rig, x: &Rows) -> Vec<f32> {
    rig.run(x, DenseChoice::Fixed(DenseKernel::Wide), None)
}

#[track_caller]
fn same(found: &[f32], expect: &[f32], tokens: &[usize], what: &str) {
    let expect: Vec<f32> = tokens.iter().flat_map(|token| expect[token * ROWS..][..ROWS].iter().copied()).collect();
    if let Some(i) = differ(found, &expect) {
        panic!(
            "{what}: token {} at {}, row {}: {:e}, not {:e}",
            tokens[i / ROWS],
            i / ROWS,
            i % ROWS,
            found[i],
            expect[i]
        );
    }
}

#[test]
fn alone_and_in_batches_of_any_order() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, ROWS, COLS);
    let x = Rows::random(5, N_TOKENS, COLS);
    let expect = expected(&rig, &x);
    let mut random = Random(5);
    for batch in [1, 2, 8, 9, 16, 17, 33, 64, 129, 256] {
        for choice in rig.kernels(batch).map(DenseChoice::Fixed) {
            let mut order: Vec<usize> = (0..N_TOKENS).collect();
            random.shuffle(&mut order);
            for tokens in order.chunks(batch).take(32) {
                let found = rig.run(&x.pick(tokens), choice, None);
                same(&found, &expect, tokens, &format!("batches of {batch}, {choice:?}"));
            }
        }
    }
}

#[test]
fn among_thousands() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, ROWS, COLS);
    let x = Rows::random(5, N_TOKENS, COLS);
    let expect = expected(&rig, &x);
    let mut random = Random(6);
    for kernel in [DenseKernel::Small, DenseKernel::Mid, DenseKernel::Wide] {
        let mut places: Vec<usize> = (0..MANY).collect();
        random.shuffle(&mut places);
        places.truncate(N_TOKENS);
        let mut many = Rows::random(7, MANY, COLS);
        for (token, place) in places.iter().enumerate() {
            many.data[place * COLS..][..COLS].copy_from_slice(x.row(token));
        }
        let found = rig.run(&many, DenseChoice::Fixed(kernel), None);
        let tokens: Vec<usize> = (0..N_TOKENS).collect();
        let found: Vec<f32> = places.iter().flat_map(|place| found[place * ROWS..][..ROWS].iter().copied()).collect();
        same(&found, &expect, &tokens, &format!("{kernel:?}"));
    }
}

#[test]
fn from_any_number_of_blocks() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(&device, ROWS, COLS);
    let x = Rows::random(5, N_TOKENS, COLS);
    let expect = expected(&rig, &x);
    for n_blocks in [1, 2, 5, 131, 264] {
        rig.dense.set_blocks(n_blocks);
        for n_tokens in [1, 8, 16, 40, 130, N_TOKENS] {
            let tokens: Vec<usize> = (0..n_tokens).collect();
            for choice in rig.kernels(n_tokens).map(DenseChoice::Fixed) {
                let found = rig.run(&x.pick(&tokens), choice, None);
                same(&found, &expect, &tokens, &format!("{n_tokens} tokens, {n_blocks} blocks, {choice:?}"));
            }
        }
    }
}

#[test]
fn run_after_run() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, ROWS, COLS);
    for n_tokens in [1, 16, 17, 65, 1000, MANY] {
        let x = Rows::random(8, n_tokens, COLS);
        let expect = expected(&rig, &x);
        let tokens: Vec<usize> = (0..n_tokens).collect();
        for (round, kernel) in (0..5).flat_map(|round| rig.kernels(n_tokens).map(move |kernel| (round, kernel))) {
            let found = rig.run(&x, DenseChoice::Fixed(kernel), None);
            same(&found, &expect, &tokens, &format!("{n_tokens} tokens, {kernel:?}, run {round}"));
        }
    }
}

/// Kernels start early: each must wait for what the one before writes.
#[test]
fn in_graphs() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, ROWS, COLS);
    for n_tokens in [1, 16, 64, 257, MANY] {
        let x = Rows::random(8, n_tokens, COLS);
        let once = expected(&rig, &x);
        // Stored, then added twice.
        let expect: Vec<f32> = once.iter().map(|once| (once + once) + once).collect();
        let (panels, mut out) = (rig.buffer(&x.panels()), rig.buffer(&vec![f32::NAN; once.len()]));
        for kernel in rig.kernels(n_tokens) {
            let queue = || {
                for what in [DenseOut::Store, DenseOut::Add, DenseOut::Add] {
                    let choice = DenseChoice::Fixed(kernel);
                    rig.dense.forward_by(choice, &rig.stream, &rig.weights, &panels, n_tokens, &mut out, what)?;
                }
                Ok::<_, DenseError>(())
            };
            let graph = rig.stream.capture(queue).unwrap();
            for _ in 0..5 {
                rig.stream.replay(&graph).unwrap();
            }
            let mut found = vec![0.0; once.len()];
            rig.stream.download(&out, 0, &mut found).unwrap();
            let tokens: Vec<usize> = (0..n_tokens).collect();
            same(&found, &expect, &tokens, &format!("{n_tokens} tokens, {kernel:?}"));
        }
    }
}
