//! `mesos-overlay forget`.
//!
//! The command fails for an address that the master does not know, since the operator may have
//! mistyped the address of another agent. The known agents are deleted nevertheless: the operator
//! asked for that, and a repetition of the whole command would fail for the deleted agents. A
//! running agent is handled the same way.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use clap::Args;
use overlay_engine::master::{ReleaseOutcome, ReleaseResult};
use overlay_types::protocol::{AgentInfo, State};
use serde::Serialize;

use super::Failure;
use super::http_client::{MasterClient, block_on};
use super::master_address::MasterAddress;
use super::output::{DryRun, Output, OutputFormat, Table, sanitize, sanitize_lines};

/// Release the addresses of agents that are gone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay forget --master 10.0.0.1:5050 10.0.0.7 --dry-run
  mesos-overlay forget --master 10.0.0.1:5050 10.0.0.7 10.0.0.8

Stop the agents first. An agent that the master has seen within half an hour is refused without
--force, since it continues to use its addresses. Released addresses are allocated only when no
others are free; an agent that returns before that gets its own addresses again. If the master
does not know an agent, the command fails after it has deleted the known agents.")]
pub(super) struct ForgetCommand {
    /// The agents' addresses, as `state` shows them
    #[arg(value_name = "IP", required = true)]
    agents: Vec<Ipv4Addr>,
    #[command(flatten)]
    master: MasterAddress,
    /// Also forget agents that are running
    #[arg(
        long,
        env = "MESOS_OVERLAY_FORCE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    force: bool,
    #[command(flatten)]
    dry_run: DryRun,
    #[command(flatten)]
    format: OutputFormat,
}

/// The output with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    agents: &'a [ReleaseResult],
}

fn describe(result: &ReleaseResult) -> String {
    match result.result {
        ReleaseOutcome::Deleted => "deleted".to_owned(),
        ReleaseOutcome::WouldBeDeleted => "would be deleted".to_owned(),
        ReleaseOutcome::NotKnown => "not known".to_owned(),
        ReleaseOutcome::Running => {
            format!("kept: last seen {} s ago", result.last_seen_seconds_ago.unwrap_or_default())
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
        let results = block_on(self.delete(&master))?;
        self.format.print(&Report { agents: &results }, |output| print(output, &results))?;
        require_deletion(&master, &results)
    }

    async fn delete(&self, master: &MasterClient) -> Result<Vec<ReleaseResult>, Failure> {
        match master.health().await? {
            Some(_) => master.forget(&self.agents, self.force, self.dry_run.dry_run).await,
            None => self.delete_from_cpp_master(master).await,
        }
    }

    /// Deletes agents of a master with the C++ modules, which deletes every known agent, running or
    /// not.
    async fn delete_from_cpp_master(
        &self,
        master: &MasterClient,
    ) -> Result<Vec<ReleaseResult>, Failure> {
        let before = master.read_state(&master.state().await?)?;
        let mut results: Vec<ReleaseResult> =
            self.agents.iter().map(|&ip| result_from_state(ip, find(&before, ip))).collect();
        let is_known = |result: &&mut ReleaseResult| result.result != ReleaseOutcome::NotKnown;
        let known: Vec<Ipv4Addr> =
            results.iter_mut().filter(is_known).map(|result| result.ip).collect();
        if !self.dry_run.dry_run && !known.is_empty() {
            let after = master.read_state(&master.delete(&known).await?)?;
            for result in results.iter_mut().filter(is_known) {
                let remains = find(&after, result.ip).is_some();
                result.result =
                    if remains { ReleaseOutcome::NotDeleted } else { ReleaseOutcome::Deleted };
            }
        }
        Ok(results)
    }
}

/// Fails if an agent was not deleted. The failure names the agents with the most severe reason.
fn require_deletion(master: &MasterClient, results: &[ReleaseResult]) -> Result<(), Failure> {
    let list = |outcome| {
        let ips = results.iter().filter(|result| result.result == outcome);
        ips.map(|result| result.ip.to_string()).collect::<Vec<_>>().join(", ")
    };
    let reasons = [
        (ReleaseOutcome::NotDeleted, "still has it: see its log"),
        (
            ReleaseOutcome::Running,
            "has seen it within half an hour: stop it, and forget it with --force",
        ),
        (
            ReleaseOutcome::MayBeRunning,
            "has not led long enough to know whether it is running: try again in two minutes, or \
             give --force",
        ),
        (
            ReleaseOutcome::NotKnown,
            "knows no such agent: `mesos-overlay state` shows the known agents",
        ),
    ];
    for (outcome, reason) in reasons {
        let agents = list(outcome);
        if !agents.is_empty() {
            return Err(Failure::new(format!("forget {agents}: master {master} {reason}")));
        }
    }
    Ok(())
}

/// Returns the expected result for an agent of a C++ master, which shows its state only.
fn result_from_state(ip: Ipv4Addr, agent: Option<&AgentInfo>) -> ReleaseResult {
    let Some(agent) = agent else {
        return ReleaseResult::unknown(ip);
    };
    let overlays = agent.overlays.iter();
    let subnets = overlays.flat_map(|overlay| overlay.subnet.into_iter().chain(overlay.subnet6));
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

fn print(output: &mut Output, results: &[ReleaseResult]) -> Result<(), Failure> {
    let mut table = Table::new(&["AGENT", "VTEP IP", "SUBNETS", "RESULT"]);
    for result in results {
        let subnets = sanitize_lines(&result.subnets);
        let vtep_ip = result.vtep_ip.as_deref().map(sanitize).unwrap_or_default();
        table.row(output, [result.ip.to_string(), vtep_ip, subnets, describe(result)])?;
    }
    table.finish(output)
}
