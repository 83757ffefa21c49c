use bytemuck::{Pod, Zeroable};

use super::early;
use super::norm::{N_THREADS, NormTargets};
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Stream};

/// `CombineAddArgs` of `combine.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CombineAddArgs {
    pub y: Address,         // [grouped rows, hidden] float32
    pub positions: Address, // [tokens, top_k]
    pub weights: Address,   // [tokens, top_k]
    pub residual: Address,  // [tokens, hidden]
    pub hidden: u32,
    pub top_k: u32,
}

/// `CombineNormArgs` of `combine.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CombineNormArgs {
    pub add: CombineAddArgs,
    pub norm_weight: Address, // [hidden]
    pub out: NormTargets,
    pub tokens: u32,
    pub eps: f32,
}

pub(crate) struct CombineKernels {
    add: Kernel<CombineAddArgs>,
    norm: Kernel<CombineNormArgs>,
}

impl CombineKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self { add: device.kernel("combine", "combine_add")?, norm: device.kernel("combine", "combine_norm")? })
    }

    pub fn add(&self, stream: &Stream, n_tokens: u32, args: &CombineAddArgs) -> Result<(), DeviceError> {
        stream.launch(&self.add, early(n_tokens, N_THREADS), args)
    }

    pub fn norm(&self, stream: &Stream, args: &CombineNormArgs) -> Result<(), DeviceError> {
        stream.launch(&self.norm, early(args.tokens, N_THREADS), args)
    }
}
