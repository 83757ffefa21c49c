//! Integration tests of the CUDA backend.

mod build;
mod dense;
mod device;
mod gpu;
mod moe;
mod pack;
mod probe;
mod probes;
mod random;
mod triton;
mod values;
