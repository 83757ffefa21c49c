//! The `config.json` of OpenAI's own layout (`original/config.json`).

use serde_json::json;

use super::fields::{Fields, parse_object};
use super::hf::{RMS_NORM_EPS, SWIGLU_ALPHA, alternating, eos_token_ids, pretty};
use super::{Config, ConfigError, RopeConfig};

impl Config {
    /// Reads and validates an `original/config.json`. What it does not name is fixed by OpenAI's model code
    /// (`gpt_oss/torch/model.py`): alternating layers that start with a sliding one, eps 1e-5, alpha 1.702, no
    /// truncation.
    pub fn from_original(config_json: &str, generation_config: Option<&str>) -> Result<Self, ConfigError> {
        let map = parse_object("config.json", config_json)?;
        let fields = Fields { file: "config.json", prefix: "", map: &map };
        let vocab_size = fields.usize("vocab_size")?;
        let num_hidden_layers = fields.usize("num_hidden_layers")?;
        super::limits::check_layers(num_hidden_layers)?;
        let initial_context_length = fields.usize("initial_context_length")?;
        let factor = fields.f64("rope_scaling_factor")?;
        let config = Config {
            vocab_size,
            hidden_size: fields.usize("hidden_size")?,
            intermediate_size: fields.usize("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: fields.usize("num_attention_heads")?,
            num_key_value_heads: fields.usize("num_key_value_heads")?,
            head_dim: fields.usize("head_dim")?,
            num_local_experts: fields.usize("num_experts")?,
            num_experts_per_tok: fields.usize("experts_per_token")?,
            max_position_embeddings: (initial_context_length as f64 * factor) as usize,
            sliding_window: fields.usize("sliding_window")?,
            layer_types: alternating(num_hidden_layers),
            rms_norm_eps: RMS_NORM_EPS,
            swiglu_limit: fields.f64_or("swiglu_limit", 7.0)? as f32,
            swiglu_alpha: SWIGLU_ALPHA,
            rope: RopeConfig {
                theta: fields.f64("rope_theta")?,
                factor,
                beta_fast: fields.f64_or("rope_ntk_beta", 32.0)?,
                beta_slow: fields.f64_or("rope_ntk_alpha", 1.0)?,
                original_max_position_embeddings: initial_context_length,
                truncate: false,
            },
            eos_token_ids: eos_token_ids(fields, generation_config, vocab_size)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// The `original/config.json` of this model, if that layout can say it.
    pub fn to_original_json(&self) -> Result<String, ConfigError> {
        let text = pretty(&json!({
            "num_hidden_layers": self.num_hidden_layers,
            "num_experts": self.num_local_experts,
            "experts_per_token": self.num_experts_per_tok,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "swiglu_limit": self.swiglu_limit,
            "head_dim": self.head_dim,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "sliding_window": self.sliding_window,
            "initial_context_length": self.rope.original_max_position_embeddings,
            "rope_theta": self.rope.theta,
            "rope_scaling_factor": self.rope.factor,
            "rope_ntk_alpha": self.rope.beta_slow,
            "rope_ntk_beta": self.rope.beta_fast,
        }));
        let read_back = Self::from_original(&text, None)?;
        match self.first_difference(&read_back) {
            None => Ok(text),
            Some((field, found, expected)) => Err(ConfigError::NotOriginal { field, expected, found }),
        }
    }

    /// The first field that the original layout fixes and this model has otherwise: name, own value, fixed value.
    fn first_difference(&self, fixed: &Config) -> Option<(&'static str, String, String)> {
        fn differ<T: PartialEq + std::fmt::Debug>(
            name: &'static str,
            a: &T,
            b: &T,
        ) -> Option<(&'static str, String, String)> {
            (a != b).then(|| (name, format!("{a:?}"), format!("{b:?}")))
        }
        differ("layer_types", &self.layer_types, &fixed.layer_types)
            .or_else(|| differ("rms_norm_eps", &self.rms_norm_eps, &fixed.rms_norm_eps))
            .or_else(|| differ("swiglu_alpha", &self.swiglu_alpha, &fixed.swiglu_alpha))
            .or_else(|| {
                differ("max_position_embeddings", &self.max_position_embeddings, &fixed.max_position_embeddings)
            })
            .or_else(|| differ("rope.truncate", &self.rope.truncate, &fixed.rope.truncate))
    }
}
