//! Standing warnings: conditions that an adapter has found and that last until the adapter takes
//! them back. Health lists them as problems, and a status `ok` becomes `degraded`.
//!
//! The state machines know nothing of these conditions, which belong to what runs them: a ZooKeeper
//! path that everybody can write, a limit that was reduced. This module is only the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// A registry of standing warnings. Clones are handles on the same registry.
#[derive(Debug, Clone)]
pub struct Warnings(Arc<watch::Sender<BTreeMap<String, String>>>);

/// The result of setting one warning.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Unchanged,
    /// It is new, or has this other text now.
    Begun(String),
    Ended(String),
}

impl Warnings {
    /// Creates an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }

    /// Sets the warning `key` to `text`, or ends it. Logs when a warning begins, when its text
    /// changes, and when it ends; an unchanged warning is not logged again.
    pub fn set(&self, key: &str, text: Option<String>) {
        // Logged after the lock is released: the log may be on a disk that hangs.
        match self.replace(key, text) {
            Change::Begun(text) => log::warn!("{text}"),
            Change::Ended(text) => log::info!("resolved: {text}"),
            Change::Unchanged => {}
        }
    }

    fn replace(&self, key: &str, text: Option<String>) -> Change {
        let mut change = Change::Unchanged;
        self.0.send_if_modified(|warnings| {
            match text {
                Some(text) if warnings.get(key) != Some(&text) => {
                    warnings.insert(key.to_owned(), text.clone());
                    change = Change::Begun(text);
                }
                Some(_) => {}
                None => change = warnings.remove(key).map_or(Change::Unchanged, Change::Ended),
            }
            change != Change::Unchanged
        });
        change
    }

    /// The texts of all warnings, in the order of their keys.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.0.borrow().values().cloned().collect()
    }

    /// Whether there is no warning.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Returns a receiver that is notified of every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<String, String>> {
        self.0.subscribe()
    }
}

impl Default for Warnings {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_and_removes_by_key() {
        let warnings = Warnings::new();
        let mut changes = warnings.subscribe();
        assert!(warnings.is_empty());
        warnings.set("b", Some("two".to_owned()));
        warnings.clone().set("a", Some("one".to_owned()));
        assert_eq!(warnings.texts(), ["one", "two"]);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        warnings.set("a", Some("one".to_owned()));
        warnings.set("c", None);
        assert!(!changes.has_changed().unwrap(), "nothing changed");
        warnings.set("a", None);
        warnings.set("b", None);
        assert!(warnings.is_empty() && changes.has_changed().unwrap());
    }

    #[test]
    fn change_is_logged_once() {
        let warnings = Warnings::new();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(warnings.replace("a", text("one")), Change::Begun("one".to_owned()));
        assert_eq!(warnings.replace("a", text("one")), Change::Unchanged);
        assert_eq!(warnings.replace("a", text("two")), Change::Begun("two".to_owned()));
        assert_eq!(warnings.replace("a", None), Change::Ended("two".to_owned()));
        assert_eq!(warnings.replace("a", None), Change::Unchanged);
    }
}
