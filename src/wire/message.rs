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
    let mut found = MissingFields::default();
    message.missing_required(&mut Missing { path: String::new(), found: &mut found });
    match found.into_text() {
        None => Ok(message),
        Some(fields) => Err(DecodeError::Missing { name: M::NAME, fields }),
    }
}

/// Missing fields that an error names. It counts the others.
const NAMED_MAX: usize = 8;

/// The paths of missing fields.
#[derive(Debug, Default)]
struct MissingFields {
    paths: Vec<String>,
    more: usize,
}

impl MissingFields {
    fn into_text(self) -> Option<String> {
        let mut text = self.paths.join(", ");
        if self.more > 0 {
            write!(text, " and {} more", self.more).expect("a String takes all text");
        }
        (!text.is_empty()).then_some(text)
    }
}

/// Collects the paths of missing fields.
#[derive(Debug)]
pub struct Missing<'a> {
    path: String,
    found: &'a mut MissingFields,
}

impl Missing<'_> {
    pub(super) fn required(&mut self, field: &str, is_set: bool) {
        if is_set {
            return;
        }
        if self.found.paths.len() < NAMED_MAX {
            self.found.paths.push(format!("{}{field}", self.path));
        } else {
            self.found.more += 1;
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
