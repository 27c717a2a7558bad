//! Attaches containers to a bridge: a veth pair, of which one end is a port of the bridge and the
//! other end the interface of the container. For the CNI plugin. The kernel removes a pair with the
//! namespace of the container.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, Mtu, Subnet};
use rustix::io::Errno;

use super::apply::{if_header, write_address};
use super::error::describe;
use super::link_builder::LinkBuilderError;
use super::message::{Batch, address, attributes, family_of, u32_at};
use super::observe::{BRIDGE_KIND, HostLink, addresses, link_named, links};
use super::socket::Netlink;
use super::uapi::{
    AF_INET, BR_STATE_FORWARDING, IFF_UP, IFLA_ADDRESS, IFLA_BRPORT_MODE, IFLA_IFALIAS,
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA, IFLA_INFO_SLAVE_KIND,
    IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, IFLA_NET_NS_FD, NDA_DST, NLM_F_CREATE, NLM_F_EXCL,
    NLM_F_REPLACE, NLM_F_REQUEST, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_OIF,
    RTM_DELLINK, RTM_DELNEIGH, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTN_UNICAST,
    RTPROT_BOOT, VETH_INFO_PEER,
};
use crate::namespace::in_namespace;

/// The network namespace of this thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Interval at which a new port is observed until it forwards.
const FORWARDING_INTERVAL: Duration = Duration::from_micros(500);
/// Number of these observations. A port usually forwards within a few milliseconds.
const FORWARDING_TRIES: usize = 200;

/// A bridge of containers.
#[derive(Debug, Clone)]
pub struct BridgeSettings<'a> {
    /// The name of the bridge.
    pub name: &'a DeviceName,
    /// The MAC of a new bridge. An existing bridge keeps its own.
    pub mac: Mac,
    /// The MTU of a new bridge.
    pub mtu: Option<Mtu>,
    /// The addresses that the bridge must have. It keeps others.
    pub gateways: Vec<InterfaceAddress>,
}

/// A new veth pair.
#[derive(Debug, Clone)]
pub struct PortSettings<'a> {
    /// The name of the port.
    pub name: &'a DeviceName,
    /// The MAC of the port.
    pub mac: Mac,
    /// The alias of the port.
    pub alias: &'a str,
    /// The index of the bridge.
    pub bridge: u32,
    /// Whether the bridge sends frames back to the port that they come from.
    pub has_hairpin: bool,
    /// The MTU of both ends.
    pub mtu: Option<Mtu>,
    /// The name of the interface in the container.
    pub interface: &'a DeviceName,
}

/// A port of a bridge that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Index of the device.
    pub index: u32,
    /// Index of the bridge.
    pub bridge: Option<u32>,
    /// Index of the other end, in its namespace.
    pub peer: Option<u32>,
    /// Whether the device is up.
    pub is_up: bool,
    /// Whether the bridge forwards its frames.
    pub is_forwarding: bool,
    /// The MAC of the device.
    pub mac: Option<Mac>,
}

/// Changes the bridges and ports of the host, which is the network namespace of the thread that
/// opened it.
#[derive(Debug)]
pub struct HostSide {
    netlink: Netlink,
}

impl HostSide {
    /// Opens the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub fn open() -> Result<Self, LinkBuilderError> {
        match Netlink::open(NETLINK_ROUTE) {
            Ok(netlink) => Ok(Self { netlink }),
            Err(error) => Err(LinkBuilderError::new("open a netlink socket".to_owned(), &error)),
        }
    }

    /// Returns the index of a bridge that exists.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the device is no bridge. This applies to all following
    /// methods as well.
    pub fn bridge(&mut self, name: &DeviceName) -> Result<Option<u32>, LinkBuilderError> {
        Ok(self.bridge_link(name)?.map(|link| link.index))
    }

    fn bridge_link(&mut self, name: &DeviceName) -> Result<Option<HostLink>, LinkBuilderError> {
        let failed =
            |error: &io::Error| LinkBuilderError::new(format!("find bridge {name}"), error);
        match link_named(&mut self.netlink, name).map_err(|error| failed(&error))? {
            None => Ok(None),
            Some(link) if link.kind == BRIDGE_KIND => Ok(Some(link)),
            Some(_) => Err(failed(&io::Error::other("another device has its name"))),
        }
    }

    /// Makes the bridge if it is missing, sets it up, and adds missing addresses. Returns its index.
    ///
    /// # Errors
    /// See [`Self::bridge`].
    pub fn ensure_bridge(&mut self, bridge: &BridgeSettings<'_>) -> Result<u32, LinkBuilderError> {
        let name = bridge.name;
        let link = match self.bridge_link(name)? {
            Some(link) => link,
            None => self.add_bridge(bridge)?,
        };
        let index = link.index;
        let existing = addresses(&mut self.netlink)
            .map_err(|error| LinkBuilderError::new(format!("read bridge {name}"), &error))?;
        let mut batch = Batch::default();
        for gateway in &bridge.gateways {
            if !existing.contains(&(index, *gateway)) {
                let flags = NLM_F_CREATE | NLM_F_REPLACE;
                write_address(&mut batch, RTM_NEWADDR, flags, index, gateway);
            }
        }
        if !link.is_up {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, IFF_UP, IFF_UP));
        }
        // Another ADD may have added the address meanwhile.
        self.run(format!("set up bridge {name}"), &mut batch, &[Errno::EXIST])?;
        Ok(index)
    }

    fn add_bridge(&mut self, bridge: &BridgeSettings<'_>) -> Result<HostLink, LinkBuilderError> {
        let action = format!("add bridge {}", bridge.name);
        let mut batch = Batch::default();
        let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
        batch.begin(RTM_NEWLINK, flags, &if_header(0, 0, 0));
        batch.text(IFLA_IFNAME, bridge.name.as_str());
        // A bridge without an own MAC takes that of a port, and changes it with its ports.
        batch.attribute(IFLA_ADDRESS, &bridge.mac.octets());
        if let Some(mtu) = bridge.mtu {
            batch.attribute(IFLA_MTU, &mtu.bytes().to_ne_bytes());
        }
        batch.nested(IFLA_LINKINFO, |batch| batch.text(IFLA_INFO_KIND, BRIDGE_KIND));
        // Another ADD may have added the bridge meanwhile.
        self.run(action.clone(), &mut batch, &[Errno::EXIST])?;
        let missing = || LinkBuilderError::new(action, &io::Error::other("it was removed again"));
        self.bridge_link(bridge.name)?.ok_or_else(missing)
    }

    /// Reads a port. `None` if it does not exist.
    ///
    /// # Errors
    /// See [`Self::bridge`].
    pub fn port(&mut self, name: &DeviceName) -> Result<Option<HostPort>, LinkBuilderError> {
        let link = link_named(&mut self.netlink, name)
            .map_err(|error| LinkBuilderError::new(format!("find port {name}"), &error))?;
        Ok(link.map(|link| HostPort {
            index: link.index,
            bridge: link.master,
            peer: link.peer,
            is_up: link.is_up,
            is_forwarding: link.port_state == Some(BR_STATE_FORWARDING),
            mac: link.mac,
        }))
    }

    /// Adds a veth pair. One end is a port of the bridge and up, the other end is down, in
    /// `namespace`.
    ///
    /// # Errors
    /// See [`Self::bridge`].
    pub fn add_port(
        &mut self,
        port: &PortSettings<'_>,
        namespace: &ContainerNamespace,
    ) -> Result<(), LinkBuilderError> {
        let mut batch = Batch::default();
        write_pair(&mut batch, port, namespace.file.as_fd());
        // The kernel ignores both settings of a device that it creates.
        batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(0, 0, 0));
        batch.text(IFLA_IFNAME, port.name.as_str());
        batch.text(IFLA_IFALIAS, port.alias);
        if port.has_hairpin {
            batch.nested(IFLA_LINKINFO, |batch| {
                batch.text(IFLA_INFO_SLAVE_KIND, BRIDGE_KIND);
                batch.nested(IFLA_INFO_SLAVE_DATA, |batch| {
                    batch.attribute(IFLA_BRPORT_MODE, &[1]);
                });
            });
        }
        let action = format!("add port {} and interface {}", port.name, port.interface);
        self.run(action, &mut batch, &[])
    }

    /// Waits until the bridge forwards the frames of a port, at most 100 ms. Until then the
    /// announcement of the container's address would be lost.
    #[expect(
        clippy::disallowed_methods,
        reason = "the plugin has one thread, and the wait ends after a few milliseconds"
    )]
    pub fn wait_for_forwarding(&mut self, name: &DeviceName) {
        for _ in 0..FORWARDING_TRIES {
            match self.port(name) {
                Ok(Some(port)) if !port.is_forwarding => thread::sleep(FORWARDING_INTERVAL),
                _ => return,
            }
        }
    }

    /// Removes a port, and with it the interface of the container. Returns whether it existed.
    ///
    /// # Errors
    /// See [`Self::bridge`].
    pub fn remove_port(&mut self, name: &DeviceName) -> Result<bool, LinkBuilderError> {
        let Some(port) = self.port(name)? else { return Ok(false) };
        let mut batch = Batch::default();
        batch.begin(RTM_DELLINK, NLM_F_REQUEST, &if_header(port.index, 0, 0));
        self.run(format!("remove port {name}"), &mut batch, &[Errno::NODEV])?;
        Ok(true)
    }

    /// Removes the neighbor of an address, which may be an earlier container with another MAC.
    pub fn forget_neighbor(&mut self, bridge: u32, ip: IpAddr) {
        let mut header = [0; 12];
        header[0] = family_of(ip);
        header[4..8].copy_from_slice(&bridge.to_ne_bytes());
        let mut batch = Batch::default();
        batch.begin(RTM_DELNEIGH, NLM_F_REQUEST, &header);
        batch.address(NDA_DST, ip);
        // Usually there is none.
        let _ = self.netlink.run(&mut batch);
    }

    fn run(
        &mut self,
        action: String,
        batch: &mut Batch,
        ignored: &[Errno],
    ) -> Result<(), LinkBuilderError> {
        run(&mut self.netlink, action, batch, ignored)
    }
}

/// Writes the request for a veth pair. The kernel refuses a pair whose second end is up.
fn write_pair(batch: &mut Batch, port: &PortSettings<'_>, namespace: BorrowedFd<'_>) {
    let write_mtu = |batch: &mut Batch| {
        if let Some(mtu) = port.mtu {
            batch.attribute(IFLA_MTU, &mtu.bytes().to_ne_bytes());
        }
    };
    let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
    batch.begin(RTM_NEWLINK, flags, &if_header(0, IFF_UP, IFF_UP));
    batch.text(IFLA_IFNAME, port.name.as_str());
    batch.attribute(IFLA_ADDRESS, &port.mac.octets());
    batch.attribute(IFLA_MASTER, &port.bridge.to_ne_bytes());
    write_mtu(batch);
    batch.nested(IFLA_LINKINFO, |batch| {
        batch.text(IFLA_INFO_KIND, "veth");
        batch.nested(IFLA_INFO_DATA, |batch| {
            batch.nested(VETH_INFO_PEER, |batch| {
                batch.header(&if_header(0, 0, 0));
                batch.text(IFLA_IFNAME, port.interface.as_str());
                write_mtu(batch);
                batch.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
            });
        });
    });
}

/// Why the network namespace of a container cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// There is no namespace at the path: the container has ended.
    #[error("network namespace {} does not exist", .0.display())]
    Missing(PathBuf),
    /// The container has the network namespace of the host.
    #[error("{} is the network namespace of the host itself", .0.display())]
    OfHost(PathBuf),
    /// The file is no network namespace. Such a file is left where one was mounted.
    #[error("{} is no network namespace", .0.display())]
    NotANamespace(PathBuf),
    /// The system refused.
    #[error("enter network namespace {}: {}", .0.display(), describe(.1))]
    Io(PathBuf, #[source] io::Error),
}

/// An interface of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInterface {
    /// Index of the device.
    pub index: u32,
    /// The name of the device.
    pub name: String,
    /// The MAC of the device.
    pub mac: Option<Mac>,
    /// The MTU of the device.
    pub mtu: u32,
    /// Whether the device is up.
    pub is_up: bool,
    /// Index of the other end of a veth pair, in its namespace.
    pub peer: Option<u32>,
    /// The global addresses.
    pub addresses: Vec<InterfaceAddress>,
}

/// The desired state of the interface of a container.
#[derive(Debug, Clone)]
pub struct InterfaceSettings<'a> {
    /// The name of the interface.
    pub name: &'a DeviceName,
    /// The MAC.
    pub mac: Mac,
    /// The addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// The routes: destination and next hop.
    pub routes: Vec<(Subnet, IpAddr)>,
}

/// The network namespace of a container.
#[derive(Debug)]
pub struct ContainerNamespace {
    file: File,
    netlink: Netlink,
}

impl ContainerNamespace {
    /// Opens the namespace at a path such as `/proc/7/ns/net`. Changes nothing.
    ///
    /// # Errors
    /// When the path is no network namespace, or that of the host.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => NamespaceError::Missing(path.to_owned()),
            _ => NamespaceError::Io(path.to_owned(), error),
        };
        // A pipe would block without `O_NONBLOCK`.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(failed)?;
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let own = fs::metadata(OWN_NAMESPACE).map(identity).map_err(failed)?;
        if file.metadata().map(identity).map_err(failed)? == own {
            return Err(NamespaceError::OfHost(path.to_owned()));
        }
        let opened = in_namespace(&file, || Netlink::open(NETLINK_ROUTE));
        let netlink = opened.flatten().map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => NamespaceError::NotANamespace(path.to_owned()),
            _ => failed(error),
        })?;
        Ok(Self { file, netlink })
    }

    /// Lists the interfaces of the container with their addresses.
    ///
    /// # Errors
    /// When the kernel cannot be asked. This applies to all following methods as well.
    pub fn interfaces(&mut self) -> Result<Vec<ContainerInterface>, LinkBuilderError> {
        let failed = |error: io::Error| {
            LinkBuilderError::new("read the interfaces of the container".to_owned(), &error)
        };
        let links = links(&mut self.netlink).map_err(failed)?;
        let all = addresses(&mut self.netlink).map_err(failed)?;
        let interface = |link: HostLink| {
            let own = all.iter().filter(|(index, _)| *index == link.index);
            ContainerInterface {
                index: link.index,
                name: link.name,
                mac: link.mac,
                mtu: link.mtu,
                is_up: link.is_up,
                peer: link.peer,
                addresses: own.map(|(_, address)| *address).collect(),
            }
        };
        Ok(links.into_iter().map(interface).collect())
    }

    /// Sets an interface up, so that its port begins to forward. From now on it announces its
    /// addresses.
    ///
    /// # Errors
    /// See [`Self::interfaces`].
    pub fn set_up(&mut self, name: &DeviceName, has_ipv6: bool) -> Result<(), LinkBuilderError> {
        let settings = in_namespace(&self.file, || {
            let write = |path: String, value: &str| fs::write(path, value);
            // The kernel then sends the announcement when the MAC changes. Without it the container
            // works as soon as the caches of its neighbors end.
            let _ = write(format!("/proc/sys/net/ipv4/conf/{name}/arp_notify"), "1");
            if has_ipv6 {
                let folder = format!("/proc/sys/net/ipv6/conf/{name}");
                let _ = write(format!("{folder}/ndisc_notify"), "1");
                // Docker disables IPv6 in containers without an IPv6 network.
                return write(format!("{folder}/disable_ipv6"), "0");
            }
            Ok(())
        });
        let action = format!("set interface {name} up");
        if let Err(error) = settings.flatten() {
            return Err(LinkBuilderError::new(format!("{action}: enable IPv6"), &error));
        }
        let index = self.index_of(name, &action)?;
        let mut batch = Batch::default();
        batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, IFF_UP, IFF_UP));
        run(&mut self.netlink, action, &mut batch, &[])
    }

    /// Sets addresses, MAC and routes of an interface. The MAC is set after the addresses, since
    /// the kernel announces them then. A route that the container has already stays.
    ///
    /// # Errors
    /// See [`Self::interfaces`].
    pub fn configure(&mut self, interface: &InterfaceSettings<'_>) -> Result<(), LinkBuilderError> {
        let action = format!("configure interface {}", interface.name);
        let index = self.index_of(interface.name, &action)?;
        let mut batch = Batch::default();
        for address in &interface.addresses {
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            write_address(&mut batch, RTM_NEWADDR, flags, index, address);
        }
        batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, IFF_UP, IFF_UP));
        batch.attribute(IFLA_ADDRESS, &interface.mac.octets());
        run(&mut self.netlink, action.clone(), &mut batch, &[])?;
        batch.clear();
        for (destination, gateway) in &interface.routes {
            write_route(&mut batch, index, destination, *gateway);
        }
        run(&mut self.netlink, format!("{action}: add routes"), &mut batch, &[Errno::EXIST])
    }

    /// Lists the routes of the main table: destination, next hop and index of the interface.
    ///
    /// # Errors
    /// See [`Self::interfaces`].
    pub fn routes(&mut self) -> Result<Vec<(Subnet, Option<IpAddr>, u32)>, LinkBuilderError> {
        let read = |body: &[u8]| {
            let (prefix, table) = (*body.get(1)?, *body.get(4)?);
            let (mut destination, mut gateway, mut index) = (None, None, None);
            for (kind, value) in attributes(body, 12) {
                match kind {
                    RTA_DST => destination = address(value),
                    RTA_GATEWAY => gateway = address(value),
                    RTA_OIF => index = u32_at(value, 0),
                    _ => {}
                }
            }
            let any = if *body.first()? == AF_INET {
                IpAddr::from([0; 4])
            } else {
                IpAddr::from([0_u16; 8])
            };
            let subnet = Subnet::containing(destination.unwrap_or(any), prefix)?;
            (table == RT_TABLE_MAIN).then_some((subnet, gateway, index?))
        };
        let dumped = self.netlink.dump(
            RTM_GETROUTE,
            &[0; 12],
            |_| {},
            |routes: &mut Vec<_>, message| routes.extend(read(message.body)),
            Vec::new,
        );
        dumped.map_err(|error| {
            LinkBuilderError::new("read the routes of the container".to_owned(), &error)
        })
    }

    /// Removes an interface. A missing one is no error.
    ///
    /// # Errors
    /// See [`Self::interfaces`].
    pub fn remove(&mut self, interface: &ContainerInterface) -> Result<(), LinkBuilderError> {
        let mut batch = Batch::default();
        batch.begin(RTM_DELLINK, NLM_F_REQUEST, &if_header(interface.index, 0, 0));
        let action = format!("remove interface {}", interface.name);
        run(&mut self.netlink, action, &mut batch, &[Errno::NODEV])
    }

    fn index_of(&mut self, name: &DeviceName, action: &str) -> Result<u32, LinkBuilderError> {
        let failed = |error: &io::Error| LinkBuilderError::new(action.to_owned(), error);
        let link = link_named(&mut self.netlink, name).map_err(|error| failed(&error))?;
        link.map(|link| link.index).ok_or_else(|| failed(&Errno::NODEV.into()))
    }
}

fn write_route(batch: &mut Batch, index: u32, destination: &Subnet, gateway: IpAddr) {
    let mut header = [0; 12];
    (header[0], header[1]) = (family_of(gateway), destination.prefix());
    (header[4], header[5]) = (RT_TABLE_MAIN, RTPROT_BOOT);
    (header[6], header[7]) = (RT_SCOPE_UNIVERSE, RTN_UNICAST);
    batch.begin(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &header);
    if destination.prefix() > 0 {
        batch.address(RTA_DST, destination.first());
    }
    batch.address(RTA_GATEWAY, gateway);
    batch.attribute(RTA_OIF, &index.to_ne_bytes());
}

/// Runs a batch. Errors with the numbers in `ignored` are none.
fn run(
    netlink: &mut Netlink,
    action: String,
    batch: &mut Batch,
    ignored: &[Errno],
) -> Result<(), LinkBuilderError> {
    let errors = match netlink.run(batch) {
        Ok(errors) => errors,
        Err(error) => return Err(LinkBuilderError::new(action, &error)),
    };
    match errors.iter().find(|error| !ignored.contains(&error.errno)) {
        None => Ok(()),
        Some(error) => Err(LinkBuilderError::new(action, &error.errno.into())),
    }
}
