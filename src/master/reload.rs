//! Another configuration for a running master.
//!
//! A configuration under which an agent would not be served what it has is refused, and the master
//! goes on with its configuration. At a start there is nothing to go on with: records that conflict
//! with the configuration are quarantined then.

use super::effect::{Effect, differences};
use super::leadership::Phase;
use super::{Command, Master, Reply, Settings};
use crate::clock::Now;
use crate::protocol::{Network, RequestId};
use crate::words::first_few;

impl Master {
    /// Takes other settings, unless an agent loses by them what it has.
    pub(super) fn reload(&mut self, now: Now, settings: Settings) -> Effect {
        let Phase::Leading(leading) = &mut self.phase else {
            let effect = self.effect_without_agents(&settings.network);
            log::info!(
                "took over another configuration: it is checked against the agents when they are known"
            );
            self.settings = settings;
            return effect;
        };
        if settings == self.settings {
            // A plan takes long and would change nothing: no request may cause that in vain.
            log::info!("read the configuration again: it has not changed");
            return Effect { accepted: true, ..Effect::default() };
        }
        let effect = leading.reconfigure(now, &settings, &mut self.outbox);
        if effect.accepted {
            self.settings = settings;
        }
        effect
    }

    /// Computes the effect of another network, outside of the state machine if there are agents.
    /// Nothing changes.
    pub(super) fn preview(&mut self, now: Now, id: RequestId, network: Network) {
        let command = match &self.phase {
            Phase::Leading(leading) => {
                let job = Box::new(leading.preview_job(now, network));
                Command::Preview { id, job }
            }
            Phase::Standby(_) | Phase::Recovering(_) => {
                let effect = self.effect_without_agents(&network);
                Command::immediate_reply(id, Reply::Effect(Box::new(effect)))
            }
        };
        self.outbox.push(command);
    }

    /// Answers the request for a preview. The effect names addresses that agents have, so it waits
    /// for them to be durable; a master that does not lead any more does not know whether they are.
    pub(super) fn previewed(&mut self, id: RequestId, effect: Box<Effect>) {
        let command = match &self.phase {
            Phase::Leading(leading) => leading.gate_reply(Reply::Effect(effect)).into_command(id),
            Phase::Standby(_) | Phase::Recovering(_) => {
                Command::immediate_reply(id, Reply::Unavailable(self.unavailable_reason()))
            }
        };
        self.outbox.push(command);
    }

    /// Returns the effect on a master that knows no agents.
    fn effect_without_agents(&self, network: &Network) -> Effect {
        let warning = "this master does not know the agents now: what contradicts this \
                       configuration is set aside when it does";
        Effect {
            accepted: true,
            changes: differences(&self.settings.network, network),
            warnings: vec![warning.to_owned()],
            ..Effect::default()
        }
    }
}

/// Logs a line for each of the first few problems: there may be one of every agent.
pub(super) fn log_refused(problems: &[String]) {
    let (few, more) = first_few(problems);
    for problem in few {
        log::error!("refused another configuration: {problem}");
    }
    if more > 0 {
        log::error!(
            "refused another configuration: {more} more problems: see the answer to reload"
        );
    }
}
