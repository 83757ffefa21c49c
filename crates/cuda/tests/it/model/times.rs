//! The times of a step's stages.

use tessera_model::{Executor, Token};

use super::rig::{How, Rig, batch, fixture, limits};
use crate::gpu::gpu;

#[test]
fn every_stage_is_timed_in_its_order() {
    let Some(device) = gpu() else { return };
    let (_, checkpoint) = fixture("window");
    let config = checkpoint.config();
    let mut rig = Rig::load(&device, config, &checkpoint.weights(), limits(config, 40, 32));
    let prompts: Vec<Vec<Token>> = (0..40).map(|_| rig.random_tokens(30)).collect();
    let mut sequences = rig.sequences(&prompts);
    for (n_rows, n_tokens) in [(40, 7), (3, 1), (40, 1), (2, 20)] {
        let step = batch(&sequences[..n_rows].iter_mut().map(|s| s.next(n_tokens, 1)).collect::<Vec<_>>());
        let expect = rig.step(&step, How::Plain).concat();
        let times = rig.executor.time_stages(&step).unwrap();
        assert_eq!(rig.executor.logits().unwrap(), expect, "it is the same step");
        let names =
            |layer| times.iter().filter(|stage| stage.layer == layer).map(|stage| stage.name).collect::<Vec<_>>();
        assert_eq!(names(None), ["nothing", "embed", "turn", "final_norm", "logits", "sample"]);
        for layer in 0..config.num_hidden_layers {
            // The first norm is a stage of its own; every other is part of the layer before.
            let found = names(Some(layer)).join(", ");
            let attend = if layer % 2 == 0 { "attend sliding" } else { "attend full" };
            // Where every row has one token, one stage has both names.
            let rope_attend = format!("rope_store, {attend}");
            let n_stages = times.iter().filter(|stage| stage.layer == Some(layer) && stage.name == rope_attend).count();
            assert_eq!(n_stages, usize::from(n_tokens == 1), "layer {layer}");
            let first = if layer == 0 { "attn_norm, " } else { "" };
            let last = if layer + 1 < config.num_hidden_layers { ", attn_norm" } else { "" };
            let expect = format!(
                "{first}qkv, rope_store, {attend}, attn_out, mlp_norm, router, route, gate_up, swiglu, down, combine{last}"
            );
            assert_eq!(found, expect, "layer {layer}");
        }
        assert!(times.iter().all(|stage| (0.0..100.0).contains(&stage.ms)), "{times:?}");
    }
}
