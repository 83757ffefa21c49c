//! The same bits: whatever the batch, the place in it, the kernel and the time.

use half::bf16;
use tessera_cuda::{MoeChoice, MoeError, MoeKernel, MoeWorkspace};

use super::layer::{Inputs, Layer, Routing, Signs, rows, shape};
use super::rig::{CHOICES, Rig};
use crate::gpu::gpu;
use crate::random::Random;

const N_TOKENS: usize = 256;
const MANY: usize = 4096;

fn rig() -> Option<Rig> {
    Some(Rig::new(gpu()?, Layer::random(shape(256, 128, 8, 4), Signs::Both)))
}

fn bits(rig: &Rig, workspace: &mut MoeWorkspace, inputs: &Inputs, choice: MoeChoice) -> Vec<u16> {
    let (_, out) = rig.run_in(workspace, inputs, choice);
    out.into_iter().map(bf16::to_bits).collect()
}

fn expected(rig: &Rig, inputs: &Inputs) -> Vec<u16> {
    bits(rig, &mut rig.workspace(inputs.n_tokens), inputs, MoeChoice::Fixed(MoeKernel::Prefill))
}

#[test]
fn alone_and_in_batches_of_any_order() {
    let Some(rig) = rig() else { return };
    let inputs = rig.layer.inputs(N_TOKENS, Signs::Both);
    let expect = expected(&rig, &inputs);
    let mut random = Random(5);
    for batch in [1, 8, 64, 256] {
        let mut workspace = rig.workspace(batch);
        for choice in CHOICES {
            let mut order: Vec<usize> = (0..N_TOKENS).collect();
            random.shuffle(&mut order);
            for tokens in order.chunks(batch) {
                let found = bits(&rig, &mut workspace, &inputs.pick(tokens), choice);
                assert!(found == rows(&expect, N_TOKENS, tokens), "batches of {batch}, {choice:?}, tokens {tokens:?}");
            }
        }
    }
}

#[test]
fn among_thousands() {
    let Some(rig) = rig() else { return };
    let inputs = rig.layer.inputs(N_TOKENS, Signs::Both);
    let expect = expected(&rig, &inputs);
    let mut random = Random(6);
    let mut workspace = rig.workspace(MANY);
    for choice in CHOICES {
        let mut places: Vec<usize> = (0..MANY).collect();
        random.shuffle(&mut places);
        places.truncate(N_TOKENS);
        let many = embed(&inputs, &places, rig.layer.inputs(MANY, Signs::Both));
        let found = bits(&rig, &mut workspace, &many, choice);
        assert!(rows(&found, MANY, &places) == expect, "{choice:?}");
    }
}

/// `many`, with the tokens of `inputs` at `places`.
fn embed(inputs: &Inputs, places: &[usize], mut many: Inputs) -> Inputs {
    let (Routing::Logits(from), Routing::Logits(to)) = (&inputs.routing, &mut many.routing) else {
        panic!("logits were asked for");
    };
    copy_rows(from, to, places, inputs.n_tokens);
    copy_rows(&inputs.x, &mut many.x, places, inputs.n_tokens);
    many
}

fn copy_rows<T: Copy>(from: &[T], to: &mut [T], places: &[usize], n_rows: usize) {
    let width = from.len() / n_rows;
    for (row, place) in from.chunks_exact(width).zip(places) {
        to[place * width..][..width].copy_from_slice(row);
    }
}

#[test]
fn run_after_run() {
    let Some(rig) = rig() else { return };
    for n_tokens in [1, 16, 17, 65, 1000] {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        let expect = expected(&rig, &inputs);
        let mut workspace = rig.workspace(n_tokens);
        for (round, choice) in (0..5).flat_map(|round| CHOICES.map(|choice| (round, choice))) {
            assert!(
                bits(&rig, &mut workspace, &inputs, choice) == expect,
                "{n_tokens} tokens, {choice:?}, run {round}"
            );
        }
    }
}

/// Whatever the batch before left behind.
#[test]
fn batch_after_batch() {
    let Some(rig) = rig() else { return };
    let mut workspace = rig.workspace(300);
    for n_tokens in [257, 1, 64, 9, 300, 17, 2, 65] {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        for choice in CHOICES {
            let expect = expected(&rig, &inputs);
            assert!(bits(&rig, &mut workspace, &inputs, choice) == expect, "{n_tokens} tokens, {choice:?}");
            let nobody = inputs.clone().with_ids(4, |_| -1);
            let found = bits(&rig, &mut workspace, &nobody, choice);
            assert!(found.iter().all(|bits| *bits == 0), "{n_tokens} tokens of nobody, {choice:?}");
        }
    }
}

#[test]
fn with_given_experts_as_with_logits() {
    let Some(rig) = rig() else { return };
    for n_tokens in [1, 16, 17, 64, 65, 300] {
        let mut inputs = rig.layer.inputs(n_tokens, Signs::Both);
        let run = rig.run(&inputs, MoeChoice::Auto);
        inputs.routing = Routing::Given { ids: run.ids, weights: run.weights };
        let expect: Vec<u16> = run.out.into_iter().map(bf16::to_bits).collect();
        assert!(expected(&rig, &inputs) == expect, "{n_tokens} tokens");
    }
}

#[test]
fn in_graphs() {
    let Some(rig) = rig() else { return };
    for n_tokens in [1, 16, 64, 257] {
        // Two inputs with the same experts, in turn: if one did not wait for the other, it would read the other's numbers.
        let one = rig.layer.inputs(n_tokens, Signs::Both);
        let other = Inputs { x: one.x.iter().rev().copied().collect(), ..one.clone() };
        let Routing::Logits(logits) = &one.routing else { panic!("logits were asked for") };
        let logits = rig.buffer(logits, 8, f32::NAN);
        let x = [&one, &other].map(|inputs| rig.buffer(&inputs.x, 256, bf16::NAN));
        let mut outs = [0, 1].map(|_| rig.buffer(&vec![bf16::ZERO; one.x.len()], 256, bf16::ZERO));
        let expect = [&one, &other].map(|inputs| expected(&rig, inputs));
        for choice in CHOICES {
            let mut workspace = rig.workspace(n_tokens);
            let both = || {
                for (x, out) in x.iter().zip(&mut outs) {
                    let workspace = &mut workspace;
                    let launched =
                        rig.moe.forward(&rig.stream, &rig.weights, &logits, x, n_tokens, choice, workspace, out)?;
                    assert!(launched.is_some());
                }
                Ok::<_, MoeError>(())
            };
            let graph = rig.stream.capture(both).unwrap();
            for replay in 0..5 {
                rig.stream.replay(&graph).unwrap();
                for (out, expect) in outs.iter().zip(&expect) {
                    let mut found = vec![bf16::ZERO; one.x.len()];
                    rig.stream.download(out, 0, &mut found).unwrap();
                    let found: Vec<u16> = found.into_iter().map(bf16::to_bits).collect();
                    assert!(found == *expect, "{n_tokens} tokens, {choice:?}, replay {replay}");
                }
            }
        }
    }
}
