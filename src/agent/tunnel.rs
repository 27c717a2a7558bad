//! When the host's network is looked at and programmed, and what came of it.
//!
//! ```text
//!   assigned -> inspect (does the host have something there already?) -> program -> verify ...
//! ```
//! There is one job at a time. What changes meanwhile is done after it, all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, Scope};
use super::event::Programmed;
use super::view::TunnelHealth;
use super::{Counters, Settings};
use crate::addr::OverlayName;
use crate::clock::{Backoff, Now};
use crate::mutation::Mutation;
use crate::tunnel::{Desired, Fault, Part};

/// Bounds of the wait before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long somebody else who is at work is let finish before it is looked at what they did.
const SETTLING: Duration = Duration::from_millis(20);
/// How soon all is verified after we changed something: what others changed at the same moment is
/// heard together with our own changes, and nobody can tell them apart.
const RECHECK: Duration = Duration::from_secs(10);
/// The same after a repair: where others are at work, there may be more of it.
const RECHECK_REPAIR: Duration = Duration::from_secs(1);
/// Pause after somebody's change was looked at in vain: there may be one after the other, such as
/// of rules that are not ours.
const IDLE: Duration = Duration::from_millis(500);
/// Bounds of the pause after a repair: whoever undoes ours again and again is not fought for every
/// packet.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// After how long without a repair it was no fight.
const PEACE: Duration = Duration::from_secs(60);
/// How many repairs without such a time between them are still none: an operator, or a program that
/// starts, changes one thing after the other.
const PATIENCE: u32 = 16;
/// How many faults of peers are named. What a master tells of them may be wrong for thousands, and
/// each is a line in the log.
const PEER_FAULTS_MAX: usize = 64;

/// What an agent has to do with the network of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelSettings {
    /// Whether it programs the packets' way to other agents. Otherwise somebody else does, such as
    /// dcos-net.
    pub programs: bool,
    /// Whether it refuses overlays that collide with what the host has already.
    pub refuses_collisions: bool,
}

impl TunnelSettings {
    /// Nothing: for agents that are not on a host of their own.
    pub const NONE: Self = Self { programs: false, refuses_collisions: false };
}

/// The host's network, as far as this agent has to do with it.
#[derive(Debug)]
pub(super) struct Tunnel {
    settings: TunnelSettings,
    /// What all assignments ask for, and what is to be programmed of it; `None` until the master
    /// has assigned, and until then nothing is touched.
    claims: Option<Arc<Desired>>,
    desired: Option<Arc<Desired>>,
    running: Option<Running>,
    last_attempt: u64,
    /// When everything is to be looked at (again), first for collisions.
    verify_due: Option<Duration>,
    waiting: Option<Waiting>,
    backoff: Backoff,
    pause: Duration,
    repairs_in_a_row: u32,
    not_before: Duration,
    /// What the last time left to be desired, and what collided with what is in use already.
    faults: Vec<Fault>,
    /// How many peers were left out, as a whole or in part.
    peers_left_out: usize,
    late_collisions: BTreeSet<String>,
    last_repair: Option<Repair>,
    /// What was programmed last.
    programmed: Option<Arc<Desired>>,
}

#[derive(Debug)]
struct Running {
    attempt: u64,
    job: Job,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Job {
    Inspect,
    Program { scope: Scope, desired: Arc<Desired> },
}

/// What is to be programmed next, and when.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    scope: Scope,
    due: Duration,
}

#[derive(Debug)]
struct Repair {
    at: Now,
    what: String,
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
            waiting: None,
            backoff: Backoff::new(RETRY.0, RETRY.1),
            pause: PAUSE.0,
            repairs_in_a_row: 0,
            not_before: Duration::ZERO,
            faults: Vec::new(),
            peers_left_out: 0,
            late_collisions: BTreeSet::new(),
            last_repair: None,
            programmed: None,
        }
    }

    /// Whether this agent programs the kernel, and so needs to know its peers.
    pub(super) const fn programs(&self) -> bool {
        self.settings.programs
    }

    /// The assignments ask for this now, without regard to what collides.
    pub(super) fn claimed(&mut self, now: Now, claims: Desired) {
        let is_news = self.claims.as_deref() != Some(&claims);
        if is_news && self.settings != TunnelSettings::NONE {
            self.claims = Some(Arc::new(claims));
            self.verify_due = Some(now.elapsed);
        }
    }

    /// This is to be programmed.
    pub(super) fn wanted(&mut self, now: Now, desired: Desired, scope: Scope) {
        if !self.settings.programs {
            return;
        }
        let is_news = self.desired.as_deref() != Some(&desired);
        if is_news {
            self.desired = Some(Arc::new(desired));
        }
        if is_news || scope != Scope::Change {
            self.wait_for(scope, now.elapsed);
        }
    }

    /// Somebody else changed something that may be ours.
    pub(super) fn drifted(&mut self, now: Now, scope: Scope) {
        if self.programmed.is_some() && !Mutation::IgnoreDrift.is_on() {
            self.wait_for(scope, (now.elapsed + SETTLING).max(self.not_before));
        }
    }

    fn wait_for(&mut self, scope: Scope, due: Duration) {
        self.waiting = Some(match self.waiting {
            None => Waiting { scope, due },
            Some(old) => Waiting { scope: old.scope.and(scope), due: old.due.min(due) },
        });
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        if self.running.is_some() {
            return None;
        }
        let waiting = self.waiting.map(|waiting| waiting.due);
        [self.verify_due, waiting].into_iter().flatten().min()
    }

    /// What is to be done now.
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
                self.program(attempt, Scope::Everything)?
            }
        } else {
            let Waiting { scope, .. } = self.waiting.filter(|it| it.due <= now.elapsed)?;
            self.program(attempt, scope)?
        };
        self.last_attempt = attempt;
        self.running = Some(Running { attempt, job });
        Some(command)
    }

    /// What waits is done with it.
    fn program(&mut self, attempt: u64, scope: Scope) -> Option<(Command, Job)> {
        self.waiting = None;
        let desired = self.desired.clone()?;
        let job = Job::Program { scope, desired: Arc::clone(&desired) };
        Some((Command::Program { attempt, desired, scope }, job))
    }

    fn ended(&mut self, attempt: u64) -> Option<Job> {
        self.running.take_if(|running| running.attempt == attempt).map(|running| running.job)
    }

    /// The host was looked at, with success or without: whether anybody waits for that.
    pub(super) fn inspected(
        &mut self,
        now: Now,
        (attempt, is_known): (u64, bool),
        (settings, random): (&Settings, &mut fastrand::Rng),
    ) -> bool {
        let is_awaited = self.ended(attempt).is_some();
        if is_awaited && !is_known {
            let wait = self.backoff.next_wait(random);
            self.verify_within(now, wait.min(settings.verify_interval));
        } else if is_awaited && !self.settings.programs {
            self.backoff.reset();
            self.verify_within(now, settings.verify_interval);
        }
        is_awaited
    }

    fn verify_within(&mut self, now: Now, wait: Duration) {
        let due = now.elapsed + wait;
        self.verify_due = Some(self.verify_due.map_or(due, |before| before.min(due)));
    }

    /// What collides with overlays that are in use already. They stay: their containers run.
    pub(super) fn collides_later(&mut self, sentences: BTreeSet<String>) {
        for sentence in sentences.difference(&self.late_collisions) {
            log::warn!("{sentence}; the overlay was in use before and is left as it is");
        }
        self.late_collisions = sentences;
    }

    /// The host was programmed: by overlay what is wrong with it. `None` if nobody waits for that.
    pub(super) fn programmed(
        &mut self,
        now: Now,
        (attempt, result): (u64, Programmed),
        (settings, random): (&Settings, &mut fastrand::Rng),
        counters: &mut Counters,
    ) -> Option<BTreeMap<OverlayName, Result<(), String>>> {
        let Job::Program { scope, desired } = self.ended(attempt)? else { return None };
        counters.dataplane_changes += result.changes;
        let was_done = self.programmed.as_ref().is_some_and(|it| Arc::ptr_eq(it, &desired));
        let has_changed = result.changes > 0;
        let is_repair = has_changed && was_done && scope != Scope::Change && self.faults.is_empty();
        if has_changed {
            self.tell(now, is_repair, result.summary(), counters);
        }
        self.programmed = Some(Arc::clone(&desired));
        let (faults, peers_left_out) = named(result.faults);
        self.peers_left_out = peers_left_out;
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            log::error!("{}", fault.reason);
        }
        if !has_changed && scope != Scope::Change {
            self.not_before = self.not_before.max(now.elapsed + IDLE);
        }
        if faults.is_empty() {
            self.backoff.reset();
            let soon = match has_changed {
                true if is_repair => RECHECK_REPAIR.max(self.pause),
                true => RECHECK,
                false => settings.verify_interval,
            };
            self.verify_within(now, soon.min(settings.verify_interval));
        } else {
            counters.dataplane_failures += 1;
            let wait = self.backoff.next_wait(random);
            if !Mutation::NeverRetryKernel.is_on() {
                self.verify_within(now, wait.min(settings.verify_interval));
            }
        }
        self.faults = faults;
        Some(self.outcomes(&desired))
    }

    /// What was done because it was no longer as we had left it is a repair.
    fn tell(&mut self, now: Now, is_repair: bool, what: String, counters: &mut Counters) {
        if !is_repair {
            log::info!("programmed the dataplane: {what}");
            return;
        }
        counters.dataplane_repairs += 1;
        log::warn!("repaired what somebody else changed: {what}");
        let last = self.last_repair.as_ref().map(|repair| repair.at.elapsed);
        let is_soon = last.is_some_and(|last| now.elapsed.saturating_sub(last) < PEACE);
        self.repairs_in_a_row = if is_soon { self.repairs_in_a_row.saturating_add(1) } else { 1 };
        let is_fight = self.repairs_in_a_row > PATIENCE;
        self.pause = if is_fight { PAUSE.1.min(self.pause * 2) } else { PAUSE.0 };
        self.not_before = now.elapsed + self.pause;
        self.last_repair = Some(Repair { at: now, what });
    }

    fn outcomes(&self, desired: &Desired) -> BTreeMap<OverlayName, Result<(), String>> {
        let outcome = |overlay: &OverlayName| {
            let hits = |fault: &&Fault| desired.is_hit(overlay, &fault.part);
            let mut reasons = self.faults.iter().filter(hits).map(|fault| &fault.reason);
            let Some(first) = reasons.next() else { return Ok(()) };
            match reasons.count() {
                0 => Err(first.clone()),
                more => Err(format!("{first}; and {more} more: see the agent's health")),
            }
        };
        let names = desired.spaces.iter().map(|space| &space.overlay);
        names.map(|name| (name.clone(), outcome(name))).collect()
    }

    /// How many peers the agent does not reach as the master tells of them.
    pub(super) const fn peers_left_out(&self) -> usize {
        self.peers_left_out
    }

    /// What is wrong, one sentence each.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.faults.iter().map(|fault| &fault.reason).chain(&self.late_collisions)
    }

    pub(super) fn health(&self, peers: Option<usize>, counters: &Counters) -> Option<TunnelHealth> {
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
            repairs: counters.dataplane_repairs,
            last_repair: self.last_repair.as_ref().map(|repair| repair.what.clone()),
            last_repair_unix: self.last_repair.as_ref().map(|repair| repair.at.unix),
        })
    }
}

/// The faults with no more of peers than are named, and how many peers have one.
fn named(mut faults: Vec<Fault>) -> (Vec<Fault>, usize) {
    let mut agents = BTreeSet::new();
    let mut of_peers = 0;
    faults.retain(|fault| {
        let Part::Agent(agent) = fault.part else { return true };
        agents.insert(agent);
        of_peers += 1;
        of_peers <= PEER_FAULTS_MAX
    });
    if of_peers > PEER_FAULTS_MAX {
        let more = of_peers - PEER_FAULTS_MAX;
        faults.push(Fault::of_host(format!(
            "{more} more problems with peers: 'mesos-overlay doctor --master MASTER' names them all"
        )));
    }
    (faults, agents.len())
}
