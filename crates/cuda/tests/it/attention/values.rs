//! Results against float64, at the edges of everything.

use tessera_model::LayerType::{Full, Sliding};

use super::rig::{Rig, Span, shape, span};
use crate::gpu::gpu;

/// Contexts at the edges of blocks, tiles and splits.
const EDGES: [usize; 15] = [1, 2, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257];

/// Rows of one token that see so many keys.
fn ones(contexts: &[usize]) -> Vec<Span> {
    contexts.iter().map(|&context| span(0, context - 1, 1)).collect()
}

#[test]
fn groups_of_every_size() {
    for head_dim in [32, 64] {
        for group in [1, 4, 5, 8, 16] {
            let Some(device) = gpu() else { return };
            let mut rig = Rig::new(device, shape(head_dim, group, 2, 16), &[300], 200);
            rig.check(Full, &ones(&EDGES), 1);
            rig.check(Sliding, &ones(&EDGES), 1);
            rig.check(Full, &[span(0, 0, 257)], 16);
            rig.check(Sliding, &[span(0, 0, 257)], 16);
        }
    }
}

#[test]
fn windows() {
    for (head_dim, window) in [(64, 8), (64, 16), (64, 128), (32, 8), (32, 128), (64, 300), (64, 1)] {
        let Some(device) = gpu() else { return };
        let mut rig = Rig::new(device, shape(head_dim, 4, 1, window), &[740], 600);
        let contexts =
            [window.max(2) - 1, window, window + 1, window + 15, window + 64, 256 + window - 1, 300, 700 - window];
        rig.check(Sliding, &ones(&contexts), 1);
        for start in contexts {
            rig.check(Sliding, &[span(0, start, 33)], 4);
        }
    }
}

#[test]
fn prompts_of_every_length() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 1, 128), &[600], 200);
    for n_tokens in EDGES.into_iter().chain([511, 513]) {
        for kind in [Full, Sliding] {
            rig.check(kind, &[span(0, 0, n_tokens)], 31);
        }
    }
}

#[test]
fn spans() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 1, 128), &[8500], 2100);
    rig.check(Full, &ones(&[2047, 2048, 2049]), 1);
    rig.check(Full, &ones(&[2047]), 1);
    rig.check(Full, &ones(&[4095, 4096, 4097]), 1);
    rig.check(Full, &ones(&[8191, 8193, 8500]), 1);
    rig.check(Full, &[span(0, 2040, 20)], 5);
    rig.check(Full, &[span(0, 4090, 20)], 5);
    rig.check(Full, &[span(0, 8180, 20)], 5);
    rig.check(Sliding, &ones(&[4095, 4096, 4097, 4200]), 1);
}

#[test]
fn mixed_rows() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 2, 128), &[600, 600], 600);
    let rows = [
        span(0, 0, 1),
        span(1, 100, 70),
        span(0, 599, 1),
        span(1, 0, 3),
        span(0, 255, 1),
        span(0, 256, 100),
        span(1, 5, 1),
    ];
    rig.check(Full, &rows, 7);
    rig.check(Sliding, &rows, 7);
}

/// As many rows as make every row one piece of work.
#[test]
fn many_rows() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 2, 128), &[400], 8000);
    let rows: Vec<Span> = (0..300).map(|i| span(0, 50 + i, 1)).collect();
    rig.check(Full, &rows, 1);
    rig.check(Sliding, &rows, 1);
}

#[test]
fn the_longest_context() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 1, 128), &[131_072], 8192);
    rig.check(Full, &ones(&[131_072]), 1);
    rig.check(Sliding, &ones(&[131_072]), 1);
}
