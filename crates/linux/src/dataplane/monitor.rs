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
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use overlay_types::addr::{DeviceName, Mtu, Subnet};

use super::PROTOCOL;
use super::message::{Message, address, attributes, messages, text, u16_at, u32_at};
use super::observe::route;
use super::socket::{Netlink, has_lost_messages};
use super::uapi::{
    AF_BRIDGE, IFA_ADDRESS, IFA_LOCAL, IFF_UP, IFLA_IFNAME, IFLA_MTU, NETCONFA_IFINDEX,
    NETCONFA_IFINDEX_ALL, NUD_PERMANENT, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE,
    RTM_DELRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWNETCONF, RTM_NEWROUTE, RTM_NEWRULE,
    RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_NETCONF, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_LINK,
    RTNLGRP_NEIGH,
};

/// Maximum number of datagrams that are taken at once.
const EVENTS_MAX: usize = 65_536;

/// The objects whose changes trigger a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// Our devices.
    pub(super) devices: Vec<DeviceName>,
    /// Indices of our devices, and of the devices that have our underlay addresses.
    pub(super) indices: Vec<u32>,
    /// The bridges of the overlays by their index, with the MTU of those that the dataplane
    /// maintains.
    pub(super) bridges: BTreeMap<u32, Option<Mtu>>,
    /// Names of the bridges of the overlays, existing or not.
    pub(super) bridge_names: BTreeSet<DeviceName>,
    /// Our underlay addresses.
    pub(super) underlays: Vec<IpAddr>,
    /// The subnets of the overlays.
    pub(super) spaces: Vec<Subnet>,
}

/// Result of waiting for events, in the order of their scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelEvent {
    /// No event, or none about a watched object.
    Unrelated,
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
        ])?;
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
                let is_permanent = u16_at(body, 8)? & NUD_PERMANENT != 0;
                (is_watched && (is_permanent || message.kind == RTM_DELNEIGH))
                    .then_some(KernelEvent::Changed("neighbor"))
            }
            RTM_NEWROUTE | RTM_DELROUTE => {
                let route = route(body)?;
                let is_inside = self.spaces.iter().any(|space| space.covers(&route.key.subnet));
                (route.protocol == PROTOCOL || is_inside).then_some(KernelEvent::Changed("route"))
            }
            _ => None,
        }
    }

    /// Returns whether a bridge is down or has another MTU. The kernel also reports a bridge when
    /// a container starts or ends, which changes nothing here.
    fn has_bridge_changed(&self, index: u32, body: &[u8]) -> bool {
        let is_up = u32_at(body, 8).is_some_and(|flags| flags & IFF_UP != 0);
        let Some(Some(expected)) = self.bridges.get(&index) else { return true };
        let mut attributes = attributes(body, 16);
        let mtu = attributes.find(|(kind, _)| *kind == IFLA_MTU);
        !is_up
            || mtu
                .and_then(|(_, value)| u32_at(value, 0))
                .is_some_and(|mtu| mtu != expected.bytes())
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
