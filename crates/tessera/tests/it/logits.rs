//! `tessera logits`: the file it writes.

use crate::runner::{Model, Output, run};

pub const VOCAB: usize = 512;

fn logits(model: &Model, ids: &str, out: &str, args: &[&str]) -> Output {
    run(&[&["logits", model.arg(), "--tokens", ids, "--out", out], args].concat())
}

/// Reads a `.npy` as NumPy specifies it; `shape` is what its header must say.
pub fn read_npy(path: &str, shape: (usize, usize)) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..data]).unwrap();
    let expect = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", shape.0, shape.1);
    assert_eq!(header.trim_end(), expect);
    assert!(header.ends_with('\n') && data % 64 == 0);
    let values: Vec<f32> = bytes[data..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(values.len(), shape.0 * shape.1);
    values
}

/// How far logits of rms 1 may lie apart when they were computed for more or fewer positions at once: the fast path sums
/// in another order then. Measured: 5e-7.
const ROUNDING: f32 = 1e-5;

fn max_distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_repeat_and_the_last_are_the_last() {
    let model = Model::tiny();
    // Longer than one step.
    let ids: Vec<usize> = (0..300).map(|i| i * 7 % VOCAB).collect();
    let ids = model.beside("ids.json", &format!("{ids:?}"));
    let out = model.beside("a.npy", "");
    for precision in ["f32", "bf16"] {
        let with = |args: &[&str], rows| {
            logits(&model, &ids, &out, &[&["--precision", precision], args].concat()).ok();
            read_npy(&out, (rows, VOCAB))
        };
        let all = with(&[], 300);
        assert!(all.iter().all(|l| l.is_finite()) && all.iter().any(|&l| l != 0.0));
        assert!(all == with(&[], 300), "{precision}: a second run differs");
        for rows in [1, 45, 130, 299] {
            let last = with(&["--last", &rows.to_string()], rows);
            let distance = max_distance(&all[(300 - rows) * VOCAB..], &last);
            assert!(distance <= ROUNDING, "{precision}, last {rows}: {distance}");
        }
    }
}

#[test]
fn the_largest_logit_is_the_greedy_token() {
    let model = Model::endless();
    let (ids, out) = (model.beside("ids.json", "[3, 1, 4, 1, 5]"), model.beside("a.npy", ""));
    logits(&model, &ids, &out, &["--last", "1"]).ok();
    let values = read_npy(&out, (1, VOCAB));
    let best = (0..VOCAB).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap();
    let args = ["generate", "-m", model.arg(), "--tokens", &ids, "-n", "1", "--temperature", "0", "--precision", "f32"];
    assert_eq!(run(&args).ok(), format!("[{best}]\n"));
}

#[test]
fn bad_requests_leave_no_file() {
    let model = Model::tiny();
    let ids = model.beside("ids.json", "[1, 2, 3]");
    let out = model.path().with_file_name("out.npy");
    let out = out.to_str().unwrap();
    logits(&model, &ids, out, &["--last", "4"]).fails_with(&["--last 4", "the 3 tokens of", "ids.json"]);
    logits(&model, &ids, "/no/such/folder/out.npy", &[]).fails_with(&["/no/such/folder/out.npy"]);
    let wrong = model.beside("wrong.json", "[9999]");
    logits(&model, &wrong, out, &[]).fails_with(&["wrong.json", "9999"]);
    model.edit("config.json", |json| json["max_position_embeddings"] = 2.into());
    logits(&model, &ids, out, &[]).fails_with(&["3 tokens", "context of 2"]);
    assert!(!std::path::Path::new(out).exists());
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_and_what_is_there_stays() {
    let model = Model::tiny();
    let ids = model.beside("ids.json", "[1, 2, 3]");
    let nowhere = model.beside("ids.json", "[1, 2, 3]") + "/no/such/folder/a.npy";
    logits(&model, &ids, &nowhere, &[]).fails_with(&["cannot write ", "/no/such/folder/a.npy"]);
    // What stops a run later leaves an earlier result alone.
    let out = model.beside("kept.npy", "earlier");
    logits(&model, &ids, &out, &["--last", "4"]).fails_with(&["--last 4 is more than the 3 tokens"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "earlier");
}
