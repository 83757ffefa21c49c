//! `tessera generate`: what it prints, that it repeats, and what it refuses.

use serde_json::{Value, json};

use crate::logits::{VOCAB, read_npy};
use crate::runner::{Model, Output, run, run_with_stdin};

/// `generate -m MODEL`, then `args`.
fn generate(model: &Model, args: &[&str]) -> Output {
    run(&[&["generate", "-m", model.arg()], args].concat())
}

fn tokens(json: &Value) -> Vec<u64> {
    json["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn greedy_and_seeded_runs_repeat_exactly() {
    let model = Model::tiny();
    let ids = model.beside("ids.json", "[5, 6, 7]");
    let run =
        |args: &[&str]| tokens(&generate(&model, &[&["--json", "-n", "24", "--tokens", &ids], args].concat()).json());
    for sampling in
        [&["--temperature", "0"][..], &["--temperature", "1", "--seed", "9"], &["--top-k", "5", "--seed", "1"]]
    {
        assert_eq!(run(sampling), run(sampling), "{sampling:?}");
        assert_eq!(run(sampling), run(&[sampling, &["--threads", "2"]].concat()), "{sampling:?} on two threads");
    }
    assert_eq!(run(&["--temperature", "0"]), run(&["--top-k", "1"]));
    assert_ne!(run(&["--temperature", "1", "--seed", "1"]), run(&["--temperature", "1", "--seed", "2"]));
}

#[test]
fn both_precisions_answer() {
    let model = Model::tiny();
    for precision in ["f32", "bf16"] {
        let json = generate(&model, &["--json", "-n", "4", "--precision", precision, "hi"]).json();
        assert!(json["prompt_tokens"].as_u64().unwrap() > 100);
    }
}

#[test]
fn json_says_everything() {
    let model = Model::tiny();
    let output = generate(&model, &["--json", "-n", "8", "--seed", "4", "hi"]);
    let json = output.json();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["text", "reasoning", "tokens", "prompt_tokens", "finish_reason", "seed", "timings"]);
    assert!(json["text"].is_string() && json["reasoning"].is_string());
    assert_eq!(json["seed"], 4);
    assert!(["stop", "length"].contains(&json["finish_reason"].as_str().unwrap()));
    for timing in ["load_s", "first_token_s", "prompt_s", "prompt_per_second", "decode_s", "decode_per_second"] {
        assert!(json["timings"][timing].as_f64().unwrap() >= 0.0, "{timing}");
    }
}

/// Against the logits of the same tokens, read at once.
#[test]
fn logprobs_are_those_of_the_logits() {
    let model = Model::tiny();
    let ids = model.beside("ids.json", "[5, 6, 7]");
    let args = ["--json", "-n", "6", "--precision", "f32", "--seed", "3", "--tokens", &ids];
    let json = generate(&model, &[&args[..], &["--logprobs", "3"]].concat()).json();
    let answer = tokens(&json);
    let all: Vec<u64> = [5, 6, 7].into_iter().chain(answer.iter().copied()).collect();
    let (all_ids, file) = (model.beside("all.json", &json!(all).to_string()), model.beside("all.npy", ""));
    run(&["logits", model.arg(), "--tokens", &all_ids, "--precision", "f32", "--out", &file]).ok();
    let values: Vec<f64> = read_npy(&file, (all.len(), VOCAB)).into_iter().map(f64::from).collect();
    let found = json["logprobs"].as_array().unwrap();
    assert_eq!(found.len(), answer.len());
    for (i, found) in found.iter().enumerate() {
        let row = &values[(2 + i) * VOCAB..][..VOCAB];
        let log_sum = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let near = |of: &Value| {
            let expect = row[of["token"].as_u64().unwrap() as usize] - log_sum;
            let logprob = of["logprob"].as_f64().unwrap();
            assert!((logprob - expect).abs() < 1e-9, "token {i}: {logprob}, expected {expect}");
            logprob
        };
        assert_eq!(found["token"], answer[i]);
        near(found);
        let top: Vec<f64> = found["top_logprobs"].as_array().unwrap().iter().map(near).collect();
        let mut sorted: Vec<f64> = row.iter().map(|logit| logit - log_sum).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert!(top.len() == 3 && top.iter().zip(&sorted).all(|(a, b)| (a - b).abs() < 1e-9), "{top:?}");
    }
    assert_eq!(tokens(&generate(&model, &args).json()), answer);
    let json = generate(&model, &["--json", "-n", "2", "--raw", "--logprobs", "1", "hi"]).json();
    assert!(json["logprobs"][1]["text"].is_string() && json["logprobs"][1]["top_logprobs"][0]["text"].is_string());
    for (wrong, part) in [(&["--logprobs", "3"][..], "--json"), (&["--json", "--logprobs", "21"], "from 0 to 20")] {
        let output = generate(&model, &[wrong, &["hi"]].concat());
        assert!(output.code == Some(2) && output.stderr.contains(part), "{}", output.stderr);
    }
}

#[test]
fn the_text_on_stdout_is_the_text_of_the_json() {
    let model = Model::tiny();
    let args = ["-n", "30", "--seed", "2", "--temperature", "1", "--raw", "once upon"];
    let text = generate(&model, &[&["--json"], &args[..]].concat()).json()["text"].as_str().unwrap().to_owned();
    let shown = generate(&model, &args).ok();
    assert!(!text.is_empty());
    assert_eq!(shown.strip_suffix('\n').unwrap(), text.strip_suffix('\n').unwrap_or(&text));
}

#[test]
fn reasoning_goes_to_stderr_and_only_when_asked_for() {
    let model = Model::tiny();
    let answer = |seed: usize, args: &[&str]| {
        let seed = seed.to_string();
        generate(&model, &[&["-n", "300", "-q", "--temperature", "1", "--seed", &seed, "hi"], args].concat())
    };
    // One in three answers of a random model opens some channel by chance.
    let thinks = |seed: &usize| answer(*seed, &["--json"]).json()["reasoning"].as_str().unwrap().len() > 10;
    let seed = (0..100).find(thinks).expect("a seed whose answer has reasoning");
    let json = answer(seed, &["--json"]).json();
    let (text, reasoning) = (json["text"].as_str().unwrap(), json["reasoning"].as_str().unwrap());
    let shown = answer(seed, &["--show-reasoning"]);
    assert_eq!(shown.stdout.trim_end_matches('\n'), text.trim_end_matches('\n'));
    assert_eq!(shown.stderr.replace('\n', ""), reasoning.replace('\n', ""));
    let hidden = answer(seed, &[]);
    assert_eq!((hidden.stdout, hidden.stderr), (shown.stdout, String::new()));
}

#[test]
fn timings_and_seed_go_to_stderr_unless_quiet() {
    let model = Model::tiny();
    let loud = generate(&model, &["-n", "3", "hi", "--temperature", "1", "--seed", "77"]);
    assert!(loud.stderr.contains("first token after") && loud.stderr.contains("seed 77"), "{}", loud.stderr);
    assert_eq!(generate(&model, &["-n", "3", "hi", "--quiet"]).stderr, "");
}

#[test]
fn more_threads_than_cores_are_remarked_upon() {
    let model = Model::tiny();
    let cores = std::thread::available_parallelism().unwrap().get();
    let with = |threads: usize, more: &[&str]| {
        generate(&model, &[&["-n", "1", "hi", "--device", "cpu", "--threads", &threads.to_string()], more].concat())
            .stderr
    };
    let remark = format!("{} threads on {cores} cores", cores + 1);
    assert!(with(cores + 1, &[]).contains(&remark) && !with(cores, &[]).contains("cores"));
    assert_eq!(with(cores + 1, &["--quiet"]), "");
}

#[test]
fn max_tokens_ends_an_answer() {
    let model = Model::endless();
    let ids = model.beside("ids.json", "[1, 2, 3]");
    for n in [1, 2, 17] {
        let json = generate(&model, &["--json", "--tokens", &ids, "-n", &n.to_string()]).json();
        assert_eq!((tokens(&json).len(), &json["finish_reason"]), (n, &json!("length")));
    }
    let cut_off = |quiet: &[&str]| generate(&model, &[&["--tokens", &ids, "-n", "3"], quiet].concat()).stderr;
    assert!(cut_off(&[]).contains("the answer was cut off: --max-tokens 3 is used up"), "{}", cut_off(&[]));
    let in_context = generate(&model, &["--tokens", &ids, "--context", "10"]).stderr;
    assert!(in_context.contains("the answer was cut off: the context is used up"), "{in_context}");
    assert_eq!(cut_off(&["-q"]), "");
    let json = generate(&model, &["--json", "--tokens", &ids, "--context", "10"]).json();
    assert_eq!((tokens(&json).len(), &json["finish_reason"]), (8, &json!("length")), "3 + 7 in the context, 1 beyond");
}

#[test]
fn a_stop_token_ends_an_answer() {
    let model = Model::endless();
    let ids = model.beside("ids.json", "[1, 2, 3]");
    let args = ["--json", "--tokens", &ids, "-n", "40", "--temperature", "0"];
    let free = tokens(&generate(&model, &args).json());
    let stop = free[5];
    let first = free.iter().position(|&id| id == stop).unwrap();
    model.edit("config.json", |json| json["eos_token_id"] = json!(stop));
    let json = generate(&model, &args).json();
    assert_eq!((tokens(&json), &json["finish_reason"]), (free[..=first].to_vec(), &json!("stop")));
}

#[test]
fn stop_strings_are_found_though_tokens_part_them() {
    let model = Model::tiny();
    let args = ["--json", "-n", "200", "--raw", "--temperature", "1", "--seed", "11", "tell me"];
    let free = generate(&model, &args).json();
    let text = free["text"].as_str().unwrap();
    let chars: Vec<char> = text.chars().collect();
    // Tokens are bytes: any two characters are two tokens at least.
    let window = chars.windows(2).skip(3).find(|w| w.iter().all(|c| !c.is_control())).unwrap();
    let stop: String = window.iter().collect();
    let json = generate(&model, &[&["--stop", "never in here", "--stop", &stop], &args[..]].concat()).json();
    assert_eq!(json["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    assert_eq!(json["finish_reason"], "stop");
    assert!(tokens(&json).len() < tokens(&free).len());
}

#[test]
fn a_prompt_comes_from_stdin() {
    let model = Model::tiny();
    let tokens_of = |output: Output| tokens(&output.json());
    let args = ["generate", "-m", model.arg(), "--json", "-n", "9", "--temperature", "0"];
    let given = tokens_of(run(&[&args[..], &["two\nlines"]].concat()));
    assert_eq!(given, tokens_of(run_with_stdin(&[&args[..], &["-"]].concat(), "two\nlines\n")));
    assert_eq!(given, tokens_of(run_with_stdin(&args, "two\nlines\n")));
}

#[test]
fn the_chat_format_is_what_raw_spells_out() {
    let model = Model::tiny();
    let common = ["--json", "-n", "9", "--temperature", "0"];
    let chat = ["--date", "2025-06-28", "--reasoning", "high", "--system", "Be brief.", "Hi <|end|>"];
    let system = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: \
                  2025-06-28\n\nReasoning: high\n\n# Valid channels: analysis, commentary, final. Channel must be included \
                  for every message.";
    let raw = format!(
        "<|start|>system<|message|>{system}<|end|><|start|>developer<|message|># Instructions\n\nBe brief.<|end|>\
         <|start|>user<|message|>Hi <|end|><|end|><|start|>assistant"
    );
    let json = generate(&model, &[&common[..], &chat[..]].concat()).json();
    // In raw form the user's `<|end|>` is one token instead of seven.
    let spelled = generate(&model, &[&common[..], &["--raw", &raw]].concat()).json();
    assert_eq!(json["prompt_tokens"].as_u64().unwrap(), spelled["prompt_tokens"].as_u64().unwrap() + 6);
    let harmless = raw.replace("Hi <|end|>", "Hi");
    let json = generate(&model, &[&common[..], &chat[..6], &["Hi"]].concat()).json();
    let spelled = generate(&model, &[&common[..], &["--raw", &harmless]].concat()).json();
    assert_eq!((&json["tokens"], &json["prompt_tokens"]), (&spelled["tokens"], &spelled["prompt_tokens"]));
}

#[test]
fn ids_in_ids_out_need_no_tokenizer() {
    let model = Model::tiny();
    std::fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let ids = model.beside("ids.json", "[10, 20, 30]");
    let args = ["--tokens", &ids, "-n", "6", "--temperature", "0"];
    let shown: Value = serde_json::from_str(&generate(&model, &args).ok()).unwrap();
    let json = generate(&model, &[&["--json"], &args[..]].concat()).json();
    assert_eq!(shown, json["tokens"]);
    assert!(json["text"].is_null() && json["reasoning"].is_null());
}

#[test]
fn single_files_and_the_original_layout_run() {
    let model = Model::tiny();
    let tokens_of =
        |path: &str| tokens(&run(&["generate", "-m", path, "--json", "--seed", "1", "-n", "8", "hi"]).json());
    let expect = tokens_of(model.arg());
    assert_eq!(expect, tokens_of(&format!("{}/model.safetensors", model.arg())));
    let original = model.path().with_file_name("original-layout");
    let original = original.to_str().unwrap();
    run(&["synth", "--like", "tiny", "--layout", "original", original]).ok();
    assert_eq!(expect, tokens_of(original));
}

#[test]
fn an_empty_prompt_is_refused() {
    let model = Model::tiny();
    for prompt in ["", " \n"] {
        generate(&model, &[prompt]).fails_with(&["the prompt is empty"]);
    }
    generate(&model, &["--raw", ""]).fails_with(&["the prompt is empty"]);
    run_with_stdin(&["generate", "-m", model.arg(), "-"], "").fails_with(&["the prompt is empty"]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let model = Model::tiny();
    generate(&model, &["--context", "50", "--raw", &"x".repeat(51)]).fails_with(&[
        "51 tokens",
        "the context of 50",
        "--context",
    ]);
    generate(&model, &["--context", "50", "--raw", &"x".repeat(50), "-q"]).ok();
    generate(&model, &["--context", "131073", "hi"]).fails_with(&["--context 131073", "limit of 131072"]);
    model.edit("config.json", |json| json["max_position_embeddings"] = json!(4096));
    generate(&model, &["--raw", &"x".repeat(5000)])
        .fails_with(&["5000 tokens", "the model's own limit of 4096; shorten it"]);
}

#[test]
fn numbers_beyond_their_range_are_told_the_range() {
    for (flag, value, expected) in [
        ("--temperature", "-1", "expected a number from 0 on"),
        ("--top-p", "-0.5", "expected a number above 0 and at most 1"),
        ("--top-k", "-1", "expected a whole number from 0 on"),
        ("--seed", "-1", "expected a whole number from 0 on"),
        ("--max-tokens", "-1", "expected a whole number from 1 on"),
        ("--context", "-5", "expected a whole number from 1 on"),
    ] {
        let output = run(&["generate", "-m", "demo", flag, value, "hi"]);
        assert_eq!(output.code, Some(2));
        assert!(output.stderr.contains(expected) && output.stderr.contains(value), "{}", output.stderr);
    }
}

#[test]
fn a_missing_tokenizer_is_named() {
    let model = Model::tiny();
    std::fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    generate(&model, &["hi"]).fails_with(&["model/tokenizer.json", "has no tokenizer.json", "--tokens"]);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let model = Model::tiny();
    let original = std::fs::read(model.path().join("tokenizer.json")).unwrap();
    let special = json!({"id": 512, "content": "<|x|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    model.edit("tokenizer.json", |json| json["added_tokens"].as_array_mut().unwrap().push(special));
    generate(&model, &["hi"]).fails_with(&["ids up to 512", "vocabulary ends at 511", "another model's tokenizer"]);
    std::fs::write(model.path().join("tokenizer.json"), original).unwrap();
    for file in ["config.json", "generation_config.json"] {
        model.edit(file, |json| json["eos_token_id"] = json!(7));
    }
    generate(&model, &["hi"]).fails_with(&["none of the model's stop tokens [7]"]);
    std::fs::write(model.path().join("tokenizer.json"), "{").unwrap();
    generate(&model, &["hi"]).fails_with(&["model/tokenizer.json", "not a tokenizer.json"]);
}

#[test]
fn bad_token_lists_are_refused() {
    let model = Model::tiny();
    for (content, parts) in [
        ("[1, 2, 600]", &["ids.json", "token 2 has id 600", "ends at 511"][..]),
        ("[]", &["ids.json", "empty"]),
        ("[1.5]", &["ids.json", "JSON array of token ids"]),
        ("{\"a\": 1}", &["ids.json", "JSON array of token ids"]),
    ] {
        let ids = model.beside("ids.json", content);
        generate(&model, &["--tokens", &ids]).fails_with(parts);
    }
    generate(&model, &["--tokens", "/no/such.json"]).fails_with(&["/no/such.json", "No such file"]);
    #[cfg(unix)]
    generate(&model, &["--tokens", "/dev/zero"]).fails_with(&["/dev/zero", "more than 67108864 bytes"]);
}

#[test]
fn a_model_that_is_not_there_is_named() {
    run(&["generate", "-m", "/no/such/folder", "hi"]).fails_with(&["/no/such/folder", "no such file or folder"]);
    let model = Model::tiny();
    std::fs::remove_file(model.path().join("config.json")).unwrap();
    generate(&model, &["hi"]).fails_with(&["config.json"]);
}
