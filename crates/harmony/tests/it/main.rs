//! Harmony against OpenAI's own renderer and parser, on the full o200k_harmony vocabulary.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;
use tessera_harmony::tokenizer::Tokenizer;

mod fuzz;
mod o200k;
mod parse;
mod render;
mod tokenize;

/// The full tokenizer, built once per test binary.
fn full() -> &'static Tokenizer {
    static FULL: OnceLock<Tokenizer> = OnceLock::new();
    FULL.get_or_init(|| Tokenizer::from_bytes(o200k::tokenizer_json().as_bytes()).expect("a full tokenizer.json"))
}

/// The cases of a fixture that `tools/harmony_golden.py` wrote.
fn cases(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/harmony").join(name);
    let json = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut fixture: Value = serde_json::from_str(&json).unwrap();
    serde_json::from_value(fixture["cases"].take()).unwrap()
}

fn ids(case: &Value) -> Vec<u32> {
    serde_json::from_value(case["ids"].clone()).unwrap()
}
