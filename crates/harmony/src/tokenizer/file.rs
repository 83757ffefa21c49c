//! What a `tokenizer.json` says.
//!
//! The file is read here rather than by `tokenizers::Tokenizer`: that one matches added tokens inside text and gives
//! them ids of its own choosing, panics on a merge longer than every token, and parses the large tables twice.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer as HfTokenizer};

#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Option<NormalizerWrapper>,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizerWrapper>,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub id: u32,
    pub content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

impl TokenizerFile {
    /// Whether tokens are spelled in the byte-level alphabet; if not, what was found instead.
    pub fn check_byte_level(&self) -> Result<(), String> {
        let kind = |decoder: &Value| decoder["type"].as_str().map(str::to_owned);
        let sequence = self.decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
        let found: Vec<String> = std::iter::once(&self.decoder).chain(sequence).filter_map(kind).collect();
        if found.iter().any(|kind| kind == "ByteLevel") {
            return Ok(());
        }
        Err(if found.is_empty() { "no decoder".to_owned() } else { found.join(", ") })
    }

    pub fn vocab(&self) -> &Vocab {
        &self.model.vocab
    }

    /// The encoder of plain text. It knows no added tokens, no length limit and no padding.
    pub fn into_encoder(self) -> Result<HfTokenizer, String> {
        let Model { kind, vocab, merges, ignore_merges, continuing_subword_prefix, end_of_word_suffix } = self.model;
        if let Some(kind) = kind.filter(|kind| kind != "BPE") {
            return Err(format!("model.type is {kind:?}, expected \"BPE\""));
        }
        let affixes = [continuing_subword_prefix, end_of_word_suffix];
        if affixes.iter().flatten().any(|affix| !affix.is_empty()) {
            return Err("model.continuing_subword_prefix or end_of_word_suffix is set, expected null".to_owned());
        }
        let longest = vocab.keys().map(String::len).max().unwrap_or(0);
        if let Some(Merge((a, b))) = merges.iter().find(|Merge((a, b))| a.len() + b.len() > longest) {
            return Err(format!("model.merges joins {a:?} and {b:?} to a token that is not in model.vocab"));
        }
        let merges = merges.into_iter().map(|Merge(pair)| pair).collect();
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges);
        let mut encoder = HfTokenizer::new(bpe.build().map_err(|e| format!("model: {e}"))?);
        encoder.with_normalizer(self.normalizer).map_err(|e| format!("normalizer: {e}"))?;
        encoder.with_pre_tokenizer(self.pre_tokenizer);
        Ok(encoder)
    }
}

/// A merge, written `["a", "b"]` or, in older files, `"a b"`.
struct Merge((String, String));

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a merge: a pair of tokens, or both in one string with a space between")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
        let (a, b) = text.split_once(' ').ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))?;
        Ok(Merge((a.to_owned(), b.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
        let a = pair.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let b = pair.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
        Ok(Merge((a, b)))
    }
}
