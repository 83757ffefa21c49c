//! Integration tests of the CUDA backend.

mod build;
