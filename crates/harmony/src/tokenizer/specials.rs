//! The control tokens of the harmony format.

use super::TokenizerError;

/// The names that [`Specials`] looks up, in the order of their o200k_harmony ids.
pub const CONTROL_TOKENS: [&str; 9] = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
];

/// Ids of the harmony control tokens in one vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Specials {
    pub startoftext: u32,
    pub endoftext: u32,
    /// `<|return|>`: the model has finished its answer.
    pub return_: u32,
    /// `<|constrain|>`: what follows in the header is the content's format.
    pub constrain: u32,
    pub channel: u32,
    /// `<|start|>`: a message's header begins, with the role.
    pub start: u32,
    /// `<|end|>`: a message is complete; the model goes on.
    pub end: u32,
    /// `<|message|>`: the header ends, the content begins.
    pub message: u32,
    /// `<|call|>`: the model calls a tool and waits.
    pub call: u32,
}

impl Specials {
    pub(super) fn look_up(file: &str, id_of: impl Fn(&str) -> Option<u32>) -> Result<Self, TokenizerError> {
        let ids = CONTROL_TOKENS.map(&id_of);
        let [
            Some(startoftext),
            Some(endoftext),
            Some(return_),
            Some(constrain),
            Some(channel),
            Some(start),
            Some(end),
            Some(message),
            Some(call),
        ] = ids
        else {
            let missing = CONTROL_TOKENS.iter().zip(ids).filter(|(_, id)| id.is_none());
            let names = missing.map(|(name, _)| (*name).to_owned()).collect();
            return Err(TokenizerError::MissingSpecials { file: file.to_owned(), names });
        };
        Ok(Self { startoftext, endoftext, return_, constrain, channel, start, end, message, call })
    }

    /// Tokens after which the assistant has nothing more to say: `<|return|>`, `<|call|>`, `<|endoftext|>`. `<|end|>`
    /// is not among them: it closes one message of several.
    pub fn stop_ids(&self) -> [u32; 3] {
        [self.return_, self.call, self.endoftext]
    }
}
