//! The same bits: however a prompt is cut, whatever else is in the step, whoever works on it.

use half::bf16;
use tessera_cuda::Attention;
use tessera_model::LayerType::{self, Full, Sliding};

use super::rig::{Rig, Span, Way, config, shape, span};
use crate::gpu::{cases, gpu};

const N: usize = 330;
const KINDS: [LayerType; 2] = [Full, Sliding];

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn run(rig: &mut Rig, kind: LayerType, rows: &[Span]) -> Vec<u16> {
    bits(&rig.run(kind, rows))
}

/// `[N, q_dim]` of sequence 0 in one piece.
fn expected(rig: &mut Rig, kind: LayerType) -> Vec<u16> {
    run(rig, kind, &[span(0, 0, N)])
}

fn chunks(length: usize) -> Vec<Span> {
    (0..N).step_by(length).map(|start| span(0, start, length.min(N - start))).collect()
}

#[test]
fn prompts_in_pieces() {
    for (head_dim, group, window) in [(64, 8, 128), (32, 5, 16)] {
        let Some(device) = gpu() else { return };
        let mut rig = Rig::new(device, shape(head_dim, group, 1, window), &[N], 4300);
        for kind in KINDS {
            let expect = expected(&mut rig, kind);
            for length in [1, 7, 64, 100] {
                let together = run(&mut rig, kind, &chunks(length));
                assert!(together == expect, "{kind:?}, pieces of {length} in one step");
                for piece in chunks(length).into_iter().step_by(if length == 1 { 29 } else { 3 }) {
                    let width = expect.len() / N;
                    let alone = run(&mut rig, kind, &[piece]);
                    assert!(alone == expect[piece.start * width..][..alone.len()], "{kind:?}, {piece:?} alone");
                }
            }
        }
    }
}

#[test]
fn among_other_rows() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 2, 128), &[N, 700], 900);
    for kind in KINDS {
        let expect = expected(&mut rig, kind);
        let width = expect.len() / N;
        let ours = [span(0, 40, 100), span(0, 200, 1), span(0, 329, 1), span(0, 0, 1), span(0, 3, 9)];
        for strangers in
            [vec![span(1, 699, 1)], vec![span(1, 0, 500)], vec![span(1, 600, 1), span(1, 1, 5), span(1, 255, 1)]]
        {
            let mut rows = strangers.clone();
            rows.extend(ours);
            rows.push(span(1, 77, 2));
            let found = run(&mut rig, kind, &rows);
            let mut at = strangers.iter().map(|row| row.n_tokens).sum::<usize>() * width;
            for row in ours {
                let n = row.n_tokens * width;
                assert!(found[at..at + n] == expect[row.start * width..][..n], "{kind:?}, {row:?} after {strangers:?}");
                at += n;
            }
        }
    }
}

/// Alone, a long row is split; among many it is not, or less so.
#[test]
fn split_or_whole() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 4, 1, 128), &[8400, 300], 12_000);
    for position in [255, 256, 2047, 2048, 4095, 4096, 8399] {
        let alone = run(&mut rig, Full, &[span(0, position, 1)]);
        let mut rows = vec![span(1, 299, 1); 450];
        rows[17] = span(0, position, 1);
        let among = run(&mut rig, Full, &rows);
        assert!(among[17 * alone.len()..][..alone.len()] == alone, "position {position} among many");
        let whole =
            run(&mut rig, Full, &[span(0, position, 1), span(0, position, 1), span(0, position.max(40) - 40, 41)]);
        assert!(whole[..alone.len()] == alone && whole[whole.len() - alone.len()..] == alone, "position {position}");
    }
}

/// Rows split in spans, the last of which has one split, and each alone, which is split in splits; rows of one span and of
/// several in one step.
#[test]
fn in_splits_or_in_spans() {
    const N_ROWS: usize = 25;
    for head_dim in [64, 32] {
        let Some(device) = gpu() else { return };
        let mut rig = Rig::new(device, shape(head_dim, 1, 8, 128), &[4301], 7000);
        let alone = |rig: &mut Rig, position| run(rig, Full, &[span(0, position, 1)]);
        let positions: Vec<usize> = (0..N_ROWS).map(|i| 4300 - i).collect();
        for (positions, step) in [(&positions[..], 12), (&[2047, 2048, 700, 4300], 1)] {
            let rows: Vec<Span> = positions.iter().map(|&position| span(0, position, 1)).collect();
            let together = run(&mut rig, Full, &rows);
            let found = together.chunks(together.len() / rows.len());
            for (row, &position) in found.zip(positions).step_by(step) {
                assert!(row == alone(&mut rig, position), "head_dim {head_dim}, {} rows, {position}", rows.len());
            }
        }
    }
}

#[test]
fn by_any_number_of_blocks() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 2, 128), &[5000], 3000);
    let rows = [span(0, 4999, 1), span(0, 700, 1), span(0, 20, 1), span(0, 4096, 1)];
    let expect = KINDS.map(|kind| run(&mut rig, kind, &rows));
    for n_blocks in [100, 7, 2, 1] {
        rig.attention.set_decode_blocks(n_blocks);
        for (kind, expect) in KINDS.into_iter().zip(&expect) {
            assert!(run(&mut rig, kind, &rows) == *expect, "{kind:?}, {n_blocks} blocks");
        }
    }
}

#[test]
fn by_either_matrix_instruction() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 2, 128), &[1000], 300);
    let rows = [span(0, 0, 300), span(0, 430, 1), span(0, 600, 370)];
    let expect = KINDS.map(|kind| run(&mut rig, kind, &rows));
    rig.attention = Attention::load_warp_products(&rig.device, &config(rig.shape, 1000)).unwrap();
    for (kind, expect) in KINDS.into_iter().zip(expect) {
        assert!(run(&mut rig, kind, &rows) == expect, "{kind:?}");
    }
}

#[test]
fn run_after_run() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 2, 128), &[6000], 2500);
    let rows = [span(0, 5999, 1), span(0, 1023, 1), span(0, 2000, 1), span(0, 300, 200)];
    for kind in KINDS {
        for (way, rows) in [(Way::Forward, &rows[..]), (Way::Rope, &rows[..3])] {
            let mut loaded = rig.load(kind, rows, None);
            rig.launch(kind, way, &mut loaded);
            let expect = bits(&rig.results(rows, &loaded));
            for round in cases(0..50) {
                (0..10).for_each(|_| rig.launch(kind, way, &mut loaded));
                assert!(bits(&rig.results(rows, &loaded)) == expect, "{kind:?}, {way:?}, round {round}");
            }
        }
    }
}

/// A graph of a bucket, recorded with other rows, fewer or more.
#[test]
fn in_a_graph() {
    let Some(device) = gpu() else { return };
    let mut rig = Rig::new(device, shape(64, 8, 2, 128), &[5000], 2500);
    let steps: [&[Span]; 4] = [
        &[span(0, 10, 1)],
        &[span(0, 4500, 1), span(0, 0, 1), span(0, 700, 1)],
        &[
            span(0, 1, 1),
            span(0, 255, 1),
            span(0, 256, 1),
            span(0, 257, 1),
            span(0, 63, 1),
            span(0, 64, 1),
            span(0, 65, 1),
        ],
        &[],
    ];
    for kind in KINDS {
        let expect = steps.map(|rows| if rows.is_empty() { vec![] } else { run(&mut rig, kind, rows) });
        for way in [Way::Forward, Way::Rope] {
            let mut loaded = rig.load(kind, steps[3], Some(7));
            let graph = rig.record(kind, way, &mut loaded);
            for (rows, expect) in steps.into_iter().zip(&expect) {
                rig.load_again(kind, rows, 7, &mut loaded);
                if way == Way::Rope {
                    rig.forget_last();
                }
                rig.stream.replay(&graph).unwrap();
                rig.stream.synchronize().unwrap();
                assert!(bits(&rig.results(rows, &loaded)) == *expect, "{kind:?}, {way:?}, {rows:?}");
                rig.check_stored();
            }
        }
    }
}
