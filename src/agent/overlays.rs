//! The agent's share of every overlay and what became of its container networks: which attempt is
//! under way, what the last one came to, and when the next one is due.
//!
//! Every network lives on its own: a Docker engine that is down delays no CNI configuration, and
//! what works is not touched because something else is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::limits::{Verdict, judge};
use super::view::{NetworkHealth, OverlayTally};
use super::{ContainerNetwork, NetworkKind, Settings, TunnelSettings};
use crate::addr::OverlayName;
use crate::clock::{Backoff, Now};
use crate::mutation::Mutation;
use crate::protocol::{Assignment, Status};
use crate::tunnel::Collision;

/// First bound of the wait before a failed network is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Last bound of the wait while the quick attempts last.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// All overlays of the agent, in the order of the master.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    list: Vec<Overlay>,
    last_attempt: u64,
    /// Attempts under way at networks that are no longer assigned. Should such a network be
    /// assigned again before its attempt has ended, that one is waited for.
    orphans: Vec<(OverlayName, NetworkKind, Running)>,
}

impl Overlays {
    /// Takes over what the master assigned. What it asks for already stays as it is, and so does
    /// what is in use of an overlay whose new assignment is beyond the limits. Says whether
    /// anything is new or gone.
    pub(super) fn update(
        &mut self,
        now: Now,
        assignments: Vec<Assignment>,
        settings: &Settings,
    ) -> bool {
        let mut under_way = self.under_way();
        let mut before = std::mem::take(&mut self.list);
        let mut is_news = assignments.len() != before.len();
        let in_use = |name: &OverlayName| {
            let mut used = before.iter().filter(|old| !old.is_rejected());
            used.find(|old| old.assignment.name() == name).map(|old| &old.assignment)
        };
        for verdict in judge(assignments, in_use) {
            let name = match &verdict {
                Verdict::Accept(assignment) | Verdict::Refuse(assignment, _) => assignment.name(),
                Verdict::Keep(name, _) => name,
            };
            let position = before.iter().position(|old| old.assignment.name() == name);
            let old = position.map(|position| before.swap_remove(position));
            let judged = match (verdict, old) {
                (Verdict::Accept(assignment), old) => {
                    Some(Overlay::new(now, assignment, settings, old))
                }
                (Verdict::Keep(_, reason), old) => old.map(|old| old.kept(reason)),
                (Verdict::Refuse(assignment, reason), old) => {
                    Some(Overlay::rejected(assignment, reason, old))
                }
            };
            let Some((overlay, changed)) = judged else { continue };
            is_news |= changed;
            self.list.push(overlay);
        }
        for task in self.list.iter_mut().flat_map(|overlay| &mut overlay.tasks) {
            let of = |(name, kind, _): &(OverlayName, NetworkKind, Running)| {
                task.network.name() == name && task.network.kind() == *kind
            };
            if let Some(position) = under_way.iter().position(of) {
                let (_, _, running) = under_way.swap_remove(position);
                if task.running.is_none() {
                    task.wait_for(running);
                }
            }
        }
        self.orphans = under_way;
        is_news
    }

    /// The attempts under way, whatever became of their networks.
    fn under_way(&mut self) -> Vec<(OverlayName, NetworkKind, Running)> {
        let mut under_way = std::mem::take(&mut self.orphans);
        for task in self.list.iter().flat_map(|overlay| &overlay.tasks) {
            if let Some(running) = task.running {
                under_way.push((task.network.name().clone(), task.network.kind(), running));
            }
        }
        under_way
    }

    /// The networks whose moment has come and that may be tried, each with the number of its
    /// attempt.
    pub(super) fn take_due(
        &mut self,
        now: Now,
        may_be_tried: impl Fn(&ContainerNetwork) -> bool,
    ) -> Vec<(u64, ContainerNetwork)> {
        let mut due = Vec::new();
        let admitted = self.list.iter_mut().filter(|overlay| overlay.is_admitted());
        for task in admitted.flat_map(|overlay| &mut overlay.tasks) {
            if task.due.is_some_and(|due| due <= now.elapsed) && may_be_tried(&task.network) {
                self.last_attempt += 1;
                task.due = None;
                task.running = Some(Running { attempt: self.last_attempt, is_outdated: false });
                due.push((self.last_attempt, task.network.clone()));
            }
        }
        due
    }

    /// An attempt has ended. Says whether the status of the overlay changed; `None` if nobody waits
    /// for this attempt any more.
    pub(super) fn applied(
        &mut self,
        now: Now,
        attempt: u64,
        (name, kind): (&OverlayName, NetworkKind),
        result: Result<(), String>,
        (settings, random): (&Settings, &mut fastrand::Rng),
    ) -> Option<bool> {
        self.orphans.retain(|(_, _, running)| running.attempt != attempt);
        let overlay = self.list.iter_mut().find(|overlay| overlay.assignment.name() == name)?;
        let before = overlay.status();
        let task = overlay.tasks.iter_mut().find(|task| {
            task.network.kind() == kind
                && task.running.as_ref().is_some_and(|running| running.attempt == attempt)
        })?;
        task.ended(now, result, settings, random);
        Some(overlay.status() != before)
    }

    /// What the host has already was found out, and what of it collides with the overlays. What is
    /// in use stays so, and what an agent had programmed before it was started anew: their
    /// containers run. Says whether the status of one changed, and what collides with those.
    pub(super) fn admit(&mut self, collisions: &[Collision]) -> (bool, BTreeSet<String>) {
        let mut is_news = false;
        let mut late = BTreeSet::new();
        for overlay in self.list.iter_mut().filter(|overlay| !overlay.is_rejected()) {
            let before = overlay.status();
            let Assignment { vtep, .. } = &overlay.assignment;
            let concerns = |it: &&Collision| it.concerns(overlay.assignment.name(), &vtep.device);
            let found: Vec<_> = collisions.iter().filter(concerns).collect();
            match found.iter().find(|collision| !collision.is_late) {
                Some(first) if !overlay.is_admitted() => {
                    overlay.admission = Admission::Refused(first.to_string());
                }
                Some(_) | None => {
                    overlay.admission = Admission::Admitted;
                    late.extend(found.first().map(ToString::to_string));
                }
            }
            is_news |= overlay.status() != before;
        }
        (is_news, late)
    }

    /// What the host has already could not be found out. Says whether the status of an overlay
    /// changed: of one of which it was not known before either.
    pub(super) fn not_admitted(&mut self, reason: &str) -> bool {
        let mut is_news = false;
        for overlay in &mut self.list {
            let before = overlay.status();
            if overlay.is_admission_awaited() {
                overlay.admission = Admission::Unknown(reason.to_owned());
            }
            is_news |= overlay.status() != before;
        }
        is_news
    }

    /// Whether it is still being found out for some overlay if the host has room for it.
    pub(super) fn is_admission_awaited(&self) -> bool {
        self.list.iter().any(Overlay::is_admission_awaited)
    }

    /// The assignments that are in use.
    pub(super) fn admitted(&self) -> impl Iterator<Item = &Assignment> {
        let admitted = self.list.iter().filter(|overlay| overlay.is_admitted());
        admitted.map(|overlay| &overlay.assignment)
    }

    /// All assignments that are within the limits, without their status.
    pub(super) fn all(&self) -> impl Iterator<Item = &Assignment> {
        let usable = self.list.iter().filter(|overlay| !overlay.is_rejected());
        usable.map(|overlay| &overlay.assignment)
    }

    /// What came of the tunnels of each overlay. Says whether the status of one changed.
    pub(super) fn programmed(
        &mut self,
        mut outcomes: BTreeMap<OverlayName, Result<(), String>>,
    ) -> bool {
        let mut is_news = false;
        for overlay in &mut self.list {
            if let Some(outcome) = outcomes.remove(overlay.assignment.name()) {
                let before = overlay.status();
                overlay.tunnel = Some(outcome);
                is_news |= overlay.status() != before;
            }
        }
        is_news
    }

    /// Whether every network has been tried at least once.
    pub(super) fn are_settled(&self) -> bool {
        self.list.iter().all(|overlay| overlay.status() != Status::Configuring)
    }

    /// When the next one of those is to be tried that may be.
    pub(super) fn next_due(
        &self,
        may_be_tried: impl Fn(&ContainerNetwork) -> bool,
    ) -> Option<Duration> {
        let admitted = self.list.iter().filter(|overlay| overlay.is_admitted());
        let tasks = admitted.flat_map(|overlay| &overlay.tasks);
        tasks.filter(|task| may_be_tried(&task.network)).filter_map(|task| task.due).min()
    }

    /// The share of every overlay, with its status.
    pub(super) fn assignments(&self) -> Vec<Assignment> {
        let with_status = |overlay: &Overlay| Assignment {
            status: Some(overlay.status()),
            ..overlay.assignment.clone()
        };
        self.list.iter().map(with_status).collect()
    }

    /// The overlays that have a CNI network, or may have one: of an assignment beyond the limits
    /// nothing is made and nothing is removed.
    pub(super) fn cni_names(&self) -> BTreeSet<OverlayName> {
        let has_cni = |overlay: &&Overlay| {
            let mut tasks = overlay.tasks.iter();
            overlay.is_rejected() || tasks.any(|task| task.network.kind() == NetworkKind::Cni)
        };
        let named = self.list.iter().filter(has_cni);
        named.map(|overlay| overlay.assignment.name().clone()).collect()
    }

    /// The overlays whose Docker network is wanted, or may be: of an assignment that cannot be used
    /// nobody knows.
    pub(super) fn docker_names(&self) -> BTreeSet<OverlayName> {
        let is_wanted = |overlay: &&Overlay| {
            let mut tasks = overlay.tasks.iter();
            overlay.refusal.is_some()
                || overlay.is_rejected()
                || tasks.any(|it| it.network.kind() == NetworkKind::Docker)
        };
        let wanted = self.list.iter().filter(is_wanted);
        wanted.map(|overlay| overlay.assignment.name().clone()).collect()
    }

    /// Attempts of the network that took most.
    pub(super) fn attempts(&self) -> u32 {
        let tasks = self.list.iter().flat_map(|overlay| &overlay.tasks);
        tasks.map(|task| task.attempts).max().unwrap_or(0)
    }

    /// A new master counts attempts anew, and failed networks get their quick attempts again.
    pub(super) fn reset_attempts(&mut self) {
        for task in self.list.iter_mut().flat_map(|overlay| &mut overlay.tasks) {
            task.attempts = 0;
            task.backoff.reset();
        }
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = (&OverlayName, String)> {
        self.list.iter().filter_map(|overlay| match overlay.status() {
            Status::Failed(reason) => Some((overlay.assignment.name(), reason)),
            Status::Ok | Status::Configuring => None,
        })
    }

    pub(super) fn tally(&self, settings: &Settings) -> OverlayTally {
        let mut tally = OverlayTally::default();
        for overlay in &self.list {
            *match overlay.status() {
                Status::Ok => &mut tally.ok,
                Status::Failed(_) => &mut tally.failed,
                Status::Configuring => &mut tally.configuring,
            } += 1;
            tally.without_subnet += u64::from(overlay.assignment.overlay.range.is_none());
            tally.has_given_up |= overlay.refusal.is_some()
                || overlay.beyond_limits.is_some()
                || overlay.tasks.iter().any(|task| task.has_given_up(settings));
        }
        tally
    }

    pub(super) fn health(&self, now: Now) -> Vec<NetworkHealth> {
        let tasks = self.list.iter().flat_map(|overlay| &overlay.tasks);
        let health = |task: &Task| NetworkHealth {
            overlay: task.network.name().to_string(),
            network: task.network.kind().to_string(),
            status: match &task.outcome {
                None => Status::Configuring.to_string(),
                Some(Ok(())) => Status::Ok.to_string(),
                Some(Err(reason)) => Status::Failed(reason.clone()).to_string(),
            },
            attempts: task.attempts,
            next_attempt_seconds: task.due.map(|due| due.saturating_sub(now.elapsed).as_secs()),
        };
        tasks.map(health).collect()
    }
}

/// One overlay on this agent.
#[derive(Debug)]
struct Overlay {
    assignment: Assignment,
    /// Why the assignment itself cannot be used.
    refusal: Option<String>,
    /// Why the assignment that came last is beyond the limits of a network. Either `assignment` is
    /// that one and its admission is [`Admission::Rejected`], or it is the one before and in use.
    beyond_limits: Option<String>,
    /// Whether the host has room for it.
    admission: Admission,
    /// What came of its tunnel the last time; `None` before the first.
    tunnel: Option<Result<(), String>>,
    tasks: Vec<Task>,
}

/// Whether the host has room for an overlay, or something else where the overlay is to be.
#[derive(Debug, Clone)]
enum Admission {
    /// That is being found out.
    Awaited,
    /// That could not be found out, and why. It is tried again.
    Unknown(String),
    /// It has.
    Admitted,
    /// It has not, and why.
    Refused(String),
    /// Nobody asks the host: the assignment is beyond the limits of a network.
    Rejected,
}

impl Overlay {
    const fn is_admitted(&self) -> bool {
        matches!(self.admission, Admission::Admitted)
    }

    const fn is_admission_awaited(&self) -> bool {
        matches!(self.admission, Admission::Awaited | Admission::Unknown(_))
    }

    const fn is_rejected(&self) -> bool {
        matches!(self.admission, Admission::Rejected)
    }

    /// The overlay as it was, since its new assignment is beyond the limits for this reason; and
    /// whether that is news.
    fn kept(self, reason: String) -> (Self, bool) {
        let beyond_limits = Some(reason);
        let is_news = self.beyond_limits != beyond_limits;
        self.log_beyond_limits(is_news, beyond_limits.as_deref());
        (Self { beyond_limits, ..self }, is_news)
    }

    /// The overlay of an assignment of which nothing is made, since it is beyond the limits for
    /// this reason; and whether that is news.
    fn rejected(assignment: Assignment, reason: String, old: Option<Self>) -> (Self, bool) {
        let overlay = Self {
            assignment: Assignment { status: None, ..assignment },
            refusal: None,
            beyond_limits: Some(reason),
            admission: Admission::Rejected,
            tunnel: None,
            tasks: Vec::new(),
        };
        let is_news = old.is_none_or(|old| {
            (&old.assignment, &old.beyond_limits) != (&overlay.assignment, &overlay.beyond_limits)
        });
        overlay.log_beyond_limits(is_news, overlay.beyond_limits.as_deref());
        (overlay, is_news)
    }

    fn log_beyond_limits(&self, is_news: bool, reason: Option<&str>) {
        if let Some(reason) = reason.filter(|_| is_news) {
            log::error!("overlay {}: {reason}", self.assignment.name());
        }
    }

    /// The overlay as assigned, with what `old` has of it already; and whether its networks differ
    /// from those of `old`.
    fn new(
        now: Now,
        assignment: Assignment,
        settings: &Settings,
        old: Option<Self>,
    ) -> (Self, bool) {
        let assignment = Assignment { status: None, ..assignment };
        let (networks, refusal) = match ContainerNetwork::all_of(&assignment, &settings.options) {
            Ok(networks) => (networks, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        let mut changed = old.as_ref().is_none_or(|old| {
            old.assignment != assignment
                || old.tasks.len() != networks.len()
                || old.beyond_limits.is_some()
        });
        let has_moved =
            old.as_ref().is_none_or(|old| old.is_rejected() || old.claims_other_than(&assignment));
        let fresh = (settings.tunnel.admission(), settings.tunnel.outcome());
        let (old_tasks, (admission, tunnel)) = match old {
            Some(old) if has_moved => (old.tasks, fresh),
            Some(old) => (old.tasks, (old.admission, old.tunnel)),
            None => (Vec::new(), fresh),
        };
        let mut old_tasks = old_tasks;
        let tasks = networks.into_iter().map(|network| {
            let same_kind = old_tasks.iter().position(|old| old.network.kind() == network.kind());
            match same_kind.map(|position| old_tasks.swap_remove(position)) {
                Some(old) if old.network == network => old,
                old => {
                    changed = true;
                    Task::new(now, network, old.and_then(|old| old.running))
                }
            }
        });
        let tasks = tasks.collect();
        let beyond_limits = None;
        (Self { assignment, refusal, beyond_limits, admission, tunnel, tasks }, changed)
    }

    /// Whether the other assignment asks for other addresses of the host.
    fn claims_other_than(&self, other: &Assignment) -> bool {
        let Assignment { overlay, vtep, .. } = &self.assignment;
        !self.assignment.has_addresses_of(other)
            || (overlay.range, overlay.range6) != (other.overlay.range, other.overlay.range6)
            || *vtep != other.vtep
    }

    fn status(&self) -> Status {
        if let Some(reason) = &self.beyond_limits {
            return Status::Failed(reason.clone());
        }
        match &self.admission {
            Admission::Awaited => return Status::Configuring,
            Admission::Unknown(reason) | Admission::Refused(reason) => {
                return Status::Failed(reason.clone());
            }
            Admission::Admitted | Admission::Rejected => {}
        }
        let unfinished =
            self.tunnel.is_none() || self.tasks.iter().any(|task| task.outcome.is_none());
        if unfinished && !Mutation::ReportBeforeApplied.is_on() {
            return Status::Configuring;
        }
        let mut reasons: Vec<&str> = self.refusal.as_deref().into_iter().collect();
        reasons.extend(
            self.tunnel.as_ref().and_then(|tunnel| tunnel.as_ref().err().map(String::as_str)),
        );
        let failures = self.tasks.iter().filter_map(|task| task.outcome.as_ref()?.as_ref().err());
        reasons.extend(failures.map(String::as_str));
        if reasons.is_empty() { Status::Ok } else { Status::Failed(reasons.join("; ")) }
    }
}

impl TunnelSettings {
    /// How an overlay begins.
    const fn admission(self) -> Admission {
        if self.refuses_collisions { Admission::Awaited } else { Admission::Admitted }
    }

    /// What is known of its tunnel then.
    const fn outcome(self) -> Option<Result<(), String>> {
        if self.programs { None } else { Some(Ok(())) }
    }
}

/// One container network that is to be made and kept.
#[derive(Debug)]
struct Task {
    network: ContainerNetwork,
    running: Option<Running>,
    /// What the last attempt came to; `None` before the first has ended.
    outcome: Option<Result<(), String>>,
    attempts: u32,
    backoff: Backoff,
    /// When it is to be tried or verified, since `Now::elapsed` 0; `None` while it is being tried.
    due: Option<Duration>,
}

/// An attempt that is under way.
#[derive(Debug, Clone, Copy)]
struct Running {
    attempt: u64,
    /// It makes a network that is no longer wanted. The wanted one is made when it has ended: two
    /// attempts at the same network never run beside each other.
    is_outdated: bool,
}

impl Task {
    fn new(now: Now, network: ContainerNetwork, running: Option<Running>) -> Self {
        let backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let due = Some(now.elapsed);
        let mut task = Self { network, running: None, outcome: None, attempts: 0, backoff, due };
        if let Some(running) = running {
            task.wait_for(running);
        }
        task
    }

    /// An attempt at something else of this name is under way: this network is made when it has
    /// ended.
    const fn wait_for(&mut self, running: Running) {
        self.running = Some(Running { is_outdated: true, ..running });
        self.due = None;
    }

    /// Whether it has failed, and is no longer tried quickly.
    const fn has_given_up(&self, settings: &Settings) -> bool {
        matches!(self.outcome, Some(Err(_))) && self.attempts >= settings.max_configuration_attempts
    }

    /// Logs what an attempt came to, unless it is what the last one came to.
    fn tell(&self, result: &Result<(), String>) {
        let name = self.network.name();
        let is_news = self.outcome.as_ref() != Some(result);
        match result {
            Ok(()) if is_news => log::info!("overlay {name}: its {} is ready", self.network.kind()),
            Err(reason) if is_news => log::error!("overlay {name}: {reason}"),
            Ok(()) => {}
            Err(reason) => log::debug!("overlay {name}: {reason}"),
        }
    }

    fn ended(
        &mut self,
        now: Now,
        result: Result<(), String>,
        settings: &Settings,
        random: &mut fastrand::Rng,
    ) {
        let was_outdated = self.running.take().is_some_and(|running| running.is_outdated);
        if was_outdated {
            self.due = Some(now.elapsed);
            return;
        }
        self.tell(&result);
        let was_ok = matches!(self.outcome, Some(Ok(())));
        let wait = if result.is_ok() {
            // The verification of a success is no attempt: attempts tell how long it took to
            // succeed.
            if !was_ok {
                self.attempts = self.attempts.saturating_add(1);
            }
            self.backoff.reset();
            settings.verify_interval
        } else {
            self.attempts = if was_ok { 1 } else { self.attempts.saturating_add(1) };
            if self.attempts < settings.max_configuration_attempts {
                self.backoff.next_wait(random)
            } else {
                settings.verify_interval
            }
        };
        let is_given_up = result.is_err() && Mutation::NeverRetryNetwork.is_on();
        self.due = (!is_given_up).then_some(now.elapsed + wait);
        self.outcome = Some(result);
    }
}
