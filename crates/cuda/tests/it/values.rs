//! What the device multiplies, against float64.

use tessera_cuda::pack::decode::{Share, multiply};
use tessera_cuda::pack::{Matrix, Rows, ScaleShift, Shape, pack};

/// OCP MX table 5.
const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

fn bf16(bits: u32) -> f64 {
    let (exponent, fraction) = ((bits >> 7 & 255) as i32, f64::from(bits & 127));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-133),
        255 => f64::NAN,
        e => (128.0 + fraction) * 2f64.powi(e - 134),
    };
    if bits >> 15 & 1 == 1 { -magnitude } else { magnitude }
}

/// Sign included: the codes have a negative zero.
#[track_caller]
fn same(got: f64, want: f64, what: (usize, i32)) {
    assert_eq!(got.to_bits(), want.to_bits(), "code {}, scale {}: {got:e}, not {want:e}", what.0, what.1);
}

#[test]
fn every_code_under_every_scale_byte_through_a_record() {
    let code = |row: usize, k: usize| (row * 5 + k * 3 + k / 16) % 16;
    let blocks: Vec<u8> = (0..64 * 32)
        .map(|i| (i / 32, i % 32 * 2))
        .map(|(row, k)| (code(row, k) | code(row, k + 1) << 4) as u8)
        .collect();
    let mut packed = [0; 2176];
    for scale in 0..=254u8 {
        let scales = [scale; 128];
        let matrix = Matrix::new(&blocks, &scales, Shape::new(64, 64).unwrap()).unwrap();
        let shift = pack(matrix, Rows::Natural, &mut packed).unwrap();
        let mut seen = [false; 16];
        for (thread, i) in (0..128 * 32).map(|i| (i / 32, i % 32)) {
            let (step, register, half) = (i / 8, i % 8 / 2, i % 2);
            let row = thread / 32 * 16 + thread % 32 / 4 + if register % 2 == 1 { 8 } else { 0 };
            let k = step * 16 + thread % 4 * 2 + if register >= 2 { 8 } else { 0 } + half;
            let operand = Share::load(&packed, thread).operand(step, register);
            let got = bf16(operand >> (16 * half) & 0xFFFF) * 2f64.powi(shift.exponent() as i32);
            let exponent = i32::from(scale);
            same(got, E2M1[code(row, k)] * 2f64.powi(exponent - 127), (code(row, k), exponent));
            seen[code(row, k)] = true;
        }
        assert_eq!(seen, [true; 16]);
    }
}

/// The pattern that a code has at home, in a low half.
fn at_home(code: usize) -> u32 {
    (code as u32 >> 3) << 15 | (code as u32 & 7) << 6
}

#[test]
fn every_scale_byte_beside_every_larger_one() {
    for highest in 0..=254u8 {
        let shift = ScaleShift::of(&[highest], 1).unwrap();
        for scale in 0..=highest {
            let both = ScaleShift::of(&[scale, highest], 1);
            if i32::from(scale) < i32::from(highest) - 133 {
                assert!(both.is_err(), "{scale} beside {highest}");
                continue;
            }
            assert_eq!(both, Ok(shift), "{scale} beside {highest}");
            assert_eq!(shift.scale(shift.field(scale)), scale);
            for code in 0..16 {
                let product = multiply(at_home(code), u32::from(shift.field(scale)) << 7);
                let got = bf16(product) * 2f64.powi(shift.exponent() as i32);
                same(got, E2M1[code] * 2f64.powi(i32::from(scale) - 127), (code, i32::from(scale)));
            }
        }
    }
}

/// The span that is accepted is all there is: one more, and the smallest code is rounded to 0.
#[test]
fn a_wider_span_would_not_be_exact() {
    let smallest = at_home(1);
    assert_ne!(multiply(smallest, 121 << 7), 0);
    assert_eq!(multiply(smallest, 120 << 7), 0);
}

#[test]
fn multiplication_rounds_to_nearest_even_and_keeps_subnormals() {
    let pair = |low: u32, high: u32| low | high << 16;
    assert_eq!(multiply(pair(0x0040, 0x8040), pair(0x7E80, 0x7E80)), pair(0x3F00, 0xBF00)); // 2^-127 * 2^126
    assert_eq!(multiply(pair(0x3F81, 0x3F83), pair(0x3FC0, 0x3FC0)), pair(0x3FC2, 0x3FC4)); // ties, down and up
    assert_eq!(multiply(pair(0x7F00, 0x0001), pair(0x4080, 0x3F00)), pair(0x7F80, 0x0000)); // overflow, tie to 0
    assert_eq!(multiply(pair(0x7F80, 0x3F80), pair(0x0000, 0x3F80)), pair(0x7FFF, 0x3F80)); // inf * 0
}
