//! What every protobuf message of ours can do besides prost's own: name itself, say which required
//! fields are missing, and be printed and parsed as the JSON of Mesos. Implemented by `build.rs`.

use std::fmt::Write as _;

use super::json::{JsonError, ObjectReader, ObjectWriter};

/// A message of `src/wire/*.proto`.
pub trait Message: prost::Message + Default {
    /// Full protobuf name. libprocess uses it as the name of the message on the wire.
    const NAME: &'static str;

    /// Reports every required field that is not set, here and in all messages inside.
    fn missing_required(&self, missing: &mut Missing<'_>);

    /// Writes the fields in byte order of their names.
    fn write_json(&self, object: &mut ObjectWriter<'_>);

    /// Reads the fields that are there; a field that is missing stays unset.
    ///
    /// # Errors
    /// When a value has another type than its field.
    fn read_json(object: &ObjectReader<'_>) -> Result<Self, JsonError>;
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no protobuf of this type.
    #[error("malformed {name}: {reason}")]
    Malformed {
        /// Full name of the expected message.
        name: &'static str,
        /// What prost found.
        reason: String,
    },
    /// Required fields are absent, as dotted paths.
    #[error("malformed {name}: missing required {fields}")]
    Missing {
        /// Full name of the expected message.
        name: &'static str,
        /// The paths, separated by ", ".
        fields: String,
    },
}

/// Decodes `bytes` and insists on every required field.
///
/// # Errors
/// When the bytes are malformed or a required field is missing.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    let message = M::decode(bytes)
        .map_err(|error| DecodeError::Malformed { name: M::NAME, reason: error.to_string() })?;
    insist_on_required(message)
}

/// Returns `message` if every required field is set.
pub(super) fn insist_on_required<M: Message>(message: M) -> Result<M, DecodeError> {
    let mut fields = String::new();
    message.missing_required(&mut Missing { path: String::new(), found: &mut fields });
    if fields.is_empty() {
        Ok(message)
    } else {
        Err(DecodeError::Missing { name: M::NAME, fields })
    }
}

/// Collects the paths of missing fields.
#[derive(Debug)]
pub struct Missing<'a> {
    path: String,
    found: &'a mut String,
}

impl Missing<'_> {
    pub(super) fn required(&mut self, field: &str, is_set: bool) {
        if !is_set {
            let separator = if self.found.is_empty() { "" } else { ", " };
            write!(self.found, "{separator}{}{field}", self.path).expect("a String takes all text");
        }
    }

    pub(super) fn required_message<M: Message>(&mut self, field: &str, message: Option<&M>) {
        self.required(field, message.is_some());
        self.message(field, message);
    }

    pub(super) fn message<M: Message>(&mut self, field: &str, message: Option<&M>) {
        if let Some(message) = message {
            self.inside(&format!("{field}."), message);
        }
    }

    pub(super) fn messages<M: Message>(&mut self, field: &str, messages: &[M]) {
        for (index, message) in messages.iter().enumerate() {
            self.inside(&format!("{field}[{index}]."), message);
        }
    }

    fn inside<M: Message>(&mut self, step: &str, message: &M) {
        let path = format!("{}{step}", self.path);
        message.missing_required(&mut Missing { path, found: self.found });
    }
}
