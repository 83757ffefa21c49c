//! The models that `tessera synth --like` knows.

use crate::config::{Config, HARMONY_STOP_IDS, HARMONY_VOCAB_SIZE, LayerType, RopeConfig};

/// A named model shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like {
    Gpt20b,
    Gpt120b,
    /// Small enough for a test's every step: 4 layers, 8 experts, window 16.
    Tiny,
    /// Inner dimensions that are multiples of 32 but not of 64, and an odd vocabulary.
    TinyOdd,
    /// Top-3 of 6 experts, three layers, one kv head.
    TinyTop3,
    /// Top-4 of 128 experts.
    TinyWide,
}

impl Like {
    pub const ALL: [Like; 6] = [Like::Gpt20b, Like::Gpt120b, Like::Tiny, Like::TinyOdd, Like::TinyTop3, Like::TinyWide];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Like::Gpt20b => "20b",
            Like::Gpt120b => "120b",
            Like::Tiny => "tiny",
            Like::TinyOdd => "tiny-odd",
            Like::TinyTop3 => "tiny-top3",
            Like::TinyWide => "tiny-wide",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|like| like.name() == name)
    }

    /// Whether the model's vocabulary is o200k_harmony's; the others have 512 or more ids for a tokenizer of bytes.
    pub fn speaks_harmony(self) -> bool {
        matches!(self, Like::Gpt20b | Like::Gpt120b)
    }

    pub fn config(self) -> Config {
        let tiny = published(4, 8);
        let tiny = Config {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 64,
            num_attention_heads: 8,
            num_key_value_heads: 2,
            head_dim: 32,
            sliding_window: 16,
            eos_token_ids: Vec::new(),
            ..tiny
        };
        match self {
            Like::Gpt20b => published(24, 32),
            Like::Gpt120b => published(36, 128),
            Like::Tiny => tiny,
            Like::TinyOdd => Config {
                vocab_size: 547,
                hidden_size: 96,
                intermediate_size: 160,
                num_attention_heads: 6,
                num_key_value_heads: 3,
                ..tiny
            },
            Like::TinyTop3 => Config {
                num_hidden_layers: 3,
                layer_types: alternating(3),
                num_local_experts: 6,
                num_experts_per_tok: 3,
                num_attention_heads: 4,
                num_key_value_heads: 1,
                head_dim: 64,
                ..tiny
            },
            Like::TinyWide => Config {
                num_hidden_layers: 2,
                layer_types: alternating(2),
                num_local_experts: 128,
                sliding_window: 128,
                ..tiny
            },
        }
    }
}

/// The published gpt-oss configuration of so many layers and experts.
fn published(num_hidden_layers: usize, num_local_experts: usize) -> Config {
    Config {
        vocab_size: HARMONY_VOCAB_SIZE,
        hidden_size: 2880,
        intermediate_size: 2880,
        num_hidden_layers,
        num_attention_heads: 64,
        num_key_value_heads: 8,
        head_dim: 64,
        num_local_experts,
        num_experts_per_tok: 4,
        max_position_embeddings: 131_072,
        sliding_window: 128,
        layer_types: alternating(num_hidden_layers),
        rms_norm_eps: 1e-5,
        swiglu_limit: 7.0,
        swiglu_alpha: 1.702,
        rope: RopeConfig {
            theta: 150_000.0,
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: 4096,
            truncate: false,
        },
        eos_token_ids: HARMONY_STOP_IDS.to_vec(),
    }
}

fn alternating(n_layers: usize) -> Vec<LayerType> {
    [LayerType::Sliding, LayerType::Full].into_iter().cycle().take(n_layers).collect()
}
