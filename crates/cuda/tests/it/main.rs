//! Integration tests of the CUDA backend.

mod attention;
mod build;
mod device;
mod gpu;
mod moe;
mod pack;
mod probe;
mod probes;
mod random;
mod triton;
mod values;
