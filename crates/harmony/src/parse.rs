//! Tokens to messages, one token at a time.
//!
//! The parser is total: every token sequence means some messages, whatever the model writes. Text is never lost: the
//! headers' raw text and the deltas, joined, are the decoded text of all tokens but the control tokens.
//!
//! A message is `<|start|>` header `<|message|>` content, and one of `<|end|>`, `<|return|>`, `<|call|>`,
//! `<|endoftext|>`. Where the model strays from that:
//! * content that should be a header (no `<|message|>`) is content as soon as it cannot be a header any more;
//! * `<|start|>` or `<|channel|>` inside content ends the message, and begins the next;
//! * text between messages is a message of the assistant's without a channel;
//! * other control tokens inside content say nothing.

use crate::message::{Channel, Content, ContentType, Message, Role};
use crate::tokenizer::{Specials, Tokenizer, TokenizerError, Utf8Stream};

mod header;

use header::{Draft, Part};

/// What a token has brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A message begins; deltas up to its end belong to it.
    Start(Header),
    /// More of the message's content, never empty.
    Delta(String),
    /// The message that began last is complete.
    End(Ending),
}

/// Who speaks to whom, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub role: Role,
    /// The tool that speaks, or a user's name.
    pub name: Option<String>,
    pub channel: Option<Channel>,
    pub recipient: Option<String>,
    pub content_type: Option<ContentType>,
    /// The header's text as it was generated, without control tokens.
    pub raw: String,
}

/// What ended a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// `<|end|>`: another message follows.
    End,
    /// `<|return|>`: the answer is complete.
    Return,
    /// `<|call|>`: a tool is to answer.
    Call,
    /// `<|endoftext|>`.
    EndOfText,
    /// The next message began without an end of this one.
    NextMessage,
    /// The tokens ran out.
    Truncated,
}

/// A streaming parser. Feed it with [`Parser::push`], close it with [`Parser::finish`].
#[derive(Debug, Clone)]
pub struct Parser {
    tokenizer: Tokenizer,
    specials: Specials,
    state: State,
    utf8: Utf8Stream,
    messages: Vec<Message>,
}

#[derive(Debug, Clone)]
enum State {
    Between,
    InHeader(Draft),
    InContent(Open),
}

/// A message whose content is coming in.
#[derive(Debug, Clone)]
struct Open {
    header: Header,
    text: String,
    marker: Marker,
}

/// Whether `<|message|>` was seen; without it, and without anything else, there was no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Seen,
    Missing,
}

impl Parser {
    /// A parser for what the model generates after [`crate::render::Renderer::render_for_completion`]: the header of an
    /// assistant message has begun already.
    ///
    /// # Errors
    /// When the tokenizer lacks a harmony control token.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        Self::in_state(tokenizer, State::InHeader(Draft::of_assistant()))
    }

    /// A parser for whole conversations, that begin with `<|start|>`.
    ///
    /// # Errors
    /// When the tokenizer lacks a harmony control token.
    pub fn for_conversation(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        Self::in_state(tokenizer, State::Between)
    }

    fn in_state(tokenizer: &Tokenizer, state: State) -> Result<Self, TokenizerError> {
        let specials = tokenizer.specials()?;
        Ok(Self { tokenizer: tokenizer.clone(), specials, state, utf8: Utf8Stream::default(), messages: Vec::new() })
    }

    /// Takes the next token and says what it brought about, in the order of happening: often nothing or one delta.
    pub fn push(&mut self, token: u32) -> Vec<Event> {
        let mut events = Vec::new();
        let mut text = String::new();
        if !self.tokenizer.is_control(token) {
            self.utf8.push(self.tokenizer.token_bytes(token).unwrap_or_default(), &mut text);
            self.take_text(text, &mut events);
            return events;
        }
        self.utf8.finish(&mut text);
        self.take_text(text, &mut events);
        self.take_control(token, &mut events);
        events
    }

    /// Ends the message that is open, if any: the tokens have run out. After this the parser expects a new message.
    pub fn finish(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut text = String::new();
        self.utf8.finish(&mut text);
        self.take_text(text, &mut events);
        self.end(Ending::Truncated, &mut events);
        events
    }

    /// The header of the message whose content is coming in.
    pub fn header(&self) -> Option<&Header> {
        match &self.state {
            State::InContent(open) => Some(&open.header),
            State::Between | State::InHeader(_) => None,
        }
    }

    /// The complete messages so far. Their content is one text each, possibly empty.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// As [`Parser::messages`]; a message still open is lost: call [`Parser::finish`] before.
    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    fn take_text(&mut self, text: String, events: &mut Vec<Event>) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Between => {
                self.begin_content(Draft::of_assistant().into_header(), Marker::Missing, events);
                self.add_content(text, events);
            }
            State::InHeader(draft) => {
                draft.push(&text);
                if let Some(at) = draft.end_of_impossible_header() {
                    let (header, content) = std::mem::take(draft).split(at);
                    self.begin_content(header, Marker::Missing, events);
                    self.add_content(content, events);
                }
            }
            State::InContent(_) => self.add_content(text, events),
        }
    }

    fn take_control(&mut self, token: u32, events: &mut Vec<Event>) {
        let specials = self.specials;
        if token == specials.start {
            self.end(Ending::NextMessage, events);
            self.state = State::InHeader(Draft::default());
        } else if token == specials.channel {
            self.begin_part(Part::Channel, events);
        } else if token == specials.constrain && !matches!(self.state, State::InContent(_)) {
            self.begin_part(Part::Constrain, events);
        } else if token == specials.message {
            self.take_message_marker(events);
        } else if let Some(ending) = self.ending_of(token) {
            self.end(ending, events);
        }
    }

    fn ending_of(&self, token: u32) -> Option<Ending> {
        let Specials { end, return_, call, endoftext, .. } = self.specials;
        let endings =
            [(end, Ending::End), (return_, Ending::Return), (call, Ending::Call), (endoftext, Ending::EndOfText)];
        endings.into_iter().find(|&(id, _)| id == token).map(|(_, ending)| ending)
    }

    fn begin_part(&mut self, part: Part, events: &mut Vec<Event>) {
        if let State::InHeader(draft) = &mut self.state {
            draft.begin(part);
            return;
        }
        self.end(Ending::NextMessage, events);
        let mut draft = Draft::of_assistant();
        draft.begin(part);
        self.state = State::InHeader(draft);
    }

    fn take_message_marker(&mut self, events: &mut Vec<Event>) {
        let draft = match &mut self.state {
            State::Between => Draft::of_assistant(),
            State::InHeader(draft) => std::mem::take(draft),
            State::InContent(_) => return,
        };
        self.begin_content(draft.into_header(), Marker::Seen, events);
    }

    fn begin_content(&mut self, header: Header, marker: Marker, events: &mut Vec<Event>) {
        events.push(Event::Start(header.clone()));
        self.state = State::InContent(Open { header, text: String::new(), marker });
    }

    fn add_content(&mut self, text: String, events: &mut Vec<Event>) {
        if let State::InContent(open) = &mut self.state
            && !text.is_empty()
        {
            open.text.push_str(&text);
            events.push(Event::Delta(text));
        }
    }

    /// Ends what is open. A header without content becomes a message, too, unless it says nothing at all.
    fn end(&mut self, ending: Ending, events: &mut Vec<Event>) {
        if let State::InHeader(draft) = &mut self.state {
            let draft = std::mem::take(draft);
            if !draft.is_blank() {
                let at = draft.end_of_certain_header();
                let (header, content) = draft.split(at);
                self.begin_content(header, Marker::Missing, events);
                self.add_content(content, events);
            }
        }
        if let State::InContent(open) = std::mem::replace(&mut self.state, State::Between) {
            events.push(Event::End(ending));
            self.messages.extend(open.into_message());
        }
    }
}

impl Open {
    fn into_message(self) -> Option<Message> {
        let Header { role, name, channel, recipient, content_type, raw: _ } = self.header;
        let says_nothing = channel.is_none() && recipient.is_none() && content_type.is_none() && self.text.is_empty();
        if says_nothing && self.marker == Marker::Missing {
            return None;
        }
        let content = vec![Content::Text { text: self.text }];
        Some(Message { role, name, recipient, channel, content_type, content })
    }
}

#[cfg(test)]
mod tests;
