//! An agent reports an overlay as ready only if the last attempt at each of its assigned networks
//! has succeeded, and if its tunnels were programmed without a fault, where the agent programs
//! them.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::addr::OverlayName;
use overlay_types::container_network::{ContainerNetwork, NetworkKind};
use overlay_types::protocol::{AgentOptions, Status};

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// The results of a process of an agent.
#[derive(Default)]
struct AgentResults {
    options: AgentOptions,
    /// Whether the agent programs tunnels.
    programs: bool,
    /// Whether the tunnels of each overlay had no fault when they were programmed last.
    tunnels: HashMap<OverlayName, bool>,
    networks: HashMap<(String, NetworkKind), (ContainerNetwork, bool)>,
}

#[derive(Default)]
pub(crate) struct ReportsAreTrue {
    agents: HashMap<Ipv4Addr, AgentResults>,
}

impl Invariant for ReportsAreTrue {
    fn name(&self) -> &'static str {
        "reports match the host"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::AgentStarted { agent, options, programs } => {
                let (options, programs) = (*options, *programs);
                self.agents
                    .insert(*agent, AgentResults { options, programs, ..AgentResults::default() });
            }
            Fact::Programmed { agent, desired, done, .. } => {
                let results = self.agents.entry(*agent).or_default();
                for space in &desired.spaces {
                    let mut faults = done.result.faults.iter();
                    let is_ok =
                        !faults.any(|it| desired.is_overlay_affected(&space.overlay, &it.scope));
                    results.tunnels.insert(space.overlay.clone(), is_ok);
                }
            }
            Fact::NetworkApplied { agent, network, is_done } => {
                let key = (network.name().to_string(), network.kind());
                let applied = ((*network).clone(), *is_done);
                self.agents.entry(*agent).or_default().networks.insert(key, applied);
            }
            Fact::Reported { agent, overlays } => {
                let results = self.agents.entry(*agent).or_default();
                let ready = overlays.iter().filter(|one| one.status == Some(Status::Ok));
                for assignment in ready {
                    let name = assignment.name();
                    if results.programs && results.tunnels.get(name) != Some(&true) {
                        return Err(format!("{agent} reports {name} as ready without its tunnels"));
                    }
                    let networks =
                        ContainerNetwork::from_assignment(assignment, &results.options, None)
                            .map_err(|error| error.to_string())?;
                    let is_applied = |network: &ContainerNetwork| {
                        let key = (network.name().to_string(), network.kind());
                        let applied = results.networks.get(&key);
                        applied.is_some_and(|(applied, is_done)| applied == network && *is_done)
                    };
                    if let Some(network) = networks.iter().find(|network| !is_applied(network)) {
                        return Err(format!(
                            "{agent} reports a network as ready that is not: {network:?}"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
