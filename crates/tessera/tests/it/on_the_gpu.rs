//! The program on a GPU: the same commands, the same answers. Without one, tests say that they are skipped.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use tessera_cuda::Device;

use crate::demo::Scratch;
use crate::runner::{Model, driver, run, run_with_driver, tessera};

/// Whether there is a GPU. With `REQUIRE_GPU=1` in the environment, none is a failure.
#[track_caller]
fn gpu() -> bool {
    let Err(reason) = Device::open() else { return true };
    if std::env::var_os("REQUIRE_GPU").is_some_and(|required| required == "1") {
        panic!("REQUIRE_GPU=1, but {reason}");
    }
    // On the real stderr: libtest hides what a passing test prints.
    let thread = std::thread::current();
    let line = format!("SKIPPED: no GPU ({reason}): {}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).expect("stderr can be written");
    false
}

const CUDA: [&str; 2] = ["--device", "cuda"];

fn on_gpu(args: &[&str]) -> crate::runner::Output {
    run_with_driver(&[args, &CUDA].concat())
}

#[test]
fn generate_answers_as_on_the_cpu() {
    if !gpu() {
        return;
    }
    for prompt in ["What is 27 + 45?", "Who are you?", "Reverse the word: tessera"] {
        let args = ["generate", "-q", "-m", "demo", "--temperature", "0", prompt];
        let (cpu, gpu, auto) = (run(&args), on_gpu(&args), run_with_driver(&args));
        assert_eq!((gpu.stderr.as_str(), auto.stderr.as_str()), ("", ""), "{prompt}");
        let answer = gpu.ok();
        assert_eq!((&answer, &cpu.ok()), (&auto.ok(), &answer), "{prompt}");
    }
    let loud = on_gpu(&["generate", "-m", "demo", "-v", "3 + 4"]);
    for part in ["on the GPU, NVIDIA ", " GB of its memory taken, ", " KV blocks for full layers and "] {
        assert!(loud.stderr.contains(part), "{part}: {}", loud.stderr);
    }
    assert_eq!(loud.ok(), "7\n");
}

#[test]
fn chat_goes_on_from_what_is_cached() {
    if !gpu() {
        return;
    }
    let chat = |device: &str| {
        let mut command =
            tessera(&["chat", "-m", "demo", "--temperature", "0", "--hide-reasoning", "--device", device]);
        command
            .env_remove("CUDA_VISIBLE_DEVICES")
            .envs(driver())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"What is 27 + 45?\nWhat is 3 + 4?\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(chat("cuda"), chat("cpu"));
}

/// Answers of `eval` by item.
fn answers(scratch: &Scratch, device: &str, rows: &str) -> Vec<Value> {
    let file = scratch.path("answers.jsonl");
    run_with_driver(&["eval", "demo", "--limit", "4", "--rows", rows, "--device", device, "--answers", &file]).ok();
    let text = std::fs::read_to_string(&file).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["index"].as_u64());
    lines
}

/// Of 40 answers, as many may have other tokens than the CPU's: where two logits are as near as BF16 rounds, either is
/// right to take.
const MAX_OTHER_ANSWERS: usize = 2;

#[test]
fn eval_answers_as_on_the_cpu_whatever_is_computed_together() {
    if !gpu() {
        return;
    }
    let scratch = Scratch::new();
    let (alone, cpu) = (answers(&scratch, "cuda", "1"), answers(&scratch, "cpu", "32"));
    assert_eq!((alone.len(), cpu.len()), (40, 40));
    let others: Vec<&Value> = alone
        .iter()
        .zip(&cpu)
        .filter(|(gpu, cpu)| gpu["tokens"] != cpu["tokens"])
        .map(|(gpu, _)| &gpu["index"])
        .collect();
    println!("other tokens than on the CPU: items {others:?}");
    assert!(others.len() <= MAX_OTHER_ANSWERS, "{others:?}");
    for rows in ["7", "256"] {
        assert!(answers(&scratch, "cuda", rows) == alone, "--rows {rows} gives other answers than one by one");
    }
}

#[test]
fn logits_are_the_same_bits_however_many_are_wanted() {
    if !gpu() {
        return;
    }
    let model = Model::tiny();
    // More than one step has room for.
    let ids: Vec<usize> = (0..1500).map(|i| i * 7 % 512).collect();
    let (ids, out) = (model.beside("ids.json", &format!("{ids:?}")), model.beside("out.npy", ""));
    let logits = |args: &[&str]| {
        on_gpu(&[&["logits", model.arg(), "--tokens", &ids, "--out", &out], args].concat()).ok();
        std::fs::read(&out).unwrap()
    };
    let all = logits(&[]);
    assert!(all.len() > 1500 * 512 * 4);
    for n in [1, 500, 1100] {
        let last = logits(&["--last", &n.to_string()]);
        let bytes = n * 512 * 4;
        assert!(last[last.len() - bytes..] == all[all.len() - bytes..], "--last {n}");
    }
}

#[test]
fn a_gpu_without_room_is_an_error_or_the_cpu() {
    if !gpu() {
        return;
    }
    let args = ["generate", "-q", "-m", "demo", "--gpu-memory", "1MB", "3 + 4"];
    on_gpu(&args).fails_with(&["GPU memory", "may have 0.0 GB"]);
    assert_eq!(run_with_driver(&args).ok(), "7\n");
    let loud = run_with_driver(&[&args[..], &["-v"]].concat());
    assert!(loud.stderr.starts_with("on the CPU: the model needs "), "{}", loud.stderr);
}

#[test]
fn bench_measures_batches_stages_and_floors() {
    if !gpu() {
        return;
    }
    let scratch = Scratch::new();
    let plot = scratch.path("roofline.svg");
    let args = ["bench", "demo", "-p", "64", "-n", "4", "-b", "1,3", "--context", "600", "-r", "2", "--stages"];
    let report = on_gpu(&[&args[..], &["--json", "--plot", &plot]].concat()).json();
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<_> = tests.iter().map(|t| (t["name"].as_str().unwrap(), t["batch"].as_u64().unwrap())).collect();
    assert_eq!(names, [("pp64 @d600", 1), ("tg4 @d600", 1), ("tg4 @d600", 3)]);
    for field in ["tokens_per_s", "ms", "gb_s", "tflop_s", "floor_ms", "of_floor"] {
        assert!(tests.iter().all(|test| test[field].as_f64().unwrap() > 0.0), "{field}: {report}");
    }
    let stages = report["stages"].as_array().unwrap();
    assert_eq!(stages.iter().map(|step| step["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    assert!(stages[0]["stages"].as_array().unwrap().len() > 8, "{report}");
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    let text = on_gpu(&args).ok();
    assert!(
        text.contains("| tg4 @d600       |     3 |") && text.contains("copying ") && text.contains("| stage "),
        "{text}"
    );
}

#[test]
fn random_weights_of_the_published_shapes_run() {
    if !gpu() {
        return;
    }
    let scratch = Scratch::new();
    let ids = scratch.file("ids.json", "[1, 2, 3]");
    let args = ["generate", "--load-dummy", "20b", "--tokens", &ids, "-n", "5", "--json"];
    let (first, second) = (run_with_driver(&args).json(), run_with_driver(&args).json());
    assert_eq!(first["tokens"], second["tokens"]);
    assert!(!first["tokens"].as_array().unwrap().is_empty());
    let bench = ["bench", "--load-dummy", "20b", "-p", "0", "-n", "2", "-b", "2", "-r", "1", "--json"];
    let report = run_with_driver(&bench).json();
    assert_eq!(report["model"], "random 20b");
    assert!(report["memory_bytes"].as_u64().unwrap() > 13_000_000_000, "{report}");
}
