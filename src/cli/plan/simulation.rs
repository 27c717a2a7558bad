//! Runs the engine of a master without its adapters. Every commit is durable at once, and messages
//! are not sent.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use overlay_config::MasterConfig;
use overlay_engine::master::{Command, Event, Master, Settings};
use overlay_engine::state_machine::StateMachine as _;
use overlay_types::addr::agent_upid;
use overlay_types::clock::Now;
use overlay_types::protocol::{AgentOptions, Assignment, MasterKind, Message, Network};
use overlay_types::state::{Epoch, LoadedState, Version};
use overlay_wire::encode_peers_update;

use super::allocation::AgentAllocation;
use crate::cli::Failure;

/// Most subnets that are allocated by the simulation. A master needs half a kilobyte for each, and
/// a plan of a million agents should not need gigabytes.
const SIMULATED_OVERLAYS_MAX: usize = 20_000;

/// Registers the first of `agents` with the engine of a master, and compares the assignments with
/// the plan.
///
/// # Errors
/// If an assignment differs from the plan.
pub(super) fn verify_plan(network: &Arc<Network>, agents: u32) -> Result<(), Failure> {
    // Suppress the log of the engine, since no agent of a cluster registers.
    let level = log::max_level();
    log::set_max_level(log::LevelFilter::Off);
    let mut simulation = Simulation::new(network);
    let simulated =
        u32::try_from(SIMULATED_OVERLAYS_MAX / network.overlays.len().max(1)).unwrap_or(agents);
    let differs = (1..=agents.min(simulated)).find(|&agent| {
        let assigned = AgentAllocation::from_assignments(agent, &simulation.register(agent));
        let planned = AgentAllocation::planned(network, agent);
        // The assignment of an agent without overlays contains no VTEP.
        let has_no_overlay = assigned.overlays.is_empty();
        if has_no_overlay { !planned.overlays.is_empty() } else { planned != assigned }
    });
    log::set_max_level(level);
    match differs {
        None => Ok(()),
        Some(agent) => Err(Failure::new(format!(
            "plan: a master assigns other addresses to agent {agent}: this is a bug: please report \
             it with the file"
        ))),
    }
}

struct Simulation {
    master: Master,
    version: Version,
}

impl Simulation {
    const NOW: Now = Now { elapsed: Duration::ZERO, unix: 0 };

    fn new(network: &Arc<Network>) -> Self {
        let settings = Settings {
            network: Arc::clone(network),
            reuse_after: MasterConfig::REUSE_AFTER_DEFAULT,
            kind: MasterKind::Program,
            authentication: None,
        };
        let mut simulation =
            Self { master: Master::new(settings, encode_peers_update, 0), version: Version(0) };
        simulation.run();
        simulation
    }

    /// Registers the agent with this number. Returns its assignment.
    fn register(&mut self, agent: u32) -> Vec<Assignment> {
        // The addresses of the agents only have to differ.
        let from = agent_upid(SocketAddrV4::new(Ipv4Addr::from(agent), 5051));
        let message = Message::RegisterAgent(AgentOptions::default());
        self.master.handle(Self::NOW, Event::Message { from, message });
        self.run()
    }

    /// Executes the master's commands until none is left. Returns the last assignment.
    fn run(&mut self) -> Vec<Assignment> {
        let mut assignments = Vec::new();
        while let Some(command) = self.master.poll_command() {
            match command {
                Command::Load => {
                    let (epoch, version) = (Epoch(1), self.version);
                    let loaded =
                        LoadedState { epoch, version, agents: Vec::new(), history: Vec::new() };
                    self.master.handle(Self::NOW, Event::Loaded(Ok(loaded)));
                }
                Command::Commit { .. } => {
                    self.version = self.version.next();
                    self.master.handle(Self::NOW, Event::Committed(Ok(self.version)));
                }
                Command::Send {
                    message: Message::UpdateAgentOverlays { overlays, .. }, ..
                } => {
                    assignments = overlays;
                }
                Command::Abandon(_)
                | Command::Withdraw(_)
                | Command::Link(_)
                | Command::Challenge { .. }
                | Command::SetSecrets(_)
                | Command::ReadConfig(_)
                | Command::Preview { .. }
                | Command::Send { .. }
                | Command::SendPeers { .. }
                | Command::Reply { .. } => {}
            }
        }
        assignments
    }
}

#[cfg(test)]
mod tests {
    use overlay_config::parse_master;
    use proptest::prelude::*;

    use super::*;
    use crate::cli::capacity::Capacity;

    /// Generates small networks, so that 100 agents exhaust every pool.
    fn network() -> impl Strategy<Value = Network> {
        let vteps6 = prop_oneof![
            Just(String::new()),
            (121_u8..=126).prop_map(|len| format!(r#""vtep_subnet6":"fd01:a::/{len}","#))
        ];
        let overlay = (21_u8..=27, 25_u8..=29, 120_u8..=123, 122_u8..=127, 1_u8..=3, 0_u8..=4);
        let overlays = prop::collection::vec(overlay, 1..4);
        (26_u8..=29, vteps6, overlays).prop_map(|(vteps, vteps6, overlays)| {
            let overlays = overlays.into_iter().enumerate().map(|(index, overlay)| {
                let (subnet, prefix, subnet6, prefix6, families, enabled) = overlay;
                let (prefix, prefix6) = (prefix.max(subnet), prefix6.max(subnet6));
                let mut text = format!(r#"{{"name":"o{index}","enabled":{}"#, enabled > 0);
                if families != 2 {
                    text += &format!(r#","subnet":"10.{index}.0.0/{subnet}","prefix":{prefix}"#);
                }
                if families != 1 {
                    text +=
                        &format!(r#","subnet6":"fd02:{index}::/{subnet6}","prefix6":{prefix6}"#);
                }
                text + "}"
            });
            let overlays = overlays.collect::<Vec<_>>().join(",");
            let text = format!(
                r#"{{"vtep_subnet":"44.128.0.0/{vteps}",{vteps6}
                    "vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[{overlays}]}}"#
            );
            parse_master("f", &text).expect(&text).0.network
        })
    }

    proptest! {
        #[test]
        fn plan_equals_master_until_pools_are_exhausted(network in network()) {
            let network = Arc::new(network);
            prop_assert!(verify_plan(&network, 100).is_ok());
        }

        #[test]
        fn capacity_is_number_of_fully_served_agents(network in network()) {
            let enabled = network.overlays.iter().filter(|overlay| overlay.enabled).count();
            let is_fully_served = |agent| {
                let allocation = AgentAllocation::planned(&network, agent);
                allocation.overlays.len() == enabled
                    && allocation.vtep_ip.is_some()
                    && allocation.vtep_ip6.is_some() == network.vtep_subnet6.is_some()
            };
            let fit = (1..=100).take_while(|&agent| is_fully_served(agent)).count();
            prop_assert_eq!(fit as u128, Capacity::of(&network).agents().min(100));
        }
    }
}
