//! The CPU backends of gpt-oss.
//!
//! [`OracleExecutor`] is the model in plain float32 loops: the reference that everything else is held against.
//! [`CpuExecutor`] is the fast path: bf16 operands, float32 accumulation, float32 residual stream. They share no
//! arithmetic; both take their facts from `tessera-model`.

mod oracle;

pub use oracle::OracleExecutor;
