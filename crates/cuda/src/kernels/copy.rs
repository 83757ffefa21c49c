use bytemuck::{Pod, Zeroable};

use crate::device::{Address, Buffer, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Stream};

/// As in `copy.cu`.
const N_THREADS: u32 = 512;

/// `CopyArgs` of `copy.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Args {
    source: Address,
    target: Address,
    n: u64,
}

/// Copies between buffers, on all multiprocessors.
pub struct Copier {
    kernel: Kernel<Args>,
    /// All that run at once.
    n_blocks: u32,
}

impl Copier {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let kernel = device.kernel("copy", "copy16")?;
        let n_blocks = kernel.blocks_per_sm(N_THREADS, 0)? * device.properties().n_sms;
        Ok(Self { kernel, n_blocks: n_blocks as u32 })
    }

    /// Queues a copy of the whole of `from`, whose elements are any 16 bytes, to the start of `to`.
    pub fn launch(
        &self,
        stream: &Stream,
        from: &Buffer<[u32; 4]>,
        to: &mut Buffer<[u32; 4]>,
    ) -> Result<(), DeviceError> {
        if from.len() > to.len() {
            return Err(DeviceError::Bounds { at: 0, n: from.len(), len: to.len() });
        }
        self.launch_at(stream, from.address(), to.address(), from.len())
    }

    /// Queues a copy of `n` times 16 bytes.
    pub(crate) fn launch_at(
        &self,
        stream: &Stream,
        source: Address,
        target: Address,
        n: usize,
    ) -> Result<(), DeviceError> {
        let args = Args { source, target, n: n as u64 };
        stream.launch(&self.kernel, Launch::new(self.n_blocks, N_THREADS), &args)
    }
}
