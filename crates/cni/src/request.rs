//! The command and the attachment, from the environment of the plugin.

use std::fmt;
use std::path::PathBuf;

use overlay_types::addr::DeviceName;

use crate::error::{ErrorCode, PluginError};

/// Longest ID of a container, in bytes: the limit of the agent's lease reader, without the name of
/// the interface.
const CONTAINER_ID_MAX: usize = 256;

/// A command of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Verify the attachment of a container.
    Check,
    /// Release attachments that the caller does not know.
    Gc,
    /// Report whether ADD can be served.
    Status,
    /// Print the supported versions.
    Version,
}

impl Command {
    /// All commands with their names.
    const NAMES: [(&'static str, Self); 6] = [
        ("ADD", Self::Add),
        ("DEL", Self::Del),
        ("CHECK", Self::Check),
        ("GC", Self::Gc),
        ("STATUS", Self::Status),
        ("VERSION", Self::Version),
    ];

    /// Reads the command from the environment.
    ///
    /// # Errors
    /// When the variable is missing or names no command.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, PluginError> {
        let name = required(&variable, "CNI_COMMAND")?;
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, command)| *command).ok_or_else(|| {
            invalid(format!("CNI_COMMAND '{}' is no command of CNI", name.escape_debug()))
        })
    }
}

/// The ID of a container. It begins with a letter or a digit, and has no separator of paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks an ID as the specification demands.
    ///
    /// # Errors
    /// When the ID is empty, too long, or has other characters.
    pub fn new(text: &str) -> Result<Self, PluginError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if !starts_well || text.len() > CONTAINER_ID_MAX || !text.bytes().all(is_allowed) {
            let text: String = text.chars().take(CONTAINER_ID_MAX).collect();
            return Err(invalid(format!(
                "CNI_CONTAINERID '{}' is no ID of a container",
                text.escape_debug()
            ))
            .with_details(format!(
                "write at most {CONTAINER_ID_MAX} letters, digits, '_', '.' and '-', the first a \
                 letter or a digit"
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An interface of a container: what ADD makes and DEL removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The container.
    pub container: ContainerId,
    /// The interface in the container.
    pub interface: DeviceName,
}

impl Attachment {
    /// Checks the parts of an attachment.
    ///
    /// # Errors
    /// When one of them is invalid.
    pub fn new(container: &str, interface: &str) -> Result<Self, PluginError> {
        let container = ContainerId::new(container)?;
        let interface = interface
            .parse::<DeviceName>()
            .map_err(|error| invalid(format!("CNI_IFNAME: {error}")))?;
        Ok(Self { container, interface })
    }

    /// Reads the attachment from the environment.
    ///
    /// # Errors
    /// When a variable is missing or invalid.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, PluginError> {
        let container = required(&variable, "CNI_CONTAINERID")?;
        Self::new(&container, &required(&variable, "CNI_IFNAME")?)
    }
}

/// Reads the path of the network namespace from the environment. DEL may have none: after a reboot
/// the namespace does not exist.
#[must_use]
pub fn namespace(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    variable("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Reads the path of the network namespace like [`namespace`], for the commands that need one.
///
/// # Errors
/// When the variable is missing.
pub fn required_namespace(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<PathBuf, PluginError> {
    required(&variable, "CNI_NETNS").map(PathBuf::from)
}

fn required(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Result<String, PluginError> {
    let value = variable(name).filter(|value| !value.is_empty());
    value.ok_or_else(|| invalid(format!("environment variable {name} is missing")))
}

fn invalid(message: String) -> PluginError {
    PluginError::new(ErrorCode::InvalidEnvironment, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(
        variables: &'static [(&'static str, &'static str)],
    ) -> impl Fn(&str) -> Option<String> {
        move |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn environment_of_mesos_is_read() {
        let variables = environment(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "2f7a7c4e-0c1f-4bd0-9d6c-5a7c8e3d9b10"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/proc/7/ns/net"),
            ("CNI_PATH", "/usr/lib/cni"),
        ]);
        assert_eq!(Command::from_environment(&variables), Ok(Command::Add));
        let attachment = Attachment::from_environment(&variables).unwrap();
        assert_eq!(attachment.container.as_str(), "2f7a7c4e-0c1f-4bd0-9d6c-5a7c8e3d9b10");
        assert_eq!(attachment.interface.as_str(), "eth0");
        assert_eq!(namespace(&variables), Some(PathBuf::from("/proc/7/ns/net")));
    }

    #[test]
    fn missing_or_invalid_variable_is_named() {
        let message = |error: PluginError| {
            assert_eq!(error.code(), ErrorCode::InvalidEnvironment);
            error.to_string()
        };
        let none = environment(&[]);
        let error = Command::from_environment(&none).unwrap_err();
        assert_eq!(message(error), "environment variable CNI_COMMAND is missing");
        let error = Command::from_environment(environment(&[("CNI_COMMAND", "add")])).unwrap_err();
        assert_eq!(message(error), "CNI_COMMAND 'add' is no command of CNI");
        assert_eq!(namespace(environment(&[("CNI_NETNS", "")])), None);
        let error = required_namespace(&none).unwrap_err();
        assert_eq!(message(error), "environment variable CNI_NETNS is missing");
        for id in ["../a", "a/b", "", ".a", "a\r\neth0", "\u{e4}"] {
            assert!(message(Attachment::new(id, "eth0").unwrap_err()).contains("CONTAINERID"));
        }
        assert!(Attachment::new(&"a".repeat(257), "eth0").is_err());
        for name in ["", "..", "a/b", "a b", "interface-of-16-"] {
            assert!(message(Attachment::new("a", name).unwrap_err()).contains("CNI_IFNAME"));
        }
    }
}
