//! `mesos-overlay ipam`: the addresses that the containers of this host use, with leaks and
//! conflicts.
//!
//! `host` observes the host and changes nothing. `usage` and `check` derive the addresses in use and
//! the problems, without IO. Only `release` changes the host: it removes leases of host-local.

mod check;
mod host;
mod release;
#[cfg(test)]
mod tests;
mod usage;

use std::net::{IpAddr, Ipv4Addr};

use clap::{Args, Subcommand};
use serde::Serialize;

use self::check::{Problem, ProblemKind, problems, unknown_leases};
use self::host::Observation;
use self::usage::{HalfUsage, UsedAddress, half_usage, used_addresses};
use super::Failure;
use super::agent_options::{DockerOptions, LocalAgentOptions};
use super::doctor::discovery::{self, Discovery};
use super::http_client::block_on;
use super::master_address::{AgentAddress, CredentialFile, MasterSource};
use super::output::{Output, Table, TableFormat, sanitize};
use super::process::pluralize;

/// Most lines for problems of one kind, without `--all`.
const LINES_MAX: usize = 20;
/// Longest container in the table, in characters. A terminal of 80 columns has no more place.
const CONTAINER_MAX: usize = 12;

/// Show the addresses that the containers of this host use, and find leaks and conflicts.
#[derive(Debug, Args)]
#[command(
    disable_help_subcommand = true,
    after_help = "\
Examples:
  mesos-overlay ipam show
  mesos-overlay ipam check --master 10.0.0.1:5050
  mesos-overlay ipam check --fix

Run it as root on the host of the agent."
)]
pub(super) struct IpamCommand {
    #[command(subcommand)]
    command: IpamSubcommand,
}

#[derive(Debug, Subcommand)]
enum IpamSubcommand {
    /// Show each address in use, with its container
    Show(ShowCommand),
    /// Find leaked leases, conflicts between master, agent, CNI, Docker and kernel, and full ranges
    Check(CheckCommand),
}

/// Show each address in use, with its container.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay ipam show
  mesos-overlay ipam show -o json | jq -r .addresses[].address

Run it as root on the host of the agent: the kernel shows the addresses of containers to root only.
The sources are the leases of the CNI plugin host-local, Docker, and the ports and neighbors in the
kernel. Exit code 0 if all of them were read.")]
struct ShowCommand {
    #[command(flatten)]
    host: HostOptions,
    #[command(flatten)]
    format: TableFormat,
}

/// Find leaked leases, conflicts between master, agent, CNI, Docker and kernel, and full ranges.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay ipam check
  mesos-overlay ipam check --master 10.0.0.1:5050
  mesos-overlay ipam check --fix

Run it as root on the host of the agent. It changes nothing without --fix. A lease is leaked if its
container certainly is gone: a doubtful lease is shown as unknown, stays, and is no problem. Exit
code 0 if there is no problem, or --fix has repaired all of them; 1 if a problem remains.")]
struct CheckCommand {
    #[command(flatten)]
    host: HostOptions,
    /// Remove leaked leases. Nothing else is changed, and no container is touched
    #[arg(
        long,
        env = "MESOS_OVERLAY_FIX",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    fix: bool,
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

/// The flags that describe the host.
#[derive(Debug, Args)]
struct HostOptions {
    #[command(flatten)]
    local: LocalAgentOptions,
    /// The running master: as for `state`. Its state is compared with this host
    // Agents read the same variable, whose value may contain a password. So no message shows the
    // value.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "MASTER")]
    master: Option<String>,
    #[command(flatten)]
    credential: CredentialFile,
    #[command(flatten)]
    docker: DockerOptions,
}

/// The output of `show` with `--json`.
#[derive(Debug, Serialize)]
struct Usage<'a> {
    agent: Option<Ipv4Addr>,
    addresses: &'a [UsedAddress],
    halves: &'a [HalfUsage],
    /// Why sources could not be read.
    failures: &'a [String],
}

/// The output of `check` with `--json`.
#[derive(Debug, Serialize)]
struct CheckReport<'a> {
    /// Whether no problem remains.
    ok: bool,
    agent: Option<Ipv4Addr>,
    problems: &'a [Problem],
    unknown: &'a [Problem],
    halves: &'a [HalfUsage],
}

impl IpamCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            IpamSubcommand::Show(command) => command.run(),
            IpamSubcommand::Check(command) => command.run(),
        }
    }
}

impl HostOptions {
    /// Observes the host.
    fn observe(&self) -> Result<Observation, Failure> {
        let discovery = discovery::discover(self.local.config.as_deref())?;
        let is_agent_known = self.local.agent.is_some() || discovery.address.is_some();
        let Discovery { mut config, address, .. } = discovery;
        self.docker.apply(&mut config)?;
        let agent = self.local.agent.clone().unwrap_or_else(|| AgentAddress::local(address));
        let master = self.master.as_deref().filter(|address| !address.is_empty());
        let master = master.map(|address| MasterSource::from_flag("--master", address));
        let sources = host::Sources {
            agent: agent.endpoint(),
            is_agent_known,
            master: master.transpose()?,
            credential: self.credential.read()?,
            has_docker: config.options.docker_bridge,
            config,
        };
        block_on(async { Ok(sources.observe().await) })
    }
}

impl ShowCommand {
    fn run(self) -> Result<(), Failure> {
        let observed = self.host.observe()?;
        let addresses = used_addresses(&observed);
        let halves = half_usage(&observed, &addresses);
        let failures = observed.failures();
        let usage = Usage {
            agent: observed.agent_ip(),
            addresses: &addresses,
            halves: &halves,
            failures: &failures,
        };
        self.format.print(&usage, |output, is_short| {
            if !addresses.is_empty() {
                print_addresses(output, &addresses, is_short)?;
                output.line("")?;
            }
            print_halves(output, &halves)?;
            output.labelled_lines("problem", &failures)
        })?;
        match failures.len() {
            0 => Ok(()),
            count => {
                let sources = pluralize(count as u128, "source");
                Err(Failure::new(format!(
                    "ipam show: {sources} could not be read: see the problems"
                )))
            }
        }
    }
}

impl CheckCommand {
    fn run(self) -> Result<(), Failure> {
        let observed = self.host.observe()?;
        let addresses = used_addresses(&observed);
        let halves = half_usage(&observed, &addresses);
        let mut problems = problems(&observed, &addresses, &halves);
        let unknown = unknown_leases(&observed);
        if self.fix {
            release::release(&observed, &mut problems);
        }
        let remaining = problems.iter().filter(|problem| !problem.is_fixed()).count();
        let report = CheckReport {
            ok: remaining == 0,
            agent: observed.agent_ip(),
            problems: &problems,
            unknown: &unknown,
            halves: &halves,
        };
        self.format.print(&report, |output, is_short| {
            let max = if self.all || !is_short { usize::MAX } else { LINES_MAX };
            print_problems(output, &problems, max)?;
            print_problems(output, &unknown, max)?;
            print_halves(output, &halves)
        })?;
        let can_fix = problems.iter().any(Problem::can_be_fixed);
        match remaining {
            0 => Ok(()),
            count => {
                let count = pluralize(count as u128, "problem");
                let fix = if can_fix { ", or with --fix" } else { "" };
                Err(Failure::new(format!("ipam check: {count}: fix as shown{fix}")))
            }
        }
    }
}

fn print_addresses(
    output: &mut Output,
    addresses: &[UsedAddress],
    is_short: bool,
) -> Result<(), Failure> {
    let header = ["ADDRESS", "OVERLAY", "HALF", "CONTAINER", "INTERFACE", "SOURCE"];
    let mut table = Table::with_sentences(&header);
    for used in addresses {
        let container = sanitize(used.container_label().unwrap_or_default());
        let container = if is_short { shorten(&container) } else { container };
        let sources: Vec<&str> = used.sources.iter().map(|source| source.name()).collect();
        let cells = [
            used.address.to_string(),
            used.overlay.to_string(),
            used.half.map(|half| half.name().to_owned()).unwrap_or_default(),
            container,
            sanitize(&used.interface_label()),
            sources.join(","),
        ];
        table.row(output, cells)?;
    }
    table.finish(output)
}

/// Returns the beginning of a container's ID, which identifies it on a host.
fn shorten(container: &str) -> String {
    container.chars().take(CONTAINER_MAX).collect()
}

fn print_halves(output: &mut Output, halves: &[HalfUsage]) -> Result<(), Failure> {
    for HalfUsage { overlay, half, subnet, used, free, .. } in halves {
        let half = half.name();
        output.line(format_args!("{overlay} {half} {subnet}: {used} used, {free} free"))?;
    }
    Ok(())
}

/// Prints a line for each of the first problems of each kind.
fn print_problems(output: &mut Output, problems: &[Problem], max: usize) -> Result<(), Failure> {
    for kind in ProblemKind::ALL {
        let of_kind = problems.iter().filter(|problem| problem.kind == kind);
        for problem in of_kind.clone().take(max) {
            output.line(sanitize(&problem.to_string()))?;
        }
        let more = of_kind.count().saturating_sub(max);
        if more > 0 {
            let name = kind.name();
            output.line(format_args!("{name}: … and {more} more: see --all, or -o json"))?;
        }
    }
    Ok(())
}

/// Whether an address may be that of a container: link-local addresses are not allocated.
fn is_allocatable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}
