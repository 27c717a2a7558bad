//! Standing warnings. An adapter sets a warning and clears it when the condition ends. Health lists
//! the warnings as problems, and a status `ok` becomes `degraded`.
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
    texts: BTreeMap<String, String>,
    listener: Option<Listener>,
}

/// The result of setting one warning.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Unchanged,
    /// The warning is new, or its text changed.
    Begun(String),
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
        // Logs without the lock: the log may be on a disk that hangs.
        match self.replace(key, text) {
            Change::Begun(text) => log::warn!("{text}"),
            Change::Ended(text) => log::info!("resolved: {text}"),
            Change::Unchanged => {}
        }
    }

    fn replace(&self, key: &str, text: Option<String>) -> Change {
        let mut registry = self.0.lock();
        let change = match text {
            Some(text) if registry.texts.get(key) == Some(&text) => Change::Unchanged,
            Some(text) => {
                registry.texts.insert(key.to_owned(), text.clone());
                Change::Begun(text)
            }
            None => registry.texts.remove(key).map_or(Change::Unchanged, Change::Ended),
        };
        let listener = registry.listener.clone().filter(|_| change != Change::Unchanged);
        drop(registry);
        if let Some(listener) = listener {
            listener();
        }
        change
    }

    /// Returns the texts of all warnings, in the order of their keys.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().texts.values().cloned().collect()
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
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(warnings.replace("a", text("one")), Change::Begun("one".to_owned()));
        assert_eq!(warnings.replace("a", text("one")), Change::Unchanged);
        assert_eq!(warnings.replace("a", text("two")), Change::Begun("two".to_owned()));
        assert_eq!(warnings.replace("a", None), Change::Ended("two".to_owned()));
        assert_eq!(warnings.replace("a", None), Change::Unchanged);
    }
}
