//! The Hugging Face `config.json`, in both its spellings of the rotary embedding.

use serde_json::{Value, json};

use super::fields::{Fields, parse_object};
use super::{Config, ConfigError, HARMONY_STOP_IDS, HARMONY_VOCAB_SIZE, LayerType, RopeConfig};

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";
/// `alpha` of the published model code, where `config.json` does not name it.
pub(super) const SWIGLU_ALPHA: f32 = 1.702;
const SWIGLU_LIMIT: f64 = 7.0;
pub(super) const RMS_NORM_EPS: f32 = 1e-5;

impl Config {
    /// Reads and validates a Hugging Face `config.json` and, for its stop ids, the `generation_config.json` beside it.
    pub fn from_hf(config_json: &str, generation_config: Option<&str>) -> Result<Self, ConfigError> {
        let map = parse_object("config.json", config_json)?;
        let fields = Fields { file: "config.json", prefix: "", map: &map };
        fields.only("model_type", json!("gpt_oss"), "\"gpt_oss\"")?;
        fields.only("hidden_act", json!("silu"), "\"silu\"")?;
        fields.only("attention_bias", json!(true), "true")?;
        let vocab_size = fields.usize("vocab_size")?;
        let num_hidden_layers = fields.usize("num_hidden_layers")?;
        super::limits::check_layers(num_hidden_layers)?;
        let config = Config {
            vocab_size,
            hidden_size: fields.usize("hidden_size")?,
            intermediate_size: fields.usize("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: fields.usize("num_attention_heads")?,
            num_key_value_heads: fields.usize("num_key_value_heads")?,
            head_dim: fields.usize("head_dim")?,
            num_local_experts: fields.usize("num_local_experts")?,
            num_experts_per_tok: fields.usize_either("num_experts_per_tok", "experts_per_token")?,
            max_position_embeddings: fields.usize("max_position_embeddings")?,
            sliding_window: fields.usize("sliding_window")?,
            layer_types: layer_types(fields, num_hidden_layers)?,
            rms_norm_eps: fields.f64_or("rms_norm_eps", f64::from(RMS_NORM_EPS))? as f32,
            swiglu_limit: fields.f64_or("swiglu_limit", SWIGLU_LIMIT)? as f32,
            swiglu_alpha: fields.f64_or("swiglu_alpha", f64::from(SWIGLU_ALPHA))? as f32,
            rope: rope(fields)?,
            eos_token_ids: eos_token_ids(fields, generation_config, vocab_size)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// The `config.json` that [`Config::from_hf`] reads back as this configuration, in the published field order.
    pub fn to_hf_json(&self) -> String {
        pretty(&self.hf_value(quantization_config()))
    }

    /// The same for dequantised experts: no `quantization_config`.
    pub fn to_bf16_json(&self) -> String {
        pretty(&self.hf_value(Value::Null))
    }

    fn hf_value(&self, quantization_config: Value) -> Value {
        let names: Vec<&str> = self.layer_types.iter().map(|t| layer_type_name(*t)).collect();
        let mut value = json!({
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": true,
            "attention_dropout": 0.0,
            "eos_token_id": self.eos_token_ids.first(),
            "experts_per_token": self.num_experts_per_tok,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": self.rope.original_max_position_embeddings,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_types": names,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "gpt_oss",
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "num_local_experts": self.num_local_experts,
            "output_router_logits": false,
            "pad_token_id": (self.vocab_size == HARMONY_VOCAB_SIZE).then_some(HARMONY_STOP_IDS[2]),
            "quantization_config": quantization_config,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_scaling": {
                "beta_fast": self.rope.beta_fast,
                "beta_slow": self.rope.beta_slow,
                "factor": self.rope.factor,
                "original_max_position_embeddings": self.rope.original_max_position_embeddings,
                "rope_type": "yarn",
                "truncate": self.rope.truncate,
            },
            "rope_theta": self.rope.theta,
            "router_aux_loss_coef": 0.9,
            "sliding_window": self.sliding_window,
            "swiglu_alpha": shortest(self.swiglu_alpha),
            "swiglu_limit": shortest(self.swiglu_limit),
            "tie_word_embeddings": false,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        let object = value.as_object_mut().expect("built as an object");
        object.retain(|_, v| !v.is_null());
        value
    }

    /// The `generation_config.json` that carries the stop ids.
    pub fn to_generation_json(&self) -> String {
        let harmony = self.vocab_size == HARMONY_VOCAB_SIZE;
        pretty(&json!({
            "bos_token_id": harmony.then_some(199_998),
            "do_sample": true,
            "eos_token_id": self.eos_token_ids,
            "pad_token_id": harmony.then_some(HARMONY_STOP_IDS[2]),
        }))
    }
}

/// What a `config.json` says of checkpoints whose experts are MXFP4.
pub(crate) fn quantization_config() -> Value {
    json!({
        "modules_to_not_convert":
            ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    })
}

pub(crate) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a JSON value has no keys that are not strings") + "\n"
}

/// The float64 that prints like the float32 does: 1.702, not 1.7020000219345093.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().expect("a float32 prints as a number")
}

fn layer_type_name(t: LayerType) -> &'static str {
    match t {
        LayerType::Sliding => SLIDING,
        LayerType::Full => FULL,
    }
}

/// `layer_types`, or the published alternation that starts with a sliding layer.
fn layer_types(fields: Fields, n_layers: usize) -> Result<Vec<LayerType>, ConfigError> {
    const EXPECTED: &str = "a list of \"sliding_attention\" and \"full_attention\"";
    let Some(value) = fields.get("layer_types") else { return Ok(alternating(n_layers)) };
    let wrong = || fields.wrong_type("layer_types", EXPECTED, value);
    let parse = |v: &Value| match v.as_str() {
        Some(SLIDING) => Ok(LayerType::Sliding),
        Some(FULL) => Ok(LayerType::Full),
        _ => Err(wrong()),
    };
    value.as_array().ok_or_else(wrong)?.iter().map(parse).collect()
}

pub(super) fn alternating(n_layers: usize) -> Vec<LayerType> {
    (0..n_layers).map(|i| if i % 2 == 0 { LayerType::Sliding } else { LayerType::Full }).collect()
}

/// `rope_parameters` (newer) or `rope_scaling` with a `rope_theta` beside it.
fn rope(fields: Fields) -> Result<RopeConfig, ConfigError> {
    let scaling = match fields.object("rope_parameters", "rope_parameters.")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling", "rope_scaling.")?,
    };
    let theta = match scaling.filter(|s| s.get("rope_theta").is_some()) {
        Some(scaling) => scaling.f64("rope_theta")?,
        None => fields.f64("rope_theta")?,
    };
    let Some(scaling) = scaling else {
        return Err(ConfigError::Missing {
            file: fields.file,
            field: "rope_scaling".into(),
            expected: "an object (or a newer `rope_parameters`)",
        });
    };
    let kind = if scaling.get("rope_type").is_none() { "type" } else { "rope_type" };
    scaling.only(kind, json!("yarn"), "\"yarn\"")?;
    for field in ["attention_factor", "mscale", "mscale_all_dim"] {
        if let Some(value) = scaling.get(field) {
            return Err(scaling.unsupported(field, "null", value));
        }
    }
    let initial = match fields.get("initial_context_length") {
        Some(_) => fields.usize("initial_context_length")?,
        None => fields.usize("max_position_embeddings")?,
    };
    Ok(RopeConfig {
        theta,
        factor: scaling.f64("factor")?,
        beta_fast: scaling.f64_or("beta_fast", 32.0)?,
        beta_slow: scaling.f64_or("beta_slow", 1.0)?,
        original_max_position_embeddings: scaling.usize_or("original_max_position_embeddings", initial)?,
        truncate: scaling.bool_or("truncate", true)?,
    })
}

/// Stop ids in order of appearance, without repetition and without ids that no logit stands for.
pub(super) fn eos_token_ids(
    config: Fields,
    generation_config: Option<&str>,
    vocab_size: usize,
) -> Result<Vec<u32>, ConfigError> {
    let mut all = Vec::new();
    if let Some(text) = generation_config {
        let file = "generation_config.json";
        let map = parse_object(file, text)?;
        all.extend(Fields { file, prefix: "", map: &map }.token_ids("eos_token_id")?);
    }
    all.extend(config.token_ids("eos_token_id")?);
    if vocab_size == HARMONY_VOCAB_SIZE {
        all.extend(HARMONY_STOP_IDS);
    }
    let mut ids = Vec::new();
    for id in all {
        if (id as usize) < vocab_size && !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
