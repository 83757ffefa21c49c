//! Which tokens go where.

use super::layer::{Layer, Signs, shape};
use super::rig::Rig;
use crate::gpu::{cases, gpu};
use crate::random::Random;

/// On both sides of where choosing is fused with grouping.
const TOKENS: [usize; 7] = [1, 10, 16, 17, 64, 65, 200];

fn rig(experts: usize, top_k: usize) -> Option<Rig> {
    Some(Rig::new(gpu()?, Layer::random(shape(96, 64, experts, top_k), Signs::Both)))
}

#[test]
fn few_and_many_experts() {
    for (experts, top_k) in cases([(1, 1), (2, 2), (8, 4), (31, 3), (32, 4), (33, 4), (128, 4), (255, 8), (256, 8)]) {
        let Some(rig) = rig(experts, top_k) else { return };
        for n_tokens in cases(TOKENS) {
            rig.check(&rig.layer.inputs(n_tokens, Signs::Both));
        }
    }
}

#[test]
fn popular_and_empty_experts() {
    let Some(rig) = rig(32, 4) else { return };
    for n_tokens in cases(TOKENS) {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        let popular = |_, e: usize, logit| logit + [6.0, 3.0, 0.0][e.min(2)];
        rig.check(&inputs.clone().with_logits(32, popular));
        let empty = |_, e: usize, logit| if e.is_multiple_of(5) { logit } else { logit - 20.0 };
        rig.check(&inputs.with_logits(32, empty));
    }
}

#[test]
fn all_tokens_to_one_expert() {
    let Some(rig) = rig(32, 4) else { return };
    for (n_tokens, expert) in cases([(1, 0), (64, 31), (65, 0), (200, 17), (257, 31)]) {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        rig.check(&inputs.clone().with_ids(4, |_| expert));
        rig.check(&inputs.with_ids(4, |slot| if slot % 4 == 2 { expert } else { -1 }));
    }
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(96, 64, 32, 1), Signs::Both));
    for n_tokens in cases(TOKENS) {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        rig.check(&inputs.with_logits(32, |_, e, logit| if e == 30 { logit + 50.0 } else { logit }));
    }
}

#[test]
fn of_equal_logits_the_first_are_chosen() {
    let Some(rig) = rig(128, 4) else { return };
    for n_tokens in cases(TOKENS) {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        rig.check(&inputs.clone().with_logits(128, |_, _, _| 1.5));
        rig.check(&inputs.clone().with_logits(128, |_, _, logit| logit.round()));
        rig.check(&inputs.with_logits(128, |token, e, _| if e % 31 == token % 31 { -1.0 } else { -2.0 }));
    }
}

#[test]
fn large_logits_have_weights_that_add_up() {
    let Some(rig) = rig(32, 4) else { return };
    for n_tokens in cases(TOKENS) {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        rig.check(&inputs.clone().with_logits(32, |_, _, logit| logit * 100.0));
        rig.check(&inputs.with_logits(32, |_, _, logit| logit + 1e4));
    }
}

#[test]
fn slots_of_nobody_are_skipped() {
    let Some(rig) = rig(32, 4) else { return };
    for n_tokens in cases(TOKENS) {
        let mut random = Random(n_tokens as u64);
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        let some = inputs.clone().with_ids(4, |_| {
            let id = (random.next() % 32) as i32;
            if random.unit() < 0.4 { [-1, -7, i32::MIN][id as usize % 3] } else { id }
        });
        rig.check(&some);
        rig.check(&inputs.with_ids(4, |_| -1));
    }
}

#[test]
fn any_one_expert_may_be_the_only_one() {
    let Some(rig) = rig(128, 4) else { return };
    for expert in cases(0..128) {
        let inputs = rig.layer.inputs(1, Signs::Both);
        rig.check(&inputs.with_ids(4, |slot| if slot == expert as usize % 4 { expert } else { -1 }));
    }
}
