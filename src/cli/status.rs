//! `mesos-overlay status`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use clap::Args;
use overlay_types::address_usage::FillLevel;
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::{AgentInfo, State, Status};
use serde::Serialize;

use super::Failure;
use super::agent_status::{
    AgentCounts, AgentStatus, agents_by_address, contact_of, quarantine_reason,
};
use super::http_client::{Health, MasterClient, block_on};
use super::master_address::MasterAddress;
use super::output::{Output, OutputFormat, print_error, sanitize};
use super::process::pluralize;
use super::progress::Progress;
use super::response::displayed_problems;

/// Time between two attempts of `--wait`.
const WAIT_INTERVAL: Duration = Duration::from_secs(1);
/// Most reasons that the text shows, and most agents of each.
const REASONS_MAX: usize = 20;
const AGENTS_MAX: usize = 8;

/// Show the problems of the cluster of a running master, or that it has none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay status --master 10.0.0.1:5050
  mesos-overlay status --master 10.0.0.1:5050 --wait 5m && echo deployed
  mesos-overlay status --master zk://10.0.0.1:2181/mesos-overlay --watch

Exit code 0 if the master and all its agents are ok, 1 if not. An agent that has not reported yet is
not ok. The master may also be a mesos-master with the C++ modules, which shows no health.")]
pub(super) struct StatusCommand {
    #[command(flatten)]
    master: MasterAddress,
    /// Wait until everything is ok, at most so long: 1m without a value
    #[arg(
        long,
        env = "MESOS_OVERLAY_WAIT",
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "1m",
        value_parser = humantime::parse_duration,
        conflicts_with = "watch"
    )]
    wait: Option<Duration>,
    /// Show the status again after each interval, until Ctrl-C: 2s without a value
    #[arg(
        long,
        env = "MESOS_OVERLAY_WATCH",
        value_name = "INTERVAL",
        num_args = 0..=1,
        default_missing_value = "2s",
        value_parser = parse_interval
    )]
    watch: Option<Duration>,
    #[command(flatten)]
    format: OutputFormat,
}

/// The status of a cluster, and the output with `--json`.
#[derive(Debug, Serialize)]
struct ClusterStatus {
    master: String,
    /// The status in the health of the master; `None` without a health.
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    agents: AgentCounts,
    /// The agents that are not ok, by the reason. The most frequent reason is first.
    reasons: Vec<Reason>,
    /// The authentication of the agents, if the master shows it.
    #[serde(skip)]
    authentication: Option<String>,
    problems: Vec<String>,
    /// Halves of subnets of agents that are full or nearly full. Containers that run are ok.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Reason>,
}

/// Agents that are not ok for the same reason.
#[derive(Debug, Serialize)]
struct Reason {
    reason: String,
    agents: Vec<Ipv4Addr>,
}

impl StatusCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match (self.wait, self.watch) {
            (Some(limit), _) => self.wait(limit),
            (None, Some(interval)) => self.watch(interval),
            (None, None) => {
                let status = self.read()?;
                self.print(&status)?;
                status.require_ok()
            }
        }
    }

    /// Waits until everything is ok, and shows the last status.
    fn wait(&self, limit: Duration) -> Result<(), Failure> {
        let start = now();
        let progress = Progress::start("waiting for the master");
        loop {
            let status = self.read();
            let is_last = start.elapsed() >= limit;
            match status {
                Ok(status) if is_last || status.problem().is_none() => {
                    drop(progress);
                    self.print(&status)?;
                    return status.require_ok().map_err(|failure| after(limit, &failure));
                }
                // Repeating a wrong flag would not help.
                Err(failure) if failure.is_usage => return Err(failure),
                Err(failure) if is_last => return Err(after(limit, &failure)),
                Ok(status) => progress.describe(&status.problem().unwrap_or_default()),
                Err(failure) => progress.describe(&failure.to_string()),
            }
            sleep(WAIT_INTERVAL.min(limit.saturating_sub(start.elapsed())))?;
        }
    }

    /// Shows the status again and again. A master that does not answer is shown too.
    fn watch(&self, interval: Duration) -> Result<(), Failure> {
        loop {
            match self.read() {
                Ok(status) => self.print(&status)?,
                Err(failure) if failure.is_usage => return Err(failure),
                Err(failure) => print_error(format_args!("mesos-overlay: {failure}")),
            }
            sleep(interval)?;
        }
    }

    /// Reads the status. Each time, an election is asked for its leader.
    fn read(&self) -> Result<ClusterStatus, Failure> {
        let master = self.master.client()?;
        block_on(async {
            let state = master.state().await?;
            let state = master.read_state(&state)?;
            let health = master.health().await?;
            Ok(ClusterStatus::new(&master, &state, health))
        })
    }

    fn print(&self, status: &ClusterStatus) -> Result<(), Failure> {
        self.format.print(status, |output| {
            if self.watch.is_some() {
                output.clear_terminal()?;
            }
            status.print(output)
        })
    }
}

impl ClusterStatus {
    fn new(master: &MasterClient, state: &State, health: Option<Health>) -> Self {
        let health = health.as_ref();
        Self {
            master: master.to_string(),
            status: health.map(|health| sanitize(&health.status)),
            epoch: health.map(|health| health.epoch),
            version: health.map(|health| health.version),
            agents: AgentCounts::of(state, health),
            reasons: reasons(state, health),
            authentication: health.and_then(Health::authentication),
            problems: health.map(|health| displayed_problems(&health.problems)).unwrap_or_default(),
            warnings: filled_halves(state),
        }
    }

    fn print(&self, output: &mut Output) -> Result<(), Failure> {
        let Self { master, status, agents, .. } = self;
        match (status, self.epoch, self.version) {
            (Some(status), Some(epoch), Some(version)) => output.status_line(format_args!(
                "master {master}: {status} (epoch {epoch}, version {version})"
            ))?,
            _ => output.line(format_args!("master {master}: it shows no health"))?,
        }
        output.status_line(agents)?;
        if let Some(authentication) = &self.authentication {
            output.line(authentication)?;
        }
        for Reason { reason, agents } in self.reasons.iter().take(REASONS_MAX) {
            let count = pluralize(agents.len() as u128, "agent");
            output.status_line(format_args!("{count}: {reason}: {}", few(agents)))?;
        }
        if let Some(more) = self.reasons.len().checked_sub(REASONS_MAX).filter(|&more| more > 0) {
            let more = pluralize(more as u128, "more reason");
            output.line(format_args!("… and {more}: see 'mesos-overlay state'"))?;
        }
        for Reason { reason, agents } in self.warnings.iter().take(REASONS_MAX) {
            let count = pluralize(agents.len() as u128, "agent");
            output.status_line(format_args!("warning: {count}: {reason}: {}", few(agents)))?;
        }
        for problem in &self.problems {
            output.status_line(format_args!("problem: {problem}"))?;
        }
        Ok(())
    }

    /// Returns the problem in a few words. An agent without overlays is as its network says.
    fn problem(&self) -> Option<String> {
        let master = self.status.as_ref().filter(|status| *status != "ok");
        let master = master.map(|status| format!("the master is {status}"));
        let AgentCounts { failed, unreported, stale, .. } = self.agents;
        let agents = [(failed, "failed"), (unreported, "unreported"), (stale, "stale")];
        let agents = agents.into_iter().filter(|(count, _)| *count > 0);
        let agents = agents.map(|(count, name)| {
            let agents = pluralize(count as u128, "agent");
            format!("{agents} {name}")
        });
        let problems: Vec<String> = master.into_iter().chain(agents).collect();
        (!problems.is_empty()).then(|| problems.join(", "))
    }

    fn require_ok(&self) -> Result<(), Failure> {
        match self.problem() {
            None => Ok(()),
            Some(problem) => Err(Failure::new(format!("master {}: {problem}", self.master))),
        }
    }
}

/// Groups the agents that are not ok by the reason.
fn reasons(state: &State, health: Option<&Health>) -> Vec<Reason> {
    let mut agents: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for agent in agents_by_address(state) {
        for reason in reasons_of(agent, state, health) {
            agents.entry(reason).or_default().push(agent.ip);
        }
    }
    let reasons = agents.into_iter().map(|(reason, agents)| Reason { reason, agents });
    let mut reasons: Vec<Reason> = reasons.collect();
    reasons.sort_by_key(|reason| Reverse(reason.agents.len()));
    reasons
}

/// Groups the agents with a full or nearly full half, the full halves first. The remedy is in the
/// reason.
fn filled_halves(state: &State) -> Vec<Reason> {
    let mut agents: BTreeMap<_, Vec<Ipv4Addr>> = BTreeMap::new();
    for (ip, counts) in &state.address_counts {
        for (overlay, halves) in counts {
            for (kind, count) in halves.known() {
                let key = (Reverse(count.level()), overlay, kind);
                agents.entry(key).or_default().push(*ip);
            }
        }
    }
    let reason = |((Reverse(level), overlay, kind), agents)| {
        let free = match level {
            FillLevel::Ample => return None,
            FillLevel::NearlyFull => "a tenth of the addresses or less is free",
            FillLevel::Full => "no address is free",
        };
        let containerizer = match kind {
            NetworkKind::Cni => "Mesos",
            NetworkKind::Docker => "Docker",
        };
        let reason = format!(
            "overlay {overlay}: {free} for {containerizer} containers: run fewer of them there, or \
             add an overlay with a shorter prefix for new containers"
        );
        Some(Reason { reason, agents })
    };
    agents.into_iter().filter_map(reason).collect()
}

/// Returns why an agent is not ok. Different overlays may have different reasons.
fn reasons_of(agent: &AgentInfo, state: &State, health: Option<&Health>) -> Vec<String> {
    match AgentStatus::of(agent, state, health) {
        AgentStatus::Ok | AgentStatus::Unassigned => Vec::new(),
        AgentStatus::Unreported => vec!["no complete report yet".to_owned()],
        AgentStatus::Stale => {
            let is_known = contact_of(state, agent.ip).last_seen.is_some();
            let when = if is_known { "for too long" } else { "since the master started" };
            vec![format!("stale: no message {when}")]
        }
        AgentStatus::Failed => match quarantine_reason(health, agent.ip) {
            Some(reason) => vec![format!("not served: {}", sanitize(reason))],
            None => failures(agent),
        },
    }
}

/// Returns the failure of each failed overlay.
fn failures(agent: &AgentInfo) -> Vec<String> {
    let failed = agent.overlays.iter().filter_map(|overlay| match &overlay.status {
        Some(Status::Failed(reason)) => {
            Some(format!("overlay {}: {}", overlay.name(), sanitize(reason)))
        }
        _ => None,
    });
    failed.collect()
}

/// Names the first agents, and counts the others.
fn few(agents: &[Ipv4Addr]) -> String {
    let shown: Vec<String> = agents.iter().take(AGENTS_MAX).map(ToString::to_string).collect();
    match agents.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn after(limit: Duration, failure: &Failure) -> Failure {
    Failure::new(format!("{failure} (after {})", humantime::format_duration(limit)))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < Duration::from_millis(100) {
        return Err("it is shorter than 100ms: write a longer interval, such as 2s".to_owned());
    }
    Ok(interval)
}

#[expect(clippy::disallowed_methods, reason = "the command line may read the clock")]
fn now() -> Instant {
    Instant::now()
}

fn sleep(duration: Duration) -> Result<(), Failure> {
    block_on(async {
        tokio::time::sleep(duration).await;
        Ok(())
    })
}
