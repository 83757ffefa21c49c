//! Conversions: what comes out, and what is left when they fail.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use half::bf16;
use tessera_model::checkpoint::{Checkpoint, Layout, WriteError};
use tessera_model::convert::{Conversion, ConvertError, Report};
use tessera_model::synth::{Like, Spec};

use crate::scratch::{Scratch, edit, read_header, tiny, write, write_file};

fn convert(source: &Path, to: Layout, destination: &Path) -> Result<Report, ConvertError> {
    Conversion::to(to).run(source, destination, &|_, _| ControlFlow::Continue(()))
}

/// Header entries and bytes of a checkpoint's one weight file.
fn contents(folder: &Path) -> (serde_json::Map<String, serde_json::Value>, Vec<u8>) {
    read_header(&folder.join("model.safetensors"))
}

/// Every like and every layout, converted, is byte for byte what `synth` writes in the target's layout.
#[test]
fn every_layout_converts_to_the_same_bytes() {
    for like in [Like::Tiny, Like::TinyOdd, Like::TinyTop3] {
        let written = |layout| write(Spec::new(like.config(), 5).layout(layout));
        let (hf, original, dequantised) = (written(Layout::Hf), written(Layout::Original), written(Layout::Bf16));
        for (source, from) in [(&original, Layout::Original), (&dequantised, Layout::Bf16)] {
            let out = source.join("../converted");
            let report = convert(&source.path, Layout::Hf, &out).unwrap();
            assert_eq!((report.from, report.to), (from, Layout::Hf));
            assert!(report.errors.iter().all(|e| e.relative_error == 0.0 && e.max_abs_error == 0.0));
            assert!(contents(&out) == contents(&hf.path), "{} from {from}", like.name());
            assert_eq!(Checkpoint::open(&out).unwrap().config(), Checkpoint::open(&hf.path).unwrap().config());
        }
        let out = hf.join("../back");
        convert(&hf.path, Layout::Original, &out).unwrap();
        assert!(contents(&out.join("original")) == contents(&original.join("original")), "{}", like.name());
        Checkpoint::open(&out).unwrap();
    }
}

#[test]
fn companions_come_along_and_config_is_told_of_mxfp4() {
    let source = tiny(Layout::Bf16);
    fs::write(source.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    fs::write(source.join("generation_config.json"), "{\"eos_token_id\": [5, 6]}").unwrap();
    edit(&source.join("config.json"), |config| {
        config.insert("transformers_version".into(), "5.0.0".into());
    });
    let out = source.join("../out");
    convert(&source.path, Layout::Hf, &out).unwrap();
    assert_eq!(fs::read_to_string(out.join("tokenizer.json")).unwrap(), "{\"version\": \"1.0\"}");
    assert_eq!(Checkpoint::open(&out).unwrap().config().eos_token_ids, [5, 6]);
    edit(&out.join("config.json"), |config| {
        assert_eq!(config["transformers_version"], "5.0.0");
        assert_eq!(config["quantization_config"]["quant_method"], "mxfp4");
    });
}

/// Values that no block holds exactly: the report's error is that of a plain recomputation.
#[test]
fn quantising_reports_the_relative_error() {
    let source = tiny(Layout::Bf16);
    let file = source.join("model.safetensors");
    let (header, mut data) = read_header(&file);
    let offsets = &header["model.layers.2.mlp.experts.down_proj"]["data_offsets"];
    let (start, end) = (offsets[0].as_u64().unwrap() as usize, offsets[1].as_u64().unwrap() as usize);
    for (i, value) in data[start..end].chunks_exact_mut(2).enumerate() {
        // Columns of 64 outputs: block element = input % 32; magnitudes 1.0 and 1.1 in turn, so a block's scale is 2^-2
        // and its codes stand for steps of 0.5 around 4: 1.0 is exact, 1.1015625 (4.40625 steps) becomes 1.0.
        let input = i / 64 % 64;
        value.copy_from_slice(&bf16::from_f32(if input % 2 == 0 { 1.0 } else { 1.1015625 }).to_le_bytes());
    }
    write_file(&file, &header, &data);
    let report = convert(&source.path, Layout::Hf, &source.join("../out")).unwrap();
    assert_eq!(report.errors.len(), 8);
    for error in &report.errors {
        let (relative, max) = match error.tensor.as_str() {
            "model.layers.2.mlp.experts.down_proj" => {
                ((0.1015625f64.powi(2) / (1.0 + 1.1015625f64.powi(2))).sqrt(), 0.1015625)
            }
            _ => (0.0, 0.0),
        };
        assert!((error.relative_error - relative).abs() < 1e-12, "{error:?}, expected {relative}");
        assert_eq!(error.max_abs_error, max, "{error:?}");
    }
}

#[test]
fn values_that_are_not_finite_are_refused_by_place() {
    let source = tiny(Layout::Bf16);
    let file = source.join("model.safetensors");
    let (header, mut data) = read_header(&file);
    let start = header["model.layers.1.mlp.experts.gate_up_proj"]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = start + 2 * ((3 * 64 + 40) * 128 + 77); // [expert 3, in 40, out 77] of [8, 64, 128]
    data[at..at + 2].copy_from_slice(&bf16::INFINITY.to_le_bytes());
    write_file(&file, &header, &data);
    let error = refused(&source, Layout::Hf);
    let ConvertError::NotFinite { tensor, expert: 3, row: 77, col: 40, value } = error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), value), ("model.layers.1.mlp.experts.gate_up_proj", f32::INFINITY));
}

/// Fails a conversion and checks that nothing is left behind.
fn refused(source: &Scratch, to: Layout) -> ConvertError {
    let parent = source.path.parent().unwrap();
    let error = convert(&source.path, to, &parent.join("out")).unwrap_err();
    let left: Vec<_> = fs::read_dir(parent).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["model"], "{error}");
    error
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let hf = tiny(Layout::Hf);
    assert!(matches!(refused(&hf, Layout::Hf), ConvertError::SameLayout { layout: Layout::Hf, .. }));
    assert!(matches!(refused(&hf, Layout::Bf16), ConvertError::Target { layout: Layout::Bf16 }));
    let mut config = Like::Tiny.config();
    config.rms_norm_eps = 1e-6;
    let error = refused(&write(Spec::new(config, 1)), Layout::Original);
    assert!(error.to_string().contains("rms_norm_eps"), "{error}");
    fs::remove_file(hf.join("config.json")).unwrap();
    assert!(matches!(refused(&hf, Layout::Original), ConvertError::Checkpoint(_)));
}

#[test]
fn an_existing_destination_is_left_alone() {
    let source = tiny(Layout::Original);
    let out = source.join("../out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("precious"), "x").unwrap();
    let error = convert(&source.path, Layout::Hf, &out).unwrap_err();
    assert!(matches!(error, ConvertError::Write(WriteError::Exists { .. })), "{error}");
    assert_eq!(fs::read_to_string(out.join("precious")).unwrap(), "x");
    fs::remove_file(out.join("precious")).unwrap();
    convert(&source.path, Layout::Hf, &out).unwrap();
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let source = tiny(Layout::Bf16);
    let parent = source.path.parent().unwrap();
    let stop = |_, _| ControlFlow::Break(());
    let error = Conversion::to(Layout::Hf).run(&source.path, &parent.join("out"), &stop).unwrap_err();
    assert!(matches!(error, ConvertError::Write(WriteError::Interrupted { .. })), "{error}");
    assert_eq!(fs::read_dir(parent).unwrap().count(), 1);
}

#[test]
fn destinations_that_cannot_be() {
    let source = tiny(Layout::Original);
    let to = |destination: &Path| match convert(&source.path, Layout::Hf, destination).unwrap_err() {
        ConvertError::Write(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(to(Path::new("/")), WriteError::BadDestination { .. }));
    assert!(matches!(to(&source.join("..")), WriteError::BadDestination { .. }));
    let below_a_file = source.join("generation_config.json/out");
    let error = to(&below_a_file);
    assert!(matches!(error, WriteError::Exists { .. } | WriteError::Io { .. }), "{error}");
    assert!(error.to_string().contains("generation_config.json"), "{error}");
}
