//! The binary, run as a user runs it, on tiny checkpoints of random weights and on the built-in trained one.

mod runner;

mod bench;
mod chat;
mod conventions;
mod convert;
mod demo;
mod device;
mod eval;
mod generate;
mod hub;
mod hub_server;
mod inspect;
mod layout;
mod logits;
mod on_the_gpu;
mod probe;
mod routes;
mod synth;
mod verify;
