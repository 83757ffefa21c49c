//! Attention on the GPU over pools that hold NaN wherever nothing must be read.

use half::bf16;
use tessera_cuda::{Attention, AttentionError, AttentionWorkspace, Buffer, Device, Graph, KvPool, StepMeta, Stream};
use tessera_model::synth::Like;
use tessera_model::{BLOCK_SIZE, Batch, BlockTables, Config, LayerType, Limits, Row};

use super::reference::{Sequence, attend};
use crate::random::Random;

/// What `out` has before: a number that no test expects.
const UNTOUCHED: bf16 = bf16::from_bits(0x5A5A);
/// Of the Frobenius norm. Derived: rounding weights and results to BF16 costs 1e-3 and 1.7e-3 of it.
const MAX_ERROR: f64 = 4e-3;
/// Of an element, times the sum of weight times magnitude. Derived: two roundings to 8 bits, of 1 / 256 at most each, and a
/// little for float32.
const MAX_ELEMENT_ERROR: f64 = 2.2 / 256.0;

#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub window: usize,
}

impl Shape {
    /// Where in a pool the elements of a token's heads lie, in order.
    pub fn elements(self, slot: usize) -> impl Iterator<Item = usize> {
        let Shape { kv_heads, head_dim, .. } = self;
        let (block, r) = (slot / BLOCK_SIZE, slot % BLOCK_SIZE);
        // Rows of 128 bytes are swizzled by 8 rows, rows of 64 by pairs of them.
        let swizzle = if head_dim == 64 { r % 8 } else { (r / 2) % 4 };
        let heads = (0..kv_heads).flat_map(move |head| (0..head_dim).map(move |dim| (head, dim)));
        heads.map(move |(head, dim)| {
            ((block * kv_heads + head) * BLOCK_SIZE + r) * head_dim + ((dim / 8) ^ swizzle) * 8 + dim % 8
        })
    }
}

pub fn shape(head_dim: usize, group: usize, kv_heads: usize, window: usize) -> Shape {
    Shape { heads: group * kv_heads, kv_heads, head_dim, window }
}

pub fn config(shape: Shape, max_positions: usize) -> Config {
    Config {
        vocab_size: 100,
        hidden_size: 32,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: shape.heads,
        num_key_value_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        num_local_experts: 1,
        num_experts_per_tok: 1,
        max_position_embeddings: max_positions,
        sliding_window: shape.window,
        layer_types: vec![LayerType::Sliding],
        ..Like::Gpt20b.config()
    }
}

/// A row of a step: so many tokens of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub sequence: usize,
    pub start: usize,
    pub n_tokens: usize,
}

pub fn span(sequence: usize, start: usize, n_tokens: usize) -> Span {
    Span { sequence, start, n_tokens }
}

pub struct Rig {
    pub device: Device,
    pub stream: Stream,
    pub attention: Attention,
    pub shape: Shape,
    pub sequences: Vec<Sequence>,
    pub sinks: Vec<f32>, // [heads]
    n_blocks: usize,
    step: StepMeta,
    pool: KvPool,
    stored: Stored,
    workspace: AttentionWorkspace,
    random: Random,
}

/// What the pools hold, and which of their elements are those of rows' last tokens.
#[derive(Default)]
struct Stored {
    keys: Vec<bf16>,
    values: Vec<bf16>,
    last: Vec<usize>,
}

/// Which kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// [`Attention::forward`], over pools that have all keys and values.
    Forward,
    /// [`Attention::rope_forward`], which is given each row's last key and value, not turned.
    Rope,
}

/// Everything that a launch takes, on the GPU.
pub struct Loaded {
    q: Buffer<bf16>,
    qkv: Buffer<f32>,
    turns: Buffer<f32>,
    sinks: Buffer<f32>,
    out: Buffer<bf16>,
}

impl Rig {
    /// One sequence for each number of positions; pools of `n_blocks`.
    pub fn new(device: Device, shape: Shape, n_positions: &[usize], n_blocks: usize) -> Self {
        let max_positions = n_positions.iter().copied().max().unwrap();
        let config = config(shape, max_positions);
        let limits = Limits { full_blocks: n_blocks, sliding_blocks: n_blocks, max_step_tokens: 1024 };
        let max_rows = 512;
        let attention = Attention::load(&device, &config).unwrap();
        let mut random = Random(11);
        let sequences = n_positions.iter().zip(1..).map(|(&n, seed)| Sequence::random(shape, n, seed)).collect();
        Self {
            stream: device.stream().unwrap(),
            step: StepMeta::new(&device, &config, &limits, max_rows).unwrap(),
            pool: KvPool::new(&device, attention.shape(), n_blocks).unwrap(),
            stored: Stored::default(),
            workspace: attention.workspace(&device, max_rows).unwrap(),
            sinks: (0..shape.heads).map(|_| random.normal() as f32).collect(),
            attention,
            device,
            shape,
            sequences,
            n_blocks,
            random,
        }
    }

    fn q_dim(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// The rows as a step, `[tokens, q_dim]`; the same either way, if both can.
    pub fn run(&mut self, kind: LayerType, rows: &[Span]) -> Vec<bf16> {
        let mut loaded = self.load(kind, rows, None);
        self.launch(kind, Way::Forward, &mut loaded);
        let found = self.results(rows, &loaded);
        if rows.iter().all(|row| row.n_tokens == 1) {
            self.forget_last();
            self.clear(&mut loaded);
            self.launch(kind, Way::Rope, &mut loaded);
            let other = self.results(rows, &loaded);
            let differs = other.iter().zip(&found).position(|(other, found)| other.to_bits() != found.to_bits());
            assert_eq!(differs, None, "{kind:?}, {rows:?}: {} elements to a token", self.q_dim());
            self.check_stored();
        }
        found
    }

    /// Puts a step's rows on the GPU, and in the pools what they see: everything else there is NaN.
    pub fn load(&mut self, kind: LayerType, rows: &[Span], bucket: Option<usize>) -> Loaded {
        let batch = self.store(kind, rows);
        self.step.fill(&batch, bucket).unwrap();
        self.step.send(&self.stream).unwrap();
        let mut loaded = Loaded {
            q: self.device.alloc(1024 * self.q_dim()).unwrap(),
            qkv: self.device.alloc(1024 * self.attention.shape().qkv_dim()).unwrap(),
            turns: self.device.alloc(1024 * self.shape.head_dim).unwrap(),
            sinks: self.device.alloc(self.shape.heads).unwrap(),
            out: self.device.alloc(self.attention.shape().out_len(1024)).unwrap(),
        };
        self.stream.upload(&self.sinks, &mut loaded.sinks, 0).unwrap();
        self.reload(rows, &mut loaded);
        loaded
    }

    /// The same with other rows in the same buffers.
    pub fn load_again(&mut self, kind: LayerType, rows: &[Span], bucket: usize, loaded: &mut Loaded) {
        let batch = self.store(kind, rows);
        self.step.fill(&batch, Some(bucket)).unwrap();
        self.step.send(&self.stream).unwrap();
        self.reload(rows, loaded);
    }

    fn reload(&mut self, rows: &[Span], loaded: &mut Loaded) {
        let (q_dim, kv_dim) = (self.q_dim(), self.shape.kv_heads * self.shape.head_dim);
        let (mut q, mut qkv) = (vec![bf16::NAN; loaded.q.len()], vec![f32::NAN; loaded.qkv.len()]);
        let tokens = rows.iter().flat_map(|row| (row.start..row.start + row.n_tokens).map(|at| (row.sequence, at)));
        let to = q.chunks_exact_mut(q_dim).zip(qkv.chunks_exact_mut(q_dim + 2 * kv_dim));
        for ((q, qkv), (sequence, position)) in to.zip(tokens) {
            let Sequence { q: from_q, k: from_k, v: from_v } = &self.sequences[sequence];
            let (to_q, to_kv) = qkv.split_at_mut(q_dim);
            let (to_k, to_v) = to_kv.split_at_mut(kv_dim);
            for (to, from) in [(&mut *to_q, from_q), (to_k, from_k), (to_v, from_v)] {
                to.copy_from_slice(&from[position * to.len()..][..to.len()]);
            }
            q.iter_mut().zip(to_q).for_each(|(to, from)| *to = bf16::from_f32(*from));
        }
        self.stream.upload(&q, &mut loaded.q, 0).unwrap();
        self.stream.upload(&qkv, &mut loaded.qkv, 0).unwrap();
        // Angles of 0: nothing turns.
        let turns = [1.0, 0.0].repeat(loaded.turns.len() / 2);
        self.stream.upload(&turns, &mut loaded.turns, 0).unwrap();
        self.clear(loaded);
    }

    /// Nothing has been written to `out`.
    fn clear(&mut self, loaded: &mut Loaded) {
        self.stream.upload(&vec![UNTOUCHED; loaded.out.len()], &mut loaded.out, 0).unwrap();
    }

    pub fn launch(&mut self, kind: LayerType, way: Way, loaded: &mut Loaded) {
        let Self { attention, stream, step, pool, workspace, .. } = self;
        queue(attention, stream, kind, way, step, pool, workspace, loaded).unwrap();
    }

    /// What [`Rig::launch`] queues, as a graph.
    pub fn record(&mut self, kind: LayerType, way: Way, loaded: &mut Loaded) -> Graph {
        let Self { attention, stream, step, pool, workspace, .. } = self;
        stream.capture(|| queue(attention, stream, kind, way, step, pool, workspace, loaded)).unwrap()
    }

    /// Rows' last keys and values are NaN in the pools again.
    pub fn forget_last(&mut self) {
        let Stored { keys, values, last } = &self.stored;
        let (mut keys, mut values) = (keys.clone(), values.clone());
        for &at in last {
            (keys[at], values[at]) = (bf16::NAN, bf16::NAN);
        }
        self.pool.upload(&self.stream, &keys, &values).unwrap();
    }

    /// The pools hold all keys and values, and nothing else was written.
    pub fn check_stored(&self) {
        let (keys, values) = self.pool.download(&self.stream).unwrap();
        for (found, expect) in [(keys, &self.stored.keys), (values, &self.stored.values)] {
            let differs = |(found, expect): (&bf16, &bf16)| found.to_bits() != expect.to_bits();
            assert_eq!(found.iter().zip(expect).position(differs), None, "element of the pool");
        }
    }

    /// `[tokens, q_dim]`; and nothing else was written.
    pub fn results(&self, rows: &[Span], loaded: &Loaded) -> Vec<bf16> {
        let (width, n_tokens) = (self.q_dim(), rows.iter().map(|row| row.n_tokens).sum::<usize>());
        let (n_groups, n_panels) = (self.step.n_tokens().div_ceil(8), width.div_ceil(64));
        let mut out = vec![bf16::ZERO; loaded.out.len()];
        self.stream.download(&loaded.out, 0, &mut out).unwrap();
        let mut found = Vec::new();
        for (token, column) in (0..n_tokens).flat_map(|token| (0..n_panels * 64).map(move |column| (token, column))) {
            let (group, r, panel, piece) = (token / 8, token % 8, column / 64, column % 64 / 8);
            let at = (panel * n_groups + group) * 512 + r * 64 + (piece ^ r) * 8 + column % 8;
            let value = std::mem::replace(&mut out[at], UNTOUCHED);
            match column < width {
                true => found.push(value),
                false => assert_eq!(value.to_bits(), 0, "token {token}: column {column} fills a panel"),
            }
        }
        assert!(out.iter().all(|value| value.to_bits() == UNTOUCHED.to_bits()), "written elsewhere in out");
        found
    }

    /// The step's batch; each row has shuffled blocks of its own.
    fn store(&mut self, kind: LayerType, rows: &[Span]) -> Batch {
        let mut blocks: Vec<u32> = (0..self.n_blocks as u32).collect();
        self.random.shuffle(&mut blocks);
        let mut blocks = blocks.into_iter();
        let len = self.n_blocks * self.shape.kv_heads * BLOCK_SIZE * self.shape.head_dim;
        let (mut keys, mut values) = (vec![bf16::NAN; len], vec![bf16::NAN; len]);
        let (mut batch, mut last) = (Batch::default(), Vec::new());
        for row in rows {
            let end = row.start + row.n_tokens;
            let first = match kind {
                LayerType::Full => 0,
                LayerType::Sliding => (row.start + 1).saturating_sub(self.shape.window),
            };
            // Blocks that no token sees are nobody's.
            let entry =
                |b: usize| if b < first / BLOCK_SIZE { u32::MAX } else { blocks.next().expect("enough blocks") };
            let table: Vec<u32> = (0..end.div_ceil(BLOCK_SIZE)).map(entry).collect();
            for position in first..end {
                let slot = table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE;
                let of = &self.sequences[row.sequence];
                for (i, at) in self.shape.elements(slot).enumerate() {
                    let from = position * self.shape.kv_heads * self.shape.head_dim + i;
                    (keys[at], values[at]) = (bf16::from_f32(of.k[from]), bf16::from_f32(of.v[from]));
                    if position + 1 == end {
                        last.push(at);
                    }
                }
            }
            // The other kind's table is not looked at.
            let other = vec![0; table.len()];
            let block_tables = match kind {
                LayerType::Full => BlockTables { full: table, sliding: other },
                LayerType::Sliding => BlockTables { full: other, sliding: table },
            };
            let (n_tokens, start) = (row.n_tokens, row.start);
            batch.tokens.extend(vec![1; n_tokens]);
            batch.rows.push(Row { n_tokens, start, block_tables, n_logits: 0, sampling: None });
        }
        self.pool.upload(&self.stream, &keys, &values).unwrap();
        self.stored = Stored { keys, values, last };
        batch
    }

    /// Of the rows' tokens, every `every`-th and the last, against float64; of the heads, the first and the last of each
    /// group.
    #[track_caller]
    pub fn check(&mut self, kind: LayerType, rows: &[Span], every: usize) {
        let found = self.run(kind, rows);
        let (dim, group) = (self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        let window = (kind == LayerType::Sliding).then_some(self.shape.window);
        let (mut difference, mut norm) = (0.0, 0.0);
        let mut token = 0;
        for row in rows {
            for i in (0..row.n_tokens).filter(|i| i % every == 0 || i + 1 == row.n_tokens) {
                let position = row.start + i;
                for head in (0..self.shape.heads).filter(|head| [0, group - 1].contains(&(head % group))) {
                    let of = &self.sequences[row.sequence];
                    let expect = attend(self.shape, of, position, head, window, self.sinks[head]);
                    let found = &found[(token + i) * self.q_dim() + head * dim..][..dim];
                    for (d, found) in found.iter().map(|found| found.to_f64()).enumerate() {
                        let (error, limit) = (found - expect.out[d], MAX_ELEMENT_ERROR * expect.magnitude[d]);
                        let what = format!("{:?}, {kind:?}, {row:?}: token {i}, head {head}, dim {d}", self.shape);
                        assert!(error.abs() <= limit, "{what}: {found}, expected {}", expect.out[d]);
                        difference += error * error;
                        norm += expect.out[d] * expect.out[d];
                    }
                }
            }
            token += row.n_tokens;
        }
        let error = f64::sqrt(difference / norm);
        assert!(error <= MAX_ERROR, "{:?}, {kind:?}, {rows:?}: off by {error:.2e}", self.shape);
    }
}

fn queue(
    attention: &Attention,
    stream: &Stream,
    kind: LayerType,
    way: Way,
    step: &StepMeta,
    pool: &mut KvPool,
    workspace: &mut AttentionWorkspace,
    loaded: &mut Loaded,
) -> Result<(), AttentionError> {
    let Loaded { q, qkv, turns, sinks, out } = loaded;
    match way {
        Way::Forward => attention.forward(stream, kind, step, pool, sinks, q, workspace, out),
        Way::Rope => attention.rope_forward(stream, kind, step, qkv, turns, pool, sinks, workspace, out),
    }
}
