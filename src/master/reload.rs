//! Another configuration for a master that runs.
//!
//! A configuration under which an agent would not be served what it was promised is refused, and
//! the one that is there goes on. At a start there is nothing to go on with: what contradicts the
//! configuration is set aside then.

use std::sync::Arc;

use super::effect::{Effect, Trial, differences};
use super::leadership::Phase;
use super::registry::Moment;
use super::{Master, Settings};
use crate::clock::Now;
use crate::protocol::{Addresses, HistoryEvent, Network};

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
        let reuse_after = settings.reuse_after;
        let moment = Moment { unix: now.unix, version: leading.next_version(), reuse_after };
        let trial = Trial::of(&leading.registry, network, moment);
        let Trial { registry, adopted, outcomes, told, effect } = trial;
        if !effect.accepted {
            for problem in &effect.problems {
                log::error!("refused another configuration: {problem}");
            }
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

    /// What the network would do. Nothing has changed then.
    pub(super) fn preview(&self, now: Now, network: Network) -> Effect {
        let network = Arc::new(network);
        let Phase::Leading(leading) = &self.phase else {
            return self.without_agents(&network);
        };
        let moment = Moment {
            unix: now.unix,
            version: leading.next_version(),
            reuse_after: self.settings.reuse_after,
        };
        Trial::of(&leading.registry, network, moment).foresee(&leading.registry, moment)
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
