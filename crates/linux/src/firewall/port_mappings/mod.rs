//! Ports of the host that lead to containers, for the CNI plugin: elements of nftables maps, or
//! rules of iptables where nft is missing.
//!
//! The address of a mapping tells its owner, since a lease is exclusive. So the mappings of a
//! container can be removed without a record of their own: by the plugin, and by the agent if it
//! releases the lease of a container that is gone.

mod ipt;
mod nft;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use overlay_types::addr::DeviceName;
use overlay_types::port_mapping::{PortMapping, PortProtocol};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub(super) use self::ipt::CHAIN;
pub(super) use self::nft::TABLE;
use super::command::{FirewallError, SystemTools, Tools};

/// The file whose lock the plugin holds while it changes rules of iptables, which have no
/// transaction that could refuse a second mapping of a port. Each network namespace has its own
/// rules, and this file is another one in each.
const LOCK: &str = "/proc/self/ns/net";
/// Interval and number of the attempts to lock: 10 s, in which many containers can be attached.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
const LOCK_TRIES: u32 = 500;

/// Why ports cannot be mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortMappingError {
    /// Another container has the port.
    #[error("port {port}/{protocol} of the host leads to {address} already")]
    Taken {
        /// The port of the host.
        port: u16,
        /// The protocol.
        protocol: PortProtocol,
        /// The address of the other container.
        address: IpAddr,
    },
    /// Neither nft nor iptables is installed.
    #[error("port mappings need nft or iptables")]
    NoProgram,
    /// The output of nft is not as expected.
    #[error("port mappings: read the output of nft: {0}")]
    Listing(String),
    /// Another process holds the lock, or it cannot be opened.
    #[error("port mappings: lock {LOCK}: {0}")]
    Lock(String),
    /// A program failed.
    #[error("port mappings: {}", .0.cause())]
    Firewall(#[from] FirewallError),
}

/// A port mapping to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Mapped {
    mapping: PortMapping,
    address: IpAddr,
}

impl Mapped {
    const fn key(&self) -> (bool, PortProtocol, u16) {
        (self.address.is_ipv4(), self.mapping.protocol, self.mapping.host_port)
    }
}

/// The mappings of one container.
#[derive(Debug)]
struct Request<'a> {
    bridge: &'a DeviceName,
    /// Each mapping to each address of the container.
    desired: BTreeSet<Mapped>,
    addresses: &'a [IpAddr],
}

/// The mappings that a call removes and adds.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    /// Mappings to the same address, or to containers that are gone.
    removed: BTreeSet<Mapped>,
    added: BTreeSet<Mapped>,
}

impl<'a> Request<'a> {
    fn new(bridge: &'a DeviceName, mappings: &[PortMapping], addresses: &'a [IpAddr]) -> Self {
        let to_each = |mapping: &PortMapping| {
            let mapping = *mapping;
            addresses.iter().map(move |address| Mapped { mapping, address: *address })
        };
        Self { bridge, desired: mappings.iter().flat_map(to_each).collect(), addresses }
    }

    /// Compares the mappings of the container with those of the host.
    fn plan(
        &self,
        found: &BTreeSet<Mapped>,
        is_stale: &dyn Fn(IpAddr) -> bool,
    ) -> Result<Changes, PortMappingError> {
        let is_own = |found: &&Mapped| self.addresses.contains(&found.address);
        let outdated = found.iter().filter(|it| is_own(it) && !self.desired.contains(it));
        let mut removed: BTreeSet<Mapped> = outdated.copied().collect();
        for desired in &self.desired {
            let mut others = found.iter().filter(|it| it.key() == desired.key() && !is_own(it));
            let Some(other) = others.next() else { continue };
            if !is_stale(other.address) {
                let PortMapping { host_port: port, protocol, .. } = desired.mapping;
                return Err(PortMappingError::Taken { port, protocol, address: other.address });
            }
            removed.insert(*other);
        }
        Ok(Changes { removed, added: self.desired.difference(found).copied().collect() })
    }
}

/// Maps ports of the host to each address of a container. Replaces other mappings to the addresses,
/// and mappings of the ports to addresses that `is_stale` names. Packets of the bridge itself are
/// not mapped: the replies to them would not pass the host.
///
/// # Errors
/// When another container has a port, no program is installed, or a program fails.
pub fn map_ports(
    bridge: &DeviceName,
    mappings: &[PortMapping],
    addresses: &[IpAddr],
    is_stale: &dyn Fn(IpAddr) -> bool,
) -> Result<(), PortMappingError> {
    let request = Request::new(bridge, mappings, addresses);
    map(&SystemTools::default(), &request, is_stale)
}

fn map(
    tools: &dyn Tools,
    request: &Request<'_>,
    is_stale: &dyn Fn(IpAddr) -> bool,
) -> Result<(), PortMappingError> {
    if tools.has("nft") {
        match repeat_refused(|| nft::map(tools, request, is_stale)) {
            // The kernel has no nftables, or none with maps of addresses and ports. With the table
            // it has both, and the rules of iptables would not see the mappings of the table.
            Err(PortMappingError::Firewall(error))
                if error.is_missing_feature() && !nft::exists(tools)? =>
            {
                if !ipt::is_installed(tools) {
                    return Err(error.into());
                }
            }
            result => return result,
        }
    }
    if !ipt::is_installed(tools) {
        return Err(PortMappingError::NoProgram);
    }
    let _lock = lock()?;
    ipt::map(tools, request, is_stale)
}

/// Runs a change once more if a program refuses it: another process may have changed the mappings
/// since they were listed, and then the whole transaction fails.
fn repeat_refused(
    change: impl Fn() -> Result<(), PortMappingError>,
) -> Result<(), PortMappingError> {
    match change() {
        Err(PortMappingError::Firewall(FirewallError::Refused { .. })) => change(),
        result => result,
    }
}

/// Removes all mappings to the addresses. Without a program there are none.
///
/// # Errors
/// When a program fails.
pub fn unmap_ports(addresses: &BTreeSet<IpAddr>) -> Result<(), PortMappingError> {
    unmap(&SystemTools::default(), addresses)
}

fn unmap(tools: &dyn Tools, addresses: &BTreeSet<IpAddr>) -> Result<(), PortMappingError> {
    repeat_refused(|| nft::unmap(tools, addresses))?;
    if ipt::is_installed(tools) && ipt::has_mappings(tools, addresses)? {
        let _lock = lock()?;
        ipt::unmap(tools, addresses)?;
    }
    Ok(())
}

/// Describes the table or the chains of all mappings for an operator.
///
/// # Errors
/// When a program fails: then it is unknown which rules exist.
pub fn list_port_mappings() -> Result<Vec<String>, FirewallError> {
    describe(&SystemTools::default())
}

fn describe(tools: &dyn Tools) -> Result<Vec<String>, FirewallError> {
    let table = nft::exists(tools)?.then(|| format!("nftables table {TABLE}"));
    let mut found: Vec<String> = table.into_iter().collect();
    found.extend(ipt::describe(tools)?);
    Ok(found)
}

/// Removes the table or the chains of all mappings.
///
/// # Errors
/// When a program fails.
pub fn remove_port_mappings() -> Result<(), FirewallError> {
    remove_all(&SystemTools::default())
}

fn remove_all(tools: &dyn Tools) -> Result<(), FirewallError> {
    nft::remove_all(tools)?;
    ipt::remove_all(tools)
}

/// Waits for the lock of the mappings of this host. Every user of the host can hold this lock, so
/// the wait is bounded.
#[expect(clippy::disallowed_methods, reason = "the callers wait for programs as well")]
fn lock() -> Result<File, PortMappingError> {
    let failed = |error: &dyn std::fmt::Display| PortMappingError::Lock(error.to_string());
    let file = File::open(LOCK).map_err(|error| failed(&error))?;
    for _ in 0..LOCK_TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR | Errno::WOULDBLOCK) => thread::sleep(LOCK_INTERVAL),
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(failed(&"another process holds it"))
}

#[cfg(test)]
mod tests;
