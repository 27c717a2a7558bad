//! Builds links with network namespaces: bridges, veth pairs, addresses. For the port of the probes,
//! and for the hosts and containers of demonstrations. These links carry no mark and are not
//! reconciled: the kernel removes them with their namespace.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, Mtu};
use rustix::net::netdevice;

use super::apply::{if_header, write_address};
use super::message::{Batch, attributes, u32_at};
use super::observe::mac;
use super::socket::Netlink;
use super::uapi::{
    AF_INET, IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU, IFLA_NET_NS_FD, NDA_DST, NDA_LLADDR, NLM_F_CREATE, NLM_F_EXCL,
    NLM_F_REPLACE, NLM_F_REQUEST, NUD_PERMANENT, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_GATEWAY,
    RTM_DELLINK, RTM_DELNEIGH, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE,
    RTN_UNICAST, RTPROT_BOOT, VETH_INFO_PEER,
};

/// A change that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct LinkBuilderError {
    action: String,
    reason: String,
}

impl LinkBuilderError {
    pub(super) fn new(action: String, error: &io::Error) -> Self {
        Self { action, reason: error.to_string() }
    }
}

/// Changes the network namespace of the thread that opened this builder. Other threads may call its
/// methods.
#[derive(Debug)]
pub struct LinkBuilder {
    netlink: Netlink,
}

impl LinkBuilder {
    /// Opens a builder for the calling thread's network namespace. Changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub fn open() -> Result<Self, LinkBuilderError> {
        match Netlink::open(NETLINK_ROUTE) {
            Ok(netlink) => Ok(Self { netlink }),
            Err(error) => Err(LinkBuilderError::new("open a netlink socket".to_owned(), &error)),
        }
    }

    /// Adds a bridge that is up.
    ///
    /// # Errors
    /// When the kernel refuses. This applies to all following methods as well.
    pub fn add_bridge(&mut self, name: &DeviceName) -> Result<(), LinkBuilderError> {
        self.run(format!("add bridge {name}"), |batch| {
            begin_new_link(batch, name);
            batch.nested(IFLA_LINKINFO, |batch| batch.text(IFLA_INFO_KIND, "bridge"));
        })
    }

    /// Adds a veth pair: `name`, which is up, and `peer` in `namespace`, which is down.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn add_veth_pair(
        &mut self,
        name: &DeviceName,
        peer: &DeviceName,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), LinkBuilderError> {
        self.add_veth(name, None, peer, namespace)
    }

    /// Adds a veth pair like [`Self::add_veth_pair`], with this MAC address of `name`. systemd
    /// assigns another address to a device that is created without one.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn add_veth_pair_with_mac(
        &mut self,
        name: &DeviceName,
        mac: Mac,
        peer: &DeviceName,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), LinkBuilderError> {
        self.add_veth(name, Some(mac), peer, namespace)
    }

    fn add_veth(
        &mut self,
        name: &DeviceName,
        mac: Option<Mac>,
        peer: &DeviceName,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), LinkBuilderError> {
        self.run(format!("add devices {name} and {peer}"), |batch| {
            begin_new_link(batch, name);
            if let Some(mac) = mac {
                batch.attribute(IFLA_ADDRESS, &mac.octets());
            }
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
    ) -> Result<(), LinkBuilderError> {
        let action = format!("attach {name} to bridge {bridge}");
        let (index, bridge) = (self.index_of(name, &action)?, self.index_of(bridge, &action)?);
        self.run(action, |batch| {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
            batch.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        })
    }

    /// Sets a device up, and sets its MTU if `mtu` is given.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn set_up(&mut self, name: &DeviceName, mtu: Option<Mtu>) -> Result<(), LinkBuilderError> {
        let action = format!("set {name} up");
        let index = self.index_of(name, &action)?;
        self.run(action, |batch| {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, IFF_UP, IFF_UP));
            if let Some(mtu) = mtu {
                batch.attribute(IFLA_MTU, &mtu.bytes().to_ne_bytes());
            }
        })
    }

    /// Removes a device. A missing device is no error.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn remove(&mut self, name: &DeviceName) -> Result<(), LinkBuilderError> {
        let Ok(index) = self.index(name) else { return Ok(()) };
        self.run(format!("remove device {name}"), |batch| {
            batch.begin(RTM_DELLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
        })
    }

    /// Returns whether a device is a port of a bridge.
    pub fn is_port(&mut self, name: &DeviceName, bridge: &DeviceName) -> bool {
        let (Ok(index), Ok(bridge)) = (self.index(name), self.index(bridge)) else {
            return false;
        };
        let mut request = Batch::default();
        request.begin(RTM_GETLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
        let master = self.netlink.ask(&mut request, |answer| {
            let mut found = attributes(answer.body, 16).filter(|(kind, _)| *kind == IFLA_MASTER);
            found.next().and_then(|(_, value)| u32_at(value, 0))
        });
        matches!(master, Ok(Ok(Some(master))) if master == bridge)
    }

    /// Adds an address to a device.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn add_address(
        &mut self,
        name: &DeviceName,
        ip: &InterfaceAddress,
    ) -> Result<(), LinkBuilderError> {
        let action = format!("add address {ip} to {name}");
        let index = self.index_of(name, &action)?;
        self.run(action, |batch| {
            write_address(batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, ip);
        })
    }

    /// Adds a default route through `gateway`.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> Result<(), LinkBuilderError> {
        self.run(format!("add default route via {gateway}"), |batch| {
            let mut header = [0; 12];
            (header[0], header[4], header[5]) = (AF_INET, RT_TABLE_MAIN, RTPROT_BOOT);
            (header[6], header[7]) = (RT_SCOPE_UNIVERSE, RTN_UNICAST);
            batch.begin(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &header);
            batch.address(RTA_GATEWAY, gateway.into());
        })
    }

    /// Sets the MAC of a neighbor permanently: no ARP reply changes it.
    ///
    /// # Errors
    /// See [`Self::add_bridge`].
    pub fn set_neighbor(
        &mut self,
        device: &DeviceName,
        ip: Ipv4Addr,
        mac: Mac,
    ) -> Result<(), LinkBuilderError> {
        let action = format!("set neighbor {ip} of {device}");
        let index = self.index_of(device, &action)?;
        self.run(action, |batch| {
            let mut header = [0; 12];
            header[0] = AF_INET;
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
            batch.begin(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE, &header);
            batch.address(NDA_DST, ip.into());
            batch.attribute(NDA_LLADDR, &mac.octets());
        })
    }

    /// Returns the MAC of a device.
    pub fn mac(&mut self, name: &DeviceName) -> Option<Mac> {
        let index = self.index(name).ok()?;
        let mut request = Batch::default();
        request.begin(RTM_GETLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
        let answer = self.netlink.ask(&mut request, |answer| {
            let mut found = attributes(answer.body, 16).filter(|(kind, _)| *kind == IFLA_ADDRESS);
            found.next().and_then(|(_, value)| mac(value))
        });
        answer.ok()?.ok()?
    }

    /// Removes the neighbor of an address, so that the kernel asks for its MAC again. Returns
    /// whether there was one.
    pub fn remove_neighbor(&mut self, device: &DeviceName, ip: Ipv4Addr) -> bool {
        let Ok(index) = self.index(device) else { return false };
        let removed = self.run(format!("remove neighbor {ip} of {device}"), |batch| {
            let mut header = [0; 12];
            header[0] = AF_INET;
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            batch.begin(RTM_DELNEIGH, NLM_F_REQUEST, &header);
            batch.address(NDA_DST, ip.into());
        });
        removed.is_ok()
    }

    /// Returns the index of a device in the namespace of this builder, which may not be that of the
    /// calling thread.
    fn index(&self, name: &DeviceName) -> io::Result<u32> {
        Ok(netdevice::name_to_index(self.netlink.borrowed(), name.as_str())?)
    }

    fn index_of(&self, name: &DeviceName, action: &str) -> Result<u32, LinkBuilderError> {
        self.index(name)
            .map_err(|error| LinkBuilderError::new(format!("{action}: find {name}"), &error))
    }

    fn run(
        &mut self,
        action: String,
        write: impl FnOnce(&mut Batch),
    ) -> Result<(), LinkBuilderError> {
        let mut batch = Batch::default();
        write(&mut batch);
        let error = match self.netlink.run(&mut batch) {
            Ok(errors) => errors.first().map(|error| io::Error::from(error.errno)),
            Err(error) => Some(error),
        };
        match error {
            None => Ok(()),
            Some(error) => Err(LinkBuilderError::new(action, &error)),
        }
    }
}

fn begin_new_link(batch: &mut Batch, name: &DeviceName) {
    let header = if_header(0, IFF_UP, IFF_UP);
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &header);
    batch.text(IFLA_IFNAME, name.as_str());
}
