//! That table and drawing say what the JSON says.

use std::process::{Command, Stdio};

use super::{EXPERTS, LAYERS, TOP_K, choices, loads, routes, xml};
use crate::runner::{Model, finish, run, tessera};

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
