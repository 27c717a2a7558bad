//! Readers of single values: text, numbers, durations, paths and addresses. The source is JSON, or
//! the plain text of a parameter.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use overlay_types::addr::{Family, Mtu, Subnet, Vni};
use overlay_types::secret::{may_contain, quote};

use super::document::{Document, Node, Object};
use super::text::abbreviate;

/// Maximum length of a name, an address or a duration in characters. All valid ones are shorter.
const WORD_MAX: usize = 100;
/// Maximum length of a path or URL in bytes: PATH_MAX of `linux/limits.h`.
const PATH_MAX: usize = 4096;
/// Maximum number of digits of a number in a duration. More digits are no sensible time. The limit
/// also keeps the sum far from the maximum of `Duration`, at which humantime panics.
const DURATION_DIGITS_MAX: usize = 9;
/// How many characters of a bad number or boolean a message repeats.
const GIVEN_SHOWN: usize = 24;

/// A path depends on the working directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is relative: write a path from /, such as \"{example}\"",
    quote(&.path.to_string_lossy())
)]
pub struct RelativePathError {
    path: PathBuf,
    example: &'static str,
}

/// Checks that `path` does not depend on the working directory. `example` is an absolute path for
/// the message.
///
/// # Errors
/// If `path` is relative.
pub(super) fn check_absolute(path: &Path, example: &'static str) -> Result<(), RelativePathError> {
    if path.has_root() {
        return Ok(());
    }
    Err(RelativePathError { path: path.to_owned(), example })
}

impl<'a> Document<'a> {
    /// Reads a string of at most `max` characters. `expected` says what to write.
    pub(super) fn read_text(
        &mut self,
        node: &Node<'a>,
        max: usize,
        expected: impl Display,
    ) -> Option<String> {
        let text: Cow<'a, str> = if let Some(plain) = node.plain() {
            plain.into()
        } else if node.raw.starts_with('"') {
            self.deserialize(node)?
        } else {
            self.refuse(node, format_args!("is {}: write {expected}", node.type_name()));
            return None;
        };
        let length = text.chars().count();
        if length > max {
            let message = format!("is {length} characters long: write {expected}");
            self.refuse(node, message);
            return None;
        }
        Some(text.into_owned())
    }

    /// Reads a string and parses it as a `T`. `example` is a valid string.
    pub(super) fn parse_string<T: FromStr<Err: Display>>(
        &mut self,
        node: &Node<'a>,
        example: &str,
    ) -> Option<T> {
        let expected = format!("a string such as \"{example}\"");
        let text = self.read_text(node, WORD_MAX, expected)?;
        text.parse().map_err(|error: T::Err| self.refuse(node, error)).ok()
    }

    /// Reads a boolean.
    pub(super) fn read_boolean(&mut self, node: &Node<'a>) -> Option<bool> {
        match node.raw {
            "true" => Some(true),
            "false" => Some(false),
            other => {
                let problem = match node.plain() {
                    Some(_) => {
                        let given = abbreviate(other, GIVEN_SHOWN);
                        format!("'{given}' is no boolean: write true or false")
                    }
                    None => format!("is {}: write true or false without quotes", node.type_name()),
                };
                self.refuse(node, problem);
                None
            }
        }
    }

    /// Reads the boolean at the key `name`. Returns `default` if the key is missing or refused.
    pub(super) fn read_boolean_or(
        &mut self,
        object: &Object<'a>,
        name: &str,
        default: bool,
    ) -> bool {
        object.value(name).and_then(|node| self.read_boolean(&node)).unwrap_or(default)
    }

    /// Reads a non-negative integer. `range` says what to write. The caller checks the range, so
    /// that its message can give the reason for a limit.
    pub(super) fn read_integer(&mut self, node: &Node<'a>, range: impl Display) -> Option<u64> {
        let (is_negative, digits) = match node.raw.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, node.raw),
        };
        let given = abbreviate(node.raw, GIVEN_SHOWN);
        if !digits.starts_with(|letter: char| letter.is_ascii_digit()) {
            let problem = match node.plain() {
                Some(_) => format!("'{given}' is no number: write {range}"),
                None => format!("is {}: write a number without quotes, {range}", node.type_name()),
            };
            self.refuse(node, problem);
            return None;
        }
        if let Ok(number) = node.raw.parse() {
            return Some(number);
        }
        let problem = if is_negative {
            "is negative"
        } else if digits.bytes().all(|letter| letter.is_ascii_digit()) {
            "is out of range"
        } else {
            "is no whole number"
        };
        self.refuse(node, format_args!("{given} {problem}: write {range}"));
        None
    }

    /// Reads an integer within `range`.
    pub(super) fn read_number(
        &mut self,
        node: &Node<'a>,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let expected = format!("{} to {}", range.start(), range.end());
        let number = self.read_integer(node, &expected)?;
        let valid = u32::try_from(number).ok().filter(|number| range.contains(number));
        if valid.is_none() {
            self.refuse(node, format_args!("{number} is out of range: write {expected}"));
        }
        valid
    }

    /// Reads an integer within `range`, which may exceed 32 bits.
    pub(super) fn read_count(
        &mut self,
        node: &Node<'a>,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let expected = format!("{} to {}", range.start(), range.end());
        let number = self.read_integer(node, &expected)?;
        if !range.contains(&number) {
            self.refuse(node, format_args!("{number} is out of range: write {expected}"));
            return None;
        }
        Some(number)
    }

    /// Reads the MTU of a device.
    pub(super) fn read_mtu(&mut self, node: &Node<'a>) -> Option<Mtu> {
        let expected = format!("{} to {}", Mtu::MIN, Mtu::MAX);
        let number = self.read_integer(node, &expected)?;
        match u32::try_from(number).map(Mtu::new) {
            Ok(Ok(mtu)) => return Some(mtu),
            Ok(Err(error)) => self.refuse(node, error),
            Err(_) => self.refuse(node, format_args!("{number} is out of range: write {expected}")),
        }
        None
    }

    /// Reads a VXLAN network identifier.
    pub(super) fn read_vni(&mut self, node: &Node<'a>) -> Option<Vni> {
        let number = self.read_integer(node, "0 to 16777215")?;
        match u32::try_from(number).map(Vni::new) {
            Ok(Ok(vni)) => return Some(vni),
            Ok(Err(error)) => self.refuse(node, error),
            Err(_) => {
                self.refuse(node, format_args!("{number} is out of range: write 0 to 16777215"))
            }
        }
        None
    }

    /// Reads a subnet of `family`. The key for IPv6 is the key for IPv4 with the suffix '6'.
    pub(super) fn read_subnet(
        &mut self,
        node: &Node<'a>,
        family: Family,
        example: &str,
    ) -> Option<Subnet> {
        let subnet: Subnet = self.parse_string(node, example)?;
        if subnet.family() == family {
            return Some(subnet);
        }
        let key = node.path.rsplit('.').next().unwrap_or(&node.path);
        let other_key = match family {
            Family::V4 => format!("{key}6"),
            Family::V6 => key.trim_end_matches('6').to_owned(),
        };
        let found = subnet.family();
        self.refuse(
            node,
            format_args!(
                "'{subnet}' is an {found} subnet: write it as '{other_key}', or an {family} subnet here"
            ),
        );
        None
    }

    /// Reads a duration in the spelling of Mesos ("5mins", "10secs") or of humantime ("1h 30m").
    pub(super) fn read_duration(
        &mut self,
        node: &Node<'a>,
        range: RangeInclusive<Duration>,
        example: &str,
    ) -> Option<Duration> {
        let expected = format!("a string with number and unit, such as \"{example}\"");
        let text = self.read_text(node, WORD_MAX, &expected)?;
        let is_sane =
            text.split(|c: char| !c.is_ascii_digit()).all(|run| run.len() <= DURATION_DIGITS_MAX);
        let parsed = if is_sane { humantime::parse_duration(&text).ok() } else { None };
        let Some(duration) = parsed else {
            self.refuse(node, format_args!("'{text}' is no duration: write {expected}"));
            return None;
        };
        if range.contains(&duration) {
            return Some(duration);
        }
        let least = humantime::format_duration(*range.start());
        let most = humantime::format_duration(*range.end());
        self.refuse(node, format_args!("'{text}' is out of range: write {least} to {most}"));
        None
    }

    /// Reads the path of a file or directory.
    pub(super) fn read_path(&mut self, node: &Node<'a>, example: &str) -> Option<PathBuf> {
        let text = self.read_text(node, PATH_MAX, format_args!("a path such as \"{example}\""))?;
        if text.is_empty() {
            self.refuse(node, format_args!("is empty: write a path such as \"{example}\""));
        } else if text.len() > PATH_MAX {
            let message = format!("is {} bytes long: write at most {PATH_MAX}", text.len());
            self.refuse(node, message);
        } else if text.chars().any(char::is_control) {
            self.refuse(node, format_args!("'{text}' contains a control character: remove it"));
        } else if may_contain(&text) {
            // Messages name paths.
            self.refuse(node, format_args!("is no path: write one such as \"{example}\""));
        } else {
            return Some(text.into());
        }
        None
    }

    /// Reads a path that does not depend on the working directory.
    pub(super) fn read_absolute_path(
        &mut self,
        node: &Node<'a>,
        example: &'static str,
    ) -> Option<PathBuf> {
        let path = self.read_path(node, example)?;
        check_absolute(&path, example).map_err(|error| self.refuse(node, error)).ok()?;
        Some(path)
    }

    /// Reads a URL or an address and checks only that it is a single word. The refusal does not
    /// repeat the text, because it may contain a password.
    pub(super) fn read_word(&mut self, node: &Node<'a>, expected: &str) -> Option<String> {
        let text = self.read_text(node, PATH_MAX, expected)?;
        if text.is_empty() {
            self.refuse(node, format_args!("is empty: write {expected}"));
        } else if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.refuse(node, format_args!("contains white space: write {expected}"));
        } else {
            return Some(text);
        }
        None
    }
}
