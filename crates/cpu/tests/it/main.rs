//! Integration tests of the CPU backends.

mod chunking;
mod fixture;
mod parity;
mod runner;
mod tracing;
