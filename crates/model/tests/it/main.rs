//! Checkpoints on disk, from the outside.

mod config;
mod convert;
mod layouts;
mod malformed;
mod scratch;
mod totals;
