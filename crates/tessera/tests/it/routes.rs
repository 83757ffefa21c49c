//! `tessera routes`: that the choices are the routers', and that table, drawing and JSON say the same.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tessera_cpu::OracleExecutor;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Batch, BlockTables, Executor, Limits, Row, Site, Stage, Trace};

use crate::runner::{Model, Output, finish, run, run_with_stdin, tessera};

mod xml;

/// Weights are printed with all their digits, and made by a softmax in float32.
const ROUNDING: f64 = 1e-6;
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

/// Changes the bytes of a layer's router.
fn alter_router(model: &Model, layer: usize, name: &str, alter: impl FnOnce(&mut [u8])) {
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let offsets = &header[format!("model.layers.{layer}.mlp.router.{name}")]["data_offsets"];
    let [start, end] = [0, 1].map(|i| data + offsets[i].as_u64().unwrap() as usize);
    alter(&mut bytes[start..end]);
    std::fs::write(&path, bytes).unwrap();
}

/// Makes a layer's router answer `logits` whatever it reads; they must be BF16 numbers.
fn force(model: &Model, layer: usize, logits: [f32; EXPERTS]) {
    let bf16 = |logit: &f32| [2, 3].map(|byte| logit.to_le_bytes()[byte]);
    let bias: Vec<u8> = logits.iter().flat_map(bf16).collect();
    alter_router(model, layer, "weight", |bytes| bytes.fill(0));
    alter_router(model, layer, "bias", |bytes| bytes.copy_from_slice(&bias));
}

/// Routers of known answers: the choice, the weights and the loads are arithmetic.
#[test]
fn layers_choose_what_their_routers_say() {
    let model = Model::tiny();
    let lowest = -300.0;
    let forced: [([f32; EXPERTS], [usize; TOP_K]); LAYERS] = [
        ([0.0, 1.0, -1.0, 4.0, 2.0, -2.0, 3.0, 0.5], [3, 6, 4, 1]),
        ([2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.5, 0.0], [6, 0, 1, 2]), // among equals, the lower id
        ([lowest, -250.0, lowest, lowest, lowest, 1.0, -280.0, lowest], [5, 1, 6, 0]), // weights that are 0 in float32
        ([0.0; EXPERTS], [0, 1, 2, 3]),
    ];
    forced.iter().enumerate().for_each(|(layer, (logits, _))| force(&model, layer, *logits));
    for precision in ["bf16", "f32"] {
        let json = routes(&model, &["--json", "--precision", precision, "--raw", "some tokens"]).json();
        for ((layer, chosen), (logits, expect)) in choices(&json).iter().enumerate().zip(&forced) {
            let total: f64 = expect.iter().map(|&e| f64::from(logits[e]).exp()).sum();
            assert_eq!(chosen.len(), "some tokens".len());
            for token in chosen {
                let experts: Vec<usize> = token.iter().map(|(expert, _)| *expert).collect();
                assert_eq!(experts, expect, "{precision}, layer {layer}");
                for (expert, weight) in token {
                    let share = f64::from(logits[*expert]).exp() / total;
                    assert!((weight - share).abs() < ROUNDING, "{precision}, layer {layer}: {token:?}");
                }
            }
            let even = |e: usize| if expect.contains(&e) { 0.25 } else { 0.0 };
            assert_eq!(loads(&json)[layer], (0..EXPERTS).map(even).collect::<Vec<_>>());
            let report = &json["layers"][layer];
            assert_eq!((&report["max_over_mean"], &report["never_chosen"]), (&json!(2.0), &json!(4)));
        }
    }
}

/// Router logits of every layer, `[layers][tokens * experts]`.
#[derive(Default)]
struct Logits(Vec<Vec<f32>>);

impl Trace for Logits {
    fn visit(&mut self, site: Site, _: usize, values: &mut [f32]) {
        if site.stage == Stage::Router {
            self.0.push(values.to_vec());
        }
    }
}

/// The oracle's router logits for all tokens in one step, without the program.
fn oracle_logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let (config, n) = (checkpoint.config(), tokens.len());
    let limits = Limits::for_sequences(config, 1, n, n);
    let block_tables = BlockTables::sole(n, limits.sliding_blocks);
    let row = Row { n_tokens: n, start: 0, block_tables, n_logits: 0, sampling: None };
    let mut logits = Logits::default();
    let mut oracle = OracleExecutor::new(config, checkpoint.weights(), limits, 2);
    oracle.step_traced(&Batch { tokens: tokens.to_vec(), rows: vec![row] }, &mut logits).unwrap();
    logits.0
}

/// The model's rule in float64: the largest logits, weighted by the softmax over them.
fn choose(logits: &[f32]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    let top = &order[..TOP_K];
    let total: f64 = top.iter().map(|&e| f64::from(logits[e]).exp()).sum();
    top.iter().map(|&e| (e, f64::from(logits[e]).exp() / total)).collect()
}

/// From the last expert that is chosen to the first that is not.
fn margin(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[TOP_K - 1] - sorted[TOP_K]
}

/// Of 2,800 sets of experts, how many may differ between the precisions. Measured with AVX-512: 15.
const MAX_DIFFERENT: usize = 45;
/// Logits, of rms 1, that are farther apart than this are in the same order in both. Measured: 0.08 for a token
/// that went to another expert two layers before, else 0.005.
const MAX_MARGIN: f32 = 0.25;

#[test]
fn choices_agree_with_the_routers_logits() {
    let model = Model::tiny();
    // More than one step of the session.
    let prompt: String = (0..700u32).map(|i| char::from(b' ' + (i * i % 94) as u8)).collect();
    let with = |precision: &str| routes(&model, &["--json", "--precision", precision, "--raw", &prompt]).json();
    let (exact, fast) = (with("f32"), with("bf16"));
    let logits = oracle_logits(&model, &ids(&exact));
    assert_eq!((logits.len(), ids(&exact).len()), (LAYERS, 700));
    let experts = |token: &[(usize, f64)]| token.iter().map(|(expert, _)| *expert).collect::<Vec<_>>();
    let set = |token: &[(usize, f64)]| experts(token).into_iter().collect::<BTreeSet<_>>();
    let (mut different, mut widest) = (0, 0.0f32);
    for ((logits, exact), fast) in logits.iter().zip(choices(&exact)).zip(choices(&fast)) {
        for ((logits, exact), fast) in logits.chunks(EXPERTS).zip(&exact).zip(&fast) {
            let expect = choose(logits);
            assert_eq!(experts(exact), experts(&expect));
            assert!(exact.iter().zip(&expect).all(|(a, b)| (a.1 - b.1).abs() < ROUNDING), "{exact:?} {expect:?}");
            if set(exact) != set(fast) {
                different += 1;
                widest = widest.max(margin(logits));
            }
        }
    }
    println!("{different} of {} sets differ, by {widest:.1e} at most", LAYERS * 700);
    assert!(different <= MAX_DIFFERENT && widest <= MAX_MARGIN);
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

/// The map's rows of each band, as numbers by layer.
fn map_rows(text: &str) -> Vec<Vec<usize>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("layer ")).filter(|row| !row.contains("max"));
    rows.map(|row| row.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect()
}

#[test]
fn the_table_has_a_row_for_each_layer() {
    let model = Model::tiny();
    let json = routes(&model, &["--json", "--raw", "hello world"]).json();
    let text = routes(&model, &["--raw", "hello world"]).ok();
    assert!(!text.contains('\x1b'), "{text}");
    let rows = map_rows(&text);
    assert_eq!(rows.len(), LAYERS);
    for (layer, (row, chosen)) in rows.iter().zip(choices(&json)).enumerate() {
        let largest = chosen.iter().map(|token| token[0].0);
        assert_eq!(*row, std::iter::once(layer).chain(largest).collect::<Vec<_>>());
    }
    assert!(text.contains("h  e  l  l  o  ·  w  o  r  l  d\n"), "{text}");
    let loads: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("layer max/mean")).skip(1).collect();
    assert_eq!(loads.len(), LAYERS);
    for (layer, line) in loads.iter().enumerate() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let report = &json["layers"][layer];
        let ratio = format!("{:.2}", report["max_over_mean"].as_f64().unwrap());
        assert_eq!(fields[..3], [&layer.to_string(), &ratio, &report["never_chosen"].to_string()]);
        assert_eq!(fields.last().unwrap().chars().count(), EXPERTS, "{line}");
    }
}

#[test]
fn long_prompts_are_wrapped_and_cut() {
    let model = Model::tiny();
    let printed = |columns: &str, prompt: &str| {
        let mut command = tessera(&["routes", model.arg(), "--raw", prompt]);
        command.env("COLUMNS", columns);
        finish(command).ok()
    };
    let prompt: String = (0..100u32).map(|i| char::from(b'0' + (i * i % 70) as u8)).collect();
    let json = routes(&model, &["--json", "--raw", &prompt]).json();
    for (columns, bands) in [("80", 5), ("200", 2), ("1000", 1), ("1", 100)] {
        let text = printed(columns, &prompt);
        let rows = map_rows(&text);
        assert_eq!(rows.len(), bands * LAYERS, "{text}");
        for (layer, chosen) in choices(&json).iter().enumerate() {
            let cells = rows.iter().skip(layer).step_by(LAYERS).flat_map(|row| &row[1..]);
            assert!(cells.eq(chosen.iter().map(|token| &token[0].0)), "{text}");
        }
        let mut map = text.lines().filter(|line| line.starts_with("layer ") && !line.contains("max"));
        assert!(columns == "1" || map.all(|line| line.len() <= columns.parse().unwrap()));
    }
    let text = printed("80", &"x".repeat(600));
    assert!(text.contains("the last 256 of these 600 tokens") && text.contains("\ntokens 344 to "), "{text}");
    assert_eq!(map_rows(&text).iter().map(|row| row.len() - 1).sum::<usize>(), 256 * LAYERS);
}

#[test]
fn every_expert_of_a_wide_layer_has_its_place() {
    let model = Model::tiny();
    let path = model.path().with_file_name("wide");
    run(&["synth", "--like", "tiny-wide", path.to_str().unwrap()]).ok();
    let text = run(&["routes", path.to_str().unwrap(), "--raw", "some text"]).ok();
    assert!(text.lines().skip(2).all(|line| line.chars().count() <= 130), "{text}");
    let bars = text.lines().skip_while(|line| !line.starts_with("layer max/mean")).skip(1);
    let bars: usize = bars.map(|line| line.split_whitespace().last().unwrap().chars().count()).sum();
    assert_eq!(bars, 2 * 128);
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let model = Model::tiny();
    let on_a_terminal = |variables: &[(&str, &str)]| {
        let line = format!("{} routes {} --raw hi", env!("CARGO_BIN_EXE_tessera"), model.arg());
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        finish(command).ok()
    };
    assert!(on_a_terminal(&[]).contains("\x1b[48;5;"));
    assert!(!on_a_terminal(&[("NO_COLOR", "1")]).contains('\x1b'));
    assert!(!on_a_terminal(&[("TERM", "dumb")]).contains('\x1b'));
}

#[test]
fn the_drawing_has_a_cell_for_each_choice() {
    let model = Model::tiny();
    let file = model.path().with_file_name("routes.svg");
    let prompt = "<|start|>a <b>&\"'\n\t\u{1}\u{1b}]é\u{fffe}<|end|>";
    let args = ["--raw", "--json", "--svg", file.to_str().unwrap(), prompt];
    let json = routes(&model, &args).json();
    let svg = xml::parse(&std::fs::read_to_string(&file).unwrap());
    assert_eq!((svg.name.as_str(), svg.attributes["xmlns"].as_str()), ("svg", "http://www.w3.org/2000/svg"));

    let texts = ["<|start|>", "a", "·", "<", "b", ">", "&", "\"", "'", "↵", "⇥", "\\u{1}", "\\u{1b}", "]"];
    let bytes = ["\\xc3", "\\xa9", "\\xef", "\\xbf", "\\xbe"];
    let texts = [&texts[..], &bytes, &["<|end|>"]].concat();
    let headings: Vec<&str> = svg.of_class("token").iter().map(|heading| heading.text.as_str()).collect();
    assert_eq!(headings, texts);

    let bands = svg.of_class("band");
    assert_eq!(bands.len(), LAYERS);
    for (layer, (band, chosen)) in bands.iter().zip(choices(&json)).enumerate() {
        let cells = band.of_class("cell");
        let expect: Vec<(usize, usize, f64)> =
            chosen.iter().enumerate().flat_map(|(t, token)| token.iter().map(move |&(e, w)| (t, e, w))).collect();
        assert_eq!((cells.len(), cells.len()), (expect.len(), texts.len() * TOP_K));
        for (cell, (token, expert, weight)) in cells.iter().zip(expect) {
            let title = format!("token {token}: {}, layer {layer}, expert {expert}, weight {weight:.4}", texts[token]);
            assert_eq!(cell.title(), title);
            let (width, height) = (cell.number("width"), cell.number("height"));
            assert_eq!((cell.number("x") / width, cell.number("y") / height), (token as f64, expert as f64));
            assert!((cell.number("fill-opacity") - weight).abs() < 6e-4);
        }
        let bars: Vec<f64> = band.of_class("bar").iter().map(|bar| bar.number("width")).collect();
        let load = &loads(&json)[layer];
        assert_eq!(bars.len(), EXPERTS);
        // All bars have one scale, and two digits after the point.
        let scale = svg.of_class("bar").iter().map(|bar| bar.number("width")).fold(0.0, f64::max)
            / loads(&json).concat().iter().copied().fold(0.0, f64::max);
        assert!(bars.iter().zip(load).all(|(bar, share)| (bar - share * scale).abs() < 0.02), "{bars:?} {load:?}");
    }
    assert!(svg.of_class("begin").is_empty());
}

#[test]
fn the_drawing_shows_where_the_answer_begins_and_replaces_the_table() {
    let model = Model::endless();
    let (ids, file) = (model.beside("ids.json", "[65, 300, 7]"), model.beside("routes.svg", "an older one"));
    let output = routes(&model, &["--tokens", &ids, "-n", "2", "--svg", &file]);
    assert!(output.stderr.contains("routes.svg: 5 tokens, 4 layers"), "{}", output.stderr);
    assert_eq!(output.ok(), "");
    let svg = xml::parse(&std::fs::read_to_string(&file).unwrap());
    let headings: Vec<&str> = svg.of_class("token").iter().map(|heading| heading.text.as_str()).collect();
    assert_eq!((headings.len(), &headings[..3]), (5, &["#65", "#300", "#7"][..]));
    let (begin, cell) = (svg.of_class("begin"), svg.of_class("cell")[0]);
    let left: f64 = svg.of_class("band")[0].attributes["transform"][10..].split(' ').next().unwrap().parse().unwrap();
    assert_eq!(begin[0].number("x1"), left + 3.0 * cell.number("width"));
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

/// A token whose weights are not numbers, while the last one, which the sampler would refuse, is sound.
#[test]
fn routers_without_an_answer_are_named() {
    let model = Model::tiny();
    let last = LAYERS - 1;
    alter_router(&model, last, "weight", |weight| {
        // A few channels times the largest number: too large where they sum to more than 1.
        weight.fill(0);
        let rows = weight.chunks_exact_mut(weight.len() / EXPERTS);
        rows.for_each(|row| row[..8].fill(0x7f));
    });
    let run = |c: char| routes(&model, &["--precision", "f32", "--raw", &format!("{c}b")]);
    let refused = ('a'..='z').map(run).find(|end| end.stderr.contains("the router of"));
    refused.expect("a prompt whose last token is sound").fails_with(&["layer 3", "not finite", "tessera verify"]);
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
