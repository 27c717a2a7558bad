//! Agents with one IP and different ports. They share one allocation, since the IP is the identity
//! of an agent.
//!
//! An agent that was started again with another port looks the same at first. So the master links
//! to the previous process. If that link is open after [`LINK_TIMEOUT`], or if the previous process
//! sends a message, both processes run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use overlay_types::addr::Upid;

use super::contacts::{LINK_TIMEOUT, SLICE};

/// Two processes at one IP.
#[derive(Debug, Clone)]
struct Pair {
    previous: Upid,
    current: Upid,
    /// When it is certain that both run. `None` if it is certain now.
    certain_from: Option<Duration>,
}

/// The IPs at which a second process has registered, while the first process may still run.
///
/// After all agents were started again with another port, every IP has a pair, so no event searches
/// the pairs.
#[derive(Debug, Clone, Default)]
pub(in crate::master) struct SharedAddresses {
    pairs: BTreeMap<Ipv4Addr, Pair>,
    /// The pairs that are not certain yet.
    uncertain: BTreeSet<(Duration, Ipv4Addr)>,
    /// The processes to which the master has to link.
    links: BTreeMap<Ipv4Addr, Upid>,
}

impl SharedAddresses {
    /// Notes that `current` has registered in the place of `previous`.
    pub(super) fn replace(&mut self, previous: &Upid, current: &Upid, elapsed: Duration) {
        let ip = *current.address.ip();
        let before = self.take(ip);
        // The first process sent a message after the second.
        let is_back =
            before.as_ref().is_some_and(|it| it.previous == *current && it.current == *previous);
        let certain_from = (!is_back).then_some(elapsed + LINK_TIMEOUT);
        if is_back && before.is_some_and(|pair| pair.certain_from.is_some()) {
            log::warn!("{}", sentence(previous, current));
        }
        self.uncertain.extend(certain_from.map(|from| (from, ip)));
        self.links.insert(ip, previous.clone());
        let (previous, current) = (previous.clone(), current.clone());
        self.pairs.insert(ip, Pair { previous, current, certain_from });
    }

    /// Removes the pair at an IP.
    fn take(&mut self, ip: Ipv4Addr) -> Option<Pair> {
        let pair = self.pairs.remove(&ip)?;
        if let Some(from) = pair.certain_from {
            self.uncertain.remove(&(from, ip));
        }
        Some(pair)
    }

    /// Notes a message of a process that is not the process of the agent.
    pub(super) fn record(&mut self, from: &Upid) {
        let ip = *from.address.ip();
        if let Some(pair) = self.pairs.get_mut(&ip).filter(|pair| pair.previous == *from)
            && let Some(certain_from) = pair.certain_from.take()
        {
            self.uncertain.remove(&(certain_from, ip));
            log::warn!("{}", sentence(&pair.previous, &pair.current));
        }
    }

    /// Handles the end of a link, or of the attempt to open it.
    pub(super) fn exited(&mut self, address: SocketAddrV4) {
        let is_of_pair =
            |pair: &Pair| pair.previous.address == address || pair.current.address == address;
        if self.pairs.get(address.ip()).is_some_and(is_of_pair) {
            self.take(*address.ip());
        }
    }

    pub(super) fn remove(&mut self, ip: Ipv4Addr) {
        self.take(ip);
        self.links.remove(&ip);
    }

    /// Gives every link the time to fail again: this master handled no event for a while.
    pub(super) fn restart(&mut self, elapsed: Duration) {
        let from = elapsed + LINK_TIMEOUT;
        let uncertain = std::mem::take(&mut self.uncertain);
        for (_, ip) in uncertain {
            if let Some(pair) = self.pairs.get_mut(&ip) {
                pair.certain_from = Some(from);
                self.uncertain.insert((from, ip));
            }
        }
    }

    /// Returns processes to which the master has to link now. If more are left, the next timeout is
    /// due at once.
    pub(super) fn take_links(&mut self) -> Vec<Upid> {
        (0..SLICE).map_while(|_| Some(self.links.pop_first()?.1)).collect()
    }

    /// Notes the pairs that are certain now, since the link has not failed.
    pub(super) fn take_due(&mut self, elapsed: Duration) {
        while let Some(&(from, ip)) = self.uncertain.first().filter(|(from, _)| *from <= elapsed) {
            self.uncertain.remove(&(from, ip));
            if let Some(pair) = self.pairs.get_mut(&ip) {
                pair.certain_from = None;
                log::warn!("{}", sentence(&pair.previous, &pair.current));
            }
        }
    }

    /// Returns when [`Self::take_links`] or [`Self::take_due`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        if !self.links.is_empty() {
            return Some(Duration::ZERO);
        }
        self.uncertain.first().map(|(from, _)| *from)
    }

    pub(super) fn has_any(&self) -> bool {
        self.pairs.len() > self.uncertain.len()
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
