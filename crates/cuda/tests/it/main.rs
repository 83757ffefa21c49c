//! Integration tests of the CUDA backend.

mod build;
mod device;
mod gpu;
mod moe;
mod pack;
mod probe;
mod probes;
mod random;
mod steps;
mod triton;
mod values;
