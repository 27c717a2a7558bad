//! Containers: network namespaces that are put on the network which an agent has written a CNI
//! configuration for, by the plugins that it names, as Mesos does it. Where these are not
//! installed, the same is made here: bridge, pair of devices, the same addresses.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::cluster::Member;
use super::hosts::UPLINK;
use super::stage::{Namespace, device};
use crate::addr::{DeviceName, InterfaceAddress, Mtu, Subnet};
use crate::cli::Failure;
use crate::cni::{PLUGIN_FOLDERS, PLUGINS};
use crate::dataplane::{Wiring, WiringError};
use crate::program::{Failure as ProgramFailure, run_command};

/// How long a plugin may take; it takes tens of milliseconds.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// The gateway is the first address of a subnet, and the first container has the second.
const FIRST: u128 = 2;

/// Who makes containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// The plugins in this folder.
    Plugins(&'static str),
    /// This program.
    Ourselves,
}

impl Maker {
    /// The plugins if they are there.
    pub(super) fn find() -> Self {
        let is_whole =
            |folder: &&&str| PLUGINS.iter().all(|it| Path::new(folder).join(it).exists());
        PLUGIN_FOLDERS.iter().find(is_whole).map_or(Self::Ourselves, |folder| Self::Plugins(folder))
    }

    /// In words.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Plugins(folder) => {
                format!("made by the CNI plugins bridge and host-local in {folder}")
            }
            Self::Ourselves => {
                format!("made without CNI plugins: there are none in {}", PLUGIN_FOLDERS.join(", "))
            }
        }
    }
}

/// A container.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) agent: Ipv4Addr,
    pub(super) overlay: String,
    pub(super) bridge: String,
    pub(super) gateway: Ipv4Addr,
    pub(super) address: Ipv4Addr,
    pub(super) mtu: u32,
    #[serde(skip)]
    pub(super) namespace: Arc<Namespace>,
}

/// The part of a CNI configuration that is needed to do what its plugins do.
#[derive(Debug, Deserialize)]
struct Configuration {
    name: String,
    #[serde(rename = "type")]
    plugin: String,
    bridge: String,
    mtu: u32,
    ipam: Ipam,
}

#[derive(Debug, Deserialize)]
struct Ipam {
    subnet: String,
}

/// What a plugin answers, in the form that Mesos reads.
#[derive(Debug, Deserialize)]
struct Answer {
    ip4: AnswerIp,
}

#[derive(Debug, Deserialize)]
struct AnswerIp {
    ip: String,
}

/// What a plugin answers that failed.
#[derive(Debug, Deserialize)]
struct Complaint {
    msg: String,
}

/// A container in each network of a host, the first with this number.
pub(super) async fn make(
    member: &Member,
    first: usize,
    maker: Maker,
) -> Result<Vec<Container>, Failure> {
    let ip = member.ip;
    let files = member.cni_files();
    let work = async move {
        let mut containers = Vec::new();
        for (name, content) in files {
            let number = first + containers.len();
            let made = make_one(format!("c{number}"), ip, &content, maker).await;
            let failed = |error| format!("container c{number} on {ip} by {name}: {error}");
            containers.push(made.map_err(failed)?);
        }
        Ok::<_, String>(containers)
    };
    // On the host's own thread, so that it is done in its network.
    match member.handle.spawn(work).await {
        Ok(made) => made.map_err(Failure::new),
        Err(error) => Err(Failure::new(format!("containers on {ip}: {error}"))),
    }
}

async fn make_one(
    name: String,
    agent: Ipv4Addr,
    content: &str,
    maker: Maker,
) -> Result<Container, String> {
    let configuration: Configuration =
        serde_json::from_str(content).map_err(|error| error.to_string())?;
    let subnet: Subnet =
        configuration.ipam.subnet.parse().map_err(|error| format!("its subnet: {error}"))?;
    let namespace = Namespace::new().map_err(|error| format!("make a namespace: {error}"))?;
    let address = match maker {
        Maker::Plugins(folder) => {
            add_by_plugin(Path::new(folder), &configuration.plugin, content, &name, &namespace)
                .await?
        }
        Maker::Ourselves => add_by_ourselves(&configuration, &subnet, &name, &namespace)?,
    };
    Ok(Container {
        name,
        agent,
        overlay: configuration.name,
        bridge: configuration.bridge,
        gateway: host_of(&subnet, 1)?,
        address,
        mtu: configuration.mtu,
        namespace: Arc::new(namespace),
    })
}

async fn add_by_plugin(
    folder: &Path,
    plugin: &str,
    content: &str,
    name: &str,
    namespace: &Namespace,
) -> Result<Ipv4Addr, String> {
    let program: PathBuf = folder.join(plugin);
    let mut command = Command::new(&program);
    command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", name)
        .env("CNI_NETNS", namespace.path())
        .env("CNI_IFNAME", UPLINK)
        .env("CNI_PATH", folder);
    let deadline = Instant::now() + PLUGIN_TIMEOUT;
    let named = |reason: String| format!("{}: {reason}", program.display());
    let finished = match run_command(command, content.as_bytes(), deadline).await {
        Ok(finished) => finished,
        Err(ProgramFailure::NotFound) => return Err(named("it is gone".to_owned())),
        Err(ProgramFailure::Start(error) | ProgramFailure::Lost(error)) => {
            return Err(named(error.to_string()));
        }
        Err(ProgramFailure::TimedOut) => {
            return Err(named(format!("it did not end within {PLUGIN_TIMEOUT:?}")));
        }
        Err(ProgramFailure::TooMuchOutput) => return Err(named("it writes on and on".to_owned())),
    };
    if !finished.success {
        let said = serde_json::from_slice(&finished.stdout).map(|Complaint { msg }| msg);
        return Err(named(said.unwrap_or_else(|_| finished.complaint(&[]))));
    }
    let answer: Answer =
        serde_json::from_slice(&finished.stdout).map_err(|error| named(error.to_string()))?;
    let ip: Option<InterfaceAddress> = answer.ip4.ip.parse().ok();
    match ip.map(|ip| ip.address()) {
        Some(IpAddr::V4(ip)) => Ok(ip),
        _ => Err(named(format!("it gave the address '{}'", answer.ip4.ip.escape_debug()))),
    }
}

/// What the plugins do for the first container of a network.
fn add_by_ourselves(
    configuration: &Configuration,
    subnet: &Subnet,
    name: &str,
    namespace: &Namespace,
) -> Result<Ipv4Addr, String> {
    let bridge: DeviceName =
        configuration.bridge.parse().map_err(|error| format!("its bridge: {error}"))?;
    let mtu = Mtu::new(configuration.mtu).map_err(|error| format!("its mtu: {error}"))?;
    let (gateway, address) = (host_of(subnet, 1)?, host_of(subnet, FIRST)?);
    let with_length = |ip: Ipv4Addr| {
        InterfaceAddress::within(subnet, ip.into()).ok_or_else(|| format!("{ip}: not in {subnet}"))
    };
    let (gateway_there, address_there) = (with_length(gateway)?, with_length(address)?);
    let port = device(&format!("veth-{name}"));
    let outside = || {
        let mut wiring = Wiring::open()?;
        wiring.add_bridge(&bridge)?;
        wiring.add_address(&bridge, &gateway_there)?;
        wiring.add_pair(&port, &device(UPLINK), namespace.as_fd())?;
        wiring.set_up(&port, Some(mtu))?;
        wiring.set_master(&port, &bridge)
    };
    outside().map_err(|error: WiringError| error.to_string())?;
    let inside = || {
        let mut wiring = Wiring::open()?;
        wiring.set_up(&device(UPLINK), Some(mtu))?;
        wiring.add_address(&device(UPLINK), &address_there)?;
        wiring.add_default_route(gateway)
    };
    let made = namespace.inside(inside).map_err(|error| error.to_string())?;
    made.map_err(|error: WiringError| error.to_string())?;
    Ok(address)
}

fn host_of(subnet: &Subnet, number: u128) -> Result<Ipv4Addr, String> {
    match subnet.address_at(number) {
        Some(IpAddr::V4(ip)) => Ok(ip),
        _ => Err(format!("its subnet {subnet} has no address number {number} of IPv4")),
    }
}
