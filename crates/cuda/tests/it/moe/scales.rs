//! Scale bytes over the range that the packer accepts.

use super::layer::{Layer, Signs, shape};
use super::rig::Rig;
use crate::gpu::gpu;

/// Sums of gate_up are of a few units and more if tokens are of about `2^x_exponent`; biases of down are as large as its sums.
#[track_caller]
fn check(scales: (u8, u8), x_exponent: i32, bias_exponent: i32) {
    let Some(device) = gpu() else { return };
    let layer = Layer::with(shape(256, 128, 8, 4), Signs::Both, [scales; 2], [-1, bias_exponent]);
    let rig = Rig::new(device, layer);
    for n_tokens in [3, 70] {
        rig.check(&rig.layer.inputs_of(n_tokens, Signs::Both, x_exponent));
    }
}

#[test]
fn the_smallest_scales() {
    check((0, 4), 118, -118);
}

#[test]
fn scales_that_need_no_shift() {
    check((0, 128), -3, 2);
}

#[test]
fn scales_just_beyond() {
    check((0, 129), -4, 3);
    check((0, 133), -7, 6);
}

#[test]
fn scales_that_are_all_beyond() {
    check((129, 140), -17, 15);
}

#[test]
fn the_whole_span_far_up() {
    check((67, 200), -74, 72);
}
