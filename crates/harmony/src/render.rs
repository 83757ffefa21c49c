//! Conversation to tokens. Control tokens are put in by id; everything else is encoded as text.

use crate::message::{Channel, Content, ContentType, Conversation, DeveloperConfig, Message, Role, SystemConfig};
use crate::tokenizer::{Specials, Tokenizer, TokenizerError};
use crate::tools;

/// Which messages of the past the model gets to see again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum History {
    /// Reasoning that has led to a final answer is left out: every analysis message before the last final one. That of
    /// a turn still calling tools stays. This is the format guide's rule; the `openai-harmony` library only looks for
    /// the first final message, and so keeps the reasoning of later turns.
    #[default]
    DropFinishedAnalysis,
    KeepAll,
}

/// Writes conversations in one vocabulary.
#[derive(Debug, Clone)]
pub struct Renderer {
    tokenizer: Tokenizer,
    specials: Specials,
}

impl Renderer {
    /// # Errors
    /// When the tokenizer lacks a harmony control token.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        Ok(Self { specials: tokenizer.specials()?, tokenizer: tokenizer.clone() })
    }

    /// The prompt for the assistant's next message: the conversation and `<|start|>assistant`. What the model then
    /// generates is for [`crate::parse::Parser::new`].
    pub fn render_for_completion(&self, conversation: &Conversation, history: History) -> Vec<u32> {
        let mut out = self.render(conversation, history);
        out.push(self.specials.start);
        self.push_text(&mut out, Role::Assistant.as_str());
        out
    }

    /// The conversation alone, every message complete.
    pub fn render(&self, conversation: &Conversation, history: History) -> Vec<u32> {
        let has_functions = conversation.has_functions();
        let mut out = Vec::new();
        for message in visible(&conversation.messages, history) {
            self.push_message(&mut out, message, has_functions);
        }
        out
    }

    fn push_message(&self, out: &mut Vec<u32>, message: &Message, has_functions: bool) {
        out.push(self.specials.start);
        self.push_header(out, message);
        out.push(self.specials.message);
        for content in &message.content {
            match content {
                Content::Text { text } => self.push_text(out, text),
                Content::System(config) => self.push_text(out, &system_text(config, has_functions)),
                Content::Developer(config) => self.push_text(out, &developer_text(config)),
            }
        }
        out.push(if message.is_tool_call() { self.specials.call } else { self.specials.end });
    }

    fn push_header(&self, out: &mut Vec<u32>, message: &Message) {
        let role = message.role.as_str();
        let mut author = match (message.role, &message.name) {
            (Role::Tool, Some(name)) => name.clone(),
            (_, Some(name)) => format!("{role}:{name}"),
            (_, None) => role.to_owned(),
        };
        if let Some(recipient) = message.recipient.as_ref().filter(|&recipient| recipient != "all") {
            author.push_str(&format!(" to={recipient}"));
        }
        self.push_text(out, &author);
        if let Some(channel) = &message.channel {
            out.push(self.specials.channel);
            self.push_text(out, channel.as_str());
        }
        match &message.content_type {
            Some(ContentType::Plain(name)) => self.push_text(out, &format!(" {name}")),
            Some(ContentType::Constrained(format)) => {
                self.push_text(out, " ");
                out.push(self.specials.constrain);
                self.push_text(out, format);
            }
            None => {}
        }
    }

    fn push_text(&self, out: &mut Vec<u32>, text: &str) {
        out.extend(self.tokenizer.encode_text(text));
    }
}

fn visible(messages: &[Message], history: History) -> impl Iterator<Item = &Message> {
    let is_final = |message: &Message| message.role == Role::Assistant && message.channel == Some(Channel::Final);
    let last_final = match history {
        History::DropFinishedAnalysis => messages.iter().rposition(is_final).unwrap_or(0),
        History::KeepAll => 0,
    };
    let finished = messages[..last_final].iter().filter(|message| message.channel != Some(Channel::Analysis));
    finished.chain(&messages[last_final..])
}

/// The system message's text: sections with an empty line between.
fn system_text(config: &SystemConfig, has_functions: bool) -> String {
    let identity = config.model_identity.clone();
    let cutoff = config.knowledge_cutoff.as_ref().map(|cutoff| format!("Knowledge cutoff: {cutoff}"));
    let date = config.current_date.as_ref().map(|date| format!("Current date: {date}"));
    let head: Vec<String> = [identity, cutoff, date].into_iter().flatten().collect();
    let mut sections = vec![head.join("\n")];
    sections.extend(config.reasoning_effort.map(|effort| format!("Reasoning: {}", effort.as_str())));
    if !config.builtin_tools.is_empty() {
        let mut builtin_tools = config.builtin_tools.clone();
        builtin_tools.sort_unstable();
        builtin_tools.dedup();
        sections.push("# Tools".to_owned());
        sections.extend(builtin_tools.into_iter().map(tools::render_builtin));
    }
    if !config.channels.is_empty() {
        let channels: Vec<&str> = config.channels.iter().map(Channel::as_str).collect();
        let channels = channels.join(", ");
        let mut line = format!("# Valid channels: {channels}. Channel must be included for every message.");
        if has_functions {
            line.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
        }
        sections.push(line);
    }
    sections.retain(|section| !section.is_empty());
    sections.join("\n\n")
}

fn developer_text(config: &DeveloperConfig) -> String {
    let mut sections = Vec::new();
    if let Some(instructions) = &config.instructions {
        sections.push(format!("# Instructions\n\n{instructions}"));
    }
    if !config.functions.is_empty() {
        sections.push(format!("# Tools\n\n{}", tools::render_functions(&config.functions)));
    }
    if !config.response_formats.is_empty() {
        sections.push("# Response Formats".to_owned());
    }
    for format in &config.response_formats {
        let description = format.description.as_deref().unwrap_or_default();
        let comment: String = description.lines().map(|line| format!("// {line}\n")).collect();
        sections.push(format!("## {}\n\n{comment}{}", format.name, format.schema));
    }
    sections.join("\n\n")
}
