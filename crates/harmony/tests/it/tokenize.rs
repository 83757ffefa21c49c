use std::time::Instant;

use proptest::prelude::*;
use tessera_harmony::tokenizer::{CONTROL_TOKENS, StreamDecoder, Tokenizer};

use super::{cases, full, ids, o200k};

#[test]
fn awkward_text_is_encoded_as_o200k_harmony() {
    let reference = tiktoken_rs::o200k_harmony_singleton();
    let cases = cases("awkward.json");
    assert!(cases.len() >= 70);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let encoded = full().encode_text(text);
        assert_eq!(encoded, reference.encode_ordinary(text), "{text:?}");
        assert_eq!(encoded, ids(&case), "{text:?}");
        assert_eq!(full().decode(&encoded), text);
        let mut decoder = StreamDecoder::new(full());
        let mut streamed: String = encoded.iter().map(|&id| decoder.push(id)).collect();
        streamed.push_str(&decoder.finish());
        assert_eq!(streamed, text);
    }
}

#[test]
fn every_token_has_the_bytes_of_o200k_harmony() {
    let reference = tiktoken_rs::o200k_harmony_singleton();
    for id in 0..=full().max_id() {
        let expected = reference.decode_bytes(&[id]).unwrap();
        let is_renamed = id == 200_018; // the published tokenizer.json calls this one endofprompt
        assert!(is_renamed || full().token_bytes(id) == Some(&expected), "{id}");
    }
    assert_eq!((full().vocab_size(), full().max_id(), full().token_bytes(200_019)), (200_019, 200_018, None));
}

#[test]
fn control_tokens_have_their_published_ids() {
    let ids = CONTROL_TOKENS.map(|name| full().special(name).unwrap());
    assert_eq!(ids, [199_998, 199_999, 200_002, 200_003, 200_005, 200_006, 200_007, 200_008, 200_012]);
    assert_eq!(full().specials().unwrap().stop_ids(), [200_002, 200_012, 199_999]);
}

#[test]
fn text_with_control_tokens_on_request() {
    let reference = tiktoken_rs::o200k_harmony_singleton();
    for case in cases("conversations.json") {
        // Where the case's own text has control tokens as text, both read them as control tokens.
        let text = case["text"].as_str().unwrap();
        if !text.contains("endofprompt") {
            assert_eq!(full().encode_with_specials(text), reference.encode_with_special_tokens(text), "{text:?}");
        }
    }
}

#[test]
fn long_runs_do_not_stall() {
    let start = Instant::now();
    for text in [" ".repeat(300_000), "a".repeat(100_000), "<|start|>".repeat(20_000), "\u{1F980}".repeat(20_000)] {
        assert_eq!(full().decode(&full().encode_text(&text)), text);
    }
    assert!(start.elapsed().as_secs() < 30, "took {:?}", start.elapsed());
}

#[test]
fn the_file_loads_from_disk_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, o200k::tokenizer_json()).unwrap();
    let start = Instant::now();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let elapsed = start.elapsed();
    eprintln!("loading the full tokenizer.json took {elapsed:?}");
    assert_eq!(tokenizer.vocab_size(), full().vocab_size());
    // Under 1 s when released and alone; a shared machine gets room.
    assert!(elapsed.as_secs() < 10, "took {elapsed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_encoded_as_o200k_harmony(text in "(\\PC|[ \\t\\r\\n]{1,4}|[a-zA-Z']{1,8}|[0-9]{1,5}|[^\\p{L}\\p{N}]){0,30}") {
        let expected = tiktoken_rs::o200k_harmony_singleton().encode_ordinary(&text);
        prop_assert_eq!(full().encode_text(&text), expected);
    }
}
