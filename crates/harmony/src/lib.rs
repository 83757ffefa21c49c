//! Text, tokens and harmony messages.
//!
//! A conversation travels [`message`] -> [`render`] (with [`tools`] for the function declarations) -> [`tokenizer`];
//! what the model answers travels [`tokenizer`] -> [`parse`] -> [`message`]. Nothing here knows the model, and nothing
//! here fixes a vocabulary: the control tokens are looked up by name in the checkpoint's `tokenizer.json`.
#![forbid(unsafe_code)]

pub mod message;
pub mod parse;
pub mod render;
pub mod tokenizer;
pub mod tools;
