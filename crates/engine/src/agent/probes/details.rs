//! The probes of all peers, for a reader that compares those of all agents.

use std::net::{IpAddr, Ipv4Addr};

use overlay_types::protocol::PeerFailureCause;

use super::super::view::{NamedPeer, ProbeDetails, RoundTrips};
use super::Probes;
use super::path::PeerPath;

impl Probes {
    /// Returns the probes of all peers, and names at most `max` peers. Visits each peer, so this
    /// belongs into an answer and not into a batch. `identity` returns the identity of the agent with
    /// an underlay address.
    pub(in crate::agent) fn details(
        &self,
        max: usize,
        identity: impl Fn(IpAddr) -> Option<Ipv4Addr>,
    ) -> ProbeDetails {
        let peers = self.peers.len() as u64;
        let status = match (&self.off_reason, self.failing.is_empty()) {
            _ if self.desired.is_none() => "none",
            (Some(_), _) => "off",
            (None, false) => "degraded",
            (None, true) => "ok",
        };
        let details = ProbeDetails { status: status.to_owned(), peers, ..ProbeDetails::default() };
        if let Some(reason) = &self.off_reason {
            return ProbeDetails { note: Some(reason.clone()), unknown: peers, ..details };
        }
        let is_lossy = |path: &PeerPath| {
            path.failure_cause().is_none() && path.is_reached() && path.unanswered_visits() > 0
        };
        let lossy = self.peers.values().filter(|path| is_lossy(path)).count() as u64;
        let is_known = |path: &&PeerPath| path.failure_cause().is_some() || path.is_reached();
        let known = self.peers.values().filter(is_known).count() as u64;
        let failing = self.failing.len() as u64;
        let named = |(underlay, path): (&IpAddr, &PeerPath)| NamedPeer {
            agent: identity(*underlay).map_or(*underlay, IpAddr::V4),
            cause: path.failure_cause().map(PeerFailureCause::name),
            lost: path.unanswered_visits(),
        };
        let fails = self.failing.iter().filter_map(|agent| Some((agent, self.peers.get(agent)?)));
        let loses = self.peers.iter().filter(|(_, path)| is_lossy(path));
        ProbeDetails {
            ok: known.saturating_sub(failing + lossy),
            lossy,
            failing,
            unknown: peers.saturating_sub(known),
            round_trip_microseconds: self.round_trip_range(),
            named: fails.chain(loses).take(max).map(named).collect(),
            ..details
        }
    }

    fn round_trip_range(&self) -> Option<RoundTrips> {
        let times = self.peers.values().filter_map(PeerPath::smoothed_round_trip);
        let mut times: Vec<u64> =
            times.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).collect();
        let (min, max) = (times.iter().min().copied()?, times.iter().max().copied()?);
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        Some(RoundTrips { min, median: *median, max })
    }
}
