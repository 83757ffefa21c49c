//! What sampling means, for every backend: temperature, then top-k, then top-p, then one seeded draw.

use crate::batch::Token;

/// How a row chooses its next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the largest logit (the lowest id among equals).
    pub temperature: f32,
    /// Keep the `top_k` largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose probabilities sum to at least `top_p`; 1 keeps all.
    pub top_p: f32,
    /// With the position of the token it decides the draw, in any batch.
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };
}

/// Chooses the token that stands at `position`. Logits `[vocab]` must be finite.
///
/// Ties are broken by the lower id, so that a choice never depends on the order of a sort.
pub fn sample(logits: &[f32], sampling: &Sampling, position: usize) -> Token {
    if sampling.temperature <= 0.0 || sampling.top_k == 1 {
        return argmax(logits);
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (f64::from(logit - max) / f64::from(sampling.temperature)).exp();
    let draw = uniform(sampling.seed, position as u64);
    if sampling.top_k == 0 && sampling.top_p >= 1.0 {
        return draw_from(logits.iter().enumerate().map(|(i, &l)| (i, weight(l))), draw);
    }
    let kept = largest(logits, if sampling.top_k == 0 { logits.len() } else { sampling.top_k });
    let kept = nucleus(&kept, sampling.top_p, &weight);
    draw_from(kept.iter().map(|&(i, l)| (i, weight(l))), draw)
}

/// The `n` largest logits, or all if there are fewer, with their tokens: descending, of equal ones the lower token first.
pub fn largest(logits: &[f32], n: usize) -> Vec<(usize, f32)> {
    let mut kept: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    // Adding 0 makes -0 and 0 the equals that they are.
    let by_logit = |a: &(usize, f32), b: &(usize, f32)| (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0));
    if n < kept.len() {
        kept.select_nth_unstable_by(n, by_logit);
        kept.truncate(n);
    }
    kept.sort_unstable_by(by_logit);
    kept
}

/// Index of the largest value; the lowest among equals.
pub fn argmax(logits: &[f32]) -> Token {
    let mut best = 0;
    for (i, &l) in logits.iter().enumerate() {
        if l > logits[best] {
            best = i;
        }
    }
    best as Token
}

/// The shortest prefix of `sorted` whose share of the total weight reaches `top_p`; at least one entry.
fn nucleus<'a>(sorted: &'a [(usize, f32)], top_p: f32, weight: &impl Fn(f32) -> f64) -> &'a [(usize, f32)] {
    if top_p >= 1.0 {
        return sorted;
    }
    let total: f64 = sorted.iter().map(|&(_, l)| weight(l)).sum();
    let mut sum = 0.0;
    for (n, &(_, l)) in sorted.iter().enumerate() {
        sum += weight(l);
        if sum >= f64::from(top_p) * total {
            return &sorted[..n + 1];
        }
    }
    sorted
}

/// The entry at which the running sum of weights passes `draw` times their total.
fn draw_from(weights: impl Iterator<Item = (usize, f64)> + Clone, draw: f64) -> Token {
    let target = draw * weights.clone().map(|(_, w)| w).sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (i, w) in weights {
        sum += w;
        if w > 0.0 {
            last = i;
        }
        if sum > target {
            return i as Token;
        }
    }
    last as Token // rounding left the target a hair above the sum
}

/// A number in [0, 1) that depends on seed and position alone: two rounds of SplitMix64 (Steele et al. 2014).
fn uniform(seed: u64, position: u64) -> f64 {
    let mixed = splitmix64(splitmix64(seed) ^ position.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -1.0];

    fn frequencies(sampling: Sampling) -> [f64; 5] {
        const DRAWS: usize = 40_000;
        let mut counts = [0f64; 5];
        for position in 0..DRAWS {
            counts[sample(&LOGITS, &sampling, position) as usize] += 1.0 / DRAWS as f64;
        }
        counts
    }

    fn check(sampling: Sampling, kept: &[usize]) {
        let weight = |i: usize| (f64::from(LOGITS[i]) / f64::from(sampling.temperature)).exp();
        let total: f64 = kept.iter().map(|&i| weight(i)).sum();
        let got = frequencies(sampling);
        for i in 0..5 {
            let want = if kept.contains(&i) { weight(i) / total } else { 0.0 };
            assert!((got[i] - want).abs() < 0.01, "{sampling:?}: token {i}: {} of draws, expected {want}", got[i]);
            assert!(want > 0.0 || got[i] == 0.0);
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_the_largest() {
        assert_eq!(sample(&LOGITS, &Sampling::GREEDY, 3), 1);
        assert_eq!(sample(&LOGITS, &Sampling { temperature: 1.0, top_k: 1, ..Sampling::GREEDY }, 3), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 7 };
        check(plain, &[0, 1, 2, 3, 4]);
        check(Sampling { temperature: 0.5, ..plain }, &[0, 1, 2, 3, 4]);
        check(Sampling { top_k: 2, ..plain }, &[1, 3]);
        check(Sampling { top_k: 3, ..plain }, &[1, 2, 3]);
        check(Sampling { top_p: 0.5, ..plain }, &[1, 3]); // token 1 alone has 0.392
        check(Sampling { top_p: 0.39, ..plain }, &[1]);
        check(Sampling { top_k: 3, top_p: 0.9, ..plain }, &[1, 2, 3]);
    }

    #[test]
    fn the_seed_and_the_position_decide() {
        let s = |seed| Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed };
        let run = |seed| (0..64).map(|p| sample(&LOGITS, &s(seed), p)).collect::<Vec<_>>();
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
