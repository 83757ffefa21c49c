//! A tokenizer small enough for synthetic checkpoints and tests: the 256 bytes and the harmony control tokens.

use serde_json::{Map, Value, json};

use super::{CONTROL_TOKENS, byte_level};

/// The largest vocabulary written here; a model with this vocabulary size fits every tiny tokenizer.
pub const MAX_VOCAB: usize = 512;

/// The first control token's id: bytes have the ids 0 to 255.
pub const FIRST_CONTROL_ID: usize = 256;

/// A `tokenizer.json` with byte `b` as token `b`, then [`CONTROL_TOKENS`] in order from [`FIRST_CONTROL_ID`], then
/// `extra_specials`. Names that would pass [`MAX_VOCAB`] are left out.
pub fn byte_level_tokenizer_json(extra_specials: &[&str]) -> String {
    byte_level_tokenizer_json_with_merges(extra_specials, &[])
}

/// As [`byte_level_tokenizer_json`], with merges: each joins two tokens (given as text; parts longer than a byte must
/// be made by an earlier merge) to a new one, whose id follows the control tokens'. A merge of parts that do not exist,
/// or that would pass [`MAX_VOCAB`], is left out.
pub fn byte_level_tokenizer_json_with_merges(extra_specials: &[&str], merges: &[(&[u8], &[u8])]) -> String {
    let spell = |bytes: &[u8]| bytes.iter().map(|&byte| byte_level::char_of(byte)).collect::<String>();
    let mut vocab: Map<String, Value> = (0..=u8::MAX).map(|byte| (spell(&[byte]), json!(byte))).collect();
    let mut names: Vec<&str> = CONTROL_TOKENS.to_vec();
    for &name in extra_specials {
        if !name.is_empty() && !names.contains(&name) && FIRST_CONTROL_ID + names.len() < MAX_VOCAB {
            names.push(name);
        }
    }
    let mut pairs = Vec::new();
    for (left, right) in merges {
        let (left, right) = (spell(left), spell(right));
        let (id, joined) = (vocab.len() + names.len(), format!("{left}{right}"));
        let known = vocab.contains_key(&left) && vocab.contains_key(&right);
        if known && !vocab.contains_key(&joined) && id < MAX_VOCAB {
            vocab.insert(joined, json!(id));
            pairs.push(json!([left, right]));
        }
    }
    let added: Vec<Value> = names.iter().enumerate().map(|(n, name)| added_token(name, FIRST_CONTROL_ID + n)).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": pairs,
        },
    });
    tokenizer.to_string()
}

fn added_token(content: &str, id: usize) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}
