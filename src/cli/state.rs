//! `mesos-overlay state`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;
use super::answer::shown_problems;
use super::host::counted;
use super::http_client::{Health, MasterAddress, MasterClient, block_on};
use super::output::{Form, Output, Table, both, harmless};
use crate::protocol::{AgentInfo, Assignment, Bridge, State, Status};

/// Show what the agents of a running master have, and how they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay state --master 10.0.0.1:5050
  mesos-overlay state --master 10.0.0.1:5050 --agent 10.0.0.7
  mesos-overlay state --master 10.0.0.1:5050 --json | jq '.agents | length'

The master may also be a mesos-master with the C++ modules. Exit code 0 if it answered, whatever the
agents' status.")]
pub(super) struct StateCommand {
    #[command(flatten)]
    master: MasterAddress,
    /// Show this agent only
    #[arg(long, env = "MESOS_OVERLAY_AGENT", value_name = "IP")]
    agent: Option<Ipv4Addr>,
    #[command(flatten)]
    form: Form,
}

/// A state whose agents are left as the master wrote them.
#[derive(Deserialize)]
struct Unread<'a> {
    #[serde(borrow, default)]
    agents: Vec<&'a RawValue>,
}

/// The part of an agent that tells which one it is.
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
            if self.form.json {
                return self.print_json(&master, &body);
            }
            let health = master.health().await?;
            self.print(&master, state, health.as_ref())
        })
    }

    /// The master's own JSON, or the part of it that is about the agent.
    fn print_json(&self, master: &MasterClient, body: &[u8]) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(body);
        let mut output = Output::new();
        match self.agent {
            None => output.json_text(&text)?,
            Some(ip) => {
                let unread: Unread<'_> = serde_json::from_str(&text)
                    .map_err(|error| Failure::new(format!("master {master}: {error}")))?;
                let is_it = |agent: &&&RawValue| {
                    serde_json::from_str(agent.get()).is_ok_and(|it: Identity| it.ip == ip)
                };
                let agent = unread.agents.iter().find(is_it).ok_or_else(|| unknown(master, ip))?;
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
                return Err(unknown(master, ip));
            }
        }
        let mut output = Output::new();
        if !state.agents.is_empty() {
            // The C++ modules have no order among overlays, ours has that of the configuration.
            print_agents(&mut output, &state, health.is_none(), health)?;
            output.line("")?;
        }
        output.line(summary)?;
        for problem in health.map(|health| shown_problems(&health.problems)).unwrap_or_default() {
            output.line(format_args!("problem: {problem}"))?;
        }
        output.finish()
    }
}

/// `master 10.0.0.1:5050: ok: 3 agents: 2 ok, 1 failed, 0 unreported (epoch 1, version 3)`
fn summary(master: &MasterClient, state: &State, health: Option<&Health>) -> String {
    let standing = |agent: &Arc<AgentInfo>| match set_aside(health, agent.ip) {
        Some(_) => Standing::Failed,
        None => Standing::of(agent),
    };
    let count = |wanted| {
        let agents = state.agents.iter();
        agents.filter(|agent| standing(agent) == wanted).count()
    };
    let agents = counted(state.agents.len() as u128, "agent");
    let standings = format!(
        "{agents}: {} ok, {} failed, {} unreported",
        count(Standing::Ok),
        count(Standing::Failed),
        count(Standing::Unreported)
    );
    match health {
        Some(Health { status, epoch, version, .. }) => {
            let status = harmless(status);
            format!("master {master}: {status}: {standings} (epoch {epoch}, version {version})")
        }
        None => format!("master {master}: {standings} (it shows no health)"),
    }
}

/// Why the master does not serve this agent.
fn set_aside(health: Option<&Health>, ip: Ipv4Addr) -> Option<&str> {
    health.and_then(|health| health.set_aside(ip))
}

fn unknown(master: &MasterClient, ip: Ipv4Addr) -> Failure {
    Failure::new(format!(
        "agent {ip}: master {master} knows no such agent: without --agent it shows those that it knows"
    ))
}

/// An agent in one word. One with a failed overlay has failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ok,
    Failed,
    Unreported,
}

impl Standing {
    fn of(agent: &Arc<AgentInfo>) -> Self {
        let has = |wanted: fn(&Option<Status>) -> bool| {
            agent.overlays.iter().any(|overlay| wanted(&overlay.status))
        };
        if has(|status| matches!(status, Some(Status::Failed(_)))) {
            Self::Failed
        } else if has(|status| !matches!(status, Some(Status::Ok))) {
            Self::Unreported
        } else {
            Self::Ok
        }
    }
}

/// A table of who has what, and what became of it.
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
        let set_aside = set_aside(health, agent.ip);
        add_agent(&mut table, output, agent, &overlays, set_aside)?;
    }
    table.finish(output)
}

fn add_agent(
    table: &mut Table,
    output: &mut Output,
    agent: &AgentInfo,
    overlays: &[&Assignment],
    set_aside: Option<&str>,
) -> Result<(), Failure> {
    if overlays.is_empty() {
        let mut cells = [const { String::new() }; 8];
        cells[0] = agent.ip.to_string();
        cells[7] = match set_aside {
            Some(reason) => format!("not served: {}", harmless(reason)),
            None => "no overlay".to_owned(),
        };
        return table.row(output, cells);
    }
    for overlay in overlays {
        let Assignment { vtep, subnet, subnet6, mesos_bridge, docker_bridge, status, .. } = overlay;
        let half = |bridge: &Option<Bridge>| {
            let bridge = bridge.as_ref();
            both(bridge.and_then(|half| half.subnet), bridge.and_then(|half| half.subnet6))
        };
        let status = match status {
            None => "unreported".to_owned(),
            Some(status) => harmless(&status.to_string()),
        };
        let cells = [
            agent.ip.to_string(),
            both(Some(vtep.ip), vtep.ip6),
            vtep.mac.to_string(),
            overlay.name().to_string(),
            both(subnet.as_ref(), subnet6.as_ref()),
            half(mesos_bridge),
            half(docker_bridge),
            status,
        ];
        table.row(output, cells)?;
    }
    Ok(())
}
