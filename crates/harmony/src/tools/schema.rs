//! JSON schema to the TypeScript-like types of a tool namespace.

use std::fmt::Write as _;

use serde_json::Value;

/// The type that `schema` describes. `indent` stands before the lines that follow the first. The recursion is as deep
/// as the schema; `serde_json` refuses to parse more than 128 levels.
pub(super) fn render_type(schema: &Value, indent: &str) -> String {
    if let Some(variants) = schema["oneOf"].as_array() {
        let indent_inner = format!("{indent}{VARIANT_INDENT}");
        let lines: Vec<String> = variants
            .iter()
            .map(|variant| {
                let comment = variant_comment(variant, variant["description"].as_str());
                let kind = nullable(variant, render_type(variant, &indent_inner));
                format!("\n{indent} | {kind}{comment}")
            })
            .collect();
        return lines.concat();
    }
    match &schema["type"] {
        Value::Array(names) => render_type_list(names),
        Value::String(name) => match name.as_str() {
            "object" => render_object(schema, indent),
            "array" => match schema.get("items") {
                Some(items) => format!("{}[]", render_type(items, indent)),
                None => "Array<any>".to_owned(),
            },
            "string" => render_string(schema),
            "number" | "integer" => "number".to_owned(),
            "boolean" => "boolean".to_owned(),
            _ => "any".to_owned(),
        },
        _ => "any".to_owned(),
    }
}

const PROPERTY_INDENT: &str = "    ";
const VARIANT_INDENT: &str = "   ";

fn render_type_list(names: &[Value]) -> String {
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    let names: Vec<&str> = names.into_iter().map(|name| if name == "integer" { "number" } else { name }).collect();
    if names.is_empty() { "any".to_owned() } else { names.join(" | ") }
}

fn render_string(schema: &Value) -> String {
    let values = schema["enum"].as_array().map_or(&[][..], Vec::as_slice);
    let values: Vec<String> = values.iter().filter_map(Value::as_str).map(|value| format!("\"{value}\"")).collect();
    if values.is_empty() { "string".to_owned() } else { values.join(" | ") }
}

fn render_object(schema: &Value, indent: &str) -> String {
    let mut out = String::new();
    if let Some(description) = schema["description"].as_str() {
        let _ = writeln!(out, "{indent}// {description}");
    }
    out.push_str("{\n");
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if required.iter().any(|entry| entry == name) { "" } else { "?" };
        push_property(&mut out, &format!("{name}{mark}"), property, indent);
    }
    let _ = write!(out, "{indent}}}");
    out
}

fn push_property(out: &mut String, name: &str, property: &Value, indent: &str) {
    let description = property["description"].as_str();
    if let Some(title) = property["title"].as_str() {
        let _ = writeln!(out, "{indent}// {title}\n{indent}//");
    }
    if let Some(variants) = property["oneOf"].as_array() {
        push_examples(out, property, indent);
        push_variants(out, name, property, variants, indent);
        return;
    }
    if let Some(description) = description {
        let _ = writeln!(out, "{indent}// {description}");
    }
    push_examples(out, property, indent);
    let kind = nullable(property, render_type(property, &format!("{indent}{PROPERTY_INDENT}")));
    let comment = default_text(property).map(|default| format!(" // default: {default}")).unwrap_or_default();
    let _ = writeln!(out, "{indent}{name}: {kind},{comment}");
}

/// A property that is one of several types, each on its own line.
fn push_variants(out: &mut String, name: &str, property: &Value, variants: &[Value], indent: &str) {
    let description = property["description"].as_str();
    let first = variants.first().and_then(|variant| variant["description"].as_str());
    if let Some(description) = description.filter(|&description| Some(description) != first) {
        let _ = writeln!(out, "{indent}// {description}");
    }
    if let Some(default) = default_text(property) {
        let _ = writeln!(out, "{indent}// default: {default}");
    }
    let _ = writeln!(out, "{indent}{name}:");
    for (n, variant) in variants.iter().enumerate() {
        let kind = nullable(variant, render_type(variant, &format!("{indent}{VARIANT_INDENT}")));
        // Beside a description of the whole, the first variant's own is left out, and so is one that repeats it.
        let own = variant["description"].as_str();
        let own = own.filter(|&own| description.is_none_or(|whole| n > 0 && own != whole));
        let _ = writeln!(out, "{indent} | {kind}{}", variant_comment(variant, own));
    }
    let _ = writeln!(out, "{indent},");
}

fn variant_comment(variant: &Value, description: Option<&str>) -> String {
    let default = default_text(variant).map(|default| format!("default: {default}"));
    match (description, default) {
        (Some(description), Some(default)) => format!(" // {description} {default}"),
        (Some(comment), None) => format!(" // {comment}"),
        (None, Some(comment)) => format!(" // {comment}"),
        (None, None) => String::new(),
    }
}

fn push_examples(out: &mut String, property: &Value, indent: &str) {
    let examples = property["examples"].as_array().map_or(&[][..], Vec::as_slice);
    if !examples.is_empty() {
        let _ = writeln!(out, "{indent}// Examples:");
    }
    for example in examples.iter().filter_map(Value::as_str) {
        let _ = writeln!(out, "{indent}// - \"{example}\"");
    }
}

/// The default as a comment has it: a string is quoted, unless it is one of an enum.
fn default_text(schema: &Value) -> Option<String> {
    let is_enum = schema["enum"].as_array().is_some_and(|values| !values.is_empty());
    match schema.get("default")? {
        Value::String(text) if is_enum => Some(text.clone()),
        Value::String(text) => Some(format!("\"{text}\"")),
        other => Some(other.to_string()),
    }
}

fn nullable(schema: &Value, kind: String) -> String {
    if schema["nullable"] == Value::Bool(true) && !kind.contains("null") { format!("{kind} | null") } else { kind }
}
