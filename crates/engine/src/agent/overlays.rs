//! The assigned overlays, their admission, and the status of their tunnels and container networks.
//!
//! The networks are independent. A stopped Docker engine delays no CNI configuration, and the retry
//! of a failed network does not touch a working network.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::IpAddr;
use std::time::Duration;

use overlay_types::addr::{DeviceName, Mtu, OverlayName, Subnet};
use overlay_types::clock::Now;
use overlay_types::container_network::{ContainerNetwork, NetworkKind};
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{Assignment, Reassigned, Status};
use overlay_types::tunnel::{Collision, OverlaySubnets};

use super::event::NetworkDetails;
use super::limits::{Verdict, check_assignments};
use super::network_task::{NetworkAttempt, Running, Task};
use super::refusal::{FoundNetworks, find, reassigned_problem, reassigned_vtep_problem, single};
use super::view::{NetworkHealth, OverlayTally};
use super::{Context, Settings, TunnelSettings};

/// All overlays of the agent, in the order of the master.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    list: Vec<Overlay>,
    last_attempt: u64,
    /// Attempts under way at networks that are no longer assigned. If such a network is assigned
    /// again before the attempt ends, the new network waits for the end.
    orphans: Vec<NetworkAttempt>,
    /// The MTU of the underlay, which determines that of the containers.
    underlay_mtu: Option<Mtu>,
    /// No network is configured before this time, since its MTU may still change.
    networks_not_before: Duration,
}

impl Overlays {
    /// Replaces the assignments. Networks that stay assigned are not touched. If a new assignment
    /// exceeds the limits, the previous assignment of the overlay stays in use. Returns whether an
    /// overlay was added, changed or removed.
    pub(super) fn update(
        &mut self,
        now: Now,
        assignments: Vec<Assignment>,
        settings: &Settings,
    ) -> bool {
        let attempts = self.take_attempts();
        let underlay_mtu = self.underlay_mtu;
        let mut previous = std::mem::take(&mut self.list);
        let mut has_changed = assignments.len() != previous.len();
        let verdicts = check_assignments(assignments, |name| in_use(&previous, name));
        for verdict in verdicts {
            let old = take_overlay(&mut previous, verdict.overlay());
            let (overlay, is_changed) = match (verdict, old) {
                (Verdict::Accept(assignment), old) => {
                    Overlay::new(now, assignment, settings, underlay_mtu, old)
                }
                (Verdict::Keep(_, reason), Some(old)) => old.keep(reason),
                (Verdict::Keep(..), None) => continue,
                (Verdict::Refuse(assignment, reason), old) => {
                    Overlay::invalid(assignment, reason, old)
                }
            };
            has_changed |= is_changed;
            self.list.push(overlay);
        }
        self.attach_attempts(attempts);
        has_changed
    }

    /// Sets the MTU of the underlay. Networks whose MTU changes are configured again. Returns
    /// whether there are such networks.
    pub(super) fn set_underlay_mtu(&mut self, now: Now, mtu: Mtu, settings: &Settings) -> bool {
        if self.underlay_mtu == Some(mtu) {
            return false;
        }
        self.underlay_mtu = Some(mtu);
        let mut has_changed = false;
        for overlay in self.list.iter_mut().filter(|overlay| overlay.is_usable()) {
            has_changed |= overlay.set_underlay_mtu(now, mtu, settings);
        }
        has_changed
    }

    /// Returns the MTU of the underlay.
    pub(super) const fn underlay_mtu(&self) -> Option<Mtu> {
        self.underlay_mtu
    }

    /// Delays all networks until this time.
    pub(super) const fn delay_networks(&mut self, until: Duration) {
        self.networks_not_before = until;
    }

    /// Returns the differences that do not prevent the use of the networks, one sentence each.
    pub(super) fn notes(&self, kind: NetworkKind) -> impl Iterator<Item = &String> {
        let tasks = self.list.iter().flat_map(|overlay| &overlay.tasks);
        let tasks = tasks.filter(move |task| task.network.kind() == kind);
        tasks.filter_map(|task| task.details.note.as_ref())
    }

    /// Takes the attempts under way at networks that are or were assigned.
    fn take_attempts(&mut self) -> Vec<NetworkAttempt> {
        let mut attempts = std::mem::take(&mut self.orphans);
        for task in self.list.iter().flat_map(|overlay| &overlay.tasks) {
            if let Some(running) = task.running {
                let (overlay, kind) = (task.network.name().clone(), task.network.kind());
                attempts.push(NetworkAttempt { overlay, kind, running });
            }
        }
        attempts
    }

    /// Makes each network wait for an attempt under way at a network of the same overlay and kind.
    fn attach_attempts(&mut self, mut attempts: Vec<NetworkAttempt>) {
        for task in self.list.iter_mut().flat_map(|overlay| &mut overlay.tasks) {
            let position = attempts.iter().position(|attempt| attempt.is_at(&task.network));
            let Some(attempt) = position.map(|position| attempts.swap_remove(position)) else {
                continue;
            };
            if task.running.is_none() {
                task.wait_for(attempt.running);
            }
        }
        self.orphans = attempts;
    }

    /// Starts an attempt at each due network that is not delayed, and returns the network with the
    /// number of the attempt.
    pub(super) fn take_due(
        &mut self,
        now: Now,
        is_delayed: impl Fn(&ContainerNetwork) -> bool,
    ) -> Vec<(u64, ContainerNetwork)> {
        let mut due = Vec::new();
        if now.elapsed < self.networks_not_before {
            return due;
        }
        let ready = self.list.iter_mut().filter(|overlay| overlay.is_ready_for_networks());
        for task in ready.flat_map(|overlay| &mut overlay.tasks) {
            if task.due.is_some_and(|due| due <= now.elapsed) && !is_delayed(&task.network) {
                self.last_attempt += 1;
                task.due = None;
                task.running = Some(Running { attempt: self.last_attempt, is_outdated: false });
                due.push((self.last_attempt, task.network.clone()));
            }
        }
        due
    }

    /// Handles the end of an attempt. Returns whether the status of the overlay changed, or `None`
    /// if the attempt is outdated.
    pub(super) fn finish_attempt(
        &mut self,
        context: &mut Context<'_>,
        attempt: u64,
        (name, kind): (&OverlayName, NetworkKind),
        result: Result<NetworkDetails, String>,
    ) -> Option<bool> {
        self.orphans.retain(|orphan| orphan.running.attempt != attempt);
        let overlay = self.list.iter_mut().find(|overlay| overlay.assignment.name() == name)?;
        let before = overlay.status();
        let task = overlay.tasks.iter_mut().find(|task| {
            task.network.kind() == kind
                && task.running.as_ref().is_some_and(|running| running.attempt == attempt)
        })?;
        task.finish_attempt(context, result);
        Some(overlay.status() != before)
    }

    /// Applies the collisions that an inspection of the host found.
    ///
    /// A collision keeps an overlay from being admitted. Admitted overlays stay, since their
    /// containers run. So do overlays that the agent programmed before its restart: their
    /// collisions are late. Returns whether the status of an overlay changed, and the collisions of
    /// the overlays that stay.
    pub(super) fn admit(&mut self, collisions: &[Collision]) -> (bool, BTreeSet<String>) {
        let mut has_changed = false;
        let mut late = BTreeSet::new();
        for overlay in self.list.iter_mut().filter(|overlay| overlay.is_usable()) {
            let before = overlay.status();
            let (name, device) = (overlay.assignment.name(), &overlay.assignment.vtep.device);
            let mut found = collisions.iter().filter(|collision| collision.concerns(name, device));
            let first = found.clone().next();
            let early = found.find(|collision| !collision.is_programmed);
            match early {
                Some(early) if !overlay.is_admitted() => {
                    overlay.admission = Admission::Collides(early.to_string());
                }
                Some(_) | None => {
                    late.extend(first.map(ToString::to_string));
                    overlay.admission = Admission::Admitted;
                }
            }
            has_changed |= overlay.status() != before;
        }
        (has_changed, late)
    }

    /// Notes that the inspection of the host failed. Overlays without an earlier inspection fail
    /// with this reason. Returns whether the status of an overlay changed.
    pub(super) fn fail_inspection(&mut self, reason: &str) -> bool {
        let mut has_changed = false;
        for overlay in &mut self.list {
            let before = overlay.status();
            if overlay.is_admission_pending() {
                overlay.admission = Admission::Unknown(reason.to_owned());
            }
            has_changed |= overlay.status() != before;
        }
        has_changed
    }

    /// Returns whether an overlay waits for the inspection of the host.
    pub(super) fn is_admission_pending(&self) -> bool {
        self.list.iter().any(Overlay::is_admission_pending)
    }

    /// Returns the names of the overlays in use.
    pub(super) fn admitted_names(&self) -> Vec<OverlayName> {
        self.admitted().map(|assignment| assignment.name().clone()).collect()
    }

    /// Returns the assignments in use.
    pub(super) fn admitted(&self) -> impl Iterator<Item = &Assignment> {
        let admitted = self.list.iter().filter(|overlay| overlay.is_admitted());
        admitted.map(|overlay| &overlay.assignment)
    }

    /// Returns all assignments that are within the limits, without their status and without those
    /// whose addresses another agent has.
    pub(super) fn valid(&self) -> impl Iterator<Item = &Assignment> {
        let valid = self.list.iter().filter(|overlay| overlay.is_usable());
        valid.map(|overlay| &overlay.assignment)
    }

    /// Returns the subnets of all assignments in use, and the addresses of their VTEPs.
    pub(super) fn held_subnets(&self) -> impl Iterator<Item = Subnet> {
        self.valid().flat_map(|assignment| {
            let subnets = [assignment.subnet, assignment.subnet6].into_iter().flatten();
            subnets.chain(vteps(assignment).filter_map(single))
        })
    }

    /// Stops to use the overlays whose addresses another agent has. An overlay without its subnet
    /// keeps no container network. An overlay without its VTEP address keeps its container networks,
    /// whose subnets are still assigned. Returns the overlays without their subnets, with these
    /// subnets, and whether any overlay changed.
    pub(super) fn drop_reassigned(&mut self, reassigned: &[Reassigned]) -> (FoundNetworks, bool) {
        let attempts = self.take_attempts();
        let mut without_subnet = FoundNetworks::new();
        let mut has_changed = false;
        for overlay in self.list.iter_mut().filter(|overlay| overlay.is_usable()) {
            let assignment = &overlay.assignment;
            let subnets = assignment.subnet.into_iter().chain(assignment.subnet6);
            let subnets: Vec<Reassigned> =
                subnets.filter_map(|subnet| find(reassigned, subnet)).collect();
            let vtep = vteps(assignment)
                .find_map(|vtep| Some((vtep, find(reassigned, single(vtep)?)?.agent)));
            let problem = match (subnets.first(), vtep) {
                (Some(subnet), _) => reassigned_problem(*subnet),
                (None, Some((vtep, agent))) => reassigned_vtep_problem(vtep, agent),
                (None, None) => continue,
            };
            log::error!("overlay {}: {problem}", assignment.name());
            has_changed = true;
            if !subnets.is_empty() {
                let subnets = subnets.iter().map(|it| it.subnet).collect();
                without_subnet.insert(assignment.name().clone(), subnets);
                overlay.tasks.clear();
            }
            overlay.admission = Admission::Reassigned(problem);
        }
        self.attach_attempts(attempts);
        (without_subnet, has_changed)
    }

    /// Sets the status of the tunnel of each overlay. Returns whether the status of an overlay
    /// changed.
    pub(super) fn set_tunnels(&mut self, mut tunnels: BTreeMap<OverlayName, Status>) -> bool {
        let mut has_changed = false;
        for overlay in &mut self.list {
            if let Some(tunnel) = tunnels.remove(overlay.assignment.name()) {
                let before = overlay.status();
                overlay.tunnel = tunnel;
                has_changed |= overlay.status() != before;
            }
        }
        has_changed
    }

    /// Notes the overlays of a desired state whose firewall rules the host has, so that their
    /// container networks can be configured.
    pub(super) fn note_rules(&mut self, spaces: &[OverlaySubnets]) {
        for overlay in &mut self.list {
            let assignment = &overlay.assignment;
            overlay.has_rules |= spaces.iter().any(|space| {
                space.overlay == *assignment.name()
                    && space.own.iter().eq(assignment.subnet.iter().chain(&assignment.subnet6))
            });
        }
    }

    /// Returns whether the agent has attempted every network at least once.
    pub(super) fn are_attempted(&self) -> bool {
        self.list.iter().all(|overlay| overlay.status() != Status::Configuring)
    }

    /// Returns when the next attempt at a network that is not delayed is due.
    pub(super) fn next_due(
        &self,
        is_delayed: impl Fn(&ContainerNetwork) -> bool,
    ) -> Option<Duration> {
        let ready = self.list.iter().filter(|overlay| overlay.is_ready_for_networks());
        let tasks = ready.flat_map(|overlay| &overlay.tasks);
        let due = tasks.filter(|task| !is_delayed(&task.network)).filter_map(|task| task.due).min();
        due.map(|due| due.max(self.networks_not_before))
    }

    /// Returns all assignments, with their status.
    pub(super) fn assignments(&self) -> Vec<Assignment> {
        let mut assignments = Vec::with_capacity(self.list.len());
        for overlay in &self.list {
            let status = Some(overlay.status());
            assignments.push(Assignment { status, ..overlay.assignment.clone() });
        }
        assignments
    }

    /// Returns the overlays whose CNI configuration must not be removed. The list includes invalid
    /// assignments, for which the agent neither creates nor removes anything.
    pub(super) fn cni_names(&self) -> BTreeSet<OverlayName> {
        let kept = self
            .list
            .iter()
            .filter(|overlay| overlay.is_invalid() || overlay.has_network(NetworkKind::Cni));
        kept.map(|overlay| overlay.assignment.name().clone()).collect()
    }

    /// Returns the overlays whose Docker network must not be removed. The list includes assignments
    /// that the agent cannot use, since such an assignment does not say whether the overlay has a
    /// Docker network.
    pub(super) fn docker_names(&self) -> BTreeSet<OverlayName> {
        let kept = self.list.iter().filter(|overlay| {
            overlay.options_error.is_some()
                || overlay.is_invalid()
                || overlay.has_network(NetworkKind::Docker)
        });
        kept.map(|overlay| overlay.assignment.name().clone()).collect()
    }

    /// Returns the number of attempts at the network with the most attempts.
    pub(super) fn attempts(&self) -> u32 {
        let tasks = self.list.iter().flat_map(|overlay| &overlay.tasks);
        tasks.map(|task| task.attempts).max().unwrap_or(0)
    }

    /// Resets the attempts for a new master, so that failed networks get their quick attempts
    /// again.
    pub(super) fn reset_attempts(&mut self) {
        for task in self.list.iter_mut().flat_map(|overlay| &mut overlay.tasks) {
            task.attempts = 0;
            task.backoff.reset();
        }
    }

    /// Makes an attempt at every failed network of this kind due now.
    pub(super) fn retry_failed(&mut self, now: Now, kind: NetworkKind) {
        let tasks = self.list.iter_mut().flat_map(|overlay| &mut overlay.tasks);
        for task in tasks.filter(|task| task.network.kind() == kind) {
            if matches!(task.status, Status::Failed(_)) && task.due.is_some() {
                task.due = Some(now.elapsed);
            }
        }
    }

    /// Makes the verification of the Docker networks with these bridges due now. The CNI plugin
    /// makes its bridges itself.
    pub(super) fn verify_networks(&mut self, now: Now, bridges: &BTreeSet<DeviceName>) {
        for task in self.list.iter_mut().flat_map(|overlay| &mut overlay.tasks) {
            let ContainerNetwork::Docker(network) = &task.network else { continue };
            if bridges.contains(&network.bridge) && task.due.is_some() {
                task.due = Some(now.elapsed);
            }
        }
    }

    /// Returns whether a container network was ready after its last attempt.
    pub(super) fn is_ready(&self, name: &OverlayName, kind: NetworkKind) -> bool {
        let overlay = self.list.iter().find(|overlay| overlay.assignment.name() == name);
        let mut tasks = overlay.into_iter().flat_map(|overlay| &overlay.tasks);
        tasks.any(|task| task.network.kind() == kind && task.status == Status::Ok)
    }

    /// Returns the failed overlays, each with the failed parts and the reason.
    pub(super) fn failures(
        &self,
    ) -> impl Iterator<Item = (&OverlayName, Vec<&'static str>, String)> {
        self.list.iter().filter_map(|overlay| match overlay.status() {
            Status::Failed(reason) => {
                Some((overlay.assignment.name(), overlay.failed_parts(), reason))
            }
            Status::Ok | Status::Configuring => None,
        })
    }

    /// Counts the overlays by status.
    pub(super) fn tally(&self, settings: &Settings) -> OverlayTally {
        let mut tally = OverlayTally::default();
        for overlay in &self.list {
            *match overlay.status() {
                Status::Ok => &mut tally.ok,
                Status::Failed(_) => &mut tally.failed,
                Status::Configuring => &mut tally.configuring,
            } += 1;
            tally.without_subnet += u64::from(overlay.assignment.overlay.range.is_none());
            tally.has_given_up |= overlay.options_error.is_some()
                || overlay.limit_error.is_some()
                || overlay.tasks.iter().any(|task| task.has_given_up(settings));
        }
        tally
    }

    /// Returns the health of every network.
    pub(super) fn health(&self, now: Now) -> Vec<NetworkHealth> {
        let tasks = self.list.iter().flat_map(|overlay| &overlay.tasks);
        tasks.map(|task| task.health(now)).collect()
    }
}

/// Returns the assignment of an overlay that the agent uses.
fn in_use<'a>(overlays: &'a [Overlay], name: &OverlayName) -> Option<&'a Assignment> {
    let mut valid = overlays.iter().filter(|overlay| overlay.is_usable());
    valid.find(|overlay| overlay.assignment.name() == name).map(|overlay| &overlay.assignment)
}

/// Returns the addresses of the VTEP of an assignment.
fn vteps(assignment: &Assignment) -> impl Iterator<Item = IpAddr> {
    let vtep = &assignment.vtep;
    [Some(vtep.ip), vtep.ip6].into_iter().flatten().map(|address| address.address())
}

/// Returns the tasks of `networks`, and whether some are new. Keeps the tasks of unchanged networks.
fn renew_tasks(
    now: Now,
    networks: Vec<ContainerNetwork>,
    mut old_tasks: Vec<Task>,
) -> (Vec<Task>, bool) {
    let mut tasks = Vec::with_capacity(networks.len());
    let mut has_new_task = false;
    for network in networks {
        let position = old_tasks.iter().position(|old| old.network.kind() == network.kind());
        let old = position.map(|position| old_tasks.swap_remove(position));
        tasks.push(match old {
            Some(old) if old.network == network => old,
            old => {
                has_new_task = true;
                Task::new(now, network, old.and_then(|old| old.running))
            }
        });
    }
    (tasks, has_new_task)
}

fn take_overlay(overlays: &mut Vec<Overlay>, name: &OverlayName) -> Option<Overlay> {
    let position = overlays.iter().position(|overlay| overlay.assignment.name() == name)?;
    Some(overlays.swap_remove(position))
}

/// One overlay on this agent.
#[derive(Debug)]
struct Overlay {
    assignment: Assignment,
    /// Why the assignment does not fit the options of the agent.
    options_error: Option<String>,
    /// Why the latest assignment exceeds the limits of a network. Either that assignment is
    /// `assignment` and its admission is [`Admission::Invalid`], or the previous assignment is
    /// still in use.
    limit_error: Option<String>,
    admission: Admission,
    /// The status of the overlay's tunnel.
    tunnel: Status,
    /// Whether the host has had the firewall rules of the overlay. Without them containers of the
    /// overlay could pose as the host.
    has_rules: bool,
    tasks: Vec<Task>,
}

/// Whether the overlay collides with addresses or routes of the host.
#[derive(Debug, Clone)]
enum Admission {
    /// The inspection of the host has not ended.
    Pending,
    /// The inspection of the host failed, for this reason. The agent repeats the inspection.
    Unknown(String),
    /// The overlay does not collide.
    Admitted,
    /// The overlay collides, as described.
    Collides(String),
    /// The assignment exceeds the limits of a network, so the agent does not inspect the host.
    Invalid,
    /// Another agent has addresses of the assignment by now, as described.
    Reassigned(String),
}

impl Overlay {
    const fn is_admitted(&self) -> bool {
        matches!(self.admission, Admission::Admitted)
    }

    /// Returns whether container networks can be configured: containers start as soon as they exist.
    const fn is_ready_for_networks(&self) -> bool {
        self.is_admitted() && self.has_rules
    }

    const fn is_admission_pending(&self) -> bool {
        matches!(self.admission, Admission::Pending | Admission::Unknown(_))
    }

    const fn is_invalid(&self) -> bool {
        matches!(self.admission, Admission::Invalid)
    }

    /// Returns whether the agent may use the assignment, as soon as the host is inspected.
    const fn is_usable(&self) -> bool {
        !matches!(self.admission, Admission::Invalid | Admission::Reassigned(_))
    }

    fn has_network(&self, kind: NetworkKind) -> bool {
        self.tasks.iter().any(|task| task.network.kind() == kind)
    }

    /// Keeps the previous assignment in use, because the new assignment exceeds the limits. Returns
    /// also whether the reason is new.
    fn keep(self, reason: String) -> (Self, bool) {
        let has_changed = self.limit_error.as_ref() != Some(&reason);
        let overlay = Self { limit_error: Some(reason), ..self };
        if has_changed {
            overlay.log_limit_error();
        }
        (overlay, has_changed)
    }

    /// Creates the overlay of an assignment that the agent does not use, because it exceeds the
    /// limits. Returns also whether the assignment or the reason is new.
    fn invalid(assignment: Assignment, reason: String, old: Option<Self>) -> (Self, bool) {
        let overlay = Self {
            assignment: Assignment { status: None, ..assignment },
            options_error: None,
            limit_error: Some(reason),
            admission: Admission::Invalid,
            tunnel: Status::Configuring,
            has_rules: false,
            tasks: Vec::new(),
        };
        let has_changed = old.is_none_or(|old| {
            old.assignment != overlay.assignment || old.limit_error != overlay.limit_error
        });
        if has_changed {
            overlay.log_limit_error();
        }
        (overlay, has_changed)
    }

    fn log_limit_error(&self) {
        if let Some(reason) = &self.limit_error {
            log::error!("overlay {}: {reason}", self.assignment.name());
        }
    }

    /// Creates the overlay of a valid assignment. Keeps the unchanged networks of `old`. Returns
    /// also whether the overlay differs from `old`.
    fn new(
        now: Now,
        assignment: Assignment,
        settings: &Settings,
        underlay_mtu: Option<Mtu>,
        old: Option<Self>,
    ) -> (Self, bool) {
        let assignment = Assignment { status: None, ..assignment };
        let (networks, options_error) =
            match ContainerNetwork::from_assignment(&assignment, &settings.options, underlay_mtu) {
                Ok(networks) => (networks, None),
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
        let mut has_changed = old.as_ref().is_none_or(|old| {
            old.assignment != assignment
                || old.tasks.len() != networks.len()
                || old.limit_error.is_some()
                || !old.is_usable()
        });
        let (admission, tunnel) =
            (settings.tunnel.initial_admission(), settings.tunnel.initial_status());
        let initial = (admission, tunnel, !settings.tunnel.programs);
        let (old_tasks, (admission, tunnel, has_rules)) = match old {
            Some(old) if !old.is_usable() || old.has_other_addresses(&assignment) => {
                (old.tasks, initial)
            }
            Some(old) => (old.tasks, (old.admission, old.tunnel, old.has_rules)),
            None => (Vec::new(), initial),
        };
        let (tasks, has_new_task) = renew_tasks(now, networks, old_tasks);
        has_changed |= has_new_task;
        let limit_error = None;
        let overlay =
            Self { assignment, options_error, limit_error, admission, tunnel, has_rules, tasks };
        (overlay, has_changed)
    }

    /// Sets the MTU of the underlay. Returns whether the MTU of a network changes.
    fn set_underlay_mtu(&mut self, now: Now, mtu: Mtu, settings: &Settings) -> bool {
        let (assignment, options) = (&self.assignment, &settings.options);
        let networks = ContainerNetwork::from_assignment(assignment, options, Some(mtu));
        // Networks that are not configured now stay so.
        let mut networks = networks.unwrap_or_default();
        networks.retain(|network| self.has_network(network.kind()));
        let (tasks, has_changed) = renew_tasks(now, networks, std::mem::take(&mut self.tasks));
        self.tasks = tasks;
        has_changed
    }

    /// Returns whether the addresses of `other` differ, so that the host has to be inspected again.
    fn has_other_addresses(&self, other: &Assignment) -> bool {
        let Assignment { overlay, vtep, .. } = &self.assignment;
        !self.assignment.has_same_addresses(other)
            || (overlay.range, overlay.range6) != (other.overlay.range, other.overlay.range6)
            || *vtep != other.vtep
    }

    /// Returns the parts that the reason of a failure is about.
    fn failed_parts(&self) -> Vec<&'static str> {
        match &self.admission {
            _ if self.limit_error.is_some() => return vec!["assignment"],
            Admission::Reassigned(_) => return vec!["assignment"],
            Admission::Collides(_) => return vec!["collision"],
            Admission::Unknown(_) => return vec!["tunnel"],
            Admission::Pending | Admission::Admitted | Admission::Invalid => {}
        }
        let mut parts = Vec::new();
        parts.extend(self.options_error.as_ref().map(|_| "assignment"));
        parts.extend(matches!(self.tunnel, Status::Failed(_)).then_some("tunnel"));
        let failed = self.tasks.iter().filter(|task| matches!(task.status, Status::Failed(_)));
        parts.extend(failed.map(|task| task.network.kind().name()));
        parts
    }

    fn status(&self) -> Status {
        if let Some(reason) = &self.limit_error {
            return Status::Failed(reason.clone());
        }
        match &self.admission {
            Admission::Pending => return Status::Configuring,
            Admission::Unknown(reason)
            | Admission::Collides(reason)
            | Admission::Reassigned(reason) => {
                return Status::Failed(reason.clone());
            }
            Admission::Admitted | Admission::Invalid => {}
        }
        let mut reasons: Vec<&str> = self.options_error.as_deref().into_iter().collect();
        // The networks of an overlay without rules are not attempted.
        let waits_for_rules =
            !self.has_rules && !self.tasks.is_empty() && matches!(self.tunnel, Status::Failed(_));
        for part in iter::once(&self.tunnel).chain(self.tasks.iter().map(|task| &task.status)) {
            match part {
                Status::Configuring if waits_for_rules => {}
                Status::Configuring if !Mutation::ReportBeforeApplied.is_on() => {
                    return Status::Configuring;
                }
                Status::Failed(reason) => reasons.push(reason),
                Status::Configuring | Status::Ok => {}
            }
        }
        if waits_for_rules {
            reasons.push("its containers get no network without firewall rules");
        }
        if reasons.is_empty() { Status::Ok } else { Status::Failed(reasons.join("; ")) }
    }
}

impl TunnelSettings {
    /// Returns the admission of a new overlay.
    const fn initial_admission(self) -> Admission {
        if self.refuses_collisions { Admission::Pending } else { Admission::Admitted }
    }

    /// Returns the status of the tunnel of a new overlay.
    const fn initial_status(self) -> Status {
        if self.programs { Status::Configuring } else { Status::Ok }
    }
}
