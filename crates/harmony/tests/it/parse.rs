use tessera_harmony::message::{Conversation, Message};
use tessera_harmony::parse::{Event, Parser};
use tessera_harmony::render::{History, Renderer};

use super::{cases, full, ids};

#[test]
fn sequences_are_parsed_as_the_library_does() {
    let cases = cases("parse.json");
    assert!(cases.len() >= 15);
    for case in cases {
        let mut parser = match case["start"].as_str().unwrap() {
            "completion" => Parser::new(full()),
            _ => Parser::for_conversation(full()),
        }
        .unwrap();
        for (token, delta) in ids(&case).into_iter().zip(case["deltas"].as_array().unwrap()) {
            let events = parser.push(token);
            let text = events.iter().find_map(|event| match event {
                Event::Delta(text) => Some(text.as_str()),
                Event::Start(_) | Event::End(_) => None,
            });
            assert_eq!(text, delta.as_str(), "{}", case["name"]);
        }
        parser.finish();
        let expected: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        assert_eq!(parser.into_messages(), expected, "{}", case["name"]);
    }
}

/// What is rendered comes back, but for what rendering leaves out: configurations become their text, and several
/// contents one.
#[test]
fn rendered_conversations_come_back() {
    let renderer = Renderer::new(full()).unwrap();
    for case in cases("conversations.json") {
        let conversation: Conversation = serde_json::from_value(case["conversation"].clone()).unwrap();
        let tokens = renderer.render(&conversation, History::KeepAll);
        let mut parser = Parser::for_conversation(full()).unwrap();
        tokens.iter().for_each(|&token| drop(parser.push(token)));
        let parsed = parser.into_messages();
        let again = renderer.render(&Conversation::new(parsed.clone()), History::KeepAll);
        // A call to everyone is written without the recipient, and so comes back as no call.
        let is_same = case["name"] == "recipient all" || full().decode(&again) == full().decode(&tokens);
        assert!(is_same, "{}", case["name"]);
        assert_eq!(parsed.len(), conversation.messages.len(), "{}", case["name"]);
        for (parsed, sent) in parsed.iter().zip(&conversation.messages) {
            assert_eq!(parsed.role, sent.role, "{}", case["name"]);
            assert_eq!(parsed.channel, sent.channel, "{}", case["name"]);
            assert_eq!(parsed.content_type, sent.content_type, "{}", case["name"]);
            assert_eq!(parsed.recipient, sent.recipient.clone().filter(|to| to != "all"), "{}", case["name"]);
            let is_text = serde_json::to_value(&sent.content[0]).unwrap()["type"] == "text";
            assert!(!is_text || parsed.text() == sent.text(), "{}", case["name"]);
        }
    }
}
