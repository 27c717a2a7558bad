//! Standing warnings. An adapter sets a warning and clears it when the condition ends. Health lists
//! the warnings as problems, and a status `ok` becomes `degraded`. A failure is a warning that also
//! makes the status `failed`.
//!
//! Examples are a ZooKeeper path that every client can write, and a limit that was reduced. The
//! state machines do not see these conditions. This module is only the registry.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// A registry of standing warnings. Clones share the registry.
#[derive(Clone, Default)]
pub struct Warnings(Arc<Mutex<Registry>>);

type Listener = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Registry {
    texts: BTreeMap<String, (Severity, String)>,
    listener: Option<Listener>,
}

/// The effect of a warning on the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A status `ok` becomes `degraded`.
    Degraded,
    /// The status becomes `failed`.
    Failed,
}

/// The result of setting one warning.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Unchanged,
    /// The warning is new, or its text changed.
    Begun(Severity, String),
    Ended(String),
}

impl Warnings {
    /// Creates an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the warning `key` to `text`, or clears it. Logs a new warning, a changed text and the
    /// end of a warning. An unchanged warning is not logged again.
    pub fn set(&self, key: &str, text: Option<String>) {
        self.replace_and_log(key, text.map(|text| (Severity::Degraded, text)));
    }

    /// Sets the failure `key` to `text`, or clears it, as [`Self::set`] does.
    pub fn set_failure(&self, key: &str, text: Option<String>) {
        self.replace_and_log(key, text.map(|text| (Severity::Failed, text)));
    }

    fn replace_and_log(&self, key: &str, warning: Option<(Severity, String)>) {
        // Logs without the lock: the log may be on a disk that hangs.
        match self.replace(key, warning) {
            Change::Begun(Severity::Failed, text) => log::error!("{text}"),
            Change::Begun(Severity::Degraded, text) => log::warn!("{text}"),
            Change::Ended(text) => log::info!("resolved: {text}"),
            Change::Unchanged => {}
        }
    }

    fn replace(&self, key: &str, warning: Option<(Severity, String)>) -> Change {
        let mut registry = self.0.lock();
        let change = match warning {
            Some(warning) if registry.texts.get(key) == Some(&warning) => Change::Unchanged,
            Some((severity, text)) => {
                registry.texts.insert(key.to_owned(), (severity, text.clone()));
                Change::Begun(severity, text)
            }
            None => {
                let ended = registry.texts.remove(key);
                ended.map_or(Change::Unchanged, |(_, text)| Change::Ended(text))
            }
        };
        let listener = registry.listener.clone().filter(|_| change != Change::Unchanged);
        drop(registry);
        if let Some(listener) = listener {
            listener();
        }
        change
    }

    /// Returns the texts of all warnings, in the order of their keys, failures first.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let registry = self.0.lock();
        let of = |severity| registry.texts.values().filter(move |(own, _)| *own == severity);
        let sorted = of(Severity::Failed).chain(of(Severity::Degraded));
        sorted.map(|(_, text)| text.clone()).collect()
    }

    /// Returns the worst severity; `None` without a warning.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.0.lock().texts.values().map(|(severity, _)| *severity).max()
    }

    /// Returns whether the failure `key` is set.
    #[must_use]
    pub fn has_failure(&self, key: &str) -> bool {
        self.0.lock().texts.get(key).is_some_and(|(severity, _)| *severity == Severity::Failed)
    }

    /// Whether there is no warning.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().texts.is_empty()
    }

    /// Replaces the listener. The listener is called after every change and must not block.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.0.lock().listener = Some(Arc::new(listener));
    }
}

impl fmt::Debug for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Warnings").field(&self.0.lock().texts).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn set_replaces_and_removes_by_key() {
        let warnings = Warnings::new();
        let changes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&changes);
        warnings.on_change(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let count = || changes.load(Ordering::Relaxed);
        assert!(warnings.is_empty());
        warnings.set("b", Some("two".to_owned()));
        warnings.clone().set("a", Some("one".to_owned()));
        assert_eq!(warnings.texts(), ["one", "two"]);
        assert_eq!(count(), 2);
        warnings.set("a", Some("one".to_owned()));
        warnings.set("c", None);
        assert_eq!(count(), 2, "nothing changed");
        warnings.set("a", None);
        warnings.set("b", None);
        assert!(warnings.is_empty());
        assert_eq!(count(), 4);
    }

    #[test]
    fn change_is_logged_once() {
        let warnings = Warnings::new();
        let text = |text: &str| Some((Severity::Degraded, text.to_owned()));
        let begun = |text: &str| Change::Begun(Severity::Degraded, text.to_owned());
        assert_eq!(warnings.replace("a", text("one")), begun("one"));
        assert_eq!(warnings.replace("a", text("one")), Change::Unchanged);
        assert_eq!(warnings.replace("a", text("two")), begun("two"));
        assert_eq!(warnings.replace("a", None), Change::Ended("two".to_owned()));
        assert_eq!(warnings.replace("a", None), Change::Unchanged);
    }

    #[test]
    fn failure_is_worst_and_listed_first() {
        let warnings = Warnings::new();
        assert_eq!(warnings.worst(), None);
        warnings.set("a", Some("open path".to_owned()));
        assert_eq!(warnings.worst(), Some(Severity::Degraded));
        warnings.set_failure("b", Some("no server".to_owned()));
        assert_eq!(warnings.worst(), Some(Severity::Failed));
        assert!(warnings.has_failure("b") && !warnings.has_failure("a"));
        assert_eq!(warnings.texts(), ["no server", "open path"]);
        warnings.set_failure("b", None);
        assert_eq!(warnings.worst(), Some(Severity::Degraded));
    }
}
