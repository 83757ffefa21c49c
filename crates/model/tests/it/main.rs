//! Checkpoints on disk, from the outside.

mod convert;
mod layouts;
mod scratch;
