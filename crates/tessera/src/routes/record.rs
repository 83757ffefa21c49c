//! The choices of every layer, as the trace shows them, and how they load the experts.

use anyhow::bail;
use serde::Serialize;
use tessera_model::{Config, Site, Stage, Trace};

/// An expert that a token was sent to, and its weight in the sum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Choice {
    pub expert: usize,
    pub weight: f32,
}

/// What the routers chose, for every token that went through the model.
pub struct Routes {
    pub n_experts: usize,
    pub top_k: usize,
    /// Each token's choices, the largest weight first.
    layers: Vec<Vec<Choice>>, // [layers][tokens * top_k]
    /// Of the layer that is being computed.
    router: Vec<f32>, // [tokens, experts]
}

/// How one layer's choices are spread over its experts.
pub struct Load {
    /// Each expert's share of the choices.
    pub shares: Vec<f64>, // [experts]
}

impl Routes {
    pub fn new(config: &Config) -> Self {
        Self {
            n_experts: config.num_local_experts,
            top_k: config.num_experts_per_tok,
            layers: vec![Vec::new(); config.num_hidden_layers],
            router: Vec::new(),
        }
    }

    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    pub fn n_tokens(&self) -> usize {
        self.layers.first().map_or(0, |choices| choices.len() / self.top_k)
    }

    /// Each token's choices, the largest weight first.
    pub fn by_token(&self, layer: usize) -> impl Iterator<Item = &[Choice]> {
        self.layers[layer].chunks_exact(self.top_k)
    }

    pub fn load(&self, layer: usize) -> Load {
        let choices = &self.layers[layer];
        let mut counts = vec![0u64; self.n_experts];
        choices.iter().for_each(|choice| counts[choice.expert] += 1);
        Load { shares: counts.iter().map(|&n| n as f64 / choices.len().max(1) as f64).collect() }
    }

    /// Forgets all tokens but the last `n`.
    pub fn keep_last(&mut self, n: usize) {
        for choices in &mut self.layers {
            choices.drain(..choices.len().saturating_sub(n.saturating_mul(self.top_k)));
        }
    }

    /// # Errors
    /// When a weight is not a number, which makes the choice meaningless; the message names the first layer.
    pub fn check_finite(&self) -> anyhow::Result<()> {
        let broken = |choices: &Vec<Choice>| choices.iter().any(|choice| !choice.weight.is_finite());
        if let Some(layer) = self.layers.iter().position(broken) {
            bail!(
                "the router of layer {layer} gives weights that are not finite, so its choice means nothing; \
                 `tessera verify MODEL` names the stage where it begins"
            );
        }
        Ok(())
    }
}

impl Trace for Routes {
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]) {
        match (site.stage, site.layer) {
            (Stage::Router, _) => {
                self.router.clear();
                self.router.extend_from_slice(values);
            }
            (Stage::Route, Some(layer)) => {
                for (weights, logits) in values.chunks_exact(width).zip(self.router.chunks_exact(width)) {
                    self.layers[layer].extend(choices(weights, logits, self.top_k));
                }
            }
            _ => (),
        }
    }
}

/// The experts with the largest weights. Those that were not chosen have the weight 0, but a chosen one can have it, too,
/// when the softmax underflows: then the logits, and among equal ones the lower id, say which it is.
fn choices(weights: &[f32], logits: &[f32], top_k: usize) -> Vec<Choice> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    // Without its sign a weight that is not a number comes before all others: it was chosen, and is to be found. Adding 0
    // makes -0 and 0 the equals that they are.
    let key = |e: usize| (weights[e].abs(), logits[e] + 0.0);
    order.sort_by(|&a, &b| {
        let ((weight_a, logit_a), (weight_b, logit_b)) = (key(a), key(b));
        weight_b.total_cmp(&weight_a).then(logit_b.total_cmp(&logit_a)).then(a.cmp(&b))
    });
    order.into_iter().take(top_k).map(|expert| Choice { expert, weight: weights[expert] }).collect()
}

impl Load {
    /// The expert with the most choices (the lower id among equals), and its share.
    pub fn busiest(&self) -> (usize, f64) {
        let larger = |best: (usize, f64), (expert, &share)| if share > best.1 { (expert, share) } else { best };
        self.shares.iter().enumerate().fold((0, 0.0), larger)
    }

    /// How many times its even share the busiest expert has; 1 is perfect balance.
    pub fn max_over_mean(&self) -> f64 {
        self.busiest().1 * self.shares.len() as f64
    }

    pub fn never_chosen(&self) -> usize {
        self.shares.iter().filter(|share| **share == 0.0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(weights: &[f32], logits: &[f32], top_k: usize, expect: &[usize]) {
        let got: Vec<usize> = choices(weights, logits, top_k).iter().map(|choice| choice.expert).collect();
        assert_eq!(got, expect, "{weights:?} {logits:?}");
    }

    #[test]
    fn the_largest_weight_comes_first_and_logits_part_weights_of_zero() {
        check(&[0.0, 0.3, 0.0, 0.7], &[1.0, 2.0, 1.5, 3.0], 2, &[3, 1]);
        check(&[0.5, 0.0, 0.5, 0.0], &[1.0, 0.0, 1.0, 0.0], 2, &[0, 2]);
        check(&[0.0, 0.0, 1.0, 0.0], &[-900.0, -300.0, 0.0, -200.0], 3, &[2, 3, 1]);
        check(&[0.0, 0.0, 1.0, 0.0], &[-200.0, -0.0, 300.0, 0.0], 3, &[2, 1, 3]);
        check(&[0.0, -f32::NAN, 0.0, f32::NAN], &[1.0, f32::INFINITY, 0.0, f32::INFINITY], 2, &[1, 3]);
    }

    #[test]
    fn loads_are_shares() {
        let load = Load { shares: vec![0.0, 0.25, 0.5, 0.25] };
        assert_eq!((load.busiest(), load.max_over_mean(), load.never_chosen()), ((2, 0.5), 2.0, 1));
    }
}
