//! The desired state of the host's network: the admitted overlays and the peers.

use overlay_types::clock::Now;
use overlay_types::protocol::PeersUpdate;
use overlay_types::tunnel::{Collision, Desired};

use super::peers::ApplyResult;
use super::{Agent, Context, Programmed, Scope};

impl Agent {
    pub(super) fn update_peers(&mut self, now: Now, update: &PeersUpdate) {
        self.counters.update_peers_messages_received += 1;
        match self.peers.update(now, update, &mut self.random) {
            ApplyResult::Changed => self.program(now, Scope::Change),
            ApplyResult::Unchanged => {}
            ApplyResult::Dropped => self.counters.update_peers_messages_dropped += 1,
        }
    }

    /// Sets the desired state of the host's network: the admitted overlays and the peers.
    pub(super) fn program(&mut self, now: Now, scope: Scope) {
        // Until the inspection has ended, the programmed state stays.
        if self.overlays.is_admission_pending() || !self.has_assignments {
            return;
        }
        self.program_admitted(now, scope);
    }

    pub(super) fn program_admitted(&mut self, now: Now, scope: Scope) {
        let peers = self.peers.by_underlay();
        let mut desired = Desired::for_assignments(
            self.ip,
            &self.settings.options,
            self.overlays.admitted(),
            peers,
        );
        desired.excluded_peers = self.peers.excluded_peers();
        desired.agents = self.peers.agents();
        desired.masters = self.masters.programs();
        desired.accepts_every_sender = self.accepts_every_sender;
        self.tunnel.set_desired(now, desired, scope);
    }

    /// Accepts VXLAN packets of every sender if the master is a C++ module, which sends no peers. A
    /// table ends it. A host that knew its peers before stays closed: its master once sent them.
    pub(super) fn update_accepted_senders(&mut self, now: Now) {
        let accepts = self.tunnel.programs()
            && self.peers.count().is_none()
            // The table of such a master is late.
            && !self.masters.sends_peers()
            && (self.accepts_every_sender
                || (self.gets_no_peers() && self.tunnel.keeps_no_agents()));
        if accepts != self.accepts_every_sender {
            self.accepts_every_sender = accepts;
            self.program(now, Scope::Change);
        }
    }

    pub(super) fn finish_inspection(
        &mut self,
        now: Now,
        attempt: u64,
        result: Result<Vec<Collision>, String>,
    ) {
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        if !self.tunnel.finish_inspection(&mut context, attempt, result.is_ok()) {
            return;
        }
        let has_changed = match result {
            Ok(collisions) => {
                let (has_changed, late) = self.overlays.admit(&collisions);
                self.tunnel.set_late_collisions(late);
                has_changed
            }
            Err(reason) => self.overlays.fail_inspection(&reason),
        };
        self.program(now, Scope::Everything);
        self.report_change(now, has_changed);
    }

    pub(super) fn finish_program(&mut self, now: Now, attempt: u64, result: Programmed) {
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        let counters = &mut self.counters;
        let has_rules = result.firewall.is_some();
        // A Docker network that was removed is created again, one without its bridge is repaired.
        self.overlays.verify_networks(now, &result.gone_bridges);
        let tunnels = self.tunnel.finish_program(&mut context, attempt, result, counters);
        if let Some(tunnels) = tunnels {
            if has_rules && let Some(programmed) = self.tunnel.programmed() {
                self.overlays.note_rules(&programmed.spaces);
            }
            let has_changed = self.overlays.set_tunnels(tunnels);
            self.report_change(now, has_changed);
        }
    }
}
