use bytemuck::{Pod, Zeroable};

use super::early;
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Stream};

/// As in `norm.cuh`: of every kernel that norms.
pub(crate) const N_THREADS: u32 = 384;

/// `NormOut` of `norm.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct NormTargets {
    pub panels: Address, // bfloat16 panels of n_rows rows, or null
    pub rows: Address,   // [n_rows, hidden] bfloat16, or null
}

/// `NormArgs` of `norm.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct NormArgs {
    pub residual: Address, // [tokens, hidden]
    pub weight: Address,   // [hidden]
    pub tokens: Address,   // [n_rows] rows of the residual, or null
    pub out: NormTargets,
    pub n_rows: u32,
    pub hidden: u32,
    pub eps: f32,
    pub padding: u32,
}

pub(crate) struct NormKernel(Kernel<NormArgs>);

impl NormKernel {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        device.kernel("norm", "rms_norm").map(Self)
    }

    pub fn launch(&self, stream: &Stream, args: &NormArgs) -> Result<(), DeviceError> {
        stream.launch(&self.0, early(args.n_rows, N_THREADS), args)
    }
}
