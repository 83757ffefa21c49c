use tessera_harmony::message::{Conversation, SystemConfig};
use tessera_harmony::render::{History, Renderer};
use tessera_harmony::tools::{FunctionTool, render_functions};

use super::{cases, full, ids};

/// Conversations are written in the fixture as a chat is saved; `null` means left out, as an absent key the default.
fn conversation(case: &serde_json::Value) -> Conversation {
    serde_json::from_value(case["conversation"].clone()).unwrap_or_else(|e| panic!("{}: {e}", case["name"]))
}

#[test]
fn conversations_are_rendered_as_the_library_does() {
    let renderer = Renderer::new(full()).unwrap();
    let cases = cases("conversations.json");
    assert!(cases.len() >= 50);
    for case in cases {
        let tokens = renderer.render_for_completion(&conversation(&case), History::default());
        assert_eq!(full().decode(&tokens), case["text"].as_str().unwrap(), "{}", case["name"]);
        assert_eq!(tokens, ids(&case), "{}", case["name"]);
    }
}

#[test]
fn tools_are_rendered_as_the_library_does() {
    let cases = cases("tools.json");
    assert!(cases.len() >= 250);
    for case in cases {
        let function: FunctionTool = serde_json::from_value(case["function"].clone()).unwrap();
        assert_eq!(render_functions(&[function]), case["text"].as_str().unwrap(), "{}", case["function"]);
    }
}

#[test]
fn history_can_be_kept_whole() {
    let renderer = Renderer::new(full()).unwrap();
    let case = cases("conversations.json").into_iter().find(|case| case["name"] == "analysis dropped twice").unwrap();
    let text = |history| full().decode(&renderer.render(&conversation(&case), history));
    assert!(!text(History::default()).contains("analysis"));
    assert_eq!(text(History::KeepAll).matches("<|channel|>analysis").count(), 2);
}

#[test]
fn typed_control_tokens_open_no_message() {
    let start = full().specials().unwrap().start;
    for case in cases("conversations.json") {
        let conversation = conversation(&case);
        let shown = Renderer::new(full()).unwrap().render(&conversation, History::KeepAll);
        let starts = shown.iter().filter(|&&token| token == start).count();
        assert_eq!(starts, conversation.messages.len(), "{}", case["name"]);
    }
}

#[test]
fn the_default_system_message_is_the_trained_one() {
    assert_eq!(serde_json::from_str::<SystemConfig>("{}").unwrap(), SystemConfig::default());
}
