//! Items: a conversation as OpenAI's chat API has it, and a check of the answer. One JSON object a line.

use std::collections::HashMap;

use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tessera_harmony::message::{
    Channel, Conversation, DeveloperConfig, Message, ReasoningEffort, ResponseFormat, Role, SystemConfig,
};
use tessera_harmony::tools::FunctionTool;

use super::check::Check;
use crate::date;

/// The family of items that name none.
const NO_FAMILY: &str = "other";
/// Some editors write it in front of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// One question with its past, and how to tell a right answer.
pub struct Item {
    /// `FILE:LINE`, for errors.
    pub place: String,
    /// What the table sums by.
    pub family: String,
    pub conversation: Conversation,
    pub check: Check,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    family: Option<String>,
    reasoning_effort: Option<ReasoningEffort>,
    /// The date that the model is told; none otherwise, so that results repeat.
    current_date: Option<String>,
    messages: Vec<ChatMessage>,
    #[serde(default, deserialize_with = "null_as_none")]
    tools: Vec<Tool>,
    response_format: Option<Format>,
    check: Value,
    /// For the reader.
    #[serde(default, rename = "id")]
    _id: Value,
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    /// Text, or a list of parts.
    #[serde(default)]
    content: Value,
    /// What an assistant thought before it called a tool.
    #[serde(alias = "reasoning_content", alias = "reasoning")]
    thinking: Option<String>,
    #[serde(default, deserialize_with = "null_as_none")]
    tool_calls: Vec<ToolCall>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct ToolCall {
    #[serde(default)]
    id: String,
    function: CalledFunction,
}

#[derive(Deserialize)]
struct CalledFunction {
    name: String,
    /// JSON in a string.
    arguments: String,
}

#[derive(Deserialize)]
struct Tool {
    function: FunctionTool,
}

#[derive(Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: Option<String>,
    json_schema: Option<ResponseFormat>,
}

/// Clients write `null` where there are none.
fn null_as_none<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads items from JSON lines; `file` is what errors call it. Empty lines are skipped.
///
/// # Errors
/// The first line that is no item, with its number and what is wrong; or that there is none.
pub fn read(file: &str, text: &str) -> anyhow::Result<Vec<Item>> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let item = |(n, line)| {
        let place = format!("{file}:{}", n + 1);
        parse(line, &place).context(place)
    };
    let items: Vec<Item> = lines.map(item).collect::<anyhow::Result<_>>()?;
    ensure!(!items.is_empty(), "{file}: no items; expected one JSON object with messages and check a line");
    Ok(items)
}

fn parse(line: &str, place: &str) -> anyhow::Result<Item> {
    if line.trim_start().starts_with('[') {
        bail!("found an array, expected an item; write each item as one object on a line of its own, without a list");
    }
    let line: Line = serde_json::from_str(line).map_err(|error| {
        anyhow!(
            "{}; expected an item such as {{\"messages\": [{{\"role\": \"user\", \"content\": \"...\"}}], \"check\": \
             {{\"equals\": \"...\"}}}}",
            in_one_line(&error)
        )
    })?;
    let family = line.family.clone().unwrap_or_else(|| NO_FAMILY.to_owned());
    ensure!(
        !family.is_empty() && !family.contains(char::is_control),
        "family: found {family:?}, expected a name without control characters"
    );
    let check = Check::parse(&line.check).context("check")?;
    Ok(Item { place: place.to_owned(), family, check, conversation: line.conversation()? })
}

/// The error without the number of the line, of which there is one alone.
fn in_one_line(error: &serde_json::Error) -> String {
    let (text, column) = (error.to_string(), error.column());
    let end = format!(" at line {} column {column}", error.line());
    text.strip_suffix(&end).map_or(text.clone(), |what| format!("column {column}: {what}"))
}

impl Line {
    fn conversation(self) -> anyhow::Result<Conversation> {
        let current_date = self.current_date.as_deref().map(date::parse).transpose();
        let mut conversation = Conversation::new([Message::system(SystemConfig {
            current_date: current_date.map_err(|error| anyhow!("current_date: {error}"))?,
            reasoning_effort: Some(self.reasoning_effort.unwrap_or_default()),
            ..SystemConfig::default()
        })]);
        let (mut instructions, mut messages, mut calls) = (Vec::new(), Vec::new(), HashMap::new());
        for (i, message) in self.messages.iter().enumerate() {
            let at = || format!("messages[{i}]");
            match message.role.as_str() {
                "system" | "developer" => instructions.push(message.text().with_context(at)?),
                _ => message.push_to(&mut messages, &mut calls).with_context(at)?,
            }
        }
        let asks = |last: &Message| matches!(last.role, Role::User | Role::Tool);
        ensure!(messages.last().is_some_and(asks), "messages: expected the last one to be the user's or a tool's");
        let format = self.response_format.map(Format::into_schema).transpose().context("response_format")?;
        let developer = DeveloperConfig {
            instructions: (!instructions.is_empty()).then(|| instructions.join("\n\n")),
            functions: self.tools.into_iter().map(|tool| tool.function).collect(),
            response_formats: format.flatten().into_iter().collect(),
        };
        if developer != DeveloperConfig::default() {
            conversation.messages.push(Message::developer(developer));
        }
        conversation.messages.extend(messages);
        Ok(conversation)
    }
}

impl Format {
    fn into_schema(self) -> anyhow::Result<Option<ResponseFormat>> {
        match self.kind.as_deref() {
            Some("text") => Ok(None),
            None | Some("json_schema") => self.json_schema.context("it has no json_schema").map(Some),
            Some(kind) => bail!("type {kind:?}, expected \"json_schema\" or \"text\": harmony has no words for others"),
        }
    }
}

impl ChatMessage {
    fn text(&self) -> anyhow::Result<String> {
        self.content()?.with_context(|| format!("the {}'s message has no content, expected text", self.role))
    }

    fn content(&self) -> anyhow::Result<Option<String>> {
        match &self.content {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            Value::Array(parts) => parts.iter().map(part_text).collect::<anyhow::Result<String>>().map(Some),
            other => bail!("content: found {other}, expected text or a list of text parts"),
        }
    }

    /// Adds the harmony messages that this one means; `calls` has the names of the functions called, by call id.
    fn push_to(&self, messages: &mut Vec<Message>, calls: &mut HashMap<String, String>) -> anyhow::Result<()> {
        match self.role.as_str() {
            "user" => messages.push(Message::user(self.text()?)),
            "assistant" => self.push_assistant(messages, calls)?,
            "tool" => {
                let called = self.tool_call_id.as_ref().and_then(|id| calls.get(id));
                let name = self.name.as_ref().or(called);
                let name = name.context("a tool message needs a name, or the tool_call_id of an earlier call")?;
                messages.push(Message::tool_result(format!("functions.{name}"), Channel::Commentary, self.text()?));
            }
            role => bail!("role {role:?}, expected system, developer, user, assistant or tool"),
        }
        Ok(())
    }

    fn push_assistant(&self, messages: &mut Vec<Message>, calls: &mut HashMap<String, String>) -> anyhow::Result<()> {
        let calls_tools = !self.tool_calls.is_empty();
        let text = if calls_tools { self.content()?.unwrap_or_default() } else { self.text()? };
        if let Some(thinking) = &self.thinking {
            messages.push(Message::assistant(Channel::Analysis, thinking));
        }
        if !calls_tools || !text.is_empty() {
            // What is said beside a call is a preamble: it announces the call.
            let channel = if calls_tools { Channel::Commentary } else { Channel::Final };
            messages.push(Message::assistant(channel, text));
        }
        for call in &self.tool_calls {
            calls.insert(call.id.clone(), call.function.name.clone());
            let name = format!("functions.{}", call.function.name);
            messages.push(Message::function_call(name, &call.function.arguments));
        }
        Ok(())
    }
}

fn part_text(part: &Value) -> anyhow::Result<&str> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    ensure!(kind == "text", "content: a part of type {kind:?}, expected \"text\": the model reads nothing else");
    part.get("text").and_then(Value::as_str).context("content: a part without text")
}
