//! Causes that the failures of all peers have in common, and that are likely on this host.

use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::protocol::PeerFailureCause;
use overlay_types::tunnel::{Desired, ProbeOutcome};

use super::path::{PeerPath, not_sent_problem};
use super::visit::Visit;
use super::{DEGRADING_PART, NAMED_MAX, Probes, ROUND_MIN};

/// Visits without a reply after which this host is the likely cause.
const VISITS: u32 = 12;
/// Time without a reply after which this host is the likely cause. Rounds visit working peers in
/// that time, also if many others fail.
const TIME: Duration = Duration::from_secs(2 * ROUND_MIN.as_secs());

/// Consecutive visits of peers that have not failed before, without a reply.
#[derive(Debug, Default)]
pub(super) struct UnansweredVisits {
    visits: u32,
    /// The time of the last reply.
    last_reply: Duration,
}

impl UnansweredVisits {
    fn end(&mut self, now: Now) {
        *self = Self { visits: 0, last_reply: now.elapsed };
    }

    fn is_long(&self, now: Now) -> bool {
        self.visits >= VISITS && now.elapsed >= self.last_reply + TIME
    }
}

/// What fails on this host.
#[derive(Debug)]
pub(super) enum SharedCause {
    /// No peer answers.
    NoPeerAnswers,
    /// The VTEPs of the peers answer the VTEP of this host, but not its containers.
    ContainersCutOff,
    /// The kernel sends no probe, with its reason.
    NotSent(String),
}

impl SharedCause {
    pub(super) fn problem(&self, peers: usize, desired: &Desired) -> String {
        match self {
            Self::NoPeerAnswers => {
                let device = desired.vxlan_devices.first();
                let port = device.map_or(0, |device| device.port);
                let underlay =
                    device.map_or_else(String::new, |device| format!(" at {}", device.underlay));
                format!(
                    "none of {peers} peers answers probes: see whether this host{underlay} has a \
                     connection, and whether a firewall drops UDP port {port} here"
                )
            }
            Self::ContainersCutOff => format!(
                "packets of containers reach none of {peers} peers, and the VTEPs reach each \
                 other: a rule or a route of this host drops forwarded packets: run \
                 'mesos-overlay doctor' here"
            ),
            Self::NotSent(reason) => {
                format!("probes of {peers} peers: {}", not_sent_problem(reason))
            }
        }
    }
}

impl Probes {
    /// Counts a visit. Only peers that were not known to fail say something new.
    pub(super) fn count_unanswered(&mut self, now: Now, visit: &Visit, outcomes: &[ProbeOutcome]) {
        let Some(path) = self.peers.get(&visit.agent) else { return };
        if outcomes.iter().any(ProbeOutcome::has_reply) {
            self.silence.end(now);
        } else if path.failed_visits() == 0 {
            self.silence.visits = self.silence.visits.saturating_add(1);
        }
        if visit.has_container_reply(outcomes) {
            self.cut_off.end(now);
        } else if visit.has_host_reply(outcomes) && path.failure_cause().is_none() {
            self.cut_off.visits = self.cut_off.visits.saturating_add(1);
        }
    }

    /// Decides whether the failures are a problem of this agent, and whether they have one cause.
    pub(super) fn update_degradation(&mut self, now: Now) {
        let failing = self.failing.len();
        if failing == 0 || self.off_reason.is_some() {
            (self.is_degraded, self.shared_cause) = (false, None);
            return;
        }
        self.shared_cause = self.find_shared_cause(now);
        let mut paths = self.failing.iter().filter_map(|agent| self.peers.get(agent));
        self.is_degraded = self.shared_cause.is_some()
            || failing * DEGRADING_PART >= self.peers.len()
            || paths.any(|path| path.not_sent_reason().is_some());
    }

    fn find_shared_cause(&self, now: Now) -> Option<SharedCause> {
        let failing = self.failing.len();
        if failing < 2 {
            return None;
        }
        let paths = || self.failing.iter().filter_map(|agent| self.peers.get(agent));
        let all_have = |cause| paths().all(|path| path.failure_cause() == Some(cause));
        if let Some(reason) = paths().next().and_then(PeerPath::not_sent_reason)
            && all_have(PeerFailureCause::NotSent)
        {
            return Some(SharedCause::NotSent(reason.clone()));
        }
        // With many peers, a round takes too long to wait for all of them.
        let is_everywhere = |visits: &UnansweredVisits, cause| {
            failing == self.peers.len() && all_have(cause)
                || failing > NAMED_MAX && visits.is_long(now)
        };
        if is_everywhere(&self.silence, PeerFailureCause::NoAnswer) {
            return Some(SharedCause::NoPeerAnswers);
        }
        is_everywhere(&self.cut_off, PeerFailureCause::ContainersCutOff)
            .then_some(SharedCause::ContainersCutOff)
    }
}
