//! Attention in float64, from its definition.

use super::rig::Shape;
use crate::random::Random;

/// What one sequence has at each position: numbers that bf16 holds, as float32.
pub struct Sequence {
    pub q: Vec<f32>, // [positions, heads, head_dim]
    pub k: Vec<f32>, // [positions, kv_heads, head_dim]
    pub v: Vec<f32>, // the same
}

impl Sequence {
    /// Scores of about normal size 1.2.
    pub fn random(shape: Shape, n_positions: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        // Drawn from a table: some sequences are long.
        let table: Vec<f64> = (0..1 << 14).map(|_| random.normal()).collect();
        let mut values = |n: usize, scale: f64| -> Vec<f32> {
            let scaled: Vec<f32> = table.iter().map(|x| half::bf16::from_f64(scale * x).to_f32()).collect();
            (0..n).map(|_| scaled[random.next() as usize % scaled.len()]).collect()
        };
        let kv_dim = shape.kv_heads * shape.head_dim;
        Self {
            q: values(n_positions * shape.heads * shape.head_dim, 1.2),
            k: values(n_positions * kv_dim, 1.0),
            v: values(n_positions * kv_dim, 1.0),
        }
    }
}

/// A head's result for one token.
pub struct Head {
    pub out: Vec<f64>, // [head_dim]
    /// The same with each value's magnitude in its place: what rounding errors are measured by.
    pub magnitude: Vec<f64>,
}

/// `softmax([q k / sqrt(head_dim), sink]) [v, 0]` of the query at `position` over the last `window` keys.
pub fn attend(shape: Shape, of: &Sequence, position: usize, head: usize, window: Option<usize>, sink: f32) -> Head {
    let dim = shape.head_dim;
    let q = &of.q[(position * shape.heads + head) * dim..][..dim];
    let kv = |from: &[f32], key: usize| -> Vec<f64> {
        let at = (key * shape.kv_heads + head / (shape.heads / shape.kv_heads)) * dim;
        from[at..at + dim].iter().map(|&x| f64::from(x)).collect()
    };
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let score = |key: usize| {
        let dot: f64 = q.iter().zip(kv(&of.k, key)).map(|(&q, k)| f64::from(q) * k).sum();
        dot / (dim as f64).sqrt()
    };
    let scores: Vec<f64> = (first..=position).map(score).collect();
    let largest = scores.iter().copied().fold(f64::from(sink), f64::max);
    let total = (f64::from(sink) - largest).exp() + scores.iter().map(|score| (score - largest).exp()).sum::<f64>();
    let mut head = Head { out: vec![0.0; dim], magnitude: vec![0.0; dim] };
    for (key, score) in (first..=position).zip(scores) {
        let weight = (score - largest).exp() / total;
        for (d, v) in kv(&of.v, key).into_iter().enumerate() {
            head.out[d] += weight * v;
            head.magnitude[d] += weight * v.abs();
        }
    }
    head
}
