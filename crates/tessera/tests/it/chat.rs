//! `tessera chat`, fed through a pipe: one prompt per line.

use serde_json::Value;

use crate::runner::{Model, read_json, run, run_with_stdin};

fn saved(model: &Model, lines: &str, args: &[&str]) -> Value {
    let file = model.beside("saved.json", "");
    let lines = format!("{lines}\n/save {file}\n");
    run_with_stdin(&[&["chat", "-m", model.arg(), "--temperature", "0"], args].concat(), &lines).ok();
    read_json(file.as_ref())
}

fn texts(conversation: &Value, role: &str) -> Vec<String> {
    let messages = conversation["messages"].as_array().unwrap().iter().filter(|m| m["role"] == role);
    messages.map(|m| m["content"][0]["text"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn each_line_is_a_turn() {
    let model = Model::tiny();
    let conversation = saved(&model, "one\n\ntwo\n//three", &["-n", "5"]);
    assert_eq!(texts(&conversation, "user"), ["one", "two", "/three"]);
    assert_eq!(conversation["messages"][0]["content"][0]["reasoning_effort"], "medium");
}

#[test]
fn the_first_turn_answers_as_generate_does() {
    let model = Model::tiny();
    let common = ["-m", model.arg(), "-n", "12", "--temperature", "0"];
    let chat = run_with_stdin(&[&["chat", "--hide-reasoning"], &common[..]].concat(), "hello\n").ok();
    assert_eq!(chat, run(&[&["generate"], &common[..], &["hello"]].concat()).ok());
}

#[test]
fn commands_change_the_conversation() {
    let model = Model::tiny();
    let lines = "one\n/reset\n/system Be brief.\n/reasoning high\ntwo";
    let conversation = saved(&model, lines, &["-n", "4"]);
    assert_eq!(texts(&conversation, "user"), ["two"]);
    assert_eq!(conversation["messages"][0]["content"][0]["reasoning_effort"], "high");
    assert_eq!(conversation["messages"][1]["content"][0]["instructions"], "Be brief.");
}

#[test]
fn a_saved_conversation_goes_on_as_if_it_had_not_ended() {
    let model = Model::tiny();
    let through = saved(&model, "/system Hm.\none\ntwo", &["-n", "6"]);
    let first = saved(&model, "/system Hm.\none", &["-n", "6"]);
    let file = model.beside("first.json", &first.to_string());
    assert_eq!(through, saved(&model, &format!("/load {file}\ntwo"), &["-n", "6"]));
}

#[test]
fn bye_leaves() {
    let model = Model::tiny();
    let output = run_with_stdin(&["chat", "-m", model.arg()], "/bye\nnot a prompt any more\n");
    assert_eq!(output.ok(), "");
}

#[test]
fn a_script_stops_at_the_first_error() {
    let model = Model::tiny();
    let chat = |lines: &str, args: &[&str]| run_with_stdin(&[&["chat", "-m", model.arg()], args].concat(), lines);
    chat("/nonsense\n", &[]).fails_with(&["no command /nonsense"]);
    chat("/save /no/such/folder/x\n", &[]).fails_with(&["/no/such/folder/x"]);
    chat("/load /no/such/file\n", &[]).fails_with(&["/no/such/file"]);
    chat("hello\n", &["--context", "64"]).fails_with(&["the context of 64"]);
}
