//! Dense products on the GPU, against float64 from rows of numbers, and against themselves.

mod bits;
mod guards;
mod numbers;
mod rig;
mod speed;
