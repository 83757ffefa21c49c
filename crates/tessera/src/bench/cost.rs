//! What a step cannot do without: bytes to read, operations to do, and so a time below which no machine gets.

use std::fmt;

use serde::Serialize;
use tessera_cuda::{Device, DeviceError, copy_bandwidth, matmul_rate};
use tessera_model::{Config, LayerType};

/// An MXFP4 block: 32 codes of 4 bits and a scale of 8, for each weight.
const MXFP4_BYTES: f64 = 17.0 / 32.0;
const BF16_BYTES: f64 = 2.0;

/// A step of rows that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub rows: usize,
    /// Positions before the step, of each row.
    pub start: usize,
    /// Of each row.
    pub tokens: usize,
    /// Vectors of logits, of all rows together.
    pub logits: usize,
}

/// Of one step, or of several together. Norms, biases and what a step hands on to itself are left out: they are less than
/// a hundredth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Matrices of attention, routers and, for logits, the vocabulary: each once.
    pub dense_bytes: f64,
    /// Experts that have a token, in expectation where routing is uniform.
    pub expert_bytes: f64,
    /// Rows of the embedding.
    pub embedding_bytes: f64,
    /// Keys and values that a row's tokens see.
    pub cache_bytes: f64,
    /// Of matrix products and attention, a multiplication and an addition being two.
    pub operations: f64,
}

/// What the machine was measured to do in the same run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes read and written, counted both.
    pub copy_gb_s: f64,
    /// None where the library is not found.
    pub cublas_tflop_s: Option<f64>,
}

impl Step {
    pub fn decode(rows: usize, start: usize) -> Self {
        Self { rows, start, tokens: 1, logits: rows }
    }

    pub fn cost(self, config: &Config) -> Cost {
        let tokens = (self.rows * self.tokens) as f64;
        let (layers, hidden) = (config.num_hidden_layers as f64, config.hidden_size as f64);
        let in_layer = hidden * (config.qkv_dim() + config.q_dim() + config.num_local_experts) as f64;
        let lm_head = hidden * config.vocab_size as f64;
        let expert = 3.0 * hidden * config.intermediate_size as f64; // gate, up, down
        let has_logits = if self.logits > 0 { 1.0 } else { 0.0 };
        let products = tokens * layers * (in_layer + config.num_experts_per_tok as f64 * expert);
        let pairs: usize = config.layer_types.iter().map(|&kind| self.pairs(config, kind)).sum();
        let keys: usize = config.layer_types.iter().map(|&kind| self.keys(config, kind)).sum();
        Cost {
            dense_bytes: BF16_BYTES * (layers * in_layer + has_logits * lm_head),
            expert_bytes: MXFP4_BYTES * expert * layers * active_experts(config, tokens),
            embedding_bytes: BF16_BYTES * tokens * hidden,
            cache_bytes: BF16_BYTES * (2 * config.kv_dim() * self.rows * keys) as f64,
            // A query meets a key, and its weight the value, in head_dim elements of each head.
            operations: 2.0 * (products + self.logits as f64 * lm_head)
                + 4.0 * (config.q_dim() * self.rows * pairs) as f64,
        }
    }

    /// Positions that a row's tokens see together.
    fn keys(self, config: &Config, kind: LayerType) -> usize {
        let end = self.start + self.tokens;
        match kind {
            LayerType::Full => end,
            LayerType::Sliding => end - (self.start + 1).saturating_sub(config.sliding_window),
        }
    }

    /// Pairs of a row's token and a position that it sees.
    fn pairs(self, config: &Config, kind: LayerType) -> usize {
        let seen = |position: usize| match kind {
            LayerType::Full => position + 1,
            LayerType::Sliding => (position + 1).min(config.sliding_window),
        };
        (self.start..self.start + self.tokens).map(seen).sum()
    }
}

/// Experts of a layer that so many tokens choose among them, if each chooses any `top_k` with the same probability.
fn active_experts(config: &Config, tokens: f64) -> f64 {
    let (experts, chosen) = (config.num_local_experts as f64, config.num_experts_per_tok as f64);
    experts * (1.0 - (1.0 - chosen / experts).powf(tokens))
}

impl Cost {
    /// Matrices alone.
    pub fn weight_bytes(&self) -> f64 {
        self.dense_bytes + self.expert_bytes
    }

    pub fn bytes(&self) -> f64 {
        self.dense_bytes + self.expert_bytes + self.embedding_bytes + self.cache_bytes
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.dense_bytes += other.dense_bytes;
        self.expert_bytes += other.expert_bytes;
        self.embedding_bytes += other.embedding_bytes;
        self.cache_bytes += other.cache_bytes;
        self.operations += other.operations;
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copying {:.0} GB/s, read and written; cuBLAS ", self.copy_gb_s)?;
        match self.cublas_tflop_s {
            Some(rate) => write!(f, "{rate:.0} TFLOP/s"),
            None => write!(f, "not found: libcublas.so.13 is not on LD_LIBRARY_PATH"),
        }
    }
}

impl Ceilings {
    pub fn measure(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            copy_gb_s: copy_bandwidth(device)? / 1e9,
            cublas_tflop_s: matmul_rate(device)?.map(|rate| rate / 1e12),
        })
    }

    /// Seconds that a step takes at least: reading at the rate of copies, or computing at the rate of cuBLAS.
    pub fn floor_s(&self, cost: &Cost) -> f64 {
        let reading = cost.bytes() / (self.copy_gb_s * 1e9);
        let computing = self.cublas_tflop_s.map_or(0.0, |rate| cost.operations / (rate * 1e12));
        reading.max(computing)
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::synth::Like;

    use super::*;

    const CEILINGS: Ceilings = Ceilings { copy_gb_s: 4000.0, cublas_tflop_s: Some(800.0) };

    #[track_caller]
    fn check(what: &str, found: f64, expect: f64) {
        assert!((found - expect).abs() <= 1e-6 * expect, "{what}: {found}, expected {expect}");
    }

    /// By hand, of 24 layers: q, k, v 5120 x 2880, o 2880 x 4096, router 32 x 2880; an expert 3 x 2880 x 2880.
    const IN_LAYER: f64 = 26_634_240.0;
    const LM_HEAD: f64 = 201_088.0 * 2_880.0;
    const EXPERT_BYTES: f64 = 13_219_200.0;

    #[test]
    fn one_token_of_the_20b() {
        let cost = Step::decode(1, 1023).cost(&Like::Gpt20b.config());
        check("dense", cost.dense_bytes, 2_436_710_400.0);
        check("experts", cost.expert_bytes, 1_269_043_200.0);
        check("embedding", cost.embedding_bytes, 5_760.0);
        // 12 layers see 1,024 positions, 12 see 128; 2,048 bytes each.
        check("cache", cost.cache_bytes, 12.0 * (1024.0 + 128.0) * 2048.0);
        check("bytes", cost.bytes(), 3_734_070_912.0);
        check("weights", cost.weight_bytes(), 3_705_753_600.0);
        let products = 24.0 * (IN_LAYER + 4.0 * 24_883_200.0) + LM_HEAD;
        check("operations", cost.operations, 2.0 * products + 4.0 * 4096.0 * 12.0 * (1024.0 + 128.0));
        check("floor", CEILINGS.floor_s(&cost), 3_734_070_912.0 / 4e12);
    }

    #[test]
    fn sixty_four_tokens_of_the_20b() {
        let config = Like::Gpt20b.config();
        let cost = Step::decode(64, 99).cost(&config);
        check("dense", cost.dense_bytes, 2_436_710_400.0);
        // 32 (1 - (7/8)^64) experts of each layer.
        check("experts", cost.expert_bytes, 24.0 * 31.993_782 * EXPERT_BYTES);
        check("embedding", cost.embedding_bytes, 64.0 * 5_760.0);
        // The window is not full yet.
        check("cache", cost.cache_bytes, 64.0 * 24.0 * 100.0 * 2048.0);
        let products = 64.0 * (24.0 * (IN_LAYER + 4.0 * 24_883_200.0) + LM_HEAD);
        check("operations", cost.operations, 2.0 * products + 64.0 * 4.0 * 4096.0 * 24.0 * 100.0);
        check("floor", CEILINGS.floor_s(&cost), cost.bytes() / 4e12);
    }

    #[test]
    fn a_prompt_of_the_20b_is_bound_by_operations() {
        let config = Like::Gpt20b.config();
        let cost = Step { rows: 1, start: 0, tokens: 8192, logits: 1 }.cost(&config);
        check("experts", cost.expert_bytes, 24.0 * 32.0 * EXPERT_BYTES);
        check("cache", cost.cache_bytes, 24.0 * 8192.0 * 2048.0);
        let full = 8192.0 * 8193.0 / 2.0;
        let sliding = 128.0 * 129.0 / 2.0 + (8192.0 - 128.0) * 128.0;
        let products = 8192.0 * 24.0 * (IN_LAYER + 4.0 * 24_883_200.0) + LM_HEAD;
        check("operations", cost.operations, 2.0 * products + 4.0 * 4096.0 * 12.0 * (full + sliding));
        check("floor", CEILINGS.floor_s(&cost), cost.operations / 800e12);
        let no_cublas = Ceilings { cublas_tflop_s: None, ..CEILINGS };
        check("floor", no_cublas.floor_s(&cost), cost.bytes() / 4e12);
        let inner = Step { rows: 1, start: 0, tokens: 8192, logits: 0 }.cost(&config);
        check("lm_head", cost.dense_bytes - inner.dense_bytes, 2.0 * LM_HEAD);
        let later = Step { rows: 1, start: 8192, tokens: 8192, logits: 1 }.cost(&config);
        check("cache", later.cache_bytes, 12.0 * 2048.0 * (16_384.0 + 8192.0 + 127.0));
    }
}
