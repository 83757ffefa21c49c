//! The host's half of the kernels, one file per `.cu`.

pub(crate) mod attention;
pub(crate) mod combine;
pub(crate) mod copy;
pub(crate) mod decode_probe;
pub(crate) mod dense;
pub(crate) mod dummy;
pub(crate) mod embed;
pub(crate) mod moe_gemm;
pub(crate) mod moe_route;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod router;
pub(crate) mod sample;

use crate::launch::{Launch, Start};

/// One-dimensional, while the kernel before still runs.
fn early(n_blocks: u32, n_threads: u32) -> Launch {
    Launch { start: Start::Early, ..Launch::new(n_blocks, n_threads) }
}
