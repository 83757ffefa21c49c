//! The host's half of the kernels, one file per `.cu`.

pub(crate) mod attention;
pub(crate) mod copy;
pub(crate) mod decode_probe;
pub(crate) mod dummy;
pub(crate) mod dense;
pub(crate) mod moe_gemm;
pub(crate) mod moe_route;
pub(crate) mod pack;
