//! Wrong maps, and what is said about them.

use super::{Axes, Reading, address_bit, explain};
use crate::pack::{CODE_BYTES, Matrix, RECORD_BYTES, Rows, Shape, pack, unpack_as_device};
use crate::probe::matrix::Matrix as Hand;
use crate::probe::numbers::{ONE, SCALE_ONE, weight};

const AXES: Axes = Axes::weights(6);

/// Of a map `found(row, k)`, 64 x 64.
#[track_caller]
fn check(found: impl Fn(usize, usize) -> (usize, usize), expect: &str) {
    let address = |(row, k): (usize, usize)| row << 6 | k;
    let found: Vec<usize> = (0..4096).map(|i| address(found(i >> 6, i & 63))).collect();
    assert_eq!(explain(&found, &AXES).as_deref(), (!expect.is_empty()).then_some(expect));
}

/// `x` with its bits `i` and `j` exchanged.
fn swapped(x: usize, i: usize, j: usize) -> usize {
    let differ = (x >> i ^ x >> j) & 1;
    x ^ (differ << i | differ << j)
}

#[test]
fn maps_of_bits_are_told_by_what_the_bits_select() {
    check(|row, k| (row, k), "");
    check(|row, k| (row, k ^ 1), "k bit 0 (half) flipped");
    let one_and_two = "k bit 3 (register) <-> row bit 3 (register)";
    check(|row, k| (row & !8 | k & 8, k & !8 | row & 8), one_and_two);
    check(|row, k| (row, swapped(k, 4, 5)), "k bit 4 (word) <-> k bit 5 (word pair)");
    check(|row, k| (swapped(row, 4, 5), k ^ 16), "row bit 4 (warp) <-> row bit 5 (warp); k bit 4 (word) flipped");
    check(
        |row, k| (row, swapped(swapped(k, 0, 1), 1, 2)),
        "k bit 0 (half) -> k bit 2 (lane) -> k bit 1 (lane) -> k bit 0 (half)",
    );
    check(|row, k| (row, k & 15), "k bit 4 (word) -> nothing; k bit 5 (word pair) -> nothing");
    check(|row, k| (row, k ^ (row & 1) << 3), "row bit 0 (lane) -> k bit 3 (register) ^ row bit 0 (lane)");
    check(|_, _| (0, 0), "every place has row 0, k 0");
    check(|_, _| (3, 7), "every place has row 3, k 7");
}

#[test]
fn other_maps_are_told_by_places() {
    let one = |row, k| if (row, k) == (5, 9) { (5, 10) } else { (row, k) };
    check(one, "1 of 4096 places are wrong: row 5, k 9 has row 5, k 10");
    let next = |row, k| (row, (k + 1) % 64);
    check(
        next,
        "4096 of 4096 places are wrong: row 0, k 0 has row 0, k 1; row 0, k 1 has row 0, k 2; row 0, k 2 has row 0, k 3",
    );
}

#[test]
fn numbers_of_rows_need_not_be_powers_of_two() {
    let axes = Axes::tokens(6);
    assert_eq!([1, 2, 3, 24, 25, 64].map(|n_rows| axes.n_bits(n_rows)), [6, 7, 8, 11, 11, 12]);
    let found = |map: fn(usize, usize) -> usize| -> Vec<usize> { (0..24 * 64).map(|i| map(i >> 6, i & 63)).collect() };
    assert_eq!(explain(&found(|n, k| n << 6 | k), &axes), None);
    let unswizzled = explain(&found(|n, k| n << 6 | (k ^ (n % 8 * 8))), &axes).unwrap();
    let expect = "token bit 0 (row) -> k bit 3 (piece) ^ token bit 0 (row); token bit 1 (row) -> k bit 4 (piece) ^ token \
                  bit 1 (row); token bit 2 (row) -> k bit 5 (piece) ^ token bit 2 (row)";
    assert_eq!(unswizzled, expect);
}

#[test]
fn values_that_are_no_bits_are_told_first() {
    for (value, text) in [(2.0, "2"), (-1.0, "-1"), (f32::NAN, "NaN"), (0.5, "0.5")] {
        let mut reading = Reading::new(&AXES, 64);
        reading.take(7, |row, k| if (row, k) == (1, 2) { value } else { 0.0 });
        let expect = format!("row 1, k 2: {text}, expected 0 or 1 for row bit 1 (lane) of the address");
        assert_eq!(reading.fault(), Some(expect));
    }
}

/// What a probe says that multiplies as the device does, when the checkpoint's bytes are spoilt, or the packed ones.
fn fault(spoil: impl Fn(&mut Hand), spoil_record: impl Fn(&mut [u8])) -> Option<String> {
    let shape = Shape::new(64, 64).unwrap();
    let mut reading = Reading::new(&AXES, 64);
    for bit in 0..AXES.n_bits(64) {
        let code = |row, k| if address_bit(&AXES, bit, row, k) { ONE } else { 0 };
        let mut hand = Hand::new(64, 64, code, |_, _| SCALE_ONE);
        spoil(&mut hand);
        let mut record = [0; RECORD_BYTES];
        let matrix = Matrix::new(&hand.blocks, &hand.scales, shape).unwrap();
        let shift = pack(matrix, Rows::Natural, &mut record).unwrap();
        spoil_record(&mut record);
        let unpacked = unpack_as_device(&record, shape, Rows::Natural, shift);
        let code = |row: usize, k: usize| unpacked.blocks[(row * 64 + k) / 2] >> (4 * (k % 2));
        reading.take(bit, |row, k| weight(code(row, k), SCALE_ONE) as f32);
    }
    reading.fault()
}

/// Exchanges parts `i` and `j` of `bytes`, which are `n` bytes long.
fn exchange(bytes: &mut [u8], n: usize, i: usize, j: usize) {
    (0..n).for_each(|at| bytes.swap(i * n + at, j * n + at));
}

/// Exchanges, in every `n` bytes of a record's codes, parts `i` and `j` of `part` bytes.
fn exchange_all(record: &mut [u8], n: usize, part: usize, i: usize, j: usize) {
    record[..CODE_BYTES].chunks_mut(n).for_each(|bytes| exchange(bytes, part, i, j));
}

#[test]
fn the_packers_order_is_right_and_wrong_ones_are_told() {
    let nothing = |_: &mut Hand| {};
    let nibbles = |hand: &mut Hand| hand.blocks.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
    let packed = |spoil: fn(&mut [u8])| fault(nothing, spoil);
    assert_eq!(packed(|_| {}), None);
    assert_eq!(fault(nibbles, |_| {}).unwrap(), "k bit 0 (half) flipped");
    assert_eq!(packed(|record| exchange_all(record, 16, 8, 0, 1)).unwrap(), "k bit 5 (word pair) flipped");
    assert_eq!(packed(|record| exchange(record, 512, 1, 2)).unwrap(), "row bit 4 (warp) <-> row bit 5 (warp)");
    assert_eq!(packed(|record| exchange_all(record, 64, 16, 1, 2)).unwrap(), "k bit 1 (lane) <-> k bit 2 (lane)");
    // The words of a group share their fourth pairs: exchanged, they give codes that are nobody's.
    assert!(packed(|record| exchange_all(record, 8, 4, 0, 1)).is_some());
}
