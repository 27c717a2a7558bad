//! The peers that agents do not reach, as the agents report. A pair is named once with all agents
//! that do not reach the peer: who reaches it, and who does not, shows where the path is broken.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::addr::Upid;
use overlay_types::protocol::{PeerFailure, PeerFailureCause, PeerFailures};
use overlay_types::text::{count_and_list, pluralize};

use super::Registry;

/// The most peers that the problems name.
const NAMED_MAX: usize = 10;

impl Registry {
    /// Replaces the report of an agent.
    pub(in crate::master) fn report_peer_failures(&mut self, from: &Upid, failures: PeerFailures) {
        let ip = *from.address.ip();
        let is_known = |failure: &PeerFailure| failure.agent != ip && self.is_active(failure.agent);
        let peers: Vec<PeerFailure> = failures.peers.into_iter().filter(is_known).collect();
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

    /// Returns the reports for the state. Peers that were released since are left out.
    pub(super) fn shown_peer_failures(&self) -> BTreeMap<Ipv4Addr, PeerFailures> {
        let shown = self.current_peer_failures().filter_map(|(ip, failures)| {
            let peers = failures.peers.iter().filter(|failure| self.is_active(failure.agent));
            let peers: Vec<PeerFailure> = peers.copied().collect();
            (!peers.is_empty()).then_some((ip, PeerFailures { peers, total: failures.total }))
        });
        shown.collect()
    }

    /// Returns whether an agent does not reach a peer.
    pub(super) fn has_peer_failures(&self) -> bool {
        self.current_peer_failures()
            .any(|(_, failures)| failures.peers.iter().any(|failure| self.is_active(failure.agent)))
    }

    /// Returns a sentence for each of the first peers that are not reached.
    pub(super) fn peer_failure_problems(&self) -> Vec<String> {
        let mut by_peer: BTreeMap<Ipv4Addr, Vec<(Ipv4Addr, PeerFailureCause)>> = BTreeMap::new();
        for (reporter, failures) in self.current_peer_failures() {
            for failure in failures.peers.iter().filter(|failure| self.is_active(failure.agent)) {
                by_peer.entry(failure.agent).or_default().push((reporter, failure.cause));
            }
        }
        let others = self.active_agents().count().saturating_sub(1);
        let more = by_peer.len().saturating_sub(NAMED_MAX);
        let named = by_peer.into_iter().take(NAMED_MAX);
        let mut problems: Vec<String> =
            named.map(|(peer, reports)| sentence(peer, &reports, others)).collect();
        if more > 0 {
            let peers = pluralize(more as u128, "more agent");
            problems
                .push(format!("{peers} not reached by others: see unreached_peers in the state"));
        }
        problems
    }
}

/// Describes who does not reach `peer`, and what that says of the cause. `others` is the number of
/// agents besides the peer.
fn sentence(peer: Ipv4Addr, reports: &[(Ipv4Addr, PeerFailureCause)], others: usize) -> String {
    let reporters: Vec<Ipv4Addr> = reports.iter().map(|(reporter, _)| *reporter).collect();
    let mut causes: Vec<PeerFailureCause> = reports.iter().map(|(_, cause)| *cause).collect();
    causes.sort_unstable();
    causes.dedup();
    let causes: Vec<&str> = causes.into_iter().map(PeerFailureCause::name).collect();
    let is_silent = reports.iter().all(|(_, cause)| *cause == PeerFailureCause::NoAnswer);
    let hint = if reporters.len() >= others && is_silent {
        "no agent reaches it: see whether its host is up, and delete the agent if it is gone"
    } else if reporters.len() >= others {
        "no agent reaches it: run 'mesos-overlay doctor --probe' on its host"
    } else {
        "others have not found that: see the network between them, or run 'mesos-overlay doctor \
         --probe' on one of them"
    };
    format!(
        "agent {peer} does not answer probes ({}) of {}: {hint}",
        causes.join(", "),
        count_and_list(&reporters, "agent")
    )
}
