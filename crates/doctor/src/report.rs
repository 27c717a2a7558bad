//! The findings in the order in which an operator needs them: root causes first, each with the
//! findings that follow from it.

use std::cmp::Reverse;
use std::fmt;

use serde::Serialize;

use super::cause::causes;
use super::finding::{Finding, Severity, write_line};
use super::observation::Observation;

/// Number of letters of a finding that follows from another one.
const SHORT_MAX: usize = 60;
/// Number of checks that are named with the cause of their findings.
const NAMED_MAX: usize = 3;

/// The findings of all checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    entries: Vec<Entry>,
}

/// A finding with its place in the relation of causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// What the command changes besides objects of this project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// Index of the root cause among the findings; `None` for a root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<usize>,
    /// Indices of the findings that follow from this root.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub follows: Vec<usize>,
}

impl Report {
    /// Creates the report of the findings on a host.
    #[must_use]
    pub fn new(findings: Vec<Finding>, observation: &Observation) -> Self {
        let causes = causes(&findings, &observation.tunnel.desired);
        let root = |mut index: usize| {
            // The relation has no cycles: a cause precedes its effects.
            while let Some(cause) = causes[index] {
                index = cause;
            }
            index
        };
        let key = |index: usize| {
            let Finding { severity, topics, .. } = &findings[index];
            (Reverse(*severity), topics.is_empty(), topics.clone(), index)
        };
        let mut order: Vec<usize> = (0..findings.len()).collect();
        order.sort_by_key(|index| {
            let topics = causes[*index].map(|_| findings[*index].topics.clone());
            (key(root(*index)), topics, *index)
        });
        let place = |index: usize| order.iter().position(|other| *other == index);
        let entry = |(at, index): (usize, &usize)| {
            let finding = findings[*index].clone();
            let follows = (at + 1..order.len()).filter(|other| root(order[*other]) == *index);
            Entry {
                effect: finding
                    .command
                    .as_ref()
                    .and_then(|command| command.effect())
                    .map(str::to_owned),
                cause: causes[*index].and_then(|_| place(root(*index))),
                follows: follows.collect(),
                finding,
            }
        };
        Self { entries: order.iter().enumerate().map(entry).collect() }
    }

    /// Returns all findings, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn roots(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.cause.is_none())
    }

    /// Counts the root causes of a severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.roots().filter(|entry| entry.finding.severity == severity).count()
    }

    /// Counts the findings that follow from others.
    #[must_use]
    pub fn count_followers(&self) -> usize {
        self.entries.len() - self.roots().count()
    }

    /// Returns the lines for a terminal. If something is wrong, the correct conditions share a
    /// line, and notes have no advice.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let has_problem = self.roots().any(|entry| entry.finding.severity >= Severity::Warning);
        let is_short = |entry: &&Entry| has_problem && entry.finding.severity == Severity::Ok;
        let shown = self.roots().filter(|entry| !is_short(entry));
        let is_wrong = self.count(Severity::Wrong) > 0;
        let text = |entry: &Entry| {
            let root = Root { report: self, entry }.to_string();
            let is_note = entry.finding.severity == Severity::Note;
            let length = if is_wrong && is_note { root.find('\n') } else { None };
            root[..length.unwrap_or(root.len())].to_owned()
        };
        let mut lines: Vec<String> = shown.map(text).collect();
        let mut checks: Vec<&str> =
            self.roots().filter(is_short).map(|entry| entry.finding.check).collect();
        checks.dedup();
        if !checks.is_empty() {
            lines.push(format!("{:<7}  {}", Severity::Ok, checks.join(", ")));
        }
        lines
    }
}

/// A root cause with the findings that follow from it.
struct Root<'a> {
    report: &'a Report,
    entry: &'a Entry,
}

impl fmt::Display for Root<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { finding, follows, .. } = self.entry;
        write!(f, "{finding}")?;
        if follows.is_empty() {
            return Ok(());
        }
        let followers: Vec<&Finding> =
            follows.iter().map(|index| &self.report.entries[*index].finding).collect();
        // What one check found is named once.
        let groups: Vec<&[&Finding]> =
            followers.chunk_by(|first, second| first.check == second.check).collect();
        let mut named: Vec<String> =
            groups.iter().take(NAMED_MAX).map(|group| short(group)).collect();
        let more = groups.len().saturating_sub(NAMED_MAX);
        if more > 0 {
            named.push(format!("{more} more"));
        }
        let verb = if follows.len() == 1 { "follows" } else { "follow" };
        write_line(f, "  also", &format!("{} that {verb} ({})", follows.len(), named.join("; ")))
    }
}

/// Returns the beginning of the first finding of a check, and the number of the others.
fn short(findings: &[&Finding]) -> String {
    let [Finding { check, summary, .. }, others @ ..] = findings else { return String::new() };
    let beginning: String = summary.chars().take(SHORT_MAX).collect();
    let omission = if beginning.len() < summary.len() { "…" } else { "" };
    let more = match others.len() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("{check}: {beginning}{omission}{more}")
}
