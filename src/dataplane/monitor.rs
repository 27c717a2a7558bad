//! Listens to what others change in the kernel, so that a repair need not wait for the next
//! verification. It says that something changed, not what: the verification finds that out, and
//! cannot be misled by an event that was lost. Our own changes are heard as well: whoever makes
//! them forgets what is heard meanwhile, and verifies soon after.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::PROTOCOL;
use super::message::{Message, address, attributes, messages, text, u16_at, u32_at};
use super::observe::route;
use super::socket::Netlink;
use super::uapi::{
    ENOBUFS, IFA_ADDRESS, IFA_LOCAL, IFLA_IFNAME, NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL,
    NUD_PERMANENT, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWNEIGH, RTM_NEWNETCONF, RTM_NEWROUTE, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_NETCONF, RTNLGRP_IPV6_ROUTE,
    RTNLGRP_LINK, RTNLGRP_NEIGH,
};
use crate::addr::{DeviceName, Subnet};

/// What to listen for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// Our devices.
    pub(super) devices: Vec<DeviceName>,
    /// Their indices, and that of the device with our address in the underlay.
    pub(super) indices: Vec<u32>,
    /// Our addresses in the underlay.
    pub(super) underlays: Vec<IpAddr>,
    /// The space of the overlays.
    pub(super) spaces: Vec<Subnet>,
}

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing that concerns us.
    Nothing,
    /// A change of this kind of thing.
    Change(&'static str),
    /// A change of a setting, of the whole host or of a device of ours.
    Setting,
    /// More than there was room for: anything may have changed.
    Overrun,
}

/// A listener.
#[derive(Debug)]
pub struct Monitor {
    netlink: Netlink,
}

impl Monitor {
    /// A listener to the network namespace of the calling thread. To be opened before the state is
    /// read, so that no change falls between.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
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
        ])?;
        Ok(Self { netlink })
    }

    /// Waits for events, at most for `timeout`, and says whether one of them concerns us. It may
    /// return earlier without one.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub fn wait(&mut self, timeout: Duration, watch: &Watch) -> io::Result<Heard> {
        self.netlink.set_timeout(timeout)?;
        match self.netlink.receive() {
            Ok(bytes) => {
                let change = messages(bytes).find_map(|message| watch.concerns(&message));
                Ok(change.unwrap_or(Heard::Nothing))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => Ok(Heard::Overrun),
            Err(error) => Err(error),
        }
    }

    /// Forgets all that waits: for use before the state is read anyway, and after changes of our
    /// own, of which the kernel tells everybody before it answers us.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub fn forget(&mut self) -> io::Result<()> {
        self.netlink.drain()
    }
}

impl AsFd for Monitor {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.borrowed()
    }
}

impl Watch {
    /// What of ours a message may be about.
    fn concerns(&self, message: &Message<'_>) -> Option<Heard> {
        let body = message.body;
        if message.kind == RTM_NEWNETCONF {
            let mut of = attributes(body, 4).filter(|(kind, _)| *kind == NETCONFA_IFINDEX);
            let index = of.next().and_then(|(_, value)| u32_at(value, 0))?;
            let is_ours = index == NETCONFA_IFINDEX_ALL || self.indices.contains(&index);
            return is_ours.then_some(Heard::Setting);
        }
        let index = u32_at(body, 4)?;
        let is_ours = self.indices.contains(&index);
        match message.kind {
            RTM_NEWLINK | RTM_DELLINK => {
                let has_name = |(kind, value): (u16, &[u8])| {
                    let name = if kind == IFLA_IFNAME { text(value) } else { return false };
                    self.devices.iter().any(|device| device.as_str() == name)
                };
                (is_ours || attributes(body, 16).any(has_name)).then_some(Heard::Change("device"))
            }
            RTM_NEWADDR | RTM_DELADDR => {
                let is_underlay = |(kind, value): (u16, &[u8])| {
                    let is_address = kind == IFA_LOCAL || kind == IFA_ADDRESS;
                    is_address && address(value).is_some_and(|ip| self.underlays.contains(&ip))
                };
                (is_ours || attributes(body, 8).any(is_underlay))
                    .then_some(Heard::Change("address"))
            }
            RTM_NEWNEIGH | RTM_DELNEIGH => {
                let is_permanent = u16_at(body, 8)? & NUD_PERMANENT != 0;
                (is_ours && (is_permanent || message.kind == RTM_DELNEIGH))
                    .then_some(Heard::Change("neighbour"))
            }
            RTM_NEWROUTE | RTM_DELROUTE => {
                let route = route(body)?;
                let is_inside = self.spaces.iter().any(|space| space.covers(&route.key.subnet));
                (route.protocol == PROTOCOL || is_inside).then_some(Heard::Change("route"))
            }
            _ => None,
        }
    }
}
