//! What the agent does when the master refuses it, or when the host loses the agent's address.
//!
//! A refusal alone changes nothing on the host: the containers keep their networks. The agent
//! removes only what the message names as assigned to another agent, and reports the rest.

use std::net::IpAddr;

use overlay_types::addr::Upid;
use overlay_types::clock::Now;
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::{Reassigned, RegistrationProblems};

use super::refusal::{FoundNetworks, reassigned_vtep_problem};
use super::{Agent, Command, Scope};

/// Adds networks with their subnets to other networks.
pub(super) fn add_networks(networks: &mut FoundNetworks, others: FoundNetworks) {
    for (overlay, subnets) in others {
        networks.entry(overlay).or_default().extend(subnets);
    }
}

impl Agent {
    /// Notes the managed networks of the host. After an assignment a list may be outdated, unless
    /// the agent requested it because it is refused.
    pub(super) fn found_networks(
        &mut self,
        kind: NetworkKind,
        networks: Result<FoundNetworks, String>,
    ) {
        if !self.has_assignments || self.refusal.is_refused() {
            self.found.set_networks(kind, networks);
        }
    }

    /// Notes the VTEP addresses that an earlier process left.
    pub(super) fn found_vteps(&mut self, vteps: Vec<IpAddr>) {
        if !self.has_assignments {
            self.found.set_vteps(vteps);
        }
    }

    /// Handles what the master says about the registration.
    pub(super) fn handle_problems(
        &mut self,
        now: Now,
        from: &Upid,
        problems: &RegistrationProblems,
    ) {
        self.counters.registration_problems_messages_received += 1;
        if problems.is_refused && !self.refusal.take_answer(problems.registration) {
            return;
        }
        self.refusal.update(from, problems);
        if problems.is_refused {
            self.registration.note_refusal();
            self.drop_reassigned(now, &problems.reassigned);
            if self.found.is_incomplete() {
                self.commands.push_back(Command::FindNetworks);
            }
        }
    }

    /// Removes the container networks and the tunnels whose addresses another agent has.
    fn drop_reassigned(&mut self, now: Now, reassigned: &[Reassigned]) {
        if reassigned.is_empty() {
            return;
        }
        let (mut cni, has_changed) = self.overlays.drop_reassigned(reassigned);
        let mut docker = cni.clone();
        add_networks(&mut cni, self.found.reassigned_networks(NetworkKind::Cni, reassigned));
        add_networks(&mut docker, self.found.reassigned_networks(NetworkKind::Docker, reassigned));
        if !cni.is_empty() {
            self.commands.push_back(Command::RemoveCni(cni));
        }
        if !docker.is_empty() && self.settings.manages_docker() {
            self.docker_gc.schedule_only(now, docker);
        }
        if has_changed {
            self.program(now, Scope::Everything);
        }
        if !self.has_assignments {
            self.drop_found_vtep(now, reassigned);
        }
    }

    /// Removes the tunnels of an earlier process if another agent has its VTEP address.
    fn drop_found_vtep(&mut self, now: Now, reassigned: &[Reassigned]) {
        let Some((vtep, agent)) = self.found.reassigned_vtep(reassigned) else {
            return;
        };
        if self.reassigned_vtep.replace((vtep, agent)) != Some((vtep, agent)) {
            log::error!("{}", reassigned_vtep_problem(vtep, agent));
            self.program_admitted(now, Scope::Everything);
        }
    }

    /// Sets why the agent cannot be reached at its address.
    pub(super) fn set_address_problem(&mut self, now: Now, problem: Option<String>) {
        if self.address_problem == problem {
            return;
        }
        match &problem {
            Some(problem) => log::error!("{problem}"),
            None => {
                log::info!("the host has the address {} again: registering", self.ip);
                self.registration.register_now(now);
            }
        }
        self.address_problem = problem;
    }
}
