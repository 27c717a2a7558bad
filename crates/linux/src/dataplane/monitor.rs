//! Receives the kernel's events about changes by other programs, so that a repair need not wait for
//! the next verification.
//!
//! An event only triggers a verification. The verification reads the state itself, so it does not
//! depend on the content of events. The kernel reports our own changes as well. The caller discards
//! the events that are pending after its own changes, and verifies soon after.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use overlay_types::addr::{DeviceName, Mtu, Subnet};
use overlay_types::tunnel::Desired;
use socket2::SockFilter;

use super::PROTOCOL;
use super::message::{Message, address, attributes, messages, text, u16_at, u32_at};
use super::observe::{has_vlan_filtering, route};
use super::socket::{Netlink, has_lost_messages};
use super::uapi::{
    AF_BRIDGE, IFA_ADDRESS, IFA_LOCAL, IFF_NOARP, IFF_UP, IFLA_IFNAME, IFLA_LINKINFO, IFLA_MASTER,
    IFLA_MTU, NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL, NUD_NOARP, NUD_PERMANENT, RTM_DELADDR,
    RTM_DELLINK, RTM_DELNEIGH, RTM_DELQDISC, RTM_DELROUTE, RTM_DELRULE, RTM_DELTFILTER,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWNETCONF, RTM_NEWQDISC, RTM_NEWROUTE,
    RTM_NEWRULE, RTM_NEWTFILTER, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_NETCONF, RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV6_RULE, RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_TC,
};

/// Maximum number of datagrams that are taken at once.
const EVENTS_MAX: usize = 65_536;

/// The objects whose changes trigger a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// Our devices.
    pub(super) devices: Vec<DeviceName>,
    /// Indices of our devices.
    pub(super) tunnels: Vec<u32>,
    /// Indices of our devices, and of the devices that have our underlay addresses or lead to the
    /// peers.
    pub(super) indices: Vec<u32>,
    /// The bridges of the overlays by their index, with the MTU of those that the dataplane
    /// maintains.
    pub(super) bridges: BTreeMap<u32, Option<Mtu>>,
    /// Names of the bridges of the overlays, existing or not.
    pub(super) bridge_names: BTreeSet<DeviceName>,
    /// The ports of these bridges, with the index of the bridge.
    pub(super) ports: BTreeMap<u32, u32>,
    /// The devices at these bridges with their MTU.
    pub(super) port_mtus: BTreeMap<u32, u32>,
    /// Our underlay addresses.
    pub(super) underlays: Vec<IpAddr>,
    /// The subnets of the overlays.
    pub(super) spaces: Vec<Subnet>,
    /// The desired state, which has the peers.
    pub(super) desired: Arc<Desired>,
}

/// Result of waiting for events, in the order of their scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelEvent {
    /// No event, or none about a watched object.
    Unrelated,
    /// A port joined a bridge, vanished, or got another MTU: a container started or ended.
    PortsChanged,
    /// An object of this kind changed.
    Changed(&'static str),
    /// A network setting changed, of the host or of a watched device.
    SettingChanged,
    /// The receive buffer was full and events are lost. Any object may have changed.
    Overrun,
}

/// A subscription to the kernel's events.
#[derive(Debug)]
pub struct Monitor {
    netlink: Netlink,
}

impl Monitor {
    /// Opens a monitor of the calling thread's network namespace. Open it before the state is read:
    /// otherwise a change between the two is missed.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub fn open() -> io::Result<Self> {
        let mut netlink = Netlink::open(NETLINK_ROUTE)?;
        netlink.join(&[
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV4_NETCONF,
            RTNLGRP_IPV6_NETCONF,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_RULE,
            RTNLGRP_TC,
        ])?;
        // Without the filter there are more events, and the same result.
        if let Err(error) = netlink.attach_filter(&LEARNED_ADDRESSES.map(instruction)) {
            log::warn!("filter the kernel's events about learned addresses: {error}");
        }
        Ok(Self { netlink })
    }

    /// Waits for events, at most for `timeout`, and takes all that are pending. Returns the one of
    /// the widest scope. With `own`, the port of a [`Dataplane`](super::Dataplane), the events of its
    /// changes are ignored.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn take(
        &mut self,
        timeout: Duration,
        watch: &Watch,
        own: Option<u32>,
    ) -> io::Result<KernelEvent> {
        let mut widest = KernelEvent::Unrelated;
        let mut timeout = timeout;
        for _ in 0..EVENTS_MAX {
            self.netlink.set_timeout(timeout)?;
            timeout = Duration::ZERO;
            match self.netlink.receive() {
                Ok(bytes) => {
                    let foreign = messages(bytes).filter(|message| !is_own(message, own));
                    let events = foreign.filter_map(|message| watch.event(&message));
                    widest = events.fold(widest, KernelEvent::max);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if has_lost_messages(&error) => widest = KernelEvent::Overrun,
                Err(error) => return Err(error),
            }
        }
        Ok(widest)
    }
}

/// An instruction of a filter: what it does, how many instructions are skipped if it holds and if it
/// does not, and its number. See `linux/bpf_common.h`.
type Instruction = (u16, u8, u8, u32);

/// Loads a byte at an offset.
const LOAD: u16 = 0x30;
/// Skips instructions if the byte equals the number, or if it has the bits of the number.
const IF_EQUAL: u16 = 0x15;
const IF_SET: u16 = 0x45;
/// Ends the filter with the number of bytes to keep.
const RETURN: u16 = 0x06;
/// Offset of the low byte of a number in the kernel's byte order.
const LOW: u32 = if cfg!(target_endian = "big") { 1 } else { 0 };

/// A filter that drops the events about addresses that bridges learn. A container can cause any
/// number of them, with frames from random addresses, and they would fill the receive buffer. The
/// entries of our devices are permanent.
const LEARNED_ADDRESSES: [Instruction; 9] = [
    (LOAD, 0, 0, 4 + LOW),
    (IF_EQUAL, 1, 0, RTM_NEWNEIGH as u32),
    (IF_EQUAL, 0, 4, RTM_DELNEIGH as u32),
    // The family.
    (LOAD, 0, 0, 16),
    (IF_EQUAL, 0, 2, AF_BRIDGE as u32),
    // The state.
    (LOAD, 0, 0, 24 + LOW),
    (IF_SET, 0, 1, NUD_PERMANENT as u32),
    (RETURN, 0, 0, u32::MAX),
    (RETURN, 0, 0, 0),
];

fn instruction((code, if_true, if_false, number): Instruction) -> SockFilter {
    SockFilter::new(code, if_true, if_false, number)
}

/// Returns whether our own change caused an event. The kernel does not name the cause of a change
/// in the FDB, so during our changes each of these counts as ours.
fn is_own(message: &Message<'_>, own: Option<u32>) -> bool {
    let Some(own) = own else { return false };
    let is_neighbor = matches!(message.kind, RTM_NEWNEIGH | RTM_DELNEIGH);
    message.port == own || (is_neighbor && message.body.first() == Some(&AF_BRIDGE))
}

impl AsFd for Monitor {
    /// The descriptor is readable while events are pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.borrowed()
    }
}

impl Watch {
    /// Returns the event if the message is about a watched object.
    fn event(&self, message: &Message<'_>) -> Option<KernelEvent> {
        let body = message.body;
        if message.kind == RTM_NEWNETCONF {
            let mut attributes = attributes(body, 4);
            let (_, index) = attributes.find(|(kind, _)| *kind == NETCONFA_IFINDEX)?;
            let index = u32_at(index, 0)?;
            let is_watched = index == NETCONFA_IFINDEX_ALL
                || self.indices.contains(&index)
                || self.bridges.contains_key(&index);
            return is_watched.then_some(KernelEvent::SettingChanged);
        }
        if matches!(message.kind, RTM_NEWRULE | RTM_DELRULE) {
            return Some(KernelEvent::Changed("policy rule"));
        }
        let index = u32_at(body, 4)?;
        let is_watched = self.indices.contains(&index);
        match message.kind {
            RTM_NEWLINK if self.bridges.contains_key(&index) => {
                self.has_bridge_changed(index, body).then_some(KernelEvent::Changed("bridge"))
            }
            RTM_NEWLINK if self.ports.contains_key(&index) && self.has_port_left(index, body) => {
                Some(KernelEvent::Changed("port"))
            }
            RTM_NEWLINK if self.has_port_changed(index, body) => Some(KernelEvent::PortsChanged),
            RTM_DELLINK if self.port_mtus.contains_key(&index) => Some(KernelEvent::PortsChanged),
            RTM_NEWQDISC | RTM_DELQDISC | RTM_NEWTFILTER | RTM_DELTFILTER => (is_watched
                || self.bridges.contains_key(&index))
            .then_some(KernelEvent::Changed("queueing discipline")),
            RTM_NEWLINK | RTM_DELLINK => {
                let mut attributes = attributes(body, 16);
                let is_named = attributes.any(|attribute| self.is_device_name(attribute));
                (is_watched || is_named).then_some(KernelEvent::Changed("device"))
            }
            RTM_NEWADDR | RTM_DELADDR => {
                let mut attributes = attributes(body, 8);
                let is_underlay = attributes.any(|attribute| self.is_underlay(attribute));
                let is_watched = is_watched || self.bridges.contains_key(&index);
                (is_watched || is_underlay).then_some(KernelEvent::Changed("address"))
            }
            RTM_NEWNEIGH | RTM_DELNEIGH => {
                let state = u16_at(body, 8)?;
                let is_permanent = state & NUD_PERMANENT != 0;
                // A bridge has permanent entries of its own in its FDB.
                let is_of_bridge =
                    self.bridges.contains_key(&index) && body.first() != Some(&AF_BRIDGE);
                // The kernel removes unused entries all the time: those of the underlay, and those
                // of multicast addresses, which have the state NOARP. A permanent entry that a
                // program removes loses its state first.
                let is_removed = message.kind == RTM_DELNEIGH
                    && self.tunnels.contains(&index)
                    && state & NUD_NOARP == 0;
                ((is_watched || is_of_bridge) && (is_permanent || is_removed))
                    .then_some(KernelEvent::Changed("neighbor"))
            }
            RTM_NEWROUTE | RTM_DELROUTE => {
                let route = route(body)?;
                let is_inside = self.spaces.iter().any(|space| space.covers(&route.key.subnet));
                let is_of_peers = is_inside || self.leads_to_peer(&route.key.subnet);
                (route.protocol == PROTOCOL || is_of_peers).then_some(KernelEvent::Changed("route"))
            }
            _ => None,
        }
    }

    /// Returns whether a bridge is down, answers no ARP requests, separates VLANs, or has another
    /// MTU. The kernel also reports a bridge when a container starts or ends, which changes nothing
    /// here.
    fn has_bridge_changed(&self, index: u32, body: &[u8]) -> bool {
        let Some(Some(expected)) = self.bridges.get(&index) else { return true };
        let flags = u32_at(body, 8).unwrap_or(0);
        if flags & (IFF_UP | IFF_NOARP) != IFF_UP {
            return true;
        }
        let mut attributes = attributes(body, 16);
        attributes.any(|(kind, value)| match kind {
            IFLA_MTU => u32_at(value, 0).is_some_and(|mtu| mtu != expected.bytes()),
            IFLA_LINKINFO => has_vlan_filtering(value),
            _ => false,
        })
    }

    /// Returns whether a port is up and has left its bridge. A container that ends sets its port
    /// down first.
    fn has_port_left(&self, index: u32, body: &[u8]) -> bool {
        let is_up = u32_at(body, 8).is_some_and(|flags| flags & IFF_UP != 0);
        let is_of_bridge = body.first() == Some(&AF_BRIDGE);
        let mut attributes = attributes(body, 16);
        let master = attributes.find(|(kind, _)| *kind == IFLA_MASTER);
        let master = master.and_then(|(_, value)| u32_at(value, 0));
        is_up && !is_of_bridge && master.as_ref() != self.ports.get(&index)
    }

    /// Returns whether a device at a bridge is new there, or has another MTU.
    fn has_port_changed(&self, index: u32, body: &[u8]) -> bool {
        let (mut is_at_bridge, mut mtu) = (false, None);
        for (kind, value) in attributes(body, 16) {
            match kind {
                IFLA_MASTER => {
                    let master = u32_at(value, 0);
                    is_at_bridge = master.is_some_and(|it| self.bridges.contains_key(&it));
                }
                IFLA_MTU => mtu = u32_at(value, 0),
                _ => {}
            }
        }
        let known = self.port_mtus.get(&index);
        is_at_bridge && (known.is_none() || mtu.is_some_and(|mtu| known != Some(&mtu)))
    }

    /// Returns whether a peer's underlay address is in a subnet.
    fn leads_to_peer(&self, subnet: &Subnet) -> bool {
        let peers = self.desired.peers.as_ref();
        peers.is_some_and(|peers| peers.range(subnet.first()..=subnet.last()).next().is_some())
    }

    fn is_device_name(&self, (kind, value): (u16, &[u8])) -> bool {
        let is_watched = |name: String| {
            let mut names = self.devices.iter().chain(&self.bridge_names);
            names.any(|device| device.as_str() == name)
        };
        kind == IFLA_IFNAME && is_watched(text(value))
    }

    fn is_underlay(&self, (kind, value): (u16, &[u8])) -> bool {
        let is_address = kind == IFA_LOCAL || kind == IFA_ADDRESS;
        is_address && address(value).is_some_and(|ip| self.underlays.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Batch;
    use super::super::uapi::AF_INET;
    use super::*;

    /// Runs a filter on a message, as the kernel does. Returns whether the message is kept.
    fn is_kept(filter: &[Instruction], message: &[u8]) -> bool {
        let (mut position, mut byte) = (0, 0);
        loop {
            let (code, if_true, if_false, number) = filter[position];
            let skipped = match code {
                LOAD => {
                    byte = message[usize::try_from(number).unwrap()].into();
                    0
                }
                IF_EQUAL if byte == number => if_true,
                IF_SET if byte & number != 0 => if_true,
                IF_EQUAL | IF_SET => if_false,
                RETURN => return number > 0,
                code => panic!("unknown instruction {code}"),
            };
            position += 1 + usize::from(skipped);
        }
    }

    #[test]
    fn unused_neighbors_that_kernel_removes_are_no_change() {
        const FAILED: u16 = 0x20;
        const STALE: u16 = 4;
        const TUNNEL: u32 = 7;
        const UPLINK: u32 = 2;
        let watch =
            Watch { tunnels: vec![TUNNEL], indices: vec![TUNNEL, UPLINK], ..Watch::default() };
        let is_change = |kind: u16, index: u32, state: u16| {
            let mut header = [0; 12];
            header[0] = AF_INET;
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            header[8..10].copy_from_slice(&state.to_ne_bytes());
            let mut batch = Batch::default();
            batch.begin(kind, 0, &header);
            messages(batch.finish(1, 0)).any(|message| watch.event(&message).is_some())
        };
        assert!(is_change(RTM_DELNEIGH, TUNNEL, FAILED), "a program removed an entry of a peer");
        assert!(is_change(RTM_NEWNEIGH, UPLINK, NUD_PERMANENT));
        for (index, state) in [(UPLINK, STALE), (UPLINK, FAILED), (TUNNEL, NUD_NOARP)] {
            assert!(!is_change(RTM_DELNEIGH, index, state), "{index} {state}");
        }
    }

    #[test]
    fn ports_that_come_and_go_are_no_damage() {
        const BRIDGE: u32 = 4;
        const PORT: u32 = 9;
        let watch = Watch {
            bridges: [(BRIDGE, None)].into(),
            ports: [(PORT, BRIDGE)].into(),
            port_mtus: [(PORT, 1420)].into(),
            ..Watch::default()
        };
        let event = |kind: u16, index: u32, master: Option<u32>, mtu: u32| {
            let mut header = [0; 16];
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
            let mut batch = Batch::default();
            batch.begin(kind, 0, &header);
            batch.attribute(IFLA_MTU, &mtu.to_ne_bytes());
            if let Some(master) = master {
                batch.attribute(IFLA_MASTER, &master.to_ne_bytes());
            }
            messages(batch.finish(1, 0)).find_map(|message| watch.event(&message))
        };
        let changed = Some(KernelEvent::PortsChanged);
        assert_eq!(event(RTM_NEWLINK, 10, Some(BRIDGE), 1420), changed, "a container started");
        assert_eq!(event(RTM_NEWLINK, PORT, Some(BRIDGE), 1500), changed, "a larger MTU");
        assert_eq!(event(RTM_DELLINK, PORT, Some(BRIDGE), 1420), changed, "a container ended");
        assert_eq!(event(RTM_NEWLINK, PORT, Some(BRIDGE), 1420), None, "its link went up");
        assert_eq!(event(RTM_NEWLINK, 10, Some(5), 1420), None, "another bridge");
        assert_eq!(event(RTM_NEWLINK, PORT, None, 1420), Some(KernelEvent::Changed("port")));
        assert!(KernelEvent::PortsChanged < KernelEvent::Changed("port"));
    }

    #[test]
    fn only_learned_addresses_of_bridges_are_filtered() {
        const REACHABLE: u16 = 2;
        let is_kept = |kind: u16, family: u8, state: u16| {
            let mut header = [0; 12];
            header[0] = family;
            header[8..10].copy_from_slice(&state.to_ne_bytes());
            let mut batch = Batch::default();
            batch.begin(kind, 0, &header);
            is_kept(&LEARNED_ADDRESSES, batch.finish(1, 0))
        };
        for kind in [RTM_NEWNEIGH, RTM_DELNEIGH] {
            assert!(!is_kept(kind, AF_BRIDGE, REACHABLE));
            assert!(is_kept(kind, AF_BRIDGE, NUD_PERMANENT));
            assert!(is_kept(kind, AF_INET, REACHABLE));
        }
        for kind in [RTM_NEWLINK, RTM_DELLINK, RTM_NEWROUTE, RTM_DELRULE, RTM_NEWNETCONF] {
            assert!(is_kept(kind, AF_BRIDGE, REACHABLE), "{kind}");
        }
    }
}
