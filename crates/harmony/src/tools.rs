//! Tools as the model reads them: a TypeScript-like namespace, written from JSON schemas.
//!
//! The model was trained on one particular rendering, that of the `openai-harmony` library, so this one gives the same
//! text byte for byte, oddities included: `anyOf` and `$ref` read `any`, only string enums are listed, the second line
//! of a property's description has no comment mark.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod builtin;
mod schema;

/// A function that the caller offers to the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionTool {
    /// Without the namespace; the model calls `functions.NAME`.
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// JSON schema of the one argument, usually of type `object`; `None` for a function without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}

/// The tools that the model was trained with; they are called on the analysis channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuiltinTool {
    Browser,
    Python,
}

impl FunctionTool {
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Option<Value>) -> Self {
        Self { name: name.into(), description: description.into(), parameters }
    }
}

/// The `## functions` section of a developer message.
pub fn render_functions(functions: &[FunctionTool]) -> String {
    render_namespace("functions", None, functions)
}

/// The section of a built-in tool in the system message.
pub fn render_builtin(tool: BuiltinTool) -> String {
    match tool {
        BuiltinTool::Browser => {
            render_namespace("browser", Some(builtin::BROWSER_DESCRIPTION), &builtin::browser_functions())
        }
        BuiltinTool::Python => format!("## python\n\n{}", builtin::PYTHON_DESCRIPTION),
    }
}

fn render_namespace(name: &str, description: Option<&str>, functions: &[FunctionTool]) -> String {
    let mut out = format!("## {name}\n\n");
    push_comment(&mut out, description.unwrap_or_default());
    out.push_str(&format!("namespace {name} {{\n\n"));
    for function in functions {
        push_comment(&mut out, &function.description);
        let argument = match &function.parameters {
            Some(schema) => format!("_: {}", schema::render_type(schema, "")),
            None => String::new(),
        };
        out.push_str(&format!("type {} = ({argument}) => any;\n\n", function.name));
    }
    out.push_str(&format!("}} // namespace {name}"));
    out
}

fn push_comment(out: &mut String, text: &str) {
    for line in text.lines() {
        out.push_str(&format!("// {line}\n"));
    }
}
