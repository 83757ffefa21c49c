use crate::error::DeviceError;

/// Why a dense product cannot be loaded or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenseError {
    #[error("a dense matrix has {found} {what}: expected 1 to {limit}")]
    Size { what: &'static str, limit: usize, found: usize },
    #[error("matrix {index} of {n} that stand one under the other: expected {expected} {what}, found {found}")]
    Mismatch { index: usize, n: usize, what: &'static str, expected: usize, found: usize },
    #[error("the buffer of {what} is too short: expected {expected} elements at least, found {found}")]
    TooShort { what: &'static str, expected: usize, found: usize },
    #[error("{found} tokens: a product has {limit} at most; split the batch")]
    TooManyTokens { limit: usize, found: usize },
    #[error(transparent)]
    Device(#[from] DeviceError),
}
