//! The addresses in use, joined from all sources. The free addresses are only counted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::address_usage::container_capacity;
use serde::{Serialize, Serializer};

use super::host::{Halves, Observation};

/// Which containerizer the addresses belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Half {
    Mesos,
    Docker,
}

impl Half {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Mesos => "mesos",
            Self::Docker => "docker",
        }
    }
}

/// What shows that an address is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// A lease of host-local.
    Lease,
    /// Docker.
    Docker,
    /// A port of a container.
    Kernel,
    /// A neighbor at the bridge that has answered within the last seconds.
    Neighbor,
    /// The lease of the agent's own probes.
    Probe,
}

impl Source {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Docker => "docker",
            Self::Kernel => "kernel",
            Self::Neighbor => "neighbor",
            Self::Probe => "probe",
        }
    }
}

/// An address in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct UsedAddress {
    pub(super) address: IpAddr,
    #[serde(serialize_with = "as_text")]
    pub(super) overlay: OverlayName,
    /// `None` if the address is outside both halves.
    pub(super) half: Option<Half>,
    /// The ID of the container.
    pub(super) container: Option<String>,
    /// The name of a Docker container.
    pub(super) name: Option<String>,
    /// The device in the container.
    pub(super) interface: Option<String>,
    /// The device of the host that leads to the container.
    pub(super) port: Option<String>,
    pub(super) sources: Vec<Source>,
}

/// The number of addresses of one half of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct HalfUsage {
    #[serde(serialize_with = "as_text")]
    pub(super) overlay: OverlayName,
    pub(super) half: Half,
    #[serde(serialize_with = "as_text")]
    pub(super) subnet: Subnet,
    pub(super) used: u64,
    pub(super) free: u64,
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

impl UsedAddress {
    fn new(address: IpAddr, overlay: &OverlayName, halves: Option<&Halves>) -> Self {
        Self {
            address,
            overlay: overlay.clone(),
            half: halves.and_then(|halves| half_of(halves, address)),
            container: None,
            name: None,
            interface: None,
            port: None,
            sources: Vec::new(),
        }
    }

    /// Returns the container as operators know it: the name in Docker, and otherwise the ID.
    pub(super) fn container_label(&self) -> Option<&str> {
        self.name.as_deref().or(self.container.as_deref())
    }

    /// Returns the device in the container and the port of the host: `eth0@veth1`.
    pub(super) fn interface_label(&self) -> String {
        match (&self.interface, &self.port) {
            (Some(interface), Some(port)) => format!("{interface}@{port}"),
            (Some(name), None) | (None, Some(name)) => name.clone(),
            (None, None) => String::new(),
        }
    }

    pub(super) fn has(&self, source: Source) -> bool {
        self.sources.contains(&source)
    }
}

fn half_of(halves: &Halves, address: IpAddr) -> Option<Half> {
    let is_in = |subnets: &[Subnet]| subnets.iter().any(|subnet| subnet.contains(address));
    if is_in(&halves.mesos) {
        Some(Half::Mesos)
    } else {
        is_in(&halves.docker).then_some(Half::Docker)
    }
}

/// The addresses in use by overlay and address.
struct Table<'a> {
    observed: &'a Observation,
    rows: BTreeMap<(OverlayName, IpAddr), UsedAddress>,
}

impl Table<'_> {
    fn row(&mut self, overlay: &OverlayName, address: IpAddr, source: Source) -> &mut UsedAddress {
        let halves = self.observed.halves.get(overlay);
        let row = self.rows.entry((overlay.clone(), address));
        let row = row.or_insert_with(|| UsedAddress::new(address, overlay, halves));
        if !row.sources.contains(&source) {
            row.sources.push(source);
        }
        row
    }

    /// Returns the overlay of an address at a device: that of the bridge, or that of the subnet if
    /// the port is at no bridge of an overlay.
    fn overlay_of(&self, device: Option<&str>, address: IpAddr) -> Option<OverlayName> {
        let mut overlays = self.observed.halves.iter();
        let is_at = |overlay: &OverlayName| {
            let bridges = [overlay.mesos_bridge(), overlay.docker_bridge()];
            bridges.iter().any(|bridge| Some(bridge.as_str()) == device)
        };
        let at_bridge = overlays.clone().find(|(overlay, _)| is_at(overlay));
        let found = at_bridge.or_else(|| overlays.find(|(_, it)| half_of(it, address).is_some()));
        found.map(|(overlay, _)| overlay.clone())
    }
}

/// Returns the addresses in use, in the order of overlays and addresses.
pub(super) fn used_addresses(observed: &Observation) -> Vec<UsedAddress> {
    let mut table = Table { observed, rows: BTreeMap::new() };
    for (overlay, leases) in &observed.leases {
        for lease in &leases.files.leases {
            let row = table.row(overlay, lease.address, Source::Lease);
            row.container = Some(lease.container.clone());
            row.interface = Some(lease.interface.clone()).filter(|name| !name.is_empty());
        }
        for probe in &leases.files.probes {
            table.row(overlay, *probe, Source::Probe);
        }
    }
    for network in observed.docker.iter().flatten() {
        for endpoint in &network.endpoints {
            for address in &endpoint.addresses {
                let row = table.row(&network.overlay, *address, Source::Docker);
                row.name = Some(endpoint.name.clone());
                row.container.get_or_insert_with(|| endpoint.container.clone());
            }
        }
    }
    for endpoint in &observed.endpoints {
        if let Some(overlay) = table.overlay_of(endpoint.bridge.as_deref(), endpoint.address) {
            let row = table.row(&overlay, endpoint.address, Source::Kernel);
            row.port = Some(endpoint.port.clone());
        }
    }
    for (address, device) in &observed.neighbors {
        let Some(overlay) = table.overlay_of(Some(device), *address) else { continue };
        let is_bridge = [overlay.mesos_bridge(), overlay.docker_bridge()]
            .iter()
            .any(|bridge| bridge.as_str() == device);
        // A container whose port the kernel shows needs no further evidence.
        let key = (overlay.clone(), *address);
        if is_bridge && !table.rows.get(&key).is_some_and(|row| row.has(Source::Kernel)) {
            table.row(&overlay, *address, Source::Neighbor);
        }
    }
    table.rows.into_values().collect()
}

/// Returns the number of used and free addresses of each half. An IPv6 half is counted if the overlay
/// has no IPv4.
pub(super) fn half_usage(observed: &Observation, addresses: &[UsedAddress]) -> Vec<HalfUsage> {
    let mut usage = Vec::new();
    for (overlay, halves) in &observed.halves {
        for (half, subnets) in [(Half::Mesos, &halves.mesos), (Half::Docker, &halves.docker)] {
            let v4 = subnets.iter().find(|subnet| subnet.first().is_ipv4());
            let Some(&subnet) = v4.or_else(|| subnets.first()) else { continue };
            let is_in =
                |used: &&UsedAddress| used.overlay == *overlay && subnet.contains(used.address);
            let used = addresses.iter().filter(is_in).count() as u64;
            let capacity = u64::try_from(container_capacity(&subnet)).unwrap_or(u64::MAX);
            let free = capacity.saturating_sub(used);
            usage.push(HalfUsage { overlay: overlay.clone(), half, subnet, used, free });
        }
    }
    usage
}
