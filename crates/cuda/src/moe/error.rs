use crate::error::DeviceError;
use crate::moe::MoeShape;
use crate::pack::PackError;

/// Why experts cannot be loaded or run.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum MoeError {
    #[error("experts' {what} is {found}: expected {expected}")]
    Size { what: &'static str, expected: String, found: usize },
    #[error("{what}: expected {expected} elements, found {found}")]
    Length { what: &'static str, expected: usize, found: usize },
    #[error("the buffer of {what} is too short: expected {expected} elements at least, found {found}")]
    TooShort { what: &'static str, expected: usize, found: usize },
    #[error("{found} tokens: the workspace has room for {limit}; split the batch")]
    TooManyTokens { limit: usize, found: usize },
    #[error("the {what} are for experts of {found:?}, expected {expected:?}")]
    Mismatch { what: &'static str, expected: MoeShape, found: MoeShape },
    #[error("token {token}, choice {rank}: expert {id}, expected one below {experts}, or a negative id for none")]
    ExpertId { token: usize, rank: usize, id: i32, experts: usize },
    #[error("{what}: {source}")]
    Pack { what: &'static str, source: PackError },
    #[error(transparent)]
    Device(#[from] DeviceError),
}
