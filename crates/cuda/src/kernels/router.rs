use bytemuck::{Pod, Zeroable};

use super::early;
use super::norm::N_THREADS;
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Stream};

/// As in `router.cu`.
const GROUP_TOKENS: u32 = 8;
pub(crate) const STRIP_EXPERTS: u32 = 16;
const PANEL_BYTES: u32 = 1024;
const PANEL_COLUMNS: u32 = 64;

/// `RouterArgs` of `router.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RouterArgs {
    pub records: Address, // [strips, k_records, 2048]
    pub bias: Address,    // [strips * 16]
    pub x: Address,       // [tokens, hidden] bfloat16
    pub logits: Address,  // [tokens, experts]
    pub tokens: u32,
    pub hidden: u32,
    pub experts: u32,
    pub padding: u32,
}

/// `NormRouterArgs` of `router.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct NormRouterArgs {
    pub router: RouterArgs,
    pub residual: Address,    // [tokens, hidden]
    pub norm_weight: Address, // [hidden]
    pub eps: f32,
    pub block_tokens: u32, // set by the launch
}

pub(crate) struct RouterKernels {
    router: Kernel<RouterArgs>,
    norm_router: Kernel<NormRouterArgs>,
    n_sms: u32,
}

impl RouterKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            router: device.kernel("router", "router")?,
            norm_router: device.kernel("router", "norm_router")?,
            n_sms: device.properties().n_sms as u32,
        })
    }

    /// The groups of tokens are shared by as many blocks as run at once: each loads its strip's weights but once.
    pub fn router(&self, stream: &Stream, args: &RouterArgs) -> Result<(), DeviceError> {
        let (strips, groups) = grid(args);
        let sharing = groups.min((self.n_sms / strips).max(1));
        stream.launch(&self.router, Launch { grid: [strips, sharing, 1], ..early(1, N_THREADS) }, args)
    }

    /// A block per strip and some tokens, each of which norms: for few tokens. The fewer a block has, the sooner it is done: as
    /// few as there are multiprocessors for, and 8 at most.
    pub fn norm_router(&self, stream: &Stream, args: &NormRouterArgs) -> Result<(), DeviceError> {
        let (strips, _) = grid(&args.router);
        let most_blocks = (self.n_sms / strips).max(1);
        let block_tokens = args.router.tokens.div_ceil(most_blocks).clamp(1, GROUP_TOKENS);
        let smem_bytes = args.router.hidden.div_ceil(PANEL_COLUMNS) * PANEL_BYTES;
        let grid = [strips, args.router.tokens.div_ceil(block_tokens), 1];
        let launch = Launch { grid, smem_bytes, ..early(1, N_THREADS) };
        stream.launch(&self.norm_router, launch, &NormRouterArgs { block_tokens, ..*args })
    }
}

/// Strips of experts, groups of tokens.
fn grid(args: &RouterArgs) -> (u32, u32) {
    (args.experts.div_ceil(STRIP_EXPERTS), args.tokens.div_ceil(GROUP_TOKENS))
}
