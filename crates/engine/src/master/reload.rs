//! The reload of the configuration by a running master.
//!
//! The master refuses a configuration under which an allocation of an agent could not be served,
//! and keeps its current configuration. At the start there is no current configuration: records
//! that conflict with the new configuration are quarantined.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::protocol::{Author, Network, RequestId, SharedSecrets};
use overlay_types::text::count_and_list;

use super::effect::{Effect, differences};
use super::phase::Phase;
use super::{Authentication, Command, Master, Reply, Settings};

/// After this time, a later request does not wait for the result any more. The file may be on a disk
/// that hangs.
const READING_MAX: Duration = Duration::from_secs(60);

/// The most requests that wait. While the file cannot be read, every request would wait.
const WAITING_MAX: usize = 100;

/// A request to read the configuration again.
#[derive(Debug)]
struct Reading {
    id: RequestId,
    author: Author,
    /// When the reading began. The time of the request while it waits.
    since: Duration,
}

/// The requests to read the configuration again. One is read at a time: otherwise an earlier request
/// could read earlier content and apply it last.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    /// The request whose configuration is being read.
    reading: Option<Reading>,
    waiting: VecDeque<Reading>,
}

impl Reloads {
    /// Returns when the next request does not wait any more for the request before it.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let reading = self.reading.as_ref().filter(|_| !self.waiting.is_empty())?;
        Some(reading.since + READING_MAX)
    }
}

impl Master {
    /// Reads the configuration again after all earlier requests to do so.
    pub(super) fn queue_reload(&mut self, now: Now, id: RequestId, author: Author) {
        if self.reloads.waiting.len() >= WAITING_MAX {
            let reason = "too many requests wait for the configuration: see whether its file can be \
                          read";
            self.outbox.push(Command::immediate_reply(id, Reply::Unavailable(reason.to_owned())));
            return;
        }
        self.reloads.waiting.push_back(Reading { id, author, since: now.elapsed });
        if self.reloads.reading.is_none() {
            self.read_next_config(now);
        }
        self.retry_reading(now);
    }

    /// Begins to read the configuration for the next request, if the reading for the request before
    /// it takes too long.
    pub(super) fn retry_reading(&mut self, now: Now) {
        if self.reloads.next_timeout().is_some_and(|due| due <= now.elapsed) {
            self.read_next_config(now);
        }
    }

    fn read_next_config(&mut self, now: Now) {
        let next = self.reloads.waiting.pop_front();
        self.reloads.reading = next.map(|next| Reading { since: now.elapsed, ..next });
        if let Some(Reading { id, .. }) = self.reloads.reading {
            self.outbox.push(Command::ReadConfig(id));
        }
    }

    /// Notes that a configuration was read, and begins to read the next. Returns the client of the
    /// request, or `None` if a later request did not wait for this result: it is answered, and not
    /// applied.
    pub(super) fn end_reading(&mut self, now: Now, id: RequestId) -> Option<Author> {
        let Some(Reading { author, .. }) = self.reloads.reading.take_if(|it| it.id == id) else {
            let reason = "the configuration was read too slowly, and a later request was served";
            let reply = Reply::Unavailable(reason.to_owned());
            self.outbox.push(Command::immediate_reply(id, reply));
            return None;
        };
        self.read_next_config(now);
        Some(author)
    }

    /// Applies other settings, unless an agent would lose an allocation. The secrets of the agents
    /// stay: their file is followed on its own, and may have changed since the configuration was
    /// read.
    pub(super) fn reload(&mut self, now: Now, mut settings: Settings) -> Effect {
        if let (Some(new), Some(current)) =
            (&mut settings.authentication, &self.settings.authentication)
        {
            new.secrets = Arc::clone(&current.secrets);
        }
        let Phase::Leading(leading) = &mut self.phase else {
            let effect = self.effect_without_agents(&settings.network);
            log::info!(
                "applied another configuration: it is checked against the agents when the state is \
                 loaded"
            );
            self.apply(settings);
            return effect;
        };
        if settings == self.settings {
            // Computing a plan takes long: repeated requests must not be able to cause that work.
            log::info!("read the configuration again: it has not changed");
            return Effect { accepted: true, ..Effect::default() };
        }
        let effect = leading.reconfigure(now, &settings, &mut self.outbox);
        if effect.accepted {
            self.apply(settings);
        }
        effect
    }

    /// Replaces the secrets of the agents, if agents authenticate.
    pub(super) fn set_secrets(&mut self, secrets: SharedSecrets) {
        let Some(Authentication { mode, .. }) = self.settings.authentication else { return };
        let authentication = Some(Authentication { mode, secrets: Arc::new(secrets) });
        self.apply(Settings { authentication, ..self.settings.clone() });
    }

    /// Replaces the settings, and what the runtime knows of them.
    fn apply(&mut self, settings: Settings) {
        if settings.authentication != self.settings.authentication {
            let Settings { authentication, .. } = &settings;
            match authentication {
                Some(Authentication { mode, secrets }) => {
                    let names: Vec<String> =
                        secrets.principals().map(ToString::to_string).collect();
                    let names = count_and_list(&names, "principal");
                    log::info!("authentication of agents is {mode}, with {names}");
                }
                None => log::warn!("agents are not authenticated: 'credentials' is not set"),
            }
            let secrets = authentication.as_ref().map(|it| Arc::clone(&it.secrets));
            self.outbox.push(Command::SetSecrets(secrets));
        }
        self.settings = settings;
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
