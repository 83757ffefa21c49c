//! What a configuration must satisfy before anything is computed from it.

use super::{Config, ConfigError};
use crate::mxfp4::BLOCK;

/// Limits far beyond any gpt-oss; within them no product of sizes overflows 64 bits.
pub const MAX_VOCAB_SIZE: usize = 1 << 20;
pub const MAX_HIDDEN_SIZE: usize = 1 << 16;
pub const MAX_INTERMEDIATE_SIZE: usize = 1 << 18;
pub const MAX_LAYERS: usize = 1024;
pub const MAX_HEADS: usize = 1024;
pub const MAX_HEAD_DIM: usize = 1024;
pub const MAX_EXPERTS: usize = 4096;
pub const MAX_CONTEXT: usize = 1 << 24;

/// Looked at before anything as long as the layers is allocated.
pub(super) fn check_layers(n_layers: usize) -> Result<(), ConfigError> {
    in_range("num_hidden_layers", n_layers, 1, MAX_LAYERS)
}

impl Config {
    /// Checks every number against the others and against the limits above; the first that is impossible is named.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_layers(self.num_hidden_layers)?;
        in_range("vocab_size", self.vocab_size, 1, MAX_VOCAB_SIZE)?;
        in_range("hidden_size", self.hidden_size, 1, MAX_HIDDEN_SIZE)?;
        in_range("intermediate_size", self.intermediate_size, 1, MAX_INTERMEDIATE_SIZE)?;
        in_range("num_attention_heads", self.num_attention_heads, 1, MAX_HEADS)?;
        in_range("num_key_value_heads", self.num_key_value_heads, 1, MAX_HEADS)?;
        in_range("head_dim", self.head_dim, 1, MAX_HEAD_DIM)?;
        in_range("num_local_experts", self.num_local_experts, 1, MAX_EXPERTS)?;
        in_range("max_position_embeddings", self.max_position_embeddings, 1, MAX_CONTEXT)?;
        in_range("sliding_window", self.sliding_window, 1, MAX_CONTEXT)?;
        multiple("hidden_size", self.hidden_size, BLOCK, "an MXFP4 block")?;
        multiple("intermediate_size", self.intermediate_size, BLOCK, "an MXFP4 block")?;
        multiple("head_dim", self.head_dim, 2, "a rotary pair")?;
        multiple("num_attention_heads", self.num_attention_heads, self.num_key_value_heads, "num_key_value_heads")?;
        if !(1..=self.num_local_experts).contains(&self.num_experts_per_tok) {
            let expected = format!("1 to num_local_experts ({})", self.num_local_experts);
            return Err(impossible("num_experts_per_tok", expected, self.num_experts_per_tok));
        }
        if self.layer_types.len() != self.num_hidden_layers {
            let expected = format!("{} entries (num_hidden_layers)", self.num_hidden_layers);
            return Err(impossible("layer_types", expected, self.layer_types.len()));
        }
        self.validate_floats()
    }

    fn validate_floats(&self) -> Result<(), ConfigError> {
        let rope = &self.rope;
        in_range(
            "rope_scaling.original_max_position_embeddings",
            rope.original_max_position_embeddings,
            1,
            MAX_CONTEXT,
        )?;
        positive("rms_norm_eps", f64::from(self.rms_norm_eps))?;
        positive("swiglu_limit", f64::from(self.swiglu_limit))?;
        positive("swiglu_alpha", f64::from(self.swiglu_alpha))?;
        positive("rope_scaling.beta_fast", rope.beta_fast)?;
        positive("rope_scaling.beta_slow", rope.beta_slow)?;
        if !(rope.theta.is_finite() && rope.theta > 1.0) {
            return Err(impossible("rope_theta", "a number above 1".into(), rope.theta));
        }
        if !(rope.factor.is_finite() && rope.factor >= 1.0) {
            return Err(impossible("rope_scaling.factor", "a number of at least 1".into(), rope.factor));
        }
        if rope.beta_fast < rope.beta_slow {
            let expected = format!("at least beta_slow ({})", rope.beta_slow);
            return Err(impossible("rope_scaling.beta_fast", expected, rope.beta_fast));
        }
        Ok(())
    }
}

fn in_range(field: &'static str, found: usize, min: usize, max: usize) -> Result<(), ConfigError> {
    if (min..=max).contains(&found) { Ok(()) } else { Err(impossible(field, format!("{min} to {max}"), found)) }
}

fn multiple(field: &'static str, found: usize, of: usize, what: &str) -> Result<(), ConfigError> {
    if found.is_multiple_of(of) {
        Ok(())
    } else {
        Err(impossible(field, format!("a multiple of {of} ({what})"), found))
    }
}

fn positive(field: &'static str, found: f64) -> Result<(), ConfigError> {
    if found.is_finite() && found > 0.0 { Ok(()) } else { Err(impossible(field, "a number above 0".into(), found)) }
}

fn impossible(field: &'static str, expected: String, found: impl ToString) -> ConfigError {
    ConfigError::Impossible { field, expected, found: found.to_string() }
}
