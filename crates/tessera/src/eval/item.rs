//! Items: a conversation as OpenAI's chat API has it, and a check of the answer. One JSON object a line.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tessera_harmony::message::{
    Channel, Conversation, DeveloperConfig, Message, ReasoningEffort, ResponseFormat, Role, SystemConfig,
};
use tessera_harmony::tools::FunctionTool;

use super::check::Check;

/// The family of items that name none.
const NO_FAMILY: &str = "other";

/// One question with its past, and how to tell a right answer.
pub struct Item {
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
    check: Check,
    /// For the reader.
    #[serde(default, rename = "id")]
    _id: Value,
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    #[serde(default)]
    content: Option<ChatContent>,
    /// What an assistant thought before it called a tool.
    #[serde(alias = "reasoning_content", alias = "reasoning")]
    thinking: Option<String>,
    #[serde(default, deserialize_with = "null_as_none")]
    tool_calls: Vec<ToolCall>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ChatContent {
    Text(String),
    Parts(Vec<TextPart>),
}

#[derive(Deserialize)]
struct TextPart {
    text: String,
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
    json_schema: ResponseFormat,
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
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let items: Vec<Item> = lines
        .map(|(n, line)| parse(line).with_context(|| format!("{file}, line {}", n + 1)))
        .collect::<anyhow::Result<_>>()?;
    ensure!(!items.is_empty(), "{file}: no items; expected one JSON object with messages and check a line");
    Ok(items)
}

fn parse(line: &str) -> anyhow::Result<Item> {
    let line: Line = serde_json::from_str(line)
        .context("expected an item such as {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}], \"check\": {\"equals\": \"...\"}}")?;
    Ok(Item {
        family: line.family.clone().unwrap_or_else(|| NO_FAMILY.to_owned()),
        check: line.check.clone(),
        conversation: line.conversation()?,
    })
}

impl Line {
    fn conversation(self) -> anyhow::Result<Conversation> {
        let mut conversation = Conversation::new([Message::system(SystemConfig {
            current_date: self.current_date,
            reasoning_effort: Some(self.reasoning_effort.unwrap_or_default()),
            ..SystemConfig::default()
        })]);
        let is_instruction = |m: &ChatMessage| m.role == "system" || m.role == "developer";
        let instructions: Vec<String> =
            self.messages.iter().filter(|m| is_instruction(m)).map(ChatMessage::text).collect();
        let developer = DeveloperConfig {
            instructions: (!instructions.is_empty()).then(|| instructions.join("\n\n")),
            functions: self.tools.into_iter().map(|tool| tool.function).collect(),
            response_formats: self.response_format.map(|format| format.json_schema).into_iter().collect(),
        };
        if developer != DeveloperConfig::default() {
            conversation.messages.push(Message::developer(developer));
        }
        let mut calls = HashMap::new();
        for message in self.messages.iter().filter(|m| !is_instruction(m)) {
            message.push_to(&mut conversation.messages, &mut calls)?;
        }
        let asks = |last: &Message| matches!(last.role, Role::User | Role::Tool);
        ensure!(
            conversation.messages.last().is_some_and(asks),
            "messages: expected the last one to be the user's or a tool's"
        );
        Ok(conversation)
    }
}

impl ChatMessage {
    fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(ChatContent::Text(text)) => text.clone(),
            Some(ChatContent::Parts(parts)) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }

    /// Adds the harmony messages that this one means; `calls` has the names of the functions called, by call id.
    fn push_to(&self, messages: &mut Vec<Message>, calls: &mut HashMap<String, String>) -> anyhow::Result<()> {
        match self.role.as_str() {
            "user" => messages.push(Message::user(self.text())),
            "assistant" => {
                if let Some(thinking) = &self.thinking {
                    messages.push(Message::assistant(Channel::Analysis, thinking));
                }
                let calls_tools = !self.tool_calls.is_empty();
                if !calls_tools || !self.text().is_empty() {
                    // What is said beside a call is a preamble: it announces the call.
                    let channel = if calls_tools { Channel::Commentary } else { Channel::Final };
                    messages.push(Message::assistant(channel, self.text()));
                }
                for call in &self.tool_calls {
                    calls.insert(call.id.clone(), call.function.name.clone());
                    let name = format!("functions.{}", call.function.name);
                    messages.push(Message::function_call(name, &call.function.arguments));
                }
            }
            "tool" => {
                let called = self.tool_call_id.as_ref().and_then(|id| calls.get(id));
                let name = self.name.as_ref().or(called);
                let name = name.context("a tool message needs a name, or the tool_call_id of an earlier call")?;
                messages.push(Message::tool_result(format!("functions.{name}"), Channel::Commentary, self.text()));
            }
            role => bail!("messages: role {role:?}, expected system, developer, user, assistant or tool"),
        }
        Ok(())
    }
}
