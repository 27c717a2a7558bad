//! The protobuf messages of this crate: their names and the check for missing required fields,
//! which prost does not have. `build.rs` generates the implementations.

use std::fmt::Write as _;

/// A message of `proto/*.proto`.
pub trait Message: prost::Message + Default {
    /// Full protobuf name. libprocess uses it as the name of the message on the wire.
    const NAME: &'static str;

    /// Reports every unset required field of this message and of all nested messages.
    fn missing_required(&self, missing: &mut Missing<'_>);
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not protobuf of this type.
    #[error("malformed {name}: {reason}")]
    Malformed {
        /// Full name of the expected message.
        name: &'static str,
        /// The error of prost.
        reason: String,
    },
    /// Required fields are missing.
    #[error("malformed {name}: missing required {fields}")]
    Missing {
        /// Full name of the expected message.
        name: &'static str,
        /// The dotted paths of the fields, separated by ", ".
        fields: String,
    },
}

/// Decodes `bytes` and checks that every required field is set.
///
/// # Errors
/// If the bytes are malformed or a required field is missing.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    let message = M::decode(bytes)
        .map_err(|error| DecodeError::Malformed { name: M::NAME, reason: error.to_string() })?;
    check_required(message)
}

/// Returns `message` if every required field is set.
pub(super) fn check_required<M: Message>(message: M) -> Result<M, DecodeError> {
    let mut found = MissingFields::default();
    message.missing_required(&mut Missing { path: String::new(), found: &mut found });
    match found.into_text() {
        None => Ok(message),
        Some(fields) => Err(DecodeError::Missing { name: M::NAME, fields }),
    }
}

/// Maximum number of missing fields that an error names. The error counts the remaining fields.
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
            write!(text, " and {} more", self.more).expect("writing to a String never fails");
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
            self.nested(&format!("{field}."), message);
        }
    }

    pub(super) fn messages<M: Message>(&mut self, field: &str, messages: &[M]) {
        for (index, message) in messages.iter().enumerate() {
            self.nested(&format!("{field}[{index}]."), message);
        }
    }

    fn nested<M: Message>(&mut self, prefix: &str, message: &M) {
        let path = format!("{}{prefix}", self.path);
        message.missing_required(&mut Missing { path, found: self.found });
    }
}
