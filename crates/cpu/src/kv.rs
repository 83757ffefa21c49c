//! The paged cache of keys and values, BF16, one pool per layer.

use half::bf16;
use tessera_model::{BLOCK_SIZE, Config, Limits};

use crate::simd::KvBlock;

/// Keys and values of every layer. A sliding layer's pool has only the sliding layers' number of blocks.
pub struct KvCache {
    layers: Vec<LayerKv>,
    head_dim: usize,
    kv_heads: usize,
}

struct LayerKv {
    // Raw bits, so that untouched blocks stay unbacked zero pages.
    k: Vec<u16>, // [blocks, kv_heads, head_dim, BLOCK_SIZE]
    v: Vec<u16>, // [blocks, kv_heads, BLOCK_SIZE, head_dim]
}

impl KvCache {
    pub fn new(config: &Config, limits: &Limits) -> Self {
        let per_block = config.kv_dim() * BLOCK_SIZE;
        let layer = |kind| {
            let n = limits.blocks(kind) * per_block;
            LayerKv { k: vec![0; n], v: vec![0; n] }
        };
        let layers = config.layer_types.iter().copied().map(layer).collect();
        Self { layers, head_dim: config.head_dim, kv_heads: config.num_key_value_heads }
    }

    /// Stores one position's keys and values, `[kv_heads * head_dim]` each, at `slot` of a block.
    pub fn store(&mut self, layer: usize, block: u32, slot: usize, k: &[f32], v: &[f32]) {
        let per_head = self.head_dim * BLOCK_SIZE;
        let at = block as usize * self.kv_heads * per_head;
        let size = self.kv_heads * per_head;
        let layer = &mut self.layers[layer];
        for (k, out) in k.iter().zip(layer.k[at..at + size].chunks_exact_mut(BLOCK_SIZE)) {
            out[slot] = bf16::from_f32(*k).to_bits();
        }
        for (v, out) in v.chunks_exact(self.head_dim).zip(layer.v[at..at + size].chunks_exact_mut(per_head)) {
            for (v, out) in v.iter().zip(&mut out[slot * self.head_dim..]) {
                *out = bf16::from_f32(*v).to_bits();
            }
        }
    }

    /// One KV head's share of a block.
    pub fn block(&self, layer: usize, block: u32, kv_head: usize) -> KvBlock<'_> {
        let per_head = self.head_dim * BLOCK_SIZE;
        let at = (block as usize * self.kv_heads + kv_head) * per_head;
        let layer = &self.layers[layer];
        KvBlock {
            k: bytemuck::cast_slice(&layer.k[at..at + per_head]),
            v: bytemuck::cast_slice(&layer.v[at..at + per_head]),
        }
    }
}
