//! Whole models on the GPU: against transformers and the oracle, and against themselves.

mod bits;
mod guards;
mod parity;
mod rig;
mod sampling;
mod speed;
