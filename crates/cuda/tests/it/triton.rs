//! triton_kernels' orders: against what triton_kernels makes, and every byte of full matrices against its own description, a
//! reshape and a permutation of axes.

use tessera_cuda::pack::triton::{Warps, swizzle_scales, swizzle_values, unswizzle_scales, unswizzle_values};
use tessera_cuda::pack::{Matrix, PackError, Shape};

use crate::random::Random;

/// The formula of tools/layout_golden.py.
fn sample(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * i * 31 + i * 7 + (i >> 8) * 13 + (i >> 3)) as u8).collect()
}

fn values(blocks: &[u8], shape: Shape) -> Vec<u8> {
    let scales = vec![0; shape.rows() * shape.blocks()];
    swizzle_values(Matrix::new(blocks, &scales, shape).unwrap())
}

fn scales(scales: &[u8], shape: Shape, warps: Warps) -> Vec<u8> {
    let blocks = vec![0; shape.rows() * shape.k() / 2];
    swizzle_scales(Matrix::new(&blocks, scales, shape).unwrap(), warps)
}

#[track_caller]
fn check_golden_values(rows: usize, k: usize, golden: &[u8]) {
    let (shape, data) = (Shape::new(rows, k).unwrap(), sample(rows * k / 2));
    assert!(values(&data, shape) == golden, "{rows}x{k}");
    assert!(unswizzle_values(golden, shape).unwrap() == data, "{rows}x{k}, back");
}

#[track_caller]
fn check_golden_scales(rows: usize, k: usize, warps: Warps, golden: &[u8]) {
    let (shape, data) = (Shape::new(rows, k).unwrap(), sample(rows * k / 32));
    assert!(scales(&data, shape, warps) == golden, "{rows}x{k}");
    assert!(unswizzle_scales(golden, shape, warps).unwrap() == data, "{rows}x{k}, back");
}

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../../../fixtures/layout/hopper_", $name, ".bin"))
    };
}

#[test]
fn what_triton_kernels_makes() {
    check_golden_values(256, 128, golden!("values_256x128"));
    check_golden_values(48, 160, golden!("values_48x160"));
    check_golden_scales(200, 160, Warps::Four, golden!("scales_200x160_warps4"));
    check_golden_scales(300, 96, Warps::Eight, golden!("scales_300x96_warps8"));
}

/// Where index `i` of a row-major tensor of the sizes `axes` is when the axes are in the order `permuted`.
fn permuted<const N: usize>(mut i: usize, axes: [usize; N], permuted: [usize; N]) -> usize {
    let mut index = [0; N];
    for axis in (0..N).rev() {
        index[axis] = i % axes[axis];
        i /= axes[axis];
    }
    permuted.into_iter().fold(0, |offset, axis| offset * axes[axis] + index[axis])
}

/// Rows are (rest, warp tile 2, threads 4, scott 2), bytes of a row (rest, k tile 4, warp tile 2, threads 4). In the swizzled
/// tensor they come as rest 0, threads 0, rest 1, scott, threads 1, k tile, warp tile 1, warp tile 0.
fn value_position(rows: usize, width: usize, i: usize) -> usize {
    permuted(i, [rows / 16, 2, 4, 2, width / 32, 4, 2, 4], [0, 2, 4, 3, 7, 5, 6, 1])
}

/// Bits of a word for byte `i` of its four, lowest first: "1000000111000000" and that shifted by 3 and 6, and the fourth
/// code's "0110110000000000", where bit 13 is the mantissa.
fn value_bits(i: usize) -> [usize; 8] {
    let low = [[6, 7, 8, 15], [3, 4, 5, 12], [0, 1, 2, 9], [13, 10, 11, 14]][i];
    std::array::from_fn(|bit| low[bit % 4] + 16 * (bit / 4))
}

fn check_full_values(rows: usize, k: usize) {
    let width = k / 2;
    let data = Random(rows as u64).bytes(rows * width);
    let shape = Shape::new(rows, k).unwrap();
    let swizzled = values(&data, shape);
    assert_eq!(swizzled.len(), data.len());
    let mut seen = vec![false; data.len()];
    for (i, byte) in data.iter().enumerate() {
        let at = value_position(rows, width, i);
        assert!(!std::mem::replace(&mut seen[at], true), "{at} twice");
        let word = u32::from_le_bytes(swizzled[at / 4 * 4..][..4].try_into().unwrap());
        let got = value_bits(at % 4).iter().enumerate().fold(0, |b, (n, bit)| b | ((word >> bit & 1) as u8) << n);
        assert_eq!(got, *byte, "row {}, byte {}", i / width, i % width);
    }
    assert!(unswizzle_values(&swizzled, shape).unwrap() == data);
}

#[test]
fn every_value_of_the_published_matrices() {
    check_full_values(5760, 2880);
    check_full_values(2880, 2880);
}

/// `reshape(rest, 2, warps, 2, 8, K / 2, 2)`, `permute(0, 2, 5, 1, 4, 6, 3)`.
#[test]
fn every_scale_of_the_published_matrices() {
    for (warps, n) in [(Warps::Four, 4), (Warps::Eight, 8)] {
        for rows in [5760usize, 2880] {
            let (shape, padded) = (Shape::new(rows, 2880).unwrap(), rows.next_multiple_of(32 * n));
            let data = Random(n as u64).bytes(rows * 90);
            let swizzled = scales(&data, shape, warps);
            assert_eq!(swizzled.len(), padded * 90);
            for i in 0..padded * 90 {
                let at = permuted(i, [padded / (32 * n), 2, n, 2, 8, 45, 2], [0, 2, 5, 1, 4, 6, 3]);
                assert_eq!(swizzled[at], data.get(i).copied().unwrap_or(0), "row {}, block {}", i / 90, i % 90);
            }
            assert!(unswizzle_scales(&swizzled, shape, warps).unwrap() == data);
        }
    }
}

#[test]
fn shapes_that_need_padding_come_back() {
    for (rows, k) in [(1, 32), (17, 96), (96, 96), (130, 160), (64, 2880)] {
        let shape = Shape::new(rows, k).unwrap();
        let (codes, bytes) = (Random(rows as u64).bytes(rows * k / 2), Random(k as u64).bytes(rows * k / 32));
        let padded = rows.next_multiple_of(16) * k.next_multiple_of(64) / 2;
        let swizzled = values(&codes, shape);
        assert_eq!(swizzled.len(), padded);
        let ones = |bytes: &[u8]| bytes.iter().map(|b| b.count_ones()).sum::<u32>();
        assert_eq!(ones(&swizzled), ones(&codes)); // nothing lost, nothing but zeros added
        assert!(unswizzle_values(&swizzled, shape).unwrap() == codes, "{rows}x{k}");
        for warps in [Warps::Four, Warps::Eight] {
            let back = unswizzle_scales(&scales(&bytes, shape, warps), shape, warps);
            assert!(back.unwrap() == bytes, "{rows}x{k}");
        }
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let shape = Shape::new(17, 96).unwrap();
    let expect = |what, expected, found| Err(PackError::Length { what, rows: 17, k: 96, expected, found });
    assert_eq!(unswizzle_values(&[0; 5], shape), expect("swizzled values", 32 * 64, 5));
    assert_eq!(unswizzle_scales(&[0; 5], shape, Warps::Four), expect("swizzled scales", 128 * 4, 5));
}
