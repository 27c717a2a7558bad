//! The peers that agents do not reach, as the agents report. A pair is named once with all agents
//! that do not reach the peer: who reaches it, and who does not, shows where the path is broken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use overlay_types::addr::Upid;
use overlay_types::protocol::{PeerFailure, PeerFailureCause, PeerFailures};
use overlay_types::text::{count_and_list, pluralize};

use super::Registry;

/// The most peers that the problems name.
const NAMED_MAX: usize = 10;
/// The most pairs in the state. In a partition of a large cluster each agent reports many peers.
const SHOWN_MAX: usize = 4096;

/// The reports about one peer.
#[derive(Debug, Default)]
struct Reports {
    reporters: Vec<Ipv4Addr>,
    causes: BTreeSet<PeerFailureCause>,
}

impl Registry {
    /// Replaces the report of an agent. Only the first entry about each peer counts: each entry
    /// stands for one reporter. Entries about the reporter itself and about unknown agents are
    /// dropped.
    pub(in crate::master) fn report_peer_failures(&mut self, from: &Upid, failures: PeerFailures) {
        let ip = *from.address.ip();
        let mut seen = BTreeSet::from([ip]);
        let is_first =
            |failure: &PeerFailure| self.is_active(failure.agent) && seen.insert(failure.agent);
        let peers: Vec<PeerFailure> = failures.peers.into_iter().filter(is_first).collect();
        if peers.is_empty() {
            self.peer_failures.remove(&ip);
        } else {
            let total = failures.total.max(u32::try_from(peers.len()).unwrap_or(u32::MAX));
            self.peer_failures.insert(ip, PeerFailures { peers, total });
        }
    }

    /// Returns the reports of the agents that are not stale. A report counts until the agent sends
    /// another one.
    fn current_peer_failures(&self) -> impl Iterator<Item = (Ipv4Addr, &PeerFailures)> {
        let reports = self.peer_failures.iter();
        let stale = self.contacts.stale();
        reports.filter(|(ip, _)| !stale.contains(ip)).map(|(ip, failures)| (*ip, failures))
    }

    /// Returns the reports for the state. Peers that were released since are left out. Each agent
    /// has the same number of named peers, and the number of all.
    pub(super) fn shown_peer_failures(&self) -> BTreeMap<Ipv4Addr, PeerFailures> {
        let max = (SHOWN_MAX / self.peer_failures.len().max(1)).max(1);
        let shown = self.current_peer_failures().filter_map(|(ip, failures)| {
            let peers = failures.peers.iter().filter(|failure| self.is_active(failure.agent));
            let peers: Vec<PeerFailure> = peers.copied().take(max).collect();
            (!peers.is_empty()).then_some((ip, PeerFailures { peers, total: failures.total }))
        });
        shown.collect()
    }

    /// Returns whether an agent does not reach a peer.
    pub(super) fn has_peer_failures(&self) -> bool {
        self.current_peer_failures()
            .any(|(_, failures)| failures.peers.iter().any(|failure| self.is_active(failure.agent)))
    }

    /// Returns a sentence for each of the first peers that are not reached, those with the most
    /// reports first.
    pub(super) fn peer_failure_problems(&self) -> Vec<String> {
        let mut by_peer: BTreeMap<Ipv4Addr, Reports> = BTreeMap::new();
        for (reporter, failures) in self.current_peer_failures() {
            for failure in failures.peers.iter().filter(|failure| self.is_active(failure.agent)) {
                let reports = by_peer.entry(failure.agent).or_default();
                reports.reporters.push(reporter);
                reports.causes.insert(failure.cause);
            }
        }
        let count = |peer| by_peer.get(peer).map_or(0, |reports| reports.reporters.len());
        // A broken agent reports all peers. More agents report it than each of these peers.
        let mut causing: Vec<(&Ipv4Addr, &Reports)> = by_peer
            .iter()
            .filter(|(_, reports)| {
                let own = reports.reporters.len();
                reports.reporters.iter().any(|reporter| count(reporter) <= own)
            })
            .collect();
        causing.sort_by_key(|(peer, reports)| (Reverse(reports.reporters.len()), **peer));
        let more = causing.len().saturating_sub(NAMED_MAX);
        let named = causing.into_iter().take(NAMED_MAX);
        let mut problems: Vec<String> =
            named.map(|(peer, reports)| self.peer_failure_sentence(*peer, reports)).collect();
        if more > 0 {
            let peers = pluralize(more as u128, "more agent");
            problems
                .push(format!("{peers} not reached by others: see unreached_peers in the state"));
        }
        problems
    }

    /// Describes who does not reach `peer`, and what that says of the cause. The number of reports
    /// says little: not all agents probe, and in a large cluster a round takes many minutes.
    fn peer_failure_sentence(&self, peer: Ipv4Addr, reports: &Reports) -> String {
        let Reports { reporters, causes } = reports;
        let is_silent = causes.iter().all(|cause| *cause == PeerFailureCause::NoAnswer);
        let is_missed = self.contacts.stale().contains(&peer) || self.contacts.is_late(peer);
        let hint = match (reporters.len(), is_silent) {
            (_, true) if is_missed => {
                "the master gets no messages of it either: see whether its host is up, and delete \
                 the agent if it is gone"
            }
            (1, _) => {
                "no other agent reports that so far: see the network between the two, or run \
                 'mesos-overlay doctor --probe' on one of them"
            }
            (_, true) => {
                "several agents report that: see whether its host is up, and what drops packets of \
                 the tunnel there: run 'mesos-overlay doctor --probe' on it"
            }
            (_, false) => {
                "several agents report that: run 'mesos-overlay doctor --probe' on its host"
            }
        };
        let causes: Vec<&str> = causes.iter().copied().map(PeerFailureCause::name).collect();
        format!(
            "agent {peer} fails probes ({}) of {}: {hint}",
            causes.join(", "),
            count_and_list(reporters, "agent")
        )
    }
}
