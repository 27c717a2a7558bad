//! The JSON form of protobuf messages in Mesos (stout, `json.hpp` and `protobuf.hpp`, 1.7 and
//! later).
//!
//! Keys are sorted. There is no white space. Field names are those of the .proto, enums are names,
//! 64-bit integers are numbers. Empty lists are omitted. Unset fields are omitted unless they
//! declare a default.
//!
//! Printing does not use the objects of serde_json: their order depends on a feature that any crate
//! of the build may enable.

use std::fmt::{Display, Write as _};

use serde_json::{Map, Value};

use super::message::{Message, check_required};

/// A message that has the JSON form of Mesos. `build.rs` generates the implementations.
pub trait JsonMessage: Message {
    /// Writes the fields in the byte order of their names.
    fn write_json(&self, object: &mut ObjectWriter<'_>);

    /// Reads the fields of `object`. A missing field stays unset.
    ///
    /// # Errors
    /// If a value has the wrong type.
    fn read_json(object: &ObjectReader<'_>) -> Result<Self, JsonError>;
}

/// Prints `message` in the JSON form of Mesos.
pub fn print<M: JsonMessage>(message: &M) -> String {
    let mut text = String::new();
    write_object(&mut text, message);
    text
}

/// Parses JSON that [`print()`] or Mesos printed. As in Mesos, unknown keys are ignored and `null`
/// is an unset field.
///
/// # Errors
/// If the text is not a JSON object, a value has the wrong type, or a required field is missing.
pub fn parse<M: JsonMessage>(text: &[u8]) -> Result<M, JsonError> {
    let value: Value =
        serde_json::from_slice(text).map_err(|error| JsonError(error.to_string()))?;
    let Value::Object(fields) = value else {
        return Err(JsonError("expected an object".to_owned()));
    };
    let message = M::read_json(&ObjectReader { fields: &fields })?;
    check_required(message).map_err(|error| JsonError(error.to_string()))
}

/// Why a text is not the JSON form of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

fn write_object<M: JsonMessage>(text: &mut String, message: &M) {
    text.push('{');
    message.write_json(&mut ObjectWriter { text, is_empty: true });
    text.push('}');
}

/// Writes the members of one JSON object.
#[derive(Debug)]
pub struct ObjectWriter<'a> {
    text: &'a mut String,
    is_empty: bool,
}

impl ObjectWriter<'_> {
    pub(super) fn string(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            write_string(self.text, value);
        }
    }

    pub(super) fn scalar(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.name(name);
            write!(self.text, "{value}").expect("writing to a String never fails");
        }
    }

    pub(super) fn message<M: JsonMessage>(&mut self, name: &str, message: Option<&M>) {
        if let Some(message) = message {
            self.name(name);
            write_object(self.text, message);
        }
    }

    pub(super) fn messages<M: JsonMessage>(&mut self, name: &str, messages: &[M]) {
        if messages.is_empty() {
            return;
        }
        self.name(name);
        self.text.push('[');
        for (index, message) in messages.iter().enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            write_object(self.text, message);
        }
        self.text.push(']');
    }

    fn name(&mut self, name: &str) {
        if !self.is_empty {
            self.text.push(',');
        }
        self.is_empty = false;
        write_string(self.text, name);
        self.text.push(':');
    }
}

/// Writes a string as RapidJSON does: only the quote, the backslash and control characters are
/// escaped, the latter in upper-case hexadecimal.
fn write_string(text: &mut String, value: &str) {
    text.push('"');
    for letter in value.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            control if control < ' ' => {
                write!(text, "\\u{:04X}", u32::from(control))
                    .expect("writing to a String never fails");
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

/// Reads the members of one JSON object.
#[derive(Debug)]
pub struct ObjectReader<'a> {
    fields: &'a Map<String, Value>,
}

impl ObjectReader<'_> {
    pub(super) fn string(&self, name: &str) -> Result<Option<String>, JsonError> {
        self.value(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, JsonError> {
        self.value(name, "true or false", Value::as_bool)
    }

    pub(super) fn number<N: TryFrom<u64>>(&self, name: &str) -> Result<Option<N>, JsonError> {
        self.value(name, "a non-negative integer in range", |value| {
            value.as_u64().and_then(|number| N::try_from(number).ok())
        })
    }

    pub(super) fn enumeration<E: Into<i32>>(
        &self,
        name: &str,
        from_name: fn(&str) -> Option<E>,
    ) -> Result<Option<i32>, JsonError> {
        self.value(name, "the name of a known value", |value| {
            value.as_str().and_then(from_name).map(Into::into)
        })
    }

    pub(super) fn message<M: JsonMessage>(&self, name: &str) -> Result<Option<M>, JsonError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read_message(name, value).map(Some),
        }
    }

    pub(super) fn messages<M: JsonMessage>(&self, name: &str) -> Result<Vec<M>, JsonError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                // A vector that grows takes up to three times the memory, and an item of three
                // bytes may be a message of more than a hundred.
                let mut messages = Vec::with_capacity(items.len());
                for item in items {
                    messages.push(read_message(name, item)?);
                }
                Ok(messages)
            }
            Some(_) => Err(JsonError(format!("field '{name}': expected a list"))),
        }
    }

    fn value<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, JsonError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .ok_or_else(|| JsonError(format!("field '{name}': expected {expected}"))),
        }
    }
}

fn read_message<M: JsonMessage>(name: &str, value: &Value) -> Result<M, JsonError> {
    let Value::Object(fields) = value else {
        return Err(JsonError(format!("field '{name}': expected an object")));
    };
    M::read_json(&ObjectReader { fields })
}
