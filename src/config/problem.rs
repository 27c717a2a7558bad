//! What is wrong with a configuration, and where. Warnings are of the same type: only the list that
//! they stand in tells them apart.

use std::fmt;

/// One problem of a configuration, with the place of it and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Where to look.
    #[serde(flatten)]
    pub place: Place,
    /// Dotted path of the key, such as `overlays[1].prefix`; empty for the place as a whole.
    pub key: String,
    /// What is wrong and what would be right, on one line.
    pub message: String,
}

/// Where a configuration has a problem.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Place {
    /// In a file.
    File {
        /// The file, as its reader named it.
        file: String,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
    },
    /// In a parameter of a Mesos module.
    Parameter {
        /// Its name, as the beginning of it that fits into a line.
        parameter: String,
    },
    /// In the environment.
    Variable {
        /// The name of the variable.
        variable: &'static str,
    },
}

impl Place {
    /// Line and column, where it is in a file.
    #[must_use]
    pub const fn position(&self) -> Option<(usize, usize)> {
        match self {
            Self::File { line, column, .. } => Some((*line, *column)),
            Self::Parameter { .. } | Self::Variable { .. } => None,
        }
    }
}

impl fmt::Display for Place {
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
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Every reason why a configuration is refused: at least one, in the order of their places. Prints
/// one per line.
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

    /// How many problems there are, also those that are not among [`Self::as_slice`].
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The problems in the order of their places: the first hundred that were found, and if there
    /// are more, an entry that says how many.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.problems
    }

    /// What is unwise besides, in the order of their places. Not printed.
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

/// `text` on one line and harmless to a terminal: a file may hold line breaks, escape sequences and
/// marks of direction in its keys and values.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\'' | '"' | '\\' => line.push(letter),
            other => line.extend(other.escape_debug()),
        }
    }
    line
}

/// The beginning of `text`, at most `length` characters of it.
pub(super) fn abbreviate(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
