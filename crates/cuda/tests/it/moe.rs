//! The experts on the GPU, against float64 from the checkpoint's bytes, and against themselves.

mod bits;
mod guards;
mod layer;
mod numbers;
mod reference;
mod rig;
mod routing;
mod scales;
mod size;
