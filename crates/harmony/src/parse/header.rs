//! A message's header while it is still being generated.
//!
//! Its words, by part: the role, then `to=RECIPIENT`; after `<|channel|>` the channel's name, and the recipient if it
//! stands there; after `<|constrain|>` the content type, which may also stand alone as a last word (`json`, `code`).

use std::ops::Range;

use super::Header;
use crate::message::{Channel, ContentType, Role};

/// Text this long is no header any more; real ones have some 60 bytes.
pub(super) const MAX_HEADER_BYTES: usize = 1024;

const RECIPIENT_MARK: &str = "to=";

/// What control token the text follows: `<|start|>`, `<|channel|>` or `<|constrain|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Role,
    Channel,
    Constrain,
}

/// The header's text so far, and where its parts begin.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    raw: String,
    /// Parts after the role's, with the byte in `raw` where each begins.
    parts: Vec<(Part, usize)>,
    role: RoleSource,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum RoleSource {
    /// The role's part has a word for it.
    #[default]
    FirstWord,
    /// It is the assistant, by the prompt or by default.
    Assistant,
}

/// What a header's words say.
#[derive(Default)]
struct Reading<'a> {
    author: Option<&'a str>,
    channel: Option<&'a str>,
    recipient: Option<&'a str>,
    constrained: Option<&'a str>,
    /// A word with no other meaning, taken for a content type.
    label: Option<&'a str>,
    /// Where the last word ends that is of the header for certain: a label is so only once `<|message|>` follows.
    certain: usize,
    /// Whether some word can have no meaning in a header.
    impossible: bool,
}

impl Draft {
    /// After `<|start|>assistant`.
    pub fn of_assistant() -> Self {
        Self { role: RoleSource::Assistant, ..Self::default() }
    }

    pub fn begin(&mut self, part: Part) {
        self.parts.push((part, self.raw.len()));
    }

    pub fn push(&mut self, text: &str) {
        self.raw.push_str(text);
    }

    /// Whether nothing was said at all.
    pub fn is_blank(&self) -> bool {
        self.raw.is_empty()
    }

    /// If this cannot be a header any more: the byte where its content begins.
    pub fn end_of_impossible_header(&self) -> Option<usize> {
        let reading = self.read();
        (reading.impossible || self.raw.len() > MAX_HEADER_BYTES).then_some(reading.certain)
    }

    /// Where the content begins if no `<|message|>` comes: at a label, which was content then; else there is none.
    pub fn end_of_certain_header(&self) -> usize {
        let reading = self.read();
        if reading.label.is_some() || reading.impossible { reading.certain } else { self.raw.len() }
    }

    /// The header that ends at byte `at`, and the content that begins there.
    pub fn split(mut self, at: usize) -> (Header, String) {
        let content = self.raw.split_off(at);
        for (_, begin) in &mut self.parts {
            *begin = (*begin).min(at);
        }
        (self.into_header(), content)
    }

    pub fn into_header(self) -> Header {
        let Reading { author, channel, recipient, constrained, label, .. } = self.read();
        let (role, name) = author.map_or((Role::Assistant, None), read_author);
        let constrained = constrained.map(|format| ContentType::Constrained(format.to_owned()));
        Header {
            role,
            name,
            channel: channel.map(Channel::from),
            recipient: recipient.map(str::to_owned),
            content_type: constrained.or_else(|| label.map(|label| ContentType::Plain(label.to_owned()))),
            raw: self.raw.clone(),
        }
    }

    fn read(&self) -> Reading<'_> {
        let mut reading = Reading::default();
        let mut wants_author = self.role == RoleSource::FirstWord;
        let role_end = self.parts.first().map_or(self.raw.len(), |&(_, begin)| begin);
        let mut parts = vec![(Part::Role, 0..role_end)];
        for (n, &(part, begin)) in self.parts.iter().enumerate() {
            let end = self.parts.get(n + 1).map_or(self.raw.len(), |&(_, begin)| begin);
            parts.push((part, begin..end));
        }
        for (part, range) in parts {
            let is_last = range.end == self.raw.len();
            let mut names = match part {
                Part::Role => std::mem::take(&mut wants_author),
                Part::Channel | Part::Constrain => true,
            };
            let mut recipient_follows = false;
            for word in words(&self.raw, range) {
                let is_open = is_last && word.end == self.raw.len();
                let text = &self.raw[word.clone()];
                if let Some(recipient) = text.strip_prefix(RECIPIENT_MARK) {
                    recipient_follows = recipient.is_empty();
                    reading.recipient = Some(recipient).filter(|recipient| !recipient.is_empty());
                } else if std::mem::take(&mut recipient_follows) {
                    reading.recipient = Some(text);
                } else if std::mem::take(&mut names) {
                    *reading.name_of(part) = Some(text);
                } else if is_open && RECIPIENT_MARK.starts_with(text) && reading.label.is_some() {
                    // It may become a recipient yet.
                    continue;
                } else {
                    reading.add_label(text);
                    continue;
                }
                if !is_open && reading.label.is_none() {
                    reading.certain = word.end;
                }
            }
        }
        reading
    }
}

impl<'a> Reading<'a> {
    fn name_of(&mut self, part: Part) -> &mut Option<&'a str> {
        match part {
            Part::Role => &mut self.author,
            Part::Channel => &mut self.channel,
            Part::Constrain => &mut self.constrained,
        }
    }

    fn add_label(&mut self, text: &'a str) {
        let is_label = |c: char| c.is_ascii_alphanumeric() || "_-./+".contains(c);
        if self.label.is_some() || !text.chars().all(is_label) {
            self.impossible = true;
        } else {
            self.label = Some(text);
        }
    }
}

/// The words in `range` of `text`, as byte ranges of `text`.
fn words(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut begin = range.start;
    for word in text[range].split(char::is_whitespace) {
        let after = begin + word.len();
        if !word.is_empty() {
            words.push(begin..after);
        }
        begin = after + text[after..].chars().next().map_or(0, char::len_utf8);
    }
    words
}

/// A role, `role:name`, or else the name of a tool.
fn read_author(author: &str) -> (Role, Option<String>) {
    let (role, name) = author.split_once(':').map_or((author, None), |(role, name)| (role, Some(name.to_owned())));
    let speaker = [Role::System, Role::Developer, Role::User, Role::Assistant].into_iter().find(|r| r.as_str() == role);
    match speaker {
        Some(role) => (role, name),
        None => (Role::Tool, Some(author.to_owned())),
    }
}
