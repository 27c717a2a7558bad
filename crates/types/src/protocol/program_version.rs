//! The version of this program that a process runs.

use std::fmt;
use std::str::FromStr;

/// A version of this program, without a pre-release. Later versions are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProgramVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

/// The text is no version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no version: write MAJOR.MINOR.PATCH")]
pub struct ProgramVersionError;

impl ProgramVersion {
    /// Returns the version of this build.
    #[must_use]
    pub fn current() -> Option<Self> {
        env!("CARGO_PKG_VERSION").parse().ok()
    }
}

impl FromStr for ProgramVersion {
    type Err = ProgramVersionError;

    fn from_str(text: &str) -> Result<Self, ProgramVersionError> {
        let release = text.split(['-', '+']).next().unwrap_or_default();
        let numbers = release.split('.').map(|number| number.parse().ok());
        match numbers.collect::<Option<Vec<u32>>>().as_deref() {
            Some(&[major, minor, patch]) => Ok(Self { major, minor, patch }),
            _ => Err(ProgramVersionError),
        }
    }
}

impl fmt::Display for ProgramVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        let text = format!("{major}.{minor}.{patch}");
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_three_numbers() {
        let version: ProgramVersion = "1.20.3".parse().unwrap();
        assert_eq!(version.to_string(), "1.20.3");
        assert!(version > "1.3.20".parse().unwrap());
        assert_eq!("1.20.3-rc.1+build".parse(), Ok(version));
        for text in ["", "1.2", "1.2.3.4", "1.2.x", "1.2.-3", "9999999999.0.0", "1.2.3\n"] {
            assert_eq!(text.parse::<ProgramVersion>(), Err(ProgramVersionError), "{text:?}");
        }
    }

    #[test]
    fn this_build_has_version() {
        assert!(ProgramVersion::current().is_some());
    }
}
