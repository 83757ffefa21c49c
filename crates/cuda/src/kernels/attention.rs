use bytemuck::{Pod, Zeroable};

use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Start, Stream};

/// Positions whose keys are summed in one piece of work, as in `attention.cuh`; so are those that follow.
pub(crate) const SPLIT: usize = 256;
/// Splits of a span.
pub(crate) const SPAN_SPLITS: usize = 8;
/// Elements of a head.
pub(crate) const HEAD_DIMS: [usize; 2] = [32, 64];
/// Heads of a key-value head: a warp's rows.
pub(crate) const MAX_GROUP: usize = 16;
/// Positions of a tile of keys.
const TILE: usize = 64;
/// Query rows, a token's head each, of a tile of prefill: 64 for each warpgroup that multiplies.
pub(crate) const QUERY_ROWS: usize = 128;

/// As in `attention_decode.cu`.
const DECODE_WARPS: usize = 4;
const DECODE_STAGES: usize = 3;
const DECODE_BLOCKS_PER_SM: usize = 2;
/// As in `attention_prefill.cu`: the warpgroups that multiply, and one that copies.
const PREFILL_CONSUMERS: usize = 256;
const PREFILL_THREADS: u32 = 384;
const PREFILL_STAGES: usize = 4;
/// As in `rope.cu`.
const ROPE_THREADS: usize = 256;
/// Frequencies of the largest head: half its width.
pub(crate) const MAX_HALF: usize = 32;
/// What a thread of `rope_store` has of a head.
const ROPE_ELEMENTS: usize = 16;

/// `AttentionArgs` of `attention.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AttentionArgs {
    pub step: Address,         // StepHeader, and what it tells of
    pub q: Address,            // [tokens, heads, head_dim] bf16; `decode_rope` reads the next two instead
    pub qkv: Address,          // [tokens, (heads + 2 kv_heads) * head_dim]
    pub turns: Address,        // [tokens, head_dim / 2, 2]
    pub keys: Address,         // [blocks, kv_heads, 16, head_dim] bf16
    pub values: Address,       // the same
    pub sinks: Address,        // [heads]
    pub out: Address,          // panels of [tokens, heads * head_dim] bf16
    pub partial_sums: Address, // [partials, heads, 2]
    pub partial_outs: Address, // [partials, heads, head_dim]
    pub arrivals: Address,     // [merges, kv_heads, 2]
    pub token_groups: u32,
    pub kv_heads: u32,
    pub group: u32,
    pub window: u32,
    pub scale: f32,
    pub padding: u32,
}

/// `TurnArgs` of `rope.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TurnArgs {
    pub positions: Address, // [tokens]
    pub turns: Address,     // [tokens, head_dim / 2, 2]
    pub tokens: u32,
    pub half: u32,
    pub concentration: f32,
    pub padding: u32,
    pub inv_freq: [f32; MAX_HALF],
}

/// `RopeStoreArgs` of `rope.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RopeStoreArgs {
    pub qkv: Address,    // [tokens, (heads + 2 kv_heads) * head_dim]
    pub turns: Address,  // [tokens, head_dim / 2, 2]
    pub slots: Address,  // [tokens]
    pub q: Address,      // [tokens, heads * head_dim] bf16
    pub keys: Address,   // [blocks, kv_heads, 16, head_dim] bf16
    pub values: Address, // the same
    pub tokens: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
}

/// Who multiplies in prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Products {
    /// wgmma, where heads are wide enough for it.
    Group,
    /// mma.sync
    Warp,
}

pub(crate) struct AttentionKernels {
    decode: Kernel<AttentionArgs>,
    decode_rope: Kernel<AttentionArgs>,
    decode_launch: Launch, // of either
    prefill: Kernel<AttentionArgs>,
    prefill_launch: Launch,
    turn: Kernel<TurnArgs>,
    rope_store: Kernel<RopeStoreArgs>,
}

impl AttentionKernels {
    /// For heads of 32 or 64 elements.
    pub fn load(device: &Device, head_dim: usize, products: Products) -> Result<Self, DeviceError> {
        let (decode, decode_rope) = match head_dim {
            64 => ("attention_decode_64", "attention_decode_rope_64"),
            _ => ("attention_decode_32", "attention_decode_rope_32"),
        };
        let prefill = match (head_dim, products) {
            (64, Products::Group) => "attention_prefill_64",
            (64, Products::Warp) => "attention_prefill_64_warp",
            _ => "attention_prefill_32",
        };
        let load = |name| device.kernel("attention_decode", name);
        let (decode, decode_rope) = (load(decode)?, load(decode_rope)?);
        Ok(Self {
            decode_launch: decode_launch(device, [&decode, &decode_rope], head_dim)?,
            decode,
            decode_rope,
            prefill: device.kernel("attention_prefill", prefill)?,
            prefill_launch: Launch {
                smem_bytes: prefill_smem_bytes(head_dim) as u32,
                start: Start::Early,
                ..Launch::new(1, PREFILL_THREADS)
            },
            turn: device.kernel("rope", "turn")?,
            rope_store: device.kernel("rope", "rope_store")?,
        })
    }

    /// From now on so many blocks share the rows of one token, instead of all that run at once; no more than those. No bit
    /// of the result depends on it.
    pub fn set_decode_blocks(&mut self, n_blocks: u32) {
        self.decode_launch.grid[0] = n_blocks.clamp(1, self.decode_launch.grid[0]);
    }

    /// The step's rows of one token.
    pub fn decode(&self, stream: &Stream, args: &AttentionArgs) -> Result<(), DeviceError> {
        stream.launch(&self.decode, self.decode_launch, args)
    }

    /// The same, and what `rope_store` does for them.
    pub fn decode_rope(&self, stream: &Stream, args: &AttentionArgs) -> Result<(), DeviceError> {
        stream.launch(&self.decode_rope, self.decode_launch, args)
    }

    /// The step's `n_tiles` tiles, of which there is one at least.
    pub fn prefill(&self, stream: &Stream, n_tiles: u32, args: &AttentionArgs) -> Result<(), DeviceError> {
        stream.launch(&self.prefill, Launch { grid: [n_tiles * args.kv_heads, 1, 1], ..self.prefill_launch }, args)
    }

    pub fn turn(&self, stream: &Stream, args: &TurnArgs) -> Result<(), DeviceError> {
        stream.launch(&self.turn, early((args.tokens * args.half) as usize), args)
    }

    pub fn rope_store(&self, stream: &Stream, args: &RopeStoreArgs) -> Result<(), DeviceError> {
        let heads = (args.heads + 2 * args.kv_heads) as usize;
        let n_threads = args.tokens as usize * heads * (args.head_dim as usize / ROPE_ELEMENTS);
        stream.launch(&self.rope_store, early(n_threads), args)
    }
}

fn early(n_threads: usize) -> Launch {
    let n_blocks = n_threads.div_ceil(ROPE_THREADS) as u32;
    Launch { start: Start::Early, ..Launch::new(n_blocks, ROPE_THREADS as u32) }
}

/// All blocks must run at once: some wait for others.
fn decode_launch(
    device: &Device,
    kernels: [&Kernel<AttentionArgs>; 2],
    head_dim: usize,
) -> Result<Launch, DeviceError> {
    let (n_threads, smem_bytes) = (DECODE_WARPS as u32 * 32, decode_smem_bytes(head_dim) as u32);
    let mut per_sm = DECODE_BLOCKS_PER_SM;
    for kernel in kernels {
        per_sm = per_sm.min(kernel.blocks_per_sm(n_threads, smem_bytes)?);
    }
    let n_blocks = per_sm * device.properties().n_sms;
    Ok(Launch { smem_bytes, start: Start::Early, ..Launch::new(n_blocks as u32, n_threads) })
}

/// `Shared` of `attention_decode.cu`.
fn decode_smem_bytes(head_dim: usize) -> usize {
    let ring = DECODE_WARPS * DECODE_STAGES * TILE * head_dim * 2;
    (ring + DECODE_WARPS * DECODE_STAGES * 8).next_multiple_of(1024)
}

/// `Shared` of `attention_prefill.cu`.
fn prefill_smem_bytes(head_dim: usize) -> usize {
    let ring = 2 * PREFILL_STAGES * TILE * head_dim * 2;
    let totals = (head_dim / 2 + 4) * PREFILL_CONSUMERS * 4;
    (ring + totals + 4 * PREFILL_STAGES * 8).next_multiple_of(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `constexpr uint32_t kName = number, kOther = number;`
    fn constant(source: &str, name: &str) -> usize {
        let (_, rest) = source.split_once(&format!(" {name} = ")).expect(name);
        rest.split([',', ';']).next().unwrap().parse().expect(name)
    }

    #[test]
    fn numbers_are_those_of_the_kernels() {
        let all = include_str!("../../kernels/attention.cuh");
        assert_eq!(constant(all, "kTileKeys"), TILE);
        assert_eq!(TILE * constant(all, "kSplitTiles"), SPLIT);
        assert_eq!(constant(all, "kSpanSplits"), SPAN_SPLITS);
        let decode = include_str!("../../kernels/attention_decode.cu");
        assert_eq!(constant(decode, "kWarps"), DECODE_WARPS);
        assert_eq!(constant(decode, "kStages"), DECODE_STAGES);
        assert_eq!(constant(decode, "kBlocksPerSm"), DECODE_BLOCKS_PER_SM);
        let prefill = include_str!("../../kernels/attention_prefill.cu");
        let (groups, group_threads) = (constant(prefill, "kGroups"), constant(prefill, "kGroupThreads"));
        assert_eq!((groups * 64, groups * group_threads), (QUERY_ROWS, PREFILL_CONSUMERS));
        assert_eq!((groups + 1) * group_threads, PREFILL_THREADS as usize);
        assert_eq!(constant(prefill, "kStages"), PREFILL_STAGES);
        let rope = include_str!("../../kernels/rope.cu");
        assert_eq!((constant(rope, "kMaxHalf"), constant(rope, "kThreads")), (MAX_HALF, ROPE_THREADS));
    }

    #[test]
    fn blocks_fit() {
        const SM_BYTES: usize = 228 << 10;
        for head_dim in [32, 64] {
            // A block takes 1 KiB more than it asks for.
            assert!(DECODE_BLOCKS_PER_SM * (decode_smem_bytes(head_dim) + 1024) <= SM_BYTES);
            assert!(prefill_smem_bytes(head_dim) + 1024 <= SM_BYTES);
        }
    }
}
