//! One malformed checkpoint per reason to refuse, each with its error and nothing else.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use tessera_model::checkpoint::{Checkpoint, CheckpointError, Depth, Layout, MAX_FILES, Survey};
use tessera_model::synth::{Like, Spec};

use crate::scratch::{Scratch, edit, read_header, tiny, write, write_file};

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The error that opening gives; its text has every one of `words`, which are what a user needs to find the damage.
fn check(path: &Path, variant: fn(&CheckpointError) -> bool, words: &[&str]) {
    let error = Checkpoint::open(path).map(|_| "opened").expect_err("opened");
    let text = error.to_string();
    assert!(variant(&error), "{error:?}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    assert!(!text.contains('\n') && text.starts_with(|c: char| c.is_lowercase() || c == '/'), "{text}");
}

macro_rules! check {
    ($path:expr, $variant:ident, $($word:expr),+) => {
        check($path.as_ref(), |e| matches!(e, CheckpointError::$variant { .. }), &[$($word),+])
    };
}

/// Changes the header and the tensor bytes of the one weight file.
fn damage(scratch: &Scratch, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) {
    let file = scratch.join(FILE);
    let (mut header, mut data) = read_header(&file);
    change(&mut header, &mut data);
    write_file(&file, &header, &data);
}

fn sharded() -> Scratch {
    write(Spec { max_shard_bytes: 200_000, ..Spec::new(Like::Tiny.config(), 1) })
}

fn start(header: &Map<String, Value>, tensor: &str) -> usize {
    header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn nothing_there() {
    let dir = tempfile::tempdir().unwrap();
    check!(dir.path(), NoWeights, dir.path().to_str().unwrap(), "*.safetensors");
    check!(dir.path().join("absent"), NotFound, "absent", "does not exist");
    fs::write(dir.path().join("model.gguf"), "GGUF").unwrap();
    check!(dir.path().join("model.gguf"), NotACheckpoint, "model.gguf", "expected a folder");
    fs::create_dir(dir.path().join("x.safetensors")).unwrap();
    check!(dir.path(), NotACheckpoint, "x.safetensors");
}

#[test]
fn files_that_are_no_safetensors() {
    let scratch = tiny(Layout::Hf);
    let file = scratch.join(FILE);
    fs::write(&file, "").unwrap();
    check!(&scratch.path, TooShort, FILE, "0 bytes", "at least 8");
    fs::write(&file, u64::MAX.to_le_bytes()).unwrap();
    check!(&scratch.path, HeaderLength, FILE, "18446744073709551615", "at most 0");
    fs::write(&file, [&200_000_000u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    check!(&scratch.path, HeaderLength, "200000000");
    for header in ["{\"a\": [}", "[]", "{\"a\": {\"dtype\": \"Q4\", \"shape\": [], \"data_offsets\": [0, 0]}}", "\u{0}"]
    {
        fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        check!(&scratch.path, Header, FILE, "fetch");
    }
    fs::write(&file, [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()).unwrap();
    check!(&scratch.path, Header, FILE, "UTF-8");
}

#[test]
fn a_truncated_file() {
    let scratch = tiny(Layout::Hf);
    let whole = fs::metadata(scratch.join(FILE)).unwrap().len();
    OpenOptions::new().write(true).open(scratch.join(FILE)).unwrap().set_len(whole - 1).unwrap();
    check!(&scratch.path, Truncated, FILE, &whole.to_string(), &(whole - 1).to_string());
    OpenOptions::new().write(true).open(scratch.join(FILE)).unwrap().set_len(whole + 3).unwrap();
    check!(&scratch.path, TrailingBytes, FILE, &whole.to_string(), &(whole + 3).to_string());
}

#[test]
fn offsets_that_overlap_leave_gaps_or_run_away() {
    let set = |offsets: Value| {
        let scratch = tiny(Layout::Hf);
        damage(&scratch, |header, _| header["model.norm.weight"]["data_offsets"] = offsets);
        scratch
    };
    check!(&set(json!([0, 128])).path, Offsets, FILE, "overlaps");
    check!(&set(json!([5, 1])).path, Offsets, "model.norm.weight");
    check!(&set(json!([0, 1u64 << 60])).path, Truncated, FILE, "fetch it again");
    // Eight tensors whose sizes add up to more than 64 bits hold.
    let scratch = tiny(Layout::Hf);
    damage(&scratch, |header, _| {
        let size = (1u64 << 61) - 1;
        for i in 0..8u64 {
            let offsets = json!([i * size, (i + 1).wrapping_mul(size)]);
            header.insert(format!("{i}"), json!({"dtype": "U8", "shape": [size], "data_offsets": offsets}));
        }
    });
    check!(&scratch.path, Truncated, FILE);
}

#[test]
fn a_byte_range_that_is_not_the_shapes() {
    let scratch = tiny(Layout::Hf);
    damage(&scratch, |header, _| header["model.norm.weight"]["shape"] = json!([63]));
    check!(&scratch.path, ByteCount, "model.norm.weight", "128 bytes", "need 126");
    damage(&scratch, |header, _| header["model.norm.weight"]["shape"] = json!([1u64 << 40, 1u64 << 40]));
    check!(&scratch.path, ByteCount, "model.norm.weight", "more than can be addressed");
}

#[test]
fn indexes() {
    let break_index = |change: fn(&mut Map<String, Value>)| {
        let scratch = sharded();
        edit(&scratch.join(INDEX), change);
        scratch
    };
    check!(&break_index(|i| drop(i.remove("weight_map"))).path, Index, INDEX, "weight_map");
    check!(&break_index(|i| i["weight_map"] = json!({})).path, Index, "empty");
    for name in [json!("../model.safetensors"), json!("/etc/passwd"), json!(7), json!("")] {
        let scratch = sharded();
        edit(&scratch.join(INDEX), |i| i["weight_map"]["lm_head.weight"] = name);
        check!(&scratch.path, Index, "lm_head.weight", "not a file name");
    }
    let scratch = break_index(|i| i["weight_map"]["lm_head.weight"] = json!("model-00009-of-00009.safetensors"));
    check!(&scratch.path, MissingShard, INDEX, "model-00009-of-00009.safetensors");
    let scratch =
        break_index(|i| i["weight_map"]["lm_head.weight"] = i["weight_map"]["model.embed_tokens.weight"].clone());
    check!(&scratch.path, IndexMismatch, INDEX, "lm_head.weight", "model-00001-of-");
    fs::write(scratch.join(INDEX), "{").unwrap();
    check!(&scratch.path, Index, INDEX);
}

#[test]
fn a_tensor_in_two_files() {
    let scratch = tiny(Layout::Hf);
    fs::copy(scratch.join(FILE), scratch.join("copy.safetensors")).unwrap();
    check!(&scratch.path, DuplicateTensor, "copy.safetensors", FILE, "model.embed_tokens.weight");
}

#[test]
fn too_many_files() {
    let scratch = tiny(Layout::Hf);
    for i in 0..MAX_FILES {
        fs::write(scratch.join(&format!("{i}.safetensors")), "").unwrap();
    }
    check!(&scratch.path, TooManyFiles, &(MAX_FILES + 1).to_string(), &MAX_FILES.to_string());
}

#[test]
fn tensors_missing_mistyped_or_misshapen() {
    let rename = |from: &'static str, to: &'static str| {
        let scratch = tiny(Layout::Hf);
        damage(&scratch, |header, _| {
            let entry = header.remove(from).unwrap();
            header.insert(to.into(), entry);
        });
        scratch
    };
    let scratch = rename("model.layers.2.self_attn.sinks", "model.layers.2.self_attn.sink");
    check!(&scratch.path, MissingTensor, "model.layers.2.self_attn.sinks", "BF16", "[8]");
    let set = |field: &'static str, value: Value| {
        let scratch = tiny(Layout::Hf);
        damage(&scratch, |header, _| header["model.layers.1.mlp.router.weight"][field] = value);
        scratch
    };
    let one = scratch.join("model-00001-of-00002.safetensors");
    std::fs::rename(scratch.join(FILE), &one).unwrap();
    check!(&one, OneOfSeveral, "model-00001-of-00002.safetensors", "one of 2 files", "model.layers.2.self_attn.sinks");
    check!(&set("dtype", json!("F16")).path, Dtype, FILE, "model.layers.1.mlp.router.weight", "F16", "BF16");
    check!(&set("shape", json!([64, 8])).path, Shape, "model.layers.1.mlp.router.weight", "[64, 8]", "[8, 64]");
    let scratch = rename("lm_head.weight", "head");
    check!(&scratch.path, MissingTensor, "lm_head.weight", "[512, 64]");
    edit(&scratch.join("config.json"), |config| config["tie_word_embeddings"] = json!(true));
    check!(&scratch.path, TiedHead, "lm_head.weight", "tie_word_embeddings");
}

#[test]
fn no_names_of_a_known_layout() {
    let scratch = tiny(Layout::Hf);
    damage(&scratch, |header, _| {
        header.remove("__metadata__");
        let renamed = std::mem::take(header).into_iter().map(|(name, v)| (format!("x.{name}"), v));
        *header = renamed.collect();
    });
    check!(&scratch.path, UnknownLayout, "model.layers.N", "x.model.embed_tokens.weight");
}

#[test]
fn dequantised_experts() {
    let scratch = tiny(Layout::Bf16);
    let command = format!("tessera convert {} DESTINATION", scratch.path.display());
    check!(&scratch.path, Bf16Only, "model.layers.0.mlp.experts.gate_up_proj_blocks", &command);
}

#[test]
fn bf16_at_an_odd_byte() {
    let scratch = tiny(Layout::Hf);
    let bytes = fs::read(scratch.join(FILE)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let odd = [&(length as u64 + 1).to_le_bytes()[..], &bytes[8..8 + length], b" ", &bytes[8 + length..]].concat();
    fs::write(scratch.join(FILE), odd).unwrap();
    check!(&scratch.path, Misaligned, "model.embed_tokens.weight", "odd byte", "tessera convert");
    // The command that the error names mends it.
    let out = scratch.join("../out");
    tessera_model::convert::Conversion::to(Layout::Hf)
        .run(&scratch.path, &out, &|_, _| std::ops::ControlFlow::Continue(()))
        .unwrap();
    Checkpoint::open(&out).unwrap();
    assert_eq!(read_header(&out.join(FILE)), read_header(&tiny(Layout::Hf).join(FILE)));
}

#[test]
fn nan_scales_are_named_by_expert_row_and_block() {
    for (layout, name) in [
        (Layout::Hf, "model.layers.3.mlp.experts.gate_up_proj_scales"),
        (Layout::Original, "block.3.mlp.mlp1_weight.scales"),
    ] {
        let scratch = tiny(layout);
        let folder = if layout == Layout::Original { scratch.join("original") } else { scratch.path.clone() };
        let (header, mut data) = read_header(&folder.join(FILE));
        data[start(&header, name) + (5 * 128 + 100) * 2 + 1] = 255; // of [8, 128, 2]
        write_file(&folder.join(FILE), &header, &data);
        check!(&scratch.path, NanScale, name, "expert 5", "row 100", "block 1", "255");
    }
}

#[test]
fn small_tensors_that_are_not_finite() {
    let cases = [
        ("model.layers.0.input_layernorm.weight", 63, [0xc0, 0x7f], "NaN"),
        ("model.norm.weight", 0, [0x80, 0x7f], "inf"),
        ("model.layers.2.self_attn.sinks", 7, [0x80, 0xff], "-inf"),
        ("model.layers.2.self_attn.k_proj.bias", 1, [0xc0, 0x7f], "NaN"),
        ("model.layers.2.mlp.router.weight", 511, [0xc0, 0xff], "NaN"),
        ("model.layers.2.mlp.experts.down_proj_bias", 100, [0xc0, 0x7f], "NaN"),
    ];
    for (name, index, value, printed) in cases {
        let scratch = tiny(Layout::Hf);
        damage(&scratch, |header, data| data[start(header, name) + 2 * index..][..2].copy_from_slice(&value));
        check!(&scratch.path, NotFinite, name, &format!("value {index} is {printed}"));
    }
}

#[test]
fn config_missing_or_impossible() {
    let scratch = tiny(Layout::Hf);
    edit(&scratch.join("config.json"), |config| config["head_dim"] = json!(33));
    check!(&scratch.path, Config, scratch.path.to_str().unwrap(), "head_dim", "33");
    fs::remove_file(scratch.join("config.json")).unwrap();
    check!(&scratch.path, NoConfig, "config.json");
}

#[test]
fn an_unreadable_file() {
    let scratch = tiny(Layout::Hf);
    fs::remove_file(scratch.join("config.json")).unwrap();
    fs::write(scratch.join("config.json"), [0xff, 0xfe]).unwrap();
    check!(&scratch.path, Io, "config.json", "UTF-8");
}

#[test]
fn a_file_that_changes_while_it_is_open() {
    let scratch = tiny(Layout::Hf);
    let checkpoint = Checkpoint::open(&scratch.path).unwrap();
    checkpoint.still_unchanged().unwrap();
    let file = OpenOptions::new().write(true).open(scratch.join(FILE)).unwrap();
    file.write_all_at(b"x", 100_000).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let error = checkpoint.still_unchanged().unwrap_err();
    assert!(
        matches!(error, CheckpointError::Changed { .. }) && error.to_string().contains("time of change"),
        "{error}"
    );
    file.set_len(200_000).unwrap();
    let error = checkpoint.still_unchanged().unwrap_err().to_string();
    assert!(error.contains("length") && error.contains("now 200000 bytes"), "{error}");
}

#[test]
fn unknown_tensors_are_noted() {
    let scratch = tiny(Layout::Hf);
    damage(&scratch, |header, data| {
        for i in 0..10 {
            let at = data.len();
            data.extend([0; 4]);
            let entry = json!({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]});
            header.insert(format!("extra.{i}"), entry);
        }
    });
    let checkpoint = Checkpoint::open(&scratch.path).unwrap();
    let notes = checkpoint.notes();
    assert_eq!(notes.len(), 9, "{notes:?}");
    assert_eq!(notes[0], "unknown tensor extra.0 (F32 [1]) is ignored");
    assert_eq!(notes[8], "2 more unknown tensors are ignored");
}

#[test]
fn of_both_layouts_the_converted_one_is_kept() {
    let (hf, original) = (tiny(Layout::Hf), tiny(Layout::Original));
    // In a folder of its own, as published.
    fs::create_dir(hf.join("original")).unwrap();
    fs::copy(original.join("original/model.safetensors"), hf.join("original/model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(&hf.path).unwrap();
    assert_eq!(checkpoint.layout(), Layout::Hf);
    assert!(checkpoint.notes()[0].contains("original is left alone"), "{:?}", checkpoint.notes());
    // In the same folder.
    fs::copy(original.join("original/model.safetensors"), hf.join("z.safetensors")).unwrap();
    fs::remove_dir_all(hf.join("original")).unwrap();
    let checkpoint = Checkpoint::open(&hf.path).unwrap();
    assert_eq!((checkpoint.layout(), checkpoint.notes().len()), (Layout::Hf, 1));
    assert!(checkpoint.notes()[0].contains("63 tensors of the original one are dropped"), "{:?}", checkpoint.notes());
}

/// All damage is listed, not only the first.
#[test]
fn a_survey_lists_every_refusal() {
    let scratch = tiny(Layout::Hf);
    damage(&scratch, |header, data| {
        data[start(header, "model.layers.0.mlp.experts.down_proj_scales")] = 255;
        header["model.norm.weight"]["dtype"] = json!("F16");
        let sinks = header.remove("model.layers.1.self_attn.sinks").unwrap();
        header.insert("sinks".into(), sinks);
    });
    let survey = Survey::take(&scratch.path, Depth::Values);
    let found: Vec<String> = survey.refusals.iter().map(|r| r.to_string()).collect();
    assert_eq!(found.len(), 3, "{found:#?}");
    for (text, word) in found.iter().zip(["1.self_attn.sinks is missing", "model.norm.weight is F16", "expert 0"]) {
        assert!(text.contains(word), "{text}");
    }
}

/// Links, as the Hugging Face cache has them.
#[test]
fn symbolic_links_open() {
    let scratch = sharded();
    let links = scratch.join("../links");
    fs::create_dir(&links).unwrap();
    for entry in fs::read_dir(&scratch.path).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), links.join(entry.file_name())).unwrap();
    }
    Checkpoint::open(&links).unwrap();
}
