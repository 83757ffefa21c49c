//! How near the sums are to float64.

use half::bf16;
use tessera_cuda::{DenseChoice, DenseKernel};

use super::rig::{Rig, Rows};
use crate::gpu::{cases, gpu};

/// Around what the kernels' tiles, groups and warps have.
const TOKENS: [usize; 19] = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 1000];

#[test]
fn every_count_of_tokens() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, 96, 160);
    for n_tokens in cases(TOKENS) {
        rig.check(&Rows::random(9, n_tokens, 160), 1);
    }
}

/// Products are as wide as the tile's tokens, by thirty-twos.
#[test]
fn every_width_of_a_product() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, 208, 96);
    for n_tokens in cases((32..=544).step_by(32).flat_map(|n| [n - 1, n, n + 1])) {
        rig.check(&Rows::random(n_tokens as u64, n_tokens, 96), 7);
    }
}

#[test]
fn awkward_sizes() {
    let Some(device) = gpu() else { return };
    for rows in [1, 15, 16, 17, 96] {
        for cols in [32, 64, 96, 160, 2880, 4096] {
            let rig = Rig::new(&device, rows, cols);
            for n_tokens in [1, 2, 9, 16, 33, 130] {
                rig.check(&Rows::random(7, n_tokens, cols), if cols > 1000 { 5 } else { 1 });
            }
        }
    }
}

/// Those of the published models, and one that has many strips for each warp and tiles for each block.
#[test]
fn large_sizes() {
    let Some(device) = gpu() else { return };
    for (rows, cols) in [(5120, 2880), (2880, 4096), (40_000, 96)] {
        let rig = Rig::new(&device, rows, cols);
        for n_tokens in [1, 7, 12, 64, 80, 128, 150, 300] {
            rig.check(&Rows::random(5, n_tokens, cols), 331);
        }
    }
}

/// 16 tokens of so many columns have no room in the stream body, 8 have.
#[test]
fn the_widest_rows() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, 80, 8192);
    for n_tokens in [1, 8, 9, 16, 40] {
        rig.check(&Rows::random(5, n_tokens, 8192), 11);
    }
}

/// Few blocks: each has many strips or tiles, and its rings go round and round.
#[test]
fn few_blocks() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(&device, 1000, 352);
    for n_blocks in [1, 2, 3, 131, 1000] {
        rig.dense.set_blocks(n_blocks);
        for n_tokens in [1, 8, 16, 40, 129, 700] {
            rig.check(&Rows::random(5, n_tokens, 352), 41);
        }
    }
}

/// Token k picks column k: what comes back are the weights, exactly, and a fault shows where it is.
#[test]
fn columns_come_back() {
    let Some(device) = gpu() else { return };
    let (rows, cols) = (208, 224);
    let rig = Rig::of(&device, Rows::random(1, rows, cols), vec![bf16::ZERO; rows]);
    for kernel in DenseKernel::ALL {
        let all: Vec<usize> = (0..cols).collect();
        for tokens in all.chunks(kernel.max_tokens(rig.weights.shape())) {
            let mut x = Rows { data: vec![bf16::ZERO; tokens.len() * cols], n: tokens.len(), cols };
            for (token, column) in tokens.iter().enumerate() {
                x.data[token * cols + column] = bf16::ONE;
            }
            let out = rig.run(&x, DenseChoice::Fixed(kernel), None);
            for (i, found) in out.iter().enumerate() {
                let (row, column) = (i % rows, tokens[i / rows]);
                assert_eq!(*found, rig.w.row(row)[column].to_f32(), "{kernel:?}: row {row}, column {column}");
            }
        }
    }
}

/// A token that is not a number stays so, and is no other's business.
#[test]
fn a_token_of_nan_spoils_no_other() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(&device, 80, 96);
    for n_tokens in [3, 16, 40, 140] {
        let x = Rows::random(5, n_tokens, 96);
        let mut spoilt = x.clone();
        spoilt.data[96 + 37] = bf16::NAN;
        for choice in rig.kernels(n_tokens).map(DenseChoice::Fixed) {
            let (expect, found) = (rig.run(&x, choice, None), rig.run(&spoilt, choice, None));
            for (i, (found, expect)) in found.iter().zip(&expect).enumerate() {
                match i / 80 {
                    1 => assert!(found.is_nan(), "{n_tokens} tokens, {choice:?}, row {}", i % 80),
                    token => assert_eq!(found.to_bits(), expect.to_bits(), "{choice:?}, token {token}"),
                }
            }
        }
    }
}
