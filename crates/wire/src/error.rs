//! The error of a conversion from protobuf to the types of [`overlay_types::protocol`].

use std::fmt::Display;

use overlay_types::escape::bounded_args;

use super::message::DecodeError;

/// Maximum length of a reason in characters. Every reason of this program is shorter.
const REASON_MAX: usize = 400;

/// Why bytes are not a usable message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The bytes are not protobuf of the expected type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The name is not the name of a message of the overlay modules.
    #[error("unknown message '{}'", .0.escape_debug())]
    UnknownMessage(String),
    /// The body exceeds the maximum length of the message.
    #[error("malformed {name}: has {length} bytes, the maximum is {most}")]
    TooLong {
        /// Full name of the message.
        name: &'static str,
        /// Length of the body.
        length: usize,
        /// Maximum length of the body.
        most: usize,
    },
    /// A field has an unusable value.
    #[error("{field}: {reason}")]
    Field {
        /// Dotted path of the field.
        field: String,
        /// Why the value is unusable.
        reason: String,
    },
}

impl ConvertError {
    /// Creates an error about `field`.
    ///
    /// A reason quotes received text, which an attacker may choose. So the reason is limited in
    /// length and kept on one line: it must not forge or flood log lines.
    pub(super) fn field(field: &str, reason: impl Display) -> Self {
        let reason = bounded_args(format_args!("{reason}"), REASON_MAX);
        Self::Field { field: field.to_owned(), reason }
    }

    /// Creates an error about a missing `field`.
    pub(super) fn missing(field: &str) -> Self {
        Self::field(field, "is missing")
    }

    /// Prepends `parent` to the path of the field.
    pub(super) fn within(self, parent: impl Display) -> Self {
        match self {
            Self::Field { field, reason } => {
                Self::Field { field: format!("{parent}.{field}"), reason }
            }
            other => other,
        }
    }
}
