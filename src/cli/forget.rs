//! `mesos-overlay forget`.
//!
//! An address that the master does not know is a mistake of the operator, perhaps in an address
//! that stands for another agent: so it is a failure. The others are deleted nevertheless, since
//! deleting is what was asked for them, and a second try with all of them would fail because of
//! them. The same holds for an agent that is running.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::http_client::{MasterAddress, MasterClient, block_on};
use super::output::{Form, Output, Table, harmless};
use crate::master::{ReleaseOutcome, ReleaseResult};
use crate::protocol::{AgentInfo, State};

/// Free the addresses of agents that are gone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay forget --master 10.0.0.1:5050 10.0.0.7 --dry-run
  mesos-overlay forget --master 10.0.0.1:5050 10.0.0.7 10.0.0.8

Stop the agents first: one that the master heard within half an hour is refused unless it is forced, since
it keeps using its addresses. Until all other addresses are used up nobody else gets them, and an agent
that returns before has them again. An agent that the master does not know makes it fail, after the
others are deleted.")]
pub(super) struct ForgetCommand {
    /// The agents' addresses, as `state` shows them
    #[arg(value_name = "IP", required = true)]
    agents: Vec<Ipv4Addr>,
    #[command(flatten)]
    master: MasterAddress,
    /// Forget also agents that are running
    #[arg(
        long,
        env = "MESOS_OVERLAY_FORCE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    force: bool,
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

fn words(fate: &ReleaseResult) -> String {
    match fate.result {
        ReleaseOutcome::Deleted => "deleted".to_owned(),
        ReleaseOutcome::WouldBeDeleted => "would be deleted".to_owned(),
        ReleaseOutcome::NotKnown => "not known".to_owned(),
        ReleaseOutcome::Running => {
            format!("kept: heard {} s ago", fate.last_seen_seconds_ago.unwrap_or_default())
        }
        ReleaseOutcome::MayBeRunning => "kept: it may be running".to_owned(),
        ReleaseOutcome::NotDeleted => "not deleted".to_owned(),
    }
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
                agents: &'a [ReleaseResult],
            }
            output.json(&Report { agents: &fates })?;
        } else {
            print(&mut output, &fates)?;
        }
        output.finish()?;
        verdict(&master, &fates)
    }

    async fn delete(&self, master: &MasterClient) -> Result<Vec<ReleaseResult>, Failure> {
        match master.health().await? {
            Some(_) => master.forget(&self.agents, self.force, self.dry_run).await,
            None => self.delete_plainly(master).await,
        }
    }

    /// From a master with the C++ modules, which deletes whatever it is told.
    async fn delete_plainly(&self, master: &MasterClient) -> Result<Vec<ReleaseResult>, Failure> {
        let before = master.read_state(&master.state().await?)?;
        let mut fates: Vec<ReleaseResult> =
            self.agents.iter().map(|&ip| fate(ip, find(&before, ip))).collect();
        let is_known = |fate: &&mut ReleaseResult| fate.result != ReleaseOutcome::NotKnown;
        let known: Vec<Ipv4Addr> = fates.iter_mut().filter(is_known).map(|fate| fate.ip).collect();
        if !self.dry_run && !known.is_empty() {
            let after = master.read_state(&master.delete(&known).await?)?;
            for fate in fates.iter_mut().filter(is_known) {
                let is_there = find(&after, fate.ip).is_some();
                fate.result =
                    if is_there { ReleaseOutcome::NotDeleted } else { ReleaseOutcome::Deleted };
            }
        }
        Ok(fates)
    }
}

fn verdict(master: &MasterClient, fates: &[ReleaseResult]) -> Result<(), Failure> {
    let list = |wanted| {
        let ips = fates.iter().filter(|fate| fate.result == wanted);
        ips.map(|fate| fate.ip.to_string()).collect::<Vec<_>>().join(", ")
    };
    let reasons = [
        (ReleaseOutcome::NotDeleted, "still has it: see its log"),
        (
            ReleaseOutcome::Running,
            "heard it within half an hour: stop it, and forget it with --force",
        ),
        (
            ReleaseOutcome::MayBeRunning,
            "leads not long enough to know whether it is running: ask again in two minutes, or give \
             --force",
        ),
        (
            ReleaseOutcome::NotKnown,
            "knows no such agent: `mesos-overlay state` shows those that it knows",
        ),
    ];
    for (wanted, reason) in reasons {
        let agents = list(wanted);
        if !agents.is_empty() {
            return Err(Failure::new(format!("forget {agents}: master {master} {reason}")));
        }
    }
    Ok(())
}

/// What becomes of an agent of a master that tells no more than its state.
fn fate(ip: Ipv4Addr, agent: Option<&AgentInfo>) -> ReleaseResult {
    let Some(agent) = agent else {
        return ReleaseResult::unknown(ip);
    };
    let subnets = agent.overlays.iter().flat_map(|one| one.subnet.into_iter().chain(one.subnet6));
    let vtep = agent.overlays.first().map(|overlay| &overlay.vtep);
    ReleaseResult {
        vtep_ip: vtep.map(|vtep| vtep.ip.address().to_string()),
        subnets: subnets.map(|subnet| subnet.to_string()).collect(),
        result: ReleaseOutcome::WouldBeDeleted,
        ..ReleaseResult::unknown(ip)
    }
}

fn find(state: &State, ip: Ipv4Addr) -> Option<&AgentInfo> {
    state.agents.iter().find(|agent| agent.ip == ip).map(AsRef::as_ref)
}

fn print(output: &mut Output, fates: &[ReleaseResult]) -> Result<(), Failure> {
    let mut table = Table::new(&["AGENT", "VTEP IP", "SUBNETS", "RESULT"]);
    for fate in fates {
        let subnets: Vec<String> = fate.subnets.iter().map(|subnet| harmless(subnet)).collect();
        let vtep_ip = fate.vtep_ip.as_deref().map(harmless).unwrap_or_default();
        table.row(output, [fate.ip.to_string(), vtep_ip, subnets.join("\n"), words(fate)])?;
    }
    table.finish(output)
}
