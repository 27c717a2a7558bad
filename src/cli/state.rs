//! `mesos-overlay state`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use clap::Args;
use overlay_types::protocol::{AgentInfo, Assignment, Bridge, State, Status};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;
use super::http_client::{Health, MasterClient, block_on};
use super::master_address::MasterAddress;
use super::output::{Output, OutputFormat, Table, address_pair, sanitize};
use super::process::pluralize;
use super::response::displayed_problems;

/// Show the allocations and the status of a running master's agents.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay state --master 10.0.0.1:5050
  mesos-overlay state --master 10.0.0.1:5050 --agent 10.0.0.7
  mesos-overlay state --master 10.0.0.1:5050 --json | jq '.agents | length'

The master may also be a mesos-master with the C++ modules. Exit code 0 if the master answered,
whatever the status of its agents.")]
pub(super) struct StateCommand {
    #[command(flatten)]
    master: MasterAddress,
    /// Show this agent only
    #[arg(long, env = "MESOS_OVERLAY_AGENT", value_name = "IP")]
    agent: Option<Ipv4Addr>,
    #[command(flatten)]
    format: OutputFormat,
}

/// A state whose agents are kept as the master's JSON.
#[derive(Deserialize)]
struct RawState<'a> {
    #[serde(borrow, default)]
    agents: Vec<&'a RawValue>,
}

/// The part of an agent's JSON that identifies it.
#[derive(Deserialize)]
struct Identity {
    ip: Ipv4Addr,
}

impl StateCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let master = self.master.client()?;
        block_on(async {
            let body = master.state().await?;
            let state = master.read_state(&body)?;
            if self.format.json {
                return self.print_json(&master, &body);
            }
            let health = master.health().await?;
            self.print(&master, state, health.as_ref())
        })
    }

    /// Prints the master's JSON, or the part of the agent.
    fn print_json(&self, master: &MasterClient, body: &[u8]) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(body);
        let mut output = Output::new();
        match self.agent {
            None => output.json_text(&text)?,
            Some(ip) => {
                let state: RawState<'_> = serde_json::from_str(&text)
                    .map_err(|error| Failure::new(format!("master {master}: {error}")))?;
                let is_selected = |agent: &&&RawValue| {
                    let identity = serde_json::from_str(agent.get());
                    identity.is_ok_and(|identity: Identity| identity.ip == ip)
                };
                let agent = state.agents.iter().find(is_selected);
                let agent = agent.ok_or_else(|| unknown_agent(master, ip))?;
                output.json_text(agent.get())?;
            }
        }
        output.finish()
    }

    fn print(
        &self,
        master: &MasterClient,
        mut state: State,
        health: Option<&Health>,
    ) -> Result<(), Failure> {
        let summary = summary(master, &state, health);
        state.agents.sort_by_key(|agent| agent.ip);
        if let Some(ip) = self.agent {
            state.agents.retain(|agent| agent.ip == ip);
            if state.agents.is_empty() {
                return Err(unknown_agent(master, ip));
            }
        }
        let mut output = Output::new();
        if !state.agents.is_empty() {
            // An overlay master lists overlays in the order of the configuration. The C++ modules
            // have no stable order.
            print_agents(&mut output, &state, health.is_none(), health)?;
            output.line("")?;
        }
        output.line(summary)?;
        for problem in health.map(|health| displayed_problems(&health.problems)).unwrap_or_default()
        {
            output.line(format_args!("problem: {problem}"))?;
        }
        output.finish()
    }
}

/// Returns a line such as `master 10.0.0.1:5050: ok: 3 agents: 2 ok, 1 failed, 0 unreported (epoch
/// 1, version 3)`.
fn summary(master: &MasterClient, state: &State, health: Option<&Health>) -> String {
    let status_of = |agent: &Arc<AgentInfo>| match quarantine_reason(health, agent.ip) {
        Some(_) => AgentStatus::Failed,
        None => AgentStatus::of(agent),
    };
    let count = |status| {
        let agents = state.agents.iter();
        agents.filter(|agent| status_of(agent) == status).count()
    };
    let agents = pluralize(state.agents.len() as u128, "agent");
    let agents = format!(
        "{agents}: {} ok, {} failed, {} unreported",
        count(AgentStatus::Ok),
        count(AgentStatus::Failed),
        count(AgentStatus::Unreported)
    );
    match health {
        Some(Health { status, epoch, version, .. }) => {
            let status = sanitize(status);
            format!("master {master}: {status}: {agents} (epoch {epoch}, version {version})")
        }
        None => format!("master {master}: {agents} (it shows no health)"),
    }
}

/// Returns why the master does not serve this agent.
fn quarantine_reason(health: Option<&Health>, ip: Ipv4Addr) -> Option<&str> {
    health.and_then(|health| health.quarantine_reason(ip))
}

fn unknown_agent(master: &MasterClient, ip: Ipv4Addr) -> Failure {
    Failure::new(format!(
        "agent {ip}: master {master} knows no such agent: omit --agent to see the agents that it \
         knows"
    ))
}

/// The status of an agent. An agent with a failed overlay has failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AgentStatus {
    Ok,
    Failed,
    Unreported,
}

impl AgentStatus {
    fn of(agent: &Arc<AgentInfo>) -> Self {
        let mut statuses = agent.overlays.iter().map(|overlay| &overlay.status);
        if statuses.clone().any(|status| matches!(status, Some(Status::Failed(_)))) {
            Self::Failed
        } else if statuses.any(|status| !matches!(status, Some(Status::Ok))) {
            Self::Unreported
        } else {
            Self::Ok
        }
    }
}

/// Prints a table of the allocations and the status of each agent.
pub(super) fn print_agents(
    output: &mut Output,
    state: &State,
    is_sorted_by_name: bool,
    health: Option<&Health>,
) -> Result<(), Failure> {
    let mut table = Table::with_sentences(&[
        "AGENT",
        "VTEP IP",
        "VTEP MAC",
        "OVERLAY",
        "SUBNET",
        "MESOS HALF",
        "DOCKER HALF",
        "STATUS",
    ]);
    for agent in &state.agents {
        let mut overlays: Vec<&Assignment> = agent.overlays.iter().collect();
        if is_sorted_by_name {
            overlays.sort_by_key(|overlay| overlay.name());
        }
        let quarantine_reason = quarantine_reason(health, agent.ip);
        add_agent(&mut table, output, agent, &overlays, quarantine_reason)?;
    }
    table.finish(output)
}

fn add_agent(
    table: &mut Table,
    output: &mut Output,
    agent: &AgentInfo,
    overlays: &[&Assignment],
    quarantine_reason: Option<&str>,
) -> Result<(), Failure> {
    if overlays.is_empty() {
        let mut cells = [const { String::new() }; 8];
        cells[0] = agent.ip.to_string();
        cells[7] = match quarantine_reason {
            Some(reason) => format!("not served: {}", sanitize(reason)),
            None => "no overlay".to_owned(),
        };
        return table.row(output, cells);
    }
    for overlay in overlays {
        let Assignment { vtep, subnet, subnet6, mesos_bridge, docker_bridge, status, .. } = overlay;
        let half = |bridge: &Option<Bridge>| {
            let bridge = bridge.as_ref();
            address_pair(bridge.and_then(|half| half.subnet), bridge.and_then(|half| half.subnet6))
        };
        let status = match status {
            None => "unreported".to_owned(),
            Some(status) => sanitize(&status.to_string()),
        };
        let cells = [
            agent.ip.to_string(),
            address_pair(Some(vtep.ip), vtep.ip6),
            vtep.mac.to_string(),
            overlay.name().to_string(),
            address_pair(subnet.as_ref(), subnet6.as_ref()),
            half(mesos_bridge),
            half(docker_bridge),
            status,
        ];
        table.row(output, cells)?;
    }
    Ok(())
}
