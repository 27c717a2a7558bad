//! The health and the replies of the agent.

use std::sync::Arc;

use overlay_types::addr::Upid;
use overlay_types::clock::Now;
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::{AgentInfo, RejectedMessages, RequestId};

use super::authentication::Authentication;
use super::metrics;
use super::refusal::reassigned_vtep_problem;
use super::view::ProblemSource;
use super::{
    Agent, Command, Condition, Health, Metrics, OverlayTally, Reply, Request, TunnelHealth,
};
use crate::metrics::{HostCounters, LogTally, Snapshot};
use crate::state_machine::StateMachine as _;

/// Consecutive unanswered registrations after which the health shows a problem.
pub(super) const UNANSWERED_MAX: u32 = 3;

/// Describes a master that does not answer. The protocol has no refusal, so only the master knows
/// the reason.
pub(super) fn unanswered_problem(master: &Upid) -> String {
    format!(
        "master {master} has not answered {UNANSWERED_MAX} registrations: see whether it runs, and \
         the problems that http://{}/overlay-master/health names",
        master.address
    )
}

/// Describes a master that sends no peers. A C++ module never sends peers.
const NO_PEERS_PROBLEM: &str = "the master sends no peers to this agent: let mesos-overlay be the \
                                master, or set dataplane to external and let dcos-net find them";

/// Describes a master that sends peers, and does not answer.
const LATE_PEERS_PROBLEM: &str = "the master does not answer requests for the table of peers: see \
                                  whether it is overloaded, and the problems in its health; VXLAN \
                                  packets of new peers are not accepted until then";

/// The consequence for the firewall of a host with former peers.
const FORMER_SENDERS_PROBLEM: &str = "VXLAN packets are accepted from the former peers only: if \
                                      all masters are C++ modules now, set known_agents_only to \
                                      false";

/// The consequence for the firewall of a host without former peers.
pub(super) const EVERY_SENDER_PROBLEM: &str = "the master sends no peers: VXLAN packets of every \
                                               host are accepted: let the firewall of the host \
                                               accept the UDP port of the tunnels from agents only";

impl Agent {
    pub(super) fn answer(&mut self, now: Now, id: RequestId, request: Request) {
        let reply = match request {
            Request::Overlay => Reply::Overlay(self.info(), self.addresses.counts()),
            Request::Health => Reply::Health(Box::new(self.health(now))),
            Request::Probes(max) => {
                let identity = |underlay| self.peers.owner(underlay);
                Reply::Probes(Box::new(self.probes.details(max, identity)))
            }
            Request::Addresses(query) => return self.answer_addresses(now, id, query),
            Request::Metrics => Reply::Metrics(Box::new(self.snapshot())),
        };
        self.commands.push_back(Command::Reply { id, reply });
    }

    pub(super) fn info(&self) -> AgentInfo {
        AgentInfo {
            ip: self.ip,
            overlays: self.overlays.assignments(),
            configuration_attempts: Some(self.overlays.attempts()),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot<Metrics> {
        let host = HostCounters::default();
        Snapshot {
            metrics: self.metrics(),
            host,
            configured: metrics::addresses(&self.addresses.counts()),
            histograms: vec![self.probes.round_trips().clone()],
        }
    }

    pub(super) fn is_degraded(&self, overlays: OverlayTally) -> bool {
        overlays.failed > 0
            || self.refused_update.is_some()
            || !self.refusal.is_empty()
            || !self.cni_gc.problems().is_empty()
            || self.docker_gc.problems().next().is_some()
            || self.tunnel.problems().next().is_some()
            || NetworkKind::ALL.iter().any(|kind| self.overlays.notes(*kind).next().is_some())
            || self.tunnel.is_overdue()
            || self.probes.has_problem()
            || self.gets_no_peers()
            || self.accepts_every_sender
            || self.authentication_problem().is_some()
    }

    /// Returns a sentence if the master does not authenticate although it has to.
    fn authentication_problem(&self) -> Option<String> {
        self.authentication.as_ref()?.problem(self.registration.master()?)
    }

    /// Returns whether the master serves this agent, and sends it no peers.
    pub(super) fn gets_no_peers(&self) -> bool {
        self.peers.is_unanswered()
            && self.address_problem.is_none()
            && !self.refusal.is_refused()
            && self.registration.is_acknowledged()
    }

    pub(super) fn health(&self, now: Now) -> Health {
        let Metrics { status, counters, .. } = self.metrics();
        let ProblemList { sentences: problems, sources } = self.problems(now, status);
        let direct = self.direct.health(self.tunnel.programmed().map(Arc::as_ref));
        Health {
            status,
            problems,
            sources,
            master: self.registration.master().map(ToString::to_string),
            networks: self.overlays.health(now),
            dataplane: self
                .tunnel
                .health(self.peers.count(), direct, &counters)
                .map(|health| TunnelHealth { offloads: self.offloads.note().cloned(), ..health }),
            probes: self.probes.health(),
            authentication: self.authentication.as_ref().map(Authentication::health),
            counters,
            refused: RejectedMessages::default(),
            log: LogTally::default(),
        }
    }

    fn problems(&self, now: Now, status: Condition) -> ProblemList {
        let mut problems = ProblemList::default();
        problems.add("address", self.address_problem.clone());
        if let Some(master) = self.registration.master() {
            problems.add("master", self.refusal.sentences(master));
        }
        problems.add("master", self.authentication_problem());
        for (name, parts, reason) in self.overlays.failures() {
            let overlay = Some(name.to_string());
            problems.sources.push(ProblemSource { parts, overlay });
            problems.sentences.push(format!("{name}: {reason}"));
        }
        problems.add("assignment", self.found.problems(self.refusal.is_refused()).cloned());
        problems.add("assignment", self.refused_update.clone());
        problems.add("cni network", self.cni_gc.problems().iter().cloned());
        problems.add("docker network", self.docker_gc.problems().cloned());
        problems.add("tunnel", self.tunnel.problems().cloned());
        for kind in NetworkKind::ALL {
            problems.add(kind.name(), self.overlays.notes(kind).cloned());
        }
        problems.add("tunnel", self.tunnel.overdue_problem(now));
        problems.add("probes", self.probes.problems());
        if self.probes.has_problem() {
            let possible_causes = self.tunnel.possible_causes().iter();
            let sentences = possible_causes.map(|cause| format!("possible cause: {cause}"));
            problems.add("probes", sentences);
        }
        if self.gets_no_peers() {
            let is_late = self.masters.sends_peers();
            let problem = if is_late { LATE_PEERS_PROBLEM } else { NO_PEERS_PROBLEM };
            problems.add("peers", [problem.to_owned()]);
            if !is_late && self.peers.count().is_none() && !self.accepts_every_sender {
                problems.add("peers", [FORMER_SENDERS_PROBLEM.to_owned()]);
            }
        }
        if self.accepts_every_sender {
            problems.add("peers", [EVERY_SENDER_PROBLEM.to_owned()]);
        }
        if !self.has_assignments
            && let Some((vtep, agent)) = self.reassigned_vtep
        {
            problems.add("assignment", [reassigned_vtep_problem(vtep, agent)]);
        }
        match status {
            Condition::Detached => problems.add("master", ["no master is known".to_owned()]),
            Condition::Registering | Condition::Failed
                if self.address_problem.is_none()
                    && self.registration.unanswered() > UNANSWERED_MAX =>
            {
                problems.add("master", self.registration.master().map(unanswered_problem));
            }
            Condition::Registering | Condition::Failed | Condition::Degraded | Condition::Ok => {}
        }
        problems
    }
}

/// The problems of an agent, and the source of each.
#[derive(Debug, Default)]
struct ProblemList {
    sentences: Vec<String>,
    sources: Vec<ProblemSource>,
}

impl ProblemList {
    fn add(&mut self, part: &'static str, sentences: impl IntoIterator<Item = String>) {
        for sentence in sentences {
            self.sentences.push(sentence);
            self.sources.push(ProblemSource::of(part));
        }
    }
}
