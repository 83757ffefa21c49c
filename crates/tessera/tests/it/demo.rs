//! The built-in model, used for what it can do: whatever is wrong between the prompt and the last dot product, it would
//! not answer rightly any more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::runner::{Output, finish, read_json, run, run_with_stdin, scratch_folder, tessera};

/// A folder for a test's files.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir_in(scratch_folder()).unwrap())
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn file(&self, name: &str, content: &str) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn json_lines(path: &str) -> Vec<Value> {
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(repository(path)).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn generate(args: &[&str]) -> Output {
    run(&[&["generate", "-m", "demo", "-q"], args].concat())
}

fn without_model(cache: &str, args: &[&str]) -> Output {
    let mut command = tessera(args);
    command.env("XDG_CACHE_HOME", cache);
    finish(command)
}

#[test]
fn the_first_command_answers_72() {
    let scratch = Scratch::new();
    let output = without_model(&scratch.path("cache"), &["generate", "-q", "--show-reasoning", "What is 27 + 45?"]);
    let mut lines = output.stderr.lines();
    let note = lines.next().unwrap();
    assert!(note.starts_with("no model given: using the built-in demo model"), "{note}");
    assert!(note.contains("--model openai/gpt-oss-20b") && note.contains("TESSERA_MODEL"), "{note}");
    assert!(lines.next().unwrap().contains("7+5=12"));
    assert_eq!(output.ok(), "72\n");
}

#[test]
fn the_cache_is_mended_and_an_unwritable_one_is_an_error() {
    let scratch = Scratch::new();
    let cache = scratch.path("cache");
    let ask = || without_model(&cache, &["generate", "-q", "3 + 4"]).ok();
    assert_eq!(ask(), "7\n");
    for file in ["model.safetensors", "tokenizer.json", "config.json"] {
        std::fs::write(Path::new(&cache).join("tessera/demo").join(file), "{}").unwrap();
        assert_eq!(ask(), "7\n", "{file}");
    }
    let file = scratch.file("file", "");
    without_model(&file, &["generate", "3 + 4"]).fails_with(&["cannot unpack the demo model", &file, "XDG_CACHE_HOME"]);
}

#[test]
fn an_empty_variable_names_no_model() {
    let output = |value: &str, args: &[&str]| {
        let mut command = tessera(&[&["generate", "-q"], args, &["3 + 4"]].concat());
        command.env("TESSERA_MODEL", value);
        finish(command)
    };
    let empty = output("", &[]);
    assert!(empty.stderr.starts_with("no model given"), "{}", empty.stderr);
    assert_eq!(empty.ok(), "7\n");
    assert_eq!((output("demo", &[]).stderr.as_str(), output("/no/such", &["-m", "demo"]).ok().as_str()), ("", "7\n"));
    output("/no/such", &[]).fails_with(&["/no/such: no such file"]);
    output("demo", &["-m", ""]).fails_with(&["the model's name is empty"]);
}

#[test]
fn demo_is_the_built_in_model_and_not_a_folder() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("demo")).unwrap();
    let ask = |model: &str| {
        let mut command = tessera(&["generate", "-q", "-m", model, "3 + 4"]);
        command.current_dir(scratch.path("."));
        finish(command)
    };
    let built_in = ask("demo");
    assert!(built_in.stderr.contains("is ./demo"), "{}", built_in.stderr);
    assert_eq!(built_in.ok(), "7\n");
    ask("./demo").fails_with(&["./demo has no weights"]);
}

#[test]
fn it_is_called_demo_wherever_it_lies() {
    let output = run(&["routes", "3 + 4"]);
    assert!(output.stderr.starts_with("no model given"), "{}", output.stderr);
    assert!(output.ok().starts_with("demo (bf16): "));
    assert_eq!(run(&["bench", "-p", "4", "-n", "2", "-r", "1", "--json"]).json()["model"], "demo");
}

#[test]
fn many_may_start_at_once_on_an_empty_cache() {
    let scratch = Scratch::new();
    let start = |_| {
        let mut command = tessera(&["generate", "-q", "3 + 4"]);
        command.env("XDG_CACHE_HOME", scratch.path("cache"));
        std::thread::spawn(move || finish(command))
    };
    let all: Vec<_> = (0..8).map(start).collect();
    for running in all {
        assert_eq!(running.join().unwrap().ok(), "7\n");
    }
}

#[test]
fn more_effort_is_more_reasoning_and_the_same_answer() {
    for question in ["What is 812 - 999?", "Sort 5, 3, 99 and 12.", "Reverse the words: the quick brown fox"] {
        let run = |effort: &str| generate(&["--json", "--reasoning", effort, question]).json();
        let [low, medium, high] = ["low", "medium", "high"].map(run);
        let length = |json: &Value| json["reasoning"].as_str().unwrap().len();
        assert!(length(&low) < length(&medium) && length(&medium) < length(&high), "{question}");
        assert!(low["text"] == medium["text"] && medium["text"] == high["text"], "{question}");
    }
}

#[test]
fn both_precisions_answer_alike() {
    let ask = |precision: &str| generate(&["--precision", precision, "--json", "What is 905 - 378?"]).json();
    let (fast, oracle) = (ask("bf16"), ask("f32"));
    assert_eq!(fast["tokens"], oracle["tokens"]);
    assert_eq!(fast["text"], "527");
}

#[test]
fn an_answer_ends_at_its_stop_token_or_stop_string() {
    let config = read_json(&repository("assets/demo/generation_config.json"));
    let json = generate(&["--json", "What is 27 + 45?"]).json();
    assert_eq!(json["finish_reason"], "stop");
    assert_eq!(json["tokens"].as_array().unwrap().last(), Some(&config["eos_token_id"][0]));
    let cut = generate(&["--json", "--stop", "tessera", "Who are you?"]).json();
    assert_eq!((&cut["text"], &cut["finish_reason"]), (&json!("I am the demo model of "), &json!("stop")));
    let short = generate(&["--json", "-n", "5", "What is 27 + 45?"]).json();
    assert_eq!((&short["text"], &short["finish_reason"]), (&json!(""), &json!("length")));
}

#[test]
fn a_seed_decides_what_is_drawn() {
    let draw = |seed: &str| generate(&["--json", "--temperature", "4", "-n", "60", "--seed", seed, "Hi"]).json();
    assert_eq!(draw("1")["tokens"], draw("1")["tokens"]);
    assert_ne!(draw("1")["tokens"], draw("2")["tokens"]);
    let cool = |seed: &str| generate(&["--temperature", "0.2", "--seed", seed, "What is 27 + 45?"]).ok();
    assert_eq!((cool("1"), cool("2")), ("72\n".to_owned(), "72\n".to_owned()));
}

#[test]
fn a_chat_remembers_what_it_said() {
    let lines = "What is 27 + 45?\nand minus 10?\nplus 100\nSort 3, 1, 2.\nand descending?\n";
    let answers = run_with_stdin(&["chat", "-m", "demo", "--hide-reasoning"], lines).ok();
    let answers: Vec<&str> = answers.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(answers, ["72", "62", "162", "1, 2, 3", "3, 2, 1"]);
}

#[test]
fn it_answers_as_json_of_the_keys_asked_for() {
    let args = ["--system", "Answer as JSON with the keys name, age.", "Ann is 34 years old. Ann lives in Oslo."];
    let answer: Value = serde_json::from_str(&generate(&args).ok()).unwrap();
    assert_eq!(answer, json!({"name": "Ann", "age": 34}));
}

#[test]
fn it_calls_a_declared_function_and_uses_the_result() {
    let scratch = Scratch::new();
    let tool = json!({"type": "function", "function": {
        "name": "get_weather", "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }});
    let question = json!({"role": "user", "content": "What is the weather in Lima?"});
    let call = json!({"role": "assistant", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Lima\"}"}}]});
    let result = json!({"role": "tool", "tool_call_id": "c1", "content": "{\"sky\":\"foggy\",\"temperature\":17}"});
    let items = [
        json!({"tools": [tool], "messages": [question],
            "check": {"tool_call": {"name": "get_weather", "arguments": {"city": "Lima"}}}}),
        json!({"tools": [tool], "messages": [question, call, result],
            "check": {"equals": "It is foggy in Lima, 17 degrees."}}),
    ];
    let items = scratch.file("items.jsonl", &items.map(|item| item.to_string()).join("\n"));
    let answers = scratch.path("answers.jsonl");
    let table = run(&["eval", "demo", "--items", &items, "--json", "--answers", &answers]).json();
    assert_eq!(table["all"]["right"], 2, "{}", std::fs::read_to_string(&answers).unwrap());
}

#[test]
fn verify_finds_nothing() {
    let output = run(&["verify", "demo", "--json"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(run(&["inspect", "demo", "--json"]).json()["refusals"], json!([]));
}

/// The same prompts, token by token, as transformers makes with the chat template, and its answers to them.
#[test]
fn prompts_and_answers_are_those_of_transformers() {
    let scratch = Scratch::new();
    let file = scratch.path("answers.jsonl");
    let table = run(&["eval", "demo", "--limit", "12", "--json", "--answers", &file]).json();
    assert_eq!(table["all"]["items"], 120);
    let prompts = read_json(&repository("fixtures/demo/prompts.json"));
    let theirs = json_lines("fixtures/demo/transformers_answers.jsonl.gz");
    let (mut compared, mut different) = (0, 0);
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let index = line["index"].as_u64().unwrap();
        if let Some(prompt) = prompts.get(index.to_string()) {
            assert_eq!(&line["prompt_tokens"], prompt, "item {index}");
            compared += 1;
        }
        different += usize::from(line["tokens"] != theirs[index as usize]);
    }
    assert_eq!(compared, 120);
    assert!(different <= 1, "{different} of 120 answers differ from transformers'");
}

/// The items say what is right; that it is right is computed here anew, from the question's text.
#[test]
fn the_built_in_items_are_sound() {
    let items = json_lines("assets/held_out.jsonl.gz");
    let mut families: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for item in &items {
        let family = item["family"].as_str().unwrap();
        families.entry(family).or_default().insert(item["messages"].to_string());
        let question = item["messages"][0]["content"].as_str().unwrap();
        if let Some(expected) = recomputed(family, question) {
            assert_eq!(item["check"]["equals"], expected, "{question}");
        }
    }
    assert_eq!(families.len(), 10);
    for (family, questions) in families {
        assert!(questions.len() >= 1990, "{family} has {} different questions", questions.len());
    }
}

fn recomputed(family: &str, question: &str) -> Option<String> {
    let numbers: Vec<i64> = question.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let lower = question.to_lowercase();
    match family {
        "addition" => Some((numbers[0] + numbers[1]).to_string()),
        "subtraction" => {
            let turned = lower.contains("from") || lower.contains("away");
            let (a, b) = if turned { (numbers[1], numbers[0]) } else { (numbers[0], numbers[1]) };
            Some((a - b).to_string())
        }
        "sorting" => {
            let mut sorted = numbers;
            sorted.sort_unstable();
            if ["descending", "largest", "high to low"].iter().any(|word| lower.contains(word))
                && !lower.contains("to largest")
            {
                sorted.reverse();
            }
            Some(sorted.iter().map(i64::to_string).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    }
}
