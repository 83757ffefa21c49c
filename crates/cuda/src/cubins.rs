//! The kernels' machine code, compiled by `build.rs` and part of the binary.

/// Name of the file in `kernels`, without its ending, and the sm_90a ELF image that nvcc made of it. Empty in a build that
/// had no nvcc.
pub static CUBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// nvcc's release, and the registers, shared memory and spills of every kernel, as lines of text.
pub static REPORT: &str = include_str!(concat!(env!("OUT_DIR"), "/report.txt"));

/// An ELF image where its own alignment puts it; `include_bytes!` promises none.
#[allow(dead_code, reason = "a build without nvcc has no image")]
#[repr(C, align(64))]
struct Aligned<B>(B);
