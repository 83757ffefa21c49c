//! Integration tests of the CUDA backend.

mod attention;
mod build;
mod dense;
mod device;
mod gpu;
mod model;
mod model_weights;
mod moe;
mod pack;
mod probe;
mod probes;
mod random;
mod steps;
mod triton;
mod values;
