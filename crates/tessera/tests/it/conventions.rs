//! What every command keeps to: exit status, help, pipes, signals, colour.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::runner::{Model, finish, interrupt, read_json, run, tessera, wait};

const COMMANDS: [&str; 13] = [
    "generate",
    "chat",
    "inspect",
    "verify",
    "convert",
    "synth",
    "logits",
    "bench",
    "eval",
    "routes",
    "layout",
    "probe",
    "completions",
];

/// Commands of commands.
const PARTS: [&str; 1] = ["bench moe"];

/// A run that goes on for minutes, on the slow precision.
fn endless(model: &Model) -> Child {
    let ids = model.beside("ids.json", "[1, 2, 3]");
    let mut command = tessera(&["generate", "-m", model.arg(), "--tokens", &ids, "--context", "131072"]);
    command.args(["--precision", "f32"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn every_command_has_help_with_examples() {
    for command in COMMANDS.into_iter().chain(PARTS) {
        let help = run(&command.split(' ').chain(["--help"]).collect::<Vec<_>>()).ok();
        assert!(help.contains("Examples:") && help.contains(&format!("tessera {command} ")), "{command}: {help}");
    }
    let help = run(&["--help"]).ok();
    assert!(COMMANDS.iter().all(|command| help.contains(command)) && help.contains("Exit status"), "{help}");
}

#[test]
fn the_version_is_the_packages() {
    let version = run(&["--version"]).ok();
    assert!(version.starts_with(concat!("tessera ", env!("CARGO_PKG_VERSION"))), "{version}");
}

#[test]
fn wrong_usage_is_status_2() {
    for args in [
        &[][..],
        &["nonsense"],
        &["generate", "--nonsense", "x"],
        &["generate", "--temperature", "-1", "x"],
        &["generate", "--temperature", "nan", "x"],
        &["generate", "--top-p", "0", "x"],
        &["generate", "--top-p", "1.1", "x"],
        &["generate", "-n", "0", "x"],
        &["generate", "--threads", "0", "x"],
        &["generate", "--stop", "", "x"],
        &["generate", "--reasoning", "huge", "x"],
        &["generate", "--raw", "--system", "y", "x"],
        &["generate", "--tokens", "ids.json", "x"],
        &["generate", "--date", "tomorrow", "x"],
        &["generate", "--date", "2025-02-30", "x"],
        &["eval", "one", "-m", "two"],
        &["bench", "one", "--model", "two"],
        &["bench", "one", "moe"],
        &["bench", "moe", "one"],
        &["bench", "moe", "--tokens", "0"],
        &["bench", "moe", "--tokens", "1,65537"],
        &["bench", "moe", "--shape", "7b"],
        &["bench", "moe", "--moe-kernel", "fast"],
        &["bench", "moe", "--layers", "0"],
        &["bench", "moe", "--repetitions", "0"],
        &["logits", "model"],
        &["completions", "tcsh"],
    ] {
        let output = run(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains("Usage:") || output.stderr.contains("--help"), "{args:?}: {}", output.stderr);
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).ok();
        assert!(script.contains("show-reasoning") && script.contains("generate"), "{shell}");
    }
}

#[test]
fn ctrl_c_keeps_what_is_there_and_ends_with_130() {
    let model = Model::endless();
    let mut child = endless(&model);
    let mut stdout = child.stdout.take().unwrap();
    let mut start = [0; 20];
    stdout.read_exact(&mut start).unwrap();
    interrupt(&child);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(wait(&mut child), Some(130));
    let ids = format!("{}{rest}", std::str::from_utf8(&start).unwrap());
    let ids: Vec<u32> = serde_json::from_str(&ids).expect("the list is closed");
    assert!(ids.len() > 3);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.contains(", interrupted, ") && !stderr.contains("error"), "{stderr}");
}

/// How much a program has written so far; a thread reads it.
struct Shown(Arc<AtomicUsize>);

impl Shown {
    fn of(mut from: ChildStdout) -> Self {
        let n_bytes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&n_bytes);
        std::thread::spawn(move || {
            let mut some = [0; 1 << 12];
            while let Ok(n @ 1..) = from.read(&mut some) {
                counted.fetch_add(n, Ordering::Relaxed);
            }
        });
        Self(n_bytes)
    }

    fn wait_for_more(&self) {
        let before = self.0.load(Ordering::Relaxed);
        while self.0.load(Ordering::Relaxed) == before {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for_silence(&self) {
        let mut before = usize::MAX;
        while std::mem::replace(&mut before, self.0.load(Ordering::Relaxed)) != before {
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

#[test]
fn ctrl_c_stops_an_answer_of_a_chat_and_not_the_chat() {
    let model = Model::endless();
    let mut command = tessera(&["chat", "-m", model.arg(), "--precision", "f32", "--temperature", "0"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let shown = Shown::of(child.stdout.take().unwrap());
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let file = model.beside("saved.json", "");
    let mut stderr = Vec::new();
    for _ in 0..2 {
        stdin.write_all(b"hello\n").unwrap();
        shown.wait_for_more();
        interrupt(&child);
        // Where nothing is being answered, Ctrl-C ends the chat.
        let mut line = Vec::new();
        while !line.ends_with(b"[stopped]\n") {
            assert!(said.read_until(b'\n', &mut line).unwrap() > 0, "the chat ended");
        }
        stderr.extend(line);
        shown.wait_for_silence();
    }
    stdin.write_all(format!("/save {file}\n").as_bytes()).unwrap();
    drop(stdin);
    assert_eq!(wait(&mut child), Some(0));
    said.read_to_end(&mut stderr).unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(stderr.matches("[stopped]").count(), 2, "{stderr}");
    let messages = read_json(file.as_ref())["messages"].as_array().unwrap().clone();
    let users = messages.iter().filter(|m| m["role"] == "user").count();
    assert_eq!(users, 2);
    assert!(messages.len() > 1 + 2, "what was said before Ctrl-C is kept");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let model = Model::endless();
    let mut child = endless(&model);
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    drop(stdout);
    let mut stderr = child.stderr.take().unwrap();
    assert_eq!(wait(&mut child), Some(0));
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn output_to_a_closed_pipe_does_not_panic() {
    let model = Model::tiny();
    let inspect = ["inspect", model.arg()];
    for args in [&["--help"][..], &["completions", "bash"], &inspect, &[&inspect[..], &["--json"]].concat()] {
        let mut command = tessera(args);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer).stderr(Stdio::piped());
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

/// Runs under `script`, which gives it a terminal.
fn on_a_terminal(model: &Model, variables: &[(&str, &str)]) -> String {
    let line = format!("{} generate -m {} -n 3 hi", env!("CARGO_BIN_EXE_tessera"), model.arg());
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("RUST_LOG", "info").env("TERM", "xterm").env_remove("NO_COLOR");
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    finish(command).ok()
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let model = Model::tiny();
    assert!(on_a_terminal(&model, &[]).contains("\x1b["));
    assert!(!on_a_terminal(&model, &[("NO_COLOR", "1")]).contains("\x1b["));
    assert!(!on_a_terminal(&model, &[("TERM", "dumb")]).contains("\x1b["));
    let mut command = tessera(&["generate", "-m", model.arg(), "-n", "3", "hi"]);
    command.env("RUST_LOG", "info");
    let piped = finish(command);
    assert!(piped.stderr.contains("INFO") && !piped.stderr.contains('\x1b'), "{}", piped.stderr);
}

#[test]
fn text_appears_while_it_is_generated() {
    let model = Model::endless();
    let mut child = endless(&model);
    let mut first = Vec::new();
    BufReader::new(child.stdout.take().unwrap()).read_until(b',', &mut first).unwrap();
    assert!(first.starts_with(b"["));
    assert!(child.try_wait().unwrap().is_none(), "it goes on");
    child.kill().unwrap();
    child.wait().unwrap();
}
