//! The binary, run as a user runs it, on tiny checkpoints of random weights.

mod runner;

mod chat;
mod conventions;
mod convert;
mod generate;
mod hub;
mod hub_server;
mod inspect;
mod logits;
mod synth;
mod verify;
