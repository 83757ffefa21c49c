//! Any token sequence, one token at a time.

use std::sync::OnceLock;

use proptest::prelude::*;
use tessera_harmony::parse::{Event, Parser};
use tessera_harmony::tokenizer::tiny::byte_level_tokenizer_json_with_merges;
use tessera_harmony::tokenizer::{StreamDecoder, Tokenizer, Utf8Stream};

/// A tiny tokenizer with tokens of several bytes, some of them parts of characters.
fn tiny() -> &'static Tokenizer {
    static TINY: OnceLock<Tokenizer> = OnceLock::new();
    TINY.get_or_init(|| {
        let merges: [(&[u8], &[u8]); 5] =
            [(b"t", b"o"), (b"to", b"="), (b"\xf0", b"\x9f"), (b"\xe6", b"\x97"), (b"\xa5", b" ")];
        let json = byte_level_tokenizer_json_with_merges(&["<|reserved|>"], &merges);
        Tokenizer::from_bytes(json.as_bytes()).unwrap()
    })
}

/// Tokens that look like harmony now and then: control tokens and header words are common, ids may not exist.
fn tokens() -> impl Strategy<Value = Vec<u32>> {
    let words =
        prop::sample::select(vec!["assistant", "final", "analysis", " to=", "functions.f", " json", "é🦀", " "]);
    let piece = prop_oneof![
        4 => (256u32..266).prop_map(|id| vec![id]),
        3 => words.prop_map(|word| tiny().encode_text(word)),
        2 => (0u32..256).prop_map(|id| vec![id]),
        1 => (256u32..400).prop_map(|id| vec![id]),
        1 => any::<u32>().prop_map(|id| vec![id]),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// The text of `tokens` without control tokens; a character cannot reach over one.
fn plain_text(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    tokens.split(|&token| tokenizer.is_control(token)).map(|run| tokenizer.decode(run)).collect()
}

/// Feeds `parser`, checks that events come in order and agree with the messages, and returns all text they carry.
fn text_of_events(mut parser: Parser, tokens: &[u32]) -> String {
    let mut events: Vec<Event> = tokens.iter().flat_map(|&token| parser.push(token)).collect();
    events.extend(parser.finish());
    let (mut all, mut contents, mut open) = (String::new(), Vec::new(), None::<String>);
    for event in events {
        match event {
            Event::Start(header) => {
                assert!(open.replace(String::new()).is_none(), "a message starts within another");
                all.push_str(&header.raw);
            }
            Event::Delta(text) => {
                assert!(!text.is_empty());
                all.push_str(&text);
                open.as_mut().expect("text outside a message").push_str(&text);
            }
            Event::End(_) => contents.push(open.take().expect("an end without a start")),
        }
    }
    assert!(open.is_none(), "finish leaves a message open");
    let messages: Vec<String> = parser.messages().iter().map(|message| message.text()).collect();
    let spoken = |texts: Vec<String>| -> Vec<String> { texts.into_iter().filter(|text| !text.is_empty()).collect() };
    assert_eq!(spoken(contents), spoken(messages));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn parsing_is_total_and_keeps_all_text(tokens in tokens()) {
        let expected = plain_text(tiny(), &tokens);
        prop_assert_eq!(text_of_events(Parser::new(tiny()).unwrap(), &tokens), &expected[..]);
        prop_assert_eq!(text_of_events(Parser::for_conversation(tiny()).unwrap(), &tokens), &expected[..]);
    }

    #[test]
    fn streamed_tokens_are_the_decoded_text(tokens in tokens()) {
        let mut decoder = StreamDecoder::new(tiny());
        let mut streamed: String = tokens.iter().map(|&token| decoder.push(token)).collect();
        streamed.push_str(&decoder.finish());
        prop_assert_eq!(streamed, tiny().decode(&tokens));
    }

    #[test]
    fn streamed_bytes_are_from_utf8_lossy(chunks in prop::collection::vec(bytes(), 0..12)) {
        let (mut utf8, mut streamed) = (Utf8Stream::default(), String::new());
        chunks.iter().for_each(|chunk| utf8.push(chunk, &mut streamed));
        utf8.finish(&mut streamed);
        prop_assert_eq!(streamed, String::from_utf8_lossy(&chunks.concat()).into_owned());
    }

    #[test]
    fn plain_text_never_has_control_tokens(text in "(<\\|(start|end|message|reserved|x)\\|>|<|\\||[a-z ]|\\PC){0,20}") {
        let tokens = tiny().encode_text(&text);
        prop_assert!(tokens.iter().all(|&token| !tiny().is_control(token)));
        prop_assert_eq!(tiny().decode(&tokens), text);
    }
}

/// Bytes in which characters begin, break off and go on.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(0xf0u8),
        Just(0x9f),
        Just(0xa6),
        Just(0x80),
        Just(0xe6),
        Just(0x97),
        Just(0xed),
        Just(0xa0),
        Just(0xc3),
        Just(0x61),
        Just(0xf4),
        Just(0x90),
        any::<u8>(),
    ];
    prop::collection::vec(byte, 0..6)
}
