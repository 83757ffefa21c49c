//! `--device` and what goes with it, on a machine without a GPU.

use serde_json::{Value, json};
use tessera_cuda::Device;

use crate::demo::Scratch;
use crate::runner::{Model, run};

#[test]
fn a_gpu_that_is_missing_is_said_before_the_model_is_looked_for() {
    let scratch = Scratch::new();
    let (ids, out) = (scratch.file("ids.json", "[1, 2, 3]"), scratch.path("out.npy"));
    let logits = ["logits", "--tokens", &ids, "--out", &out];
    for args in [
        &["generate", "-m", "no/such-model", "--device", "cuda", "Hi"][..],
        &["chat", "-m", "no/such-model", "--device", "cuda"],
        &["eval", "no/such-model", "--device", "cuda"],
        &["bench", "no/such-model", "--device", "cuda"],
        &[&logits[..], &["no/such-model", "--device", "cuda"]].concat(),
        &[&logits[..], &["--load-dummy", "20b"]].concat(),
        &["generate", "--load-dummy", "120b", "--tokens", &ids],
        &["bench", "--load-dummy", "20b"],
    ] {
        let output = run(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{args:?}");
        match Device::open() {
            Err(missing) => {
                let expect = format!(
                    "error: {missing}; without a GPU, leave out what asks for it: --device cuda, --load-dummy\n"
                );
                assert_eq!(output.stderr, expect, "{args:?}");
            }
            // There is one, but the run must not see it.
            Ok(_) => assert!(output.stderr.starts_with("error: no NVIDIA GPU"), "{args:?}: {}", output.stderr),
        }
    }
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn without_a_gpu_auto_is_the_cpu_and_nothing_is_said() {
    let model = Model::tiny();
    let args = ["generate", "-q", "-m", model.arg(), "-n", "3", "--temperature", "0", "hi"];
    let with = |more: &[&str]| run(&[&args[..], more].concat());
    let (auto, cpu) = (with(&[]), with(&["--device", "cpu"]));
    assert_eq!((auto.stderr.as_str(), cpu.stderr.as_str()), ("", ""));
    assert_eq!(auto.ok(), cpu.ok());
    let verbose = with(&["--verbose"]);
    assert!(verbose.stderr.starts_with("on the CPU: ") && verbose.stderr.contains("NVIDIA"), "{}", verbose.stderr);
    assert_eq!(with(&["--device", "cpu", "-v"]).stderr, "on the CPU: --device cpu\n");
    assert_eq!(with(&["--precision", "f32", "-v"]).stderr, "on the CPU: the GPU computes in bf16 alone\n");
}

#[test]
fn flags_of_the_gpu_that_mean_nothing_are_wrong_usage() {
    for (args, part) in [
        (&["generate", "--device", "gpu", "x"][..], "possible values: auto, cpu, cuda"),
        (&["verify", "demo", "--device", "auto"], "possible values: cpu, cuda"),
        (&["routes", "--device", "cpu", "x"], "--device"),
        (&["generate", "--gpu-memory", "lots", "x"], "a share such as 90% or 0.9, or a size such as 60GB or 56GiB"),
        (&["generate", "--gpu-memory", "60", "x"], "a size has a unit"),
        (&["eval", "--gpu-memory", "110%"], "a share is above 0 and at most 1, or 100%"),
        (&["bench", "--gpu-memory", "0GB"], "a size is above 0"),
        (&["generate", "--load-dummy", "7b", "--tokens", "x"], "possible values: 20b, 120b"),
        (&["generate", "--load-dummy", "20b", "hi"], "--load-dummy has no tokenizer"),
        (&["generate", "--load-dummy", "20b"], "--tokens FILE.json"),
        (&["generate", "--load-dummy", "20b", "-m", "demo", "--tokens", "x"], "cannot be used with"),
        (
            &["generate", "--load-dummy", "20b", "--device", "cpu", "--tokens", "x"],
            "--load-dummy makes weights on the GPU",
        ),
        (&["chat", "--load-dummy", "20b"], "--load-dummy"),
        (&["chat", "--device", "cuda", "--precision", "f32"], "the GPU computes in bf16 alone: --precision f32"),
        (
            &["generate", "--load-dummy", "20b", "--tokens", "x", "--precision", "f32"],
            "the GPU computes in bf16 alone: --precision f32",
        ),
        (&["logits", "--load-dummy", "20b", "demo", "--tokens", "x", "--out", "y"], "cannot be used with"),
        (&["bench", "demo", "--load-dummy", "20b"], "cannot be used with"),
        (&["bench", "-m", "demo", "--load-dummy", "20b"], "cannot be used with"),
        (&["bench", "--load-dummy", "20b", "--device", "cpu"], "--load-dummy makes weights on the GPU"),
        (&["bench", "--batch", "0"], "a whole number from 1 to 256"),
        (&["bench", "--batch", "1,257"], "a whole number from 1 to 256"),
        (&["bench", "--device", "cuda", "--isa", "scalar"], "--isa is about the CPU"),
        (&["bench", "--device", "cpu", "--plot", "x.svg"], "--plot is about the GPU"),
        (&["bench", "--isa", "scalar", "--stages"], "--stages is about the GPU"),
    ] {
        let output = run(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(part) && output.stderr.contains("--help"), "{args:?}: {}", output.stderr);
    }
}

#[test]
fn the_cpu_is_measured_with_batches_and_says_why_it_is_the_cpu() {
    let model = Model::tiny();
    let args = ["bench", model.arg(), "-p", "40,0", "-n", "2", "--batch", "1,3", "--depth", "20", "-r", "1"];
    let report = run(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(report["device"], "cpu");
    assert!(report["why_cpu"].as_str().unwrap().contains("NVIDIA"), "{report}");
    let tests = report["tests"].as_array().unwrap();
    let shape = |test: &Value| (test["name"].clone(), test["tokens"].clone(), test["batch"].clone());
    assert_eq!(
        tests.iter().map(shape).collect::<Vec<_>>(),
        [("pp40 @d20", 40, 1), ("tg2 @d20", 2, 1), ("tg2 @d20 x3", 2, 3)].map(|(name, tokens, batch)| (
            json!(name),
            json!(tokens),
            json!(batch)
        ))
    );
    assert!(tests.iter().all(|test| test["tokens_per_s"].as_f64().unwrap() > 0.0), "{report}");
    let text = run(&args).ok();
    assert!(text.starts_with("on the CPU: ") && text.contains("\n| tg2 @d20 x3 "), "{text}");
    let asked_for = run(&[&args[..], &["--device", "cpu"]].concat()).ok();
    assert!(asked_for.contains(" GB of weights, 1 threads") && !asked_for.contains("on the CPU"), "{asked_for}");
    let scratch = Scratch::new();
    run(&[&args[..], &["--plot", &scratch.path("x.svg")]].concat())
        .fails_with(&["--plot is about the GPU: ", "NVIDIA"]);
    run(&["bench", model.arg(), "--depth", "18446744073709551615"]).fails_with(&["beyond the model's context"]);
    run(&["bench", model.arg(), "--depth", "131072"]).fails_with(&["beyond the model's context of 131072"]);
}
