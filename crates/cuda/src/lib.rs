//! gpt-oss on NVIDIA Hopper (`sm_90a`).

pub mod pack;
