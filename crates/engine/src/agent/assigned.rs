//! The assignments of the master, the attempts at their container networks, and the reports.

use overlay_types::addr::{OverlayName, Upid};
use overlay_types::clock::Now;
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::{Assignment, MasterKind, Message};
use overlay_types::tunnel::Desired;

use super::registration::Phase;
use super::{Agent, Command, Context, NetworkDetails, Scope, limits};
use crate::state_machine::should_log_sample;

impl Agent {
    /// Refuses an assignment message as a whole. The current configuration stays.
    pub(super) fn refuse_update(&mut self, from: &Upid, reason: &str) {
        self.counters.update_agent_overlays_messages_dropped += 1;
        let sentence = format!(
            "refused the assignment of master {from}: {reason}: the present configuration stays; \
             correct the master's network configuration"
        );
        if should_log_sample(self.counters.update_agent_overlays_messages_dropped) {
            log::error!("{sentence}");
        }
        self.refused_update = Some(sentence);
    }

    /// Handles the assignments of the master.
    pub(super) fn assign(
        &mut self,
        now: Now,
        from: &Upid,
        assignments: Vec<Assignment>,
        master: MasterKind,
    ) {
        self.counters.update_agent_overlays_messages_received += 1;
        if let Err(reason) = limits::check_message(&assignments) {
            self.refuse_update(from, &reason);
            return;
        }
        self.refused_update = None;
        self.masters.note_assignment(from.address, master);
        self.refusal.note_assignment();
        self.found.clear();
        self.reassigned_vtep = None;
        let count = assignments.len();
        let is_first = !std::mem::replace(&mut self.has_assignments, true);
        if self.overlays.update(now, assignments, &self.settings) || is_first {
            log::info!("the master assigned {count} overlays");
            self.commands.push_back(Command::RetainCni(self.overlays.cni_names()));
            if self.settings.manages_docker() {
                self.docker_gc.schedule(now);
            }
        }
        let claims = Desired::for_assignments(
            self.ip,
            &self.settings.options,
            None,
            self.overlays.valid(),
            None,
        );
        self.tunnel.set_claims(now, claims);
        if self.tunnel.programs() {
            self.peers.request_now(now);
        }
        self.program(now, Scope::Change);
        // The master expects a report after each assignment, even without a change: the master may
        // have been restarted.
        self.has_unreported_change = true;
        self.registration.begin_configuring();
        self.report(now);
    }

    pub(super) fn handle_acknowledgement(&mut self, now: Now) {
        self.counters.agent_registered_acknowledgements_received += 1;
        if self.registration.phase() != Phase::Reporting {
            self.counters.agent_registered_acknowledgements_dropped += 1;
        } else if self.has_unreported_change {
            // A status changed while the report was under way.
            self.report(now);
        } else {
            log::info!("registered with the master");
            self.registration.complete(now, &mut self.random);
            self.probes.report_again();
        }
    }

    pub(super) fn finish_attempt(
        &mut self,
        now: Now,
        attempt: u64,
        network: (&OverlayName, NetworkKind),
        result: Result<NetworkDetails, String>,
    ) {
        if result.is_err() {
            self.counters.overlay_config_failures += 1;
            if network.1 == NetworkKind::Docker {
                self.counters.docker_cmd_failures += 1;
            }
        }
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        let change = self.overlays.finish_attempt(&mut context, attempt, network, result);
        if let Some(has_changed) = change {
            self.report_change(now, has_changed);
        }
    }

    /// Reports a changed status, if the registration allows a report now. An unchanged status may
    /// complete the configuration, so it can lead to a report, too.
    pub(super) fn report_change(&mut self, now: Now, has_changed: bool) {
        self.has_unreported_change |= has_changed;
        match self.registration.phase() {
            Phase::Configuring | Phase::Registered if self.has_unreported_change => {
                self.report(now);
            }
            // A report has to wait for the acknowledgement of the previous report.
            Phase::Configuring | Phase::Registered | Phase::Reporting => {}
            // A report has to wait for an assignment.
            Phase::Detached | Phase::Registering => {
                let is_dropped = has_changed && self.overlays.are_attempted();
                self.counters.agent_registered_messages_dropped += u64::from(is_dropped);
            }
        }
    }

    /// Sends a report to the master, unless a network waits for its first attempt.
    pub(super) fn report(&mut self, now: Now) {
        if !self.overlays.are_attempted() {
            return;
        }
        let Some(master) = self.registration.begin_report(now, &mut self.random) else {
            return;
        };
        self.has_unreported_change = false;
        self.counters.agent_registered_messages_sent += 1;
        let message = Message::AgentRegistered(self.overlays.assignments());
        self.commands.push_back(Command::Send { to: master, message });
    }
}
