//! The same weights, whatever layout they are stored in.

use half::bf16;
use tessera_model::checkpoint::{Checkpoint, Layout};
use tessera_model::mxfp4::decode_row;
use tessera_model::synth::{Like, Spec};
use tessera_model::{Experts, Linear, Weights};

use crate::scratch::{read_header, tiny, write};

/// Every number of a model in one order.
fn flatten(weights: &Weights) -> Vec<Vec<u8>> {
    let bytes = |values: &[bf16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let linear = |l: &Linear| [bytes(l.weight.data), bytes(l.bias)];
    let experts = |e: &Experts| [e.blocks.to_vec(), e.scales.to_vec(), bytes(e.bias)];
    let mut all = vec![bytes(weights.embed.data), bytes(weights.final_norm), bytes(weights.lm_head.data)];
    for l in &weights.layers {
        all.extend([bytes(l.attn_norm), bytes(l.sinks), bytes(l.mlp_norm)]);
        all.extend([&l.q, &l.k, &l.v, &l.o, &l.router].into_iter().flat_map(linear));
        all.extend([&l.gate_up, &l.down].into_iter().flat_map(experts));
    }
    all
}

#[test]
fn hf_and_original_hold_the_same_weights() {
    for like in [Like::Tiny, Like::TinyOdd, Like::TinyTop3] {
        let [hf, original] =
            [Layout::Hf, Layout::Original].map(|layout| write(Spec::new(like.config(), 3).layout(layout)));
        let (hf, original) = (Checkpoint::open(&hf.path).unwrap(), Checkpoint::open(&original.path).unwrap());
        assert_eq!((hf.layout(), original.layout()), (Layout::Hf, Layout::Original));
        assert_eq!(hf.config(), original.config());
        assert!(flatten(&hf.weights()) == flatten(&original.weights()), "{}", like.name());
    }
}

#[test]
fn shards_hold_the_same_weights_as_one_file() {
    let one = tiny(Layout::Hf);
    let many = write(Spec { max_shard_bytes: 100_000, ..Spec::new(Like::Tiny.config(), 1) });
    let (a, b) = (Checkpoint::open(&one.path).unwrap(), Checkpoint::open(&many.path).unwrap());
    let by_index = Checkpoint::open(&many.join("model.safetensors.index.json")).unwrap();
    let by_file = Checkpoint::open(&one.join("model.safetensors")).unwrap();
    assert!(b.files().count() > 3);
    for other in [&b, &by_index, &by_file] {
        assert!(flatten(&a.weights()) == flatten(&other.weights()));
    }
}

#[test]
fn seeds_differ_and_repeat() {
    let open = |seed| {
        let scratch = write(Spec::new(Like::Tiny.config(), seed));
        flatten(&Checkpoint::open(&scratch.path).unwrap().weights())
    };
    let (one, again, two) = (open(1), open(1), open(2));
    assert!(one == again);
    assert!(one.iter().zip(&two).all(|(a, b)| a != b));
}

/// The dequantised layout is the transpose of the decoded blocks.
#[test]
fn bf16_holds_the_transposed_values() {
    let (hf, dequantised) = (tiny(Layout::Hf), tiny(Layout::Bf16));
    let checkpoint = Checkpoint::open(&hf.path).unwrap();
    let (header, data) = read_header(&dequantised.join("model.safetensors"));
    for (layer, weights) in checkpoint.weights().layers.iter().enumerate() {
        for (name, experts) in [("gate_up_proj", weights.gate_up), ("down_proj", weights.down)] {
            let entry = &header[&format!("model.layers.{layer}.mlp.experts.{name}")];
            let start = entry["data_offsets"][0].as_u64().unwrap() as usize;
            let mut row = vec![0f32; experts.cols];
            for (e, r) in (0..experts.experts).flat_map(|e| (0..experts.rows).map(move |r| (e, r))) {
                decode_row(experts.row_blocks(e, r), experts.row_scales(e, r), &mut row);
                for (c, want) in row.iter().enumerate() {
                    let at = start + 2 * ((e * experts.cols + c) * experts.rows + r);
                    let got = bf16::from_le_bytes([data[at], data[at + 1]]).to_f32();
                    assert_eq!(got.to_bits(), want.to_bits(), "layer {layer} {name} expert {e} row {r} column {c}");
                }
            }
        }
    }
}
