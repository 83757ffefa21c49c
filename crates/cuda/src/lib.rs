//! gpt-oss on NVIDIA Hopper (`sm_90a`).

mod ceiling;
mod cubins;
mod cublas;
mod device;
mod error;
mod kernels;
mod launch;
mod moe;
pub mod pack;
pub mod probe;
mod router;
mod sampling;
mod steps;

pub use ceiling::{copy_bandwidth, matmul_rate};
pub use cubins::{CUBINS, REPORT};
pub use device::{Address, Buffer, Device, Memory, Pinned, Properties};
pub use error::DeviceError;
pub use kernels::copy::Copier;
pub use kernels::moe_gemm::MoeKernel;
pub use launch::{Event, Graph, Kernel, Launch, Start, Stream};
pub use moe::{
    MAX_EXPERTS, MAX_TOKENS, MAX_TOP_K, MAX_WIDTH, Moe, MoeChoice, MoeError, MoeLaunched, MoeShape, MoeWeights,
    MoeWorkspace, Swiglu,
};
pub use router::RouterWeights;
pub use sampling::{MAX_VOCAB, RowSampling, Sampled, Sampler};
pub use steps::{NormOut, Steps, StepsError};
