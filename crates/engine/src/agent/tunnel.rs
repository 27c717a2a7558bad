//! When the agent inspects and programs the host's network, and the result.
//!
//! ```text
//!   assigned -> inspect (find collisions) -> program -> verify ...
//! ```
//! One job runs at a time. Changes during a job are combined into the next job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::OverlayName;
use overlay_types::clock::{Backoff, Now};
use overlay_types::mutation::Mutation;
use overlay_types::protocol::Status;
use overlay_types::tunnel::{Desired, Fault, FaultScope};

use super::command::{Command, Scope};
use super::event::{FirewallState, Programmed};
use super::view::{DirectHealth, TunnelHealth};
use super::{Context, Counters};

/// Bounds of the backoff after a failure.
const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Debounce of drift: another process that changes the host's network may not have finished.
const DRIFT_DEBOUNCE: Duration = Duration::from_millis(20);
/// Interval until the verification after a change. The kernel reports changes of other processes
/// together with the agent's own changes, and the agent cannot distinguish them.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Interval until the verification after a repair. Another process may go on with its changes.
const REPAIR_RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest interval between two observations that found no drift. Changes of unmanaged objects,
/// such as firewall rules, may follow each other.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// Bounds of the interval between two repairs. An agent that repairs without an interval would
/// compete with another process for every packet.
const REPAIR_INTERVAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Time without a repair after which the interval between repairs is reset.
const REPAIR_RESET: Duration = Duration::from_secs(60);
/// Consecutive repairs after which the interval between repairs grows. An operator, or a program
/// that starts, makes a few changes one after the other.
const QUICK_REPAIRS: u32 = 16;
/// Consecutive observations without drift after which their interval depends on their duration. A
/// program that starts causes a few events that matter to no tunnel.
const QUICK_OBSERVATIONS: u32 = 16;
/// Then an observation is followed by a pause of this many times its duration, so that events
/// without drift cost about one percent of a CPU, however many there are.
const OBSERVATION_PAUSE: u32 = 100;
/// Shortest interval between two verifications after lost probes.
const LOSS_INTERVAL: Duration = Duration::from_secs(30);
/// Time after which a job counts as hung. A job ends with an error if a program of the firewall
/// runs for more than 30 seconds.
const JOB_MAX: Duration = Duration::from_mins(2);
/// Number of peer faults that the agent names. A master may send thousands of invalid peers, and
/// each fault is a line in the log.
const PEER_FAULTS_MAX: usize = 64;

/// What the agent does with the network of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelSettings {
    /// Whether the agent programs the tunnels to other agents. Otherwise another program does, such
    /// as dcos-net.
    pub programs: bool,
    /// Whether the agent refuses overlays that collide with addresses or routes of the host.
    pub refuses_collisions: bool,
}

impl TunnelSettings {
    /// The settings of an agent that shares its host with other agents: it does nothing.
    pub const NONE: Self = Self { programs: false, refuses_collisions: false };
}

/// The jobs at the host's network, and the result of the last job.
#[derive(Debug)]
pub(super) struct Tunnel {
    settings: TunnelSettings,
    /// The desired state of all valid assignments, with or without collisions. `None` until the
    /// first assignment, and the agent changes nothing until then.
    claims: Option<Arc<Desired>>,
    /// The desired state of the admitted overlays.
    desired: Option<Arc<Desired>>,
    running: Option<Running>,
    last_attempt: u64,
    /// When the next verification is due. It starts with an inspection for collisions.
    verify_due: Option<Duration>,
    /// The next program job besides the verification.
    scheduled: Option<Scheduled>,
    backoff: Backoff,
    repair_interval: Duration,
    /// End of the last job that changed what had been applied before.
    last_changes: Option<Duration>,
    consecutive_changes: u32,
    consecutive_observations: u32,
    /// Earliest time of the next observation after drift.
    drift_not_before: Duration,
    /// The faults of the last program job.
    faults: Vec<Fault>,
    /// What may drop packets, by the last program job.
    possible_causes: Vec<String>,
    /// When the last verification after lost probes was or is due.
    loss_due: Option<Duration>,
    /// Number of peers that were left out, as a whole or in part.
    peers_left_out: usize,
    /// The warnings of the last program job that looked for them.
    warnings: Vec<String>,
    /// Collisions of overlays that are in use.
    late_collisions: BTreeSet<String>,
    /// The containers that keep another MTU than the desired one, or that another program cut off,
    /// one sentence for each bridge.
    container_problems: Vec<String>,
    last_repair: Option<Repair>,
    /// The desired state of the last program job.
    programmed: Option<Arc<Desired>>,
    /// The rules of the firewall after the last job that could apply them.
    firewall: Option<FirewallState>,
}

#[derive(Debug)]
struct Running {
    attempt: u64,
    job: Job,
    /// `Now::elapsed` at the start of the job.
    since: Duration,
    /// Whether the job has run for [`JOB_MAX`].
    is_overdue: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Job {
    Inspect,
    Program { scope: Scope, desired: Arc<Desired> },
}

/// A program job that is due later.
#[derive(Debug, Clone, Copy)]
struct Scheduled {
    scope: Scope,
    due: Duration,
}

#[derive(Debug)]
struct Repair {
    at: Now,
    summary: String,
}

impl Tunnel {
    pub(super) const fn new(settings: TunnelSettings) -> Self {
        Self {
            settings,
            claims: None,
            desired: None,
            running: None,
            last_attempt: 0,
            verify_due: None,
            scheduled: None,
            backoff: Backoff::new(RETRY_BACKOFF.0, RETRY_BACKOFF.1),
            repair_interval: REPAIR_INTERVAL.0,
            last_changes: None,
            consecutive_changes: 0,
            consecutive_observations: 0,
            drift_not_before: Duration::ZERO,
            faults: Vec::new(),
            possible_causes: Vec::new(),
            loss_due: None,
            peers_left_out: 0,
            warnings: Vec::new(),
            late_collisions: BTreeSet::new(),
            container_problems: Vec::new(),
            last_repair: None,
            programmed: None,
            firewall: None,
        }
    }

    /// Returns whether this agent programs the kernel, and so needs its peers.
    pub(super) const fn programs(&self) -> bool {
        self.settings.programs
    }

    /// Sets the desired state of all valid assignments, for the inspection.
    pub(super) fn set_claims(&mut self, now: Now, claims: Desired) {
        let has_changed = self.claims.as_deref() != Some(&claims);
        if has_changed && self.settings != TunnelSettings::NONE {
            self.claims = Some(Arc::new(claims));
            self.verify_due = Some(now.elapsed);
        }
    }

    /// Sets the desired state of the admitted overlays, and schedules its application.
    pub(super) fn set_desired(&mut self, now: Now, desired: Desired, scope: Scope) {
        if !self.settings.programs {
            return;
        }
        let has_changed = self.desired.as_deref() != Some(&desired);
        if has_changed {
            self.desired = Some(Arc::new(desired));
        }
        if has_changed || scope != Scope::Change {
            self.schedule(scope, now.elapsed);
        }
    }

    /// Schedules a verification of the desired state.
    pub(super) fn verify(&mut self, now: Now) {
        if self.settings.programs && self.desired.is_some() {
            self.schedule(Scope::Everything, now.elapsed);
        }
    }

    /// Schedules an observation, because another process changed the host's network.
    pub(super) fn handle_drift(&mut self, now: Now, scope: Scope) {
        if self.programmed.is_some() && !Mutation::IgnoreDrift.is_on() {
            self.schedule(scope, (now.elapsed + DRIFT_DEBOUNCE).max(self.drift_not_before));
        }
    }

    /// Schedules a verification, because a peer no longer answers probes: some causes raise no event.
    pub(super) fn handle_loss(&mut self, now: Now) {
        if self.programmed.is_none() {
            return;
        }
        let earliest = match self.loss_due {
            Some(due) if due > now.elapsed => due,
            Some(last) => last + LOSS_INTERVAL,
            None => Duration::ZERO,
        };
        let due = now.elapsed.max(earliest);
        self.loss_due = Some(due);
        self.schedule(Scope::Everything, due);
    }

    fn schedule(&mut self, scope: Scope, due: Duration) {
        self.scheduled = Some(match self.scheduled {
            None => Scheduled { scope, due },
            Some(old) => Scheduled { scope: old.scope.union(scope), due: old.due.min(due) },
        });
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        if let Some(running) = &self.running {
            return (!running.is_overdue).then_some(running.since + JOB_MAX);
        }
        let scheduled = self.scheduled.map(|scheduled| scheduled.due);
        [self.verify_due, scheduled].into_iter().flatten().min()
    }

    /// Starts the next job if one is due, and returns its command.
    pub(super) fn take_due(&mut self, now: Now) -> Option<Command> {
        if self.running.is_some() {
            return None;
        }
        let attempt = self.last_attempt + 1;
        let (command, job) = if self.verify_due.is_some_and(|due| due <= now.elapsed) {
            self.verify_due = None;
            if self.settings.refuses_collisions {
                let claims = self.claims.clone()?;
                (Command::Inspect { attempt, claims }, Job::Inspect)
            } else {
                self.begin_program(attempt, Scope::Everything)?
            }
        } else {
            let scheduled = self.scheduled.filter(|scheduled| scheduled.due <= now.elapsed)?;
            self.begin_program(attempt, scheduled.scope)?
        };
        self.last_attempt = attempt;
        self.running = Some(Running { attempt, job, since: now.elapsed, is_overdue: false });
        Some(command)
    }

    /// Marks the running job as overdue after [`JOB_MAX`], and logs that once.
    pub(super) fn note_overdue(&mut self, now: Now) {
        let Some(running) = &mut self.running else { return };
        if !running.is_overdue && now.elapsed >= running.since + JOB_MAX {
            running.is_overdue = true;
            log::error!("{}", overdue_problem(JOB_MAX));
        }
    }

    /// Returns whether the running job is overdue.
    pub(super) fn is_overdue(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.is_overdue)
    }

    /// Describes the running job if it is overdue.
    pub(super) fn overdue_problem(&self, now: Now) -> Option<String> {
        let overdue = self.running.as_ref().filter(|running| running.is_overdue);
        overdue.map(|running| overdue_problem(now.elapsed.saturating_sub(running.since)))
    }

    /// Creates a program job, which replaces the scheduled job.
    fn begin_program(&mut self, attempt: u64, scope: Scope) -> Option<(Command, Job)> {
        self.scheduled = None;
        let desired = self.desired.clone()?;
        let job = Job::Program { scope, desired: Arc::clone(&desired) };
        Some((Command::Program { attempt, desired, scope }, job))
    }

    /// Ends the job of this attempt. Returns `None` if another job or none is running.
    fn end_job(&mut self, attempt: u64) -> Option<Running> {
        self.running.take_if(|running| running.attempt == attempt)
    }

    /// Handles the end of an inspection. Returns whether the inspection is the current job.
    pub(super) fn finish_inspection(
        &mut self,
        context: &mut Context<'_>,
        attempt: u64,
        is_ok: bool,
    ) -> bool {
        if self.end_job(attempt).is_none() {
            return false;
        }
        let verify_interval = context.settings.verify_interval;
        if !is_ok {
            let delay = self.backoff.next_delay(context.random);
            self.verify_within(context.now, delay.min(verify_interval));
        } else if !self.settings.programs {
            self.backoff.reset();
            self.verify_within(context.now, verify_interval);
        }
        true
    }

    fn verify_within(&mut self, now: Now, delay: Duration) {
        let due = now.elapsed + delay;
        self.verify_due = Some(self.verify_due.map_or(due, |before| before.min(due)));
    }

    /// Sets the collisions of overlays in use. Such overlays stay, since their containers run.
    pub(super) fn set_late_collisions(&mut self, sentences: BTreeSet<String>) {
        for sentence in sentences.difference(&self.late_collisions) {
            log::warn!("{sentence}; the overlay stays, since it was in use before");
        }
        self.late_collisions = sentences;
    }

    /// Handles the end of a program job. Returns the status of the tunnel of each overlay, or
    /// `None` if the job is not the current job.
    pub(super) fn finish_program(
        &mut self,
        context: &mut Context<'_>,
        attempt: u64,
        result: Programmed,
        counters: &mut Counters,
    ) -> Option<BTreeMap<OverlayName, Status>> {
        let Running { job: Job::Program { scope, desired }, since, .. } = self.end_job(attempt)?
        else {
            return None;
        };
        let now = context.now;
        counters.dataplane_changes += result.changes;
        counters.leases_released += result.leases_released;
        let was_programmed =
            self.programmed.as_ref().is_some_and(|programmed| Arc::ptr_eq(programmed, &desired));
        let has_changed = result.changes > 0;
        let is_verified = was_programmed && scope != Scope::Change;
        // Changes are a repair if the same state was applied before. If a fault is gone, they may
        // complete that state instead.
        let is_repair = has_changed && is_verified && self.has_same_faults(&result.faults);
        if is_repair {
            counters.dataplane_repairs += 1;
            log::warn!("repaired changes of another process: {}", result.summary());
            self.last_repair = Some(Repair { at: now, summary: result.summary() });
        } else if has_changed {
            log::info!("applied dataplane changes: {}", result.summary());
        }
        self.programmed = Some(Arc::clone(&desired));
        if has_changed && is_verified {
            self.pace_changes(now);
        } else if !has_changed && scope != Scope::Change {
            self.pace_observations(now, since);
        }
        self.set_faults(result.faults);
        if let Some(warnings) = result.warnings {
            for warning in warnings.iter().filter(|warning| !self.warnings.contains(warning)) {
                log::warn!("{warning}");
            }
            self.warnings = warnings;
        }
        self.set_container_problems(result.container_problems);
        self.possible_causes = result.possible_causes;
        if result.firewall.is_some() {
            self.firewall = result.firewall;
        }
        let verify_interval = context.settings.verify_interval;
        if self.faults.is_empty() {
            self.backoff.reset();
            let delay = match has_changed {
                true if is_repair => REPAIR_RECHECK_INTERVAL.max(self.repair_interval),
                true => RECHECK_INTERVAL,
                false => verify_interval,
            };
            self.verify_within(now, delay.min(verify_interval));
        } else {
            counters.dataplane_failures += 1;
            let delay = self.backoff.next_delay(context.random);
            if !Mutation::NeverRetryKernel.is_on() {
                self.verify_within(now, delay.min(verify_interval));
                if is_repair {
                    let delay = REPAIR_RECHECK_INTERVAL.max(self.repair_interval);
                    self.verify_within(now, delay.min(verify_interval));
                }
            }
        }
        Some(self.statuses(&desired))
    }

    /// Replaces the faults, and logs the new faults.
    fn set_faults(&mut self, faults: Vec<Fault>) {
        let (faults, peers_left_out) = limit_peer_faults(faults);
        for fault in &faults {
            if !self.faults.contains(fault) {
                log::error!("{}", fault.reason);
            }
        }
        self.faults = faults;
        self.peers_left_out = peers_left_out;
    }

    /// Replaces the problems of single containers, and logs the new ones.
    fn set_container_problems(&mut self, problems: Vec<String>) {
        for sentence in
            problems.iter().filter(|sentence| !self.container_problems.contains(sentence))
        {
            log::warn!("{sentence}");
        }
        self.container_problems = problems;
    }

    /// Returns whether every object with a fault still has one.
    fn has_same_faults(&self, faults: &[Fault]) -> bool {
        self.faults.iter().all(|old| faults.iter().any(|new| new.scope == old.scope))
    }

    /// Sets the interval until the next repair. Without it an agent would compete with another
    /// process for every packet, also while there are faults.
    fn pace_changes(&mut self, now: Now) {
        let is_consecutive =
            self.last_changes.is_some_and(|last| now.elapsed.saturating_sub(last) < REPAIR_RESET);
        self.consecutive_changes =
            if is_consecutive { self.consecutive_changes.saturating_add(1) } else { 1 };
        self.repair_interval = if self.consecutive_changes > QUICK_REPAIRS {
            REPAIR_INTERVAL.1.min(self.repair_interval * 2)
        } else {
            REPAIR_INTERVAL.0
        };
        self.drift_not_before = now.elapsed + self.repair_interval;
        self.last_changes = Some(now.elapsed);
    }

    /// Sets the interval until the next observation after one that found no drift. `since` is its
    /// start. An observation that begins as soon as the interval permits is consecutive: its event
    /// was waiting.
    fn pace_observations(&mut self, now: Now, since: Duration) {
        let is_consecutive = since < self.drift_not_before + IDLE_INTERVAL;
        self.consecutive_observations =
            if is_consecutive { self.consecutive_observations.saturating_add(1) } else { 0 };
        let interval = if self.consecutive_observations > QUICK_OBSERVATIONS {
            let duration = now.elapsed.saturating_sub(since);
            duration.saturating_mul(OBSERVATION_PAUSE).clamp(IDLE_INTERVAL, REPAIR_INTERVAL.1)
        } else {
            IDLE_INTERVAL
        };
        self.drift_not_before = self.drift_not_before.max(now.elapsed + interval);
    }

    /// Returns the status of the tunnel of each overlay.
    fn statuses(&self, desired: &Desired) -> BTreeMap<OverlayName, Status> {
        let mut statuses = BTreeMap::new();
        for space in &desired.spaces {
            statuses.insert(space.overlay.clone(), self.status_of(desired, &space.overlay));
        }
        statuses
    }

    fn status_of(&self, desired: &Desired, overlay: &OverlayName) -> Status {
        let mut faults =
            self.faults.iter().filter(|fault| desired.is_overlay_affected(overlay, &fault.scope));
        let Some(first) = faults.next() else { return Status::Ok };
        Status::Failed(match faults.count() {
            0 => first.reason.clone(),
            more => format!("{}; and {more} more: see the agent's health", first.reason),
        })
    }

    /// Returns the desired state of the last program job.
    pub(super) const fn programmed(&self) -> Option<&Arc<Desired>> {
        self.programmed.as_ref()
    }

    /// Returns the number of peers that the agent left out, as a whole or in part.
    pub(super) const fn peers_left_out(&self) -> usize {
        self.peers_left_out
    }

    /// Returns the faults, the warnings, the collisions of overlays in use, and the problems of single
    /// containers, one sentence each.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        let faults = self.faults.iter().map(|fault| &fault.reason);
        faults.chain(&self.warnings).chain(&self.late_collisions).chain(&self.container_problems)
    }

    /// Returns what may drop packets, one sentence each.
    pub(super) fn possible_causes(&self) -> &[String] {
        &self.possible_causes
    }

    /// Returns whether it is known that the firewall has no agents of earlier rules.
    pub(super) fn keeps_no_agents(&self) -> bool {
        self.firewall.as_ref().is_some_and(|firewall| !firewall.keeps_agents)
    }

    pub(super) fn health(
        &self,
        peers: Option<usize>,
        direct: Option<DirectHealth>,
        counters: &Counters,
    ) -> Option<TunnelHealth> {
        if self.settings == TunnelSettings::NONE {
            return None;
        }
        let status = match (&self.programmed, &self.faults[..]) {
            _ if !self.settings.programs => "external".to_owned(),
            (None, _) => "configuring".to_owned(),
            (Some(_), []) => "ok".to_owned(),
            (Some(_), faults) => format!("failed: {} problems", faults.len()),
        };
        Some(TunnelHealth {
            status,
            peers,
            firewall: self.firewall.as_ref().map(|firewall| firewall.backend),
            inner_check: self.firewall.as_ref().and_then(|firewall| firewall.inner_check),
            forwarding: self.firewall.as_ref().map(|firewall| firewall.forwarding),
            direct_routing: direct,
            repairs: counters.dataplane_repairs,
            last_repair: self.last_repair.as_ref().map(|repair| repair.summary.clone()),
            last_repair_unix: self.last_repair.as_ref().map(|repair| repair.at.unix),
            offloads: None,
        })
    }
}

/// Describes a job that is overdue.
fn overdue_problem(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!(
        "the dataplane job has run for {seconds} s: see which program locks the rules of the \
         firewall, and whether the kernel answers"
    )
}

/// Limits the number of peer faults. Returns also the number of peers with a fault.
fn limit_peer_faults(mut faults: Vec<Fault>) -> (Vec<Fault>, usize) {
    let mut agents = BTreeSet::new();
    let mut peer_faults = 0;
    faults.retain(|fault| {
        let FaultScope::Agent(agent) = fault.scope else { return true };
        agents.insert(agent);
        peer_faults += 1;
        peer_faults <= PEER_FAULTS_MAX
    });
    if peer_faults > PEER_FAULTS_MAX {
        let more = peer_faults - PEER_FAULTS_MAX;
        faults.push(Fault::of_host(format!(
            "{more} more problems with peers: 'mesos-overlay doctor --master MASTER' names them all"
        )));
    }
    (faults, agents.len())
}
