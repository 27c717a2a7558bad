//! `mesos-overlay demo`: a whole cluster on this machine, and nothing of it left afterwards.
//!
//! It runs what the other subcommands run: the file store, the libprocess transport, the CNI
//! writer, the dataplane and its firewall. Each agent is on a host that is a network namespace,
//! with containers that then ping each other. Where there cannot be namespaces it is a master and
//! agents on loopback addresses, which have addresses to give and nothing to connect.

mod cluster;
mod containers;
mod hosts;
mod matrix;
mod picture;
mod progress;
mod report;
mod stage;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use clap::Args;

use self::cluster::{Cluster, Seat};
use self::containers::{Container, Maker};
use self::matrix::Ping;
use self::progress::Progress;
use super::Failure;
use super::host::{EndSignals, raise_descriptor_limit, runtime};
use super::output::{Form, Output};
use crate::config::{FirewallKind, MasterConfig, parse_master};
use crate::firewall::Backend;
use crate::protocol::State;

/// The documented example.
const NETWORK_FILE: &str = "docs/network.json";
const NETWORK: &str = include_str!("../../../docs/network.json");
/// As many agents as the network of the example has room for.
const AGENTS_MAX: i64 = 128;
/// On how many hosts there are containers: a larger matrix has no room in a terminal, and tells
/// nothing new.
const HOSTS_WITH_CONTAINERS: usize = 8;

/// See it work: hosts on this machine, containers on them, pings between them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay demo
  mesos-overlay demo --agents 10 --json

As root, or as anybody where user namespaces are permitted, each host is a network namespace of its
own, with a real agent; elsewhere the agents are on loopback addresses, and there are no containers.
All of it is in one process, and gone with it. This machine's own network, its files and its Docker
are not touched. Exit code 1 if a container does not reach another.")]
pub(super) struct DemoCommand {
    /// How many agents, each with a host. There are containers on the first eight
    #[arg(
        long,
        env = "MESOS_OVERLAY_AGENTS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=AGENTS_MAX)
    )]
    agents: u8,
    /// Put the agents on loopback addresses, even where there could be hosts
    #[arg(
        long,
        env = "MESOS_OVERLAY_LOOPBACK",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    loopback: bool,
    #[command(flatten)]
    form: Form,
    /// Find out whether there can be hosts, and do nothing else
    #[arg(long, hide = true)]
    probe: bool,
}

/// What there is to make a demo of.
struct Ground {
    /// Why there are no hosts.
    obstacle: Option<String>,
    has_firewall: bool,
}

/// What the demo came to.
struct Shown {
    /// As the master shows it.
    state: State,
    master: SocketAddrV4,
    cni: cluster::CniFiles,
    ground: Ground,
    maker: Maker,
    /// None without hosts.
    containers: Vec<Container>,
    pings: Vec<Ping>,
}

impl DemoCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.probe {
            return stage::probe();
        }
        raise_descriptor_limit();
        let (config, _) =
            parse_master(NETWORK_FILE, NETWORK).map_err(|error| Failure::new(error.to_string()))?;
        let obstacle =
            if self.loopback { Some("--loopback".to_owned()) } else { stage::obstacle() };
        let mut ground = Ground { obstacle, has_firewall: false };
        if ground.obstacle.is_none() {
            // Every thread that is started from here on comes along.
            stage::enter()?;
            ground.has_firewall = matches!(Backend::detect(), Ok(Backend::Nftables));
        }
        let runtime = runtime()?;
        let result = runtime.block_on(self.show(config, ground));
        // A ping that is still waited for is not worth it.
        runtime.shutdown_background();
        result
    }

    async fn show(&self, config: MasterConfig, ground: Ground) -> Result<(), Failure> {
        let mut signals = EndSignals::watch()?;
        let progress = Progress::start(&self.form);
        let folder = tempfile::Builder::new()
            .prefix("mesos-overlay-demo.")
            .tempdir()
            .map_err(|error| Failure::new(format!("make a temporary directory: {error}")))?;
        let mut cluster = None;
        let result = tokio::select! {
            result = self.play(config, ground, folder.path(), &mut cluster, &progress) => result,
            () = signals.received() => Err(Failure::new("ended before it was done")),
        };
        progress.end();
        if let Some(cluster) = cluster {
            cluster.stop().await;
        }
        folder
            .close()
            .map_err(|error| Failure::new(format!("remove the temporary directory: {error}")))?;
        let shown = result?;
        let mut output = Output::new();
        if self.form.json {
            report::print_json(&mut output, &shown)?;
        } else {
            report::print(&mut output, &shown)?;
        }
        output.finish()?;
        report::verdict(&shown.state, &shown.pings)
    }

    async fn play(
        &self,
        config: MasterConfig,
        ground: Ground,
        folder: &Path,
        place: &mut Option<Cluster>,
        progress: &Progress,
    ) -> Result<Shown, Failure> {
        let is_real = ground.obstacle.is_none();
        let listen = if is_real {
            hosts::build_underlay()?;
            hosts::MASTER
        } else {
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)
        };
        let firewall =
            if ground.has_firewall { FirewallKind::Nftables } else { FirewallKind::None };
        let cluster = place.insert(Cluster::start(config, listen, folder, firewall)?);
        progress.step(&format!("master at {}, its state in a file", cluster.address));
        for number in 1..=self.agents {
            let seat = if is_real { hosts::build(number)? } else { on_loopback(number) };
            cluster.add(seat).await?;
        }
        let state = cluster.settle(progress).await?;
        let maker = Maker::find();
        let mut containers: Vec<Container> = Vec::new();
        if is_real {
            for member in cluster.members.iter().take(HOSTS_WITH_CONTAINERS) {
                let first = containers.len() + 1;
                let made = containers::make(member, first, maker).await?;
                let told: Vec<_> = made.iter().map(|it| it.address.to_string()).collect();
                progress.step(&format!("containers on {}: {}", member.ip, told.join(", ")));
                containers.extend(made);
            }
        }
        let (containers, pings) = tokio::task::spawn_blocking(move || {
            let pings = matrix::ping_all(&containers);
            (containers, pings)
        })
        .await
        .map_err(|error| Failure::new(format!("ping: {error}")))?;
        let (master, cni) = (cluster.address, cluster.cni_files());
        Ok(Shown { state, master, cni, ground, maker, containers, pings })
    }
}

/// An agent without a host. The master has the first of these addresses.
fn on_loopback(number: u8) -> Seat {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + u32::from(number));
    Seat { address: SocketAddrV4::new(ip, 0), host: None }
}
