//! The reload of the configuration by a running master.
//!
//! The master refuses a configuration under which an allocation of an agent could not be served,
//! and keeps its current configuration. At the start there is no current configuration: records
//! that conflict with the new configuration are quarantined.

use std::collections::VecDeque;
use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::protocol::{Network, RequestId};

use super::effect::{Effect, differences};
use super::phase::Phase;
use super::{Command, Master, Reply, Settings};

/// After this time, a later request does not wait for the result any more. The file may be on a disk
/// that hangs.
const READING_MAX: Duration = Duration::from_secs(60);

/// The requests to read the configuration again. One is read at a time: otherwise an earlier request
/// could read earlier content and apply it last.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    /// The request whose configuration is being read, and since when.
    reading: Option<(RequestId, Duration)>,
    waiting: VecDeque<RequestId>,
}

impl Master {
    /// Reads the configuration again after all earlier requests to do so.
    pub(super) fn queue_reload(&mut self, now: Now, id: RequestId) {
        let is_hung = |(_, since): &(RequestId, Duration)| *since + READING_MAX <= now.elapsed;
        self.reloads.waiting.push_back(id);
        if self.reloads.reading.as_ref().is_none_or(is_hung) {
            self.read_next_config(now);
        }
    }

    fn read_next_config(&mut self, now: Now) {
        self.reloads.reading = self.reloads.waiting.pop_front().map(|id| (id, now.elapsed));
        if let Some((id, _)) = self.reloads.reading {
            self.outbox.push(Command::ReadConfig(id));
        }
    }

    /// Notes that a configuration was read, and begins to read the next. Returns false if a later
    /// request did not wait for this result: it is answered, and not applied.
    pub(super) fn end_reading(&mut self, now: Now, id: RequestId) -> bool {
        if self.reloads.reading.is_none_or(|(reading, _)| reading != id) {
            let reason = "the configuration was read too slowly, and a later request was served";
            let reply = Reply::Unavailable(reason.to_owned());
            self.outbox.push(Command::immediate_reply(id, reply));
            return false;
        }
        self.read_next_config(now);
        true
    }

    /// Applies other settings, unless an agent would lose an allocation.
    pub(super) fn reload(&mut self, now: Now, settings: Settings) -> Effect {
        let Phase::Leading(leading) = &mut self.phase else {
            let effect = self.effect_without_agents(&settings.network);
            log::info!(
                "applied another configuration: it is checked against the agents when the state is \
                 loaded"
            );
            self.settings = settings;
            return effect;
        };
        if settings == self.settings {
            // Computing a plan takes long: repeated requests must not be able to cause that work.
            log::info!("read the configuration again: it has not changed");
            return Effect { accepted: true, ..Effect::default() };
        }
        let effect = leading.reconfigure(now, &settings, &mut self.outbox);
        if effect.accepted {
            self.settings = settings;
        }
        effect
    }

    /// Previews another network. If agents are known, a job outside of the state machine computes
    /// the effect. Changes nothing.
    pub(super) fn preview(&mut self, now: Now, id: RequestId, network: Network) {
        let command = match &mut self.phase {
            Phase::Leading(leading) => {
                let job = Box::new(leading.preview_job(now, id, network));
                Command::Preview { id, job }
            }
            Phase::Standby(_) | Phase::Recovering(_) => {
                let effect = self.effect_without_agents(&network);
                Command::immediate_reply(id, Reply::Effect(Box::new(effect)))
            }
        };
        self.outbox.push(command);
    }

    /// Answers the request for a preview. The effect contains addresses of agents, so the answer
    /// waits until they are durable. A master that lost leadership does not know whether they are
    /// durable, and answers that it is unavailable.
    pub(super) fn previewed(&mut self, id: RequestId, effect: Box<Effect>) {
        let command = match &mut self.phase {
            Phase::Leading(leading) => {
                if leading.end_preview(id) {
                    leading.gate_reply(Reply::Effect(effect)).into_command(id)
                } else {
                    let reason = "the state was read again meanwhile: ask again".to_owned();
                    Command::immediate_reply(id, Reply::Unavailable(reason))
                }
            }
            Phase::Standby(_) | Phase::Recovering(_) => {
                Command::immediate_reply(id, Reply::Unavailable(self.unavailable_reason()))
            }
        };
        self.outbox.push(command);
    }

    /// Returns the effect on a master that knows no agents.
    fn effect_without_agents(&self, network: &Network) -> Effect {
        let warning = "this master does not know the agents now: when it does, \
                       it quarantines agents that conflict with this configuration";
        Effect {
            accepted: true,
            changes: differences(&self.settings.network, network),
            warnings: vec![warning.to_owned()],
            ..Effect::default()
        }
    }
}
