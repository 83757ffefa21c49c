use bytemuck::{Pod, Zeroable};

use super::early;
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Stream};
use crate::moe::grouped::{GROUP_ROWS, grouped_rows};

/// As in `moe_route.cu`.
const N_THREADS: u32 = 256;
/// Of the fused kernel and of the one that groups.
const N_WIDE_THREADS: u32 = 1024;
const MAX_FUSED_SLOTS: u32 = 512;
/// Columns of `moe_combine`'s block.
const COMBINE_COLUMNS: u32 = 1024;
const WARP: u32 = 32;
/// Every expert's block chooses for all tokens: beyond this, sharing the work is faster.
const MAX_FUSED_TOKENS: u32 = 16;

/// `MoeRouteArgs` of `moe_route.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RouteArgs {
    pub logits: Address,      // [tokens, experts]
    pub x: Address,           // [tokens, hidden] bfloat16
    pub ids: Address,         // [tokens, top_k]
    pub weights: Address,     // [tokens, top_k]
    pub counts: Address,      // [experts]
    pub strips_done: Address, // [experts + 1]
    pub slots: Address,       // [experts, tokens * top_k]
    pub positions: Address,   // [tokens, top_k]
    pub grouped: Address,     // grouped rows of x
    pub tokens: u32,
    pub experts: u32,
    pub top_k: u32,
    pub hidden: u32,
}

/// `MoeCombineArgs` of `moe_route.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CombineArgs {
    pub y: Address,         // [grouped rows, hidden] float32
    pub positions: Address, // [tokens, top_k]
    pub weights: Address,   // [tokens, top_k]
    pub out: Address,       // [tokens, hidden] bfloat16
    pub hidden: u32,
    pub top_k: u32,
}

pub(crate) struct RouteKernels {
    fused: Kernel<RouteArgs>,
    top_k: Kernel<RouteArgs>,
    group: Kernel<RouteArgs>,
    gather: Kernel<RouteArgs>,
    combine: Kernel<CombineArgs>,
}

impl RouteKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let load = |name| device.kernel("moe_route", name);
        Ok(Self {
            fused: load("moe_route_fused")?,
            top_k: load("moe_top_k")?,
            group: load("moe_group")?,
            gather: load("moe_gather")?,
            combine: device.kernel("moe_route", "moe_combine")?,
        })
    }

    /// Chooses experts by the logits, and groups the rows by expert.
    pub fn route(&self, stream: &Stream, args: &RouteArgs) -> Result<(), DeviceError> {
        if args.tokens <= MAX_FUSED_TOKENS && args.tokens * args.top_k <= MAX_FUSED_SLOTS {
            return stream.launch(&self.fused, early(args.experts, N_WIDE_THREADS), args);
        }
        stream.launch(&self.top_k, early(args.tokens.div_ceil(N_THREADS / WARP), N_THREADS), args)?;
        self.group(stream, args)
    }

    /// Groups the rows by the ids that are there.
    pub fn group(&self, stream: &Stream, args: &RouteArgs) -> Result<(), DeviceError> {
        stream.launch(&self.group, early(args.experts, N_WIDE_THREADS), args)?;
        let n_rows = grouped_rows((args.tokens * args.top_k) as usize, args.experts as usize);
        stream.launch(&self.gather, early((n_rows / GROUP_ROWS) as u32, N_THREADS), args)
    }

    /// The weighted sums of `n_tokens` tokens.
    pub fn combine(&self, stream: &Stream, n_tokens: u32, args: &CombineArgs) -> Result<(), DeviceError> {
        let grid = [n_tokens, args.hidden.div_ceil(COMBINE_COLUMNS), 1];
        stream.launch(&self.combine, Launch { grid, ..early(1, N_THREADS) }, args)
    }
}
