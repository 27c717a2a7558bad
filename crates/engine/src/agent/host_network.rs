//! The desired state of the host's network: the admitted overlays and the peers.

use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::protocol::PeersUpdate;
use overlay_types::tunnel::{Collision, Desired, UnderlayMtu};

use super::peers::ApplyResult;
use super::{Agent, Context, Programmed, Scope};

/// Time that the first container networks wait for the peers. A C++ master sends none.
const PEERS_TIMEOUT: Duration = Duration::from_secs(3);

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
            self.overlays.underlay_mtu(),
            self.overlays.admitted(),
            peers,
        );
        desired.excluded_peers = self.peers.excluded_peers();
        desired.agents = self.peers.agents();
        desired.masters = self.masters.programs();
        desired.accepts_every_sender = self.accepts_every_sender;
        desired.disables_checksum_offload = self.offloads.disables_checksum();
        let is_audible = |agent| self.probes.has_target(agent);
        self.direct.apply(now, self.peers.announced_mac(), &mut desired, is_audible);
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
        underlay_mtu: Option<UnderlayMtu>,
        result: Result<Vec<Collision>, String>,
    ) {
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        if !self.tunnel.finish_inspection(&mut context, attempt, result.is_ok()) {
            return;
        }
        // Without tunnels of its own, the agent knows no peers.
        if !self.tunnel.programs() {
            self.follow_underlay(now, underlay_mtu);
        }
        let was_pending = self.overlays.is_admission_pending();
        let admitted = self.overlays.admitted_names();
        let has_changed = match result {
            Ok(collisions) => {
                let (has_changed, late) = self.overlays.admit(&collisions);
                self.tunnel.set_late_collisions(late);
                has_changed
            }
            Err(reason) => self.overlays.fail_inspection(&reason),
        };
        // Every other change of the desired state has called `program` already.
        if was_pending || admitted != self.overlays.admitted_names() {
            self.program(now, Scope::Everything);
        } else {
            self.tunnel.verify(now);
        }
        self.report_change(now, has_changed);
    }

    pub(super) fn finish_program(&mut self, now: Now, attempt: u64, mut result: Programmed) {
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        let counters = &mut self.counters;
        let has_rules = result.firewall.is_some();
        // A Docker network that was removed is created again, one without its bridge is repaired.
        self.overlays.verify_networks(now, &result.gone_bridges);
        let underlay_mtu = result.underlay_mtu;
        let direct = result.direct.take();
        let tunnels = self.tunnel.finish_program(&mut context, attempt, result, counters);
        if let Some(tunnels) = tunnels {
            if has_rules && let Some(programmed) = self.tunnel.programmed() {
                self.overlays.note_rules(&programmed.spaces);
            }
            let has_changed = self.overlays.set_tunnels(tunnels);
            self.report_change(now, has_changed);
            if has_rules {
                self.settle_mtu(now, underlay_mtu);
            }
            let direct = direct.map(|report| self.direct.set_report(report)).unwrap_or_default();
            // The peers learn of another device by a registration.
            if direct.has_new_offer {
                self.registration.register_now(now);
            }
            if self.follow_underlay(now, underlay_mtu) || direct.has_new_paths {
                self.program(now, Scope::Change);
            }
        }
    }

    /// Gives the containers the MTU that the underlay allows, unless it is configured. Returns
    /// whether the MTU of the underlay is new. Without a value the containers keep their MTU.
    fn follow_underlay(&mut self, now: Now, underlay_mtu: Option<UnderlayMtu>) -> bool {
        if self.settings.options.overlay_mtu.is_some() {
            return false;
        }
        let Some(UnderlayMtu { mtu, .. }) = underlay_mtu else { return false };
        let old = self.overlays.underlay_mtu();
        if self.overlays.set_underlay_mtu(now, mtu, &self.settings)
            && let Some(old) = old
        {
            log::warn!(
                "the MTU of the underlay is {mtu} instead of {old}: new containers get an MTU that \
                 fits, existing ones keep theirs"
            );
        }
        old != Some(mtu)
    }

    /// Lets the first container networks wait until the MTU of the routes to the peers is known: a
    /// Docker network keeps the MTU that it is created with.
    fn settle_mtu(&mut self, now: Now, underlay_mtu: Option<UnderlayMtu>) {
        if self.is_mtu_settled {
            return;
        }
        let has_peers = self.tunnel.programmed().is_some_and(|desired| desired.peers.is_some());
        let is_final = has_peers
            || self.accepts_every_sender
            || self.settings.options.overlay_mtu.is_some()
            || underlay_mtu.is_none_or(|underlay| underlay.is_routed);
        let deadline = *self.mtu_deadline.get_or_insert(now.elapsed + PEERS_TIMEOUT);
        self.is_mtu_settled = is_final || now.elapsed >= deadline;
        self.overlays.delay_networks(if is_final { Duration::ZERO } else { deadline });
    }
}
