//! `tessera convert`: its report, and a disk that fills up.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::runner::{Output, finish, run, tessera};

/// A tiny checkpoint in a layout, in a folder of its own.
fn tiny(layout: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("source");
    run(&["synth", "--like", "tiny", "--layout", layout, path.to_str().unwrap()]).ok();
    (dir, path)
}

fn convert(source: &Path, more: &[&str]) -> Output {
    let out = source.with_file_name("out");
    run(&[&["convert", source.to_str().unwrap(), out.to_str().unwrap()], more].concat())
}

#[test]
fn quantising_reports_each_tensor() {
    let (_dir, source) = tiny("bf16");
    let report = convert(&source, &["--json"]).json();
    assert_eq!((report["from"].as_str(), report["to"].as_str()), (Some("bf16"), Some("hf")));
    let quantised = report["quantised"].as_array().unwrap();
    assert_eq!(quantised.len(), 8);
    assert_eq!(quantised[1]["tensor"], "model.layers.0.mlp.experts.down_proj");
    // These weights were MXFP4 before they were dequantised.
    assert!(quantised.iter().all(|q| q["relative_error"] == 0.0), "{report}");
    let inspected = run(&["inspect", source.with_file_name("out").to_str().unwrap(), "--json"]).json();
    assert_eq!(inspected["loads"], true);
}

#[test]
fn there_and_back() {
    let (_dir, source) = tiny("original");
    let text = convert(&source, &[]).ok();
    assert!(text.contains("original -> hf: 79 tensors, 688896 bytes"), "{text}");
    convert(&source, &["--to", "original"]).fails_with(&["original layout already", "nothing to convert"]);
}

/// A limit on file sizes stands in for a full disk: the write fails in the same place.
#[test]
fn a_full_disk_leaves_one_error_and_nothing_else() {
    let (dir, source) = tiny("hf");
    let out = dir.path().join("out");
    let inner = tessera(&["convert", "--to", "original", source.to_str().unwrap(), out.to_str().unwrap()]);
    let mut limited = std::process::Command::new("sh");
    // The signal is ignored so that the write returns an error, as it does on a full disk.
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    finish(limited).fails_with(&["no room for 688896 bytes", out.to_str().unwrap(), "nothing was left behind"]);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["source"]);
}
