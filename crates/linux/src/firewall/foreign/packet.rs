//! The packets that the overlays need: between containers and the containers of peers, and the
//! VXLAN packets between the hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, Family, OverlayName, Subnet};
use overlay_types::tunnel::{Desired, OverlayBridge, OverlaySubnets, VxlanDevice};

/// Number of peers whose packets are evaluated.
const PEERS_MAX: usize = 4;

/// The way of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketKind {
    /// From a container of this host to a container of a peer.
    ToPeer,
    /// From a container of a peer to a container of this host.
    FromPeer,
    /// A VXLAN packet of a peer to this host.
    VxlanIn,
    /// A VXLAN packet of this host to a peer.
    VxlanOut,
    /// A frame between containers of one bridge, which passes the rules with `br_netfilter` only.
    Bridged,
}

impl PacketKind {
    /// Returns whether this host forwards the packet.
    #[must_use]
    pub const fn is_forwarded(self) -> bool {
        matches!(self, Self::ToPeer | Self::FromPeer | Self::Bridged)
    }
}

/// The packets that the managed rules keep out of connection tracking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Untracked {
    /// Packets between containers of different agents.
    pub(super) of_containers: bool,
    /// VXLAN packets.
    pub(super) of_tunnels: bool,
}

impl Untracked {
    /// Returns whether packets of this kind are not tracked.
    pub(super) const fn has(self, kind: PacketKind) -> bool {
        match kind {
            PacketKind::ToPeer | PacketKind::FromPeer => self.of_containers,
            PacketKind::VxlanIn | PacketKind::VxlanOut => self.of_tunnels,
            PacketKind::Bridged => false,
        }
    }
}

/// A packet that an overlay needs. Its addresses are ranges: every address of a range is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) kind: PacketKind,
    pub(super) family: Family,
    /// The device that the packet enters through. `None` if it is unknown, empty if the packet
    /// comes from this host.
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
    pub(super) source: Subnet,
    pub(super) destination: Subnet,
    /// The port of the tunnels, or `None` for packets of containers.
    pub(super) port: Option<u16>,
    pub(super) device: DeviceName,
    /// The overlay of the containers. A VXLAN packet has none.
    pub(super) overlay: Option<OverlayName>,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, input, output, source, destination, .. } = self;
        let [input, output] =
            [input, output].map(|device| device.as_deref().unwrap_or("their bridge"));
        let port = self.port.unwrap_or_default();
        match kind {
            PacketKind::ToPeer => {
                write!(f, "packets of containers from {input} to peers ({destination})")
            }
            PacketKind::FromPeer => {
                write!(f, "packets of peers ({source}) to containers of {output}")
            }
            PacketKind::VxlanIn => write!(f, "VXLAN packets of peers to UDP port {port}"),
            PacketKind::VxlanOut => {
                write!(f, "VXLAN packets of this host to UDP port {port} of peers")
            }
            PacketKind::Bridged => write!(f, "packets between containers of bridge {input}"),
        }
    }
}

/// The names of the devices that have the addresses of this host.
pub type DevicesByAddress = BTreeMap<IpAddr, String>;

/// Returns the packets that the overlays of this host need. The number does not grow with the
/// number of peers.
pub(super) fn packets(
    desired: &Desired,
    devices: &DevicesByAddress,
    is_bridged: bool,
) -> Vec<Packet> {
    let mut packets = Vec::new();
    for space in &desired.spaces {
        let peers = PEERS_MAX.div_ceil(desired.spaces.len());
        for family in [Family::V4, Family::V6] {
            let peers = peer_subnets(desired, space, family, peers);
            for bridge in &space.bridges {
                // A bridge without an address of a family has no containers of the family.
                let gateways = bridge.gateways.iter().filter(|own| own.family() == family);
                let own =
                    gateways.filter_map(|own| Subnet::containing(own.address(), own.prefix()));
                for own in own {
                    let ends = Ends { space, bridge, own };
                    packets.extend(peers.iter().flat_map(|peer| ends.with_peer(*peer)));
                    packets.extend(is_bridged.then(|| ends.bridged()));
                }
            }
        }
    }
    let mut ports = BTreeSet::new();
    for device in &desired.vxlan_devices {
        if desired.spaces.iter().all(|space| space.own.is_empty()) {
            packets.extend(unassigned(device));
        }
        if ports.insert((device.port, device.underlay)) {
            packets.extend(vxlan_packets(desired, device, devices.get(&device.underlay)));
        }
    }
    packets
}

/// Returns the packets of containers on a host without an assignment.
fn unassigned(local: &VxlanDevice) -> Vec<Packet> {
    let Some(any) = Subnet::containing([0; 4].into(), 0) else { return Vec::new() };
    let packet = |kind, input, output| Packet {
        kind,
        family: any.family(),
        input,
        output,
        source: any,
        destination: any,
        port: None,
        device: local.device.clone(),
        overlay: None,
    };
    let device = Some(local.device.to_string());
    vec![
        packet(PacketKind::ToPeer, None, device.clone()),
        packet(PacketKind::FromPeer, device, None),
    ]
}

/// Returns subnets of a few peers. Without peers, all addresses of the overlay.
fn peer_subnets(
    desired: &Desired,
    space: &OverlaySubnets,
    family: Family,
    max: usize,
) -> Vec<Subnet> {
    let peers = desired.peers.iter().flat_map(BTreeMap::values);
    let subnets = peers.flat_map(|peer| &peer.subnets);
    let subnets = subnets.filter(|(overlay, _)| *overlay == space.overlay);
    let subnets = subnets.map(|(_, subnet)| *subnet).filter(|subnet| subnet.family() == family);
    let mut found: Vec<_> = subnets.take(max).collect();
    if found.is_empty() {
        found.extend(space.whole.iter().filter(|whole| whole.family() == family));
    }
    found
}

/// The containers of a bridge.
#[derive(Clone, Copy)]
struct Ends<'a> {
    space: &'a OverlaySubnets,
    bridge: &'a OverlayBridge,
    own: Subnet,
}

impl Ends<'_> {
    fn with_peer(self, peer: Subnet) -> [Packet; 2] {
        let device = Some(self.space.device.to_string());
        let bridge = Some(self.bridge.device.to_string());
        let to = (device.clone(), peer);
        let from = (bridge.clone(), self.own);
        [
            self.packet(PacketKind::ToPeer, from.clone(), to.clone()),
            self.packet(PacketKind::FromPeer, to, from),
        ]
    }

    fn bridged(self) -> Packet {
        let end = (Some(self.bridge.device.to_string()), self.own);
        self.packet(PacketKind::Bridged, end.clone(), end)
    }

    fn packet(
        self,
        kind: PacketKind,
        (input, source): (Option<String>, Subnet),
        (output, destination): (Option<String>, Subnet),
    ) -> Packet {
        Packet {
            kind,
            family: self.own.family(),
            input,
            output,
            source,
            destination,
            port: None,
            device: self.space.device.clone(),
            overlay: Some(self.space.overlay.clone()),
        }
    }
}

/// Returns the VXLAN packets between this host and a few peers. Without peers, the peers may have
/// any address.
fn vxlan_packets(desired: &Desired, local: &VxlanDevice, device: Option<&String>) -> Vec<Packet> {
    let single =
        |address: IpAddr| Subnet::containing(address, if address.is_ipv4() { 32 } else { 128 });
    let peers = desired.peers.iter().flat_map(BTreeMap::keys).copied();
    let peers = peers.filter(|peer| peer.is_ipv4() == local.underlay.is_ipv4());
    let mut peers: Vec<_> = peers.take(PEERS_MAX).filter_map(single).collect();
    if peers.is_empty() {
        peers.extend(Subnet::containing(local.underlay, 0));
    }
    let Some(own) = single(local.underlay) else { return Vec::new() };
    let packet =
        |kind, input: Option<String>, output: Option<String>, source, destination| Packet {
            kind,
            family: own.family(),
            input,
            output,
            source,
            destination,
            port: Some(local.port),
            device: local.device.clone(),
            overlay: None,
        };
    let (none, device) = (Some(String::new()), device.cloned());
    let of_peer = |peer: Subnet| {
        [
            packet(PacketKind::VxlanIn, device.clone(), none.clone(), peer, own),
            packet(PacketKind::VxlanOut, none.clone(), device.clone(), own, peer),
        ]
    };
    peers.into_iter().flat_map(of_peer).collect()
}
