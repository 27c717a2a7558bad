//! `mesos-overlay connectivity`: the probes of all agents, from one place.
//!
//! The master names the agents. `query` asks each for the probes of its peers, with bounded time,
//! memory and concurrency. `summary` groups the broken pairs, without IO.

mod query;
mod summary;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use self::query::QueryOptions;
use self::summary::{Summary, Totals};
use super::Failure;
use super::http_client::block_on;
use super::master_address::{AGENT_PORT_DEFAULT, MasterAddress, read_credential};
use super::output::{Output, TableFormat, sanitize};
use super::process::pluralize;

/// Most lines for broken pairs, and for agents that could not be asked, without `--all`.
const LINES_MAX: usize = 20;

/// Show which agents do not reach each other, by the probes of all agents.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay connectivity --master 10.0.0.1:5050
  mesos-overlay connectivity --master 10.0.0.1:5050 --all -o wide
  mesos-overlay connectivity --master zk://10.0.0.1:2181/mesos-overlay -o json | jq .pairs

The master names the agents, and each agent is asked for the probes of its peers. Exit code 0 if no
agent reports a broken pair, 1 if one does or if no agent answers. An agent that cannot be asked is
shown with the reason: its own probes are unknown, and others still probe it.")]
pub(super) struct ConnectivityCommand {
    #[command(flatten)]
    master: MasterAddress,
    /// The port on which agents answer HTTP requests
    #[arg(
        long,
        env = "MESOS_OVERLAY_AGENT_PORT",
        value_name = "PORT",
        default_value_t = AGENT_PORT_DEFAULT,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    agent_port: u16,
    /// The file of the credential for agents that require one. Every such agent of the master's state
    /// gets it
    #[arg(long, env = "MESOS_OVERLAY_AGENT_CREDENTIAL", value_name = "FILE")]
    agent_credential: Option<PathBuf>,
    /// Time for all agents together. Agents that were not asked by then are unknown
    #[arg(
        long,
        env = "MESOS_OVERLAY_TIMEOUT",
        value_name = "DURATION",
        default_value = "1m",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
    /// Show all lines, and not only the first 20 of each kind
    #[arg(
        long,
        env = "MESOS_OVERLAY_ALL",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    all: bool,
    #[command(flatten)]
    format: TableFormat,
}

impl ConnectivityCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let master = self.master.client()?;
        let credential = self.agent_credential.as_deref();
        let credential =
            credential.map(|path| read_credential("--agent-credential", path)).transpose()?;
        let options = QueryOptions { port: self.agent_port, credential, timeout: self.timeout };
        let (agents, answers) = block_on(async {
            let body = master.state().await?;
            let agents = query::agents(&master.read_state(&body)?);
            drop(body);
            let answers = options.ask_all(&agents).await;
            Ok((agents, answers))
        })?;
        let summary = Summary::new(&agents, &answers);
        self.format.print(&summary, |output, is_short| {
            let max = if self.all || !is_short { usize::MAX } else { LINES_MAX };
            print(output, &master.to_string(), &summary, max)
        })?;
        require_connectivity(&summary)
    }
}

fn require_connectivity(summary: &Summary) -> Result<(), Failure> {
    let Summary { pairs, answered, agents, .. } = summary;
    if pairs.broken > 0 {
        let pairs = pluralize(u128::from(pairs.broken), "pair");
        return Err(Failure::new(format!("connectivity: {pairs} broken: see the lines above")));
    }
    if *answered == 0 && *agents > 0 {
        return Err(Failure::new(
            "connectivity: no agent answers: see the reasons, and --agent-port",
        ));
    }
    Ok(())
}

/// Prints the summary, and then at most `max` lines of each list.
fn print(output: &mut Output, master: &str, summary: &Summary, max: usize) -> Result<(), Failure> {
    let agents = pluralize(summary.agents as u128, "agent");
    let answered = summary.answered;
    output.line(format_args!("master {master}: {agents} asked, {answered} answered"))?;
    let Totals { ok, lossy, broken, unknown } = summary.pairs;
    output.line(format_args!(
        "pairs: {ok} ok, {lossy} lossy, {broken} unreachable, {unknown} unknown"
    ))?;
    if let Some(times) = summary.latency_microseconds {
        let [min, median, max] = [times.min, times.median, times.max].map(milliseconds);
        output.line(format_args!("latency: min {min}, median {median}, max {max}"))?;
    }
    print_list(output, &summary.broken, max, ToString::to_string)?;
    print_list(output, &summary.lossy, max, ToString::to_string)?;
    print_list(output, &summary.unasked, max, |unasked| {
        format!("{}: not asked: {}", list_few(&unasked.agents), unasked.reason)
    })
}

fn print_list<T>(
    output: &mut Output,
    list: &[T],
    max: usize,
    text: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    for entry in list.iter().take(max) {
        output.line(sanitize(&text(entry)))?;
    }
    match list.len().saturating_sub(max) {
        0 => Ok(()),
        more => {
            output.line(format_args!("… and {}: see --all", pluralize(more as u128, "more line")))
        }
    }
}

/// Names the first agents, and counts the others.
fn list_few(agents: &[Ipv4Addr]) -> String {
    /// Most agents that a line names.
    const NAMED_MAX: usize = 4;
    let named: Vec<String> = agents.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    match agents.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn milliseconds(microseconds: u64) -> String {
    let (whole, part) = (microseconds / 1000, microseconds % 1000 / 10);
    format!("{whole}.{part:02} ms")
}
