//! Attention on the GPU: rotary embedding, the paged cache of keys and values, and softmax with sinks over it.
//!
//! `out = softmax([q k / sqrt(head_dim), sink]) [v, 0]`, where a sliding layer's query sees the last `sliding_window` keys.
//! A token's result has the same bits whatever else is in the step, and however its prompt was cut into steps: every sum has
//! an order that depends on positions alone (`attention.cuh`). Values that are not numbers are the exception: they
//! reach all tokens of their row that the step has.

use std::f32::consts::LOG2_E;

use bytemuck::Zeroable;
use half::bf16;
use tessera_model::rope::YarnTable;
use tessera_model::{BLOCK_SIZE, Config, LayerType};

use crate::device::{Buffer, Device};
use crate::error::DeviceError;
use crate::kernels::attention::{
    AttentionArgs, AttentionKernels, HEAD_DIMS, MAX_GROUP, MAX_HALF, Products, RopeStoreArgs, TurnArgs,
};
use crate::launch::Stream;
use crate::moe::grouped::{GROUP_ROWS, PIECE, panels_len};
use crate::step::{StepMeta, max_partials};

/// Why attention cannot be loaded or run.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AttentionError {
    #[error("attention's {what} is {found}: expected {expected}")]
    Size { what: &'static str, expected: &'static str, found: usize },
    #[error("the buffer of {what} is too short: expected {expected} elements at least, found {found}")]
    TooShort { what: &'static str, expected: usize, found: usize },
    #[error("the step has rows of several tokens: expected rows of one")]
    LongRows,
    #[error("the pool of keys and values is for {found:?}, expected {expected:?}")]
    Pool { expected: AttentionShape, found: AttentionShape },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The sizes of a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Keys that a sliding layer's query sees, itself included.
    pub sliding_window: usize,
}

impl AttentionShape {
    /// The shape, if the kernels can work on it.
    pub fn of(config: &Config) -> Result<Self, AttentionError> {
        let shape = Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            sliding_window: config.sliding_window,
        };
        if !HEAD_DIMS.contains(&shape.head_dim) {
            return Err(AttentionError::Size { what: "head_dim", expected: "32 or 64", found: shape.head_dim });
        }
        if shape.group() > MAX_GROUP {
            let what = "num_attention_heads / num_key_value_heads";
            return Err(AttentionError::Size { what, expected: "at most 16", found: shape.group() });
        }
        Ok(shape)
    }

    /// Query heads that share a key-value head.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    pub fn q_dim(self) -> usize {
        self.heads * self.head_dim
    }

    pub fn qkv_dim(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Elements of a step's result in panels: rows in groups of 8, columns in panels of 64.
    pub fn out_len(self, n_tokens: usize) -> usize {
        panels_len(n_tokens, self.q_dim())
    }
}

/// A layer's keys and values, in blocks of 16 positions.
pub struct KvPool {
    shape: AttentionShape,
    pub(crate) keys: Buffer<bf16>, // [blocks, kv_heads, 16, head_dim], pieces of 16 bytes permuted; see `element`
    pub(crate) values: Buffer<bf16>, // the same
}

impl KvPool {
    pub fn new(device: &Device, shape: AttentionShape, n_blocks: usize) -> Result<Self, DeviceError> {
        let len = Self::len(shape, n_blocks);
        Ok(Self { shape, keys: device.alloc(len)?, values: device.alloc(len)? })
    }

    /// What a pool of so many blocks takes, keys and values together.
    pub fn bytes(shape: AttentionShape, n_blocks: usize) -> u64 {
        2 * (Self::len(shape, n_blocks) * size_of::<bf16>()) as u64
    }

    fn len(shape: AttentionShape, n_blocks: usize) -> usize {
        n_blocks * shape.kv_heads * BLOCK_SIZE * shape.head_dim
    }

    /// Where element `dim` of a key (or value) head lies, for a slot `block * 16 + position % 16`.
    ///
    /// A row's 16-byte pieces are permuted, so that what a matrix instruction reads at once lies in different banks.
    pub fn element(&self, slot: usize, kv_head: usize, dim: usize) -> usize {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let (block, row) = (slot / BLOCK_SIZE, slot % BLOCK_SIZE);
        let swizzle = if head_dim == 64 { row % 8 } else { row / 2 % 4 };
        let start = ((block * kv_heads + kv_head) * BLOCK_SIZE + row) * head_dim;
        start + ((dim / PIECE) ^ swizzle) * PIECE + dim % PIECE
    }

    /// Puts these in the place of all keys and values, and waits. As long as the pool, in the order of [`KvPool::element`].
    pub fn upload(&mut self, stream: &Stream, keys: &[bf16], values: &[bf16]) -> Result<(), DeviceError> {
        stream.upload(keys, &mut self.keys, 0)?;
        stream.upload(values, &mut self.values, 0)
    }

    /// All keys and values, in the order of [`KvPool::element`]; waits.
    pub fn download(&self, stream: &Stream) -> Result<(Vec<bf16>, Vec<bf16>), DeviceError> {
        let mut both = (vec![bf16::ZERO; self.keys.len()], vec![bf16::ZERO; self.values.len()]);
        stream.download(&self.keys, 0, &mut both.0)?;
        stream.download(&self.values, 0, &mut both.1)?;
        Ok(both)
    }
}

/// What rows of one token that are split leave for their merge.
pub struct AttentionWorkspace {
    partial_sums: Buffer<f32>, // [partials, heads, 2]
    partial_outs: Buffer<f32>, // [partials, heads, head_dim]
    arrivals: Buffer<u32>,     // [merges, kv_heads, 2], 0 between kernels
}

impl AttentionWorkspace {
    /// The lengths of its buffers, for steps of at most so many rows.
    fn lens(shape: AttentionShape, max_rows: usize) -> [usize; 3] {
        let n_partials = max_partials(shape.kv_heads);
        // A row that is merged has two partial results at least.
        let n_merges = max_rows.min(n_partials / 2).max(1);
        [n_partials * shape.heads * 2, n_partials * shape.q_dim(), n_merges * shape.kv_heads * 2]
    }

    pub(crate) fn bytes(shape: AttentionShape, max_rows: usize) -> u64 {
        let words: usize = Self::lens(shape, max_rows).iter().sum();
        4 * words as u64
    }
}

/// The kernels of attention of one shape. All queue work and do not wait.
pub struct Attention {
    shape: AttentionShape,
    rope: YarnTable,
    kernels: AttentionKernels,
}

impl Attention {
    pub fn load(device: &Device, config: &Config) -> Result<Self, AttentionError> {
        Self::load_with(device, config, Products::Group)
    }

    /// With mma.sync in the place of wgmma, whose sums have the same bits: to compare.
    pub fn load_warp_products(device: &Device, config: &Config) -> Result<Self, AttentionError> {
        Self::load_with(device, config, Products::Warp)
    }

    fn load_with(device: &Device, config: &Config, products: Products) -> Result<Self, AttentionError> {
        let shape = AttentionShape::of(config)?;
        let kernels = AttentionKernels::load(device, shape.head_dim, products)?;
        Ok(Self { shape, rope: YarnTable::new(&config.rope, shape.head_dim), kernels })
    }

    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// From now on so many blocks share the rows of one token, if the GPU has room for as many. No bit depends on it.
    pub fn set_decode_blocks(&mut self, n_blocks: u32) {
        self.kernels.set_decode_blocks(n_blocks);
    }

    /// For steps of at most so many rows. One serves all layers, one after the other.
    pub fn workspace(&self, device: &Device, max_rows: usize) -> Result<AttentionWorkspace, DeviceError> {
        let [sums, outs, arrivals] = AttentionWorkspace::lens(self.shape, max_rows);
        Ok(AttentionWorkspace {
            partial_sums: device.alloc(sums)?,
            partial_outs: device.alloc(outs)?,
            arrivals: device.alloc(arrivals)?,
        })
    }

    /// Once per step: cosine and sine of every token's angles, times the concentration, `[tokens, head_dim / 2, 2]`.
    pub fn turn(&self, stream: &Stream, step: &StepMeta, turns: &mut Buffer<f32>) -> Result<(), AttentionError> {
        let (n_tokens, half) = (step.n_tokens(), self.shape.head_dim / 2);
        long_enough("turns", turns, n_tokens * half * 2)?;
        if n_tokens == 0 {
            return Ok(());
        }
        let mut inv_freq = [0.0; MAX_HALF];
        inv_freq[..half].copy_from_slice(&self.rope.inv_freq);
        let args = TurnArgs {
            positions: step.positions(),
            turns: turns.address(),
            tokens: n_tokens as u32,
            half: half as u32,
            concentration: self.rope.concentration,
            padding: 0,
            inv_freq,
        };
        Ok(self.kernels.turn(stream, &args)?)
    }

    /// `qkv` `[tokens, qkv_dim]`: queries, turned, to `q` `[tokens, q_dim]`; keys, turned, and values to their slots, padding's
    /// nowhere.
    pub fn rope_store(
        &self,
        stream: &Stream,
        kind: LayerType,
        step: &StepMeta,
        qkv: &Buffer<f32>,
        turns: &Buffer<f32>,
        q: &mut Buffer<bf16>,
        pool: &mut KvPool,
    ) -> Result<(), AttentionError> {
        let (n_tokens, shape) = (step.n_tokens(), self.shape);
        self.matches(pool)?;
        long_enough("qkv", qkv, n_tokens * shape.qkv_dim())?;
        long_enough("turns", turns, n_tokens * shape.head_dim)?;
        long_enough("q", q, n_tokens * shape.q_dim())?;
        if n_tokens == 0 {
            return Ok(());
        }
        let args = RopeStoreArgs {
            qkv: qkv.address(),
            turns: turns.address(),
            slots: step.slots(kind),
            q: q.address(),
            keys: pool.keys.address(),
            values: pool.values.address(),
            tokens: n_tokens as u32,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
        };
        Ok(self.kernels.rope_store(stream, &args)?)
    }

    /// `q` `[tokens, q_dim]` and `sinks` `[heads]` to `out`, panels of `[tokens, q_dim]`: the operand of a dense product. The
    /// rows of tokens that are padding stay as they are.
    pub fn forward(
        &self,
        stream: &Stream,
        kind: LayerType,
        step: &StepMeta,
        pool: &KvPool,
        sinks: &Buffer<f32>,
        q: &Buffer<bf16>,
        workspace: &mut AttentionWorkspace,
        out: &mut Buffer<bf16>,
    ) -> Result<(), AttentionError> {
        long_enough("q", q, step.n_tokens() * self.shape.q_dim())?;
        let Some(args) = self.args(kind, step, pool, sinks, workspace, out)? else { return Ok(()) };
        let args = AttentionArgs { q: q.address(), ..args };
        if step.has_decode() || !step.has_prefill() {
            self.kernels.decode(stream, &args)?;
        }
        if step.has_prefill() {
            self.kernels.prefill(stream, step.header().n_tiles, &args)?;
        }
        Ok(())
    }

    /// [`Attention::rope_store`] and [`Attention::forward`] in one kernel, for a step whose rows have one token each. It
    /// launches the same whatever the rows: it may be recorded.
    pub fn rope_forward(
        &self,
        stream: &Stream,
        kind: LayerType,
        step: &StepMeta,
        qkv: &Buffer<f32>,
        turns: &Buffer<f32>,
        pool: &mut KvPool,
        sinks: &Buffer<f32>,
        workspace: &mut AttentionWorkspace,
        out: &mut Buffer<bf16>,
    ) -> Result<(), AttentionError> {
        let (n_tokens, shape) = (step.n_tokens(), self.shape);
        if step.has_prefill() {
            return Err(AttentionError::LongRows);
        }
        long_enough("qkv", qkv, n_tokens * shape.qkv_dim())?;
        long_enough("turns", turns, n_tokens * shape.head_dim)?;
        let Some(args) = self.args(kind, step, pool, sinks, workspace, out)? else { return Ok(()) };
        let args = AttentionArgs { qkv: qkv.address(), turns: turns.address(), ..args };
        Ok(self.kernels.decode_rope(stream, &args)?)
    }

    /// What the kernels have in common; none without tokens.
    fn args(
        &self,
        kind: LayerType,
        step: &StepMeta,
        pool: &KvPool,
        sinks: &Buffer<f32>,
        workspace: &mut AttentionWorkspace,
        out: &mut Buffer<bf16>,
    ) -> Result<Option<AttentionArgs>, AttentionError> {
        let (n_tokens, shape) = (step.n_tokens(), self.shape);
        self.matches(pool)?;
        long_enough("sinks", sinks, shape.heads)?;
        long_enough("out", out, shape.out_len(n_tokens))?;
        long_enough("arrivals", &workspace.arrivals, step.header().n_merges as usize * shape.kv_heads * 2)?;
        let args = AttentionArgs {
            step: step.base(),
            keys: pool.keys.address(),
            values: pool.values.address(),
            sinks: sinks.address(),
            out: out.address(),
            partial_sums: workspace.partial_sums.address(),
            partial_outs: workspace.partial_outs.address(),
            arrivals: workspace.arrivals.address(),
            token_groups: n_tokens.div_ceil(GROUP_ROWS) as u32,
            kv_heads: shape.kv_heads as u32,
            group: shape.group() as u32,
            window: match kind {
                LayerType::Full => 0,
                LayerType::Sliding => shape.sliding_window as u32,
            },
            scale: LOG2_E / (shape.head_dim as f32).sqrt(),
            ..AttentionArgs::zeroed()
        };
        Ok((n_tokens > 0).then_some(args))
    }

    fn matches(&self, pool: &KvPool) -> Result<(), AttentionError> {
        match pool.shape == self.shape {
            true => Ok(()),
            false => Err(AttentionError::Pool { expected: self.shape, found: pool.shape }),
        }
    }
}

fn long_enough<T: bytemuck::Pod>(
    what: &'static str,
    buffer: &Buffer<T>,
    expected: usize,
) -> Result<(), AttentionError> {
    match buffer.len() >= expected {
        true => Ok(()),
        false => Err(AttentionError::TooShort { what, expected, found: buffer.len() }),
    }
}
