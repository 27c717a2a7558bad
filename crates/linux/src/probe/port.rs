//! A port of a bridge for probes: a veth pair whose other end is in a network namespace without a
//! name. The namespace lives as long as the socket of the port, so the kernel removes the pair even
//! if the agent is killed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, Mtu, OverlayName, Subnet};
use overlay_types::advice::Command;
use overlay_types::tunnel::{OverlayBridge, OverlaySubnets};

use super::echo::{EchoRequest, Prober, open_socket};
use crate::cni::{Leases, ProbeLease};
use crate::dataplane::{LinkBuilder, LinkBuilderError};
use crate::namespace::{self, run_thread};

/// Number of bridges that have a port. The probes of further overlays begin at the VTEP.
pub(super) const PORTS_MAX: usize = 4;
/// The names of the ports begin with this word. A number follows.
const PREFIX: &str = "mo-probe";
/// The device at the other end, which only the namespace has.
const INNER: &str = "eth0";
/// Time for an answer from an address that should be free.
const FREE_TIMEOUT: Duration = Duration::from_millis(300);
/// Number of addresses that are asked at the same time. The kernel keeps 1,024 neighbors.
const ANSWERS_AT_ONCE: usize = 256;

/// Returns whether a device is a port of the probes.
#[must_use]
pub fn is_probe_port(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|number| number.parse::<u8>().is_ok())
}

/// Returns the ports that exist. Without an agent there is one only while the kernel still removes
/// it, or if another program keeps its namespace.
#[must_use]
pub fn existing_ports() -> Vec<DeviceName> {
    let names = (0..PORTS_MAX).filter_map(port_name);
    names.filter(|name| if_nametoindex(name.as_str()).is_ok()).collect()
}

/// Removes a port.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_port(name: &DeviceName) -> Result<(), LinkBuilderError> {
    LinkBuilder::open()?.remove(name)
}

fn port_name(index: usize) -> Option<DeviceName> {
    format!("{PREFIX}{index}").parse().ok()
}

/// Removes all ports, which an earlier agent left.
pub(super) fn remove_all() {
    for name in existing_ports() {
        if let Err(error) = remove_port(&name) {
            log::warn!("probes: {error}");
        }
    }
}

/// A port of a bridge. Dropping it removes the port and ends the lease of its address.
#[derive(Debug)]
pub(super) struct Port {
    index: usize,
    name: DeviceName,
    overlay: OverlayName,
    bridge: DeviceName,
    address: IpAddr,
    mtu: Option<Mtu>,
    leases: Leases,
    links: LinkBuilder,
    /// Changes the other end of the port.
    inner_links: LinkBuilder,
    gateway: Ipv4Addr,
    /// The MAC of the bridge that the other end of the port sends to.
    gateway_mac: Option<Mac>,
}

impl Port {
    /// Adds a port to the bridge, and returns it with its socket.
    ///
    /// # Errors
    /// When there is no address for it, or an operation fails, with the remedy.
    pub(super) fn open(
        index: usize,
        overlay: &OverlayName,
        bridge: &OverlayBridge,
        mtu: Option<Mtu>,
        leases: &Leases,
    ) -> Result<(Self, OwnedFd), String> {
        let subnet = bridge.subnets.iter().find(|subnet| subnet.first().is_ipv4());
        let gateway = bridge.gateways.iter().find(|gateway| gateway.address().is_ipv4());
        let (Some(subnet), Some(gateway), Some(name)) = (subnet, gateway, port_name(index)) else {
            return Err("the bridge has no IPv4 subnet".to_owned());
        };
        let IpAddr::V4(gateway) = gateway.address() else {
            return Err("the bridge has no IPv4 gateway".to_owned());
        };
        let refuse = |refused| Err(lease_problem(refused, subnet, &leases.path(overlay)));
        let refused = leases.refuse_probe_address(overlay, subnet);
        if let Some(refused) = refused.map_err(|error| error.to_string())? {
            return refuse(refused);
        }
        let namespace = new_namespace().map_err(|error| namespace_problem(&error))?;
        let mut links = LinkBuilder::open().map_err(|error| error.to_string())?;
        let is_used = |address| has_owner(&mut links, &bridge.device, gateway.into(), address);
        let reserved = leases.reserve_probe_address(overlay, subnet, is_used);
        let address = match reserved.map_err(|error| error.to_string())? {
            ProbeLease::Leased(address) => address,
            refused => return refuse(refused),
        };
        let mut port = Self {
            index,
            name,
            overlay: overlay.clone(),
            bridge: bridge.device.clone(),
            address,
            mtu,
            leases: leases.clone(),
            links,
            inner_links: in_namespace(&namespace, || {
                LinkBuilder::open().map_err(|error| error.to_string())
            })?,
            gateway,
            gateway_mac: None,
        };
        port.add(&namespace, mtu).map_err(|error| error.to_string())?;
        let own = InterfaceAddress::within(subnet, address).ok_or("the address is no host")?;
        let socket = in_namespace(&namespace, || configure(&own, gateway, mtu))?;
        port.follow_gateway();
        Ok((port, socket))
    }

    /// Sets the MAC of the gateway to that of the bridge. Without a permanent entry a container could
    /// get the probes by ARP replies, and answer them in the place of dead peers. The MAC of a bridge
    /// may change with its ports.
    fn follow_gateway(&mut self) {
        let mac = self.links.mac(&self.bridge);
        if mac == self.gateway_mac {
            return;
        }
        let (Some(mac), Ok(inner)) = (mac, INNER.parse::<DeviceName>()) else { return };
        match self.inner_links.set_neighbor(&inner, self.gateway, mac) {
            Ok(()) => self.gateway_mac = Some(mac),
            Err(error) => log::warn!("probes: {error}"),
        }
    }

    fn add(&mut self, namespace: &File, mtu: Option<Mtu>) -> Result<(), LinkBuilderError> {
        let Self { name, links, .. } = self;
        links.remove(name)?;
        let inner: DeviceName = INNER.parse().unwrap_or_else(|_| name.clone());
        // A bridge without an own address takes the lowest address of its ports, and its containers
        // would lose their gateway until they ask for it again.
        let index = u8::try_from(self.index).unwrap_or(u8::MAX);
        let mac = Mac::from([0xfe, 0xff, 0xff, b'm', b'o', index]);
        links.add_veth_pair_with_mac(name, mac, &inner, namespace.as_fd())?;
        // A bridge without an own MTU takes the lowest MTU of its ports.
        links.set_up(name, mtu)?;
        links.set_master(name, &self.bridge)
    }

    pub(super) const fn address(&self) -> IpAddr {
        self.address
    }

    pub(super) const fn mtu(&self) -> Option<Mtu> {
        self.mtu
    }

    pub(super) const fn index(&self) -> usize {
        self.index
    }

    /// Returns whether the port is at the bridge of this overlay, with an address of its subnet that
    /// the containers do not need.
    pub(super) fn is_attached(&mut self, space: &OverlaySubnets) -> bool {
        self.follow_gateway();
        let bridge = space.bridges.iter().find(|bridge| bridge.device == self.bridge);
        bridge.is_some_and(|bridge| {
            bridge.subnets.iter().any(|subnet| {
                subnet.contains(self.address)
                    && self.leases.can_keep_probe_address(&self.overlay, subnet)
            }) && self.links.is_port(&self.name, &self.bridge)
        })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Err(error) = self.links.remove(&self.name) {
            log::warn!("probes: {error}: run {}", Command::remove_device(self.name.as_str()));
        }
        // The kernel reports the address as missing only when ARP requests fail, and sends none
        // while it knows the neighbor.
        if let IpAddr::V4(address) = self.address {
            self.links.remove_neighbor(&self.bridge, address);
        }
        self.leases.release_probe_address(&self.overlay, self.address);
    }
}

/// Returns whether a container has the address, also one that has no lease and drops echo requests:
/// it answers ARP requests of the bridge.
fn has_owner(
    links: &mut LinkBuilder,
    bridge: &DeviceName,
    gateway: IpAddr,
    address: IpAddr,
) -> bool {
    let IpAddr::V4(ip) = address else { return true };
    // A known neighbor may be one of an earlier container or port.
    links.remove_neighbor(bridge, ip);
    let Ok(mut echo) = Prober::open(&[gateway].into()) else { return true };
    let request = EchoRequest { from: gateway, to: address, size: 64 };
    let round = echo.round(&[request], 1, FREE_TIMEOUT);
    round.outcomes.iter().any(super::Outcome::has_reply)
        || fs::read_to_string("/proc/thread-self/net/arp")
            .is_ok_and(|table| is_in_arp_table(&table, bridge.as_str(), address))
}

/// Returns which of the addresses answer at a bridge: a device that no container of this host has may
/// use one. Sends an echo request to each, after an ARP request. `gateway` is the bridge's own
/// address.
///
/// # Errors
/// When no request can be sent, for example without root.
pub fn answering_addresses(
    bridge: &DeviceName,
    gateway: Ipv4Addr,
    addresses: &BTreeSet<Ipv4Addr>,
) -> Result<BTreeSet<Ipv4Addr>, String> {
    let mut links = LinkBuilder::open().map_err(|error| error.to_string())?;
    let mut echo = Prober::open(&[gateway.into()].into())
        .map_err(|error| format!("open a raw socket: {error}"))?;
    let mut answering = BTreeSet::new();
    let all: Vec<Ipv4Addr> = addresses.iter().copied().collect();
    for some in all.chunks(ANSWERS_AT_ONCE) {
        for address in some {
            // A known neighbor may be an earlier container.
            links.remove_neighbor(bridge, *address);
        }
        let request =
            |to: &Ipv4Addr| EchoRequest { from: gateway.into(), to: (*to).into(), size: 64 };
        let requests: Vec<EchoRequest> = some.iter().map(request).collect();
        let round = echo.round(&requests, 1, FREE_TIMEOUT);
        let table = fs::read_to_string("/proc/thread-self/net/arp").unwrap_or_default();
        for (address, outcome) in some.iter().zip(&round.outcomes) {
            if outcome.has_reply() || is_in_arp_table(&table, bridge.as_str(), (*address).into()) {
                answering.insert(*address);
            }
        }
    }
    Ok(answering)
}

/// Returns whether the table of the kernel has a MAC for an address at a device.
fn is_in_arp_table(table: &str, device: &str, address: IpAddr) -> bool {
    // The flag `ATF_COM` of `linux/if_arp.h`.
    const COMPLETE: u32 = 2;
    let address = address.to_string();
    table.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [ip, _, flags, _, _, found] = columns[..] else { return false };
        let flags = flags.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        ip == address && found == device && flags.is_some_and(|flags| flags & COMPLETE != 0)
    })
}

/// Describes why there is no address for a port.
fn lease_problem(refused: ProbeLease, subnet: &Subnet, leases: &Path) -> String {
    match refused {
        ProbeLease::SmallSubnet => format!("subnet {subnet} has no address to spare for them"),
        ProbeLease::NothingLeased => format!(
            "the CNI plugin host-local has leased nothing in {} yet: if containers of the overlay \
             run, see cni_data_dir in the agent_config",
            leases.display()
        ),
        ProbeLease::FewFree => format!("the containers need almost all addresses of {subnet}"),
        ProbeLease::Leased(_) | ProbeLease::NoneFree => format!(
            "the last addresses of {subnet} are in use: see the containers that have one without a \
             lease in {}",
            leases.display()
        ),
    }
}

/// Configures the namespace of a port, and opens the socket of its address.
fn configure(
    own: &InterfaceAddress,
    gateway: Ipv4Addr,
    mtu: Option<Mtu>,
) -> Result<OwnedFd, String> {
    let inner: DeviceName = INNER.parse().map_err(|_| "no device name".to_owned())?;
    let build = || {
        let mut links = LinkBuilder::open()?;
        links.set_up(&inner, mtu)?;
        links.add_address(&inner, own)?;
        links.add_default_route(gateway)
    };
    build().map_err(|error| error.to_string())?;
    open_socket(own.address()).map_err(|error| format!("open a raw socket: {error}"))
}

/// Creates a network namespace, on a thread of its own that ends in it.
fn new_namespace() -> io::Result<File> {
    run_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // The port has IPv4 only, sends no packets that nobody asked for, and is no router for
        // containers. The settings may be read-only, and a kernel without IPv6 has only one.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let _ = fs::write("/proc/sys/net/ipv4/ip_forward", "0");
        File::open("/proc/thread-self/ns/net")
    })
}

/// Calls `act` on a thread in the namespace.
fn in_namespace<T: Send>(
    namespace: &File,
    act: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    namespace::in_namespace(namespace, act).map_err(|error| namespace_problem(&error))?
}

fn namespace_problem(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => ": run the agent as root, or give it CAP_SYS_ADMIN",
        _ => "",
    };
    format!("create a network namespace: {error}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_entry_of_the_bridge_is_an_owner() {
        let table = "\
IP address       HW type     Flags       HW address            Mask     Device
192.168.0.126    0x1         0x2         02:00:00:00:00:01     *        m-vxlan-1
192.168.0.125    0x1         0x0         00:00:00:00:00:00     *        m-vxlan-1
192.168.0.124    0x1         0x2         02:00:00:00:00:01     *        m-vxlan-2
192.168.0.123    0x1         0x6         02:00:00:00:00:01     *        m-vxlan-1
";
        let owned = |last: u8| is_in_arp_table(table, "m-vxlan-1", [192, 168, 0, last].into());
        assert_eq!([126, 125, 124, 123, 12].map(owned), [true, false, false, true, false]);
    }
}
