//! `tessera eval`: what it counts, what it reads, what it refuses.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tessera_cpu::OracleExecutor;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Executor, Limits, Row};

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
    let one = run(&["eval", "-m", "demo", "--items", &items, "--json", "--family", "sums", "--limit", "1"]).json();
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

/// Positions that a sequence's sliding blocks hold at most: the window of `Model::tiny` and a step's 512 tokens, rounded up.
const RING: usize = 16 + 512 + 2 * BLOCK_SIZE;
/// The fast path may take another token than the oracle where two logits, of rms 1, are closer than this. Measured with
/// AVX-512, rows 1 and 3: 0.
const MAX_REGRET: f32 = 0.05;

/// Each of `tokens` after the first `from`: how far its logit is below the largest, by the oracle, all in one step and
/// with a block for every position.
fn regrets(model: &Model, tokens: &[u32], from: usize) -> Vec<f32> {
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let (config, n) = (checkpoint.config(), tokens.len() - 1);
    let blocks = n.div_ceil(BLOCK_SIZE);
    let limits = Limits { full_blocks: blocks, sliding_blocks: blocks, max_step_tokens: n };
    let block_tables = BlockTables::sole(n, blocks);
    let row = Row { n_tokens: n, start: 0, block_tables, n_logits: tokens.len() - from, sampling: None };
    let mut oracle = OracleExecutor::new(config, checkpoint.weights(), limits, 2);
    oracle.step(&Batch { tokens: tokens[..n].to_vec(), rows: vec![row] }).unwrap();
    let logits = oracle.logits().unwrap();
    let regret =
        |(logits, &token): (&[f32], &u32)| logits.iter().copied().fold(f32::MIN, f32::max) - logits[token as usize];
    logits.chunks(config.vocab_size).zip(&tokens[from..]).map(regret).collect()
}

/// Prompts and answers that go round the sliding layers' ring of blocks, alone and three at a time.
#[test]
fn long_prompts_are_answered_as_the_oracle_would() {
    let model = Model::endless();
    let question = |n: usize| {
        let text: String = (0..n as u32).map(|i| char::from(b' ' + (i * i % 89) as u8)).collect();
        json!({"messages": [{"role": "user", "content": text}], "check": {"equals": ""}}).to_string()
    };
    let items = model.beside("items.jsonl", &[600, 1100, 470].map(question).join("\n"));
    let file = model.beside("answers.jsonl", "");
    for (precision, rows) in [("f32", "1"), ("f32", "3"), ("bf16", "1"), ("bf16", "3")] {
        let args = ["--items", &items, "-n", "16", "--precision", precision, "--rows", rows, "--answers", &file];
        run(&[&["eval", model.arg()], &args[..]].concat()).ok();
        let answers = std::fs::read_to_string(&file).unwrap();
        assert_eq!(answers.lines().count(), 3);
        for line in answers.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let ids = |field: &str| -> Vec<u32> { serde_json::from_value(line[field].clone()).unwrap() };
            let (prompt, answer) = (ids("prompt_tokens"), ids("tokens"));
            assert!(prompt.len() > RING && answer.len() == 16, "{} + {}", prompt.len(), answer.len());
            let most = regrets(&model, &[&prompt[..], &answer].concat(), prompt.len()).into_iter().fold(0.0, f32::max);
            println!("{precision}, {rows} rows, {} tokens: regret {most:.1e}", prompt.len());
            assert!(most <= if precision == "f32" { 0.0 } else { MAX_REGRET }, "{precision}, {rows} rows: {most}");
        }
    }
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
fn the_items_of_the_help_are_items() {
    let help = run(&["eval", "--help"]).ok();
    let line = help.lines().map(str::trim).find(|line| line.starts_with("{\"messages\"")).expect("an example");
    let scratch = Scratch::new();
    let items = scratch.file("items.jsonl", line);
    let json = run(&["eval", "demo", "--items", &items, "--json"]).json();
    assert_eq!(json["families"]["other"]["right"], 1);
}

const QUESTION: &str = r#"{"role": "user", "content": "x"}"#;

/// What eval says of the item, without the name of the file.
#[track_caller]
fn refused(item: &str, parts: &[&str]) {
    let scratch = Scratch::new();
    let items = scratch.file("bad.jsonl", item);
    run(&["eval", "demo", "--items", &items]).fails_with(&[&["bad.jsonl:"], parts].concat());
}

/// Of a line with these fields, and a check where they have none.
#[track_caller]
fn refused_fields(fields: &str, parts: &[&str]) {
    let check = if fields.contains("check") { "" } else { r#", "check": {"equals": "1"}"# };
    refused(&format!("\n{{{fields}{check}}}"), &[&["bad.jsonl:2: "], parts].concat());
}

#[test]
fn lines_that_are_no_items_are_named() {
    refused("", &["no items"]);
    refused("\n{", &["bad.jsonl:2: ", "column 1: EOF", "expected an item such as"]);
    refused("[\n{}]", &["bad.jsonl:1: ", "found an array", "a line of its own"]);
    refused_fields(r#""messages": [], "question": 1"#, &["unknown field `question`"]);
    run(&["eval", "demo", "--items", "/nowhere.jsonl"]).fails_with(&["/nowhere.jsonl", "cannot read the items"]);
    run(&["eval", "demo", "--family", "poems"]).fails_with(&["--family poems", "addition"]);
    let long = format!(r#""messages": [{{"role": "user", "content": "{}"}}]"#, "ab ".repeat(4000));
    refused_fields(&long, &["the prompt has", "context is 4096", "shorten it"]);
}

#[test]
fn a_byte_order_mark_is_no_part_of_an_item() {
    let scratch = Scratch::new();
    let items = scratch.file("items.jsonl", &format!("\u{feff}{ITEMS}"));
    assert_eq!(run(&["eval", "demo", "--items", &items, "--json"]).json()["all"]["right"], 2);
}

#[test]
fn messages_that_cannot_be_told_to_the_model_are_named() {
    let messages = |message: &str, parts: &[&str]| {
        refused_fields(&format!(r#""messages": [{QUESTION}, {message}, {QUESTION}]"#), parts);
    };
    refused_fields(r#""messages": []"#, &["expected the last one to be the user's"]);
    for role in ["user", "system", "assistant"] {
        messages(&format!(r#"{{"role": "{role}"}}"#), &["messages[1]", role, "has no content, expected text"]);
    }
    messages(r#"{"role": "user", "content": 7}"#, &["messages[1]", "content: found 7, expected text"]);
    let image = r#"{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}"#;
    messages(image, &["messages[1]", "type \"image_url\", expected \"text\""]);
    messages(r#"{"role": "user", "content": [{"type": "text"}]}"#, &["messages[1]", "a part without text"]);
    messages(r#"{"role": "bot", "content": "x"}"#, &["messages[1]", "role \"bot\", expected system"]);
    messages(r#"{"role": "tool", "content": "x"}"#, &["messages[1]", "tool_call_id"]);
}

#[test]
fn settings_of_an_item_are_checked() {
    let with = |fields: &str, parts: &[&str]| refused_fields(&format!(r#""messages": [{QUESTION}], {fields}"#), parts);
    with(r#""current_date": "tomorrow""#, &["current_date: found \"tomorrow\", expected a day as YYYY-MM-DD"]);
    with(r#""reasoning_effort": "huge""#, &["unknown variant `huge`", "`medium`"]);
    with(r#""response_format": {"type": "json_object"}"#, &["response_format: type \"json_object\", expected"]);
    with(r#""response_format": {"type": "json_schema"}"#, &["response_format: it has no json_schema"]);
    with(r#""family": "a\u001b[2Jb""#, &["family: found \"a\\u{1b}[2Jb\"", "without control characters"]);
    with(r#""family": """#, &["family: found \"\""]);
}

#[test]
fn an_item_has_one_check_that_says_something() {
    let check = |check: &str, parts: &[&str]| {
        refused_fields(&format!(r#""messages": [{QUESTION}], "check": {check}"#), &[&["check: "], parts].concat());
    };
    refused(&format!(r#"{{"messages": [{QUESTION}]}}"#), &["missing field `check`"]);
    check(r#"{"is": "1"}"#, &["expected one of equals, contains", "unknown variant `is`"]);
    check(r#"{"equals": 1}"#, &["invalid type: integer `1`, expected a string"]);
    check(r#"{"equals": "1", "contains": "1"}"#, &["found [\"equals\", \"contains\"], expected one of"]);
    check("{}", &["found [], expected one of"]);
    check("\"1\"", &["found \"1\", expected one of"]);
    check(r#"{"contains": " "}"#, &["contains: found nothing but white space"]);
}
