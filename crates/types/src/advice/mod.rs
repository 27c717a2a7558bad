//! The shell commands that messages and the doctor advise.
//!
//! A command is run by an operator who is in a hurry, as root. So each command changes only objects
//! of this project, or it names what else it changes. A message shows a command that takes an address
//! or a device from another user of the host only after the condition under which it is correct. All commands are made here, and a host test runs each of
//! them: see `tests/host/advice`. A test in `tests/tidy.rs` finds commands that are made elsewhere.

mod host;
mod interference;
mod rules;
mod show;
mod tunnel;

use std::fmt;

use serde::{Serialize, Serializer};

pub use rules::{IptablesRule, NftRule, RulePackets};
pub use tunnel::RouteTarget;

/// A command for a root shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    text: String,
    effect: Option<String>,
}

impl Command {
    /// Creates a command that changes only objects of this project, or nothing.
    fn own(text: impl Into<String>) -> Self {
        Self { text: text.into(), effect: None }
    }

    /// Creates a command that changes other objects too. `effect` names them, and continues a
    /// sentence after "which".
    fn with_effect(text: impl Into<String>, effect: impl Into<String>) -> Self {
        Self { text: text.into(), effect: Some(effect.into()) }
    }

    /// Returns the text for the shell.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns what the command changes besides objects of this project.
    #[must_use]
    pub fn effect(&self) -> Option<&str> {
        self.effect.as_deref()
    }

    /// Returns the command that runs all `commands` until one fails; `None` without commands.
    #[must_use]
    pub fn all(commands: impl IntoIterator<Item = Self>) -> Option<Self> {
        commands.into_iter().reduce(Self::then)
    }

    /// Returns the command that runs `next` after this command has succeeded.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let effect = match (self.effect, next.effect) {
            (Some(first), Some(second)) if first != second => {
                Some(format!("{first}, and {second}"))
            }
            (first, second) => first.or(second),
        };
        Self { text: format!("{} && {}", self.text, next.text), effect }
    }

    /// Returns the command with its texts changed, to escape untrusted text.
    #[must_use]
    pub fn map(self, change: impl Fn(&str) -> String) -> Self {
        Self { text: change(&self.text), effect: self.effect.as_deref().map(change) }
    }
}

/// Formats the command for a sentence: in quotes, and what it changes besides.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.text)?;
        self.effect.iter().try_for_each(|effect| write!(f, ", which {effect}"))
    }
}

/// Serializes the text for the shell.
impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Quotes a word for the shell, if that is necessary.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@%+,=".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    // Single quotes end a command in a sentence.
    let escaped = word.chars().flat_map(|letter| {
        let is_special = "\"\\$`".contains(letter);
        is_special.then_some('\\').into_iter().chain([letter])
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_names_effect_of_command() {
        let own = Command::own("ip link set vtep1024 up");
        assert_eq!(own.to_string(), "'ip link set vtep1024 up'");
        let other = Command::with_effect("modprobe vxlan", "adds a module to the kernel");
        let both = own.then(other.clone()).then(other);
        assert_eq!(
            both.to_string(),
            "'ip link set vtep1024 up && modprobe vxlan && modprobe vxlan', which adds a module \
             to the kernel"
        );
        assert_eq!(Command::all([]), None);
    }

    #[test]
    fn word_with_special_letters_is_quoted() {
        assert_eq!(quoted("m-vxlan-1"), "m-vxlan-1");
        assert_eq!(quoted("a b'$(reboot)`"), r#""a b'\$(reboot)\`""#);
        assert_eq!(quoted(""), "\"\"");
    }
}
