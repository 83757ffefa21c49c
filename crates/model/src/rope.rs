//! YaRN rotary embedding (Peng et al. 2023, arXiv 2309.00071), written once for every backend.

use crate::config::RopeConfig;

/// Frequencies and the concentration that multiplies cosine and sine.
#[derive(Clone, Debug)]
pub struct YarnTable {
    pub inv_freq: Vec<f32>, // [head_dim / 2]
    /// `0.1 ln(factor) + 1`, on cosine and sine alike, so that attention scores carry its square.
    pub concentration: f32,
}

impl YarnTable {
    pub fn new(rope: &RopeConfig, head_dim: usize) -> Self {
        let (low, high) = ramp_ends(rope, head_dim);
        let inv_freq = (0..head_dim / 2)
            .map(|i| {
                let extrapolation = rope.theta.powf(-2.0 * i as f64 / head_dim as f64);
                let interpolation = extrapolation / rope.factor;
                let mask = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (interpolation * (1.0 - mask) + extrapolation * mask) as f32
            })
            .collect();
        let concentration = if rope.factor > 1.0 { 0.1 * rope.factor.ln() + 1.0 } else { 1.0 };
        Self { inv_freq, concentration: concentration as f32 }
    }

    /// Writes the scaled cosines and sines of a position, `[head_dim / 2]` each. The angle is formed in float32, as the
    /// reference implementations do.
    pub fn cos_sin(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((c, s), f) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
            let angle = position as f32 * f;
            *c = angle.cos() * self.concentration;
            *s = angle.sin() * self.concentration;
        }
    }
}

/// The dimensions between which YaRN blends from extrapolation to interpolation.
fn ramp_ends(rope: &RopeConfig, head_dim: usize) -> (f64, f64) {
    let dim_of = |rotations: f64| {
        let turns = rope.original_max_position_embeddings as f64 / (rotations * 2.0 * std::f64::consts::PI);
        head_dim as f64 * turns.ln() / (2.0 * rope.theta.ln())
    };
    let (low, high) = (dim_of(rope.beta_fast), dim_of(rope.beta_slow));
    let (low, high) = if rope.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
    // Equal ends would divide by zero; the reference nudges them apart by the same amount.
    if low == high { (low, high + 0.001) } else { (low, high) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> RopeConfig {
        RopeConfig {
            theta: 150_000.0,
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: 4096,
            truncate: false,
        }
    }

    #[test]
    fn frequencies_equal_the_published_ones() {
        let (low, high) = ramp_ends(&published(), 64);
        assert!((low - 8.092779115512402).abs() < 1e-9 && (high - 17.39802450158856).abs() < 1e-9, "{low} {high}");
        let table = YarnTable::new(&published(), 64);
        assert_eq!(table.concentration, 1.346_573_6);
        let expected = [
            (0, 1.0),
            (1, 0.68904431),
            (8, 0.05081327),
            (9, 0.03170570),
            (12, 0.00679496),
            (17, 1.2931870e-4),
            (18, 3.8308812e-5),
            (31, 3.0235114e-7),
        ];
        for (i, want) in expected {
            let got = f64::from(table.inv_freq[i]);
            assert!((got / want - 1.0).abs() < 1e-6, "inv_freq[{i}] = {got}, expected {want}");
        }
    }

    #[test]
    fn position_zero_is_the_concentration_alone() {
        let table = YarnTable::new(&published(), 64);
        let (mut cos, mut sin) = ([0f32; 32], [1f32; 32]);
        table.cos_sin(0, &mut cos, &mut sin);
        assert!(cos.iter().all(|&c| c == table.concentration) && sin.iter().all(|&s| s == 0.0));
    }
}
