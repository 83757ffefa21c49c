//! A full o200k_harmony `tokenizer.json`, in the layout of the published gpt-oss checkpoints, made from the vocabulary
//! in the `tiktoken-rs` crate. Other crates include this file by `#[path]`: it needs nothing but `serde_json` and
//! `tiktoken-rs`.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

/// The first id that is not text.
const FIRST_SPECIAL: u32 = 199_998;

/// The control tokens and the reserved ones between them, from [`FIRST_SPECIAL`].
const SPECIALS: [&str; 21] = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_200000|>",
    "<|reserved_200001|>",
    "<|return|>",
    "<|constrain|>",
    "<|reserved_200004|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|reserved_200009|>",
    "<|reserved_200010|>",
    "<|reserved_200011|>",
    "<|call|>",
    "<|reserved_200013|>",
    "<|reserved_200014|>",
    "<|reserved_200015|>",
    "<|reserved_200016|>",
    "<|reserved_200017|>",
    "<|endofprompt|>",
];

/// How o200k splits text before merging.
const SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The file's text (13 MB), made once per test binary in about a second.
pub fn tokenizer_json() -> &'static str {
    static JSON: OnceLock<String> = OnceLock::new();
    JSON.get_or_init(build)
}

fn build() -> String {
    let bpe = tiktoken_rs::o200k_harmony().expect("the crate carries its vocabulary");
    let bytes_of = |id| bpe.decode_bytes(&[id]).expect("ids below the specials are all in use");
    let tokens: Vec<Vec<u8>> = (0..FIRST_SPECIAL).map(bytes_of).collect();
    let ranks: HashMap<&[u8], usize> =
        tokens.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();

    let spelled: Vec<String> = tokens.iter().map(|token| spell(token)).collect();
    let vocab: Map<String, Value> = spelled.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut merges = Vec::new();
    for token in &tokens {
        // All the ways to join two tokens to this one, the earliest made parts first.
        let halves = (1..token.len()).map(|at| token.split_at(at));
        let mut pairs: Vec<(usize, usize)> =
            halves.filter_map(|(left, right)| Some((*ranks.get(left)?, *ranks.get(right)?))).collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(left, right)| json!([spelled[left], spelled[right]])));
    }
    let added: Vec<Value> = (FIRST_SPECIAL..).zip(SPECIALS).map(|(id, name)| added_token(id, name)).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
    .to_string()
}

fn added_token(id: u32, name: &str) -> Value {
    json!({
        "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

/// `token` in the byte-level alphabet: printable Latin-1 stands for itself, other bytes take U+0100 and up in order.
fn spell(token: &[u8]) -> String {
    static ALPHABET: OnceLock<Vec<char>> = OnceLock::new();
    let alphabet = ALPHABET.get_or_init(|| {
        let mut shifted = 0x100..;
        let mut char_of = |byte: u8| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => shifted.next().and_then(char::from_u32).expect("68 characters from U+0100"),
        };
        (0..=u8::MAX).map(&mut char_of).collect()
    });
    token.iter().map(|&byte| alphabet[usize::from(byte)]).collect()
}
