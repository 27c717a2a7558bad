//! Probes of the peers: which peers to probe next, and what the outcomes say about each peer.
//!
//! Each second has a batch with at most `rate` peers. A round visits every peer once, in random
//! order. A peer that did not answer is visited again in the next batches, until its failure is
//! confirmed; after that it stays in a small list of peers that are visited more often.

mod details;
mod path;
mod shared_cause;
#[cfg(test)]
mod tests;
mod totals;
mod visit;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::OverlayName;
use overlay_types::clock::Now;
use overlay_types::protocol::{PeerFailureCause, PeerFailures};
use overlay_types::tunnel::{Desired, ProbeOutcome, ProbePacket, ProbeReport};

use self::path::PeerPath;
use self::shared_cause::{SharedCause, UnansweredVisits};
use self::totals::Totals;
use self::visit::{Role, Visit};
use super::Counters;
use super::command::Command;
use super::view::{PeerProbeHealth, ProbeHealth, ProbeTally};
use crate::metrics::Histogram;

/// Interval between two batches.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest duration of a round. In a small cluster more packets would show nothing more.
const ROUND_MIN: Duration = Duration::from_secs(5);
/// Time after which a batch without an outcome counts as lost, and the next batch is sent.
const BATCH_MAX: Duration = Duration::from_secs(30);
/// Consecutive failed visits that confirm a failure: the first, and three repetitions.
const CONFIRMING_VISITS: u32 = 4;
/// Time in which a new peer may not answer. The peers learn of a new agent within seconds.
const GRACE: Duration = Duration::from_secs(30);
/// Shortest and longest interval between two visits of a peer whose failure is confirmed.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(300);
/// Number of peers that are visited outside of the rounds.
const RETRIES_MAX: usize = 32;
/// One in so many peers has to fail before the agent is degraded. A single dead host of a large
/// cluster is no problem of all other hosts: the master names it.
const DEGRADING_PART: usize = 10;
/// Time after a visit in which a report of its host about a missing port is used. The report is read
/// with the next batch.
const MISSING_MAX: Duration = Duration::from_mins(6);
/// Number of silent ports that are remembered.
const SILENT_PORTS_MAX: usize = 1024;
/// Shortest interval between two reports to the master.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// The buckets of round-trip times: from the same rack to another continent.
const ROUND_TRIP_BOUNDS: &[Duration] = &[
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];
const ROUND_TRIPS_HELP: &str = "Round-trip times of the answered echo requests to all peers.";
/// Number of peers that health names.
const NAMED_MAX: usize = 8;

/// The probes of all peers.
#[derive(Debug)]
pub(super) struct Probes {
    /// Peers in a batch. 0 switches the probes off.
    rate: usize,
    /// The desired state that was programmed last.
    desired: Option<Arc<Desired>>,
    peers: BTreeMap<IpAddr, PeerPath>,
    /// The peers of the round in their order, and the number of those that were visited.
    round: Vec<IpAddr>,
    visited: usize,
    round_start: Duration,
    /// The peers that are visited outside of the rounds, and when each is due.
    retries: BTreeMap<IpAddr, Duration>,
    running: Option<Batch>,
    last_attempt: u64,
    /// Earliest time of the next batch.
    due: Duration,
    /// The peers with a confirmed failure.
    failing: BTreeSet<IpAddr>,
    /// The ports that did not answer in the last minutes: time of the visit, port and agent.
    silent_ports: VecDeque<(Duration, IpAddr, IpAddr)>,
    /// The visits since the last reply of any peer, and since the last one to containers.
    silence: UnansweredVisits,
    cut_off: UnansweredVisits,
    /// The cause that all failures have in common, if it is likely here.
    shared_cause: Option<SharedCause>,
    /// Whether the failures are a problem of this agent.
    is_degraded: bool,
    totals: Totals,
    /// The round-trip times of all answered packets.
    round_trips: Histogram,
    /// The peers whose first bridge or port has answered.
    learned: Vec<IpAddr>,
    /// Why no probe can be sent.
    off_reason: Option<String>,
    /// Why some probes do not take the path of containers.
    limitation: Option<String>,
    bridged: BTreeSet<OverlayName>,
    /// The failures that the master knows, without their times. `None` if that is unknown: the
    /// master may know those of an earlier process.
    reported: Option<Vec<(IpAddr, PeerFailureCause)>>,
    /// Whether the failures may differ from those that the master knows.
    has_unreported_change: bool,
    /// Earliest time of the next report.
    report_due: Duration,
}

#[derive(Debug)]
struct Batch {
    attempt: u64,
    visits: Vec<Visit>,
    since: Duration,
}

impl Probes {
    pub(super) fn new(rate: u32) -> Self {
        Self {
            rate: usize::try_from(rate).unwrap_or(usize::MAX),
            desired: None,
            peers: BTreeMap::new(),
            round: Vec::new(),
            visited: 0,
            round_start: Duration::ZERO,
            retries: BTreeMap::new(),
            running: None,
            last_attempt: 0,
            due: Duration::ZERO,
            failing: BTreeSet::new(),
            silent_ports: VecDeque::new(),
            silence: UnansweredVisits::default(),
            cut_off: UnansweredVisits::default(),
            shared_cause: None,
            is_degraded: false,
            totals: Totals::default(),
            round_trips: Histogram::new(
                "probe_round_trip_duration_seconds",
                ROUND_TRIPS_HELP,
                ROUND_TRIP_BOUNDS,
            ),
            learned: Vec::new(),
            off_reason: None,
            limitation: None,
            bridged: BTreeSet::new(),
            reported: None,
            has_unreported_change: false,
            report_due: Duration::ZERO,
        }
    }

    /// Sets the desired state that was programmed last. Known peers keep their history.
    pub(super) fn set_programmed(
        &mut self,
        now: Now,
        programmed: Option<&Arc<Desired>>,
        random: &mut fastrand::Rng,
    ) {
        let Some(programmed) = programmed.filter(|_| self.rate > 0) else { return };
        if self.desired.as_ref().is_some_and(|desired| Arc::ptr_eq(desired, programmed)) {
            return;
        }
        self.desired = Some(Arc::clone(programmed));
        let no_peers = BTreeMap::new();
        let peers = programmed.peers.as_ref().unwrap_or(&no_peers);
        self.peers.retain(|agent, _| peers.contains_key(agent));
        self.retries.retain(|agent, _| peers.contains_key(agent));
        self.failing.retain(|agent| peers.contains_key(agent));
        self.has_unreported_change = true;
        let mut rest = self.round.split_off(self.visited.min(self.round.len()));
        self.round.clear();
        self.visited = 0;
        rest.retain(|agent| peers.contains_key(agent));
        for agent in peers.keys() {
            if !self.peers.contains_key(agent) {
                self.peers.insert(*agent, PeerPath::new(now));
                rest.push(*agent);
            }
        }
        random.shuffle(&mut rest);
        self.round = rest;
        self.totals = Totals::default();
        self.peers.values().for_each(|path| self.totals.add(path));
        self.update_degradation(now);
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        if let Some(running) = &self.running {
            return Some(running.since + BATCH_MAX);
        }
        if self.peers.is_empty() {
            return None;
        }
        let round = if self.visited < self.round.len() {
            Duration::ZERO
        } else {
            self.round_start + ROUND_MIN
        };
        let retry = self.retries.values().min().copied();
        Some(self.due.max(retry.map_or(round, |retry| retry.min(round))))
    }

    /// Starts the next batch if one is due, and returns its command.
    pub(super) fn take_due(&mut self, now: Now, random: &mut fastrand::Rng) -> Option<Command> {
        if self.next_due().is_none_or(|due| due > now.elapsed) {
            return None;
        }
        if self.running.take().is_some() {
            let off_reason = format!(
                "the probes have had no outcome for {} s: restart the agent, and report the lines \
                 of the log with 'probe'",
                BATCH_MAX.as_secs()
            );
            self.set_off_reason(now, Some(off_reason));
        }
        let desired = Arc::clone(self.desired.as_ref()?);
        let agents = self.next_agents(now, random);
        let mut packets: Vec<ProbePacket> = Vec::new();
        let mut visits = Vec::new();
        for agent in agents {
            let Some(path) = self.peers.get_mut(&agent) else { continue };
            if let Some(visit) = path.visit(agent, &desired, &mut packets) {
                visits.push(visit);
            }
        }
        self.due = now.elapsed + BATCH_INTERVAL;
        if visits.is_empty() {
            return None;
        }
        self.last_attempt += 1;
        let attempt = self.last_attempt;
        self.running = Some(Batch { attempt, visits, since: now.elapsed });
        Some(Command::Probe { attempt, desired, packets })
    }

    /// Returns the peers of the next batch. The list of failing peers leaves a part of the rate to
    /// the round.
    fn next_agents(&mut self, now: Now, random: &mut fastrand::Rng) -> Vec<IpAddr> {
        if self.visited >= self.round.len() && now.elapsed >= self.round_start + ROUND_MIN {
            self.round = self.peers.keys().copied().collect();
            random.shuffle(&mut self.round);
            (self.visited, self.round_start) = (0, now.elapsed);
        }
        let mut due: Vec<(Duration, IpAddr)> = self
            .retries
            .iter()
            .filter(|(_, due)| **due <= now.elapsed)
            .map(|(agent, due)| (*due, *agent))
            .collect();
        due.sort_unstable();
        // A batch of a single peer alternates between the list and the round.
        let retries_max = match self.rate {
            1 => usize::from(self.last_attempt.is_multiple_of(2)),
            rate => rate / 2,
        };
        let (confirmed, new): (Vec<IpAddr>, Vec<IpAddr>) =
            due.into_iter().map(|(_, agent)| agent).partition(|agent| self.is_confirmed(*agent));
        let confirmed_max = (self.rate / 4).max(1);
        let mut agents: Vec<IpAddr> = new
            .iter()
            .chain(confirmed.iter().take(confirmed_max))
            .copied()
            .take(retries_max)
            .collect();
        while agents.len() < self.rate
            && let Some(agent) = self.round.get(self.visited)
        {
            self.visited += 1;
            // A peer of the list has its own interval.
            if !self.retries.contains_key(agent) {
                agents.push(*agent);
            }
        }
        // The round has ended.
        for agent in new.into_iter().chain(confirmed) {
            if agents.len() < self.rate && !agents.contains(&agent) {
                agents.push(agent);
            }
        }
        agents
    }

    fn is_confirmed(&self, agent: IpAddr) -> bool {
        self.peers.get(&agent).is_some_and(PeerPath::has_enough_visits)
    }

    /// Handles the outcomes of a batch. Outcomes of an earlier batch are ignored.
    pub(super) fn finish(
        &mut self,
        now: Now,
        attempt: u64,
        result: Result<ProbeReport, String>,
        counters: &mut Counters,
    ) {
        let Some(batch) = self.running.take_if(|batch| batch.attempt == attempt) else { return };
        let report = match result {
            Ok(report) => report,
            Err(off_reason) => {
                if self.off_reason.as_ref() != Some(&off_reason) {
                    log::warn!("no peers are probed: {off_reason}");
                }
                self.set_off_reason(now, Some(off_reason));
                // The reason mostly lasts until an operator acts.
                self.due = now.elapsed + BATCH_MAX;
                return;
            }
        };
        self.set_off_reason(now, None);
        if let Some(limitation) = &report.limitation
            && self.limitation.as_ref() != Some(limitation)
        {
            log::warn!("{limitation}");
        }
        self.limitation = report.limitation;
        self.bridged = report.bridged;
        self.forget_missing(now, &report.missing);
        let mut outcomes = report.outcomes.into_iter();
        for visit in batch.visits {
            let outcomes: Vec<ProbeOutcome> = outcomes.by_ref().take(visit.length()).collect();
            counters.probe_packets_sent += outcomes.len() as u64;
            let lost = outcomes.iter().filter(|outcome| !outcome.has_reply()).count();
            counters.probe_packets_lost += lost as u64;
            let (sent, lost) = visit.path_packets(&outcomes);
            counters.probe_path_packets_sent += sent;
            counters.probe_path_packets_lost += lost;
            for outcome in &outcomes {
                if let ProbeOutcome::Replied(round_trip) = outcome {
                    self.round_trips.observe(*round_trip);
                }
            }
            self.count_unanswered(now, &visit, &outcomes);
            self.record(now, &visit, &outcomes);
            let port = visit.port.filter(|_| !visit.is_answered(&outcomes, Role::Port));
            self.silent_ports.extend(port.map(|port| (now.elapsed, port, visit.agent)));
        }
        self.update_degradation(now);
    }

    /// Removes the ports of peers that their hosts report as missing.
    fn forget_missing(&mut self, now: Now, missing: &BTreeSet<IpAddr>) {
        while let Some((visited, ..)) = self.silent_ports.front()
            && (*visited + MISSING_MAX < now.elapsed || self.silent_ports.len() > SILENT_PORTS_MAX)
        {
            self.silent_ports.pop_front();
        }
        let is_missing = |(_, port, _): &&(Duration, IpAddr, IpAddr)| missing.contains(port);
        let reported: BTreeSet<_> = self
            .silent_ports
            .iter()
            .filter(is_missing)
            .map(|(_, port, agent)| (*agent, *port))
            .collect();
        self.silent_ports.retain(|(_, port, _)| !missing.contains(port));
        for (agent, port) in reported {
            let Some(path) = self.peers.get_mut(&agent) else { continue };
            path.forget_target(port);
            // The next visit decides without the port.
            if path.failed_visits() > 0 {
                self.schedule(agent, now.elapsed, false);
            }
        }
    }

    /// Sets why no probe can be sent. Former outcomes say nothing while that lasts.
    fn set_off_reason(&mut self, now: Now, off_reason: Option<String>) {
        self.has_unreported_change |=
            off_reason.is_some() != self.off_reason.is_some() && self.desired.is_some();
        self.off_reason = off_reason;
        self.update_degradation(now);
    }

    /// Returns whether a bridge or a port of a peer has answered. Then a path that dies is noticed.
    pub(super) fn has_target(&self, agent: IpAddr) -> bool {
        self.peers.get(&agent).is_some_and(PeerPath::has_target)
    }

    /// Lets a bridge of a peer have answered.
    #[cfg(test)]
    pub(super) fn learn_gateway(&mut self, now: Now, agent: IpAddr, gateway: IpAddr) {
        self.peers.entry(agent).or_insert_with(|| PeerPath::new(now)).learn_gateway(gateway);
        self.learned.push(agent);
    }

    /// Takes the peers whose first bridge or port has answered since the last call.
    pub(super) fn take_learned(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.learned)
    }

    /// Returns the peers that fail their probes, while packets go to them without encapsulation.
    pub(super) fn lost_direct_paths(&self) -> Vec<IpAddr> {
        let desired = self.desired.as_ref().filter(|_| self.off_reason.is_none());
        let Some(peers) = desired.and_then(|desired| desired.peers.as_ref()) else {
            return Vec::new();
        };
        let is_lost = |agent: &&IpAddr| {
            let offer = peers.get(*agent).and_then(|peer| peer.direct);
            offer.is_some_and(|offer| offer.is_used)
                && self.peers.get(*agent).is_some_and(PeerPath::is_direct_path_lost)
        };
        self.retries.keys().filter(is_lost).copied().collect()
    }

    /// Returns whether the last visit of a peer failed.
    pub(super) fn is_failing(&self, agent: IpAddr) -> bool {
        self.peers.get(&agent).is_some_and(|path| path.failed_visits() > 0)
    }

    fn record(&mut self, now: Now, visit: &Visit, outcomes: &[ProbeOutcome]) {
        let agent = visit.agent;
        let Some(path) = self.peers.get_mut(&agent) else { return };
        let before = path.failure_cause();
        self.totals.subtract(path);
        let had_target = path.has_target();
        path.record(now, visit, outcomes);
        self.learned.extend((!had_target && path.has_target()).then_some(agent));
        self.totals.add(path);
        self.has_unreported_change |= path.failure_cause() != before;
        let (delay, is_confirmed) = (path.retry_delay(now), path.has_enough_visits());
        match (before, path.failure_cause()) {
            (None, Some(_)) => {
                self.failing.insert(agent);
                if let Some(desired) = &self.desired {
                    log::warn!("{}", path.problem(agent, desired));
                }
            }
            (Some(_), None) => {
                self.failing.remove(&agent);
                log::info!("agent {agent} answers probes again");
            }
            _ => {}
        }
        match delay {
            Some(delay) => self.schedule(agent, now.elapsed + delay, is_confirmed),
            None => drop(self.retries.remove(&agent)),
        }
    }

    /// Schedules the next visit of a peer that failed, outside of the rounds. Peers whose failure is
    /// confirmed make room for others: the rounds visit them too.
    fn schedule(&mut self, agent: IpAddr, due: Duration, is_confirmed: bool) {
        if self.retries.len() >= RETRIES_MAX && !self.retries.contains_key(&agent) {
            let mut listed = self.retries.keys().copied();
            let confirmed = listed.find(|agent| self.failing.contains(agent));
            match confirmed.filter(|_| !is_confirmed) {
                Some(confirmed) => drop(self.retries.remove(&confirmed)),
                None => return,
            }
        }
        self.retries.insert(agent, due);
    }

    /// Returns when a report to the master is due.
    pub(super) fn report_due(&self) -> Option<Duration> {
        self.has_unreported_change.then_some(self.report_due)
    }

    /// Makes the next report due, if there was or is a failure: the master may have lost the former
    /// report, or be another master.
    pub(super) fn report_again(&mut self) {
        let has_none = self.reported.as_ref().is_some_and(Vec::is_empty);
        if !self.failing.is_empty() || !has_none {
            self.reported = None;
            self.has_unreported_change = self.desired.is_some();
        }
    }

    /// Returns a report to the master if one is due. `identity` returns the identity of the agent
    /// with an underlay address.
    pub(super) fn take_report(
        &mut self,
        now: Now,
        identity: impl Fn(IpAddr) -> Option<Ipv4Addr>,
    ) -> Option<PeerFailures> {
        if self.report_due().is_none_or(|due| due > now.elapsed) {
            return None;
        }
        self.has_unreported_change = false;
        let failing = self.failing.iter().filter_map(|agent| {
            let path = self.peers.get(agent)?;
            Some((*agent, path.failure_cause()?))
        });
        // Failures of this host say nothing about the peers.
        let current: Vec<_> = failing
            .filter(|(_, cause)| self.off_reason.is_none() && *cause != PeerFailureCause::NotSent)
            .collect();
        if self.reported.as_ref() == Some(&current) {
            return None;
        }
        self.report_due = now.elapsed + REPORT_INTERVAL;
        let total = u32::try_from(current.len()).unwrap_or(u32::MAX);
        let peers = current.iter().filter_map(|(underlay, cause)| {
            let path = self.peers.get(underlay)?;
            Some(path.failure(identity(*underlay)?, *cause))
        });
        let peers = peers.take(PeerFailures::MAX).collect();
        self.reported = Some(current);
        Some(PeerFailures { peers, total })
    }

    /// Returns whether probes found a problem of this agent.
    pub(super) const fn has_problem(&self) -> bool {
        self.is_degraded
    }

    /// Returns the number of peers whose failure is confirmed.
    pub(super) fn failing_count(&self) -> usize {
        self.failing.len()
    }

    /// Returns the problems, one sentence each. Failures of a few peers of many are no problem of
    /// this agent: see [`Self::health`].
    pub(super) fn problems(&self) -> Vec<String> {
        let Some(desired) = self.desired.as_ref().filter(|_| self.is_degraded) else {
            return Vec::new();
        };
        if let Some(cause) = &self.shared_cause {
            return vec![cause.problem(self.peers.len(), desired)];
        }
        let failing = self.failing.iter().filter_map(|agent| Some((agent, self.peers.get(agent)?)));
        let mut problems: Vec<String> =
            failing.take(NAMED_MAX).map(|(agent, path)| path.problem(*agent, desired)).collect();
        let more = self.failing.len().saturating_sub(problems.len());
        if more > 0 {
            problems.push(format!(
                "{more} more peers fail probes: 'mesos-overlay doctor --probe' names all"
            ));
        }
        problems
    }

    /// Returns the round-trip times of all answered packets.
    pub(super) const fn round_trips(&self) -> &Histogram {
        &self.round_trips
    }

    /// Returns the peers by outcome. Without probes, nothing is known.
    pub(super) fn tally(&self) -> ProbeTally {
        if self.off_reason.is_some() { ProbeTally::default() } else { self.totals.tally() }
    }

    pub(super) fn health(&self) -> Option<ProbeHealth> {
        let desired = self.desired.as_ref()?;
        let failing = self.failing.iter().filter_map(|agent| Some((agent, self.peers.get(agent)?)));
        let failing: Vec<PeerProbeHealth> = failing
            .take(NAMED_MAX)
            .filter(|_| self.off_reason.is_none())
            .map(|(agent, path)| path.health(*agent, desired))
            .collect();
        let status = match (&self.off_reason, self.failing.is_empty()) {
            (Some(_), _) => "off",
            (None, false) => "degraded",
            (None, true) => "ok",
        };
        Some(ProbeHealth {
            status: status.to_owned(),
            note: self.off_reason.clone().or_else(|| self.limitation.clone()),
            bridged_overlays: self.bridged.iter().map(ToString::to_string).collect(),
            tally: self.tally(),
            failing,
        })
    }
}
