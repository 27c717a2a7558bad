//! Agents with one IP and different ports. They share one allocation, since the IP is the identity
//! of an agent.
//!
//! An agent that was started again with another port looks the same at first. So the master links
//! to the previous process. If that link opens, or if the previous process sends a message, both
//! processes run.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use overlay_types::addr::Upid;

/// A process that has ended refuses a connection at once. It is on the host of a process that was
/// just seen, so the host is reachable.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// Two processes at one IP.
#[derive(Debug, Clone)]
struct Pair {
    previous: Upid,
    current: Upid,
    /// When it is certain that both run. `None` if it is certain now.
    certain_from: Option<Duration>,
}

/// The IPs at which a second process has registered, while the first process may still run.
#[derive(Debug, Clone, Default)]
pub(in crate::master) struct SharedAddresses {
    pairs: BTreeMap<Ipv4Addr, Pair>,
    /// The processes to which the master has to link.
    links: Vec<Upid>,
}

impl SharedAddresses {
    /// Notes that `current` has registered in the place of `previous`.
    pub(super) fn replace(&mut self, previous: &Upid, current: &Upid, elapsed: Duration) {
        let ip = *current.address.ip();
        let is_back = |pair: &&Pair| pair.previous == *current && pair.current == *previous;
        let certain_from = match self.pairs.get(&ip).filter(is_back) {
            // The first process sent a message after the second.
            Some(_) => None,
            None => Some(elapsed + LINK_TIMEOUT),
        };
        if certain_from.is_none() {
            self.log(previous, current, ip);
        }
        self.links.push(previous.clone());
        let (previous, current) = (previous.clone(), current.clone());
        self.pairs.insert(ip, Pair { previous, current, certain_from });
    }

    /// Notes a message of a process that is not the process of the agent.
    pub(super) fn record(&mut self, from: &Upid) {
        let ip = *from.address.ip();
        if let Some(pair) = self.pairs.get_mut(&ip).filter(|pair| pair.previous == *from)
            && pair.certain_from.take().is_some()
        {
            let Pair { previous, current, .. } = pair.clone();
            log::warn!("{}", sentence(&previous, &current));
        }
    }

    /// Logs a pair that is certain, unless it was certain before.
    fn log(&self, previous: &Upid, current: &Upid, ip: Ipv4Addr) {
        if self.pairs.get(&ip).is_some_and(|pair| pair.certain_from.is_some()) {
            log::warn!("{}", sentence(previous, current));
        }
    }

    /// Handles the end of a link, or of the attempt to open it.
    pub(super) fn exited(&mut self, address: SocketAddrV4) {
        let is_of_pair =
            |pair: &Pair| pair.previous.address == address || pair.current.address == address;
        if self.pairs.get(address.ip()).is_some_and(is_of_pair) {
            self.pairs.remove(address.ip());
        }
    }

    pub(super) fn remove(&mut self, ip: Ipv4Addr) {
        self.pairs.remove(&ip);
    }

    /// Returns the processes to which the master has to link now.
    pub(super) fn take_links(&mut self) -> Vec<Upid> {
        std::mem::take(&mut self.links)
    }

    /// Notes the pairs that are certain now, since the link has not failed.
    pub(super) fn take_due(&mut self, elapsed: Duration) {
        for pair in self.pairs.values_mut() {
            if pair.certain_from.is_some_and(|from| from <= elapsed) {
                pair.certain_from = None;
                log::warn!("{}", sentence(&pair.previous, &pair.current));
            }
        }
    }

    /// Returns when [`Self::take_links`] or [`Self::take_due`] has something to do. Pairs are rare.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let now = (!self.links.is_empty()).then_some(Duration::ZERO);
        let from = self.pairs.values().filter_map(|pair| pair.certain_from);
        from.chain(now).min()
    }

    pub(super) fn has_any(&self) -> bool {
        self.pairs.values().any(|pair| pair.certain_from.is_none())
    }

    /// Returns a sentence for each pair of which both processes run.
    pub(super) fn sentences(&self) -> impl Iterator<Item = String> {
        let certain = self.pairs.values().filter(|pair| pair.certain_from.is_none());
        certain.map(|pair| sentence(&pair.previous, &pair.current))
    }
}

fn sentence(previous: &Upid, current: &Upid) -> String {
    format!(
        "agents {} and {} run at one IP and share one allocation: stop one of them, or start it \
         with another address in --advertise",
        previous.address, current.address
    )
}
