//! Rotary embedding, and where keys and values go.

use half::bf16;
use tessera_cuda::{Attention, AttentionError, KvPool, StepMeta};
use tessera_model::LayerType::{self, Full, Sliding};
use tessera_model::rope::YarnTable;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Limits, Row};

use super::rig::{Shape, Way, config, shape};
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

    let n_tokens = step.n_tokens();
    let mut random = Random(3);
    let width = config.qkv_dim();
    let qkv: Vec<f32> = (0..n_tokens * width).map(|_| random.normal() as f32).collect();
    let mut on_gpu = device.alloc(qkv.len()).unwrap();
    stream.upload(&qkv, &mut on_gpu, 0).unwrap();
    let mut turns = device.alloc(n_tokens * shape.head_dim).unwrap();
    let mut q = device.alloc((n_tokens + 2) * config.q_dim()).unwrap();
    stream.upload(&vec![UNTOUCHED; q.len()], &mut q, 0).unwrap();
    let mut pool = KvPool::new(&device, attention.shape(), N_BLOCKS).unwrap();
    let len = N_BLOCKS * BLOCK_SIZE * config.kv_dim();
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
                let places = shape.elements(slot).skip(kv_head * shape.head_dim).take(shape.head_dim);
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
    assert!(keys.iter().chain(&values).all(|&x| x == UNTOUCHED), "written elsewhere in the pool");
}

/// Keys, values and results of steps of rows of one token are those of the kernels that turn, store and attend one after the
/// other: at the edges of blocks, tiles and splits, in parts of a row that others merge, and where a warp has several rows.
#[test]
fn attention_that_turns_has_the_same_bits() {
    let Some(device) = gpu() else { return };
    const STARTS: [usize; 15] = [0, 1, 15, 16, 62, 63, 64, 127, 128, 129, 254, 255, 256, 511, 3000];
    const POOL_BLOCKS: usize = 512;
    const BUCKET: usize = 20;
    for shape in [shape(64, 8, 2, 128), shape(64, 16, 1, 16), shape(32, 5, 2, 64), shape(32, 1, 3, 8)] {
        let (config, stream) = (config(shape, 4096), device.stream().unwrap());
        let [attention, mut by_one_block] = [0, 1].map(|_| Attention::load(&device, &config).unwrap());
        by_one_block.set_decode_blocks(1);
        let limits = Limits { full_blocks: POOL_BLOCKS, sliding_blocks: POOL_BLOCKS, max_step_tokens: 64 };
        let mut step = StepMeta::new(&device, &config, &limits, BUCKET).unwrap();
        let mut random = Random(4);
        let mut normal = |n: usize| -> Vec<f32> { (0..n).map(|_| random.normal() as f32).collect() };
        let len = POOL_BLOCKS * BLOCK_SIZE * config.kv_dim();
        let [mut keys, mut values] = [0, 1].map(|_| normal(len).into_iter().map(bf16::from_f32).collect::<Vec<_>>());
        let mut qkv = device.alloc(BUCKET * config.qkv_dim()).unwrap();
        stream.upload(&normal(qkv.len()), &mut qkv, 0).unwrap();
        let mut sinks = device.alloc(shape.heads).unwrap();
        stream.upload(&normal(shape.heads), &mut sinks, 0).unwrap();
        let mut blocks: Vec<u32> = (0..POOL_BLOCKS as u32).collect();
        random.shuffle(&mut blocks);
        let mut batch = Batch { tokens: vec![1; STARTS.len()], rows: vec![] };
        for start in STARTS {
            let full = blocks.split_off(blocks.len() - (start / BLOCK_SIZE + 1));
            // Until it is stored, the new token's place has no numbers.
            let slot = full[start / BLOCK_SIZE] as usize * BLOCK_SIZE + start % BLOCK_SIZE;
            for at in shape.elements(slot) {
                (keys[at], values[at]) = (bf16::NAN, bf16::NAN);
            }
            let block_tables = BlockTables { sliding: full.clone(), full };
            batch.rows.push(Row { n_tokens: 1, start, block_tables, n_logits: 0, sampling: None });
        }
        let mut workspace = attention.workspace(&device, BUCKET).unwrap();
        for (kind, bucket) in [(Full, None), (Sliding, None), (Full, Some(BUCKET)), (Sliding, Some(BUCKET))] {
            step.fill(&batch, bucket).unwrap();
            step.send(&stream).unwrap();
            let mut turns = device.alloc(BUCKET * shape.head_dim).unwrap();
            attention.turn(&stream, &step, &mut turns).unwrap();
            let mut run = |by: &Attention, way: Way| {
                let mut pool = KvPool::new(&device, by.shape(), POOL_BLOCKS).unwrap();
                pool.upload(&stream, &keys, &values).unwrap();
                let mut out = device.alloc(by.shape().out_len(BUCKET)).unwrap();
                stream.upload(&vec![UNTOUCHED; out.len()], &mut out, 0).unwrap();
                let (workspace, to) = (&mut workspace, &mut pool);
                match way {
                    Way::Rope => {
                        by.rope_forward(&stream, kind, &step, &qkv, &turns, to, &sinks, workspace, &mut out).unwrap()
                    }
                    Way::Forward => {
                        let mut q = device.alloc(BUCKET * config.q_dim()).unwrap();
                        by.rope_store(&stream, kind, &step, &qkv, &turns, &mut q, to).unwrap();
                        by.forward(&stream, kind, &step, to, &sinks, &q, workspace, &mut out).unwrap();
                    }
                }
                let mut found = vec![bf16::ZERO; out.len()];
                stream.download(&out, 0, &mut found).unwrap();
                let (keys, values) = pool.download(&stream).unwrap();
                [found, keys, values]
            };
            let expect = run(&attention, Way::Forward);
            assert!(expect.iter().flatten().all(|x| !x.is_nan()), "{shape:?}, {kind:?}, bucket {bucket:?}");
            for by in [&attention, &by_one_block] {
                for (what, (found, expect)) in
                    ["out", "keys", "values"].iter().zip(run(by, Way::Rope).iter().zip(&expect))
                {
                    let differ =
                        found.iter().zip(expect).position(|(found, expect)| found.to_bits() != expect.to_bits());
                    assert_eq!(differ, None, "{shape:?}, {kind:?}, bucket {bucket:?}: {what}");
                }
            }
        }
    }
}

#[test]
fn attention_that_turns_is_for_rows_of_one_token() {
    let Some(device) = gpu() else { return };
    let (shape, stream) = (shape(64, 8, 2, 128), device.stream().unwrap());
    let config = config(shape, 512);
    let attention = Attention::load(&device, &config).unwrap();
    let limits = Limits { full_blocks: N_BLOCKS, sliding_blocks: N_BLOCKS, max_step_tokens: 64 };
    let mut step = StepMeta::new(&device, &config, &limits, 8).unwrap();
    let mut pool = KvPool::new(&device, attention.shape(), N_BLOCKS).unwrap();
    let mut workspace = attention.workspace(&device, 8).unwrap();
    let (qkv, turns) = (device.alloc(3 * config.qkv_dim()).unwrap(), device.alloc(3 * shape.head_dim).unwrap());
    let (sinks, mut out) = (device.alloc(shape.heads).unwrap(), device.alloc(attention.shape().out_len(3)).unwrap());
    for (rows, expect) in [(&[(4, 1), (0, 2)][..], Err(AttentionError::LongRows)), (&[(4, 1), (7, 1)], Ok(()))] {
        step.fill(&batch(rows), None).unwrap();
        step.send(&stream).unwrap();
        let found =
            attention.rope_forward(&stream, Full, &step, &qkv, &turns, &mut pool, &sinks, &mut workspace, &mut out);
        assert_eq!(found, expect);
    }
    let short = device.alloc(2 * config.qkv_dim() - 1).unwrap();
    let found =
        attention.rope_forward(&stream, Full, &step, &short, &turns, &mut pool, &sinks, &mut workspace, &mut out);
    let expected = 2 * config.qkv_dim();
    assert_eq!(found, Err(AttentionError::TooShort { what: "qkv", expected, found: expected - 1 }));
    stream.synchronize().unwrap();
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
