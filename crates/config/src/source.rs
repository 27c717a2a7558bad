//! The sources of a configuration: a file, the parameters of a Mesos module, the environment.
//! Converts the offset of a finding into the location that an operator can look up.

use std::mem;

use overlay_types::text::pluralize;

use super::problem::{Problem, SourceLocation};
use super::text::one_line;

/// A text and its origin.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) text: &'a str,
}

/// Where a text comes from.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    /// The file with this name.
    File(&'a str),
    /// No file was given. A missing key is reported as a missing parameter.
    NoFile,
    /// The module parameter with this name.
    Parameter(String),
    /// This environment variable.
    Variable(&'static str),
}

/// A problem whose offset is not yet converted into line and column. [`locate`] converts all
/// findings in one pass.
#[derive(Debug)]
pub(super) struct Finding {
    /// Index of the source.
    pub(super) source: usize,
    pub(super) offset: usize,
    pub(super) key: String,
    pub(super) message: String,
}

/// Maximum number of findings of one kind that are kept. A file with more is probably the wrong
/// file, or an attack: 256 KiB can cause 100,000 findings, and each finding prints its line.
pub(super) const FINDINGS_MAX: usize = 100;

/// The first findings of one kind, and the number of all findings.
#[derive(Debug, Default)]
pub(super) struct Findings {
    first: Vec<Finding>,
    count: usize,
}

impl Findings {
    /// Adds a finding. Calls `make` only if the finding is kept.
    pub(super) fn push(&mut self, make: impl FnOnce() -> Finding) {
        if self.first.len() < FINDINGS_MAX {
            self.first.push(make());
        }
        self.count += 1;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Source<'_> {
    /// Returns the offset of `part`, which must be a slice of the text.
    pub(super) fn offset_of(&self, part: &str) -> usize {
        part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr())
    }

    /// Builds the problem about `key` at `position`. The location names the parameter itself;
    /// inside the JSON of a parameter, the key is a path that begins with the parameter's name.
    fn problem(&self, position: &Position, key: String, message: String) -> Problem {
        let Position { line, column, .. } = *position;
        let (location, key) = match &self.origin {
            Origin::File(name) => {
                (SourceLocation::File { file: one_line(name), line, column }, key)
            }
            Origin::NoFile => (SourceLocation::Parameter { parameter: key }, String::new()),
            Origin::Parameter(name) => {
                let key = if key == *name { String::new() } else { key };
                (SourceLocation::Parameter { parameter: name.clone() }, key)
            }
            Origin::Variable(variable) => (SourceLocation::Variable { variable }, String::new()),
        };
        Problem { location, key, message }
    }
}

/// A position in a text. It only moves forward.
struct Position {
    offset: usize,
    line: usize,
    column: usize,
}

impl Position {
    const START: Self = Self { offset: 0, line: 1, column: 1 };

    fn advance(&mut self, text: &str, offset: usize) {
        for letter in text[self.offset..offset].chars() {
            (self.line, self.column) =
                if letter == '\n' { (self.line + 1, 1) } else { (self.line, self.column + 1) };
        }
        self.offset = offset;
    }
}

/// Converts findings into problems, in the order of their locations, with one pass over each text.
/// If some findings were not kept, a last problem gives their number. Also returns the number of
/// all findings. `noun` names one finding in that last problem.
pub(super) fn locate(
    sources: &[Source<'_>],
    Findings { first: mut findings, count }: Findings,
    noun: &str,
) -> (Vec<Problem>, usize) {
    findings.sort_by_key(|finding| (finding.source, finding.offset));
    let omitted = count - findings.len();
    if let Some(last) = findings.last().filter(|_| omitted > 0) {
        let more = pluralize(omitted as u128, &format!("more {noun}"));
        let message = format!("… and {more}: fix those above and try again");
        findings.push(Finding { key: String::new(), message, ..*last });
    }
    let mut position = Position::START;
    let mut current = 0;
    let mut problems = Vec::with_capacity(findings.len());
    for Finding { source: index, offset, key, message } in findings {
        if mem::replace(&mut current, index) != index {
            position = Position::START;
        }
        let source = &sources[index];
        position.advance(source.text, offset);
        problems.push(source.problem(&position, key, message));
    }
    (problems, count)
}
