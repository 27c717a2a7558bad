//! Where the text of a configuration comes from: a file, the parameters of a Mesos module, the
//! environment. Turns the place of a finding in its text into what an operator looks for.

use std::mem;

use super::problem::{Place, Problem, one_line};
use crate::words::counted;

/// A text and its origin.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) text: &'a str,
}

/// Who says the text.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    /// The file of this name.
    File(&'a str),
    /// No file, where there could have been one: what is missing would be a parameter.
    NoFile,
    /// The parameter of this name.
    Parameter(String),
    /// This variable of the environment.
    Variable(&'static str),
}

/// A problem whose offset is not yet turned into line and column: that is done for all at once.
#[derive(Debug)]
pub(super) struct Finding {
    /// Index of the source.
    pub(super) source: usize,
    pub(super) offset: usize,
    pub(super) key: String,
    pub(super) message: String,
}

/// Most findings of one kind that are kept. A file with more is another file than its writer
/// thinks, or somebody's attack: 256 KiB can have 100,000 findings, of which each is shown with its
/// line.
pub(super) const FINDINGS_MAX: usize = 100;

/// The first findings of one kind, and how many there were.
#[derive(Debug, Default)]
pub(super) struct Findings {
    first: Vec<Finding>,
    count: usize,
}

impl Findings {
    /// Adds a finding, which is made only if it is kept.
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
    /// The offset of `part`, a slice of the text.
    pub(super) fn offset_of(&self, part: &str) -> usize {
        part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr())
    }

    /// A finding about `key` at this position of the text. The parameter itself is named by the
    /// place; within its JSON the key is a path that begins with it.
    fn problem(&self, position: &Position, key: String, message: String) -> Problem {
        let Position { line, column, .. } = *position;
        let (place, key) = match &self.origin {
            Origin::File(name) => (Place::File { file: one_line(name), line, column }, key),
            Origin::NoFile => (Place::Parameter { parameter: key }, String::new()),
            Origin::Parameter(name) => {
                let key = if key == *name { String::new() } else { key };
                (Place::Parameter { parameter: name.clone() }, key)
            }
            Origin::Variable(variable) => (Place::Variable { variable }, String::new()),
        };
        Problem { place, key, message }
    }
}

/// A position in a text that only moves forward.
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

/// The findings with their places and in the order of these, source after source: one walk through
/// each text. If not all were kept, a last problem says how many more there are. Also returns how
/// many there were; `noun` is what one is called.
pub(super) fn located(
    sources: &[Source<'_>],
    Findings { first: mut findings, count }: Findings,
    noun: &str,
) -> (Vec<Problem>, usize) {
    findings.sort_by_key(|finding| (finding.source, finding.offset));
    let omitted = count - findings.len();
    if let Some(last) = findings.last().filter(|_| omitted > 0) {
        let more = counted(omitted as u128, &format!("more {noun}"));
        let message = format!("… and {more}: mend those above and try again");
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
