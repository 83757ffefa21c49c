//! The model's configuration, validated: every number a backend may rely on.

mod error;
mod fields;
mod hf;
mod limits;
mod original;

pub use error::ConfigError;
pub(crate) use hf::{pretty, quantization_config};
pub use limits::*;

/// Which keys a layer's queries may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// `sliding_attention`: key `j` is visible to query `i` iff `i - sliding_window < j <= i`.
    Sliding,
    /// `full_attention`: every key up to the query itself.
    Full,
}

/// YaRN rotary embedding, as in `rope_scaling` (or the newer `rope_parameters`).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    pub factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub original_max_position_embeddings: usize,
    /// Whether the ramp's ends are rounded to whole dimensions; false in every published gpt-oss.
    pub truncate: bool,
}

/// A validated gpt-oss configuration. Field names are those of the Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub num_local_experts: usize,
    pub num_experts_per_tok: usize,
    pub max_position_embeddings: usize,
    /// Keys a sliding layer's query sees, itself included.
    pub sliding_window: usize,
    /// One per layer.
    pub layer_types: Vec<LayerType>,
    pub rms_norm_eps: f32,
    pub swiglu_limit: f32,
    pub swiglu_alpha: f32,
    pub rope: RopeConfig,
    /// Tokens that end an answer: those of `generation_config.json`, of `config.json`, and [`HARMONY_STOP_IDS`] where
    /// the vocabulary is o200k_harmony's, in that order; ids outside the vocabulary, which nothing can sample, are left
    /// out.
    pub eos_token_ids: Vec<u32>,
}

/// `vocab_size` of the published checkpoints: o200k_harmony, padded.
pub const HARMONY_VOCAB_SIZE: usize = 201_088;
/// Tokens that end an assistant's turn in o200k_harmony: `<|return|>`, `<|call|>`, `<|endoftext|>`.
pub const HARMONY_STOP_IDS: [u32; 3] = [200_002, 200_012, 199_999];

impl Config {
    /// Reads a `config.json` of either kind: OpenAI's own has `num_experts`, Hugging Face's `num_local_experts`.
    pub fn from_json(config_json: &str, generation_config: Option<&str>) -> Result<Self, ConfigError> {
        let object = fields::parse_object("config.json", config_json)?;
        let is_original = object.contains_key("num_experts") && !object.contains_key("num_local_experts");
        if is_original {
            Self::from_original(config_json, generation_config)
        } else {
            Self::from_hf(config_json, generation_config)
        }
    }

    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Width of the fused query, key and value projection.
    pub fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }

    /// Factor on the attention scores: `1 / sqrt(head_dim)`.
    pub fn sm_scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}
