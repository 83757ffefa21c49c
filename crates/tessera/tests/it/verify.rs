//! `tessera verify` as a user runs it. That faults are found and located is tested beside the comparison itself.

use serde_json::Value;

use crate::runner::{Model, Output, finish, run, tessera};

const STAGES: [&str; 15] = [
    "embed",
    "attn_norm",
    "qkv",
    "rope_store",
    "attend",
    "attn_out",
    "mlp_norm",
    "router",
    "route",
    "gate_up",
    "swiglu",
    "down",
    "combine",
    "final_norm",
    "logits",
];

fn stages(section: &Value) -> Vec<&str> {
    section["stages"].as_array().unwrap().iter().map(|row| row["stage"].as_str().unwrap()).collect()
}

#[test]
fn a_sound_checkpoint_passes_in_every_layout() {
    let model = Model::tiny();
    let text = run(&["verify", model.arg()]).ok();
    assert!(text.contains("structure: ") && text.contains("is passed") && text.contains("\nok: "), "{text}");
    for stage in STAGES {
        assert!(text.contains(&format!("\n  {stage} ")), "{stage}: {text}");
    }
    let original = model.path().with_file_name("original-layout");
    run(&["convert", model.arg(), original.to_str().unwrap(), "--to", "original"]).ok();
    let converted = run(&["verify", original.to_str().unwrap(), "--json"]).json();
    assert_eq!((&converted["ok"], &converted["first_failure"]), (&Value::Bool(true), &Value::Null));
    assert_eq!(converted["structure"]["layout"], "original");
    assert_eq!(stages(&converted["sections"][0]), STAGES);
}

#[test]
fn layer_and_stage_isolate() {
    let model = Model::tiny();
    let report = run(&["verify", model.arg(), "--layer", "1", "--json"]).json();
    assert_eq!(stages(&report["sections"][0]), STAGES[1..13]);
    let rows = |report: Value| report["sections"][0]["stages"].as_array().unwrap().clone();
    let one = rows(run(&["verify", model.arg(), "--layer", "1", "--stage", "down", "--json"]).json());
    assert_eq!(one.len(), 1);
    assert_eq!((&one[0]["layer"], &one[0]["stage"]), (&Value::from(1), &Value::from("down")));
    let all = rows(run(&["verify", model.arg(), "--stage", "down", "--json"]).json());
    let layers: Vec<_> = all.iter().map(|row| row["layer"].as_u64().unwrap()).collect();
    assert_eq!(layers, (0..layers.len() as u64).collect::<Vec<_>>());
    assert!(layers.len() > 1);

    run(&["verify", model.arg(), "--layer", "99"]).fails_with(&["--layer 99", "layers 0 to"]);
    assert_eq!(run(&["verify", model.arg(), "--stage", "nonsense"]).code, Some(2));
    for (flags, part) in [
        (["--layer", "0"].as_slice(), "--stage logits is of no layer: it cannot go with --layer"),
        (&["--moe-only"], "--stage logits is not judged with --moe-only: mlp_norm to combine are"),
    ] {
        // Before the model is looked for.
        let nothing = run(&[&["verify", "no/such-model", "--stage", "logits"], flags].concat());
        assert_eq!(nothing.code, Some(2));
        assert!(nothing.stderr.contains(part), "{}", nothing.stderr);
    }
}

#[test]
fn moe_only_visits_every_expert() {
    let model = Model::tiny();
    let report = run(&["verify", model.arg(), "--moe-only", "--json"]).json();
    let sections = report["sections"].as_array().unwrap();
    let names: Vec<_> = sections.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["checkpoint's weights", "random weights"]);
    for section in sections {
        assert_eq!(stages(section), STAGES[6..13]);
        assert!(section["experts"].as_u64().unwrap() > 0);
        assert_eq!(section["experts_visited"], section["experts"]);
    }
}

#[test]
fn a_gpu_that_is_not_there_is_said_before_the_model_is_looked_for() {
    let mut command = tessera(&["verify", "no/such-model", "--device", "cuda"]);
    // With a driver there is no device then, and without one there is no driver.
    command.env("CUDA_VISIBLE_DEVICES", "-1");
    finish(command).fails_with(&["NVIDIA"]);
}

#[test]
fn flags_of_the_gpu_that_mean_nothing_are_wrong_usage() {
    let cuda = &["verify", "no/such-model", "--device", "cuda"][..];
    for (args, part) in [
        (&[cuda, &["--stage", "gate_up"]].concat()[..], "--stage gate_up is not judged with --device cuda"),
        (&["verify", "no/such-model", "--moe-only", "--moe-kernel", "mid"], "--moe-kernel is about the GPU's experts"),
        (&[cuda, &["--moe-kernel", "mid"]].concat(), "it needs --device cuda --moe-only"),
        (&[cuda, &["--moe-only", "--stage", "gate_up"]].concat(), "--stage gate_up is not judged"),
        (&[cuda, &["--moe-only", "--moe-kernel", "none"]].concat(), "possible values: auto, stream, mid, prefill"),
    ] {
        let output = run(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(part) && output.stderr.contains("--help"), "{args:?}: {}", output.stderr);
    }
}

/// Overwrites one BF16 value of a tensor in the checkpoint's only file.
fn poke(model: &Model, tensor: &str, element: usize, value: u16) {
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header_len + start + 2 * element..][..2].copy_from_slice(&value.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
}

fn check_one_error_line(output: &Output, start: &str) {
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert!(output.stderr.starts_with(start), "{}", output.stderr);
}

#[test]
fn broken_weights_are_named_in_one_line() {
    const NAN: u16 = 0x7fc0;
    let model = Model::tiny();
    poke(&model, "model.layers.1.self_attn.o_proj.weight", 0, NAN);
    let output = run(&["verify", model.arg()]);
    let line = "error: layer 1 attn_out is not finite, even in the oracle, so the weights are broken: prefill 1, row 0, column 0: NaN";
    check_one_error_line(&output, line);
    assert!(output.stdout.contains("FAILED not finite") && !output.stdout.contains("\nok: "), "{}", output.stdout);

    let output = run(&["verify", model.arg(), "--json"]);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let failure = &report["first_not_finite"];
    assert_eq!((&failure["layer"], &failure["stage"]), (&Value::from(1), &Value::from("attn_out")));
    assert_eq!((&failure["place"]["value"], &report["ok"]), (&Value::from("NaN"), &Value::Bool(false)));
    check_one_error_line(&output, line);
}
