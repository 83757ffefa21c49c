//! How fast attention is: `cargo test -p tessera-cuda attention::speed -- --ignored --nocapture`.

use half::bf16;
use tessera_cuda::{Attention, Buffer, Device, KvPool, StepMeta, Stream};
use tessera_model::LayerType::{self, Full, Sliding};
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Limits, Row};

use super::rig::{config, shape};
use crate::gpu::gpu;
use crate::random::Random;

/// Beyond the L2 cache, so that no layer finds its keys there.
const ROTATED_BYTES: usize = 512 << 20;
const MAX_LAYERS: usize = 256;
const REPLAYS: usize = 9;

struct Probe {
    device: Device,
    stream: Stream,
    attention: Attention,
    random: Vec<bf16>,
}

/// Of one layer's launch.
struct Measured {
    us: f64,
    kv_bytes: f64,
    flops: f64,
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let Some(device) = gpu() else { return };
    let probe = Probe::new(device);
    for (n_rows, context) in
        [(1, 1024), (1, 8192), (1, 131_072), (8, 1024), (32, 1024), (64, 1024), (256, 1024), (16, 32_768)]
    {
        for kind in [Full, Sliding] {
            let Measured { us, kv_bytes, .. } = probe.measure(kind, n_rows, context - 1, 1);
            let rate = kv_bytes / us / 1e6;
            println!(
                "decode  {kind:?}: {n_rows} rows of context {context}: {us:.2} us, {rate:.2} TB/s of keys and values"
            );
        }
    }
    for n_tokens in [1024, 8192] {
        for kind in [Full, Sliding] {
            let Measured { us, flops, .. } = probe.measure(kind, 1, 0, n_tokens);
            println!(
                "prefill {kind:?}: {n_tokens} tokens: {us:.1} us, {:.0} TFLOP/s of what is seen",
                flops / us / 1e6
            );
        }
    }
    for n_tokens in [64, 8192] {
        println!("rope_store: {n_tokens} tokens: {:.2} us", probe.measure_rope(n_tokens));
    }
}

impl Probe {
    fn new(device: Device) -> Self {
        let config = config(shape(64, 8, 8, 128), 131_072);
        let attention = Attention::load(&device, &config).unwrap();
        let mut random = Random(5);
        let random = (0..1 << 20).map(|_| bf16::from_f64(random.normal())).collect();
        Self { stream: device.stream().unwrap(), attention, device, random }
    }

    fn fill(&self, buffer: &mut Buffer<bf16>) {
        for at in (0..buffer.len()).step_by(self.random.len()) {
            let n = self.random.len().min(buffer.len() - at);
            self.stream.upload(&self.random[..n], buffer, at).unwrap();
        }
    }

    fn pool(&self, n_blocks: usize) -> KvPool {
        let mut pool = KvPool::new(&self.device, self.attention.shape(), n_blocks).unwrap();
        let len = n_blocks * 8 * BLOCK_SIZE * 64;
        let values: Vec<bf16> = self.random.iter().copied().cycle().take(len).collect();
        pool.upload(&self.stream, &values, &values).unwrap();
        pool
    }

    fn step(&self, n_rows: usize, start: usize, n_tokens: usize) -> StepMeta {
        let per_row = (start + n_tokens).div_ceil(BLOCK_SIZE);
        let n_blocks = n_rows * per_row;
        let limits = Limits { full_blocks: n_blocks, sliding_blocks: n_blocks, max_step_tokens: 8192 };
        let config = config(shape(64, 8, 8, 128), 131_072);
        let mut step = StepMeta::new(&self.device, &config, &limits, n_rows).unwrap();
        let mut blocks: Vec<u32> = (0..n_blocks as u32).collect();
        Random(6).shuffle(&mut blocks);
        let rows = blocks.chunks_exact(per_row).map(|table| Row {
            n_tokens,
            start,
            block_tables: BlockTables { full: table.to_vec(), sliding: table.to_vec() },
            n_logits: 0,
            sampling: None,
        });
        step.fill(&Batch { tokens: vec![1; n_rows * n_tokens], rows: rows.collect() }, None).unwrap();
        step.send(&self.stream).unwrap();
        step
    }

    fn measure(&self, kind: LayerType, n_rows: usize, start: usize, n_tokens: usize) -> Measured {
        let shape = self.attention.shape();
        let step = self.step(n_rows, start, n_tokens);
        let n_blocks = n_rows * (start + n_tokens).div_ceil(BLOCK_SIZE);
        let pool_bytes = KvPool::bytes(shape, n_blocks) as usize;
        let n_layers = ROTATED_BYTES.div_ceil(pool_bytes).clamp(2, MAX_LAYERS);
        let mut pools: Vec<KvPool> = (0..n_layers).map(|_| self.pool(n_blocks)).collect();
        let mut q = self.device.alloc(step.n_tokens() * shape.q_dim()).unwrap();
        self.fill(&mut q);
        let sinks = self.device.alloc(shape.heads).unwrap();
        let mut out = self.device.alloc(shape.out_len(step.n_tokens())).unwrap();
        let mut workspace = self.attention.workspace(&self.device, n_rows).unwrap();
        let qkv = self.device.alloc(step.n_tokens() * shape.qkv_dim()).unwrap();
        let turns = self.device.alloc(step.n_tokens() * shape.head_dim).unwrap();
        // As a step has it: rows of one token are turned and stored by the same kernel.
        let graph = self.stream.capture(|| {
            pools.iter_mut().try_for_each(|pool| {
                let (stream, sinks, workspace, out) = (&self.stream, &sinks, &mut workspace, &mut out);
                match n_tokens {
                    1 => self.attention.rope_forward(stream, kind, &step, &qkv, &turns, pool, sinks, workspace, out),
                    _ => self.attention.forward(stream, kind, &step, pool, sinks, &q, workspace, out),
                }
            })
        });
        let us = self.median_us(&graph.unwrap()) / n_layers as f64;
        let seen = |position: usize| match kind {
            Full => position + 1,
            Sliding => (position + 1).min(shape.sliding_window),
        };
        let n_seen: usize = (start..start + n_tokens).map(seen).sum();
        let kv_bytes = (n_rows * seen(start + n_tokens - 1) * 2 * shape.kv_heads * shape.head_dim * 2) as f64;
        Measured { us, kv_bytes, flops: (n_rows * n_seen * 4 * shape.q_dim()) as f64 }
    }

    fn measure_rope(&self, n_tokens: usize) -> f64 {
        let shape = self.attention.shape();
        let step = self.step(1, 0, n_tokens);
        let mut pool = self.pool(n_tokens.div_ceil(BLOCK_SIZE));
        let qkv = self.device.alloc::<f32>(n_tokens * shape.qkv_dim()).unwrap();
        let mut turns = self.device.alloc::<f32>(n_tokens * shape.head_dim).unwrap();
        let mut q = self.device.alloc(n_tokens * shape.q_dim()).unwrap();
        self.attention.turn(&self.stream, &step, &mut turns).unwrap();
        let graph = self.stream.capture(|| {
            (0..MAX_LAYERS)
                .try_for_each(|_| self.attention.rope_store(&self.stream, Full, &step, &qkv, &turns, &mut q, &mut pool))
        });
        self.median_us(&graph.unwrap()) / MAX_LAYERS as f64
    }

    fn median_us(&self, graph: &tessera_cuda::Graph) -> f64 {
        let (start, end) = (self.device.event().unwrap(), self.device.event().unwrap());
        self.stream.replay(graph).unwrap();
        let mut times: Vec<f64> = (0..REPLAYS)
            .map(|_| {
                self.stream.record(&start).unwrap();
                self.stream.replay(graph).unwrap();
                self.stream.record(&end).unwrap();
                f64::from(end.ms_since(&start).unwrap()) * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[REPLAYS / 2]
    }
}
