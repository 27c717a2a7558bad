//! What is held back until the version that it waits for is durable.

use std::collections::BTreeMap;

use crate::store::Version;

/// Things that wait for a version, in the order in which they came.
#[derive(Debug)]
pub(super) struct Held<T> {
    durable: Version,
    waiting: BTreeMap<Version, Vec<T>>,
}

impl<T> Held<T> {
    pub(super) const fn new() -> Self {
        Self { durable: Version(0), waiting: BTreeMap::new() }
    }

    pub(super) fn hold(&mut self, when: Version, what: T) {
        self.waiting.entry(when).or_default().push(what);
    }

    pub(super) const fn is_durable(&mut self, version: Version) {
        self.durable = version;
    }

    /// What need not wait any longer.
    pub(super) fn release(&mut self) -> impl Iterator<Item = T> + use<T> {
        let later = self.waiting.split_off(&self.durable.next());
        std::mem::replace(&mut self.waiting, later).into_values().flatten()
    }

    /// What waits for a version that will not come.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.waiting).into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_before_its_version_and_all_leaves_in_order() {
        let mut held = Held::new();
        held.hold(Version(2), "late");
        held.hold(Version(0), "first");
        held.hold(Version(1), "second");
        held.hold(Version(1), "third");
        assert_eq!(held.release().collect::<Vec<_>>(), ["first"]);
        held.is_durable(Version(1));
        assert_eq!(held.release().collect::<Vec<_>>(), ["second", "third"]);
        assert_eq!(held.release().count(), 0);
        assert_eq!(held.abandon().collect::<Vec<_>>(), ["late"]);
        held.is_durable(Version(9));
        assert_eq!(held.release().count(), 0);
    }
}
