//! The CPU backends of gpt-oss.
//!
//! [`OracleExecutor`] is the model in plain float32 loops: the reference that everything else is held against.
//! [`CpuExecutor`] is the fast path: weights in place, operands of 16 bits or more, float32
//! accumulation and residual stream. They share no
//! arithmetic; both take their facts from `tessera-model`.

mod attention;
mod ceiling;
mod executor;
mod forward;
mod kv;
mod lines;
mod matmul;
mod operand;
mod oracle;
mod pool;
mod simd;

pub use ceiling::memory_read_rate;
pub use executor::{CpuExecutor, CpuOptions};
pub use oracle::OracleExecutor;
pub use simd::Isa;
