//! Containers: network namespaces that are attached to the network of an agent's CNI configuration.
//! The CNI plugins that the configuration names attach them, as in Mesos. Where the plugins are not
//! installed, the demo creates the bridge, the pair of devices and the same addresses itself.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use overlay_linux::cni::{PLUGIN_FOLDERS, PLUGINS};
use overlay_linux::dataplane::{LinkBuilder, LinkBuilderError};
use overlay_linux::subprocess::{SubprocessError, run_command};
use overlay_types::addr::{DeviceName, InterfaceAddress, Mtu, Subnet};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::cluster::RunningAgent;
use super::hosts::UPLINK;
use super::namespace::{Namespace, device};
use crate::cli::Failure;

/// Timeout of a plugin. A plugin usually takes tens of milliseconds.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Number of the first container's address in its subnet. The gateway has number 1.
const FIRST_CONTAINER: u128 = 2;

/// How containers are attached to their network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetworkSetup {
    /// By the CNI plugins in this folder.
    CniPlugins(&'static str),
    /// By the demo itself.
    BuiltIn,
}

impl NetworkSetup {
    /// Selects the CNI plugins if a folder has all of them.
    pub(super) fn detect() -> Self {
        let has_all =
            |folder: &&&str| PLUGINS.iter().all(|name| Path::new(folder).join(name).exists());
        PLUGIN_FOLDERS.iter().find(has_all).map_or(Self::BuiltIn, |folder| Self::CniPlugins(folder))
    }

    /// Describes the setup for the report.
    pub(super) fn describe(self) -> String {
        match self {
            Self::CniPlugins(folder) => {
                format!("attached by the CNI plugins bridge and host-local in {folder}")
            }
            Self::BuiltIn => {
                format!(
                    "attached without CNI plugins: there are none in {}",
                    PLUGIN_FOLDERS.join(", ")
                )
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

/// The part of a CNI configuration that is needed without its plugins.
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

/// The result of a plugin, in the form that Mesos reads.
#[derive(Debug, Deserialize)]
struct PluginResult {
    ip4: PluginAddress,
}

#[derive(Debug, Deserialize)]
struct PluginAddress {
    ip: String,
}

/// The error of a failed plugin.
#[derive(Debug, Deserialize)]
struct PluginError {
    msg: String,
}

/// Creates a container in each network of the agent's host. Their numbers start at `first`.
pub(super) async fn create(
    agent: &RunningAgent,
    first: usize,
    setup: NetworkSetup,
) -> Result<Vec<Container>, Failure> {
    let ip = agent.ip;
    let files = agent.cni_files();
    let work = async move {
        let mut containers = Vec::new();
        for (name, content) in files {
            let number = first + containers.len();
            let container = create_container(format!("c{number}"), ip, &content, setup).await;
            let failed = |error| format!("container c{number} on {ip} by {name}: {error}");
            containers.push(container.map_err(failed)?);
        }
        Ok::<_, String>(containers)
    };
    // The thread of the agent is in the network namespace of its host.
    match agent.handle.spawn(work).await {
        Ok(containers) => containers.map_err(Failure::new),
        Err(error) => Err(Failure::new(format!("containers on {ip}: {error}"))),
    }
}

async fn create_container(
    name: String,
    agent: Ipv4Addr,
    content: &str,
    setup: NetworkSetup,
) -> Result<Container, String> {
    let configuration: Configuration =
        serde_json::from_str(content).map_err(|error| error.to_string())?;
    let subnet: Subnet =
        configuration.ipam.subnet.parse().map_err(|error| format!("its subnet: {error}"))?;
    let namespace = Namespace::new().map_err(|error| format!("create a namespace: {error}"))?;
    let address = match setup {
        NetworkSetup::CniPlugins(folder) => {
            run_plugin(Path::new(folder), &configuration.plugin, content, &name, &namespace).await?
        }
        NetworkSetup::BuiltIn => {
            attach_without_plugins(&configuration, &subnet, &name, &namespace)?
        }
    };
    Ok(Container {
        name,
        agent,
        overlay: configuration.name,
        bridge: configuration.bridge,
        gateway: host_address(&subnet, 1)?,
        address,
        mtu: configuration.mtu,
        namespace: Arc::new(namespace),
    })
}

async fn run_plugin(
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
    let error = |reason: String| format!("{}: {reason}", program.display());
    let finished = match run_command(command, content.as_bytes(), deadline).await {
        Ok(finished) => finished,
        Err(SubprocessError::NotFound) => {
            return Err(error("the plugin no longer exists".to_owned()));
        }
        Err(SubprocessError::Start(reason) | SubprocessError::Io(reason)) => {
            return Err(error(reason.to_string()));
        }
        Err(SubprocessError::TimedOut) => {
            return Err(error(format!("the plugin did not exit within {PLUGIN_TIMEOUT:?}")));
        }
        Err(SubprocessError::TooMuchOutput) => {
            return Err(error("the plugin writes too much output".to_owned()));
        }
    };
    if !finished.success {
        let reason = serde_json::from_slice(&finished.stdout).map(|PluginError { msg }| msg);
        return Err(error(reason.unwrap_or_else(|_| finished.error_line(&[]))));
    }
    let result: PluginResult =
        serde_json::from_slice(&finished.stdout).map_err(|reason| error(reason.to_string()))?;
    let ip: Option<InterfaceAddress> = result.ip4.ip.parse().ok();
    match ip.map(|ip| ip.address()) {
        Some(IpAddr::V4(ip)) => Ok(ip),
        _ => Err(error(format!("unexpected address '{}'", result.ip4.ip.escape_debug()))),
    }
}

/// Does the work of the plugins for the first container of a network.
fn attach_without_plugins(
    configuration: &Configuration,
    subnet: &Subnet,
    name: &str,
    namespace: &Namespace,
) -> Result<Ipv4Addr, String> {
    let bridge: DeviceName =
        configuration.bridge.parse().map_err(|error| format!("its bridge: {error}"))?;
    let mtu = Mtu::new(configuration.mtu).map_err(|error| format!("its mtu: {error}"))?;
    let (gateway, address) = (host_address(subnet, 1)?, host_address(subnet, FIRST_CONTAINER)?);
    let with_prefix = |ip: Ipv4Addr| {
        InterfaceAddress::within(subnet, ip.into()).ok_or_else(|| format!("{ip}: not in {subnet}"))
    };
    let (gateway_interface, container_interface) = (with_prefix(gateway)?, with_prefix(address)?);
    let port = device(&format!("veth-{name}"));
    let attach_to_bridge = || {
        let mut links = LinkBuilder::open()?;
        links.add_bridge(&bridge)?;
        links.add_address(&bridge, &gateway_interface)?;
        links.add_veth_pair(&port, &device(UPLINK), namespace.as_fd())?;
        links.set_up(&port, Some(mtu))?;
        links.set_master(&port, &bridge)
    };
    attach_to_bridge().map_err(|error: LinkBuilderError| error.to_string())?;
    let configure_container = || {
        let mut links = LinkBuilder::open()?;
        links.set_up(&device(UPLINK), Some(mtu))?;
        links.add_address(&device(UPLINK), &container_interface)?;
        links.add_default_route(gateway)
    };
    let configured = namespace.run(configure_container).map_err(|error| error.to_string())?;
    configured.map_err(|error: LinkBuilderError| error.to_string())?;
    Ok(address)
}

fn host_address(subnet: &Subnet, number: u128) -> Result<Ipv4Addr, String> {
    match subnet.address_at(number) {
        Some(IpAddr::V4(ip)) => Ok(ip),
        _ => Err(format!("its subnet {subnet} has no address number {number} of IPv4")),
    }
}
