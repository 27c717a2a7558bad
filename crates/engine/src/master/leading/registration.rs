//! Registrations: allocation, storage, assignments, and the problems of each registration.

use std::net::Ipv4Addr;

use overlay_types::addr::{Family, Upid};
use overlay_types::clock::Now;
use overlay_types::protocol::{
    AgentOptions, AuthenticityFault, HeldAddresses, HistoryEvent, MessageKind, Principal,
    RegistrationProblems,
};
use overlay_types::state::Version;

use super::super::Outbox;
use super::super::gate::Gated;
use super::super::registration_problems::repetition;
use super::super::registry::{Notice, RegisterError, Registration, Sender};
use super::Leading;
use crate::state_machine::should_log_sample;

impl Leading {
    /// Registers an agent, and sends the assignments to the agent. `principal` is that of an
    /// authenticated agent.
    pub(in crate::master) fn register(
        &mut self,
        now: Now,
        (from, principal): (Upid, Option<&Principal>),
        options: &AgentOptions,
        out: &mut Outbox,
    ) {
        let ip = *from.address.ip();
        let kind = MessageKind::RegisterAgent;
        if !self.trusts(&from, kind, principal.is_some()) {
            out.counters.register_agent_messages_dropped += 1;
            self.note_unauthentic(&from, kind, &AuthenticityFault::NotSealed);
            return;
        }
        let context = self.context(now);
        let sender = match principal {
            Some(principal) => Sender::Authenticated(principal),
            None if self.authentication.is_some() => Sender::Unauthenticated,
            None => Sender::Unchecked,
        };
        let former = self.registry.principal(ip).cloned();
        let result = self.registry.register(ip, options, sender, context);
        let is_of_underlay =
            matches!(result, Err(RegisterError::Underlay(_) | RegisterError::UnderlayChanged));
        if is_of_underlay && self.registry.has_other_process(&from) {
            // Any process on the agent's host can send an underlay address that is refused.
            self.registry.record_other_process(&from);
        } else {
            self.registry.record_contact(&from, now, false);
            self.registry.end_requests(ip);
        }
        match result {
            Ok(registration) => {
                let is_changed = !registration.changes.is_empty();
                if let Some(principal) = principal.filter(|it| former.as_ref() != Some(it)) {
                    log::info!("agent {ip} has authenticated as principal '{principal}'");
                }
                if is_changed {
                    log::info!("{from} registered: allocation or options changed");
                }
                let reasons = self.store_registration(now, ip, registration, "it registered", out);
                self.note_problems(&from, reasons);
                self.send_assignments(from, is_changed, out);
            }
            Err(error) => {
                out.counters.register_agent_messages_dropped += 1;
                let has_new = count_refused_registration(&error, out);
                for (reason, count) in self.problems.replace(&from, true, vec![error.to_string()]) {
                    if has_new {
                        log::warn!("cannot register {from}: {reason}{}", repetition(count));
                    }
                }
            }
        }
    }

    /// Notes the problems of an accepted registration, and logs the new problems. `reasons` are
    /// those of the allocation; the conflicts of the record are added.
    pub(super) fn note_problems(&mut self, from: &Upid, mut reasons: Vec<String>) {
        let ip = *from.address.ip();
        reasons.extend(self.registry.conflicts_of(ip));
        for (reason, count) in self.problems.replace(from, false, reasons) {
            log::warn!("agent {ip} is not served as a whole: {reason}{}", repetition(count));
        }
    }

    /// Answers an agent whose last registration has problems. If the registration was refused, the
    /// answer names the held addresses that other agents have.
    pub(in crate::master) fn send_problems(
        &mut self,
        from: Upid,
        held: &HeldAddresses,
        out: &mut Outbox,
    ) {
        self.expect_registrations(&from);
        let Some(problems) = self.problems.get(&from) else {
            return;
        };
        let problems = RegistrationProblems { registration: held.registration(), ..problems };
        let (ip, durable) = (*from.address.ip(), self.writer.durable());
        let reassigned = if problems.is_refused {
            self.registry.reassigned(ip, held, durable)
        } else {
            // Behind the assignment, to which the problems belong.
            let valid_from = self.registry.valid_from(ip);
            Gated::new(Vec::new(), valid_from.unwrap_or(Version(0)))
        };
        if self.problems.add_answer(ip, reassigned.valid_from(), durable) {
            out.counters.registration_problems_messages_sent += 1;
            out.push(reassigned.into_problems(from, problems));
        }
    }

    /// Notes that an agent follows its registrations with its held addresses. Such an agent registers
    /// again by itself.
    pub(in crate::master) fn expect_registrations(&mut self, from: &Upid) {
        self.registry.expect_registrations(from);
    }

    /// Stores a registration, with its reason in the history. Returns a sentence for each shortage.
    pub(super) fn store_registration(
        &mut self,
        now: Now,
        ip: Ipv4Addr,
        registration: Registration,
        reason: &str,
        out: &mut Outbox,
    ) -> Vec<String> {
        let Registration { changes, notices, returned, assigned } = registration;
        if changes.is_empty() {
            debug_assert!(assigned.is_empty(), "a new address is in the record");
        } else {
            self.writer.change(changes);
            let gained = [(HistoryEvent::Returned, returned), (HistoryEvent::Assigned, assigned)];
            for (event, addresses) in gained.into_iter().filter(|(_, gained)| !gained.is_empty()) {
                self.writer.note(now, Some(ip), event, addresses, reason);
            }
        }
        notices.iter().filter_map(|notice| self.count_notice(ip, notice, out)).collect()
    }

    /// Counts a notice. Returns a sentence if it is a shortage, and otherwise logs it.
    pub(super) fn count_notice(
        &self,
        ip: Ipv4Addr,
        notice: &Notice,
        out: &mut Outbox,
    ) -> Option<String> {
        let counters = &mut out.counters;
        match notice {
            Notice::NoVtep6 => {
                counters.ip6_allocation_failures += 1;
                Some(
                    "the agent gets no IPv6 VTEP address: vtep_subnet6 is exhausted: widen it or \
                     delete dead agents"
                        .to_owned(),
                )
            }
            Notice::NoSubnet(overlay, family) => {
                match family {
                    Family::V4 => counters.subnet_allocation_failures += 1,
                    Family::V6 => counters.subnet6_allocation_failures += 1,
                }
                Some(format!(
                    "the agent gets no subnet of overlay {overlay}: its {family} space is \
                     exhausted: widen it or delete dead agents"
                ))
            }
            Notice::EarlyReuse(address) => {
                counters.early_reuses += 1;
                log::warn!(
                    "agent {ip} gets {address}, which another agent had less than {} ago: nothing \
                     else is left",
                    humantime::format_duration(self.reuse_after)
                );
                None
            }
        }
    }

    /// Sends the assignments to the agent, unless unchanged assignments are held back already.
    pub(super) fn send_assignments(&mut self, to: Upid, is_changed: bool, out: &mut Outbox) {
        let Some(assignments) = self.registry.assignments(*to.address.ip()) else {
            return;
        };
        let valid_from = assignments.valid_from();
        let is_held_back = valid_from > self.writer.durable();
        if is_held_back && !self.pending_updates.add(&to, valid_from, is_changed) {
            return;
        }
        out.counters.update_agent_overlays_messages_sent += 1;
        log::debug!("{to} registered and is assigned {} overlays", assignments.overlay_count());
        out.push(assignments.into_update(to, self.kind));
    }
}

/// Counts a refused registration. Returns whether it may be logged: an agent can send any number of
/// underlay addresses, each of which is a new reason.
fn count_refused_registration(error: &RegisterError, out: &mut Outbox) -> bool {
    let counters = &mut out.counters;
    match error {
        RegisterError::NoVtep(_) => {
            counters.ip_allocation_failures += 1;
            true
        }
        RegisterError::Underlay(_) | RegisterError::UnderlayChanged => {
            counters.registrations_refused += 1;
            should_log_sample(counters.registrations_refused)
        }
        RegisterError::Quarantined(_) => true,
    }
}
