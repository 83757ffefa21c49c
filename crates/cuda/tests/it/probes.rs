//! The probes on the GPU: they pass, and with spoilt operands each fails as it should.

use tessera_cuda::Device;
use tessera_cuda::probe::{Finding, Matrix, Probe, Spoil};

use crate::gpu::gpu;

/// Every finding of a probe has a fault that ends like this.
#[track_caller]
fn check_faults(device: &Device, probe: Probe, spoil: Spoil, subject: &str, ends_with: &str) {
    let findings = probe.run_spoilt(device, spoil).unwrap();
    let asked: Vec<&Finding> = findings.iter().filter(|finding| finding.subject.contains(subject)).collect();
    assert!(!asked.is_empty(), "{findings:?}");
    for finding in asked {
        assert!(finding.fault.as_ref().is_some_and(|fault| fault.ends_with(ends_with)), "{finding:?}");
    }
}

fn swap_nibbles(matrix: &mut Matrix) {
    matrix.blocks.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
}

/// Every element moves to where `to` says.
fn move_elements(matrix: &mut Matrix, to: fn(usize, usize) -> (usize, usize)) {
    let from = matrix.clone();
    for (row, k) in (0..from.rows).flat_map(|row| (0..from.cols).map(move |k| (row, k))) {
        let (to_row, to_k) = to(row, k);
        matrix.set_code(to_row, to_k, from.code(row, k));
    }
}

/// As if registers a1 and a2 were exchanged.
fn swap_registers(matrix: &mut Matrix) {
    move_elements(matrix, |row, k| (row & !8 | k & 8, k & !8 | row & 8));
}

/// As if the code words of a thread came in another order.
fn swap_words(matrix: &mut Matrix) {
    move_elements(matrix, |row, k| (row, k ^ 32));
}

fn swap_warps(matrix: &mut Matrix) {
    move_elements(matrix, |row, k| (row & !48 | (row & 16) << 1 | (row & 32) >> 1, k));
}

/// As if pieces were not exchanged by the rows of their group.
fn unswizzle(values: &mut [f32], width: usize) {
    let from = values.to_vec();
    for (i, &value) in from.iter().enumerate() {
        let (token, k) = (i / width, i % width);
        values[token * width + (k ^ (token % 8) << 3)] = value;
    }
}

/// As if every k16 step read the first one's tokens.
fn repeat_step(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width) {
        for k in 0..width {
            row[k] = row[k & !48];
        }
    }
}

/// Never to 255, which is no scale, and refused.
fn spoil_a_scale(matrix: &mut Matrix) {
    matrix.scales[1] = matrix.scales[1].checked_sub(1).unwrap_or(1);
}

fn spoil_the_last_code(matrix: &mut Matrix) {
    let (row, k) = (matrix.rows - 1, matrix.cols - 1);
    let code = matrix.code(row, k);
    matrix.set_code(row, k, code ^ 4);
}

#[test]
fn all_pass() {
    let Some(device) = gpu() else { return };
    for probe in Probe::ALL {
        let findings = probe.run(&device).unwrap();
        assert!(findings.len() == 1 || findings.len() % 3 == 0, "{findings:?}");
        for finding in findings {
            assert_eq!(finding.fault, None, "{finding:?}");
            assert_eq!(finding.probe, probe);
        }
    }
}

#[test]
fn wrong_orders_of_weights_are_told_as_permutations() {
    let Some(device) = gpu() else { return };
    let check = |spoil, subject, expect| {
        check_faults(&device, Probe::Weights, Spoil::Weights(spoil), subject, expect);
    };
    check(swap_nibbles, "", ": k bit 0 (half) flipped");
    check(swap_words, "", ": k bit 5 (word pair) flipped");
    check(swap_registers, "down", ": k bit 3 (register) <-> row bit 3 (register)");
    check(swap_warps, "down", ": row bit 4 (warp) <-> row bit 5 (warp)");
}

#[test]
fn wrong_orders_of_tokens_are_told_as_maps_of_bits() {
    let Some(device) = gpu() else { return };
    let check = |spoil, expect| check_faults(&device, Probe::Tokens, Spoil::Tokens(spoil), "", expect);
    check(
        unswizzle,
        ": token bit 0 (row) -> k bit 3 (piece) ^ token bit 0 (row); token bit 1 (row) -> k bit 4 (piece) ^ token bit 1 \
         (row); token bit 2 (row) -> k bit 5 (piece) ^ token bit 2 (row)",
    );
    check(repeat_step, ": k bit 4 (piece) -> nothing; k bit 5 (piece) -> nothing");
}

#[test]
fn every_probe_of_weights_can_fail() {
    let Some(device) = gpu() else { return };
    let check = |probe, spoil, expect| check_faults(&device, probe, Spoil::Weights(spoil), "", expect);
    check(Probe::Decode, swap_nibbles, "");
    check(Probe::Decode, spoil_a_scale, "");
    check(Probe::Scales, spoil_a_scale, "");
    check(Probe::Walk, swap_nibbles, "");
    check(Probe::Walk, spoil_the_last_code, "");
    check(Probe::Sums, spoil_the_last_code, "");
    check(Probe::Blocks, swap_nibbles, "expected at most 1e-5");
}
