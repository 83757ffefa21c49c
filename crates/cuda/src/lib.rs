//! gpt-oss on NVIDIA Hopper (`sm_90a`).

mod cubins;
pub mod pack;

pub use cubins::{CUBINS, REPORT};
