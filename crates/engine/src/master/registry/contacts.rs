//! The agents from which this master received messages.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::addr::Upid;

/// Where an agent can be reached, and when it was last seen.
#[derive(Debug, Clone)]
struct Contact {
    upid: Upid,
    /// Since `Now::elapsed` 0.
    last_seen: Duration,
}

/// The agents that sent a message since the election of this master.
#[derive(Debug, Clone, Default)]
pub(super) struct Contacts(BTreeMap<Ipv4Addr, Contact>);

impl Contacts {
    pub(super) fn record(&mut self, upid: &Upid, elapsed: Duration) {
        let contact = Contact { upid: upid.clone(), last_seen: elapsed };
        self.0.insert(*upid.address.ip(), contact);
    }

    pub(super) fn remove(&mut self, ip: Ipv4Addr) {
        self.0.remove(&ip);
    }

    pub(super) fn upid(&self, ip: Ipv4Addr) -> Option<&Upid> {
        self.0.get(&ip).map(|contact| &contact.upid)
    }

    pub(super) fn last_seen(&self, ip: Ipv4Addr) -> Option<Duration> {
        self.0.get(&ip).map(|contact| contact.last_seen)
    }
}
