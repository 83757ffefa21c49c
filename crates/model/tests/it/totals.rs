//! The published sizes: header-only files of full length, whose tensors are holes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::{Map, json};
use tessera_model::checkpoint::{Depth, Layout, Survey};
use tessera_model::synth::Like;

/// Writes a checkpoint of holes; its header comes from the names and shapes alone.
fn check(like: Like, layout: Layout, tensors: usize, bytes: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (mut header, mut at) = (Map::new(), 0);
    for spec in layout.tensors(&like.config()) {
        let end = at + spec.bytes();
        header.insert(spec.name, json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [at, end]}));
        at = end;
    }
    assert_eq!(at, bytes);
    let header = serde_json::to_vec(&header).unwrap();
    let header = [header.clone(), vec![b' '; header.len() % 2]].concat();
    let file = File::create(dir.path().join("model.safetensors")).unwrap();
    file.write_all_at(&[&(header.len() as u64).to_le_bytes()[..], &header].concat(), 0).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
    let config =
        if layout == Layout::Original { like.config().to_original_json().unwrap() } else { like.config().to_hf_json() };
    fs::write(dir.path().join("config.json"), config).unwrap();
    let survey = Survey::take(dir.path(), Depth::Structure);
    assert!(survey.refusals.is_empty(), "{:?}", survey.refusals);
    assert_eq!(survey.layout, Some(layout));
    let total: u64 = survey.tensors.iter().map(|t| t.bytes).sum();
    assert_eq!((survey.tensors.len(), total), (tensors, bytes), "{} {layout}", like.name());
}

#[test]
fn of_20b() {
    check(Like::Gpt20b, Layout::Hf, 459, 13_761_264_768);
    check(Like::Gpt20b, Layout::Original, 363, 13_761_264_768);
}

#[test]
fn of_120b() {
    check(Like::Gpt120b, Layout::Hf, 687, 65_248_815_744);
    check(Like::Gpt120b, Layout::Original, 543, 65_248_815_744);
}
