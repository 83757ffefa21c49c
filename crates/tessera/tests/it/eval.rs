//! `tessera eval`: what it counts, what it reads, what it refuses.

use serde_json::{Value, json};

use crate::demo::Scratch;
use crate::runner::{Model, run};

const ITEMS: &str = r#"{"family": "sums", "messages": [{"role": "user", "content": "What is 27 + 45?"}], "check": {"equals": "72"}}

{"family": "sums", "messages": [{"role": "user", "content": "What is 27 + 45?"}], "check": {"equals": "73"}}
{"family": "talk", "reasoning_effort": "low", "messages": [{"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}], "check": {"contains": "tessera"}}
"#;

#[test]
fn right_answers_are_counted_by_family() {
    let scratch = Scratch::new();
    let items = scratch.file("items.jsonl", ITEMS);
    let json = run(&["eval", "demo", "--items", &items, "--json"]).json();
    assert_eq!(json["families"]["sums"], json!({"right": 1, "items": 2, "accuracy": 0.5}));
    assert_eq!(json["families"]["talk"], json!({"right": 1, "items": 1, "accuracy": 1.0}));
    assert_eq!(json["all"]["right"], 2);
    let table = run(&["eval", "demo", "--items", &items]).ok();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 5, "{table}");
    assert!(rows[2].starts_with("| sums") && rows[2].ends_with("50.00 % |"), "{table}");
    let one = run(&["eval", "demo", "--items", &items, "--json", "--family", "sums", "--limit", "1"]).json();
    assert_eq!(one["all"], json!({"right": 1, "items": 1, "accuracy": 1.0}));
}

#[test]
fn answers_do_not_depend_on_how_many_are_computed_together() {
    let scratch = Scratch::new();
    let answers = |rows: &str| -> Vec<Value> {
        let file = scratch.path("answers.jsonl");
        run(&["eval", "demo", "--limit", "3", "--rows", rows, "--answers", &file]).ok();
        let text = std::fs::read_to_string(&file).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.sort_by_key(|line| line["index"].as_u64());
        lines
    };
    let alone = answers("1");
    assert_eq!(alone.len(), 30);
    assert_eq!(alone, answers("7"));
    assert_eq!(alone, answers("256"));
}

#[test]
fn any_checkpoint_can_be_asked() {
    let model = Model::tiny();
    let items = model.beside("items.jsonl", ITEMS);
    let json = run(&["eval", model.arg(), "--items", &items, "--json", "-n", "8"]).json();
    assert_eq!(json["all"], json!({"right": 0, "items": 3, "accuracy": 0.0}));
}

#[test]
fn bad_items_are_named_with_their_line() {
    let scratch = Scratch::new();
    let fails = |text: &str, parts: &[&str]| {
        let items = scratch.file("bad.jsonl", text);
        run(&["eval", "demo", "--items", &items]).fails_with(&[&["bad.jsonl"], parts].concat());
    };
    fails("", &["no items"]);
    fails("\n{", &["line 2", "expected an item such as"]);
    fails(r#"{"messages": [], "check": {"equals": "1"}}"#, &["line 1", "expected the last one to be the user's"]);
    fails(r#"{"messages": [{"role": "user", "content": "x"}]}"#, &["line 1", "check"]);
    fails(r#"{"messages": [{"role": "user", "content": "x"}], "check": {"is": "1"}}"#, &["line 1", "unknown variant"]);
    fails(r#"{"messages": [{"role": "bot", "content": "x"}], "check": {"equals": "1"}}"#, &["role \"bot\""]);
    fails(r#"{"messages": [{"role": "tool", "content": "x"}], "check": {"equals": "1"}}"#, &["tool_call_id"]);
    run(&["eval", "demo", "--items", "/nowhere.jsonl"]).fails_with(&["/nowhere.jsonl", "cannot read the items"]);
    run(&["eval", "demo", "--family", "poems"]).fails_with(&["--family poems", "addition"]);
    let long = format!(
        r#"{{"messages": [{{"role": "user", "content": "{}"}}], "check": {{"equals": "1"}}}}"#,
        "ab ".repeat(4000)
    );
    let items = scratch.file("long.jsonl", &long);
    run(&["eval", "demo", "--items", &items]).fails_with(&["item 1", "context is 4096"]);
}
