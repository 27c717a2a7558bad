//! `mesos-overlay demo`: a temporary cluster on this machine.
//!
//! The demo runs the code of the other subcommands: the file store, the libprocess transport, the
//! CNI writer, the dataplane and its firewall. Each agent is on a host that is a network namespace,
//! with containers that ping each other. Where namespaces are forbidden, the demo runs a master and
//! agents on loopback addresses, without tunnels and containers.

mod cluster;
mod containers;
mod diagram;
mod hints;
mod hosts;
mod matrix;
mod namespace;
mod progress;
mod report;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use clap::Args;
use overlay_config::{FirewallKind, MasterConfig, parse_master};
use overlay_linux::firewall::Backend;
use overlay_types::protocol::State;

use self::cluster::{AgentLocation, Cluster};
use self::containers::{Container, NetworkSetup};
use self::matrix::Ping;
use self::progress::Progress;
use super::Failure;
use super::output::OutputFormat;
use super::process::{ShutdownSignals, raise_descriptor_limit, runtime};

/// The network of the demo: the documented example.
const NETWORK_FILE: &str = "docs/network.json";
const NETWORK: &str = include_str!("../../../docs/network.json");
/// Most agents: the capacity of the example network.
const AGENTS_MAX: i64 = 128;
/// Most hosts with containers: a larger matrix does not fit into 80 columns.
const HOSTS_WITH_CONTAINERS: usize = 6;

/// Run a temporary cluster on this machine: hosts, containers, and pings between them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay demo
  mesos-overlay demo --agents 10 --json

As root, or where user namespaces are permitted, each host is a network namespace with a real
agent. Elsewhere the agents are on loopback addresses, without containers. The demo is one
process, and leaves nothing when it ends. It does not change the network, the files or the Docker
of this machine. Exit code 1 if a container does not reach another container.")]
pub(super) struct DemoCommand {
    /// The number of agents. Each has a host, and the first six hosts have containers
    #[arg(
        long,
        env = "MESOS_OVERLAY_AGENTS",
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=AGENTS_MAX)
    )]
    agents: u8,
    /// Run the agents on loopback addresses, even where hosts are possible
    #[arg(
        long,
        env = "MESOS_OVERLAY_LOOPBACK",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    loopback: bool,
    #[command(flatten)]
    format: OutputFormat,
    /// Test whether hosts are possible, and do nothing else
    #[arg(long, hide = true)]
    probe: bool,
}

/// What the demo can use on this machine.
struct Environment {
    /// Why hosts are not possible; `None` if they are.
    obstacle: Option<String>,
    has_firewall: bool,
    /// The commands to try next. They name this program as the shell of the user finds it.
    next_steps: String,
}

/// The result of the demo.
struct DemoResult {
    /// The state that the master shows.
    state: State,
    master: SocketAddrV4,
    cni: cluster::CniFiles,
    environment: Environment,
    network_setup: NetworkSetup,
    /// Empty without hosts.
    containers: Vec<Container>,
    pings: Vec<Ping>,
}

impl DemoCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.probe {
            return namespace::probe();
        }
        raise_descriptor_limit();
        let (config, _) =
            parse_master(NETWORK_FILE, NETWORK).map_err(|error| Failure::new(error.to_string()))?;
        let obstacle =
            if self.loopback { Some("--loopback".to_owned()) } else { namespace::obstacle() };
        // In the mount namespace of the hosts, a program in a chroot has another path.
        let next_steps = hints::next_steps();
        let mut environment = Environment { obstacle, has_firewall: false, next_steps };
        if environment.obstacle.is_none() {
            // Threads inherit the namespaces, so this precedes the start of the runtime.
            namespace::enter()?;
            environment.has_firewall = matches!(Backend::detect(), Ok(Backend::Nftables));
        }
        let runtime = runtime()?;
        let result = runtime.block_on(self.run_and_report(config, environment));
        // Do not wait for pings that are still running after a signal.
        runtime.shutdown_background();
        result
    }

    async fn run_and_report(
        &self,
        config: MasterConfig,
        environment: Environment,
    ) -> Result<(), Failure> {
        let mut signals = ShutdownSignals::watch()?;
        let progress = Progress::start(&self.format);
        let folder = tempfile::Builder::new()
            .prefix("mesos-overlay-demo.")
            .tempdir()
            .map_err(|error| Failure::new(format!("create a temporary directory: {error}")))?;
        let mut cluster = None;
        let run = self.run_cluster(config, environment, folder.path(), &mut cluster, &progress);
        let result = tokio::select! {
            result = run => result,
            () = signals.received() => {
                Err(Failure::new("stopped by a signal before the demo was complete"))
            }
        };
        progress.end();
        if let Some(cluster) = cluster {
            cluster.stop().await;
        }
        folder
            .close()
            .map_err(|error| Failure::new(format!("remove the temporary directory: {error}")))?;
        let result = result?;
        let json = report::json(&result)?;
        self.format.print(&json, |output| report::print(output, &result))?;
        report::require_success(&result.state, &result.pings)
    }

    /// Runs the cluster and the pings. The cluster is stored in `slot`, so that the caller can stop
    /// it even if this future is dropped.
    async fn run_cluster(
        &self,
        config: MasterConfig,
        environment: Environment,
        folder: &Path,
        slot: &mut Option<Cluster>,
        progress: &Progress,
    ) -> Result<DemoResult, Failure> {
        let has_hosts = environment.obstacle.is_none();
        let listen = if has_hosts {
            hosts::build_underlay()?;
            hosts::MASTER
        } else {
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)
        };
        let firewall =
            if environment.has_firewall { FirewallKind::Nftables } else { FirewallKind::None };
        let cluster = slot.insert(Cluster::start(config, listen, folder, firewall)?);
        progress.step(&format!("master at {}, its state in a file", cluster.address));
        for number in 1..=self.agents {
            let location =
                if has_hosts { hosts::build(number)? } else { loopback_location(number) };
            cluster.add_agent(location).await?;
        }
        let state = cluster.wait_until_ready(progress).await?;
        let network_setup = NetworkSetup::detect();
        let mut containers: Vec<Container> = Vec::new();
        if has_hosts {
            for agent in cluster.agents.iter().take(HOSTS_WITH_CONTAINERS) {
                let first = containers.len() + 1;
                let created = containers::create(agent, first, network_setup).await?;
                let addresses: Vec<_> =
                    created.iter().map(|container| container.address.to_string()).collect();
                progress.step(&format!("containers on {}: {}", agent.ip, addresses.join(", ")));
                containers.extend(created);
            }
        }
        let (containers, pings) = tokio::task::spawn_blocking(move || {
            let pings = matrix::ping_all(&containers);
            (containers, pings)
        })
        .await
        .map_err(|error| Failure::new(format!("ping: {error}")))?;
        let (master, cni) = (cluster.address, cluster.cni_files());
        Ok(DemoResult { state, master, cni, environment, network_setup, containers, pings })
    }
}

/// Returns the location of an agent without a host. The master has the first loopback address.
fn loopback_location(number: u8) -> AgentLocation {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + u32::from(number));
    AgentLocation { address: SocketAddrV4::new(ip, 0), host: None }
}
