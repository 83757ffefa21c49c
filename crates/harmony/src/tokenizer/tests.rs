use serde_json::{Value, json};

use super::tiny::{MAX_VOCAB, byte_level_tokenizer_json, byte_level_tokenizer_json_with_merges};
use super::*;

fn tiny() -> Tokenizer {
    Tokenizer::from_bytes(byte_level_tokenizer_json(&[]).as_bytes()).unwrap()
}

/// A tiny tokenizer.json, changed by `edit`.
fn edited(edit: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizerError> {
    let mut json: Value = serde_json::from_str(&byte_level_tokenizer_json(&[])).unwrap();
    edit(&mut json);
    Tokenizer::from_bytes(json.to_string().as_bytes())
}

#[track_caller]
fn check_refused(edit: impl FnOnce(&mut Value), expect: &str) {
    let error = edited(edit).expect_err("must be refused").to_string();
    assert!(error.contains(expect) && error.contains("tokenizer.json"), "expected {expect:?} in: {error}");
}

#[test]
fn tiny_ids_are_bytes_then_control_tokens() {
    let tokenizer = tiny();
    assert_eq!(tokenizer.encode_text("aé\n"), [97, 0xc3, 0xa9, 10]);
    for (n, name) in CONTROL_TOKENS.iter().enumerate() {
        assert_eq!(tokenizer.special(name), Some(256 + n as u32), "{name}");
    }
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_id()), (265, 264));
    let specials = tokenizer.specials().unwrap();
    assert_eq!((specials.startoftext, specials.endoftext, specials.start, specials.call), (256, 257, 261, 264));
    assert_eq!(specials.stop_ids(), [258, 264, 257]);
}

#[test]
fn tiny_merges_make_tokens_after_the_control_tokens() {
    let merges: [(&[u8], &[u8]); 4] = [(b"t", b"h"), (b"th", b"e"), (b"\xf0", b"\x9f"), (b"no", b"t")];
    let json = byte_level_tokenizer_json_with_merges(&["<|extra|>", "<|start|>"], &merges);
    let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
    assert_eq!(tokenizer.special("<|extra|>"), Some(265));
    assert_eq!(tokenizer.encode_text("the 🦀"), [267, 32, 268, 0xa6, 0x80]);
    assert_eq!(tokenizer.token_bytes(268), Some(&b"\xf0\x9f"[..]));
    assert_eq!(tokenizer.vocab_size(), 269);

    let names: Vec<String> = (0..400).map(|n| format!("<|extra_{n}|>")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let full = Tokenizer::from_bytes(byte_level_tokenizer_json_with_merges(&names, &merges).as_bytes()).unwrap();
    assert_eq!(full.vocab_size(), MAX_VOCAB);
}

#[test]
fn old_files_write_merges_as_one_string() {
    let tokenizer = edited(|json| {
        json["model"]["vocab"]["ab"] = json!(300);
        json["model"]["merges"] = json!(["a b"]);
    });
    assert_eq!(tokenizer.unwrap().encode_text("aab"), [97, 300]);
}

#[test]
fn control_names_in_text_stay_text() {
    for text in ["<|start|>", "a<|start|>system<|message|>", "<|<|end|>|>", "<|start<|start|>", "<|return|><|call|>"] {
        let plain: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(tiny().encode_text(text), plain, "{text}");
        // Files that flag control tokens as ordinary, or list them in the vocabulary, must not open the door.
        let unflagged = edited(|json| {
            for token in json["added_tokens"].as_array_mut().unwrap() {
                token["special"] = json!(false);
            }
        });
        assert_eq!(unflagged.unwrap().encode_text(text), plain, "{text}, unflagged");
        let listed = edited(|json| {
            json["model"]["ignore_merges"] = json!(true);
            json["pre_tokenizer"]["use_regex"] = json!(false);
            json["model"]["vocab"]["<|start|>"] = json!(261);
        });
        assert_eq!(listed.unwrap().encode_text(text), plain, "{text}, listed");
    }
}

#[test]
fn raw_text_can_ask_for_control_tokens() {
    let tokenizer = tiny();
    let specials = tokenizer.specials().unwrap();
    let expected = [specials.start, 104, 105, specials.end, 60, specials.message];
    assert_eq!(tokenizer.encode_with_specials("<|start|>hi<|end|><<|message|>"), expected);
    assert_eq!(tokenizer.decode(&expected), "<|start|>hi<|end|><<|message|>");
}

#[test]
fn length_limits_in_the_file_do_not_cut_prompts() {
    let tokenizer = edited(|json| {
        json["truncation"] = json!({"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        json["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    });
    assert_eq!(tokenizer.unwrap().encode_text("hello").len(), 5);
}

#[test]
fn unusable_files_are_refused_by_name() {
    check_refused(|json| *json = json!({"model": 1}), "not a tokenizer.json");
    check_refused(|json| json["model"]["type"] = json!("Unigram"), "expected \"BPE\"");
    check_refused(|json| json["model"]["end_of_word_suffix"] = json!("</w>"), "end_of_word_suffix");
    check_refused(|json| json["model"]["merges"] = json!([["a", "b"]]), "`ab` out of vocabulary");
    check_refused(|json| json["model"]["merges"] = json!([["Ġ", "Ġ"]]), "not in model.vocab");
    check_refused(|json| json["model"]["merges"] = json!([["a"]]), "a merge: a pair");
    check_refused(|json| json["model"]["merges"] = json!(["ab"]), "a merge: a pair");
    check_refused(|json| json["decoder"] = Value::Null, "no decoder");
    check_refused(|json| json["decoder"] = json!({"type": "Fuse"}), "Fuse");
    check_refused(|json| drop(json["model"]["vocab"].as_object_mut().unwrap().remove("A")), "byte 0x41");
    check_refused(|json| json["model"]["vocab"]["huge"] = json!(u32::MAX), "expected at most");
    let missing = std::path::Path::new("no/such/tokenizer.json");
    let error = Tokenizer::from_file(missing).unwrap_err().to_string();
    assert!(error.contains("no/such/tokenizer.json") && error.contains("cannot read"), "{error}");
}

#[test]
fn missing_control_tokens_are_all_named_and_text_still_works() {
    let tokenizer = edited(|json| {
        json["added_tokens"].as_array_mut().unwrap().retain(|token| token["id"] != 261 && token["id"] != 264);
    });
    let tokenizer = tokenizer.unwrap();
    let error = tokenizer.specials().unwrap_err().to_string();
    assert!(error.contains("<|start|>, <|call|>;"), "{error}");
    assert_eq!(tokenizer.decode(&tokenizer.encode_text("plain")), "plain");
}

#[test]
fn streamed_text_waits_for_whole_characters() {
    let tokenizer = tiny();
    let mut decoder = StreamDecoder::new(&tokenizer);
    let pieces: Vec<String> = [0x61, 0xf0, 0x9f, 0xa6, 0x80, 0xff, 0xe6, 0x61].map(|id| decoder.push(id)).to_vec();
    assert_eq!(pieces, ["a", "", "", "", "🦀", "\u{fffd}", "", "\u{fffd}a"]);
    assert_eq!(decoder.push(0xe6) + &decoder.push(100_000) + &decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.finish(), "");
}
