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
            let block = cache.block(layer.index, block, kv_head);
            (kernels.weigh_values)(&p[i * BLOCK_SIZE..], stride, block, head_dim, out);
        }
    });
}

fn softmax_with_sink(kernels: &Kernels, p: &mut [f32], sink: f32) {
    let max = p.iter().fold(sink, |m, &v| m.max(v));
    let scale = 1.0 / ((kernels.exp_sum)(p, max) + (sink - max).exp());
    p.iter_mut().for_each(|v| *v *= scale);
}
