//! What a check found: how it is, what is wrong on which object, why that matters, and what mends
//! it.

use std::fmt;

use serde::Serialize;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// As it should be.
    Ok,
    /// Good to know, or not looked at.
    Note,
    /// It may be wrong, which cannot be told from here; or it will be.
    Warning,
    /// Containers do not reach each other because of it.
    Wrong,
}

impl Grade {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
        }
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The name of the check, which stays the same.
    pub(super) check: &'static str,
    /// How it is.
    pub(super) result: Grade,
    /// What was found, on which object.
    pub(super) what: String,
    /// Why that matters.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) why: String,
    /// A command for a shell of root on this host that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
    /// What to do, where that is no command for this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

impl Finding {
    fn new(
        check: &'static str,
        result: Grade,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        let (what, why) = (what.into(), why.into());
        Self { check, result, what, why, command: None, advice: None }
    }

    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Grade::Ok, what, "")
    }

    pub(super) fn note(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Grade::Note, what, "")
    }

    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self::new(check, Grade::Warning, what, why)
    }

    pub(super) fn wrong(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self::new(check, Grade::Wrong, what, why)
    }

    pub(super) fn mend(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }

    pub(super) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same, less grave.
    pub(super) const fn at_most(mut self, most: Grade) -> Self {
        if (self.result as u8) > (most as u8) {
            self.result = most;
        }
        self
    }
}

/// For a terminal: a line for what was found, and one for each of the rest, with the command alone
/// on its line, so that it can be copied.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, result, what, why, command, advice } = self;
        write!(f, "{result:<7}  {check:<15}  {what}")?;
        if !why.is_empty() {
            write!(f, ": {why}")?;
        }
        let mut more = |label: &str, text: &Option<String>| match text {
            Some(text) => write!(f, "\n{:<7}  {label:<15}  {text}", ""),
            None => Ok(()),
        };
        more("  mend it with", command)?;
        more("  what to do", advice)
    }
}
