//! The result of a check: the condition of an object, why it matters, and the remedy.

use std::fmt;

use overlay_types::advice::Command;
use serde::Serialize;

use super::cause::{Object, Topic};

/// How severe a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The condition is correct.
    Ok,
    /// Information, or a check that was skipped.
    Note,
    /// A problem that this host alone cannot confirm, or that will occur later.
    Warning,
    /// A problem that prevents containers from reaching each other.
    Wrong,
}

impl Severity {
    const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// One result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The stable name of the check.
    pub check: &'static str,
    /// How severe the finding is.
    #[serde(rename = "result")]
    pub severity: Severity,
    /// The condition, with the object that has it.
    #[serde(rename = "what")]
    pub summary: String,
    /// The cause or the consequence of the condition.
    #[serde(rename = "why", skip_serializing_if = "String::is_empty")]
    pub explanation: String,
    /// A command for a root shell on this host that fixes the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// A remedy that is not a command for this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What the finding is about, for the relation of causes. A problem that the agent reports may
    /// be about several topics.
    #[serde(skip)]
    pub(crate) topics: Vec<Topic>,
    /// The object that the finding concerns.
    #[serde(skip)]
    pub(crate) object: Object,
}

impl Finding {
    fn new(
        check: &'static str,
        severity: Severity,
        summary: impl Into<String>,
        explanation: impl Into<String>,
    ) -> Self {
        Self {
            check,
            severity,
            summary: summary.into(),
            explanation: explanation.into(),
            command: None,
            advice: None,
            topics: Vec::new(),
            object: Object::Host,
        }
    }

    pub(crate) fn ok(check: &'static str, summary: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, summary, "")
    }

    pub(crate) fn note(check: &'static str, summary: impl Into<String>) -> Self {
        Self::new(check, Severity::Note, summary, "")
    }

    pub(crate) fn warning(
        check: &'static str,
        summary: impl Into<String>,
        explanation: impl Into<String>,
    ) -> Self {
        Self::new(check, Severity::Warning, summary, explanation)
    }

    pub(crate) fn wrong(
        check: &'static str,
        summary: impl Into<String>,
        explanation: impl Into<String>,
    ) -> Self {
        Self::new(check, Severity::Wrong, summary, explanation)
    }

    /// Sets what the finding is about.
    pub(crate) fn about(mut self, topic: Topic) -> Self {
        self.topics = vec![topic];
        self
    }

    /// Sets the object that the finding concerns.
    pub(crate) fn on(mut self, object: Object) -> Self {
        self.object = object;
        self
    }

    pub(crate) fn with_command(mut self, command: Command) -> Self {
        self.command = Some(command);
        self
    }

    pub(crate) fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Lowers the severity to `max` if it is higher.
    pub(crate) fn at_most(mut self, max: Severity) -> Self {
        self.severity = self.severity.min(max);
        self
    }

    /// Changes all texts, to escape untrusted text: findings quote responses of peers and output of
    /// other programs.
    #[must_use]
    pub fn map_texts(self, change: impl Fn(&str) -> String) -> Self {
        Self {
            summary: change(&self.summary),
            explanation: change(&self.explanation),
            command: self.command.map(|command| command.map(&change)),
            advice: self.advice.as_deref().map(&change),
            ..self
        }
    }
}

/// Formats the finding for a terminal: a line for the condition, and a line each for command and
/// advice. A comment of the shell after the command says what the command changes besides the
/// objects of this project, so that the line can be copied.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, severity, summary, explanation, command, advice, .. } = self;
        write!(f, "{severity:<7}  {check:<15}  {summary}")?;
        if !explanation.is_empty() {
            write!(f, ": {explanation}")?;
        }
        if let Some(command) = command {
            write_line(f, "  fix with", command.text())?;
            command.effect().iter().try_for_each(|effect| write!(f, "  # {effect}"))?;
        }
        advice.iter().try_for_each(|advice| write_line(f, "  what to do", advice))
    }
}

/// Starts a line that belongs to the finding of the previous line.
pub(crate) fn write_line(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    write!(f, "\n{:<7}  {label:<15}  {text}", "")
}
