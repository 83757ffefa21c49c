//! Text from tokens as they come: a character whose bytes are spread over tokens appears when it is complete.

use super::Tokenizer;

/// Turns tokens into text, one at a time. The pieces joined, [`StreamDecoder::finish`] included, are
/// [`Tokenizer::decode`] of all the tokens.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    utf8: Utf8Stream,
}

impl StreamDecoder {
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self { tokenizer: tokenizer.clone(), utf8: Utf8Stream::default() }
    }

    /// The text that `token` completes, often empty in the middle of a character. A control token reads as its name:
    /// leave out those that should not be shown ([`Tokenizer::is_control`]).
    pub fn push(&mut self, token: u32) -> String {
        let mut out = String::new();
        if let Some(bytes) = self.tokenizer.token_bytes(token) {
            self.utf8.push(bytes, &mut out);
        }
        out
    }

    /// What was held back: nothing, or U+FFFD for a character that never became whole. The decoder is as new after.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.utf8.finish(&mut out);
        out
    }
}

/// Incremental [`String::from_utf8_lossy`]: holds back at most three bytes of an incomplete character.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The beginning of a character, valid so far.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Appends to `out` what `bytes` completes.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    out.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            out.push_str(&String::from_utf8_lossy(valid));
            rest = invalid;
            let Some(bad) = error.error_len() else { break };
            out.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[bad..];
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }

    /// Appends U+FFFD if an incomplete character is held back, and forgets it.
    pub fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}
