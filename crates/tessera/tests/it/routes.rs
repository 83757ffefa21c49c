//! `tessera routes`: its JSON, what it runs, its arguments.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::runner::{Model, Output, finish, run, run_with_stdin, tessera};

mod routers;
mod shown;
mod xml;

/// `Model::tiny`.
const LAYERS: usize = 4;
const EXPERTS: usize = 8;
const TOP_K: usize = 4;

/// `routes MODEL`, then `args`.
fn routes(model: &Model, args: &[&str]) -> Output {
    run(&[&["routes", model.arg()], args].concat())
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

/// Experts with their weights, `[layers][tokens][top_k]`.
fn choices(json: &Value) -> Vec<Vec<Vec<(usize, f64)>>> {
    let choice = |c: &Value| (c["expert"].as_u64().unwrap() as usize, c["weight"].as_f64().unwrap());
    let token = |t: &Value| array(t).iter().map(choice).collect();
    array(&json["layers"]).iter().map(|layer| array(&layer["chosen"]).iter().map(token).collect()).collect()
}

fn ids(json: &Value) -> Vec<u32> {
    array(&json["tokens"]).iter().map(|token| token["id"].as_u64().unwrap() as u32).collect()
}

fn loads(json: &Value) -> Vec<Vec<f64>> {
    let shares = |layer: &Value| array(&layer["load"]).iter().map(|share| share.as_f64().unwrap()).collect();
    array(&json["layers"]).iter().map(shares).collect()
}

/// `top_k` of `experts` for each of `tokens` in each of `layers`, and loads that are the choices' counts.
fn check_json(json: &Value, layers: usize, tokens: usize, (top_k, experts): (usize, usize)) {
    assert_eq!((&json["num_local_experts"], &json["num_experts_per_tok"]), (&json!(experts), &json!(top_k)));
    assert_eq!((array(&json["tokens"]).len(), array(&json["layers"]).len()), (tokens, layers));
    for (at, (layer, chosen)) in array(&json["layers"]).iter().zip(choices(json)).enumerate() {
        assert_eq!((&layer["layer"], chosen.len()), (&json!(at), tokens));
        let mut counts = vec![0.0; experts];
        for token in &chosen {
            let distinct: BTreeSet<usize> = token.iter().map(|(expert, _)| *expert).collect();
            assert_eq!((token.len(), distinct.len()), (top_k, top_k));
            assert!(token.is_sorted_by(|a, b| a.1 >= b.1), "{token:?}");
            let sum: f64 = token.iter().map(|(_, weight)| weight).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{token:?}");
            distinct.iter().for_each(|&expert| counts[expert] += 1.0);
        }
        let load = &loads(json)[at];
        assert!((load.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let slots = (tokens * top_k) as f64;
        assert!(load.iter().zip(&counts).all(|(share, count)| (share * slots - count).abs() < 1e-9), "{load:?}");
        let never = counts.iter().filter(|count| **count == 0.0).count();
        assert_eq!(layer["never_chosen"], never);
        let (most, mean) = (counts.iter().copied().fold(0.0, f64::max), slots / experts as f64);
        assert!((layer["max_over_mean"].as_f64().unwrap() - most / mean).abs() < 1e-9);
    }
}

#[test]
fn json_has_every_choice_and_the_loads() {
    let model = Model::tiny();
    let prompt = "<|start|>user<|message|>one <two>\n<|end|>";
    for (like, layers, shape) in [("tiny", 4, (4, 8)), ("tiny-top3", 3, (3, 6)), ("tiny-wide", 2, (4, 128))] {
        let path = model.path().with_file_name(like);
        run(&["synth", "--like", like, path.to_str().unwrap()]).ok();
        let json = run(&["routes", path.to_str().unwrap(), "--json", "--raw", prompt]).json();
        // Control tokens are one each, all else is bytes.
        let n_tokens = "user".len() + "one <two>\n".len() + 3;
        check_json(&json, layers, n_tokens, shape);
        let texts: Vec<&str> = array(&json["tokens"]).iter().map(|token| token["text"].as_str().unwrap()).collect();
        assert_eq!((texts.concat().as_str(), texts[0]), (prompt, "<|start|>"));
        assert_eq!((&json["prompt_tokens"], &json["precision"]), (&json!(n_tokens), &json!("bf16")));
        assert!(array(&json["tokens"]).iter().enumerate().all(|(i, token)| token["position"] == json!(i)));
    }
}

#[test]
fn generated_tokens_are_run_like_those_of_the_prompt() {
    let model = Model::endless();
    let prompt = model.beside("ids.json", "[5, 6, 7]");
    let common = ["--json", "--precision", "f32", "--tokens"];
    let generate = ["generate", "-m", model.arg(), "--temperature", "0", "-n", "6", "--tokens", &prompt];
    let answer: Vec<u32> = serde_json::from_str(&run(&generate).ok()).unwrap();
    let all = [&[5, 6, 7], &answer[..]].concat();
    let json = routes(&model, &[&common[..], &[&prompt, "-n", "6"]].concat()).json();
    assert_eq!((ids(&json), &json["prompt_tokens"]), (all.clone(), &json!(3)));
    assert!(json["tokens"][0]["text"].is_null());
    // The oracle computes a token as it does in any company.
    let read = routes(&model, &[&common[..], &[&model.beside("all.json", &format!("{all:?}"))]].concat()).json();
    assert_eq!(json["layers"], read["layers"]);
    check_json(&json, LAYERS, 9, (TOP_K, EXPERTS));
    let cut = routes(&model, &[&common[..], &[&prompt, "-n", "6", "--context", "5"]].concat()).json();
    assert_eq!(ids(&cut), all[..5]);

    model.edit("config.json", |config| config["eos_token_id"] = json!(answer[2]));
    let first = answer.iter().position(|id| *id == answer[2]).unwrap();
    let stopped = routes(&model, &[&common[..], &[&prompt, "-n", "6"]].concat()).json();
    assert_eq!(ids(&stopped), all[..3 + first]);
}

#[test]
fn the_last_tokens_alone() {
    let model = Model::tiny();
    let all = routes(&model, &["--json", "--raw", "0123456789"]).json();
    let last = routes(&model, &["--json", "--raw", "--last", "3", "0123456789"]).json();
    check_json(&last, LAYERS, 3, (TOP_K, EXPERTS));
    assert_eq!(array(&last["tokens"]), &array(&all["tokens"])[7..]);
    assert_eq!((&last["tokens"][0]["position"], &last["prompt_tokens"]), (&json!(7), &json!(10)));
    for (all, last) in choices(&all).iter().zip(choices(&last)) {
        assert_eq!(all[7..], last);
    }
    let more = routes(&model, &["--json", "--raw", "--last", "99", "0123456789"]).json();
    assert_eq!(more, all);
    let text = routes(&model, &["--raw", "--last", "3", "0123456789"]).ok();
    assert!(text.contains("tokens 7 to 9"), "{text}");
}

#[test]
fn a_single_argument_is_the_prompt() {
    let model = Model::tiny();
    let expect = routes(&model, &["--json", "hi"]).json();
    let layers = |args: &[&str]| run(&[&["routes", "--json"], args].concat()).json()["layers"].clone();
    assert_eq!(layers(&["-m", model.arg(), "hi"]), expect["layers"]);
    assert_eq!(layers(&[model.arg(), "--threads", "2", "hi"]), expect["layers"]);
    let from_environment = |variable: &str, args: &[&str]| {
        let mut command = tessera(&[&["routes", "--json"], args].concat());
        command.env("TESSERA_MODEL", variable);
        finish(command).json()["layers"].clone()
    };
    assert_eq!(from_environment(model.arg(), &["hi"]), expect["layers"]);
    assert_eq!(from_environment("/no/such", &[model.arg(), "hi"]), expect["layers"]);
    for args in [&["routes", "--json", model.arg(), "-"][..], &["routes", "--json", "-m", model.arg()]] {
        assert_eq!(run_with_stdin(args, "hi\n").json()["layers"], expect["layers"]);
    }
    let cache = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = tessera(&["routes", "--json", "hi"]);
    command.env("XDG_CACHE_HOME", cache.path());
    assert!(!array(&finish(command).json()["tokens"]).is_empty());
}

#[test]
fn a_model_taken_for_the_prompt_is_noted() {
    let model = Model::tiny();
    let note = |args: &[&str]| run(&[&["routes"], args].concat()).stderr;
    for lone in ["demo", model.arg(), "openai/gpt-oss-20b"] {
        let expect =
            format!("note: {lone} alone is the prompt; for a model of that name: tessera routes {lone} PROMPT");
        assert!(note(&[lone]).lines().any(|line| line == expect), "{}", note(&[lone]));
    }
    assert_eq!(note(&["demo", "demo"]), "");
    assert_eq!(note(&["-m", model.arg(), "demo"]), "");
    assert!(!note(&["What is 27 + 45?"]).contains("note: "));
}

#[test]
fn the_prompt_is_rendered_as_for_an_answer() {
    let model = Model::tiny();
    let chat = ["--date", "2025-06-28", "--reasoning", "high", "--system", "Be brief.", "Hi"];
    let json = routes(&model, &[&["--json"], &chat[..]].concat()).json();
    let answered = run(&[&["generate", "-m", model.arg(), "--json", "-n", "1"], &chat[..]].concat()).json();
    assert_eq!(json["prompt_tokens"], answered["prompt_tokens"]);
    let text: String = array(&json["tokens"]).iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert!(text.contains("Current date: 2025-06-28\n\nReasoning: high"), "{text}");
    let end = "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|><|start|>user<|message|>Hi<|end|><|start|>assistant";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_run() {
    let model = Model::tiny();
    for file in ["/no/such/folder/routes.svg", model.arg()] {
        routes(&model, &["--svg", file, "hi"]).fails_with(&["cannot write", file]);
    }
    let file = model.path().with_file_name("routes.svg");
    let draw = |args: &[&str]| routes(&model, &[&["--svg", file.to_str().unwrap()], args].concat());
    draw(&["-n", "99999", "hi"]).fails_with(&["--svg", "more than the 200000", "--last 12500", "--json"]);
    draw(&["--context", "50", "--raw", &"x".repeat(51)]).fails_with(&["51 tokens", "the context of 50"]);
    draw(&[" "]).fails_with(&["the prompt is empty"]);
    draw(&["--context", "131073", "hi"]).fails_with(&["--context 131073", "limit of 131072"]);
    draw(&["--tokens", &model.beside("ids.json", "[1, 600]")]).fails_with(&["ids.json", "id 600"]);
    assert!(!file.exists(), "nothing was drawn");
    run(&["routes", "/no/such/folder", "hi"]).fails_with(&["/no/such/folder", "no such file or folder"]);
    std::fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    routes(&model, &["hi"]).fails_with(&["has no tokenizer.json", "--tokens"]);
    routes(&model, &["--tokens", &model.beside("ids.json", "[1, 2]")]).ok();
}

#[test]
fn wrong_usage_is_status_2() {
    let model = Model::tiny();
    for args in [
        &["--last", "0", "x"][..],
        &["-n", "-1", "x"],
        &["--raw", "--system", "y", "x"],
        &["--tokens", "ids.json", "--raw", "x"],
        &["--tokens", "ids.json", "model", "x"],
        &["-m", "one", "two", "x"],
        &["one", "two", "three"],
    ] {
        let output = run(&[&["routes"], args].concat());
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains("Usage:") || output.stderr.contains("--help"), "{args:?}: {}", output.stderr);
    }
    let help = run(&["routes", "--help"]).ok();
    assert!(help.contains("Examples:") && help.contains("tessera routes "), "{help}");
    assert_eq!(routes(&model, &["--raw", "x"]).stderr, "");
}
