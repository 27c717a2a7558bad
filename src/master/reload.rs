//! Another configuration for a master that runs.
//!
//! A configuration under which an agent would not be served what it was promised is refused, and
//! the one that is there goes on. At a start there is nothing to go on with: what contradicts the
//! configuration is set aside then.

use std::sync::Arc;

use super::effect::{Effect, PreviewJob, Trial, differences};
use super::leadership::Phase;
use super::registry::Moment;
use super::{Command, Master, Reply, Settings};
use crate::clock::Now;
use crate::protocol::{Addresses, HistoryEvent, Network, RequestId};
use crate::store::Version;
use crate::words::first_few;

impl Master {
    /// Takes over other settings, if no agent loses by them what it was promised.
    pub(super) fn reload(&mut self, now: Now, settings: Settings) -> Effect {
        let network = Arc::clone(&settings.network);
        let Phase::Leading(leading) = &mut self.phase else {
            let effect = self.without_agents(&network);
            log::info!("took over another configuration, which nothing speaks against so far");
            self.settings = settings;
            return effect;
        };
        if settings == self.settings {
            // Trying out takes long, and would find nothing: no request may cause that for nothing.
            log::info!("read the configuration again: it is as it was");
            return Effect { accepted: true, ..Effect::default() };
        }
        let reuse_after = settings.reuse_after;
        let moment = Moment { unix: now.unix, version: leading.next_version(), reuse_after };
        let trial = Trial::of(&leading.registry, network, moment);
        let Trial { registry, adopted, outcomes, told, effect } = trial;
        if !effect.accepted {
            log_refused(&effect.problems);
            return effect;
        }
        self.settings = settings;
        leading.registry = registry;
        leading.adopt(now, adopted);
        if effect.changes.is_empty() {
            log::info!("read the configuration again: the network is as it was");
        } else {
            let changes = effect.changes.join("; ");
            log::info!("took over another configuration: {changes}");
            leading.note(now, None, HistoryEvent::Configured, Addresses::default(), &changes);
        }
        for (ip, outcome) in outcomes {
            self.take_outcome(now, ip, outcome, "the configuration has changed");
        }
        for upid in told {
            self.update(upid, true);
        }
        effect
    }

    /// Finds out what the network would do, elsewhere if there are agents. Nothing changes.
    pub(super) fn preview(&mut self, now: Now, id: RequestId, network: Network) {
        let command = match &self.phase {
            Phase::Leading(leading) => {
                let moment = Moment {
                    unix: now.unix,
                    version: leading.next_version(),
                    reuse_after: self.settings.reuse_after,
                };
                let job = Box::new(PreviewJob::new(&leading.registry, network, moment));
                Command::Preview { id, job }
            }
            Phase::Standby(_) | Phase::Recovering(_) => {
                let reply = Reply::Effect(Box::new(self.without_agents(&network)));
                Command::Reply { id, reply, when: Version(0) }
            }
        };
        self.commands.push_back(command);
    }

    /// The effect on a master that knows no agents.
    fn without_agents(&self, network: &Network) -> Effect {
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

/// A line for each of the first few problems: there may be one of every agent.
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
