//! What MXFP4 and BF16 mean, from their definitions, and numbers that look random.

/// E2M1: OCP Microscaling formats 1.0, table 5.
const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// The codes of 0 and 1.
pub const ZERO: u8 = 0;
pub const ONE: u8 = 2;
/// The scale byte of 1: E8M0 is `2^(byte - 127)`.
pub const SCALE_ONE: u8 = 127;

/// The weight of a code, its low four bits, under a scale byte; exact.
pub fn weight(code: u8, scale: u8) -> f64 {
    E2M1[usize::from(code & 15)] * power(i32::from(scale) - 127)
}

/// `2^exponent`, which must be that of a normal number.
pub fn power(exponent: i32) -> f64 {
    assert!((-1022..=1023).contains(&exponent), "{exponent}");
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

pub fn from_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// Rounded to nearest, ties to even, with subnormals. All that are not numbers become one.
pub fn to_bf16(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    if value.is_nan() {
        return 0x7FFF;
    }
    if value.is_infinite() {
        return sign | 0x7F80;
    }
    let exponent = ((value.abs().to_bits() >> 52) as i32 - 1023).max(-126);
    // In units of the last place. A carry runs into the exponent, and from the largest one to infinity.
    let significand = (value.abs() * power(7 - exponent)).round_ties_even() as i32;
    let bits = if significand < 128 { significand } else { ((exponent + 127) << 7) + significand - 128 };
    sign | bits.min(0x7F80) as u16
}

/// Equal bits, or both not a number.
pub fn same_bf16(a: u16, b: u16) -> bool {
    a == b || (from_bf16(a).is_nan() && from_bf16(b).is_nan())
}

/// A number that looks random, always the same for one `index`: SplitMix64.
pub fn noise(index: usize) -> u64 {
    let z = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{from_bf16, power, same_bf16, to_bf16, weight};

    #[test]
    fn every_bf16_is_given_back_and_halves_go_to_even() {
        for bits in 0..=u16::MAX {
            assert!(same_bf16(to_bf16(from_bf16(bits)), bits), "{bits:#06x}");
            let (this, next) = (from_bf16(bits), from_bf16(bits.wrapping_add(1)));
            if bits & 0x7FFF < 0x7F7F {
                assert_eq!(to_bf16((this + next) / 2.0), bits + (bits & 1), "{bits:#06x}");
            }
        }
        assert_eq!(to_bf16(power(128)), 0x7F80);
    }

    #[test]
    fn weights_are_what_the_format_says() {
        assert_eq!(weight(2, 127), 1.0);
        assert_eq!(weight(7, 128), 12.0);
        assert_eq!(weight(0x3F, 126), -3.0);
        assert_eq!(weight(1, 0), f64::from(f32::from_bits(1 << 21)));
        assert_eq!((power(0), power(-3), power(10)), (1.0, 0.125, 1024.0));
    }
}
