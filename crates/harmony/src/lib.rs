//! Text, tokens and harmony messages.
//!
//! A token from the model travels [`tokenizer`] -> [`parse`] -> [`message`]; a conversation travels [`message`] ->
//! [`render`] (with [`tools`] for the function declarations) -> [`tokenizer`]. Nothing here knows the model, and
//! nothing here fixes a vocabulary: the control tokens are looked up by name in the checkpoint's `tokenizer.json`.
#![forbid(unsafe_code)]

pub mod tokenizer;
