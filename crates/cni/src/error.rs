//! Errors of a command, with the codes of the specification.

use overlay_types::escape::bounded_line;
use serde::Serialize;

/// Most characters of a message and of its details. A message may quote input of a task.
const TEXT_MAX: usize = 600;

/// The code of an error. Codes up to 99 are those of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The plugin does not speak the version of the configuration.
    IncompatibleVersion,
    /// A key of the configuration has a value that the plugin does not support.
    UnsupportedField,
    /// The container, or a part of its attachment, does not exist.
    UnknownContainer,
    /// An environment variable is missing or invalid.
    InvalidEnvironment,
    /// A file or the kernel refused.
    Io,
    /// The standard input is not JSON of the expected form.
    Decode,
    /// The configuration is invalid.
    InvalidConfiguration,
    /// STATUS: the plugin cannot serve ADD.
    NotAvailable,
    /// No address is free.
    NoFreeAddress,
    /// The requested address cannot be given.
    AddressRefused,
    /// A port mapping cannot be made.
    PortMapping,
    /// The container has another interface with this name.
    InterfaceExists,
    /// The container has no address that this version can name.
    NoAddressForVersion,
}

impl ErrorCode {
    /// Returns the number of the code.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfiguration => 7,
            Self::NotAvailable => 50,
            Self::NoFreeAddress => 100,
            Self::AddressRefused => 101,
            Self::PortMapping => 102,
            Self::InterfaceExists => 103,
            Self::NoAddressForVersion => 104,
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", details.as_ref().map(|details| format!(": {details}")).unwrap_or_default())]
pub struct PluginError {
    code: ErrorCode,
    message: String,
    details: Option<String>,
}

impl PluginError {
    /// Creates an error. The message becomes one line of visible characters.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: bounded_line(&message.into(), TEXT_MAX), details: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: Some(bounded_line(&details.into(), TEXT_MAX)), ..self }
    }

    /// Returns the code.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// Returns the JSON for the standard output. `version` is the version of the configuration, as
    /// it is written there.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            details: Option<&'a str>,
        }
        let json = Json {
            cni_version: version,
            code: self.code.number(),
            msg: &self.message,
            details: self.details.as_deref(),
        };
        // Texts and numbers can always be written.
        serde_json::to_string(&json).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_json_has_keys_of_specification() {
        let error = PluginError::new(ErrorCode::NoFreeAddress, "no \"free\" address");
        assert_eq!(
            error.to_json("0.2.0"),
            r#"{"cniVersion":"0.2.0","code":100,"msg":"no \"free\" address"}"#
        );
        let error = error.with_details("stop a container");
        assert_eq!(
            error.to_json("1.1.0"),
            concat!(
                r#"{"cniVersion":"1.1.0","code":100,"msg":"no \"free\" address","#,
                r#""details":"stop a container"}"#
            )
        );
        assert_eq!(error.to_string(), "no \"free\" address: stop a container");
    }
}
