//! Opening checkpoints of arbitrary bytes: every input is a refusal or a checkpoint whose weights can be read.
//!
//! cargo +nightly fuzz run checkpoint
//!
//! The first byte chooses what the rest is: a header alone, a configuration, an index, a whole file, or changes to the
//! files of a checkpoint that opens.

#![no_main]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tessera_model::Config;
use tessera_model::checkpoint::{Checkpoint, Depth, Part, Survey, parse_header};
use tessera_model::synth::{Like, Spec};

/// A checkpoint of the smallest shapes that a configuration allows, and its files' bytes.
struct Good {
    folder: PathBuf,
    config: Vec<u8>,
    weights: Vec<u8>,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = parent.join(format!("tessera-fuzz-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let mut config = Like::Tiny.config();
    (config.vocab_size, config.hidden_size, config.intermediate_size) = (3, 32, 32);
    (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (1, 1, 2);
    (config.num_local_experts, config.num_experts_per_tok, config.num_hidden_layers) = (1, 1, 1);
    config.layer_types.truncate(1);
    Spec { threads: 1, ..Spec::new(config, 1) }.write(&folder, &|_, _| ControlFlow::Continue(())).unwrap();
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    Good { config: read("config.json"), weights: read("model.safetensors"), folder }
});

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 7 {
        0 => drop(parse_header(Path::new("x"), 0, bytes)),
        1 => read_configs(bytes),
        2 => open(|good| with_file(good, "model.safetensors.index.json", bytes)),
        3 => open(|good| with_file(good, "model.safetensors", bytes)),
        4 => open(|good| with_file(good, "model.safetensors", &patched(&good.weights, bytes))),
        5 => open(|good| with_file(good, "model.safetensors", &with_header(&good.weights, bytes))),
        _ => open(|good| with_file(good, "config.json", &patched(&good.config, bytes))),
    }
});

fn read_configs(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (config, generation) = text.split_once('\n').map_or((text, None), |(c, g)| (c, Some(g)));
    for config in
        [Config::from_json(config, generation), Config::from_original(config, generation)].into_iter().flatten()
    {
        config.validate().expect("what is read is valid");
        assert_eq!(Config::from_hf(&config.to_hf_json(), Some(&config.to_generation_json())).as_ref(), Ok(&config));
    }
}

/// Opens the good checkpoint with one file changed, reads all of it if it opens, and puts the file back.
fn open(change: impl FnOnce(&Good) -> &'static str) {
    let good = &*GOOD;
    let changed = change(good);
    let survey = Survey::take(&good.folder, Depth::Values);
    for refusal in &survey.refusals {
        assert!(!refusal.to_string().is_empty());
    }
    survey.scale_histogram(Part::DownScales);
    if let Ok(checkpoint) = Checkpoint::from_survey(survey) {
        let weights = checkpoint.weights();
        let layer = weights.layers.last().expect("a model has layers");
        std::hint::black_box((weights.embed.row(0), weights.lm_head.row(0), layer.down.row_blocks(0, 0)));
        std::hint::black_box(checkpoint.mappings().map(|m| m.iter().fold(0u8, |a, b| a ^ b)).collect::<Vec<_>>());
    }
    match changed {
        "model.safetensors" => fs::write(good.folder.join(changed), &good.weights).unwrap(),
        "config.json" => fs::write(good.folder.join(changed), &good.config).unwrap(),
        _ => fs::remove_file(good.folder.join(changed)).unwrap(),
    }
}

fn with_file(good: &Good, name: &'static str, bytes: &[u8]) -> &'static str {
    fs::write(good.folder.join(name), bytes).unwrap();
    name
}

/// A weight file whose header is patched and has its right length.
fn with_header(weights: &[u8], edits: &[u8]) -> Vec<u8> {
    let (length, rest) = weights.split_first_chunk::<8>().expect("a file that opens");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header = patched(header, edits);
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// A file with runs of its bytes replaced: offset (two bytes), length (one byte), then what is put there instead.
fn patched(original: &[u8], mut edits: &[u8]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    while let [low, high, length, rest @ ..] = edits {
        let (removed, added) = (usize::from(length >> 4), usize::from(length & 15).min(rest.len()));
        let at = usize::from(u16::from_le_bytes([*low, *high])).min(bytes.len());
        let end = (at + removed).min(bytes.len());
        bytes.splice(at..end, rest[..added].iter().copied());
        edits = &rest[added..];
    }
    bytes
}
