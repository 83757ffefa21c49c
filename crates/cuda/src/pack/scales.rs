//! From scale bytes to the exponent fields that the device multiplies by.

use tessera_model::mxfp4::SCALE_NAN;

use super::PackError;

/// The largest scale byte whose field, `s + 126`, is that of a finite BF16.
const HIGHEST: u8 = 128;
/// How far below the shift a scale byte may be: products stay multiples of 2^-133, the smallest BF16. The smallest
/// magnitude of a code is 1/2.
const BELOW: u8 = 5;

/// A power of two that is taken out of a tensor's scales, so that the largest can be represented, and that its products
/// must be multiplied by afterwards.
///
/// A code at home is worth E2M1 times 2^-126, so a scale byte `s`, 2^(s - 127), needs the multiplier 2^(s - 1), whose
/// BF16 exponent field is `s + 126`. That ends at `s = 128`, weights of 12. The shift is what the largest scale byte has
/// above that, in practice 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleShift(u8);

impl ScaleShift {
    /// The shift of a tensor: `scales` `[rows, blocks]`, of one expert or of several.
    pub fn of(scales: &[u8], blocks: usize) -> Result<Self, PackError> {
        let highest = scales.iter().copied().max().unwrap_or(0);
        if highest == SCALE_NAN {
            return Err(first_nan(scales, blocks));
        }
        let shift = Self(highest.saturating_sub(HIGHEST));
        shift.check(scales, blocks)?;
        Ok(shift)
    }

    /// The exponent `c` of the factor 2^c that products are short of.
    pub fn exponent(self) -> u32 {
        u32::from(self.0)
    }

    /// 2^c.
    pub fn factor(self) -> f32 {
        f32::from_bits((u32::from(self.0) + 127) << 23)
    }

    /// The smallest scale byte that is exact under every code; padding has it.
    pub fn lowest(self) -> u8 {
        self.0.saturating_sub(BELOW)
    }

    /// The largest one.
    pub fn highest(self) -> u8 {
        HIGHEST + self.0
    }

    /// The exponent field of a scale byte between [`ScaleShift::lowest`] and [`ScaleShift::highest`].
    #[inline(always)]
    pub fn field(self, scale: u8) -> u8 {
        debug_assert!((self.lowest()..=self.highest()).contains(&scale));
        scale.wrapping_add(self.field_offset())
    }

    /// What [`ScaleShift::field`] adds to a scale byte, modulo 256.
    pub(crate) fn field_offset(self) -> u8 {
        126_u8.wrapping_sub(self.0)
    }

    /// The scale byte of a field: the inverse of [`ScaleShift::field`].
    #[inline(always)]
    pub fn scale(self, field: u8) -> u8 {
        field.wrapping_sub(126).wrapping_add(self.0)
    }

    /// Whether all of `scales`, `[rows, blocks]`, have fields.
    pub(super) fn check(self, scales: &[u8], blocks: usize) -> Result<(), PackError> {
        let (lowest, highest) = (self.lowest(), self.highest());
        let (min, max) = scales.iter().fold((255, 0), |(min, max), &s| (s.min(min), s.max(max)));
        if max == SCALE_NAN {
            return Err(first_nan(scales, blocks));
        }
        if min >= lowest && max <= highest {
            return Ok(());
        }
        let outside = |s: &u8| !(lowest..=highest).contains(s);
        let i = scales.iter().position(outside).expect("the least or the largest is outside");
        Err(PackError::ScaleSpan { row: i / blocks, block: i % blocks, scale: scales[i], lowest, highest })
    }
}

fn first_nan(scales: &[u8], blocks: usize) -> PackError {
    let i = scales.iter().position(|&s| s == SCALE_NAN).expect("the caller has seen one");
    PackError::ScaleNan { row: i / blocks, block: i % blocks }
}
