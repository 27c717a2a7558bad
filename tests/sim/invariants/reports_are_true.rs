//! An agent reports an overlay as ready only if the last attempt at each of its networks, exactly
//! as they were assigned, has made it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use mesos_network_overlay::agent::{ContainerNetwork, NetworkKind};
use mesos_network_overlay::protocol::{AgentOptions, Status};

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// What a process of an agent knows of its networks.
#[derive(Default)]
struct Known {
    options: AgentOptions,
    made: HashMap<(String, NetworkKind), (ContainerNetwork, bool)>,
}

#[derive(Default)]
pub(crate) struct ReportsAreTrue {
    agents: HashMap<Ipv4Addr, Known>,
}

impl Invariant for ReportsAreTrue {
    fn name(&self) -> &'static str {
        "reports are true"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Began { agent, options } => {
                self.agents.insert(*agent, Known { options: *options, ..Known::default() });
            }
            Fact::Made { agent, network, is_done } => {
                let key = (network.name().to_string(), network.kind());
                let made = ((*network).clone(), *is_done);
                self.agents.entry(*agent).or_default().made.insert(key, made);
            }
            Fact::Reported { agent, overlays } => {
                let known = self.agents.entry(*agent).or_default();
                let ready = overlays.iter().filter(|one| one.status == Some(Status::Ok));
                for assignment in ready {
                    let networks = ContainerNetwork::all_of(assignment, &known.options)?;
                    let is_made = |network: &ContainerNetwork| {
                        let made = known.made.get(&(network.name().to_string(), network.kind()));
                        made.is_some_and(|(made, is_done)| made == network && *is_done)
                    };
                    if let Some(network) = networks.iter().find(|network| !is_made(network)) {
                        return Err(format!(
                            "{agent} reports as ready, and it is not: {network:?}"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
