//! Log-probabilities of tokens: those that the model itself gives, before temperature, top-k and top-p.

use tessera_model::Token;
use tessera_model::sampling::largest;

/// A generated token's, and those of the likeliest at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    pub logprob: f64,
    /// Descending; of equal ones the lower id first.
    pub top: Vec<(Token, f64)>,
}

impl Logprobs {
    /// From the finite logits `[vocab]` that `token` was chosen from: `logit - ln(sum of exp(logits))`, in float64.
    pub fn of(logits: &[f32], token: Token, n_top: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let of = |logit: f32| f64::from(logit) - log_sum;
        let top = largest(logits, n_top).into_iter().map(|(token, logit)| (token as Token, of(logit))).collect();
        Self { logprob: of(logits[token as usize]), top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_softmax() {
        // exp: 1, 2, 4, 1, of 8.
        let logits = [0.0, 2_f32.ln(), 4_f32.ln(), 0.0];
        let Logprobs { logprob, top } = Logprobs::of(&logits, 3, 3);
        assert!((logprob - (1.0_f64 / 8.0).ln()).abs() < 1e-6, "{logprob}");
        assert_eq!(top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [2, 1, 0]);
        for ((_, found), expect) in top.iter().zip([0.5_f64, 0.25, 0.125]) {
            assert!((found - expect.ln()).abs() < 1e-6, "{found}");
        }
        assert_eq!(Logprobs::of(&logits, 0, 0).top, []);
        assert_eq!(Logprobs::of(&logits, 0, 20).top.len(), 4);
        // Far apart, the sum neither overflows nor vanishes.
        assert_eq!(Logprobs::of(&[3e38, -3e38], 0, 1), Logprobs { logprob: 0.0, top: vec![(0, 0.0)] });
    }
}
