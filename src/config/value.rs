//! Single values: text, numbers, durations, paths and addresses, out of JSON or of the plain text
//! that parameters are.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::document::{Document, Node};
use super::problem::abbreviate;
use crate::addr::{Family, Mtu, Subnet, Vni};

/// Longest text of a name, an address or a duration in characters; all that are valid have fewer.
const WORD_MAX: usize = 100;
/// Longest path or URL in bytes: PATH_MAX of `linux/limits.h`.
const PATH_MAX: usize = 4096;
/// Longest number within a duration: more digits are no sensible time, and so the sum of all the
/// parts stays far from the end of `Duration`, where humantime panics.
const DURATION_DIGITS_MAX: usize = 9;
/// How much is shown of what should be a number or a boolean.
const GIVEN_SHOWN: usize = 24;

/// Refuses a path that depends on the working directory; `example` is one that does not.
pub(super) fn refuse_relative(path: &Path, example: &str) -> Result<(), String> {
    if path.has_root() {
        return Ok(());
    }
    let given = path.display();
    Err(format!("'{given}' is relative: write a path from /, such as \"{example}\""))
}

impl<'a> Document<'a> {
    /// A string of at most `max` characters; `expected` says what to write.
    pub(super) fn text(
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
            self.refuse(node, format_args!("is {}: write {expected}", node.shape()));
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

    /// A string that is a `T`; `example` is one.
    pub(super) fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        node: &Node<'a>,
        example: &str,
    ) -> Option<T> {
        let expected = format!("a string such as \"{example}\"");
        let text = self.text(node, WORD_MAX, expected)?;
        text.parse().map_err(|error: T::Err| self.refuse(node, error)).ok()
    }

    /// True or false.
    pub(super) fn boolean(&mut self, node: &Node<'a>) -> Option<bool> {
        match node.raw {
            "true" => Some(true),
            "false" => Some(false),
            other => {
                let problem = match node.plain() {
                    Some(_) => {
                        let given = abbreviate(other, GIVEN_SHOWN);
                        format!("'{given}' is no boolean: write true or false")
                    }
                    None => format!("is {}: write true or false without quotes", node.shape()),
                };
                self.refuse(node, problem);
                None
            }
        }
    }

    /// A whole number; `range` is what to write, and the caller checks it where the reason of a
    /// limit needs to be told.
    pub(super) fn whole(&mut self, node: &Node<'a>, range: impl Display) -> Option<u64> {
        let (is_negative, digits) = match node.raw.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, node.raw),
        };
        let given = abbreviate(node.raw, GIVEN_SHOWN);
        if !digits.starts_with(|letter: char| letter.is_ascii_digit()) {
            let problem = match node.plain() {
                Some(_) => format!("'{given}' is no number: write {range}"),
                None => format!("is {}: write a number without quotes, {range}", node.shape()),
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

    /// A whole number within `range`.
    pub(super) fn number(&mut self, node: &Node<'a>, range: RangeInclusive<u32>) -> Option<u32> {
        let expected = format!("{} to {}", range.start(), range.end());
        let number = self.whole(node, &expected)?;
        let valid = u32::try_from(number).ok().filter(|number| range.contains(number));
        if valid.is_none() {
            self.refuse(node, format_args!("{number} is out of range: write {expected}"));
        }
        valid
    }

    /// A whole number that may be large.
    pub(super) fn count(&mut self, node: &Node<'a>, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("{} to {}", range.start(), range.end());
        let number = self.whole(node, &expected)?;
        if !range.contains(&number) {
            self.refuse(node, format_args!("{number} is out of range: write {expected}"));
            return None;
        }
        Some(number)
    }

    /// The MTU of a device.
    pub(super) fn mtu(&mut self, node: &Node<'a>) -> Option<Mtu> {
        let expected = format!("{} to {}", Mtu::MIN, Mtu::MAX);
        let number = self.whole(node, &expected)?;
        match u32::try_from(number).map(Mtu::new) {
            Ok(Ok(mtu)) => return Some(mtu),
            Ok(Err(error)) => self.refuse(node, error),
            Err(_) => self.refuse(node, format_args!("{number} is out of range: write {expected}")),
        }
        None
    }

    /// A VXLAN network identifier.
    pub(super) fn vni(&mut self, node: &Node<'a>) -> Option<Vni> {
        let number = self.whole(node, "0 to 16777215")?;
        match u32::try_from(number).map(Vni::new) {
            Ok(Ok(vni)) => return Some(vni),
            Ok(Err(error)) => self.refuse(node, error),
            Err(_) => {
                self.refuse(node, format_args!("{number} is out of range: write 0 to 16777215"))
            }
        }
        None
    }

    /// A subnet of `family`. The key of the other family's has a '6' more or less.
    pub(super) fn subnet(
        &mut self,
        node: &Node<'a>,
        family: Family,
        example: &str,
    ) -> Option<Subnet> {
        let subnet: Subnet = self.parsed(node, example)?;
        if subnet.family() == family {
            return Some(subnet);
        }
        let key = node.path.rsplit('.').next().unwrap_or(&node.path);
        let other = match family {
            Family::V4 => format!("{key}6"),
            Family::V6 => key.trim_end_matches('6').to_owned(),
        };
        let found = subnet.family();
        self.refuse(
            node,
            format_args!(
                "'{subnet}' is an {found} subnet: write it as '{other}', or an {family} subnet here"
            ),
        );
        None
    }

    /// A duration in the spelling of Mesos ("5mins", "10secs") or of everybody else ("1h 30m").
    pub(super) fn duration(
        &mut self,
        node: &Node<'a>,
        range: RangeInclusive<Duration>,
        example: &str,
    ) -> Option<Duration> {
        let expected = format!("a string with number and unit, such as \"{example}\"");
        let text = self.text(node, WORD_MAX, &expected)?;
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

    /// The path of a file or directory.
    pub(super) fn path(&mut self, node: &Node<'a>, example: &str) -> Option<PathBuf> {
        let text = self.text(node, PATH_MAX, format_args!("a path such as \"{example}\""))?;
        if text.is_empty() {
            self.refuse(node, format_args!("is empty: write a path such as \"{example}\""));
        } else if text.len() > PATH_MAX {
            let message = format!("is {} bytes long: write at most {PATH_MAX}", text.len());
            self.refuse(node, message);
        } else if text.chars().any(char::is_control) {
            self.refuse(node, format_args!("'{text}' contains a control character: remove it"));
        } else {
            return Some(text.into());
        }
        None
    }

    /// A path that does not depend on the working directory.
    pub(super) fn absolute_path(&mut self, node: &Node<'a>, example: &str) -> Option<PathBuf> {
        let path = self.path(node, example)?;
        match refuse_relative(&path, example) {
            Ok(()) => Some(path),
            Err(message) => {
                self.refuse(node, message);
                None
            }
        }
    }

    /// A URL or an address, not looked at any further than that it is one word. Not shown in the
    /// refusal, since it may hold a password.
    pub(super) fn word(&mut self, node: &Node<'a>, expected: &str) -> Option<String> {
        let text = self.text(node, PATH_MAX, expected)?;
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
