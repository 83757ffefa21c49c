//! `tessera inspect`: on checkpoints that load and on broken ones.

use std::path::Path;

use serde_json::Value;

use crate::runner::run;

fn synth(layout: &str, path: &Path) -> String {
    run(&["synth", "--like", "tiny", "--layout", layout, path.to_str().unwrap()]).ok();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_checkpoint_that_loads() {
    let dir = tempfile::tempdir().unwrap();
    let path = synth("hf", &dir.path().join("m"));
    let report = run(&["inspect", &path, "--json"]).json();
    assert_eq!((&report["loads"], &report["layout"], &report["qkv"]), (&true.into(), &"hf".into(), &"split".into()));
    assert_eq!((report["tensors"].as_u64(), report["bytes"].as_u64()), (Some(79), Some(688_896)));
    assert_eq!(report["prefixes"]["model.layers.N.self_attn"], 36);
    assert_eq!(report["config"]["num_local_experts"], 8);
    let blocks: u64 = report["scales"][0]["histogram"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(blocks, 4 * 8 * 128 * 2); // layers, experts, rows, blocks
    assert_eq!((&report["gpu"]["runs"], &report["gpu"]["reason"]), (&true.into(), &Value::Null));
    assert!(report["gpu"]["weight_bytes"].as_u64().unwrap() >= 688_896);
    let text = run(&["inspect", &path]).ok();
    for words in [
        "q, k, v  split",
        "\ngpu      the kernels can run it (H100, H200)",
        "experts: blocks",
        "gate_up scale bytes 120 to 124, 8192 blocks",
        "\nwould load",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
}

#[test]
fn the_original_layout() {
    let dir = tempfile::tempdir().unwrap();
    let path = synth("original", &dir.path().join("m"));
    let report = run(&["inspect", &path, "--json"]).json();
    assert_eq!((&report["layout"], &report["qkv"]), (&"original".into(), &"fused by rows".into()));
    assert_eq!((report["tensors"].as_u64(), report["bytes"].as_u64()), (Some(63), Some(688_896)));
}

#[test]
fn every_refusal_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = synth("bf16", &dir.path().join("m"));
    let report = run(&["inspect", &path, "--json"]).json();
    assert_eq!(report["loads"], false);
    assert!(report["refusals"][0].as_str().unwrap().contains("tessera convert"), "{report}");
    let config = dir.path().join("m/config.json");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace("\"head_dim\": 32", "\"head_dim\": 16"))
        .unwrap();
    let text = run(&["inspect", &path]).ok();
    assert!(
        text.contains("would not load, 29 reason(s)") && text.contains("q_proj.weight has shape [256, 64]"),
        "{text}"
    );
    assert!(text.contains("and 9 more"), "{text}");
    assert!(text.contains("\ngpu      the kernels cannot run it: head_dim is 16"), "{text}");
    let report = run(&["inspect", &path, "--json"]).json();
    assert_eq!((&report["gpu"]["runs"], &report["gpu"]["weight_bytes"]), (&false.into(), &Value::Null));
}

#[test]
fn nothing_to_inspect() {
    let dir = tempfile::tempdir().unwrap();
    let text = run(&["inspect", dir.path().to_str().unwrap()]).ok();
    assert!(text.contains("would not load, 1 reason(s)") && text.contains("has no weights"), "{text}");
}
