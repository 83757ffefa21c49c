//! How far a stage's values are from the oracle's, and how far they may be.

use std::fmt;

use half::bf16;
use tessera_model::{Site, Stage};

use crate::args::Device;

/// How far the fast path's values were from the oracle's.
#[derive(Clone, Debug, Default)]
pub struct Measure {
    pub count: usize,
    pub max_abs: f32,
    /// Largest error relative to its scale: see [`measure`].
    pub max_relative: f32,
    /// Sums of squares of the errors and of the oracle's values (without the residual stream).
    pub square_error: f64,
    pub square: f64,
    /// Where `max_relative` was.
    pub worst: Place,
    pub not_finite: Option<Place>,
    /// What `max_relative` may be.
    pub tolerance: f32,
}

/// One value of one stage.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub step: String,
    pub row: usize,
    pub column: usize,
    pub expert: Option<usize>,
    pub value: f32,
    pub expected: f32,
}

/// A value that fails, and why.
#[derive(Clone, Debug)]
pub struct Finding {
    pub site: Site,
    pub place: Place,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    NotFinite,
    Differs { relative: f32, tolerance: f32 },
}

/// How a stage is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standard {
    /// Largest error that the stage may show, relative to the scale that [`measure`] uses.
    pub tolerance: f32,
    pub rounding: Rounding,
}

/// What the fast path rounds a stage's result to, by its nature: such rounding is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Float32,
    /// Of what the stage itself computed, without the residual stream that it is added to.
    Bf16,
}

/// Of experts by themselves.
pub fn of_experts(device: Device, stage: Stage) -> Standard {
    match device {
        Device::Cpu => cpu_standard(stage),
        Device::Cuda => cuda_experts_standard(stage),
    }
}

/// Of whole models.
pub fn of_models(device: Device, stage: Stage) -> Standard {
    match device {
        Device::Cpu => cpu_standard(stage),
        Device::Cuda => cuda_model_standard(stage),
    }
}

fn cpu_standard(stage: Stage) -> Standard {
    Standard { tolerance: cpu_tolerance(stage), rounding: Rounding::Float32 }
}

/// About ten times the largest error that was measured with AVX-512 on `fixtures/parity` and on a synthetic checkpoint of
/// gpt-oss-20b's shapes (in brackets).
///
/// One step of one MXFP4 code moves a sum over 2,880 terms by 4e-3 of its row's rms.
fn cpu_tolerance(stage: Stage) -> f32 {
    match stage {
        Stage::Embed => 0.0,                                                // [0]
        Stage::AttnNorm | Stage::MlpNorm | Stage::FinalNorm => 1e-5,        // [0]
        Stage::RopeStore | Stage::Route | Stage::Swiglu => 1e-5,            // [3e-7]
        Stage::Qkv | Stage::Router | Stage::Attend | Stage::Logits => 1e-4, // [8e-6]
        Stage::GateUp | Stage::Down => 5e-5,                                // [4e-6]
        Stage::AttnOut | Stage::Combine => 3e-4,                            // [3e-5]
    }
}

/// The experts on the GPU: ten times and more what is to be expected (in brackets) of sums of 2,880 products that are cut off
/// to float32 after every sixteenth, as tensor cores do it: emulated with random weights and with activations like the
/// probe's. On an H100 the norm of down's errors was 1.8e-6 of its result's; emulated, it is 1.5e-6 to 4.4e-6.
fn cuda_experts_standard(stage: Stage) -> Standard {
    let (tolerance, rounding) = match stage {
        Stage::Swiglu => (2e-4, Rounding::Bf16), // [3e-6], more where small gates meet large ups
        Stage::Down => (2e-4, Rounding::Float32), // [1.3e-5]
        Stage::Combine => (3e-4, Rounding::Bf16), // [3e-5], as on the CPU: it is the residual's float32
        other => (cpu_tolerance(other), Rounding::Float32), // route: expf's last bits, [3e-7]
    };
    Standard { tolerance, rounding }
}

/// Whole models on the GPU, where the residual stream and the sums are float32, and what is multiplied is bf16: in attention
/// also the weights of values, whose rounding by up to 2^-8 of each is what its tolerance is for.
fn cuda_model_standard(stage: Stage) -> Standard {
    let (tolerance, rounding) = match stage {
        Stage::AttnNorm | Stage::MlpNorm | Stage::FinalNorm | Stage::RopeStore => (1e-5, Rounding::Bf16), // [5e-7]
        Stage::Qkv | Stage::Router | Stage::Logits => (2e-4, Rounding::Float32), // [1.3e-5], as down of the experts
        Stage::Attend => (3e-2, Rounding::Bf16), // [1e-2], emulated with 1 to 150 keys of random scores
        Stage::Combine => (3e-4, Rounding::Float32), // [3e-5]
        other => return cuda_experts_standard(other),
    };
    Standard { tolerance, rounding }
}

impl Rounding {
    /// How far a number may be from `value`, which was rounded, for that reason alone.
    fn slack(self, value: f32) -> f32 {
        match self {
            Rounding::Float32 => 0.0,
            Rounding::Bf16 => {
                // Half the distance to the next bf16 away from zero: 2^-8 of the power of two at or below.
                let exponent = bf16::from_f32(value).to_f32().to_bits() & 0x7f80_0000;
                f32::from_bits(exponent).max(f32::MIN_POSITIVE) / 256.0
            }
        }
    }
}

/// A residual of 256 times a row's rms counts as much as the row itself: adding to it in float32 costs
/// 2^-24 of it, which the tolerance must not see.
const RESIDUAL_WEIGHT: f32 = 1.0 / 256.0;

/// Compares `values` with `expected`, `[rows, width]`.
///
/// An error's scale is the larger of the expected value and its row's rms, both without `base`: the residual stream that
/// the stage added to (empty if it did not), which would otherwise hide what the stage itself computed. What may come from
/// the stage's rounding is no error.
pub fn measure(values: &[f32], expected: &[f32], base: &[f32], width: usize, standard: Standard) -> Measure {
    let mut m = Measure { count: values.len(), tolerance: standard.tolerance, ..Measure::default() };
    let mut added = vec![0f32; width];
    for (row, (values, expected)) in values.chunks_exact(width).zip(expected.chunks_exact(width)).enumerate() {
        added.copy_from_slice(expected);
        let base = base.chunks_exact(width).nth(row);
        added.iter_mut().zip(base.unwrap_or(&[])).for_each(|(a, b)| *a -= b);
        let square: f64 = added.iter().map(|&a| f64::from(a).powi(2)).sum();
        let rms = (square / width as f64).sqrt() as f32;
        m.square += square;
        for column in 0..width {
            let place = || Place { row, column, value: values[column], expected: expected[column], ..Place::default() };
            if !(values[column].is_finite() && expected[column].is_finite()) {
                m.not_finite.get_or_insert_with(place);
                continue;
            }
            let own = values[column] - base.map_or(0.0, |base| base[column]);
            let slack = standard.rounding.slack(own);
            let error = ((values[column] - expected[column]).abs() - slack).max(0.0);
            m.square_error += f64::from(error).powi(2);
            m.max_abs = m.max_abs.max(error);
            let scale = rms.max(added[column].abs()).max(expected[column].abs() * RESIDUAL_WEIGHT);
            let relative = if error == 0.0 { 0.0 } else { error / scale.max(f32::MIN_POSITIVE) };
            if relative > m.max_relative {
                (m.max_relative, m.worst) = (relative, place());
            }
        }
    }
    m
}

impl Measure {
    /// Root of the mean square error, relative to that of the oracle's values.
    pub fn rms_relative(&self) -> f64 {
        if self.square_error == 0.0 { 0.0 } else { (self.square_error / self.square).sqrt() }
    }

    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.square_error += other.square_error;
        self.square += other.square;
        if other.max_relative > self.max_relative {
            (self.max_relative, self.worst) = (other.max_relative, other.worst);
        }
        self.not_finite = self.not_finite.take().or(other.not_finite);
        self.tolerance = other.tolerance;
    }

    pub fn fails(&self) -> bool {
        self.not_finite.is_some() || self.max_relative > self.tolerance
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, row {}", self.step, self.row)?;
        if let Some(expert) = self.expert {
            write!(f, " (expert {expert})")?;
        }
        write!(f, ", column {}: {} where the oracle has {}", self.column, self.value, self.expected)
    }
}

/// The one line that names what failed.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { site, place, kind } = self;
        match kind {
            Kind::NotFinite if !place.expected.is_finite() => {
                write!(f, "{site} is not finite, even in the oracle, so the weights are broken: {place}")
            }
            Kind::NotFinite => write!(f, "{site} is not finite: {place}"),
            Kind::Differs { relative, tolerance } => {
                write!(f, "{site} differs: {place}: {relative:.2e} of the row's scale, tolerance {tolerance:.1e}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BF16: Standard = Standard { tolerance: 1e-4, rounding: Rounding::Bf16 };

    /// The largest error of one row, without what rounding may have done.
    fn relative(values: &[f32], expected: &[f32], base: &[f32]) -> f32 {
        measure(values, expected, base, values.len(), BF16).max_relative
    }

    #[test]
    fn what_rounds_to_the_value_is_no_error() {
        for expected in [1.0, 1.003, 0.999_9, -1.99, 3.0e-7, 255.9, -0.1, 1.003_906] {
            let value = bf16::from_f32(expected).to_f32();
            assert_eq!(relative(&[value, 1.0], &[expected, 1.0], &[]), 0.0, "{expected}");
            let next = bf16::from_bits(bf16::from_f32(expected).to_bits() + 2).to_f32();
            assert!(relative(&[next, 1e-9], &[expected, 1e-9], &[]) > 1e-4, "{expected}");
        }
    }

    #[test]
    fn an_error_is_what_rounding_leaves_of_it() {
        // bf16 around 1 are 2^-7 apart: 2^-8 of the 0.01 may be rounding.
        let left = relative(&[1.0], &[1.01], &[]);
        assert!((left - (0.01 - 1.0 / 256.0) / 1.01).abs() < 1e-6, "{left}");
    }

    #[test]
    fn the_residual_is_not_rounded() {
        let base = [1000.0, -3.0];
        let own = [1.003, 0.017];
        let shown = |i: usize| bf16::from_f32(own[i]).to_f32() + base[i];
        let expected = [own[0] + base[0], own[1] + base[1]];
        assert!(relative(&[shown(0), shown(1)], &expected, &base) < 1e-4);
        assert!(relative(&[shown(0) + 0.1, shown(1)], &expected, &base) > 1e-2);
    }
}
