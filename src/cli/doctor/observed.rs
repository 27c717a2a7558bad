//! What was seen of a host, as plain data: the findings are made of nothing else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::config::{AgentConfig, DataplaneKind};
use crate::dataplane;
use crate::docker::{Examined, Reason};
use crate::protocol::{AgentInfo, State};
use crate::tunnel::{Collision, Desired, HostAddress};

/// All that was seen.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    /// Whether we may look everywhere, and try things out.
    pub(super) is_root: bool,
    /// How the agent is configured, or would be by default.
    pub(super) config: AgentConfig,
    /// Release of the kernel, as `uname -r` has it.
    pub(super) kernel: String,
    /// What came of trying things out where it harms nobody, or why that cannot be done.
    pub(super) trials: Result<Trials, String>,
    /// Numbers below `/proc/sys/net` that are there, by their names.
    pub(super) settings: BTreeMap<String, u32>,
    /// Processes that hold a UDP port of ours.
    pub(super) holders: Vec<Holder>,
    /// What manages networks and firewalls on this host.
    pub(super) managers: Managers,
    /// The rules of firewalls.
    pub(super) rules: Rules,
    /// The CNI plugins.
    pub(super) plugins: Plugins,
    /// What the Docker engine says, or why it says nothing; `None`: it is not wanted.
    pub(super) docker: Option<Result<Examined, Reason>>,
    /// Whether the devices calculate checksums by themselves, as far as ethtool tells.
    pub(super) offloads: BTreeMap<String, bool>,
    /// The overlays in the kernel.
    pub(super) tunnel: Tunnel,
    /// The local agent.
    pub(super) agent: AgentSeen,
    /// The master; `None`: nobody named one.
    pub(super) master: Option<MasterSeen>,
}

/// What came of trying the real thing in a network namespace that is thrown away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trials {
    /// A VXLAN device with everything on it, or why not.
    pub(super) vxlan: Result<(), String>,
    /// The same with IPv6.
    pub(super) vxlan6: Result<(), String>,
    /// The rules of the firewall and by what, or why not.
    pub(super) firewall: Result<&'static str, String>,
}

/// A process with a socket on a UDP port that VXLAN needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) port: u16,
    /// Number and name, where we may know them.
    pub(super) process: Option<(u32, String)>,
}

/// What manages networks and firewalls. `None`: it does not run, or is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Managers {
    /// Programs that run and would take our devices, and whether they were told to leave them.
    pub(super) networks: Vec<(&'static str, &'static str, bool)>,
    /// Whether firewalld takes VXLAN packets.
    pub(super) firewalld: Option<bool>,
    /// Whether ufw takes VXLAN packets.
    pub(super) ufw: Option<bool>,
}

/// How rules are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// `nft -a list ruleset`
    pub(super) nft: Option<String>,
    /// `iptables -S`
    pub(super) iptables: Option<String>,
    /// `ip6tables -S`
    pub(super) ip6tables: Option<String>,
}

/// Which CNI plugins there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plugins {
    /// Where they were looked for.
    pub(super) searched: Vec<PathBuf>,
    /// Those that are needed and were not found.
    pub(super) missing: Vec<&'static str>,
}

/// The overlays in the kernel, and what is wanted of it as far as that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Tunnel {
    /// What is wanted: by the assignments, or what is there, or what would be there by default.
    pub(super) desired: Desired,
    /// How much of that is known.
    pub(super) basis: Basis,
    /// What there is.
    pub(super) seen: dataplane::Observed,
    /// What is wanted and not there, and what stands in its way.
    pub(super) plan: dataplane::Plan,
    /// Where the host has something already.
    pub(super) collisions: Vec<Collision>,
    /// The host's addresses.
    pub(super) addresses: Vec<HostAddress>,
    /// Peers to whose address no route leads, and the system's word for it.
    pub(super) unroutable: Vec<(IpAddr, String)>,
}

/// On what the wanted state rests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Basis {
    /// On nothing but defaults: nothing is assigned, as far as we know, and nothing is there.
    #[default]
    Defaults,
    /// On the network of the master: what this host will get is not known.
    Network,
    /// On what there is in the kernel.
    Kernel,
    /// On the assignments.
    Assignments,
}

impl Tunnel {
    /// Whether overlays are programmed on this host.
    pub(super) fn is_programmed(&self) -> bool {
        !self.seen.state.devices.is_empty()
    }

    /// The UDP ports of the tunnels.
    pub(super) fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.desired.locals.iter().map(|local| local.port).collect();
        ports.dedup();
        ports
    }

    /// The names of our devices, there or not.
    pub(super) fn devices(&self) -> impl Iterator<Item = String> {
        self.desired.locals.iter().map(|local| local.device.to_string())
    }

    /// The device of the host with this address.
    pub(super) fn device_with(&self, address: IpAddr) -> Option<&str> {
        let own = self.addresses.iter().find(|own| own.address.address() == address);
        own.map(|own| own.device.as_str())
    }
}

/// The local agent.
#[derive(Debug, Clone)]
pub(super) struct AgentSeen {
    /// Where it was asked.
    pub(super) address: String,
    /// Its share and its health, or why it says nothing.
    pub(super) answer: Result<AgentAnswer, NoAgent>,
}

/// Why no agent says anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoAgent {
    /// Nobody answers, and why not.
    Silent(String),
    /// Somebody answers in HTTP, and not as an overlay agent does.
    Stranger(String),
}

/// What an agent says.
#[derive(Debug, Clone)]
pub(super) struct AgentAnswer {
    /// What it has.
    pub(super) info: AgentInfo,
    /// Its condition and what needs an operator; `None` if it shows none, as the C++ modules.
    pub(super) health: Option<(String, Vec<String>)>,
    /// Whether it leaves the tunnels to somebody else, as the C++ modules do.
    pub(super) is_external: bool,
}

/// The master.
#[derive(Debug, Clone)]
pub(super) struct MasterSeen {
    /// Where it was asked.
    pub(super) address: String,
    /// The whole cluster, or why it is not known.
    pub(super) answer: Result<State, String>,
}

impl Observed {
    /// A number below `/proc/sys/net`.
    pub(super) fn setting(&self, name: &str) -> Option<u32> {
        self.settings.get(name).copied()
    }

    /// Whether IPv6 is needed in the overlays.
    pub(super) fn wants_ipv6(&self) -> bool {
        let is_v6 = |subnet: &crate::addr::Subnet| subnet.first().is_ipv6();
        self.tunnel.desired.locals.iter().any(|local| local.ip6.is_some())
            || self.tunnel.desired.spaces.iter().any(|space| space.whole.iter().any(is_v6))
    }

    /// Whether somebody else makes the tunnels, in a way of its own.
    pub(super) fn is_external(&self) -> bool {
        self.config.dataplane.kind == DataplaneKind::External
            || self.agent.answer.as_ref().is_ok_and(|answer| answer.is_external)
    }

    /// What the agent sees to by itself as soon as it runs is not wrong before.
    pub(super) fn is_before(&self) -> bool {
        !self.tunnel.is_programmed() && self.agent.answer.is_err()
    }
}
