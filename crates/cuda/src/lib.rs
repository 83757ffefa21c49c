//! gpt-oss on NVIDIA Hopper (`sm_90a`).

mod attention;
mod ceiling;
mod cubins;
mod cublas;
mod dense;
mod device;
mod error;
mod executor;
mod forward;
mod kernels;
mod launch;
mod model_weights;
mod moe;
pub mod pack;
pub mod probe;
mod sampling;
pub mod slots;
mod step;
mod steps;

pub use attention::{Attention, AttentionError, AttentionShape, AttentionWorkspace, KvPool};
pub use ceiling::{copy_bandwidth, matmul_rate};
pub use cubins::{CUBINS, REPORT};
pub use dense::{Dense, DenseChoice, DenseError, DenseOut, DenseShape, DenseWeights, MAX_COLS, MAX_ROWS};
pub use device::{Address, Buffer, Device, Memory, Pinned, Properties};
pub use error::DeviceError;
pub use executor::{CudaError, CudaExecutor, MAX_STEP_LOGITS, MAX_STEP_ROWS, StageTime};
pub use kernels::copy::Copier;
pub use kernels::dense::DenseKernel;
pub use kernels::moe_gemm::MoeKernel;
pub use launch::{Event, Graph, Kernel, Launch, Start, Stream};
pub use model_weights::{LayerBuffers, ModelWeights, ModelWeightsError};
pub use moe::{
    MAX_EXPERTS, MAX_TOKENS, MAX_TOP_K, MAX_WIDTH, Moe, MoeChoice, MoeError, MoeLaunched, MoeShape, MoeWeights,
    MoeWorkspace, Swiglu,
};
pub use sampling::{MAX_VOCAB, RowSampling, Sampled, Sampler};
pub use step::{
    DecodeItem, DecodeMerge, NO_PARTIAL, NO_SLOT, PAD_TOKEN, PrefillTile, StepHeader, StepMeta, StepMetaError,
};
pub use steps::{NormOut, Steps, StepsError};
