//! The MXFP4 codec (OCP Microscaling Formats 1.0): blocks of 32 E2M1 elements that share one E8M0 scale.
//!
//! A block is 16 bytes; byte `i` holds element `2i` in its low nibble and element `2i + 1` in its high nibble.
//! A value is `E2M1[code] * 2^(scale - 127)`; scale byte 255 is NaN and is refused when a checkpoint is opened.

/// Elements that share one scale.
pub const BLOCK: usize = 32;
/// Bytes of codes in one block.
pub const BLOCK_BYTES: usize = BLOCK / 2;
/// The E8M0 byte that stands for NaN.
pub const SCALE_NAN: u8 = 255;
/// The value of each 4-bit code: bit 3 is the sign, bits 2..1 the exponent (bias 1), bit 0 the mantissa.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Exponent of the largest E2M1 binade (4.0 and 6.0 are `1.0 * 2^2` and `1.5 * 2^2`): `emax_elem` of the OCP MX rule.
const E2M1_EMAX: i32 = 2;
const E8M0_BIAS: i32 = 127;

/// `2^(scale - 127)`; exact for every byte but 255, which is NaN. Byte 0 gives the subnormal `2^-127`.
pub fn e8m0(scale: u8) -> f32 {
    match scale {
        0 => f32::from_bits(0x0040_0000),
        SCALE_NAN => f32::NAN,
        s => f32::from_bits(u32::from(s) << 23),
    }
}

/// The code of element `i` of a row of packed codes.
pub fn code(blocks: &[u8], i: usize) -> u8 {
    (blocks[i / 2] >> (4 * (i % 2))) & 0xf
}

/// Decodes one block. Values beyond `f32::MAX` (codes 4.0 and 6.0 under scale bytes 253 and 254) become infinite, as
/// `ldexp` has it; everything else is exact.
pub fn decode_block(codes: &[u8; BLOCK_BYTES], scale: u8) -> [f32; BLOCK] {
    let scale = e8m0(scale);
    std::array::from_fn(|i| E2M1[code(codes, i) as usize] * scale)
}

/// Decodes a row: `blocks` `[cols / 2]`, `scales` `[cols / 32]`, `out` `[cols]`.
///
/// Panics if the lengths do not agree; a checkpoint's shapes are checked when it is opened.
pub fn decode_row(blocks: &[u8], scales: &[u8], out: &mut [f32]) {
    assert_eq!(blocks.len() * 2, out.len());
    assert_eq!(scales.len() * BLOCK, out.len());
    for ((codes, &scale), out) in blocks.chunks_exact(BLOCK_BYTES).zip(scales).zip(out.chunks_exact_mut(BLOCK)) {
        out.copy_from_slice(&decode_block(codes.try_into().expect("chunks are one block"), scale));
    }
}

/// Encodes one block by the OCP MX rule (section 6.3): the shared exponent is `floor(log2(max |x|)) - emax_elem`,
/// clamped to the range of E8M0; elements are divided by it and rounded to the nearest E2M1 value, ties to the even
/// mantissa, saturating at 6.
///
/// A block whose largest value is zero gets scale byte 127 (`2^0`). Values that are not finite are an error: the index
/// of the first one is returned.
pub fn encode_block(values: &[f32; BLOCK]) -> Result<([u8; BLOCK_BYTES], u8), usize> {
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(i);
    }
    let max = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = if max == 0.0 { E8M0_BIAS } else { (floor_log2(max) - E2M1_EMAX + E8M0_BIAS).clamp(0, 254) };
    let inverse = 2f64.powi(E8M0_BIAS - scale);
    let mut codes = [0u8; BLOCK_BYTES];
    for (i, &v) in values.iter().enumerate() {
        codes[i / 2] |= encode_e2m1(f64::from(v) * inverse) << (4 * (i % 2));
    }
    Ok((codes, scale as u8))
}

/// Nearest E2M1 code, ties to even mantissa, saturating: the thresholds are the midpoints of neighbouring magnitudes,
/// and a tie goes to the code whose lowest bit is 0.
fn encode_e2m1(v: f64) -> u8 {
    let a = v.abs();
    let magnitude = match a {
        a if a <= 0.25 => 0,
        a if a < 0.75 => 1,
        a if a <= 1.25 => 2,
        a if a < 1.75 => 3,
        a if a <= 2.5 => 4,
        a if a < 3.5 => 5,
        a if a <= 5.0 => 6,
        _ => 7,
    };
    magnitude | if v.is_sign_negative() { 8 } else { 0 }
}

/// `floor(log2(x))` of a positive finite float, subnormals included.
fn floor_log2(x: f32) -> i32 {
    let bits = x.to_bits();
    match bits >> 23 {
        0 => -118 - bits.leading_zeros() as i32,
        e => e as i32 - 127,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The magnitude of a code as the integer count of halves, straight from the bit fields of OCP MX table 5.
    fn halves(code: u8) -> u128 {
        let (e, m) = ((code >> 1) & 3, u128::from(code & 1));
        if e == 0 { m } else { (2 + m) << (e - 1) }
    }

    /// An f32 as an exact integer multiple of 2^-149, split in (sign, magnitude) with magnitude < 2^277 as (hi, shift).
    fn exact(x: f32) -> (bool, u128, i32) {
        let bits = x.to_bits();
        let (e, m) = (((bits >> 23) & 0xff) as i32, u128::from(bits & 0x7f_ffff));
        if e == 0 { (bits >> 31 == 1, m, -149) } else { (bits >> 31 == 1, m | 1 << 23, e - 150) }
    }

    fn normalised(m: u128, e: i32) -> (u128, i32) {
        if m == 0 { (0, 0) } else { (m >> m.trailing_zeros(), e + m.trailing_zeros() as i32) }
    }

    #[test]
    fn every_code_under_every_scale_is_exact() {
        for scale in 0..=254u8 {
            for c in 0..16u8 {
                let got = decode_block(&[c; BLOCK_BYTES], scale)[0];
                let (want_m, want_e) = normalised(halves(c & 7), i32::from(scale) - 127 - 1);
                // Largest finite f32 is (2^24 - 1) * 2^104: only 4 and 6 times 2^126 or 2^127 and 2, 3 times 2^127 exceed it.
                let overflows = want_m != 0 && want_e + (128 - want_m.leading_zeros() as i32) > 128;
                if overflows {
                    assert_eq!(
                        got,
                        if c & 8 == 0 { f32::INFINITY } else { f32::NEG_INFINITY },
                        "code {c} scale {scale}"
                    );
                    continue;
                }
                let (sign, m, e) = exact(got);
                assert_eq!((sign, normalised(m, e)), (c & 8 != 0, (want_m, want_e)), "code {c} scale {scale}");
            }
        }
        assert!((0..16).all(|c| decode_block(&[c; BLOCK_BYTES], SCALE_NAN)[0].is_nan()));
    }

    #[test]
    fn the_low_nibble_is_the_even_element() {
        let codes: [u8; BLOCK_BYTES] = std::array::from_fn(|i| ((2 * i) % 16) as u8 | (((2 * i + 1) % 16) as u8) << 4);
        let got = decode_block(&codes, 127);
        for (i, v) in got.iter().enumerate() {
            assert_eq!(v.to_bits(), E2M1[i % 16].to_bits());
        }
    }

    #[test]
    fn encode_returns_every_representable_block() {
        for scale in 0..=252u8 {
            let codes: [u8; BLOCK_BYTES] =
                std::array::from_fn(|i| ((2 * i) % 16) as u8 | (((2 * i + 1) % 16) as u8) << 4);
            let values = decode_block(&codes, scale);
            let (c, s) = encode_block(&values).unwrap();
            let again = decode_block(&c, s);
            assert_eq!(values.map(f32::to_bits), again.map(f32::to_bits), "scale {scale}");
        }
    }

    #[test]
    fn encode_returns_small_blocks_at_the_bottom_of_the_scale() {
        let mut values = [0f32; BLOCK];
        values[3] = f32::from_bits(0x0020_0000); // 2^-128 = 0.5 * 2^-127, the smallest magnitude of the format
        let (c, s) = encode_block(&values).unwrap();
        assert_eq!((c[1], s), (0x10, 0));
        assert_eq!(decode_block(&c, s), values);
    }

    #[test]
    fn ties_go_to_the_even_mantissa_and_large_values_saturate() {
        let cases = [
            (0.25, 0.0),
            (0.75, 1.0),
            (1.25, 1.0),
            (1.75, 2.0),
            (2.5, 2.0),
            (3.5, 4.0),
            (5.0, 4.0),
            (5.01, 6.0),
            (7.9, 6.0),
            (0.2500001, 0.5),
            (0.7499999, 0.5),
            (1.2500001, 1.5),
            (3.4999, 3.0),
            (-0.25, -0.0),
            (-5.0, -4.0),
        ];
        for (x, want) in cases {
            let mut values = [0f32; BLOCK];
            (values[0], values[1]) = (4.0, x); // 4.0 pins the shared scale to 2^0
            let (c, s) = encode_block(&values).unwrap();
            assert_eq!(decode_block(&c, s)[1].to_bits(), f32::to_bits(want), "{x}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let mut values = [1f32; BLOCK];
        values[7] = f32::NAN;
        assert_eq!(encode_block(&values), Err(7));
        assert_eq!(encode_block(&[0.0; BLOCK]), Ok(([0; BLOCK_BYTES], 127)));
    }
}
