//! Releases of agents, by an operator.

use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::HistoryEvent;
use overlay_types::state::Version;
use overlay_types::text::count_and_list;

use super::super::event::Forget;
use super::super::gate::Gated;
use super::super::view::{ReleaseOutcome, ReleaseResult};
use super::Leading;

/// An agent that was last seen within this time counts as running. Agents register again within a
/// quarter of an hour, and one of these messages may get lost. Agents with the C++ modules do not
/// register again, so such an agent may run although it was last seen earlier.
const RUNNING: Duration = Duration::from_secs(30 * 60);

/// How long after the election an unseen agent may be running. Every running agent registers with a
/// new master, and repeats an unanswered registration after at most a minute.
const SETTLING: Duration = Duration::from_secs(2 * 60);

/// Logs one line for a request, which may release a hundred thousand agents.
pub(super) fn log_released(agents: &[Ipv4Addr]) {
    if !agents.is_empty() {
        log::info!("released the addresses of {}", count_and_list(agents, "deleted agent"));
    }
}

impl Leading {
    /// Releases an agent. Returns whether the agent was known.
    pub(super) fn release(&mut self, now: Now, ip: Ipv4Addr, reason: &str) -> bool {
        let is_anything_held_back = self.writer.latest_version() > self.writer.durable();
        self.problems.remove(ip);
        self.refused.remove(ip);
        let context = self.context(now);
        let Some((change, addresses)) = self.registry.release(ip, context) else {
            return false;
        };
        if !Mutation::SkipStoringRelease.is_on() {
            self.writer.change([change]);
        }
        if is_anything_held_back {
            self.pending_updates.withdrawn.insert(ip);
        }
        self.writer.note(now, Some(ip), HistoryEvent::Released, addresses, reason);
        true
    }

    /// Serves the addresses that no longer conflict after agents were released.
    pub(super) fn resolve_conflicts(&mut self, now: Now) {
        let context = self.context(now);
        let adopted = self.registry.resolve_conflicts(context);
        self.note_adopted(now, adopted);
    }

    /// Releases the agents that are not running, or all requested agents with `force`.
    pub(super) fn forget(&mut self, now: Now, forget: &Forget) -> Gated<Vec<ReleaseResult>> {
        let (mut results, mut released) = (Vec::new(), Vec::new());
        for &ip in &forget.agents {
            if !self.registry.is_known(ip) {
                if !forget.dry_run {
                    self.registry.forget_refusal(ip);
                    self.problems.remove(ip);
                    self.refused.remove(ip);
                }
                results.push(Gated::new(ReleaseResult::unknown(ip), Version(0)));
                continue;
            }
            let last_seen = self.registry.last_seen(ip);
            let silence = last_seen.map(|last_seen| now.elapsed.saturating_sub(last_seen));
            let is_running = silence.is_some_and(|silence| silence < RUNNING);
            let is_settling = now.elapsed.saturating_sub(self.since) < SETTLING;
            let outcome = if is_running && !forget.force {
                ReleaseOutcome::Running
            } else if silence.is_none()
                && (is_settling || self.registry.may_run_unseen(ip))
                && !forget.force
            {
                ReleaseOutcome::MayBeRunning
            } else if forget.dry_run {
                ReleaseOutcome::WouldBeDeleted
            } else {
                ReleaseOutcome::Deleted
            };
            results.extend(self.registry.release_result(ip, outcome, silence));
            if outcome == ReleaseOutcome::Deleted {
                // A stopped agent counts as running for a while, so the reason does not say that
                // the agent was running.
                let reason = match silence {
                    Some(silence) if is_running => {
                        let seconds = silence.as_secs();
                        format!("released by force, {seconds} s after it was last seen")
                    }
                    None if is_settling => {
                        "released by force, before this master has seen it".to_owned()
                    }
                    _ => "it was forgotten".to_owned(),
                };
                self.release(now, ip, &reason);
                released.push(ip);
            }
        }
        log_released(&released);
        self.resolve_conflicts(now);
        results.into_iter().collect()
    }
}
