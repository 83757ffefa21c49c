//! What gpt-oss is: configuration, checkpoints, the MXFP4 codec, batches and the seam between backends.
//!
//! This crate knows no device, no thread pool, no scheduler and no text. Backends take [`Weights`] (borrowed views into
//! a memory-mapped [`Checkpoint`](checkpoint::Checkpoint)) and a [`Batch`], and answer through [`Executor`].

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod executor;
pub mod mxfp4;
pub mod rope;
pub mod sampling;
pub mod synth;
pub mod trace;
pub mod weights;

pub use batch::{BLOCK_SIZE, Batch, BlockTables, Row, Token};
pub use config::{Config, LayerType};
pub use executor::{Executor, Limits, StepError};
pub use sampling::Sampling;
pub use trace::{Site, Stage, Trace};
pub use weights::{Experts, LayerWeights, Linear, Matrix, Weights};
