//! The result of a check: the condition of an object, why it matters, and the remedy.

use std::fmt;

use serde::Serialize;

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
    pub command: Option<String>,
    /// A remedy that is not a command for this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(
        check: &'static str,
        severity: Severity,
        summary: impl Into<String>,
        explanation: impl Into<String>,
    ) -> Self {
        let (summary, explanation) = (summary.into(), explanation.into());
        Self { check, severity, summary, explanation, command: None, advice: None }
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

    pub(crate) fn with_command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
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
}

/// Formats the finding for a terminal: a line for the condition, and a line each for command and
/// advice. The command ends its line so that it can be copied.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, severity, summary, explanation, command, advice } = self;
        write!(f, "{severity:<7}  {check:<15}  {summary}")?;
        if !explanation.is_empty() {
            write!(f, ": {explanation}")?;
        }
        write_remedy(f, "  fix with", command.as_deref())?;
        write_remedy(f, "  what to do", advice.as_deref())
    }
}

fn write_remedy(f: &mut fmt::Formatter<'_>, label: &str, remedy: Option<&str>) -> fmt::Result {
    match remedy {
        Some(remedy) => write!(f, "\n{:<7}  {label:<15}  {remedy}", ""),
        None => Ok(()),
    }
}
