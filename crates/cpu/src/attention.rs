//! Attention of one token's query heads over the paged cache, with sinks and the sliding window.

use std::cell::RefCell;

use half::bf16;
use tessera_model::{BLOCK_SIZE, Config, LayerType};

use crate::kv::KvCache;
use crate::simd::Kernels;

/// What attention needs to know of a layer.
pub struct AttentionLayer<'a> {
    pub index: usize,
    pub kind: LayerType,
    pub sinks: &'a [bf16], // [heads]
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    q: Vec<f32>, // [group, head_dim], scaled
    p: Vec<f32>, // [group, keys rounded up to blocks]
}

/// The query heads that share `kv_head`, for the token at `position`: `q` and `out` `[heads / kv_heads, head_dim]`.
///
/// `softmax([q k / sqrt(head_dim), sink]) v`, where the sink takes its share of the sum and has no value.
pub fn attend(
    kernels: &Kernels,
    config: &Config,
    cache: &KvCache,
    layer: &AttentionLayer,
    table: &[u32],
    position: usize,
    kv_head: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let head_dim = config.head_dim;
    let first_key = match layer.kind {
        LayerType::Full => 0,
        LayerType::Sliding => (position + 1).saturating_sub(config.sliding_window),
    };
    let first_block = first_key / BLOCK_SIZE;
    let blocks = &table[first_block..=position / BLOCK_SIZE];
    let base = first_block * BLOCK_SIZE;
    let stride = blocks.len() * BLOCK_SIZE;
    let group = q.len() / head_dim;
    let sinks = &layer.sinks[kv_head * group..][..group];
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.q.clear();
        scratch.q.extend(q.iter().map(|v| v * config.sm_scale()));
        scratch.p.resize(group * stride, 0.0);
        let p = &mut scratch.p[..group * stride];
        for (i, &block) in blocks.iter().enumerate() {
            let block = cache.block(layer.index, block, kv_head);
            (kernels.scores)(&scratch.q, block, head_dim, &mut p[i * BLOCK_SIZE..], stride);
        }
        for (p, sink) in p.chunks_exact_mut(stride).zip(sinks) {
            p[..first_key - base].fill(f32::NEG_INFINITY);
            p[position + 1 - base..].fill(f32::NEG_INFINITY);
            softmax_with_sink(kernels, p, sink.to_f32());
        }
        out.fill(0.0);
        for (i, &block) in blocks.iter().enumerate() {
            // Only visible positions: what others hold may be stale or not finite, and 0 times that is no zero.
            let start = base + i * BLOCK_SIZE;
            let visible = first_key.saturating_sub(start)..(position + 1 - start).min(BLOCK_SIZE);
            let mut block = cache.block(layer.index, block, kv_head);
            block.v = &block.v[visible.start * head_dim..visible.end * head_dim];
            (kernels.weigh_values)(&p[i * BLOCK_SIZE + visible.start..], stride, block, head_dim, out);
        }
    });
}

fn softmax_with_sink(kernels: &Kernels, p: &mut [f32], sink: f32) {
    let max = p.iter().fold(sink, |m, &v| m.max(v));
    let scale = 1.0 / ((kernels.exp_sum)(p, max) + (sink - max).exp());
    p.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests {
    use tessera_model::Limits;
    use tessera_model::synth::Like;

    use super::*;
    use crate::simd::Isa;

    fn config() -> Config {
        Config {
            vocab_size: 8,
            hidden_size: 32,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 4,
            num_key_value_heads: 1,
            head_dim: 64,
            num_local_experts: 1,
            num_experts_per_tok: 1,
            max_position_embeddings: 64,
            sliding_window: 4,
            layer_types: vec![LayerType::Sliding],
            ..Like::Gpt20b.config()
        }
    }

    #[test]
    fn what_cannot_be_seen_does_not_matter() {
        let config = config();
        let sinks = [bf16::ZERO; 4];
        let layer = AttentionLayer { index: 0, kind: LayerType::Sliding, sinks: &sinks };
        let limits = Limits::for_sequences(&config, 1, 32, 32);
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
            let run = |hidden: f32| {
                let mut cache = KvCache::new(&config, &limits);
                for position in 0..32 {
                    let v = if (15..19).contains(&position) { 1.0 + position as f32 } else { hidden };
                    cache.store(0, position as u32 / 16, position % 16, &[0.5; 64], &[v; 64]);
                }
                let mut out = [0f32; 4 * 64];
                attend(isa.kernels(), &config, &cache, &layer, &[0, 1], 18, 0, &[0.0; 4 * 64], &mut out);
                out
            };
            let out = run(0.0);
            // Four equal scores of 0 and a sink of 0: each value has a fifth.
            assert!(out.iter().all(|v| (v - (16.0 + 17.0 + 18.0 + 19.0) / 5.0).abs() < 1e-5), "{out:?}");
            assert_eq!(out, run(f32::NAN), "{}", isa.name());
        }
    }
}
