//! How near the results are to float64.

use half::bf16;

use super::layer::{Inputs, Layer, Signs, shape};
use super::reference::{Reference, down};
use super::rig::{CHOICES, Rig};
use crate::gpu::{cases, gpu};

/// Around what the kernels' tiles, groups and warps have.
const TOKENS: [usize; 20] = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 1000];
/// Bfloat16 numbers between an element and the right one, at most.
const MAX_ULPS: u32 = 2;
/// The share of elements that may be further off than a neighbour of the right one.
const MOST_BEYOND_ONE: f64 = 1e-3;

#[test]
fn every_count_of_tokens() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(256, 128, 8, 4), Signs::Both));
    for n_tokens in cases(TOKENS) {
        rig.check(&rig.layer.inputs(n_tokens, Signs::Both));
    }
}

/// One expert has all rows: as many as a tile of some kernel has, one less and one more.
#[test]
fn every_tile_is_full_once() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(96, 64, 2, 1), Signs::Both));
    for tile in [24, 32, 48, 64, 96, 128, 176, 192, 256, 352] {
        for n_tokens in [tile - 1, tile, tile + 1] {
            let inputs = rig.layer.inputs(n_tokens, Signs::Both);
            rig.check(&inputs.clone().with_ids(1, |_| 1));
            // Chosen here, which is when products wait for strips of gate and up and not for their kernel's end.
            rig.check(&inputs.with_logits(2, |_, e, logit| if e == 1 { logit + 50.0 } else { logit }));
        }
    }
}

/// Logits of NaN choose nobody: there is not one tile.
#[test]
fn without_any_tile_results_are_zeros() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(96, 64, 8, 2), Signs::Both));
    for n_tokens in [1, 17, 300] {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both).with_logits(8, |_, _, _| f32::NAN);
        for choice in CHOICES {
            let found = rig.run(&inputs, choice);
            assert!(found.out.iter().all(|out| out.to_bits() == 0), "{n_tokens} tokens, {choice:?}");
        }
    }
}

/// Products are as wide as the tile's tokens, by eights.
#[test]
fn every_width_of_a_product() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(320, 32, 1, 1), Signs::Both));
    for n_tokens in cases((1..=264).step_by(8).flat_map(|first| [first, first + 7])) {
        rig.check(&rig.layer.inputs(n_tokens, Signs::Both));
    }
}

#[test]
fn sizes_that_are_no_multiples_of_64() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(96, 160, 6, 4), Signs::Both));
    for n_tokens in [0, 1, 5, 8, 17, 65, 100, 300] {
        rig.check(&rig.layer.inputs(n_tokens, Signs::Both));
    }
}

#[test]
fn the_smallest_sizes_and_every_top_k() {
    for (i, top_k) in (1..=8).enumerate() {
        let Some(device) = gpu() else { return };
        let (hidden, intermediate) = [(32, 32), (32, 96), (160, 32), (224, 64)][i % 4];
        let rig = Rig::new(device, Layer::random(shape(hidden, intermediate, top_k, top_k), Signs::Both));
        for n_tokens in [1, 9, 65, 130] {
            rig.check(&rig.layer.inputs(n_tokens, Signs::Both));
        }
    }
}

/// The activation's limits must not make a number of it.
#[test]
fn gates_and_ups_that_are_not_numbers_stay_so() {
    let Some(device) = gpu() else { return };
    let mut layer = Layer::random(shape(96, 64, 6, 4), Signs::Both);
    let (gate, up) = (2 * 37, 2 * 5 + 1); // rows of an expert
    layer.gate_up.bias[128 + gate] = bf16::NAN;
    layer.gate_up.bias[4 * 128 + up] = -bf16::NAN;
    let rig = Rig::new(device, layer);
    for n_tokens in [1, 9, 70, 300] {
        rig.check(&rig.layer.inputs(n_tokens, Signs::Both));
    }
}

#[test]
fn without_cancellation_results_are_the_nearest_or_their_neighbours() {
    for (sizes, n_tokens) in [(shape(256, 128, 8, 4), [1, 33, 257]), (shape(96, 160, 6, 4), [2, 17, 100])] {
        let Some(device) = gpu() else { return };
        let rig = Rig::new(device, Layer::random(sizes, Signs::Positive));
        for n_tokens in n_tokens {
            check_ulps(&rig, &rig.layer.inputs(n_tokens, Signs::Positive));
        }
    }
}

#[track_caller]
pub fn check_ulps(rig: &Rig, inputs: &Inputs) {
    let reference = Reference::new(&rig.layer, inputs);
    for choice in CHOICES {
        let found = rig.run(inputs, choice);
        let what = format!("{:?}, {} tokens, {choice:?}", rig.layer.shape, inputs.n_tokens);
        let h: Vec<f64> = found.h.iter().map(|&h| f64::from(h)).collect();
        let expect_y = down(&rig.layer, &h, &reference.ids);
        let rounded = |values: &[f32]| -> Vec<bf16> { values.iter().map(|&value| bf16::from_f32(value)).collect() };
        check_near(&rounded(&found.h), &reference.h, &format!("{what}: h"));
        check_near(&rounded(&found.y), &expect_y, &format!("{what}: y"));
        check_near(&found.out, &reference.out, &format!("{what}: out"));
    }
}

#[track_caller]
fn check_near(found: &[bf16], expect: &[f64], what: &str) {
    assert_eq!(found.len(), expect.len(), "{what}");
    let mut n_beyond = 0;
    for (i, (found, expect)) in found.iter().zip(expect).enumerate() {
        let ulps = u32::from(bf16::from_f64(*expect).to_bits()).abs_diff(u32::from(found.to_bits()));
        assert!(ulps <= MAX_ULPS, "{what}: element {i} is {found}, expected {expect}");
        n_beyond += usize::from(ulps > 1);
    }
    assert!(n_beyond as f64 <= MOST_BEYOND_ONE * found.len() as f64, "{what}: {n_beyond} of {} beyond", found.len());
}
