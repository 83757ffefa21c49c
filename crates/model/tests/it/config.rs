//! `config.json` of both kinds: what is read, and one wrong file per reason to refuse.

use serde_json::{Map, Value, json};
use tessera_model::config::{ConfigError, MAX_LAYERS};
use tessera_model::synth::Like;
use tessera_model::{Config, LayerType};

/// The published config.json of gpt-oss-20b, typed from its public copy; 2 of its 24 layer types are spelled out.
fn published() -> Map<String, Value> {
    let pair = ["sliding_attention", "full_attention"];
    let layer_types: Vec<&str> = pair.into_iter().cycle().take(24).collect();
    let value = json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880,
        "layer_types": layer_types, "max_position_embeddings": 131072, "model_type": "gpt_oss",
        "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_local_experts": 32, "output_router_logits": false, "pad_token_id": 199999,
        "quantization_config": {"quant_method": "mxfp4"}, "rms_norm_eps": 1e-05,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201088
    });
    value.as_object().unwrap().clone()
}

/// The published `original/config.json`.
fn published_original() -> Map<String, Value> {
    let value = json!({
        "num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
        "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64,
        "num_key_value_heads": 8, "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000,
        "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32
    });
    value.as_object().unwrap().clone()
}

fn read(map: &Map<String, Value>, generation: Option<&str>) -> Result<Config, ConfigError> {
    Config::from_json(&serde_json::to_string(map).unwrap(), generation)
}

/// The published configuration, changed.
fn with(change: impl FnOnce(&mut Map<String, Value>)) -> Result<Config, ConfigError> {
    let mut map = published();
    change(&mut map);
    read(&map, None)
}

#[test]
fn the_published_files_say_the_same() {
    let (hf, original) = (read(&published(), None).unwrap(), read(&published_original(), None).unwrap());
    assert_eq!((&hf.swiglu_alpha, &hf.rms_norm_eps, hf.rope.truncate), (&1.702, &1e-5, false));
    assert_eq!((hf.layer_types[0], hf.layer_types[1]), (LayerType::Sliding, LayerType::Full));
    assert_eq!((hf.qkv_dim(), hf.sm_scale()), (5120, 0.125));
    assert_eq!(Config { eos_token_ids: hf.eos_token_ids.clone(), ..original }, hf);
    assert_eq!(hf, Like::Gpt20b.config());
}

#[test]
fn what_is_written_reads_back() {
    for like in Like::ALL {
        let mut config = like.config();
        config.eos_token_ids = vec![7, 9];
        if like.speaks_harmony() {
            config.eos_token_ids = vec![200_002, 200_012, 199_999];
        }
        let generation = config.to_generation_json();
        assert_eq!(Config::from_hf(&config.to_hf_json(), Some(&generation)), Ok(config.clone()));
        assert_eq!(Config::from_original(&config.to_original_json().unwrap(), Some(&generation)), Ok(config));
    }
}

#[test]
fn stop_ids_come_from_both_files_and_the_vocabulary() {
    let eos = |vocab: usize, config: Value, generation: Option<&str>| {
        let mut map = published();
        (map["vocab_size"], map["eos_token_id"]) = (json!(vocab), config);
        read(&map, generation).unwrap().eos_token_ids
    };
    let generation = |ids: &str| format!("{{\"eos_token_id\": {ids}}}");
    assert_eq!(eos(201_088, json!(200_002), Some(&generation("[200002, 199999]"))), [200_002, 199_999, 200_012]);
    assert_eq!(eos(201_088, json!(null), None), [200_002, 200_012, 199_999]);
    assert_eq!(eos(500, json!([4, 5]), Some(&generation("6"))), [6, 4, 5]);
    assert_eq!(eos(500, json!([4, 200_002]), Some("{}")), [4]); // an id that no logit stands for
}

#[test]
fn newer_and_older_spellings() {
    let expected = read(&published(), None).unwrap();
    let rope_parameters = with(|map| {
        let mut rope = map.remove("rope_scaling").unwrap();
        rope["rope_theta"] = map.remove("rope_theta").unwrap();
        map.insert("rope_parameters".into(), rope);
        map.insert("rope_scaling".into(), Value::Null);
    });
    assert_eq!(rope_parameters.as_ref(), Ok(&expected));
    assert_eq!(with(|map| drop(map.remove("num_experts_per_tok"))).as_ref(), Ok(&expected));
    assert_eq!(with(|map| drop(map.remove("experts_per_token"))).as_ref(), Ok(&expected));
    assert_eq!(with(|map| drop(map.remove("layer_types"))).as_ref(), Ok(&expected));
    assert_eq!(with(|map| drop(map.insert("swiglu_alpha".into(), json!(1.5)))).unwrap().swiglu_alpha, 1.5);
    assert!(with(|map| drop(map["rope_scaling"].as_object_mut().unwrap().remove("truncate"))).unwrap().rope.truncate);
}

#[test]
fn every_field_that_is_needed_is_missed() {
    let needed = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_local_experts",
        "max_position_embeddings",
        "sliding_window",
        "rope_scaling",
        "rope_theta",
    ];
    for name in needed {
        let error = with(|map| drop(map.remove(name))).unwrap_err();
        assert!(matches!(&error, ConfigError::Missing { field, .. } if field == name), "{error}");
    }
    for name in published_original()
        .keys()
        .filter(|k| !["swiglu_limit", "rope_ntk_alpha", "rope_ntk_beta"].contains(&k.as_str()))
    {
        let mut map = published_original();
        map.remove(name);
        let text = serde_json::to_string(&map).unwrap();
        let error = Config::from_original(&text, None).unwrap_err();
        assert!(matches!(&error, ConfigError::Missing { field, .. } if field == name), "{error}");
    }
    let error = with(|map| drop(map["rope_scaling"].as_object_mut().unwrap().remove("factor"))).unwrap_err();
    assert!(error.to_string().contains("`rope_scaling.factor`"), "{error}");
}

/// The error of one changed field names it, what was expected and what was found.
fn check(field: &str, value: Value, words: &[&str]) {
    let (outer, inner) = field.split_once('.').unwrap_or((field, ""));
    let error = with(|map| {
        if inner.is_empty() {
            map.insert(outer.into(), value.clone());
        } else {
            map[outer][inner] = value.clone();
        }
    });
    let text = error.expect_err(field).to_string();
    for word in words.iter().chain([&field]) {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn wrong_types() {
    check("hidden_size", json!("2880"), &["expected a whole number", "found \"2880\""]);
    check("hidden_size", json!(-64), &["found -64"]);
    check("hidden_size", json!(64.5), &["found 64.5"]);
    check("rope_theta", json!([1]), &["a finite number", "found [1]"]);
    check("layer_types", json!(["sliding_attention", 3]), &["a list of"]);
    check("rope_scaling", json!("yarn"), &["an object"]);
    check("rope_scaling.truncate", json!(0), &["true or false"]);
    check("eos_token_id", json!([1, -2]), &["token id"]);
    for text in ["", "[1]", "{\"a\":"] {
        assert!(matches!(Config::from_hf(text, None), Err(ConfigError::NotJson { file: "config.json", .. })));
        let config = serde_json::to_string(&published()).unwrap();
        let error = Config::from_hf(&config, Some(text)).unwrap_err();
        assert!(matches!(error, ConfigError::NotJson { file: "generation_config.json", .. }), "{error}");
    }
}

#[test]
fn other_models() {
    check("model_type", json!("llama"), &["\"llama\"", "\"gpt_oss\""]);
    check("hidden_act", json!("gelu"), &["silu"]);
    check("attention_bias", json!(false), &["true"]);
    check("rope_scaling.rope_type", json!("linear"), &["\"linear\"", "\"yarn\""]);
    check("rope_scaling.attention_factor", json!(1.5), &["1.5", "null"]);
}

#[test]
fn impossible_numbers() {
    check("num_attention_heads", json!(63), &["a multiple of 8 (num_key_value_heads)", "found 63"]);
    check("hidden_size", json!(2900), &["a multiple of 32", "found 2900"]);
    check("intermediate_size", json!(48), &["a multiple of 32"]);
    check("head_dim", json!(63), &["a multiple of 2"]);
    check("num_experts_per_tok", json!(33), &["1 to num_local_experts (32)", "found 33"]);
    check("num_experts_per_tok", json!(0), &["found 0"]);
    check("num_hidden_layers", json!(25), &[]);
    check("num_hidden_layers", json!(u64::MAX), &[&format!("1 to {MAX_LAYERS}")]);
    check("layer_types", json!(["full_attention"]), &["24 entries", "found 1"]);
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_local_experts",
        "max_position_embeddings",
        "sliding_window",
    ] {
        check(field, json!(0), &["expected 1 to", "found 0"]);
        check(field, json!(1u64 << 40), &["found 1099511627776"]);
    }
    check("rms_norm_eps", json!(0.0), &["above 0"]);
    check("swiglu_limit", json!(-7.0), &["above 0"]);
    check("rope_theta", json!(1.0), &["above 1"]);
    check("rope_scaling.factor", json!(0.5), &["at least 1"]);
    check("rope_scaling.beta_fast", json!(0.5), &["at least beta_slow"]);
    check("rope_scaling.original_max_position_embeddings", json!(0), &["found 0"]);
}

#[test]
fn the_original_layout_cannot_say_everything() {
    let mut config = Like::Tiny.config();
    config.layer_types.reverse();
    let error = config.to_original_json().unwrap_err();
    assert!(matches!(error, ConfigError::NotOriginal { field: "layer_types", .. }), "{error}");
}
