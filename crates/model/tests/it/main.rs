//! Checkpoints on disk, from the outside.

mod layouts;
mod scratch;
