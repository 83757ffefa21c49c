//! The committed checkpoints with their reference logits (`fixtures/parity`, made by `tools/golden.py`).
//!
//! Loaded without `Checkpoint`, on the safetensors crate alone, so that a mistake there cannot hide behind itself.

use std::collections::HashMap;
use std::path::PathBuf;

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tessera_model::config::RopeConfig;
use tessera_model::{Config, Experts, LayerType, LayerWeights, Linear, Matrix, Weights};

pub struct Fixture {
    pub config: Config,
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    /// transformers in float32, `[last positions of the prompt, vocab]`.
    pub logits: Vec<f32>,
    pub meta: Value,
    floats: HashMap<String, Vec<bf16>>,
    bytes: HashMap<String, Vec<u8>>,
}

pub fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity").join(case)
}

impl Fixture {
    pub fn open(case: &str) -> Self {
        let read = |file: &str| std::fs::read(folder(case).join(file)).unwrap_or_else(|e| panic!("{case}/{file}: {e}"));
        let json = |file: &str| -> Value { serde_json::from_slice(&read(file)).expect(file) };
        let ids = |file: &str| serde_json::from_value(json(file)).expect(file);
        let file = read("model.safetensors");
        let (mut floats, mut bytes) = (HashMap::new(), HashMap::new());
        for (name, tensor) in SafeTensors::deserialize(&file).expect(case).tensors() {
            match tensor.dtype() {
                Dtype::BF16 => drop(floats.insert(name, tensor.data().chunks(2).map(bf16_of).collect())),
                Dtype::U8 => drop(bytes.insert(name, tensor.data().to_vec())),
                other => panic!("{case}: {name} is {other:?}"),
            }
        }
        let config = config(&json("config.json"));
        let logits = npy(&read("logits_f32.npy"), config.vocab_size);
        let (prompt, greedy) = (ids("tokens.json"), ids("greedy.json"));
        Self { config, prompt, greedy, logits, meta: json("meta.json"), floats, bytes }
    }

    /// How many of the prompt's last positions have reference logits.
    pub fn last(&self) -> usize {
        self.logits.len() / self.config.vocab_size
    }

    pub fn meta(&self, pointer: &str) -> f64 {
        self.meta.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("meta.json lacks {pointer}"))
    }

    pub fn weights(&self) -> Weights<'_> {
        let c = &self.config;
        Weights {
            embed: self.matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size),
            layers: (0..c.num_hidden_layers).map(|i| self.layer(&format!("model.layers.{i}"))).collect(),
            final_norm: self.vector("model.norm.weight"),
            lm_head: self.matrix("lm_head.weight", c.vocab_size, c.hidden_size),
        }
    }

    fn layer(&self, at: &str) -> LayerWeights<'_> {
        let c = &self.config;
        let linear = |name: &str, rows, cols| Linear {
            weight: self.matrix(&format!("{at}.{name}.weight"), rows, cols),
            bias: self.vector(&format!("{at}.{name}.bias")),
        };
        let experts = |name: &str, rows, cols| Experts {
            blocks: &self.bytes[&format!("{at}.mlp.experts.{name}_blocks")],
            scales: &self.bytes[&format!("{at}.mlp.experts.{name}_scales")],
            bias: self.vector(&format!("{at}.mlp.experts.{name}_bias")),
            experts: c.num_local_experts,
            rows,
            cols,
        };
        LayerWeights {
            attn_norm: self.vector(&format!("{at}.input_layernorm.weight")),
            q: linear("self_attn.q_proj", c.q_dim(), c.hidden_size),
            k: linear("self_attn.k_proj", c.kv_dim(), c.hidden_size),
            v: linear("self_attn.v_proj", c.kv_dim(), c.hidden_size),
            o: linear("self_attn.o_proj", c.hidden_size, c.q_dim()),
            sinks: self.vector(&format!("{at}.self_attn.sinks")),
            mlp_norm: self.vector(&format!("{at}.post_attention_layernorm.weight")),
            router: linear("mlp.router", c.num_local_experts, c.hidden_size),
            gate_up: experts("gate_up_proj", 2 * c.intermediate_size, c.hidden_size),
            down: experts("down_proj", c.hidden_size, c.intermediate_size),
        }
    }

    fn vector(&self, name: &str) -> &[bf16] {
        self.floats.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Matrix<'_> {
        Matrix::new(self.vector(name), rows, cols)
    }
}

fn bf16_of(bytes: &[u8]) -> bf16 {
    bf16::from_le_bytes([bytes[0], bytes[1]])
}

fn config(json: &Value) -> Config {
    let field = |name: &str| json.get(name).unwrap_or_else(|| panic!("config.json lacks {name}"));
    let int = |name: &str| field(name).as_u64().expect(name) as usize;
    let float = |name: &str| field(name).as_f64().expect(name) as f32;
    let kind = |v: &Value| match v.as_str() {
        Some("full_attention") => LayerType::Full,
        Some("sliding_attention") => LayerType::Sliding,
        other => panic!("layer type {other:?}"),
    };
    Config {
        vocab_size: int("vocab_size"),
        hidden_size: int("hidden_size"),
        intermediate_size: int("intermediate_size"),
        num_hidden_layers: int("num_hidden_layers"),
        num_attention_heads: int("num_attention_heads"),
        num_key_value_heads: int("num_key_value_heads"),
        head_dim: int("head_dim"),
        num_local_experts: int("num_local_experts"),
        num_experts_per_tok: int("num_experts_per_tok"),
        max_position_embeddings: int("max_position_embeddings"),
        sliding_window: int("sliding_window"),
        layer_types: field("layer_types").as_array().expect("layer_types").iter().map(kind).collect(),
        rms_norm_eps: float("rms_norm_eps"),
        swiglu_limit: float("swiglu_limit"),
        swiglu_alpha: 1.702,
        rope: rope(json),
        eos_token_ids: vec![int("eos_token_id") as u32],
    }
}

fn rope(json: &Value) -> RopeConfig {
    let rope = json.get("rope_parameters").or(json.get("rope_scaling")).expect("rope");
    let float = |name: &str| rope[name].as_f64().expect(name);
    RopeConfig {
        theta: rope.get("rope_theta").or(json.get("rope_theta")).and_then(Value::as_f64).expect("rope_theta"),
        factor: float("factor"),
        beta_fast: float("beta_fast"),
        beta_slow: float("beta_slow"),
        original_max_position_embeddings: float("original_max_position_embeddings") as usize,
        truncate: rope["truncate"].as_bool().expect("truncate"),
    }
}

/// A version 1 `.npy` of little-endian float32 in C order, `[rows, width]`.
fn npy(file: &[u8], width: usize) -> Vec<f32> {
    assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
    let header = std::str::from_utf8(&file[10..end]).expect("header");
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
    assert!(header.contains(&format!(", {width})")), "{header}: expected rows of {width}");
    file[end..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
}
