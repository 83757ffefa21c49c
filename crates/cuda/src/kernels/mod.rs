//! The host's half of the kernels, one file per `.cu`.

pub(crate) mod copy;
