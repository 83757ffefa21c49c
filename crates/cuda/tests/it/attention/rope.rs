//! Rotary embedding, and where keys and values go.

use half::bf16;
use tessera_cuda::{Attention, KvPool, StepMeta};
use tessera_model::LayerType::{self, Full, Sliding};
use tessera_model::rope::YarnTable;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Limits, Row};

use super::rig::{Shape, config, shape};
use crate::gpu::gpu;
use crate::random::Random;

const N_BLOCKS: usize = 40;
/// What pools and q have before.
const UNTOUCHED: bf16 = bf16::from_bits(0x5A5A);
/// Of a pair's length. Derived: half a unit in the last of BF16's 8 bits, and a little for float32.
const MAX_ERROR: f64 = 1.02 / 256.0;

#[test]
fn angles_are_those_of_the_table() {
    let Some(device) = gpu() else { return };
    let config = config(shape(64, 8, 1, 128), 131_072);
    let table = YarnTable::new(&config.rope, 64);
    let attention = Attention::load(&device, &config).unwrap();
    let stream = device.stream().unwrap();
    let limits = Limits { full_blocks: 8192, sliding_blocks: 8192, max_step_tokens: 4096 };
    let mut step = StepMeta::new(&device, &config, &limits, 4).unwrap();
    for start in [0, 65_536, 131_072 - 4096] {
        let tables = BlockTables { full: (0..8192).collect(), sliding: (0..8192).collect() };
        let row = Row { n_tokens: 4096, start, block_tables: tables, n_logits: 0, sampling: None };
        step.fill(&Batch { tokens: vec![0; 4096], rows: vec![row] }, None).unwrap();
        step.send(&stream).unwrap();
        let mut turns = device.alloc::<f32>(4096 * 64).unwrap();
        attention.turn(&stream, &step, &mut turns).unwrap();
        let mut found = vec![0.0; turns.len()];
        stream.download(&turns, 0, &mut found).unwrap();
        for (at, turn) in found.chunks_exact(2).enumerate() {
            let angle = f64::from((start + at / 32) as f32 * table.inv_freq[at % 32]);
            let expect = [angle.cos(), angle.sin()].map(|x| x * f64::from(table.concentration));
            for (found, expect) in turn.iter().zip(expect) {
                // Two roundings to float32.
                assert!((f64::from(*found) - expect).abs() <= 2e-7, "position {}, {}", start + at / 32, at % 32);
            }
        }
    }
}

/// Rows of several lengths, and padding.
#[test]
fn heads_are_turned_and_stored() {
    for shape in [shape(64, 8, 2, 128), shape(32, 5, 1, 16), shape(64, 1, 1, 8)] {
        for kind in [Full, Sliding] {
            check(shape, kind, &[(0, 17), (30, 1), (100, 9)], None);
            check(shape, kind, &[(0, 1), (255, 1), (30, 1)], Some(5));
        }
    }
}

fn check(shape: Shape, kind: LayerType, rows: &[(usize, usize)], bucket: Option<usize>) {
    let Some(device) = gpu() else { return };
    let (config, stream) = (config(shape, 512), device.stream().unwrap());
    let attention = Attention::load(&device, &config).unwrap();
    let limits = Limits { full_blocks: N_BLOCKS, sliding_blocks: N_BLOCKS, max_step_tokens: 64 };
    let mut step = StepMeta::new(&device, &config, &limits, 8).unwrap();
    let batch = batch(rows);
    step.fill(&batch, bucket).unwrap();
    step.send(&stream).unwrap();

    let (n_real, n_tokens) = (batch.tokens.len(), step.n_tokens());
    let mut random = Random(3);
    let width = config.qkv_dim();
    let qkv: Vec<f32> = (0..n_tokens * width).map(|_| random.normal() as f32).collect();
    let mut on_gpu = device.alloc(qkv.len()).unwrap();
    stream.upload(&qkv, &mut on_gpu, 0).unwrap();
    let mut turns = device.alloc(n_tokens * shape.head_dim).unwrap();
    let mut q = device.alloc((n_tokens + 2) * config.q_dim()).unwrap();
    stream.upload(&vec![UNTOUCHED; q.len()], &mut q, 0).unwrap();
    let mut pool = KvPool::new(&device, attention.shape(), N_BLOCKS).unwrap();
    let len = (N_BLOCKS + 1) * BLOCK_SIZE * config.kv_dim();
    pool.upload(&stream, &vec![UNTOUCHED; len], &vec![UNTOUCHED; len]).unwrap();
    attention.turn(&stream, &step, &mut turns).unwrap();
    attention.rope_store(&stream, kind, &step, &on_gpu, &turns, &mut q, &mut pool).unwrap();

    let mut found_q = vec![bf16::ZERO; q.len()];
    stream.download(&q, 0, &mut found_q).unwrap();
    let (mut keys, mut values) = pool.download(&stream).unwrap();
    let positions: Vec<(usize, u32)> = batch
        .rows
        .iter()
        .flat_map(|row| (row.start..row.end()).map(|p| (p, row.block_tables.of(kind)[p / 16])))
        .collect();
    for (token, &(position, block)) in positions.iter().enumerate() {
        for head in 0..shape.heads + 2 * shape.kv_heads {
            let from = &qkv[token * width + head * shape.head_dim..][..shape.head_dim];
            let slot = block as usize * BLOCK_SIZE + position % BLOCK_SIZE;
            let take = |pool: &mut Vec<bf16>, kv_head: usize| -> Vec<bf16> {
                let places = (0..shape.head_dim).map(|dim| element(shape, slot, kv_head, dim));
                places.map(|at| std::mem::replace(&mut pool[at], UNTOUCHED)).collect()
            };
            let found = match head.checked_sub(shape.heads) {
                None => found_q[token * config.q_dim() + head * shape.head_dim..][..shape.head_dim].to_vec(),
                Some(kv_head) if kv_head < shape.kv_heads => take(&mut keys, kv_head),
                Some(head) => take(&mut values, head - shape.kv_heads),
            };
            let is_value = head >= shape.heads + shape.kv_heads;
            check_head(
                &config,
                from,
                position,
                is_value,
                &found,
                &format!("{shape:?}, {kind:?}, token {token}, head {head}"),
            );
        }
    }
    assert!(found_q[n_tokens * config.q_dim()..].iter().all(|&q| q == UNTOUCHED), "written behind q");
    let nobodys = N_BLOCKS * BLOCK_SIZE * config.kv_dim();
    for pool in [&keys, &values] {
        assert!(pool[..nobodys].iter().all(|&x| x == UNTOUCHED), "written elsewhere in the pool");
        assert_eq!(pool[nobodys..].iter().any(|&x| x != UNTOUCHED), n_real < n_tokens);
    }
}

/// Blocks 5 b + 3 r, modulo the pool's size; kinds differ.
fn batch(rows: &[(usize, usize)]) -> Batch {
    let mut next = 0;
    let mut table = |n: usize| -> Vec<u32> {
        (0..n)
            .map(|_| {
                next += 7;
                next % N_BLOCKS as u32
            })
            .collect()
    };
    let mut batch = Batch::default();
    for &(start, n_tokens) in rows {
        let n_blocks = (start + n_tokens).div_ceil(BLOCK_SIZE);
        let full = table(n_blocks);
        let sliding = full.iter().map(|block| (block + 1) % N_BLOCKS as u32).collect();
        let block_tables = BlockTables { full, sliding };
        batch.tokens.extend(vec![1; n_tokens]);
        batch.rows.push(Row { n_tokens, start, block_tables, n_logits: 0, sampling: None });
    }
    batch
}

/// Rows of 128 bytes are swizzled by 8 rows, rows of 64 by pairs of them.
fn element(shape: Shape, slot: usize, kv_head: usize, dim: usize) -> usize {
    let (block, r) = (slot / BLOCK_SIZE, slot % BLOCK_SIZE);
    let swizzle = if shape.head_dim == 64 { r % 8 } else { (r / 2) % 4 };
    ((block * shape.kv_heads + kv_head) * BLOCK_SIZE + r) * shape.head_dim + ((dim / 8) ^ swizzle) * 8 + dim % 8
}

#[track_caller]
fn check_head(
    config: &tessera_model::Config,
    from: &[f32],
    position: usize,
    is_value: bool,
    found: &[bf16],
    what: &str,
) {
    let (half, table) = (from.len() / 2, YarnTable::new(&config.rope, from.len()));
    for i in 0..half {
        let (a, b) = (f64::from(from[i]), f64::from(from[i + half]));
        let angle = if is_value { 0.0 } else { f64::from(position as f32 * table.inv_freq[i]) };
        let factor = if is_value { 1.0 } else { f64::from(table.concentration) };
        let expect = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
        for (found, expect) in [found[i], found[i + half]].into_iter().zip(expect) {
            let (error, limit) = ((found.to_f64() - factor * expect).abs(), MAX_ERROR * factor * a.hypot(b));
            assert!(error <= limit, "{what}, pair {i}: {found}, expected {}", factor * expect);
        }
    }
}
