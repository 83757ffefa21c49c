//! What is refused, and why.

use tessera_cuda::{DenseShape, DenseWeights, NormOut, Sampler, Steps, StepsError};

use super::rig::{EPS, Rig};

#[track_caller]
fn refused<T>(result: Result<T, StepsError>, expect: &str) {
    match result {
        Ok(_) => panic!("not refused, expected: {expect}"),
        Err(error) => assert_eq!(error.to_string(), expect),
    }
}

#[test]
fn sizes_and_buffers() {
    let Some(rig) = Rig::new() else { return };
    for hidden in [0, 48, 2976] {
        let expect = format!("hidden_size is {hidden}: expected a multiple of 32, at most 2944");
        refused(Steps::load(&rig.device, hidden, EPS), &expect);
    }
    refused(Sampler::load(&rig.device, 262_145), "vocab_size is 262145: expected 1 to 262144");
    refused(Sampler::load(&rig.device, 0), "vocab_size is 0: expected 1 to 262144");
    let steps = rig.steps(64);
    let (residual, weight) = (rig.device.alloc(3 * 64).unwrap(), rig.device.alloc(64).unwrap());
    let mut panels = rig.device.alloc(8 * 64 - 1).unwrap();
    refused(
        steps.rms_norm(&rig.stream, &residual, &weight, 3, NormOut::Panels(&mut panels)),
        "the buffer of normed panels is too short: expected 512 elements at least, found 511",
    );
    refused(
        steps.rms_norm(&rig.stream, &residual, &weight, 4, NormOut::Panels(&mut panels)),
        "the buffer of residual is too short: expected 256 elements at least, found 192",
    );
    let router = DenseWeights::alloc(&rig.device, DenseShape { rows: 4, cols: 96 }).unwrap();
    let (x, mut logits) = (rig.device.alloc(3 * 64).unwrap(), rig.device.alloc(12).unwrap());
    refused(
        steps.router(&rig.stream, &router, &x, 3, &mut logits),
        "the hidden size of the router is 96: expected the model's, 64",
    );
}
