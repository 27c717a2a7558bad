//! An agent reports an overlay as ready only if the last attempt at each of its assigned networks
//! has succeeded, and if its tunnels were programmed without a fault, where the agent programs
//! them.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use mesos_network_overlay::addr::OverlayName;
use mesos_network_overlay::agent::{ContainerNetwork, NetworkKind};
use mesos_network_overlay::protocol::{AgentOptions, Status};

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// The results of a process of an agent.
#[derive(Default)]
struct Known {
    options: AgentOptions,
    /// Whether the agent programs tunnels.
    programs: bool,
    /// Whether the tunnels of each overlay had no fault when they were programmed last.
    tunnels: HashMap<OverlayName, bool>,
    made: HashMap<(String, NetworkKind), (ContainerNetwork, bool)>,
}

#[derive(Default)]
pub(crate) struct ReportsAreTrue {
    agents: HashMap<Ipv4Addr, Known>,
}

impl Invariant for ReportsAreTrue {
    fn name(&self) -> &'static str {
        "reports match the host"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::AgentStarted { agent, options, programs } => {
                let (options, programs) = (*options, *programs);
                self.agents.insert(*agent, Known { options, programs, ..Known::default() });
            }
            Fact::Programmed { agent, desired, done, .. } => {
                let known = self.agents.entry(*agent).or_default();
                for space in &desired.spaces {
                    let mut faults = done.result.faults.iter();
                    let is_well = !faults.any(|it| desired.is_hit(&space.overlay, &it.part));
                    known.tunnels.insert(space.overlay.clone(), is_well);
                }
            }
            Fact::NetworkApplied { agent, network, is_done } => {
                let key = (network.name().to_string(), network.kind());
                let made = ((*network).clone(), *is_done);
                self.agents.entry(*agent).or_default().made.insert(key, made);
            }
            Fact::Reported { agent, overlays } => {
                let known = self.agents.entry(*agent).or_default();
                let ready = overlays.iter().filter(|one| one.status == Some(Status::Ok));
                for assignment in ready {
                    let name = assignment.name();
                    if known.programs && known.tunnels.get(name) != Some(&true) {
                        return Err(format!("{agent} reports {name} as ready without its tunnels"));
                    }
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
