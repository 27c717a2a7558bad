//! `mesos-overlay state`.

mod tables;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use overlay_types::addr::OverlayName;
use overlay_types::protocol::{AgentInfo, State};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;
use super::agent_status::{AgentCounts, AgentStatus, contact_of};
use super::http_client::{Health, MasterClient, block_on};
use super::master_address::MasterAddress;
use super::output::{Output, sanitize};
use super::response::displayed_problems;
use tables::print_overlays;

pub(super) use tables::{print_agents, unix_now};

/// Show the allocations and the status of a running master's agents.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay state --master 10.0.0.1:5050
  mesos-overlay state --master 10.0.0.1:5050 --status failed --overlay vxlan-1
  mesos-overlay state --master 10.0.0.1:5050 --agent 10.0.0.7 -o wide
  mesos-overlay state --master 10.0.0.1:5050 --sort seen | head
  mesos-overlay state --master 10.0.0.1:5050 -o jsonl | jq -r .ip

The master may also be a mesos-master with the C++ modules. Exit code 0 if the master answered,
whatever the status of its agents: see `mesos-overlay status`.")]
pub(super) struct StateCommand {
    #[command(flatten)]
    master: MasterAddress,
    /// Show this agent only
    #[arg(long, env = "MESOS_OVERLAY_AGENT", value_name = "IP")]
    agent: Option<Ipv4Addr>,
    /// Show the agents with this status only: ok, failed, unreported, unassigned or stale
    #[arg(long, env = "MESOS_OVERLAY_STATUS", value_name = "STATUS", hide_possible_values = true)]
    status: Option<AgentStatus>,
    /// Show the agents with this overlay only, and of their overlays this one
    #[arg(long, env = "MESOS_OVERLAY_OVERLAY", value_name = "NAME")]
    overlay: Option<OverlayName>,
    /// Sort by agent; by seen, the agent that was silent for the longest time first; or by status,
    /// failed agents first
    #[arg(
        long,
        env = "MESOS_OVERLAY_SORT",
        value_name = "KEY",
        default_value = "agent",
        hide_possible_values = true
    )]
    sort: SortKey,
    /// The output: table, a line for each agent; wide, a line for each overlay of each agent; json,
    /// as from the master; jsonl, the JSON of each agent on a line
    #[arg(
        short = 'o',
        long,
        env = "MESOS_OVERLAY_FORMAT",
        default_value = "table",
        hide_possible_values = true,
        conflicts_with = "json"
    )]
    format: Format,
    /// Print JSON, for programs. The same as --format json
    #[arg(
        long,
        env = "MESOS_OVERLAY_JSON",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SortKey {
    Agent,
    Seen,
    Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Wide,
    Json,
    Jsonl,
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
        let format = if self.json { Format::Json } else { self.format };
        let is_filtered = self.status.is_some() || self.overlay.is_some();
        if format == Format::Json && is_filtered {
            return Err(Failure::usage(
                "--format json prints the state as the master sent it: to filter it, use --format \
                 jsonl",
            ));
        }
        block_on(async {
            let body = master.state().await?;
            let state = master.read_state(&body)?;
            if format == Format::Json {
                return self.print_json(&master, &body);
            }
            let health = master.health().await?;
            let health = health.as_ref();
            let summary = summary(&master, &state, health);
            let selected = self.select(&master, state, health)?;
            if format == Format::Jsonl {
                return print_lines(&master, &body, &selected);
            }
            let mut output = Output::new();
            if !selected.agents.is_empty() {
                match format {
                    Format::Wide => {
                        print_overlays(&mut output, &selected, health.is_none(), health)?;
                    }
                    _ => print_agents(&mut output, &selected, health, unix_now())?,
                }
                output.line("")?;
            }
            print_condition(&mut output, &summary, health)?;
            output.finish()
        })
    }

    /// Prints the master's JSON, or the part of the agent.
    fn print_json(&self, master: &MasterClient, body: &[u8]) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(body);
        let mut output = Output::new();
        match self.agent {
            None => output.json_text(&text)?,
            Some(ip) => {
                let agents = raw_agents(master, &text)?;
                let agent = agents.get(&ip).ok_or_else(|| unknown_agent(master, ip))?;
                output.json_text(agent.get())?;
            }
        }
        output.finish()
    }

    /// Keeps the agents and overlays to show, in the order in which they are shown.
    fn select(
        &self,
        master: &MasterClient,
        mut state: State,
        health: Option<&Health>,
    ) -> Result<State, Failure> {
        let mut agents = std::mem::take(&mut state.agents);
        if let Some(ip) = self.agent {
            agents.retain(|agent| agent.ip == ip);
            if agents.is_empty() {
                return Err(unknown_agent(master, ip));
            }
        }
        if let Some(name) = &self.overlay {
            for agent in &mut agents {
                Arc::make_mut(agent).overlays.retain(|overlay| overlay.name() == name);
            }
            agents.retain(|agent| !agent.overlays.is_empty());
        }
        let status = |agent: &AgentInfo| AgentStatus::of(agent, &state, health);
        agents.retain(|agent| self.status.is_none_or(|selected| status(agent) == selected));
        agents.sort_by_key(|agent| agent.ip);
        match self.sort {
            SortKey::Agent => {}
            // An agent that was not seen at all is first.
            SortKey::Seen => agents.sort_by_key(|agent| contact_of(&state, agent.ip).last_seen),
            SortKey::Status => agents.sort_by_key(|agent| status(agent)),
        }
        state.agents = agents;
        Ok(state)
    }
}

/// Prints the condition of the master.
fn print_condition(
    output: &mut Output,
    summary: &str,
    health: Option<&Health>,
) -> Result<(), Failure> {
    output.status_line(summary)?;
    if let Some(authentication) = health.and_then(Health::authentication) {
        output.line(authentication)?;
    }
    for problem in health.map(|health| displayed_problems(&health.problems)).unwrap_or_default() {
        output.status_line(format_args!("problem: {problem}"))?;
    }
    Ok(())
}

/// Prints the master's JSON of each selected agent on a line.
fn print_lines(master: &MasterClient, body: &[u8], selected: &State) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(body);
    let agents = raw_agents(master, &text)?;
    let mut output = Output::new();
    for agent in selected.agents.iter().filter_map(|agent| agents.get(&agent.ip)) {
        output.json_text(agent.get())?;
    }
    output.finish()
}

/// Returns the master's JSON of each agent.
fn raw_agents<'a>(
    master: &MasterClient,
    text: &'a str,
) -> Result<HashMap<Ipv4Addr, &'a RawValue>, Failure> {
    let state: RawState<'a> = serde_json::from_str(text)
        .map_err(|error| Failure::new(format!("master {master}: {error}")))?;
    let identify = |agent: &'a RawValue| {
        let identity: Identity = serde_json::from_str(agent.get()).ok()?;
        Some((identity.ip, agent))
    };
    Ok(state.agents.into_iter().filter_map(identify).collect())
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

fn unknown_agent(master: &MasterClient, ip: Ipv4Addr) -> Failure {
    Failure::new(format!(
        "agent {ip}: master {master} knows no such agent: omit --agent to see the agents that it \
         knows"
    ))
}
