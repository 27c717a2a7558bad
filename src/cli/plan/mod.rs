//! `mesos-overlay plan`.
//!
//! The plan follows a rule: of every pool, the first agent gets the first item, the second agent
//! the second. So the plan needs no memory for each agent, while a master needs kilobytes. To
//! verify the rule, the engine of a real master allocates for the first agents, and must agree.

mod allocation;
mod simulation;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use overlay_config::parse_master;
use overlay_types::protocol::{Network, Overlay};
use serde::Serialize;
use serde::ser::{SerializeSeq as _, Serializer};

use super::Failure;
use super::capacity::{Capacity, Pool, docker_containers, mesos_containers};
use super::output::{Output, OutputFormat, Table, address_pair};
use super::process::{display_name, pluralize, read_config};
use allocation::{AgentAllocation, BridgeSubnets, OverlayAllocation};

/// Number of agents that are shown without `--all`: the first ones and the last ones.
const SHOWN_FIRST: u32 = 5;
const SHOWN_LAST: u32 = 3;
/// Most agents that can have a VTEP: its MAC follows from the low 24 bits of its address.
const AGENTS_MAX: i64 = 1 << 24;
/// Most exhausted pools that a sentence names. The table lists all.
const NAMES_MAX: usize = 3;

/// Preview the allocations of agents, and the pool that is exhausted first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay plan network.json --agents 100
  mesos-overlay plan network.json --agents 100 --all
  mesos-overlay plan master.json --agents 100 --json | jq '.agents_that_fit'

The agents register one after the other with an empty master. Accepts a network file or a
master_config. Exit code 0 if every agent gets its whole allocation, else 1.")]
pub(super) struct PlanCommand {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The number of agents. They register one after the other
    #[arg(
        long,
        env = "MESOS_OVERLAY_AGENTS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=AGENTS_MAX)
    )]
    agents: u32,
    /// Show every agent, not only the first and the last
    #[arg(
        long,
        env = "MESOS_OVERLAY_ALL",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    all: bool,
    #[command(flatten)]
    format: OutputFormat,
}

/// The output with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    /// The requested number of agents.
    agents: u32,
    agents_that_fit: u128,
    /// The pools that are exhausted after `agents_that_fit` agents.
    exhausted_first: Vec<String>,
    /// The pools of the VTEPs.
    vteps: Vec<PoolReport>,
    overlays: Vec<OverlayReport<'a>>,
    plan: Allocations<'a>,
}

#[derive(Serialize)]
struct PoolReport {
    subnet: String,
    agents_that_fit: u128,
}

#[derive(Serialize)]
struct OverlayReport<'a> {
    name: &'a str,
    agents_that_fit: u128,
    mesos_containers_per_agent: u128,
    docker_containers_per_agent: u128,
}

/// The allocations of all agents, computed while they are serialized.
struct Allocations<'a> {
    network: &'a Network,
    agents: u32,
}

impl Serialize for Allocations<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for agent in 1..=self.agents {
            list.serialize_element(&AgentAllocation::planned(self.network, agent))?;
        }
        list.end()
    }
}

impl PlanCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let network = Arc::new(read_config(&self.file, parse_master)?.network);
        simulation::verify_plan(&network, self.agents)?;
        let capacity = Capacity::of(&network);
        let mut output = Output::new();
        if self.format.json {
            self.print_json(&mut output, &network, &capacity)?;
        } else {
            self.print(&mut output, &network, &capacity)?;
        }
        output.finish()?;
        self.require_all_fit(&capacity)
    }

    fn print_json(
        &self,
        output: &mut Output,
        network: &Network,
        capacity: &Capacity<'_>,
    ) -> Result<(), Failure> {
        let vteps = capacity.pools.iter().filter(|pool| pool.overlay.is_none());
        let pool_report = |pool: &Pool<'_>| PoolReport {
            subnet: pool.subnet.to_string(),
            agents_that_fit: pool.agents,
        };
        let enabled = network.overlays.iter().filter(|overlay| overlay.enabled);
        let overlay_report = |overlay| OverlayReport::of(overlay, capacity);
        output.json(&Report {
            agents: self.agents,
            agents_that_fit: capacity.agents(),
            exhausted_first: capacity.exhausted_at(capacity.agents()),
            vteps: vteps.map(pool_report).collect(),
            overlays: enabled.map(overlay_report).collect(),
            plan: Allocations { network, agents: self.agents },
        })
    }

    fn print(
        &self,
        output: &mut Output,
        network: &Network,
        capacity: &Capacity<'_>,
    ) -> Result<(), Failure> {
        self.print_allocations(output, network)?;
        output.line("")?;
        print_capacity(output, capacity)?;
        output.line("")?;
        let fit = capacity.agents();
        let exhausted = enumerate_names(&capacity.exhausted_at(fit));
        let fit = pluralize(fit, "agent");
        output.line(format_args!("capacity for {fit}: then nothing is left in {exhausted}"))
    }

    fn print_allocations(&self, output: &mut Output, network: &Network) -> Result<(), Failure> {
        let header =
            ["AGENT", "VTEP IP", "VTEP MAC", "OVERLAY", "SUBNET", "MESOS HALF", "DOCKER HALF"];
        let mut table = Table::new(&header);
        let is_shown = |agent| {
            self.all
                || self.agents <= SHOWN_FIRST + SHOWN_LAST
                || agent <= SHOWN_FIRST
                || agent > self.agents - SHOWN_LAST
        };
        let mut agent = 1;
        while agent <= self.agents {
            if is_shown(agent) {
                add_allocation(&mut table, output, network, agent)?;
                agent += 1;
            } else {
                table.row(output, ["…"; 7].map(str::to_owned))?;
                agent = self.agents - SHOWN_LAST + 1;
            }
        }
        table.finish(output)
    }

    /// Fails if some agents do not get their whole allocation.
    fn require_all_fit(&self, capacity: &Capacity<'_>) -> Result<(), Failure> {
        let (agents, fit) = (self.agents, capacity.agents());
        if u128::from(agents) <= fit {
            return Ok(());
        }
        let with_vtep = capacity.pools[0].agents;
        let exhausted: Vec<String> = {
            let scarce = capacity.pools[1..].iter().filter(|pool| pool.agents < agents.into());
            let mut names: Vec<String> = scarce.map(Pool::name).collect();
            names.dedup();
            names
        };
        let mut reasons = Vec::new();
        if !exhausted.is_empty() && fit < with_vtep {
            reasons.push(format!(
                "from agent {} on, nothing is left in {}: configure more address space, or a \
                 longer prefix",
                fit + 1,
                enumerate_names(&exhausted)
            ));
        }
        if with_vtep < agents.into() {
            reasons.push(format!(
                "from agent {} on, agents get nothing at all: configure a larger vtep_subnet",
                with_vtep + 1
            ));
        }
        let file = display_name(&self.file);
        let agents = pluralize(agents, "agent");
        Err(Failure::new(format!("{file}: {fit} of {agents} fit: {}", reasons.join("; "))))
    }
}

impl<'a> OverlayReport<'a> {
    fn of(overlay: &'a Overlay, capacity: &Capacity<'_>) -> Self {
        Self {
            name: overlay.name.as_str(),
            agents_that_fit: capacity.agents_of(overlay),
            mesos_containers_per_agent: mesos_containers(overlay),
            docker_containers_per_agent: docker_containers(overlay),
        }
    }
}

fn add_allocation(
    table: &mut Table,
    output: &mut Output,
    network: &Network,
    agent: u32,
) -> Result<(), Failure> {
    let AgentAllocation { vtep_ip, vtep_ip6, vtep_mac, overlays, .. } =
        AgentAllocation::planned(network, agent);
    let mut row = |overlay: Option<&OverlayAllocation>| {
        let overlay_cells = overlay.map_or_else(Default::default, |overlay| {
            let bridge_subnets =
                |bridge: &BridgeSubnets| address_pair(bridge.ip.as_ref(), bridge.ip6.as_ref());
            [
                overlay.name.clone(),
                address_pair(overlay.subnet.as_ref(), overlay.subnet6.as_ref()),
                bridge_subnets(&overlay.mesos_bridge),
                bridge_subnets(&overlay.docker_bridge),
            ]
        });
        let [name, subnet, mesos, docker] = overlay_cells;
        let vtep = address_pair(vtep_ip.as_ref(), vtep_ip6.as_ref());
        let mac = vtep_mac.clone().unwrap_or_default();
        table.row(output, [agent.to_string(), vtep, mac, name, subnet, mesos, docker])
    };
    if overlays.is_empty() {
        return row(None);
    }
    overlays.iter().try_for_each(|overlay| row(Some(overlay)))
}

fn print_capacity(output: &mut Output, capacity: &Capacity<'_>) -> Result<(), Failure> {
    let header = [
        "POOL",
        "SPACE",
        "EACH AGENT",
        "AGENTS",
        "MESOS CONTAINERS EACH",
        "DOCKER CONTAINERS EACH",
    ];
    let mut table = Table::new(&header);
    for pool in &capacity.pools {
        let [each, mesos, docker] = match (pool.overlay, pool.prefix) {
            (Some(overlay), Some(prefix)) => [
                format!("/{prefix}"),
                mesos_containers(overlay).to_string(),
                docker_containers(overlay).to_string(),
            ],
            _ => ["one address".to_owned(), String::new(), String::new()],
        };
        let (subnet, agents) = (pool.subnet.to_string(), pool.agents.to_string());
        table.row(output, [pool.name(), subnet, each, agents, mesos, docker])?;
    }
    table.finish(output)
}

/// Joins names: `a`, `a and b`, `a, b and 3 more`.
fn enumerate_names(names: &[String]) -> String {
    let shown = names.len().min(if names.len() > NAMES_MAX { NAMES_MAX - 1 } else { NAMES_MAX });
    let (shown, hidden) = names.split_at(shown);
    let mut parts = shown.to_vec();
    if !hidden.is_empty() {
        parts.push(format!("{} more", hidden.len()));
    }
    match parts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_list_of_names_is_shortened() {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        assert_eq!(enumerate_names(&names[..1]), "a");
        assert_eq!(enumerate_names(&names[..2]), "a and b");
        assert_eq!(enumerate_names(&names[..3]), "a, b and c");
        assert_eq!(enumerate_names(&names), "a, b and 2 more");
    }
}
