//! `mesos-overlay state`.

use std::net::Ipv4Addr;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use overlay_types::protocol::{AgentContact, AgentInfo, Assignment, Bridge, State};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;
use super::agent_status::{AgentCounts, contact_of, quarantine_reason};
use super::http_client::{Health, MasterClient, block_on};
use super::master_address::MasterAddress;
use super::output::{Output, OutputFormat, Table, address_pair, sanitize};
use super::response::displayed_problems;

/// Unix time of the start of the year 9999. RFC 3339 cannot represent times after that year.
const YEAR_9999: u64 = 253_370_764_800;

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
        if let Some(authentication) = health.and_then(Health::authentication) {
            output.line(authentication)?;
        }
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
    let agents = AgentCounts::of(state, health);
    match health {
        Some(Health { status, epoch, version, .. }) => {
            let status = sanitize(status);
            format!("master {master}: {status}: {agents} (epoch {epoch}, version {version})")
        }
        None => format!("master {master}: {agents} (it shows no health)"),
    }
}

/// Returns the time of the last message of an agent.
fn last_seen(contact: AgentContact) -> String {
    let time = contact.last_seen.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at)));
    let time = time.filter(|_| contact.last_seen.is_some_and(|at| at < YEAR_9999));
    time.map(|time| humantime::format_rfc3339_seconds(time).to_string()).unwrap_or_default()
}

fn unknown_agent(master: &MasterClient, ip: Ipv4Addr) -> Failure {
    Failure::new(format!(
        "agent {ip}: master {master} knows no such agent: omit --agent to see the agents that it \
         knows"
    ))
}

/// Prints a table of the allocations and the status of each agent.
pub(super) fn print_agents(
    output: &mut Output,
    state: &State,
    is_sorted_by_name: bool,
    health: Option<&Health>,
) -> Result<(), Failure> {
    // A master with the C++ modules does not show when it has last seen an agent.
    let has_contacts = !state.contacts.is_empty();
    let mut header = HEADER.to_vec();
    if !has_contacts {
        header.retain(|name| *name != LAST_SEEN);
    }
    let mut table = Table::with_sentences(&header);
    for agent in &state.agents {
        let mut overlays: Vec<&Assignment> = agent.overlays.iter().collect();
        if is_sorted_by_name {
            overlays.sort_by_key(|overlay| overlay.name());
        }
        let quarantine_reason = quarantine_reason(health, agent.ip);
        for cells in agent_rows(agent, &overlays, contact_of(state, agent.ip), quarantine_reason) {
            if has_contacts {
                table.row(output, cells)?;
            } else {
                let [agent, _, vtep_ip, vtep_mac, overlay, subnet, mesos, docker, status] = cells;
                let cells = [agent, vtep_ip, vtep_mac, overlay, subnet, mesos, docker, status];
                table.row(output, cells)?;
            }
        }
    }
    table.finish(output)
}

const LAST_SEEN: &str = "LAST SEEN";
const HEADER: [&str; 9] = [
    "AGENT",
    LAST_SEEN,
    "VTEP IP",
    "VTEP MAC",
    "OVERLAY",
    "SUBNET",
    "MESOS HALF",
    "DOCKER HALF",
    "STATUS",
];

/// Returns the rows of an agent: one for each overlay, or one.
fn agent_rows(
    agent: &AgentInfo,
    overlays: &[&Assignment],
    contact: AgentContact,
    quarantine_reason: Option<&str>,
) -> Vec<[String; 9]> {
    let stale = if contact.is_stale { "stale, last report: " } else { "" };
    if overlays.is_empty() {
        let mut cells = [const { String::new() }; 9];
        cells[0] = agent.ip.to_string();
        cells[1] = last_seen(contact);
        cells[8] = match quarantine_reason {
            Some(reason) => format!("not served: {}", sanitize(reason)),
            None if contact.is_stale => "stale, no overlay".to_owned(),
            None => "no overlay".to_owned(),
        };
        return vec![cells];
    }
    let row = |overlay: &&Assignment| {
        let Assignment { vtep, subnet, subnet6, mesos_bridge, docker_bridge, status, .. } = overlay;
        let half = |bridge: &Option<Bridge>| {
            let bridge = bridge.as_ref();
            address_pair(bridge.and_then(|half| half.subnet), bridge.and_then(|half| half.subnet6))
        };
        let status = match status {
            None => format!("{stale}unreported"),
            Some(status) => format!("{stale}{}", sanitize(&status.to_string())),
        };
        [
            agent.ip.to_string(),
            last_seen(contact),
            address_pair(Some(vtep.ip), vtep.ip6),
            vtep.mac.to_string(),
            overlay.name().to_string(),
            address_pair(subnet.as_ref(), subnet6.as_ref()),
            half(mesos_bridge),
            half(docker_bridge),
            status,
        ]
    };
    overlays.iter().map(row).collect()
}
