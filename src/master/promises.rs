//! What a master has promised and may not say yet: whatever it wants said waits until the version
//! that it names is durable.
//!
//! Here and not in the runtime, so that a simulator keeps promises with the very same code.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Event, Reply};
use crate::addr::Upid;
use crate::mutation::Mutation;
use crate::protocol::{Message, RequestId};
use crate::store::Version;

/// What waits for a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promise {
    /// A message to these processes.
    Message(Vec<Upid>, Message),
    /// The answer to a request.
    Reply(RequestId, Reply),
}

/// Promises that wait, in the order in which they were made. Whoever runs a master shows it every
/// event before the master sees it, holds what the master wants said, and says what is released
/// whenever the master wants nothing more for the moment.
#[derive(Debug)]
pub struct Promises {
    durable: Version,
    waiting: BTreeMap<Version, Vec<Promise>>,
}

impl Promises {
    /// None so far, and nothing is durable.
    #[must_use]
    pub const fn new() -> Self {
        Self { durable: Version(0), waiting: BTreeMap::new() }
    }

    /// Takes note of what an event makes durable.
    pub const fn before(&mut self, event: &Event) {
        match event {
            Event::Loaded(Ok(loaded)) => self.durable = loaded.version,
            Event::Committed(Ok(version)) => self.durable = *version,
            _ => {}
        }
    }

    /// Keeps a promise until `when` is durable, or given up.
    pub fn hold(&mut self, when: Version, promise: Promise) {
        self.waiting.entry(when).or_default().push(promise);
    }

    /// Gives up the messages to these agents.
    pub fn withdraw(&mut self, agents: &BTreeSet<Ipv4Addr>) {
        let is_kept = |promise: &mut Promise| match promise {
            Promise::Message(to, _) => {
                to.retain(|to| !agents.contains(to.address.ip()));
                !to.is_empty()
            }
            Promise::Reply(..) => true,
        };
        self.waiting.values_mut().for_each(|promises| promises.retain_mut(is_kept));
    }

    /// What need not wait any longer.
    pub fn release(&mut self) -> impl Iterator<Item = Promise> + use<> {
        if Mutation::SendBeforeDurable.is_on() {
            self.durable = Version(u64::MAX - 1);
        }
        let later = self.waiting.split_off(&self.durable.next());
        std::mem::replace(&mut self.waiting, later).into_values().flatten()
    }

    /// What waits for a version that will not come.
    pub fn abandon(&mut self) -> impl Iterator<Item = Promise> + use<> {
        let abandoned = if Mutation::KeepAbandonedPromises.is_on() {
            BTreeMap::new()
        } else {
            std::mem::take(&mut self.waiting)
        };
        abandoned.into_values().flatten()
    }
}

impl Default for Promises {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: u64) -> Promise {
        Promise::Reply(RequestId(id), Reply::Unavailable(String::new()))
    }

    #[test]
    fn what_a_deleted_agent_was_to_be_told_is_withdrawn_and_nothing_else() {
        let update = |agent: &str| {
            let to = Upid::agent(agent.parse().unwrap());
            Promise::Message(vec![to], Message::UpdateAgentOverlays(Vec::new()))
        };
        let mut promises = Promises::new();
        for promise in [update("10.0.0.1:5051"), update("10.0.0.2:5051"), reply(1)] {
            promises.hold(Version(0), promise);
        }
        promises.withdraw(&BTreeSet::from([Ipv4Addr::new(10, 0, 0, 1)]));
        assert_eq!(promises.release().collect::<Vec<_>>(), [update("10.0.0.2:5051"), reply(1)]);
    }

    #[test]
    fn nothing_leaves_before_its_version_and_all_leaves_in_order() {
        let mut promises = Promises::new();
        for (when, id) in [(2, 4), (0, 1), (1, 2), (1, 3)] {
            promises.hold(Version(when), reply(id));
        }
        assert_eq!(promises.release().collect::<Vec<_>>(), [reply(1)]);
        promises.before(&Event::Committed(Ok(Version(1))));
        assert_eq!(promises.release().collect::<Vec<_>>(), [reply(2), reply(3)]);
        assert_eq!(promises.release().count(), 0);
        assert_eq!(promises.abandon().collect::<Vec<_>>(), [reply(4)]);
        promises.before(&Event::Committed(Ok(Version(9))));
        assert_eq!(promises.release().count(), 0);
    }
}
