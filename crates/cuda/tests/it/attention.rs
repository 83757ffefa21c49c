//! Attention on the GPU, against float64 from raw queries, keys and values, and against itself.

mod bits;
mod reference;
mod rig;
mod rope;
mod speed;
mod values;
