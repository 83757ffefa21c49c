//! The checkpoint's `tokenizer.json`: text to ids, ids to bytes, and the ids of the control tokens.
//!
//! Two promises hold for every vocabulary: [`Tokenizer::encode_text`] never yields a control token, whatever the text
//! says, and decoding goes through bytes, so that text split anywhere between tokens comes back whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::Tokenizer as HfTokenizer;
use tokenizers::models::bpe::Vocab;

mod byte_level;
mod file;
mod specials;
mod stream;
pub mod tiny;

use file::TokenizerFile;
pub use specials::{CONTROL_TOKENS, Specials};
pub use stream::{StreamDecoder, Utf8Stream};

/// Ids above this are refused: the byte table is indexed by id, and a hostile file must not size it.
pub const MAX_TOKEN_ID: u32 = (1 << 22) - 1;

/// Why a `tokenizer.json` cannot be used. `file` is the path, or what [`Tokenizer::from_bytes`] calls its input.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{}: cannot read the tokenizer: {source}; a checkpoint folder needs its tokenizer.json", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{file}: not a tokenizer.json: {problem}; download the file again from the checkpoint's publisher")]
    Parse { file: String, problem: String },
    #[error(
        "{file}: expected a byte-level tokenizer (decoder ByteLevel), found {found}; gpt-oss uses a byte-level BPE"
    )]
    NotByteLevel { file: String, found: String },
    #[error("{file}: no token for byte {byte:#04x}, expected one for each of the 256 bytes; the vocabulary is cut")]
    MissingByte { file: String, byte: u8 },
    #[error("{file}: token {token:?} has id {id}, expected at most {MAX_TOKEN_ID}")]
    IdTooLarge { file: String, token: String, id: u32 },
    #[error("{file}: missing control tokens {}; chat needs a harmony tokenizer (gpt-oss), raw text does not", names.join(", "))]
    MissingSpecials { file: String, names: Vec<String> },
}

/// A byte-level tokenizer. Cloning shares the vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    file: String,
    encoder: HfTokenizer,
    bytes: ByteTable,
    /// Added tokens by name: everything that is not plain text, reserved ids included.
    control: BTreeMap<String, u32>,
    /// The added tokens' ids, sorted.
    control_ids: Vec<u32>,
    /// The added tokens' names, longest first.
    names_by_length: Vec<String>,
    /// Bytes that a name begins with: elsewhere no name needs to be looked for.
    name_starts: Vec<u8>,
    /// Token of each single byte, for text the pre-tokenizer fails on.
    byte_ids: [u32; 256],
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a checkpoint's `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be read, is not a byte-level tokenizer, or lacks a token for some byte. Control tokens are
    /// not needed for raw text, so their absence is an error of [`Tokenizer::specials`] only.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let json = std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
        Self::from_json(&path.display().to_string(), &json)
    }

    /// As [`Tokenizer::from_file`], from the file's bytes; errors call it `tokenizer.json`.
    ///
    /// # Errors
    /// See [`Tokenizer::from_file`].
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        Self::from_json("tokenizer.json", json)
    }

    fn from_json(file: &str, json: &[u8]) -> Result<Self, TokenizerError> {
        let parse_error = |problem: String| TokenizerError::Parse { file: file.to_owned(), problem };
        let mut contents: TokenizerFile = serde_json::from_slice(json).map_err(|e| parse_error(e.to_string()))?;
        contents.check_byte_level().map_err(|found| TokenizerError::NotByteLevel { file: file.to_owned(), found })?;
        let added = std::mem::take(&mut contents.added_tokens);
        let control: BTreeMap<String, u32> = added.into_iter().map(|token| (token.content, token.id)).collect();
        let bytes = ByteTable::build(file, contents.vocab(), &control)?;
        let byte_ids = single_byte_ids(file, contents.vocab())?;
        let encoder = contents.into_encoder().map_err(parse_error)?;
        let mut control_ids: Vec<u32> = control.values().copied().collect();
        control_ids.sort_unstable();
        let mut names_by_length: Vec<String> = control.keys().filter(|name| !name.is_empty()).cloned().collect();
        names_by_length.sort_by_key(|name| std::cmp::Reverse(name.len()));
        let mut name_starts: Vec<u8> = names_by_length.iter().map(|name| name.as_bytes()[0]).collect();
        name_starts.sort_unstable();
        name_starts.dedup();
        let vocab_size = bytes.spans.iter().filter(|span| span.is_some()).count();
        Ok(Self(Arc::new(Inner {
            file: file.to_owned(),
            encoder,
            bytes,
            control,
            control_ids,
            names_by_length,
            name_starts,
            byte_ids,
            vocab_size,
        })))
    }

    /// Tokens of plain text. No control token is ever among them: `<|start|>` typed by a user stays nine characters.
    pub fn encode_text(&self, text: &str) -> Vec<u32> {
        let ids = self.encode_piece(text);
        if !ids.iter().any(|&id| self.is_control(id)) {
            return ids;
        }
        // A file may list a control token in its vocabulary, too. Cut inside each of its names: a token covers exactly
        // its bytes, so none can come out of pieces that lack the name.
        let mut out = Vec::with_capacity(ids.len() + 8);
        let mut rest = text;
        while let Some((at, name)) = self.next_control(rest) {
            let cut = at + name.chars().next().map_or(0, char::len_utf8);
            out.extend(self.encode_piece(&rest[..cut]));
            rest = &rest[cut..];
        }
        out.extend(self.encode_piece(rest));
        out
    }

    /// Tokens of text in which control token names mean control tokens. Only for callers that were asked for exactly
    /// that (a prompt in raw form): text from anyone else goes through [`Tokenizer::encode_text`].
    pub fn encode_with_specials(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some((at, name)) = self.next_control(rest) {
            out.extend(self.encode_text(&rest[..at]));
            out.push(self.0.control[name]);
            rest = &rest[at + name.len()..];
        }
        out.extend(self.encode_text(rest));
        out
    }

    /// The text of `ids`: their bytes joined, then [`String::from_utf8_lossy`]. Control tokens read as their names; ids
    /// without a token contribute nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of one token (a control token's name), or `None` where the vocabulary has a hole: models pad their
    /// embedding beyond the last token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.bytes.get(id)
    }

    /// How many tokens there are, control tokens included; holes in the id range do not count.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The largest id; it must be below the model's vocabulary size.
    pub fn max_id(&self) -> u32 {
        u32::try_from(self.0.bytes.spans.len()).unwrap_or(u32::MAX).saturating_sub(1)
    }

    /// The id of a control token by its full name, such as `<|start|>`.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.0.control.get(name).copied()
    }

    /// Whether `id` is an added (control or reserved) token rather than text.
    pub fn is_control(&self, id: u32) -> bool {
        self.0.control_ids.binary_search(&id).is_ok()
    }

    /// The harmony control tokens.
    ///
    /// # Errors
    /// [`TokenizerError::MissingSpecials`], naming all that are missing.
    pub fn specials(&self) -> Result<Specials, TokenizerError> {
        Specials::look_up(&self.0.file, |name| self.special(name))
    }

    fn encode_piece(&self, text: &str) -> Vec<u32> {
        match self.0.encoder.encode_fast(text, false) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            // The split regex can give up (backtracking limit); single bytes still say the same text.
            Err(_) => text.bytes().map(|byte| self.0.byte_ids[usize::from(byte)]).collect(),
        }
    }

    /// The first place in `text` where a control token's name stands, and the longest such name.
    fn next_control(&self, text: &str) -> Option<(usize, &str)> {
        let names = &self.0.names_by_length;
        let candidates = text.bytes().enumerate().filter(|(_, byte)| self.0.name_starts.contains(byte));
        candidates.map(|(at, _)| at).find_map(|at| {
            let here = &text.as_bytes()[at..];
            names.iter().find(|name| here.starts_with(name.as_bytes())).map(|name| (at, name.as_str()))
        })
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("file", &self.0.file).field("vocab_size", &self.0.vocab_size).finish()
    }
}

fn single_byte_ids(file: &str, plain: &Vocab) -> Result<[u32; 256], TokenizerError> {
    let mut ids = [0; 256];
    for byte in 0..=u8::MAX {
        let id = plain.get(&byte_level::char_of(byte).to_string()).copied();
        ids[usize::from(byte)] = id.ok_or_else(|| TokenizerError::MissingByte { file: file.to_owned(), byte })?;
    }
    Ok(ids)
}

/// The bytes of every token, by id.
struct ByteTable {
    /// All tokens' bytes, one after another.
    flat: Vec<u8>,
    /// Token id -> (start, end) in `flat`; `None` is a hole.
    spans: Vec<Option<(u32, u32)>>,
}

impl ByteTable {
    fn build(file: &str, plain: &Vocab, control: &BTreeMap<String, u32>) -> Result<Self, TokenizerError> {
        let mut table = Self { flat: Vec::with_capacity(plain.len() * 8), spans: Vec::new() };
        for (token, &id) in plain {
            table.insert(file, token, id, |token, flat| byte_level::extend_bytes(flat, token))?;
        }
        // After the plain ones: an added token that is also in the vocabulary is spelled literally.
        for (token, &id) in control {
            table.insert(file, token, id, |token, flat| flat.extend_from_slice(token.as_bytes()))?;
        }
        Ok(table)
    }

    fn insert(
        &mut self,
        file: &str,
        token: &str,
        id: u32,
        write: impl Fn(&str, &mut Vec<u8>),
    ) -> Result<(), TokenizerError> {
        if id > MAX_TOKEN_ID {
            return Err(TokenizerError::IdTooLarge { file: file.to_owned(), token: token.to_owned(), id });
        }
        let (index, start) = (id as usize, self.flat.len());
        write(token, &mut self.flat);
        if self.spans.len() <= index {
            self.spans.resize(index + 1, None);
        }
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        self.spans[index] = Some((offset(start), offset(self.flat.len())));
        Ok(())
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        let (start, end) = (*self.spans.get(id as usize)?)?;
        self.flat.get(start as usize..end as usize)
    }
}

#[cfg(test)]
mod tests;
