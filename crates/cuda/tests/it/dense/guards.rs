//! What is refused, and what is left alone.

use half::bf16;
use tessera_cuda::{Dense, DenseChoice, DenseError, DenseKernel, DenseOut, DenseShape, DenseWeights, MAX_TOKENS};

use super::rig::Rig;
use crate::gpu::gpu;

#[test]
fn wrong_lengths_are_errors() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, 40, 96);
    let forward = |n_x: usize, n_tokens: usize, n_out: usize| {
        let (x, mut out) = (rig.buffer(&vec![bf16::ONE; n_x]), rig.buffer(&vec![0.0_f32; n_out]));
        let found = rig.dense.forward(&rig.stream, &rig.weights, &x, n_tokens, &mut out, DenseOut::Store);
        rig.stream.synchronize().unwrap();
        found
    };
    // Two panels of one group, of two.
    assert_eq!(forward(1024, 8, 320), Ok("dense_stream_8"));
    assert_eq!(forward(2048, 9, 360), Ok("dense_stream_16"));
    assert_eq!(forward(0, 0, 0), Ok(""));
    let too_short = |what, expected, found| Err(DenseError::TooShort { what, expected, found });
    assert_eq!(forward(1023, 8, 320), too_short("x", 1024, 1023));
    assert_eq!(forward(1024, 9, 360), too_short("x", 2048, 1024));
    assert_eq!(forward(1024, 8, 319), too_short("out", 320, 319));
    for found in [MAX_TOKENS + 1, usize::MAX] {
        assert_eq!(forward(1024, found, 320), Err(DenseError::TooManyTokens { limit: MAX_TOKENS, found }));
    }
}

#[test]
fn the_stream_body_takes_some_tokens_only() {
    let Some(device) = gpu() else { return };
    for (cols, limit) in [(96, 16), (4096, 16), (8192, 8)] {
        let shape = DenseShape { rows: 16, cols };
        assert_eq!(DenseKernel::Stream.max_tokens(shape), limit);
        let stream = device.stream().unwrap();
        let (weights, dense) = (DenseWeights::alloc(&device, shape).unwrap(), Dense::load(&device).unwrap());
        let (x, mut out) = (device.alloc(32 * 8192).unwrap(), device.alloc(32 * 16).unwrap());
        let mut forward = |n_tokens| {
            let choice = DenseChoice::Fixed(DenseKernel::Stream);
            dense.forward_by(choice, &stream, &weights, &x, n_tokens, &mut out, DenseOut::Store)
        };
        assert!(forward(limit).is_ok());
        assert_eq!(forward(limit + 1), Err(DenseError::TooManyTokens { limit, found: limit + 1 }));
        stream.synchronize().unwrap();
    }
}

/// Where each block has one short tile, it leaves room for another kernel's block.
#[test]
fn short_tiles_have_a_body_of_their_own() {
    let Some(device) = gpu() else { return };
    let dense = Dense::load(&device).unwrap();
    for (rows, cols, n_tokens, expect) in [
        (5120, 2880, 17, "dense_gemm_small"),
        (5120, 2880, 64, "dense_gemm_small"),
        (5120, 2880, 256, "dense_gemm_mid"),
        (2880, 4096, 64, "dense_gemm_small"),
        (2880, 4096, 256, "dense_gemm_mid"),
    ] {
        let (stream, shape) = (device.stream().unwrap(), DenseShape { rows, cols });
        let weights = DenseWeights::alloc(&device, shape).unwrap();
        let x = device.alloc(usize::next_multiple_of(n_tokens, 8) * cols).unwrap();
        let mut out = device.alloc(n_tokens * rows).unwrap();
        let found = dense.forward(&stream, &weights, &x, n_tokens, &mut out, DenseOut::Store);
        assert_eq!(found, Ok(expect), "{shape:?}, {n_tokens} tokens");
        stream.synchronize().unwrap();
    }
}

#[test]
fn shapes_that_the_kernels_cannot_work_on_are_refused() {
    let Some(device) = gpu() else { return };
    for (rows, cols) in [(0, 32), (1 << 21, 32), (16, 0), (16, 8193)] {
        let found = DenseWeights::alloc(&device, DenseShape { rows, cols }).map(|_| ());
        assert!(matches!(found, Err(DenseError::Size { .. })), "{rows} x {cols}");
    }
}
