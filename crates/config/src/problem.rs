//! Problems of a configuration and their locations. Problems and warnings have one type and are
//! kept in different lists.

use std::fmt;

/// One problem of a configuration, with its location and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Where the problem is.
    #[serde(flatten)]
    pub location: SourceLocation,
    /// Dotted path of the key, such as `overlays[1].prefix`. Empty if the problem concerns the
    /// location as a whole.
    pub key: String,
    /// The fault and the remedy, on one line.
    pub message: String,
}

/// The part of a configuration source that has a problem.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum SourceLocation {
    /// In a file.
    File {
        /// The name of the file, as the caller gave it.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The column in characters, counted from 1.
        column: usize,
    },
    /// In a parameter of a Mesos module.
    Parameter {
        /// The name of the parameter, shortened to fit into a line.
        parameter: String,
    },
    /// In an environment variable.
    Variable {
        /// The name of the variable.
        variable: &'static str,
    },
}

impl SourceLocation {
    /// Line and column, if the location is in a file.
    #[must_use]
    pub const fn position(&self) -> Option<(usize, usize)> {
        match self {
            Self::File { line, column, .. } => Some((*line, *column)),
            Self::Parameter { .. } | Self::Variable { .. } => None,
        }
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Parameter { parameter } => write!(f, "parameter '{parameter}'"),
            Self::Variable { variable } => write!(f, "environment variable {variable}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Every reason why a configuration is refused, in the order of the locations. There is at least
/// one reason. Prints one reason per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems {
    problems: Vec<Problem>,
    count: usize,
    warnings: Vec<Problem>,
}

impl Problems {
    pub(super) const fn new(problems: Vec<Problem>, count: usize, warnings: Vec<Problem>) -> Self {
        Self { problems, count, warnings }
    }

    /// The number of all problems, including those that [`Self::as_slice`] omits.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The first hundred problems in the order of their locations. If there are more, a last entry
    /// says how many.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.problems
    }

    /// The warnings, in the order of their locations. `Display` does not print them.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.problems.into_iter()
    }
}
