use super::*;
use crate::tokenizer::tiny::byte_level_tokenizer_json;

fn tiny() -> Tokenizer {
    Tokenizer::from_bytes(byte_level_tokenizer_json(&["<|reserved|>"]).as_bytes()).unwrap()
}

/// Messages as `role[:name] [#channel] [>recipient] [=content_type] |text`, one a line.
fn summary(messages: &[Message]) -> String {
    let line = |message: &Message| {
        let mut line = message.role.as_str().to_owned();
        let channel = message.channel.as_ref().map(Channel::as_str);
        let content_type = message.content_type.as_ref().map(ContentType::to_string);
        let fields = [(":", message.name.as_deref()), (" #", channel), (" >", message.recipient.as_deref())];
        for (mark, field) in fields.into_iter().chain([(" =", content_type.as_deref())]) {
            line.extend(field.map(|field| format!("{mark}{field}")));
        }
        format!("{line} |{}", message.text())
    };
    messages.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What `text`, generated after `<|start|>assistant`, is parsed to, each token alone.
#[track_caller]
fn check(text: &str, expect: &[&str]) {
    let tokenizer = tiny();
    let mut parser = Parser::new(&tokenizer).unwrap();
    for token in tokenizer.encode_with_specials(text) {
        parser.push(token);
    }
    parser.finish();
    assert_eq!(summary(parser.messages()), expect.join("\n"), "{text}");
}

#[test]
fn well_formed() {
    check(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>hi<|return|>",
        &["assistant #analysis |hm", "assistant #final |hi"],
    );
    check("<|channel|>final<|message|><|return|>", &["assistant #final |"]);
}

#[test]
fn recipient_in_either_part() {
    let expect = ["assistant #commentary >functions.f =<|constrain|>json |{}"];
    check(" to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>", &expect);
    check("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", &expect);
    check("<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>", &expect);
    check("<|channel|>commentary to= functions.f <|constrain|> json<|message|>{}<|call|>", &expect);
    check("<|channel|>commentary <|constrain|>json to=functions.f<|message|>{}<|call|>", &expect);
    check("<|channel|>commentary json to=f<|message|>{}<|call|>", &["assistant #commentary >f =json |{}"]);
    check("<|channel|>commentary json<|message|>{}<|call|>", &["assistant #commentary =json |{}"]);
    check("<|constrain|>json<|message|>{}<|call|>", &["assistant =<|constrain|>json |{}"]);
}

#[test]
fn speakers() {
    check("<|end|><|start|>functions.f to=assistant<|message|>1<|end|>", &["tool:functions.f >assistant |1"]);
    check("<|start|>user:bob<|message|>q<|end|>", &["user:bob |q"]);
    check("<|start|><|channel|>final<|message|>x", &["assistant #final |x"]);
    check("<|start|>to=f<|message|>x", &["assistant >f |x"]);
}

#[test]
fn no_header() {
    check("hi there, how are you?<|return|>", &["assistant |hi there, how are you?"]);
    check("hi<|return|>", &["assistant |hi"]);
    check("\n\nHello, you", &["assistant |\n\nHello, you"]);
    check("<|message|>hi<|end|>", &["assistant |hi"]);
    check("<|start|>assistant Hi, you", &["assistant | Hi, you"]);
    check("{\"a\": 1}<|end|>", &["assistant |{\"a\": 1}"]);
}

#[test]
fn header_without_content() {
    check("<|channel|>final", &["assistant #final |"]);
    check("<|channel|>final<|end|>", &["assistant #final |"]);
    check("<|channel|>final\nHere it is<|end|>", &["assistant #final |\nHere it is"]);
    check("<|channel|>final Here<|end|>", &["assistant #final | Here"]);
    check("<|channel|>", &[]);
    check("", &[]);
    check("<|end|><|return|>", &[]);
    check("<|start|>assistant", &[]);
}

#[test]
fn strayed_control_tokens() {
    check("<|start|>assistant<|channel|>final<|message|>x<|end|>", &["assistant #final |x"]);
    check("<|channel|>analysis<|channel|>final<|message|>x<|end|>", &["assistant #final |x"]);
    check(
        "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b",
        &["assistant #analysis |a", "assistant #final |b"],
    );
    check(
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b",
        &["assistant #analysis |a", "assistant #final |b"],
    );
    check("<|channel|>final<|message|>a<|message|>b<|constrain|>c<|reserved|>d<|end|>", &["assistant #final |abcd"]);
}

#[test]
fn after_the_end() {
    check("<|channel|>final<|message|>a<|return|>junk <|end|>", &["assistant #final |a", "assistant |junk "]);
    check(
        "<|channel|>final<|message|>a<|endoftext|><|channel|>final<|message|>b",
        &["assistant #final |a", "assistant #final |b"],
    );
    check("<|channel|>final<|message|>a<|call|><|message|>b", &["assistant #final |a", "assistant |b"]);
}

#[test]
fn endless_headers_become_content() {
    let word = "w".repeat(header::MAX_HEADER_BYTES + 9);
    check(&format!("<|start|>{word}"), &[&format!("assistant |{word}")]);
    check(&format!("<|channel|>final to={word}"), &[&format!("assistant #final | to={word}")]);
}

#[test]
fn events_come_as_early_as_they_can() {
    let tokenizer = tiny();
    let mut parser = Parser::new(&tokenizer).unwrap();
    let mut push = |text: &str| -> Vec<Event> {
        tokenizer.encode_with_specials(text).into_iter().flat_map(|token| parser.push(token)).collect()
    };
    let header = |channel: Option<Channel>, raw: &str| {
        Event::Start(Header {
            role: Role::Assistant,
            name: None,
            channel,
            recipient: None,
            content_type: None,
            raw: raw.to_owned(),
        })
    };
    let delta = |text: &str| Event::Delta(text.to_owned());
    assert_eq!(push("<|channel|>final"), []);
    assert_eq!(push("<|message|>"), [header(Some(Channel::Final), "final")]);
    assert_eq!(push("é"), [delta("é")]);
    assert_eq!(push("<|start|>"), [Event::End(Ending::NextMessage)]);
    assert_eq!(push("assistant<|end|>"), [header(None, "assistant"), Event::End(Ending::End)]);
    assert_eq!(push("x"), [header(None, ""), delta("x")]);
    assert_eq!(push("<|return|>"), [Event::End(Ending::Return)]);
    assert_eq!(push("<|channel|>final no,"), [header(Some(Channel::Final), "final"), delta(" no,")]);
    assert_eq!((parser.push(0xe6), parser.finish()), (vec![], vec![delta("\u{fffd}"), Event::End(Ending::Truncated)]));
    assert_eq!((parser.finish(), parser.messages().len()), (vec![], 3));
}
