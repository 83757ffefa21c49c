//! Tokens of an answer as they come, sorted into what is said and what is thought, up to a stop string.

use tessera_harmony::message::{Channel, Message, Role};
use tessera_harmony::parse::{Event, Header, Parser};
use tessera_harmony::tokenizer::{StreamDecoder, Tokenizer};
use tessera_model::Token;

use crate::session::Flow;

/// A part of an answer, for the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The final channel; text without a channel, too: a model that forgets the header still answers.
    Text(String),
    /// Every other channel.
    Reasoning(String),
}

/// An answer on its way.
pub struct Answer {
    reader: Reader,
    stop_ids: Vec<Token>,
    stops: StopStrings,
    pub text: String,
    pub reasoning: String,
    pub tokens: Vec<Token>,
}

enum Reader {
    Harmony { parser: Box<Parser>, voice: Voice },
    Raw(StreamDecoder, Tokenizer),
    Ids,
}

/// How the message that comes in is shown.
#[derive(Clone, Copy)]
enum Voice {
    Text,
    Reasoning,
}

impl Answer {
    /// Reads harmony messages, after a prompt that ends in `<|start|>assistant`.
    pub fn harmony(tokenizer: &Tokenizer, stop_ids: Vec<Token>, stops: Vec<String>) -> anyhow::Result<Self> {
        let parser = Box::new(Parser::new(tokenizer)?);
        Ok(Self::new(Reader::Harmony { parser, voice: Voice::Text }, stop_ids, stops))
    }

    /// Reads plain text.
    pub fn raw(tokenizer: &Tokenizer, stop_ids: Vec<Token>, stops: Vec<String>) -> Self {
        Self::new(Reader::Raw(StreamDecoder::new(tokenizer), tokenizer.clone()), stop_ids, stops)
    }

    /// Only counts tokens.
    pub fn ids(stop_ids: Vec<Token>) -> Self {
        Self::new(Reader::Ids, stop_ids, Vec::new())
    }

    fn new(reader: Reader, stop_ids: Vec<Token>, stops: Vec<String>) -> Self {
        let (text, reasoning) = Default::default();
        Self { reader, stop_ids, stops: StopStrings::new(stops), text, reasoning, tokens: Vec::new() }
    }

    /// Takes a token; `show` gets what may be shown by now.
    pub fn push(&mut self, token: Token, show: &mut dyn FnMut(Piece) -> anyhow::Result<()>) -> anyhow::Result<Flow> {
        self.tokens.push(token);
        let ends = self.stop_ids.contains(&token);
        let pieces = match &mut self.reader {
            Reader::Harmony { parser, voice } => pieces(parser.push(token), voice),
            Reader::Raw(_, tokenizer) if ends || tokenizer.is_control(token) => Vec::new(),
            Reader::Raw(decoder, _) => vec![Piece::Text(decoder.push(token))],
            Reader::Ids => Vec::new(),
        };
        for piece in pieces {
            if self.take(piece, show)? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(if ends { Flow::Stop } else { Flow::Continue })
    }

    /// The tokens are all there: shows what was held back.
    pub fn finish(&mut self, show: &mut dyn FnMut(Piece) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let pieces = match &mut self.reader {
            Reader::Harmony { parser, voice } => pieces(parser.finish(), voice),
            Reader::Raw(decoder, _) => vec![Piece::Text(decoder.finish())],
            Reader::Ids => Vec::new(),
        };
        for piece in pieces {
            self.take(piece, show)?;
        }
        let rest = self.stops.finish();
        self.say(rest, show)
    }

    /// The answer's messages, for the conversation; none unless it was harmony.
    pub fn into_messages(self) -> Vec<Message> {
        match self.reader {
            Reader::Harmony { parser, .. } => parser.into_messages(),
            Reader::Raw(..) | Reader::Ids => Vec::new(),
        }
    }

    fn take(&mut self, piece: Piece, show: &mut dyn FnMut(Piece) -> anyhow::Result<()>) -> anyhow::Result<Flow> {
        match piece {
            Piece::Reasoning(text) => {
                self.reasoning.push_str(&text);
                show(Piece::Reasoning(text))?;
                Ok(Flow::Continue)
            }
            Piece::Text(text) => {
                let (free, flow) = self.stops.push(&text);
                self.say(free, show)?;
                Ok(flow)
            }
        }
    }

    fn say(&mut self, text: String, show: &mut dyn FnMut(Piece) -> anyhow::Result<()>) -> anyhow::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.text.push_str(&text);
        show(Piece::Text(text))
    }
}

fn pieces(events: Vec<Event>, voice: &mut Voice) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for event in events {
        match (event, *voice) {
            (Event::Start(header), _) => *voice = voice_of(&header),
            (Event::Delta(text), Voice::Text) => pieces.push(Piece::Text(text)),
            (Event::Delta(text), Voice::Reasoning) => pieces.push(Piece::Reasoning(text)),
            (Event::End(_), _) => {}
        }
    }
    pieces
}

fn voice_of(header: &Header) -> Voice {
    let is_answer = matches!(header.channel, None | Some(Channel::Final));
    if header.role == Role::Assistant && is_answer && header.recipient.is_none() {
        Voice::Text
    } else {
        Voice::Reasoning
    }
}

/// Looks for stop strings in text that comes in pieces, and holds back what may be the beginning of one.
struct StopStrings {
    stops: Vec<String>,
    held: String,
    /// A stop string was found; nothing comes after.
    done: bool,
}

impl StopStrings {
    fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), done: false }
    }

    /// What is free to be shown, and whether a stop string was found (it is not shown, nor what follows).
    fn push(&mut self, text: &str) -> (String, Flow) {
        if self.done {
            return (String::new(), Flow::Stop);
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.done = true;
            return (std::mem::take(&mut self.held), Flow::Stop);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, held), Flow::Continue)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).rev();
    ends.into_iter().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds one character at a time; `expect` is what was shown after each, joined by `|`.
    fn check(stops: &[&str], text: &str, expect: &str) {
        let mut filter = StopStrings::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut shown = Vec::new();
        for c in text.chars() {
            let (free, flow) = filter.push(&c.to_string());
            shown.push(free);
            if flow == Flow::Stop {
                shown.push("STOP".to_owned());
                break;
            }
        }
        shown.push(filter.finish());
        assert_eq!(shown.join("|"), expect, "{stops:?} in {text:?}");
    }

    #[test]
    fn stop_strings_are_found_across_pieces() {
        check(&[], "abc", "a|b|c|");
        check(&["bc"], "abcd", "a|||STOP|");
        check(&["bcx"], "abcd", "a|||bcd|");
        check(&["aab"], "aaab", "||a||STOP|");
        check(&["bcd", "c"], "abcd", "a||b|STOP|");
        check(&["ende"], "ein end", "|ei|n| ||||end");
        check(&["é!"], "né!", "n|||STOP|");
    }
}
