//! The published sizes, and many tokens.

use tessera_cuda::{MoeChoice, MoeKernel};

use super::layer::{Layer, Signs, shape};
use super::numbers::check_ulps;
use super::rig::Rig;
use crate::gpu::gpu;
use crate::random::Random;

#[test]
fn the_published_widths() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(2880, 2880, 5, 4), Signs::Both));
    for n_tokens in [1, 9] {
        rig.check(&rig.layer.inputs(n_tokens, Signs::Both));
    }
}

#[test]
fn the_published_widths_without_cancellation() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(2880, 2880, 3, 2), Signs::Positive));
    check_ulps(&rig, &rig.layer.inputs(5, Signs::Positive));
}

#[test]
fn thousands_of_tokens() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(256, 128, 32, 4), Signs::Both));
    for n_tokens in [4096, 8192] {
        let inputs = rig.layer.inputs(n_tokens, Signs::Both);
        let mut random = Random(n_tokens as u64);
        let mut tokens: Vec<usize> = (0..60).map(|_| (random.next() % n_tokens as u64) as usize).collect();
        tokens.extend([0, 1, n_tokens / 2, n_tokens - 1]);
        for choice in [MoeChoice::Auto, MoeChoice::Fixed(MoeKernel::Mid), MoeChoice::Fixed(MoeKernel::Stream)] {
            rig.check_some(&inputs, &tokens, choice);
        }
    }
}
