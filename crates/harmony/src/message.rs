//! A conversation as data: what is rendered for the model, parsed from it, and saved as JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::tools::{BuiltinTool, FunctionTool};

/// The messages so far, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    pub messages: Vec<Message>,
}

/// One message. Build it with a constructor, refine it with the `with_` methods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    /// The tool that speaks, such as `functions.get_weather`; rarely the name of a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whom the message is for: a tool, or `assistant` for a tool's result. `None` is everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<ContentType>,
    pub content: Vec<Content>,
}

/// Who speaks, in falling order of authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// What an assistant message is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Reasoning; not for the user.
    Analysis,
    /// Function calls, and preambles that announce them to the user.
    Commentary,
    /// The answer.
    Final,
    /// Anything else that a model wrote.
    Other(String),
}

/// How the content is to be read; as JSON it is written the way the header has it: `json` or `<|constrain|>json`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ContentType {
    /// `code`, or `json` as a mere label.
    Plain(String),
    /// Announced by `<|constrain|>`: sampling may be held to this format.
    Constrained(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Content {
    Text { text: String },
    System(SystemConfig),
    Developer(DeveloperConfig),
}

/// What the system message states. The default is what the model was trained with, without a date.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemConfig {
    pub model_identity: Option<String>,
    /// Such as `2024-06`.
    pub knowledge_cutoff: Option<String>,
    /// Such as `2025-06-28`.
    pub current_date: Option<String>,
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Channels the model must choose from; none leaves the sentence out.
    pub channels: Vec<Channel>,
    pub builtin_tools: Vec<BuiltinTool>,
}

/// What other formats call the system prompt, with functions and formats for the answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeveloperConfig {
    pub instructions: Option<String>,
    /// The `functions` namespace.
    pub functions: Vec<FunctionTool>,
    pub response_formats: Vec<ResponseFormat>,
}

/// A format the final answer should keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseFormat {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema.
    pub schema: serde_json::Value,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEffort {
    Low,
    #[default]
    Medium,
    High,
}

impl Conversation {
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { messages: messages.into_iter().collect() }
    }

    /// Whether any developer message offers functions; the system message then says where calls go.
    pub fn has_functions(&self) -> bool {
        let offers = |content: &Content| matches!(content, Content::Developer(config) if !config.functions.is_empty());
        self.messages.iter().flat_map(|message| &message.content).any(offers)
    }
}

impl Message {
    pub fn new(role: Role, content: Content) -> Self {
        Self { role, name: None, recipient: None, channel: None, content_type: None, content: vec![content] }
    }

    pub fn system(config: SystemConfig) -> Self {
        Self::new(Role::System, Content::System(config))
    }

    pub fn developer(config: DeveloperConfig) -> Self {
        Self::new(Role::Developer, Content::Developer(config))
    }

    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, Content::text(text))
    }

    pub fn assistant(channel: Channel, text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, Content::text(text)).with_channel(channel)
    }

    /// The assistant's call of `function` (full name, such as `functions.get_weather`) with JSON `arguments`.
    pub fn function_call(function: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self::assistant(Channel::Commentary, arguments)
            .with_recipient(function)
            .with_content_type(ContentType::Constrained("json".to_owned()))
    }

    /// What `tool` (full name) answered, for the channel that it was called on.
    pub fn tool_result(tool: impl Into<String>, channel: Channel, output: impl Into<String>) -> Self {
        Self::new(Role::Tool, Content::text(output)).with_name(tool).with_recipient("assistant").with_channel(channel)
    }

    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    pub fn with_recipient(self, recipient: impl Into<String>) -> Self {
        Self { recipient: Some(recipient.into()), ..self }
    }

    pub fn with_channel(self, channel: Channel) -> Self {
        Self { channel: Some(channel), ..self }
    }

    pub fn with_content_type(self, content_type: ContentType) -> Self {
        Self { content_type: Some(content_type), ..self }
    }

    /// The text contents, joined.
    pub fn text(&self) -> String {
        let text = |content: &Content| match content {
            Content::Text { text } => Some(text.clone()),
            Content::System(_) | Content::Developer(_) => None,
        };
        self.content.iter().filter_map(text).collect()
    }

    /// Whether this is the assistant calling a tool.
    pub fn is_tool_call(&self) -> bool {
        self.role == Role::Assistant && self.recipient.is_some()
    }
}

impl Content {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self {
            model_identity: Some("You are ChatGPT, a large language model trained by OpenAI.".to_owned()),
            knowledge_cutoff: Some("2024-06".to_owned()),
            current_date: None,
            reasoning_effort: Some(ReasoningEffort::Medium),
            channels: vec![Channel::Analysis, Channel::Commentary, Channel::Final],
            builtin_tools: Vec::new(),
        }
    }
}

impl Role {
    /// The role's name in a header; a tool has its own name there instead.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl ReasoningEffort {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

impl Channel {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Analysis => "analysis",
            Self::Commentary => "commentary",
            Self::Final => "final",
            Self::Other(name) => name,
        }
    }
}

impl From<&str> for Channel {
    fn from(name: &str) -> Self {
        match name {
            "analysis" => Self::Analysis,
            "commentary" => Self::Commentary,
            "final" => Self::Final,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// How a header writes [`ContentType::Constrained`].
const CONSTRAIN: &str = "<|constrain|>";

impl From<&str> for ContentType {
    fn from(text: &str) -> Self {
        match text.strip_prefix(CONSTRAIN) {
            Some(format) => Self::Constrained(format.trim_start().to_owned()),
            None => Self::Plain(text.to_owned()),
        }
    }
}

impl std::fmt::Display for ContentType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(name) => f.write_str(name),
            Self::Constrained(format) => write!(f, "{CONSTRAIN}{format}"),
        }
    }
}

impl Serialize for Channel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Channel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Self::from(name.as_str()))
    }
}

impl Serialize for ContentType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::from(text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_come_back_from_json() {
        let schema = serde_json::json!({"type": "object", "properties": {"z": {}, "a": {}}});
        let formats = vec![ResponseFormat { name: "list".into(), description: None, schema: schema.clone() }];
        let functions = vec![FunctionTool::new("f", "does f", Some(schema))];
        let developer = DeveloperConfig { instructions: Some("be brief".into()), functions, response_formats: formats };
        let builtin_tools = vec![BuiltinTool::Python];
        let conversation = Conversation::new([
            Message::system(SystemConfig { builtin_tools, ..SystemConfig::default() }),
            Message::developer(developer),
            Message::user("hi").with_name("bob"),
            Message::assistant(Channel::Other("odd".into()), "x").with_content_type(ContentType::Plain("code".into())),
            Message::function_call("functions.f", "{}"),
            Message::tool_result("functions.f", Channel::Commentary, "1"),
        ]);
        let json = serde_json::to_string(&conversation).unwrap();
        assert_eq!(serde_json::from_str::<Conversation>(&json).unwrap(), conversation);
        assert!(
            json.contains(r#""channel":"odd""#) && json.contains(r#""content_type":"<|constrain|>json""#),
            "{json}"
        );
    }

    #[test]
    fn a_hand_written_chat_needs_only_role_and_content() {
        let json = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "system", "content": [{"type": "system", "reasoning_effort": "high"}]}]}"#;
        let conversation: Conversation = serde_json::from_str(json).unwrap();
        let system = SystemConfig { reasoning_effort: Some(ReasoningEffort::High), ..SystemConfig::default() };
        assert_eq!(conversation, Conversation::new([Message::user("hi"), Message::system(system)]));
    }
}
