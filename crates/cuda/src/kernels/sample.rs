use bytemuck::{Pod, Zeroable};

use super::early;
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Stream};

/// As in `sample_row.cuh`.
const N_THREADS: u32 = 1024;
const N_BLOCKS: u32 = 8;
const PER_THREAD: u32 = 32;
/// Logits of a row: all of them stay in the shared memory of a cluster.
pub(crate) const MAX_VOCAB: u32 = N_BLOCKS * N_THREADS * PER_THREAD;
/// `Shared` of `sample_row.cuh`.
const SHARED_BYTES: u32 = 13_824;
const KEY_BYTES: u32 = 4;
/// A block's logits are a multiple of it.
const LINE: u32 = 32;

/// `SampleArgs` of `sample.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SampleArgs {
    pub logits: Address,    // [n_logits, vocab]
    pub samplings: Address, // [rows]
    pub out: Address,       // [rows]
    pub vocab: u32,
    pub n_logits: u32,
}

pub(crate) struct SampleKernel(Kernel<SampleArgs>);

impl SampleKernel {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        device.kernel("sample", "sample").map(Self)
    }

    pub fn launch(&self, stream: &Stream, n_rows: u32, args: &SampleArgs) -> Result<(), DeviceError> {
        let keys = args.vocab.div_ceil(N_BLOCKS).next_multiple_of(LINE);
        let smem_bytes = SHARED_BYTES + keys * KEY_BYTES;
        let launch = Launch { cluster: [N_BLOCKS, 1, 1], smem_bytes, ..early(n_rows * N_BLOCKS, N_THREADS) };
        stream.launch(&self.0, launch, args)
    }
}
