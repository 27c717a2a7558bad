//! Another configuration of the network, and its preview.

use std::sync::Arc;

use overlay_types::clock::Now;
use overlay_types::protocol::{Addresses, HeldAddresses, HistoryEvent, Network, RequestId};

use super::super::effect::{Effect, PreviewJob, ReconfigurationPlan, log_refused};
use super::super::registry::{AdoptedAgent, ChangeContext};
use super::super::{Outbox, Settings};
use super::Leading;

impl Leading {
    /// Applies another configuration, unless an agent would lose an allocation.
    pub(in crate::master) fn reconfigure(
        &mut self,
        now: Now,
        settings: &Settings,
        out: &mut Outbox,
    ) -> Effect {
        let context = ChangeContext { reuse_after: settings.reuse_after, ..self.context(now) };
        let network = Arc::clone(&settings.network);
        let plan = ReconfigurationPlan::new(&self.registry, network, context);
        let ReconfigurationPlan { registry, adopted, registrations, updated, effect } = plan;
        if !effect.accepted {
            log_refused(&effect.problems);
            return effect;
        }
        self.reuse_after = settings.reuse_after;
        self.authentication = settings.authentication_mode();
        self.registry = registry;
        self.note_adopted(now, adopted);
        if effect.changes.is_empty() {
            log::info!("read the configuration again: the network has not changed");
        } else {
            let changes = effect.changes.join("; ");
            log::info!("applied another configuration: {changes}");
            let addresses = Addresses::default();
            self.writer.note(now, None, HistoryEvent::Configured, addresses, &changes);
        }
        for (ip, registration) in registrations {
            let reason = "the configuration has changed";
            let reasons = self.store_registration(now, ip, registration, reason, out);
            if let Some(upid) = self.registry.contact(ip).cloned() {
                self.note_problems(&upid, reasons);
            }
        }
        for upid in updated {
            self.send_assignments(upid.clone(), true, out);
            // The agent takes its problems as ended when it gets an assignment.
            self.send_problems(upid, &HeldAddresses::default(), out);
        }
        effect
    }

    /// Stores the records of agents that keep addresses under another overlay name.
    pub(super) fn note_adopted(&mut self, now: Now, adopted: Vec<AdoptedAgent>) {
        for AdoptedAgent { ip, change, addresses } in adopted {
            self.writer.change([change]);
            let reason = "the configuration has another name for the overlay";
            self.writer.note(now, Some(ip), HistoryEvent::Renamed, addresses, reason);
        }
    }

    /// Returns the job that previews another network.
    pub(in crate::master) fn preview_job(
        &mut self,
        now: Now,
        id: RequestId,
        network: Network,
    ) -> PreviewJob {
        self.previews.insert(id);
        PreviewJob::new(&self.registry, network, self.context(now))
    }

    /// Notes the end of a preview. Returns false if an earlier term of this master began it: the
    /// allocations of that term may never have been stored.
    pub(in crate::master) fn end_preview(&mut self, id: RequestId) -> bool {
        self.previews.remove(&id)
    }
}
