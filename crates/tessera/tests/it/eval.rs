//! `tessera eval`: what it counts, what it reads, what it refuses.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::demo::Scratch;
use crate::runner::{Model, interrupt, run, tessera, wait};

const ITEMS: &str = r#"{"family": "sums", "messages": [{"role": "user", "content": "What is 27 + 45?"}], "check": {"equals": "72"}}

{"family": "sums", "messages": [{"role": "user", "content": "What is 27 + 45?"}], "check": {"equals": "73"}}
{"family": "talk", "reasoning_effort": "low", "messages": [{"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}], "check": {"contains": "tessera"}}
"#;

#[test]
fn right_answers_are_counted_by_family() {
    let scratch = Scratch::new();
    let items = scratch.file("items.jsonl", ITEMS);
    let json = run(&["eval", "demo", "--items", &items, "--json"]).json();
    assert_eq!(json["families"]["sums"], json!({"right": 1, "cut_off": 0, "items": 2, "accuracy": 0.5}));
    assert_eq!(json["families"]["talk"], json!({"right": 1, "cut_off": 0, "items": 1, "accuracy": 1.0}));
    assert_eq!(json["all"]["right"], 2);
    let table = run(&["eval", "demo", "--items", &items]).ok();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 5, "{table}");
    assert!(rows[2].starts_with("| sums") && rows[2].ends_with("50.00 % |"), "{table}");
    let one = run(&["eval", "demo", "--items", &items, "--json", "--family", "sums", "--limit", "1"]).json();
    assert_eq!(one["all"], json!({"right": 1, "cut_off": 0, "items": 1, "accuracy": 1.0}));
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
fn ctrl_c_keeps_the_answers_so_far_and_says_how_many() {
    let scratch = Scratch::new();
    let (file, partial) = (scratch.file("answers.jsonl", "of another run"), scratch.path("answers.jsonl.partial"));
    let mut command = tessera(&["eval", "demo", "--precision", "f32", "--answers", &file]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while std::fs::metadata(&partial).map_or(0, |found| found.len()) == 0 {
        std::thread::sleep(Duration::from_millis(10));
        assert!(child.try_wait().unwrap().is_none(), "it goes on");
    }
    interrupt(&child);
    assert_eq!(wait(&mut child), Some(130));
    let (mut table, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut table).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let answers = std::fs::read_to_string(&partial).unwrap();
    let stopped = format!("stopped after {} of 20000 items", answers.lines().count());
    assert!(answers.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert_eq!(table.lines().last(), Some(stopped.as_str()));
    assert!(stderr.contains(&stopped) && stderr.contains(&partial) && !stderr.contains("error"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "of another run");
}

#[test]
fn answers_get_their_name_when_all_are_there() {
    let scratch = Scratch::new();
    let (items, file) = (scratch.file("items.jsonl", ITEMS), scratch.path("answers.jsonl"));
    run(&["eval", "demo", "--items", &items, "--answers", &file]).ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
    assert!(!Path::new(&scratch.path("answers.jsonl.partial")).exists());
    run(&["eval", "demo", "--items", &items, "--answers", "/dev/null"]).ok();
    let partial = scratch.file("items.partial", ITEMS);
    for (items, answers) in [(&items, &items), (&partial, &scratch.path("items"))] {
        run(&["eval", "demo", "--items", items, "--answers", answers]).fails_with(&["--answers", "overwrite --items"]);
        assert_eq!(std::fs::read_to_string(items).unwrap(), ITEMS);
    }
    run(&["eval", "demo", "--answers", "/no/such/file"]).fails_with(&["cannot write /no/such/file"]);
}

#[test]
fn any_checkpoint_can_be_asked() {
    let model = Model::tiny();
    let items = model.beside("items.jsonl", ITEMS);
    let json = run(&["eval", model.arg(), "--items", &items, "--json", "-n", "8"]).json();
    assert_eq!((&json["all"]["right"], &json["all"]["items"], &json["asked"]), (&json!(0), &json!(3), &json!(3)));
}

#[test]
fn answers_that_were_cut_off_are_counted() {
    let scratch = Scratch::new();
    let (items, file) = (scratch.file("items.jsonl", ITEMS), scratch.path("answers.jsonl"));
    let args = ["eval", "demo", "--items", &items, "-n", "4", "--answers", &file];
    let json = run(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(json["families"]["sums"], json!({"right": 0, "cut_off": 2, "items": 2, "accuracy": 0.0}));
    let output = run(&args);
    assert!(output.stderr.contains("3 answers were cut off at --max-tokens 4 or "), "{}", output.stderr);
    let header = "| family |  right | cut off |  items |   accuracy |";
    assert_eq!((output.stdout.lines().next(), output.code), (Some(header), Some(0)));
    let answers = std::fs::read_to_string(&file).unwrap();
    assert_eq!(answers.matches(r#""finish_reason":"length""#).count(), 3, "{answers}");
}

#[test]
fn more_room_than_the_machine_has_is_an_error() {
    let model = Model::tiny();
    model.edit("config.json", |config| config["max_position_embeddings"] = json!(1 << 24));
    let items = model.beside("items.jsonl", &ITEMS.repeat(100));
    let args = ["eval", model.arg(), "--items", &items, "-n", "99999999", "--rows", "256"];
    run(&args).fails_with(&["--rows 256 with 16777216 tokens", "memory of", "lower --rows or --max-tokens"]);
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
