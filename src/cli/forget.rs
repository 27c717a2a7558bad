//! `mesos-overlay forget`.
//!
//! An address that the master does not know is a mistake of the operator, perhaps in an address
//! that stands for another agent: so it is a failure. The others are deleted nevertheless, since
//! deleting is what was asked for them, and a second try with all of them would fail because of
//! them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use clap::Args;
use serde::{Serialize, Serializer};

use super::Failure;
use super::http_client::{MasterAddress, MasterClient, block_on};
use super::output::{Form, Output, Table};
use crate::addr::Subnet;
use crate::protocol::{AgentInfo, State};

/// Free the addresses of agents that are gone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay forget --master 10.0.0.1:5050 10.0.0.7 --dry-run
  mesos-overlay forget --master 10.0.0.1:5050 10.0.0.7 10.0.0.8

Stop the agents first: one that still runs keeps using its addresses. Until all other addresses are used
up nobody else gets them, and an agent that returns before has them again. An agent that the master does
not know makes it fail, after the others are deleted.")]
pub(super) struct ForgetCommand {
    /// The agents' addresses, as `state` shows them
    #[arg(value_name = "IP", required = true)]
    agents: Vec<Ipv4Addr>,
    #[command(flatten)]
    master: MasterAddress,
    /// Show what would be freed, and free nothing
    #[arg(
        long,
        env = "MESOS_OVERLAY_DRY_RUN",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    dry_run: bool,
    #[command(flatten)]
    form: Form,
}

/// What became of one agent.
#[derive(Debug, Serialize)]
struct Fate {
    ip: Ipv4Addr,
    #[serde(skip_serializing_if = "Option::is_none")]
    vtep_ip: Option<String>,
    #[serde(serialize_with = "as_texts")]
    subnets: Vec<Subnet>,
    result: Outcome,
    /// Why the master did not serve the agent, if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    set_aside: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Deleted,
    WouldBeDeleted,
    NotKnown,
    /// The master said yes, and still has it.
    NotDeleted,
}

impl Outcome {
    const fn words(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::WouldBeDeleted => "would be deleted",
            Self::NotKnown => "not known",
            Self::NotDeleted => "not deleted",
        }
    }
}

fn as_texts<S: Serializer>(subnets: &[Subnet], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(subnets.iter().map(ToString::to_string))
}

impl ForgetCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut seen = BTreeSet::new();
        if let Some(ip) = self.agents.iter().find(|&ip| !seen.insert(*ip)) {
            return Err(Failure::usage(format!("forget: {ip} is given twice: give it once")));
        }
        let master = self.master.client()?;
        let fates = block_on(self.delete(&master))?;
        let mut output = Output::new();
        if self.form.json {
            #[derive(Serialize)]
            struct Report<'a> {
                agents: &'a [Fate],
            }
            output.json(&Report { agents: &fates })?;
        } else {
            print(&mut output, &fates)?;
        }
        output.finish()?;
        verdict(&master, &fates)
    }

    async fn delete(&self, master: &MasterClient) -> Result<Vec<Fate>, Failure> {
        let before = master.read_state(&master.state().await?)?;
        let health = master.health().await?.unwrap_or_default();
        let mut fates: Vec<Fate> = self
            .agents
            .iter()
            .map(|&ip| Fate::of(ip, find(&before, ip), health.set_aside(ip)))
            .collect();
        let is_known = |fate: &&mut Fate| fate.result != Outcome::NotKnown;
        let known: Vec<Ipv4Addr> = fates.iter_mut().filter(is_known).map(|fate| fate.ip).collect();
        if !self.dry_run && !known.is_empty() {
            let after = master.read_state(&master.delete(&known).await?)?;
            for fate in fates.iter_mut().filter(is_known) {
                let is_there = find(&after, fate.ip).is_some();
                fate.result = if is_there { Outcome::NotDeleted } else { Outcome::Deleted };
            }
        }
        Ok(fates)
    }
}

fn verdict(master: &MasterClient, fates: &[Fate]) -> Result<(), Failure> {
    let list = |wanted| {
        let ips = fates.iter().filter(|fate| fate.result == wanted);
        ips.map(|fate| fate.ip.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (unknown, undeleted) = (list(Outcome::NotKnown), list(Outcome::NotDeleted));
    if !undeleted.is_empty() {
        return Err(Failure::new(format!(
            "forget {undeleted}: master {master} still has it: see its log"
        )));
    }
    if !unknown.is_empty() {
        return Err(Failure::new(format!(
            "forget {unknown}: master {master} knows no such agent: `mesos-overlay state` shows those \
             that it knows"
        )));
    }
    Ok(())
}

impl Fate {
    /// Before anything is deleted.
    fn of(ip: Ipv4Addr, agent: Option<&AgentInfo>, set_aside: Option<&str>) -> Self {
        let overlays = agent.map(|agent| agent.overlays.as_slice()).unwrap_or_default();
        let subnets = overlays.iter().flat_map(|one| one.subnet.into_iter().chain(one.subnet6));
        let is_known = agent.is_some() || set_aside.is_some();
        Self {
            ip,
            vtep_ip: overlays.first().map(|overlay| overlay.vtep.ip.address().to_string()),
            subnets: subnets.collect(),
            result: if is_known { Outcome::WouldBeDeleted } else { Outcome::NotKnown },
            set_aside: set_aside.map(str::to_owned),
        }
    }
}

fn find(state: &State, ip: Ipv4Addr) -> Option<&AgentInfo> {
    state.agents.iter().find(|agent| agent.ip == ip).map(AsRef::as_ref)
}

fn print(output: &mut Output, fates: &[Fate]) -> Result<(), Failure> {
    let mut table = Table::new(&["AGENT", "VTEP IP", "SUBNETS", "RESULT"]);
    for Fate { ip, vtep_ip, subnets, result, .. } in fates {
        let subnets = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let vtep_ip = vtep_ip.clone().unwrap_or_default();
        table.row(output, [ip.to_string(), vtep_ip, subnets, result.words().to_owned()])?;
    }
    table.finish(output)
}
