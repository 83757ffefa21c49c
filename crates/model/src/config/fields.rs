//! Typed reads from a JSON object, each failure naming file, field, expected and found.

use serde_json::{Map, Value};

use super::ConfigError;

/// How much of a wrong value an error quotes.
const MAX_QUOTED_CHARS: usize = 60;

pub(super) fn parse_object(file: &'static str, text: &str) -> Result<Map<String, Value>, ConfigError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(ConfigError::NotJson { file, reason: format!("found {}", quote(&other)) }),
        Err(error) => Err(ConfigError::NotJson { file, reason: error.to_string() }),
    }
}

/// A JSON object and the names that errors use for it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub file: &'static str,
    /// Where the object lies in the file, `""` or `"rope_scaling."`.
    pub prefix: &'static str,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The field's value unless it is absent or null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    pub fn usize(&self, field: &str) -> Result<usize, ConfigError> {
        const EXPECTED: &str = "a whole number that is not negative";
        let value = self.required(field, EXPECTED)?;
        whole(value).ok_or_else(|| self.wrong_type(field, EXPECTED, value))
    }

    /// The first of two spellings that is there.
    pub fn usize_either(&self, field: &str, other: &str) -> Result<usize, ConfigError> {
        self.usize(if self.get(field).is_none() && self.get(other).is_some() { other } else { field })
    }

    pub fn f64(&self, field: &str) -> Result<f64, ConfigError> {
        const EXPECTED: &str = "a finite number";
        let value = self.required(field, EXPECTED)?;
        value.as_f64().filter(|v| v.is_finite()).ok_or_else(|| self.wrong_type(field, EXPECTED, value))
    }

    pub fn f64_or(&self, field: &str, default: f64) -> Result<f64, ConfigError> {
        if self.get(field).is_none() { Ok(default) } else { self.f64(field) }
    }

    pub fn usize_or(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
        if self.get(field).is_none() { Ok(default) } else { self.usize(field) }
    }

    pub fn bool_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong_type(field, "true or false", value)),
        }
    }

    /// The object under a field, if there is one; `prefix` is its name with a dot.
    pub fn object(&self, field: &str, prefix: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, prefix, map })),
            Some(value) => Err(self.wrong_type(field, "an object", value)),
        }
    }

    /// Token ids: absent, one number, or a list of numbers.
    pub fn token_ids(&self, field: &str) -> Result<Vec<u32>, ConfigError> {
        const EXPECTED: &str = "a token id or a list of token ids";
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        list.iter()
            .map(|v| v.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(|| self.wrong_type(field, EXPECTED, value))
    }

    /// Refuses a field that is there and has another value than the one supported.
    pub fn only(&self, field: &str, supported: Value, expected: &'static str) -> Result<(), ConfigError> {
        match self.get(field) {
            Some(value) if *value != supported => Err(self.unsupported(field, expected, value)),
            _ => Ok(()),
        }
    }

    pub fn unsupported(&self, field: &str, expected: &'static str, value: &Value) -> ConfigError {
        ConfigError::Unsupported { file: self.file, field: self.path(field), expected, found: quote(value) }
    }

    pub fn wrong_type(&self, field: &str, expected: &'static str, value: &Value) -> ConfigError {
        ConfigError::Type { file: self.file, field: self.path(field), expected, found: quote(value) }
    }

    fn required(&self, field: &str, expected: &'static str) -> Result<&'a Value, ConfigError> {
        self.get(field).ok_or_else(|| ConfigError::Missing { file: self.file, field: self.path(field), expected })
    }

    fn path(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }
}

/// A whole number, also one spelled `4096.0`.
fn whole(value: &Value) -> Option<usize> {
    let from_float = || value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..9e15).contains(f)).map(|f| f as u64);
    value.as_u64().or_else(from_float).and_then(|n| usize::try_from(n).ok())
}

fn quote(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
