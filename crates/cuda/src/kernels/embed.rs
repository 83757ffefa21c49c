use bytemuck::{Pod, Zeroable};

use super::early;
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Stream};

/// Columns of a thread.
const COLUMNS: u32 = 8;
const WARP: u32 = 32;

/// `EmbedArgs` of `embed.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct EmbedArgs {
    pub tokens: Address,   // [n_tokens]
    pub table: Address,    // [vocab, hidden] bfloat16
    pub residual: Address, // [n_tokens, hidden]
    pub vocab: u32,
    pub hidden: u32,
}

pub(crate) struct EmbedKernel(Kernel<EmbedArgs>);

impl EmbedKernel {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        device.kernel("embed", "embed").map(Self)
    }

    pub fn launch(&self, stream: &Stream, n_tokens: u32, args: &EmbedArgs) -> Result<(), DeviceError> {
        let n_threads = args.hidden.div_ceil(COLUMNS).next_multiple_of(WARP);
        stream.launch(&self.0, early(n_tokens, n_threads), args)
    }
}
