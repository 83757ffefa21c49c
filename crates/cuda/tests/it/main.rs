//! Integration tests of the CUDA backend.

mod build;
mod device;
mod gpu;
mod moe;
mod pack;
mod probe;
mod random;
mod triton;
mod values;
