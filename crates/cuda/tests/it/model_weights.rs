//! Weights in the GPU's memory: every byte against the host's packers, whatever the model and wherever they come from.

mod expected;
pub mod inputs;

use std::ops::ControlFlow;
use std::time::Instant;

use expected::Expected;
use inputs::{Owned, demo, parity, synth};
use tessera_cuda::pack::PackError;
use tessera_cuda::{Device, ModelWeights, ModelWeightsError};
use tessera_model::checkpoint::{Checkpoint, Part};
use tessera_model::synth::Like;
use tessera_model::{Config, Weights};

use crate::gpu::gpu;

/// The published widths, small in everything else: an expert's matrix is larger than what is loaded at once.
fn wide() -> Config {
    let mut config = Like::Gpt20b.config();
    config.num_hidden_layers = 1;
    config.layer_types.truncate(1);
    config.num_local_experts = 5;
    config.vocab_size = 1999;
    config.eos_token_ids.clear();
    config
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Loads, and compares every byte.
#[track_caller]
fn check(device: &Device, config: &Config, weights: &Weights) {
    let (mut last, mut calls) = (0, 0);
    let model = ModelWeights::load(device, config, weights, &mut |bytes| {
        assert!(bytes > last, "progress goes back");
        (last, calls) = (bytes, calls + 1);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(last, ModelWeights::checkpoint_bytes(config), "{calls} calls of progress");
    compare(device, config, weights, &model);
}

#[track_caller]
fn compare(device: &Device, config: &Config, weights: &Weights, model: &ModelWeights) {
    let stream = device.stream().unwrap();
    let expected = Expected::new(config, weights);
    let mut all_bytes = 0;
    model
        .contents(&stream, &mut |name, found| {
            let expect = expected.buffer(name);
            let differs = found.iter().zip(&expect).position(|(found, expect)| found != expect);
            assert_eq!((found.len(), differs), (expect.len(), None), "{name}");
            all_bytes += found.len() as u64;
        })
        .unwrap();
    assert_eq!(ModelWeights::bytes(config).unwrap(), all_bytes);
    assert_eq!(model.weight_scales(), expected.weight_scales());
}

#[track_caller]
fn check_checkpoint(checkpoint: &Checkpoint) {
    let Some(device) = gpu() else { return };
    check(&device, checkpoint.config(), &checkpoint.weights());
}

#[test]
fn the_demo_model() {
    let (_folder, checkpoint) = demo();
    check_checkpoint(&checkpoint);
}

#[test]
fn models_of_awkward_shapes() {
    let Some(device) = gpu() else { return };
    let checkpoints = parity();
    assert!(checkpoints.len() >= 8, "{} fixtures", checkpoints.len());
    for checkpoint in checkpoints {
        check(&device, checkpoint.config(), &checkpoint.weights());
    }
}

#[test]
fn matrices_of_several_pieces() {
    let (_folder, checkpoint) = synth(wide(), 3);
    check_checkpoint(&checkpoint);
}

#[test]
fn all_scale_bytes_that_can_be_packed() {
    let Some(device) = gpu() else { return };
    for scales in [[(0, 128), (0, 4)], [(0, 129), (129, 140)], [(67, 200), (0, 133)], [(121, 254), (254, 254)]] {
        let owned = Owned::random(Like::TinyOdd.config(), scales);
        check(&device, &owned.config, &owned.view());
    }
}

#[test]
fn a_scale_that_cannot_be_packed_is_named() {
    let Some(device) = gpu() else { return };
    let load = |owned: &Owned| ModelWeights::load(&device, &owned.config, &owned.view(), &mut go_on).err().unwrap();
    let mut owned = Owned::random(Like::TinyOdd.config(), [(100, 120), (100, 120)]);
    let (rows, blocks) = (96, 5); // of a down matrix
    owned.bytes_mut(2, Part::DownScales)[(3 * rows + 41) * blocks + 2] = 255;
    let source = PackError::ScaleNan { row: 41, block: 2 };
    let error = load(&owned);
    assert_eq!(error, ModelWeightsError::Scale { layer: 2, what: "down", expert: 3, source });
    assert_eq!(error.to_string(), "layer 2, down, expert 3: row 41, block 2: scale byte 255 is NaN");
    owned.bytes_mut(2, Part::DownScales)[(3 * rows + 41) * blocks + 2] = 120;
    let (rows, blocks) = (320, 3); // of a gate_up matrix
    owned.bytes_mut(1, Part::GateUpScales)[0] = 234;
    owned.bytes_mut(1, Part::GateUpScales).iter_mut().skip(1).for_each(|scale| *scale = 101);
    owned.bytes_mut(1, Part::GateUpScales)[(7 * rows + 319) * blocks] = 100;
    let source = PackError::ScaleSpan { row: 319, block: 0, scale: 100, lowest: 101, highest: 234 };
    assert_eq!(load(&owned), ModelWeightsError::Scale { layer: 1, what: "gate_up", expert: 7, source });
}

#[test]
fn made_weights_are_those_of_the_synthetic_checkpoint() {
    let Some(device) = gpu() else { return };
    for config in [Like::Tiny.config(), Like::TinyOdd.config(), Like::TinyTop3.config(), wide()] {
        let (_folder, checkpoint) = synth(config, 11);
        let (config, mut last) = (checkpoint.config(), 0);
        let model = ModelWeights::dummy(&device, config, 11, &mut |bytes| {
            last = bytes;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(last, ModelWeights::checkpoint_bytes(config));
        compare(&device, config, &checkpoint.weights(), &model);
    }
}

#[test]
fn made_weights_are_a_function_of_the_seed() {
    let Some(device) = gpu() else { return };
    let stream = device.stream().unwrap();
    let contents = |seed| {
        let model = ModelWeights::dummy(&device, &Like::TinyOdd.config(), seed, &mut go_on).unwrap();
        let mut all = Vec::new();
        model.contents(&stream, &mut |name, bytes| all.push((name.to_owned(), bytes.to_vec()))).unwrap();
        all
    };
    let (first, again, other) = (contents(5), contents(5), contents(6));
    assert!(first == again);
    for ((name, first), (_, other)) in first.iter().zip(&other) {
        let has_values = first.iter().any(|&byte| byte != 0); // the head has no biases
        assert!(!has_values || first != other, "{name}");
    }
}

#[test]
fn loading_and_making_are_broken_off() {
    let Some(device) = gpu() else { return };
    let free = device.memory().unwrap().free_bytes;
    let owned = Owned::random(wide(), [(100, 120); 2]);
    for _ in 0..3 {
        let mut calls = 0;
        let mut stop = |_| {
            calls += 1;
            ControlFlow::Break(())
        };
        let loaded = ModelWeights::load(&device, &owned.config, &owned.view(), &mut stop);
        assert_eq!(loaded.err(), Some(ModelWeightsError::Interrupted));
        let made = ModelWeights::dummy(&device, &owned.config, 0, &mut stop);
        assert_eq!((made.err(), calls), (Some(ModelWeightsError::Interrupted), 2));
    }
    let lost = free.saturating_sub(device.memory().unwrap().free_bytes);
    assert!(lost < ModelWeights::bytes(&owned.config).unwrap() as usize / 2, "{lost} bytes were not given back");
    check(&device, &owned.config, &owned.view());
}

#[test]
fn weights_that_do_not_fit_their_configuration_are_refused() {
    let Some(device) = gpu() else { return };
    let owned = Owned::random(Like::Tiny.config(), [(100, 120); 2]);
    let load = |config: &Config, weights: &Weights| ModelWeights::load(&device, config, weights, &mut go_on).err();
    let mut weights = owned.view();
    weights.layers.pop();
    assert_eq!(load(&owned.config, &weights), Some(ModelWeightsError::Layers { expected: 4, found: 3 }));
    let mut weights = owned.view();
    weights.layers[1].sinks = &weights.layers[1].sinks[1..];
    let expect = ModelWeightsError::Length { layer: Some(1), part: Part::Sinks, expected: 2 * 8, found: 2 * 7 };
    assert_eq!(expect.to_string(), "layer 1: Sinks has 14 bytes, expected 16");
    assert_eq!(load(&owned.config, &weights), Some(expect));
}

#[track_caller]
fn refuses(change: impl FnOnce(&mut Config), expect: &str) {
    let mut config = Like::Tiny.config();
    change(&mut config);
    assert_eq!(ModelWeights::bytes(&config).unwrap_err().to_string(), expect);
}

#[test]
fn shapes_that_the_kernels_cannot_work_on_are_refused() {
    refuses(|c| c.head_dim = 128, "head_dim is 128: the GPU's kernels need 32 or 64; run on the CPU");
    refuses(
        |c| (c.num_attention_heads, c.num_key_value_heads) = (34, 2),
        "num_attention_heads is 34: the GPU's kernels need at most 16 per head of keys, which are 2; run on the CPU",
    );
    refuses(
        |c| (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (256, 16, 64),
        "num_attention_heads * head_dim is 16384: the GPU's kernels need at most 8192; run on the CPU",
    );
    refuses(|c| c.vocab_size = 262_145, "vocab_size is 262145: the GPU's kernels need at most 262144; run on the CPU");
    refuses(|c| c.hidden_size = 2976, "experts' hidden size is 2976: expected a multiple of 32, at most 2944");
    refuses(|c| c.num_local_experts = 257, "experts' number is 257: expected 1 to 256");
}

/// No padding in the published shapes but of the router's columns and the head's: MXFP4 stays as large as it is, vectors
/// and biases double.
#[test]
fn the_published_models_take_little_more_than_their_checkpoints() {
    for (like, gib) in [(Like::Gpt20b, 12.8), (Like::Gpt120b, 60.8)] {
        let (found, checkpoint) =
            (ModelWeights::bytes(&like.config()).unwrap(), ModelWeights::checkpoint_bytes(&like.config()));
        assert!((found as f64 / (1_u64 << 30) as f64 - gib).abs() < 0.1, "{like:?}: {found}");
        assert!(found > checkpoint && found < checkpoint + checkpoint / 400, "{like:?}: {found}, {checkpoint}");
    }
}

/// Rates of loading a checkpoint of about 2 GB that the page cache has, and times of making the published models.
#[test]
#[ignore = "measures"]
fn speed() {
    let Some(device) = gpu() else { return };
    let mut config = Like::Gpt20b.config();
    config.num_hidden_layers = 3;
    config.layer_types.truncate(3);
    config.vocab_size = 50_000;
    config.eos_token_ids.clear();
    let (folder, first) = synth(config, 1);
    measure_load(&device, &first, "mapped just now");
    for _ in 0..2 {
        let checkpoint = Checkpoint::open(&folder.path().join("model")).unwrap();
        measure_load(&device, &checkpoint, "mapped just now");
        measure_load(&device, &checkpoint, "read before in this mapping");
    }
    for like in [Like::Gpt20b, Like::Gpt120b] {
        let config = like.config();
        if device.memory().unwrap().free_bytes < ModelWeights::bytes(&config).unwrap() as usize + (1 << 30) {
            continue;
        }
        let start = Instant::now();
        let model = ModelWeights::dummy(&device, &config, 1, &mut go_on).unwrap();
        eprintln!("dummy {}: {:.3} s", like.name(), start.elapsed().as_secs_f64());
        drop(model);
    }
}

fn measure_load(device: &Device, checkpoint: &Checkpoint, how: &str) {
    let (start, mut first) = (Instant::now(), None);
    let model = ModelWeights::load(device, checkpoint.config(), &checkpoint.weights(), &mut |_| {
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        ControlFlow::Continue(())
    })
    .unwrap();
    let (seconds, first) = (start.elapsed().as_secs_f64(), first.unwrap_or_default());
    drop(model);
    let gb = ModelWeights::checkpoint_bytes(checkpoint.config()) as f64 / 1e9;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    eprintln!(
        "load, {how}: {gb:.2} GB in {seconds:.3} s, {:.1} GB/s; first piece after {first:.3} s, from then on {:.1} GB/s; \
         {n_threads} threads",
        gb / seconds,
        gb / (seconds - first)
    );
}
