//! Whether an answer is right.

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tessera_harmony::message::{Channel, Message};
use tessera_model::Token;

/// What a right answer is. An answer that was cut off is never right.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The final text, without white space around it.
    Equals(String),
    /// A part of the final text.
    Contains(String),
    /// The final text is JSON of this value.
    Json(Value),
    /// The answer ends in this call.
    ToolCall { name: String, arguments: Value },
}

/// How the generation of an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model called a tool.
    Call,
    /// The model had finished.
    Return,
    /// The limit on new tokens, or the context, was reached.
    Length,
}

impl Ending {
    /// By the last token; `call` is the id of `<|call|>`.
    pub fn of(tokens: &[Token], stop_ids: &[Token], call: Token) -> Self {
        match tokens.last() {
            Some(&last) if last == call => Self::Call,
            Some(last) if stop_ids.contains(last) => Self::Return,
            _ => Self::Length,
        }
    }

    /// As OpenAI's API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Call => "tool_calls",
            Self::Return => "stop",
            Self::Length => "length",
        }
    }
}

impl Check {
    /// # Errors
    /// When `value` is not exactly one check, or one that every answer passes.
    pub fn parse(value: &Value) -> anyhow::Result<Self> {
        const EXPECTED: &str = "expected one of equals, contains, json and tool_call";
        let Value::Object(fields) = value else { bail!("found {value}, {EXPECTED}") };
        if fields.len() != 1 {
            let names: Vec<&str> = fields.keys().map(String::as_str).collect();
            bail!("found {names:?}, {EXPECTED}; write two items to check two things");
        }
        let check = Self::deserialize(value).context(EXPECTED)?;
        let is_empty = matches!(&check, Self::Contains(text) if text.trim().is_empty());
        ensure!(
            !is_empty,
            "contains: found nothing but white space, which says nothing; expected a part of the answer"
        );
        Ok(check)
    }

    pub fn accepts(&self, messages: &[Message], ending: Ending) -> bool {
        let Some(last) = messages.last() else { return false };
        let is_final = ending == Ending::Return && last.channel == Some(Channel::Final) && last.recipient.is_none();
        match self {
            Self::Equals(text) => is_final && last.text().trim() == text.trim(),
            Self::Contains(text) => is_final && last.text().contains(text),
            Self::Json(value) => is_final && parses_to(&last.text(), value),
            Self::ToolCall { name, arguments } => {
                let is_called = last.recipient.as_deref().is_some_and(|to| to.strip_prefix("functions.") == Some(name));
                ending == Ending::Call && is_called && parses_to(&last.text(), &parsed(arguments))
            }
        }
    }
}

/// Arguments as OpenAI's API has them, JSON in a string, or as a value.
fn parsed(arguments: &Value) -> Value {
    arguments.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| arguments.clone())
}

fn parses_to(text: &str, expected: &Value) -> bool {
    serde_json::from_str(text).is_ok_and(|found: Value| same(&found, expected))
}

/// Equality of JSON values: the order of keys says nothing, and 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || ((x.is_f64() || y.is_f64()) && x.as_f64() == y.as_f64()),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(key, x)| y.get(key).is_some_and(|y| same(x, y)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(check: Value, message: Message, ending: Ending, expect: bool) {
        let parsed: Check = serde_json::from_value(check.clone()).unwrap();
        assert_eq!(parsed.accepts(std::slice::from_ref(&message), ending), expect, "{check} {message:?} {ending:?}");
    }

    #[test]
    fn only_a_finished_final_message_is_an_answer() {
        let says = |text: &str| Message::assistant(Channel::Final, text);
        check(json!({"equals": "72"}), says(" 72\n"), Ending::Return, true);
        check(json!({"equals": "72"}), says("172"), Ending::Return, false);
        check(json!({"equals": "72"}), says("72"), Ending::Length, false);
        check(json!({"equals": "72"}), says("72"), Ending::Call, false);
        check(json!({"equals": "72"}), Message::assistant(Channel::Analysis, "72"), Ending::Return, false);
        check(json!({"contains": "7"}), says("172"), Ending::Return, true);
        check(json!({"contains": "8"}), says("172"), Ending::Return, false);
    }

    #[test]
    fn json_is_compared_as_values() {
        let says = |text: &str| Message::assistant(Channel::Final, text);
        let person = json!({"json": {"name": "Ann", "age": 34}});
        check(person.clone(), says(r#"{ "age": 34.0, "name": "Ann" }"#), Ending::Return, true);
        check(person.clone(), says(r#"{"age": "34", "name": "Ann"}"#), Ending::Return, false);
        check(person.clone(), says(r#"{"age": 34, "name": "Ann", "x": 1}"#), Ending::Return, false);
        check(person.clone(), says(r#"{"age": 34}"#), Ending::Return, false);
        check(person, says("Ann is 34"), Ending::Return, false);
    }

    #[test]
    fn a_call_is_the_function_and_its_arguments() {
        let call = |name: &str, arguments: &str| Message::function_call(name, arguments);
        let expected = json!({"tool_call": {"name": "get_time", "arguments": {"city": "Oslo"}}});
        check(expected.clone(), call("functions.get_time", r#"{"city":"Oslo"}"#), Ending::Call, true);
        check(expected.clone(), call("functions.get_time", r#"{"city":"Oslo"}"#), Ending::Return, false);
        check(expected.clone(), call("functions.get_date", r#"{"city":"Oslo"}"#), Ending::Call, false);
        check(expected.clone(), call("get_time", r#"{"city":"Oslo"}"#), Ending::Call, false);
        check(expected, call("functions.get_time", r#"{"city":"Bern"}"#), Ending::Call, false);
    }
}
