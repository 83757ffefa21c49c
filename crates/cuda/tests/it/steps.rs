//! What stands between the large products: against float64 or exact numbers, and the same bits in any step.

mod chain;
mod combine;
mod guards;
mod norm;
mod rig;
mod router;
mod sample;
mod speed;
