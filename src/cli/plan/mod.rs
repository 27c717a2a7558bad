//! `mesos-overlay plan`.
//!
//! The plan is a rule: of every space the first agent gets the first item, the second the second.
//! So it costs no memory, however many agents there are, where a master keeps kilobytes for each of
//! them. That the rule is the master's is not believed: a real master is run for the first agents
//! and has to agree.

mod rehearsal;
mod share;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde::ser::{SerializeSeq as _, Serializer};

use super::Failure;
use super::host::{counted, name_of, read_config};
use super::output::{Form, Output, Table, both};
use super::room::{Pool, Room, docker_containers, mesos_containers};
use crate::config::parse_master;
use crate::protocol::{Network, Overlay};
use share::{OverlayShare, Share};

/// Agents that are shown without `--all`: the first and the last of them.
const SHOWN: (u32, u32) = (5, 3);
/// More agents than this have no VTEP: MACs follow from the low 24 bits of its address.
const AGENTS_MAX: i64 = 1 << 24;
/// Names of exhausted spaces in a sentence; the table has all.
const NAMES_MAX: usize = 3;

/// Show who would get what, and what runs out first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay plan network.json --agents 100
  mesos-overlay plan network.json --agents 100 --all
  mesos-overlay plan master.json --agents 100 --json | jq '.agents_that_fit'

The agents register one after the other with an empty master. Takes a network file or a master_config.
Exit code 0 if every agent gets everything, 1 if not.")]
pub(super) struct PlanCommand {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How many agents register
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
    form: Form,
}

/// With `--json`.
#[derive(Serialize)]
struct Report<'a> {
    /// How many agents were asked for.
    agents: u32,
    agents_that_fit: u128,
    /// What has nothing left when that many agents have theirs.
    exhausted_first: Vec<String>,
    /// The spaces of the VTEPs.
    vteps: Vec<SpaceReport>,
    overlays: Vec<OverlayReport<'a>>,
    plan: Shares<'a>,
}

#[derive(Serialize)]
struct SpaceReport {
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

/// The shares of all agents, computed while they are written.
struct Shares<'a> {
    network: &'a Network,
    agents: u32,
}

impl Serialize for Shares<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for agent in 1..=self.agents {
            list.serialize_element(&Share::planned(self.network, agent))?;
        }
        list.end()
    }
}

impl PlanCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let network = Arc::new(read_config(&self.file, parse_master)?.network);
        rehearsal::compare(&network, self.agents)?;
        let room = Room::of(&network);
        let mut output = Output::new();
        if self.form.json {
            self.print_json(&mut output, &network, &room)?;
        } else {
            self.print(&mut output, &network, &room)?;
        }
        output.finish()?;
        self.verdict(&room)
    }

    fn print_json(
        &self,
        output: &mut Output,
        network: &Network,
        room: &Room<'_>,
    ) -> Result<(), Failure> {
        let vteps = room.pools.iter().filter(|pool| pool.overlay.is_none());
        let space = |pool: &Pool<'_>| SpaceReport {
            subnet: pool.subnet.to_string(),
            agents_that_fit: pool.agents,
        };
        let overlay = |overlay| OverlayReport::of(overlay, room);
        output.json(&Report {
            agents: self.agents,
            agents_that_fit: room.agents(),
            exhausted_first: room.exhausted_at(room.agents()),
            vteps: vteps.map(space).collect(),
            overlays: network.overlays.iter().filter(|one| one.enabled).map(overlay).collect(),
            plan: Shares { network, agents: self.agents },
        })
    }

    fn print(
        &self,
        output: &mut Output,
        network: &Network,
        room: &Room<'_>,
    ) -> Result<(), Failure> {
        self.print_shares(output, network)?;
        output.line("")?;
        print_room(output, room)?;
        output.line("")?;
        let fit = room.agents();
        let first = enumerated(&room.exhausted_at(fit));
        let fit = counted(fit, "agent");
        output.line(format_args!("room for {fit}: then there is no more of {first}"))
    }

    fn print_shares(&self, output: &mut Output, network: &Network) -> Result<(), Failure> {
        let header =
            ["AGENT", "VTEP IP", "VTEP MAC", "OVERLAY", "SUBNET", "MESOS HALF", "DOCKER HALF"];
        let mut table = Table::new(&header);
        let is_shown = |agent| {
            self.all
                || self.agents <= SHOWN.0 + SHOWN.1
                || agent <= SHOWN.0
                || agent > self.agents - SHOWN.1
        };
        let mut agent = 1;
        while agent <= self.agents {
            if is_shown(agent) {
                add_share(&mut table, output, network, agent)?;
                agent += 1;
            } else {
                table.row(output, ["…"; 7].map(str::to_owned))?;
                agent = self.agents - SHOWN.1 + 1;
            }
        }
        table.finish(output)
    }

    /// A plan that leaves agents without something is a failure.
    fn verdict(&self, room: &Room<'_>) -> Result<(), Failure> {
        let (agents, fit) = (self.agents, room.agents());
        if u128::from(agents) <= fit {
            return Ok(());
        }
        let nothing = room.pools[0].agents;
        let without: Vec<String> = {
            let scarce = room.pools[1..].iter().filter(|pool| pool.agents < agents.into());
            let mut names: Vec<String> = scarce.map(Pool::name).collect();
            names.dedup();
            names
        };
        let mut reasons = Vec::new();
        if !without.is_empty() && fit < nothing {
            reasons.push(format!(
                "from agent {} on there is no more of {}: write more space, or a longer prefix",
                fit + 1,
                enumerated(&without)
            ));
        }
        if nothing < agents.into() {
            reasons.push(format!(
                "from agent {} on they get nothing at all: write a larger vtep_subnet",
                nothing + 1
            ));
        }
        let file = name_of(&self.file);
        let agents = counted(agents, "agent");
        Err(Failure::new(format!("{file}: {fit} of {agents} fit: {}", reasons.join("; "))))
    }
}

impl<'a> OverlayReport<'a> {
    fn of(overlay: &'a Overlay, room: &Room<'_>) -> Self {
        Self {
            name: overlay.name.as_str(),
            agents_that_fit: room.agents_of(overlay),
            mesos_containers_per_agent: mesos_containers(overlay),
            docker_containers_per_agent: docker_containers(overlay),
        }
    }
}

fn add_share(
    table: &mut Table,
    output: &mut Output,
    network: &Network,
    agent: u32,
) -> Result<(), Failure> {
    let Share { vtep_ip, vtep_ip6, vtep_mac, overlays, .. } = Share::planned(network, agent);
    let mut row = |overlay: Option<&OverlayShare>| {
        let overlay_cells = overlay.map_or_else(Default::default, |share| {
            [
                share.name.clone(),
                both(share.subnet.as_ref(), share.subnet6.as_ref()),
                both(share.mesos_bridge.ip.as_ref(), share.mesos_bridge.ip6.as_ref()),
                both(share.docker_bridge.ip.as_ref(), share.docker_bridge.ip6.as_ref()),
            ]
        });
        let [name, subnet, mesos, docker] = overlay_cells;
        let vtep = both(vtep_ip.as_ref(), vtep_ip6.as_ref());
        let mac = vtep_mac.clone().unwrap_or_default();
        table.row(output, [agent.to_string(), vtep, mac, name, subnet, mesos, docker])
    };
    if overlays.is_empty() {
        return row(None);
    }
    overlays.iter().try_for_each(|overlay| row(Some(overlay)))
}

fn print_room(output: &mut Output, room: &Room<'_>) -> Result<(), Failure> {
    let header = [
        "POOL",
        "SPACE",
        "EACH AGENT",
        "AGENTS",
        "MESOS CONTAINERS EACH",
        "DOCKER CONTAINERS EACH",
    ];
    let mut table = Table::new(&header);
    for pool in &room.pools {
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

/// `a`, `a and b`, `a, b and 3 more`.
fn enumerated(names: &[String]) -> String {
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
    fn long_lists_of_names_are_cut() {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        assert_eq!(enumerated(&names[..1]), "a");
        assert_eq!(enumerated(&names[..2]), "a and b");
        assert_eq!(enumerated(&names[..3]), "a, b and c");
        assert_eq!(enumerated(&names), "a, b and 2 more");
    }
}
