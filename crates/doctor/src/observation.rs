//! The observed state of a host as plain data. All findings except those of the probe derive from
//! this data alone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use overlay_config::{AgentConfig, DataplaneKind};
use overlay_linux::dataplane::{self, Operation};
use overlay_linux::docker::{DockerFailure, EngineReport};
use overlay_linux::firewall::foreign::{DevicesByAddress, Listing};
use overlay_types::protocol::{AgentInfo, State};
use overlay_types::tunnel::{Collision, Desired, FaultScope, HostAddress, SubnetOwner};

/// The observed state of a host.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Whether the doctor runs as root. Without root, some checks are skipped.
    pub is_root: bool,
    /// The configuration of the agent, or the default configuration.
    pub config: AgentConfig,
    /// The source of the configuration.
    pub configuration: Configuration,
    /// Release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Features that the kernel supports, or why they were not tested.
    pub kernel_support: Result<KernelSupport, String>,
    /// Numeric settings below `/proc/sys/net`, by their path. A setting that does not exist is
    /// absent.
    pub settings: BTreeMap<String, u32>,
    /// Processes with a socket on a UDP port of the tunnels.
    pub port_owners: Vec<PortOwner>,
    /// Programs that manage networks and firewalls on this host.
    pub managers: NetworkManagement,
    /// The rules of the host's firewalls.
    pub rules: Listing,
    /// The CNI plugins.
    pub plugins: CniPlugins,
    /// The state of the Docker engine, or why it is unknown; `None` if the agent does not use
    /// Docker.
    pub docker: Option<Result<EngineReport, DockerFailure>>,
    /// Whether each device leaves checksums to the hardware. A device that ethtool cannot read is
    /// absent.
    pub offloads: BTreeMap<String, bool>,
    /// The overlays in the kernel.
    pub tunnel: TunnelState,
    /// The local agent.
    pub agent: AgentObservation,
    /// The master; `None` if the operator named no master.
    pub master: Option<MasterObservation>,
}

/// The source of the agent's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The found configuration; `None` if the defaults are used.
    pub source: Option<ConfigSource>,
    /// Agents that run on this host.
    pub agents: Vec<AgentProcess>,
    /// Why a configuration was not found or not read.
    pub problems: Vec<String>,
}

/// Where the configuration was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// The operator named the file.
    Flag(String),
    /// A running agent.
    Agent {
        /// The process of the agent.
        pid: u32,
        /// The file with the configuration; `None` if the command line contains it all.
        file: Option<String>,
        /// Whether the file was changed after the start of the agent.
        is_edited: bool,
    },
    /// A file at a default path.
    DefaultPath(String),
}

/// A running agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentProcess {
    /// Process ID.
    pub pid: u32,
    /// Name of the program.
    pub name: String,
    /// Whether the agent has the network namespace of the doctor.
    pub is_here: bool,
    /// Why the doctor does not trust the process; `None` if it does. Every user can start a process
    /// that looks like an agent.
    pub distrust: Option<String>,
}

impl AgentProcess {
    /// Returns whether the process is an agent of this host: in the network namespace of the
    /// doctor, and trusted.
    pub const fn is_agent_here(&self) -> bool {
        self.is_here && self.distrust.is_none()
    }
}

/// Features that the kernel supports, tested in a temporary network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSupport {
    /// Whether a VXLAN device with its entries can be created.
    pub vxlan: Result<(), String>,
    /// Whether a VXLAN device with IPv6 can be created.
    pub vxlan6: Result<(), String>,
    /// The firewall backend that creates the rules.
    pub firewall: Result<&'static str, String>,
}

/// A process with a socket on a UDP port that VXLAN needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOwner {
    /// The UDP port.
    pub port: u16,
    /// Process ID.
    pub pid: u32,
    /// Name of the process.
    pub name: String,
}

/// Programs that manage networks and firewalls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkManagement {
    /// Network managers that run on this host.
    pub networks: Vec<NetworkManager>,
    /// Whether firewalld accepts VXLAN packets; `None` if it does not run.
    pub firewalld: Option<bool>,
    /// Whether ufw accepts VXLAN packets; `None` if it is not enabled.
    pub ufw: Option<bool>,
}

/// A network manager that runs and would change the overlays' devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkManager {
    /// Its name.
    pub name: &'static str,
    /// The file with which the agent excludes the overlays' devices from the network manager.
    pub exclusion_file: &'static str,
    /// Whether that file exists.
    pub has_exclusion: bool,
}

/// The installed CNI plugins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniPlugins {
    /// The searched directories.
    pub searched: Vec<PathBuf>,
    /// Needed plugins that none of these directories contains.
    pub missing: Vec<&'static str>,
}

/// The overlays in the kernel, and their desired state as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct TunnelState {
    /// The desired state.
    pub desired: Desired,
    /// The source of the desired state.
    pub source: DesiredSource,
    /// The observed state.
    pub observed: dataplane::Observed,
    /// The changes from the observed to the desired state, and the problems.
    pub plan: dataplane::Plan,
    /// Objects of other programs that may drop packets.
    pub possible_causes: Vec<dataplane::Interference>,
    /// Networks of the host that overlap the overlays.
    pub collisions: Vec<Collision>,
    /// The host's addresses.
    pub addresses: Vec<HostAddress>,
    /// The device of each underlay address that VXLAN packets certainly pass.
    pub uplinks: DevicesByAddress,
    /// Peers whose address has no route, with the error of the kernel.
    pub unroutable: Vec<(IpAddr, String)>,
}

/// The source of the desired state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DesiredSource {
    /// Defaults: no assignment is known, and the kernel has no overlay.
    #[default]
    Defaults,
    /// The network of the master. The assignment of this host is unknown.
    MasterNetwork,
    /// The observed state of the kernel.
    Kernel,
    /// The assignments of this host.
    Assignments,
}

impl TunnelState {
    /// Returns whether overlays are programmed on this host.
    pub fn is_programmed(&self) -> bool {
        !self.observed.state.devices.is_empty()
    }

    /// Returns whether an operation belongs to an overlay that the agent refuses because of a
    /// collision with the host. The collision is the cause, and the operation would cut the host
    /// off.
    pub fn is_refused(&self, operation: &Operation) -> bool {
        let refused = self.collisions.iter().filter(|collision| !collision.is_programmed);
        let mut owners = refused.map(|collision| (&collision.owner, &collision.subnet));
        owners.any(|(owner, subnet)| match (owner, operation.scope()) {
            // The agent refuses the overlay as a whole, with its subnets of both families.
            (SubnetOwner::Overlay(overlay), FaultScope::Subnet(route)) => {
                let space = self.desired.space(overlay);
                let mut whole = space.iter().flat_map(|space| &space.whole);
                subnet.covers(&route) || whole.any(|subnet| subnet.covers(&route))
            }
            (SubnetOwner::Vteps(device), _) => operation.device() == Some(device),
            (SubnetOwner::Overlay(_), _) => false,
        })
    }

    /// Returns the UDP ports of the tunnels.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> =
            self.desired.vxlan_devices.iter().map(|local| local.port).collect();
        ports.dedup();
        ports
    }

    /// Returns the names of the desired devices.
    pub fn devices(&self) -> impl Iterator<Item = String> {
        self.desired.vxlan_devices.iter().map(|local| local.device.to_string())
    }

    /// Returns the device of the host that has this address.
    pub fn device_with(&self, address: IpAddr) -> Option<&str> {
        let own = self.addresses.iter().find(|own| own.address.address() == address);
        own.map(|own| own.device.as_str())
    }
}

/// The local agent.
#[derive(Debug, Clone)]
pub struct AgentObservation {
    /// The queried address.
    pub address: String,
    /// The report of the agent, or why there is none.
    pub answer: Result<AgentReport, AgentQueryError>,
}

/// Why there is no report of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentQueryError {
    /// The query got no response, with the reason.
    NoResponse(String),
    /// The HTTP response does not come from an overlay agent.
    NotAnAgent(String),
    /// The agent requires a credential, or another one. Contains the HTTP status.
    NoPermission(String),
    /// The server requires a credential and did not get it: neither the operator nor a trusted
    /// agent named the address. Contains the HTTP status.
    CredentialWithheld(String),
}

/// The report of an agent about itself.
#[derive(Debug, Clone)]
pub struct AgentReport {
    /// The assignments of the agent.
    pub info: AgentInfo,
    /// Status and problems; `None` if the agent reports no health, like the C++ module.
    pub health: Option<(String, Vec<ReportedProblem>)>,
    /// Whether another program manages the tunnels, as with the C++ module.
    pub is_external: bool,
    /// Address of the agent's master; `None` if it is unknown.
    pub master: Option<String>,
    /// How the agent authenticates its master, if it has a credential.
    pub authentication: Option<ReportedAuthentication>,
    /// The paths to its peers; `None` if direct routing is off.
    pub paths: Option<PeerPaths>,
}

/// How an agent authenticates its master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedAuthentication {
    /// The principal of the agent.
    pub principal: String,
    /// Whether the master has authenticated.
    pub is_master_authenticated: bool,
}

/// The paths of packets to the peers of an agent with direct routing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerPaths {
    /// Why the host cannot route directly.
    pub problem: Option<String>,
    /// The peers that get packets without encapsulation.
    pub direct: Vec<String>,
    /// The peers that get packets through the tunnel, with the reason.
    pub vxlan: Vec<(String, String)>,
}

/// A problem that an agent reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportedProblem {
    /// The problem, one sentence.
    pub text: String,
    /// The parts of the agent with the problem. Empty if the agent does not name them.
    pub parts: Vec<String>,
    /// The overlay, if the problem concerns one overlay.
    pub overlay: Option<String>,
}

/// The master.
#[derive(Debug, Clone)]
pub struct MasterObservation {
    /// The queried address.
    pub address: String,
    /// The state of the cluster, or why it is unknown.
    pub answer: Result<State, String>,
}

impl Observation {
    /// Returns a numeric setting below `/proc/sys/net`.
    pub fn setting(&self, name: &str) -> Option<u32> {
        self.settings.get(name).copied()
    }

    /// Returns whether the overlays need IPv6.
    pub fn needs_ipv6(&self) -> bool {
        let is_v6 = |subnet: &overlay_types::addr::Subnet| subnet.first().is_ipv6();
        self.tunnel.desired.vxlan_devices.iter().any(|local| local.ip6.is_some())
            || self.tunnel.desired.spaces.iter().any(|space| space.whole.iter().any(is_v6))
    }

    /// Returns the address of the master, as the operator or the agent names it.
    pub fn master_address(&self) -> Option<String> {
        let named = self.master.as_ref().map(|master| master.address.clone());
        let report = self.agent.answer.as_ref().ok();
        named.or_else(|| report.and_then(|report| report.master.clone()))
    }

    /// Returns whether the configuration of the agent is known.
    pub const fn is_config_known(&self) -> bool {
        self.configuration.source.is_some()
    }

    /// Returns whether the agent reports a network of Docker.
    pub fn uses_docker_bridges(&self) -> bool {
        let report = self.agent.answer.as_ref().ok();
        report.is_some_and(|report| {
            report.info.overlays.iter().any(|overlay| overlay.docker_bridge.is_some())
        })
    }

    /// Returns whether the agent reports a network of the MesosContainerizer.
    pub fn uses_mesos_bridges(&self) -> bool {
        let report = self.agent.answer.as_ref().ok();
        report.is_some_and(|report| {
            report.info.overlays.iter().any(|overlay| overlay.mesos_bridge.is_some())
        })
    }

    /// Returns whether another program manages the tunnels.
    pub fn is_external(&self) -> bool {
        self.config.dataplane.kind == DataplaneKind::External
            || self.agent.answer.as_ref().is_ok_and(|report| report.is_external)
    }

    /// Returns whether no agent has run on this host yet. Settings that the agent will configure
    /// are then not reported as problems.
    pub fn is_before_first_run(&self) -> bool {
        !self.tunnel.is_programmed() && self.agent.answer.is_err()
    }
}
