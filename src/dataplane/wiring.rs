//! Wires up hosts and containers that are network namespaces: bridges, pairs of devices, addresses.
//! For demonstrations, where `ip` may be missing. Nothing of it bears our mark or is looked after:
//! it goes with its namespace.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_nametoindex;

use super::apply::{address, if_header};
use super::message::Batch;
use super::socket::Netlink;
use super::uapi::{
    AF_INET, IFF_UP, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER,
    IFLA_MTU, IFLA_NET_NS_FD, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN, RTA_GATEWAY, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTN_UNICAST, RTPROT_BOOT,
    VETH_INFO_PEER,
};
use crate::addr::{DeviceName, InterfaceAddress, Mtu};

/// What the kernel refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct WiringError {
    what: String,
    reason: String,
}

impl WiringError {
    fn new(what: String, error: &io::Error) -> Self {
        Self { what, reason: error.to_string() }
    }
}

/// Changes the network namespace of the thread that opened it, which must be the one that goes on
/// calling.
#[derive(Debug)]
pub struct Wiring {
    netlink: Netlink,
}

impl Wiring {
    /// For the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, WiringError> {
        let netlink = Netlink::open(NETLINK_ROUTE);
        let failed = |error| WiringError::new("open a netlink socket".to_owned(), &error);
        netlink.map(|netlink| Self { netlink }).map_err(failed)
    }

    /// A bridge that is up.
    ///
    /// # Errors
    /// When the kernel refuses, as with all that follows.
    pub fn add_bridge(&mut self, name: &DeviceName) -> Result<(), WiringError> {
        self.run(format!("make the bridge {name}"), |batch| {
            begin_new_link(batch, name);
            batch.nested(IFLA_LINKINFO, |batch| batch.text(IFLA_INFO_KIND, "bridge"));
        })
    }

    /// A pair of devices: `name`, which is up, and `peer` in `namespace`, which is not.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn add_pair(
        &mut self,
        name: &DeviceName,
        peer: &DeviceName,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), WiringError> {
        self.run(format!("make the devices {name} and {peer}"), |batch| {
            begin_new_link(batch, name);
            batch.nested(IFLA_LINKINFO, |batch| {
                batch.text(IFLA_INFO_KIND, "veth");
                batch.nested(IFLA_INFO_DATA, |batch| {
                    batch.nested(VETH_INFO_PEER, |batch| {
                        batch.header(&if_header(0, 0, 0));
                        batch.text(IFLA_IFNAME, peer.as_str());
                        batch.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
                    });
                });
            });
        })
    }

    /// Makes a device a port of a bridge.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn set_master(
        &mut self,
        name: &DeviceName,
        bridge: &DeviceName,
    ) -> Result<(), WiringError> {
        let what = format!("put {name} on the bridge {bridge}");
        let (index, bridge) = (index_of(name, &what)?, index_of(bridge, &what)?);
        self.run(what, |batch| {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
            batch.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        })
    }

    /// Has a device carry packets, of this size at most if one is given.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn set_up(&mut self, name: &DeviceName, mtu: Option<Mtu>) -> Result<(), WiringError> {
        let what = format!("set {name} up");
        let index = index_of(name, &what)?;
        self.run(what, |batch| {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, IFF_UP, IFF_UP));
            if let Some(mtu) = mtu {
                batch.attribute(IFLA_MTU, &mtu.bytes().to_ne_bytes());
            }
        })
    }

    /// Gives a device an address.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn add_address(
        &mut self,
        name: &DeviceName,
        ip: &InterfaceAddress,
    ) -> Result<(), WiringError> {
        let what = format!("give {name} the address {ip}");
        let index = index_of(name, &what)?;
        self.run(what, |batch| {
            address(batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, ip);
        })
    }

    /// Sends what has no other way to `gateway`.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> Result<(), WiringError> {
        self.run(format!("make a default route by {gateway}"), |batch| {
            let mut header = [0; 12];
            (header[0], header[4], header[5]) = (AF_INET, RT_TABLE_MAIN, RTPROT_BOOT);
            (header[6], header[7]) = (RT_SCOPE_UNIVERSE, RTN_UNICAST);
            batch.begin(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &header);
            batch.address(RTA_GATEWAY, gateway.into());
        })
    }

    fn run(&mut self, what: String, write: impl FnOnce(&mut Batch)) -> Result<(), WiringError> {
        let mut batch = Batch::default();
        write(&mut batch);
        let refused = match self.netlink.run(&mut batch) {
            Ok(refused) => refused,
            Err(error) => return Err(WiringError::new(what, &error)),
        };
        match refused.first() {
            None => Ok(()),
            Some(refusal) => {
                Err(WiringError::new(what, &io::Error::from_raw_os_error(refusal.errno)))
            }
        }
    }
}

fn begin_new_link(batch: &mut Batch, name: &DeviceName) {
    let header = if_header(0, IFF_UP, IFF_UP);
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &header);
    batch.text(IFLA_IFNAME, name.as_str());
}

fn index_of(name: &DeviceName, what: &str) -> Result<u32, WiringError> {
    if_nametoindex(name.as_str())
        .map_err(|error| WiringError::new(format!("{what}: find {name}"), &error.into()))
}
