//! The durability gate holds messages and replies back until their version is durable.
//!
//! The gate is in this crate and not in the runtime, so that the simulator runs the same code.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use overlay_types::addr::Upid;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{Message, RequestId};
use overlay_types::state::Version;

use super::{EncodedUpdate, Event, Reply};

/// A message or a reply that waits for a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PendingSend {
    /// A message to this process.
    Message(Upid, Message),
    /// A peer update to these agents.
    Peers(Vec<Upid>, EncodedUpdate),
    /// The answer to a request.
    Reply(RequestId, Reply),
}

/// Pending sends in their order. The runtime of a master calls [`Self::observe`] with every event
/// before the master handles the event, and [`Self::hold`] with every send of the master. When the
/// master has no more commands, the runtime sends the result of [`Self::release`].
#[derive(Debug)]
pub struct DurabilityGate {
    durable: Version,
    waiting: BTreeMap<Version, Vec<PendingSend>>,
}

impl DurabilityGate {
    /// Returns an empty gate, for which no version is durable.
    #[must_use]
    pub const fn new() -> Self {
        Self { durable: Version(0), waiting: BTreeMap::new() }
    }

    /// Notes the version that an event makes durable.
    pub const fn observe(&mut self, event: &Event) {
        match event {
            Event::Loaded(Ok(loaded)) => self.durable = loaded.version,
            Event::Committed(Ok(version)) => self.durable = *version,
            _ => {}
        }
    }

    /// Holds a send back until `when` is durable or the send is abandoned.
    pub fn hold(&mut self, when: Version, send: PendingSend) {
        self.waiting.entry(when).or_default().push(send);
    }

    /// Removes the messages to these agents, the peer updates that contain them, and the agents
    /// from states. An agent that misses an update requests its peers again.
    pub fn withdraw(&mut self, agents: &BTreeSet<Ipv4Addr>) {
        let is_kept = |send: &mut PendingSend| match send {
            PendingSend::Message(to, _) => !agents.contains(to.address.ip()),
            PendingSend::Peers(to, update) => {
                to.retain(|to| !agents.contains(to.address.ip()));
                let mut changed =
                    agents.iter().filter(|ip| update.content().changed.contains_key(ip));
                !to.is_empty() && changed.next().is_none()
            }
            PendingSend::Reply(_, Reply::State(state)) => {
                state.agents.retain(|agent| !agents.contains(&agent.ip));
                state.contacts.retain(|ip, _| !agents.contains(ip));
                true
            }
            PendingSend::Reply(..) => true,
        };
        self.waiting.values_mut().for_each(|sends| sends.retain_mut(is_kept));
    }

    /// Removes and returns the sends whose version is durable.
    pub fn release(&mut self) -> impl Iterator<Item = PendingSend> + use<> {
        if Mutation::SendBeforeDurable.is_on() {
            self.durable = Version(u64::MAX - 1);
        }
        let later = self.waiting.split_off(&self.durable.next());
        std::mem::replace(&mut self.waiting, later).into_values().flatten()
    }

    /// Removes and returns all sends, because their version will never be durable.
    pub fn abandon(&mut self) -> impl Iterator<Item = PendingSend> + use<> {
        let abandoned = if Mutation::SendAbandonedMessages.is_on() {
            BTreeMap::new()
        } else {
            std::mem::take(&mut self.waiting)
        };
        abandoned.into_values().flatten()
    }
}

impl Default for DurabilityGate {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use overlay_types::addr::agent_upid;
    use overlay_types::protocol::MasterKind;

    use super::*;

    fn reply(id: u64) -> PendingSend {
        PendingSend::Reply(RequestId(id), Reply::Unavailable(String::new()))
    }

    #[test]
    fn withdraw_removes_messages_to_agents_only() {
        let update = |agent: &str| {
            let to = agent_upid(agent.parse().unwrap());
            PendingSend::Message(
                to,
                Message::UpdateAgentOverlays { overlays: Vec::new(), master: MasterKind::Other },
            )
        };
        let mut gate = DurabilityGate::new();
        for send in [update("10.0.0.1:5051"), update("10.0.0.2:5051"), reply(1)] {
            gate.hold(Version(0), send);
        }
        gate.withdraw(&BTreeSet::from([Ipv4Addr::new(10, 0, 0, 1)]));
        assert_eq!(gate.release().collect::<Vec<_>>(), [update("10.0.0.2:5051"), reply(1)]);
    }

    #[test]
    fn release_returns_durable_sends_in_order() {
        let mut gate = DurabilityGate::new();
        for (when, id) in [(2, 4), (0, 1), (1, 2), (1, 3)] {
            gate.hold(Version(when), reply(id));
        }
        assert_eq!(gate.release().collect::<Vec<_>>(), [reply(1)]);
        gate.observe(&Event::Committed(Ok(Version(1))));
        assert_eq!(gate.release().collect::<Vec<_>>(), [reply(2), reply(3)]);
        assert_eq!(gate.release().count(), 0);
        assert_eq!(gate.abandon().collect::<Vec<_>>(), [reply(4)]);
        gate.observe(&Event::Committed(Ok(Version(9))));
        assert_eq!(gate.release().count(), 0);
    }
}
