//! Which weight and which token's element meet: bits of addresses through the matrix products, one at a time.

use super::Bench;
use super::map::{Axes, Reading, address_bit};
use super::matrix::Matrix;
use super::numbers::{ONE, SCALE_ONE, ZERO};
use super::rig::{Rig, one_hot};
use crate::kernels::moe_gemm::MoeKernel;
use crate::moe::MoeError;

/// Rows and bits of k: one record, and then strips for every warpgroup and records for several stages and a rest.
const MATRICES: [(usize, usize); 2] = [(64, 6), (256, 9)];

pub fn down(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    every_matrix(bench, Axes::weights, |rows, axes, grids, readings| {
        let k = 1 << axes.k_bits;
        for bit in 0..axes.n_bits(rows) {
            let code = |row, k| bit_code(axes, bit, row, k);
            let mut rig = Rig::down(bench, 1, Matrix::new(rows, k, code, |_, _| SCALE_ONE))?;
            let mut batch = rig.route_to_down(&vec![0; k], &one_hot(k, k, |token| token))?;
            for (&n_blocks, reading) in grids.iter().zip(&mut *readings) {
                let y = rig.run_down(&mut batch, kernel, n_blocks)?;
                reading.take(bit, |row, token| y[token * rows + row]);
            }
        }
        Ok(())
    })
}

/// Ups are 0: SwiGLU gives the gate.
pub fn gate(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    every_matrix(bench, Axes::channels, |rows, axes, grids, readings| {
        let code = |bit, row: usize, k| if row.is_multiple_of(2) { bit_code(axes, bit, row / 2, k) } else { ZERO };
        channels(bench, kernel, rows, axes, code, grids, readings, |h| h)
    })
}

/// Gates are 1: SwiGLU gives 1 more than the up.
pub fn up(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    every_matrix(bench, Axes::channels, |rows, axes, grids, readings| {
        let code = |bit, row: usize, k| if row % 2 == 1 { bit_code(axes, bit, row / 2, k) } else { ONE };
        channels(bench, kernel, rows, axes, code, grids, readings, |h| h - 1.0)
    })
}

/// `code(bit, row, k)` of gate_up's rows, twice `n_channels`; `value` of what SwiGLU gives.
fn channels(
    bench: &Bench,
    kernel: MoeKernel,
    n_channels: usize,
    axes: &Axes,
    code: impl Fn(usize, usize, usize) -> u8,
    grids: &[usize],
    readings: &mut [Reading],
    value: fn(f32) -> f32,
) -> Result<(), MoeError> {
    let k = 1 << axes.k_bits;
    for bit in 0..axes.n_bits(n_channels) {
        let matrix = Matrix::new(2 * n_channels, k, |row, k| code(bit, row, k), |_, _| SCALE_ONE);
        let mut rig = Rig::gate_up(bench, matrix)?;
        let mut batch = rig.route(&vec![0; k], &one_hot(k, k, |token| token))?;
        for (&n_blocks, reading) in grids.iter().zip(&mut *readings) {
            let h = rig.run_gate_up(&mut batch, kernel, n_blocks)?;
            reading.take(bit, |channel, token| value(h[token * n_channels + channel]));
        }
    }
    Ok(())
}

fn bit_code(axes: &Axes, bit: usize, row: usize, k: usize) -> u8 {
    if address_bit(axes, bit, row, k) { ONE } else { ZERO }
}

/// Reads every matrix with the usual grid, and with a single block, whose warpgroups then all have a strip each. The first
/// fault.
fn every_matrix(
    bench: &Bench,
    axes: fn(usize) -> Axes,
    read: impl Fn(usize, &Axes, &[usize], &mut [Reading]) -> Result<(), MoeError>,
) -> Result<Option<String>, MoeError> {
    let grids = [bench.usual_blocks(), 1];
    for (rows, k_bits) in MATRICES {
        let axes = axes(k_bits);
        let mut readings = grids.map(|_| Reading::new(&axes, rows));
        read(rows, &axes, &grids, &mut readings)?;
        for (n_blocks, reading) in grids.into_iter().zip(readings) {
            if let Some(fault) = reading.fault() {
                return Ok(Some(format!("{rows} x {}, {n_blocks} blocks: {fault}", 1 << k_bits)));
            }
        }
    }
    Ok(None)
}

/// Rows of weights pick the column of their number: what comes back are the tokens' own elements.
pub fn tokens(bench: &Bench, kernel: MoeKernel) -> Result<Option<String>, MoeError> {
    for (k_bits, n_blocks) in [(6, bench.usual_blocks()), (9, 1)] {
        let (k, axes) = (1 << k_bits, Axes::tokens(k_bits));
        let identity = Matrix::new(k, k, |row, k| if row == k { ONE } else { ZERO }, |_, _| SCALE_ONE);
        let mut rig = Rig::down(bench, 1, identity)?;
        // Every width of a product, and two tiles.
        for n_tokens in (1..=kernel.max_tokens() / 8 + 1).map(|eights| 8 * eights) {
            let mut batch = rig.route(&vec![0; n_tokens], &vec![0.0; n_tokens * k])?;
            let mut reading = Reading::new(&axes, n_tokens);
            for bit in 0..axes.n_bits(n_tokens) {
                let element = |i: usize| f32::from(u8::from(address_bit(&axes, bit, i / k, i % k)));
                let h: Vec<f32> = (0..n_tokens * k).map(element).collect();
                rig.set_h(&mut batch, &h)?;
                let y = rig.run_down(&mut batch, kernel, n_blocks)?;
                reading.take(bit, |token, row| y[token * k + row]);
            }
            if let Some(fault) = reading.fault() {
                return Ok(Some(format!("{n_tokens} tokens, {k} x {k}: {fault}")));
            }
        }
    }
    Ok(None)
}
