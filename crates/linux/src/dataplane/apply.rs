//! Applies a plan: devices one by one, since all entries need them, and then the entries in
//! batches. After a failure the other operations continue, except those of a device that could not
//! be added.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::{fs, io};

use overlay_types::addr::{DeviceName, InterfaceAddress, Mac};
use rustix::io::Errno;
use rustix::net::netdevice;

use super::error::Failure;
use super::features;
use super::message::{Batch, family_of};
use super::observe::{
    BRIDGE_KIND, Bridge, Indices, Route, disable_ipv6_setting, forwarding_setting, routes,
    rp_filter_setting,
};
use super::socket::{Netlink, NetlinkError};
use super::state::{Hop, Link, LostBridge, Operation, RouteKey};
use super::uapi::{
    AF_BRIDGE, AF_INET, AF_INET6, AF_UNSPEC, IFA_ADDRESS, IFA_F_NODAD, IFA_FLAGS, IFA_LOCAL,
    IFF_UP, IFLA_ADDRESS, IFLA_BR_VLAN_FILTERING, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING,
    IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_PORT, IFLA_VXLAN_UDP_CSUM, NDA_DST, NDA_LLADDR,
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NTF_SELF, NUD_NOARP, NUD_PERMANENT,
    RT_SCOPE_NOWHERE, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC,
    RTA_PRIORITY, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWNEIGH, RTM_NEWROUTE, RTN_UNICAST, RTN_UNREACHABLE, RTNH_F_ONLINK,
};
use super::{MARK, PROTOCOL};

/// Result of applying a plan.
#[derive(Debug, Default)]
pub(super) struct ApplyResult {
    /// The operations that succeeded.
    pub(super) done: Vec<Operation>,
    /// The operations that the kernel refused.
    pub(super) failures: Vec<Failure>,
    /// Whether another program changed the kernel's state, so that the plan does not match it.
    pub(super) is_stale: bool,
}

/// Applies the operations in order, and records the result of each.
pub(super) fn apply(
    netlink: &mut Netlink,
    indices: &mut Indices,
    operations: Vec<Operation>,
) -> ApplyResult {
    let mut run = ApplyRun {
        netlink,
        indices,
        result: ApplyResult::default(),
        failed_devices: BTreeSet::new(),
    };
    let mut batch = Batch::default();
    let mut pending = Vec::new();
    for operation in operations {
        if operation.device().is_some_and(|device| run.failed_devices.contains(device)) {
            continue;
        }
        if operation.changes_link() {
            run.flush(&mut batch, &mut pending);
            run.change_link(operation, &mut batch);
            continue;
        }
        if run.encode(&operation, &mut batch) {
            pending.push(operation);
        }
        if Netlink::is_full(&batch) {
            run.flush(&mut batch, &mut pending);
        }
    }
    run.flush(&mut batch, &mut pending);
    run.adopt_routes();
    run.result
}

/// The state while a plan is applied.
struct ApplyRun<'a> {
    netlink: &'a mut Netlink,
    indices: &'a mut Indices,
    result: ApplyResult,
    /// Devices that could not be added.
    failed_devices: BTreeSet<DeviceName>,
}

impl ApplyRun<'_> {
    /// Sends the pending operations and records their results.
    fn flush(&mut self, batch: &mut Batch, pending: &mut Vec<Operation>) {
        match self.netlink.run(batch) {
            Ok(errors) => {
                let mut errors = errors.into_iter().peekable();
                for (index, operation) in pending.drain(..).enumerate() {
                    match errors.next_if(|error| error.index == index) {
                        None => self.result.done.push(operation),
                        Some(error) => self.result.add_error(operation, error),
                    }
                }
            }
            Err(error) => self.record_lost_answers(pending.drain(..), &error),
        }
        batch.clear();
    }

    /// Records operations whose answers were lost. Whether they took effect is unknown, so they
    /// count as failed until the kernel's state is read again.
    fn record_lost_answers(
        &mut self,
        operations: impl IntoIterator<Item = Operation>,
        error: &io::Error,
    ) {
        log::warn!("lost the kernel's answers: {error}: the kernel's state is read again");
        self.result.is_stale = true;
        // Answers that cannot be drained have the sequence numbers of earlier requests, and are
        // ignored later.
        let _ = self.netlink.drain();
        let operations = operations.into_iter();
        let failures = operations.map(|operation| Failure::unanswered(operation, error));
        self.result.failures.extend(failures);
    }

    /// Adopts the routes that exist already and use one of our devices: an earlier dataplane made
    /// them. All other existing routes are foreign, and the failure names them.
    fn adopt_routes(&mut self) {
        if !self.result.failures.iter().any(|failure| failure.existing_route().is_some()) {
            return;
        }
        let mut existing = Vec::new();
        for family in [AF_INET, AF_INET6] {
            match routes(self.netlink, family) {
                Ok(routes) => existing.extend(routes),
                // The failures stay. The next verification tries again.
                Err(error) => log::warn!("read the routes that exist already: {error}"),
            }
        }
        let mut batch = Batch::default();
        let mut pending = Vec::new();
        for mut failure in std::mem::take(&mut self.result.failures) {
            let found = failure.existing_route().and_then(|(key, hop)| {
                existing.iter().find(|route| route.key == *key).map(|route| (route, key, hop))
            });
            match found {
                Some((route, key, hop)) if self.is_ours(route) => {
                    let change = Operation::ChangeRoute(*key, hop.clone());
                    if self.encode(&change, &mut batch) {
                        pending.push(change);
                    }
                    if Netlink::is_full(&batch) {
                        self.flush(&mut batch, &mut pending);
                    }
                }
                Some((route, ..)) => {
                    failure.holder = Some(self.holder(route));
                    self.result.failures.push(failure);
                }
                None => self.result.failures.push(failure),
            }
        }
        self.flush(&mut batch, &mut pending);
    }

    fn is_ours(&self, route: &Route) -> bool {
        let is_on_managed_device =
            self.indices.vxlan.values().any(|index| Some(*index) == route.index);
        is_on_managed_device || route.protocol == PROTOCOL
    }

    /// Describes the existing route that conflicts with an operation.
    fn holder(&self, route: &Route) -> String {
        let name = route
            .index
            .and_then(|index| netdevice::index_to_name(self.netlink.borrowed(), index).ok());
        match name {
            Some(name) => format!("a route through {name}"),
            None => format!("a route of protocol {}", route.protocol),
        }
    }

    /// Applies an operation on a device itself, and waits for the result.
    fn change_link(&mut self, operation: Operation, batch: &mut Batch) {
        let done = match &operation {
            Operation::EnableIpv6(device) => fs::write(disable_ipv6_setting(device), "0"),
            Operation::SetLooseRpFilter(device) => fs::write(rp_filter_setting(device), "2"),
            Operation::EnableForwarding(device, family) => {
                fs::write(forwarding_setting(device, *family), "1")
            }
            Operation::DisableChecksumOffload(device) => {
                features::disable_checksum_offload(device.as_str())
            }
            _ => {
                if !self.encode(&operation, batch) {
                    return;
                }
                let errors = self.netlink.run(batch);
                batch.clear();
                match errors.map(|errors| errors.into_iter().next()) {
                    Ok(None) => Ok(()),
                    Ok(Some(error)) => {
                        if let Some(device) = operation.added_device() {
                            self.failed_devices.insert(device.clone());
                        }
                        self.result.add_error(operation, error);
                        return;
                    }
                    Err(error) => return self.record_lost_answers([operation], &error),
                }
            }
        };
        if let Err(error) = done.and_then(|()| self.update_index(&operation)) {
            self.result.failures.push(Failure::io(operation, &error));
        } else {
            self.result.done.push(operation);
        }
    }

    /// Records the index of an added device, and deletes the index of a removed device.
    fn update_index(&mut self, operation: &Operation) -> io::Result<()> {
        match operation {
            Operation::AddDevice(device, _) => {
                let index = netdevice::name_to_index(self.netlink.borrowed(), device.as_str())?;
                self.indices.vxlan.insert(device.clone(), index);
            }
            Operation::AddBridge(device, _) => {
                let index = netdevice::name_to_index(self.netlink.borrowed(), device.as_str())?;
                self.indices.bridges.insert(device.clone(), index);
                self.indices.all_bridges.insert(index);
            }
            Operation::RemoveDevice(device) => {
                self.indices.vxlan.remove(device);
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds the request of an operation to the batch. Returns `false` if its device is missing.
    fn encode(&mut self, operation: &Operation, batch: &mut Batch) -> bool {
        let index = operation.device().map(|device| self.indices.get(device));
        let index = match (operation, index) {
            (Operation::AddDevice(..) | Operation::AddBridge(..), _) | (_, None) => 0,
            (_, Some(Some(index))) => index,
            (_, Some(None)) => {
                self.result.is_stale = true;
                self.result.failures.push(Failure::without_device(operation.clone()));
                return false;
            }
        };
        encode_operation(operation, index, batch);
        true
    }
}

impl ApplyResult {
    /// Records the kernel's error. The removal of a missing object counts as done. Any other
    /// operation on a missing object shows that another program removed it.
    fn add_error(&mut self, operation: Operation, error: NetlinkError) {
        let NetlinkError { errno, message, .. } = error;
        let is_missing = matches!(errno, Errno::NOENT | Errno::SRCH | Errno::NODEV);
        let is_removal = matches!(
            operation,
            Operation::RemoveDevice(_)
                | Operation::RemoveAddress(..)
                | Operation::RemoveNeighbor(..)
                | Operation::RemoveForward(..)
                | Operation::RemoveRoute(..)
        );
        if is_removal && (is_missing || errno == Errno::ADDRNOTAVAIL) {
            self.done.push(operation);
            return;
        }
        // The CNI plugin was faster.
        let exists = matches!(operation, Operation::AddBridge(..)) && errno == Errno::EXIST;
        self.is_stale |= is_missing || exists;
        self.failures.push(Failure::new(operation, errno, message));
    }
}

impl Failure {
    /// Returns the route that could not be added because a route with the same key exists.
    fn existing_route(&self) -> Option<(&RouteKey, &Hop)> {
        match &self.operation {
            Operation::AddRoute(key, hop) if self.errno == Some(Errno::EXIST) => Some((key, hop)),
            _ => None,
        }
    }
}

impl Operation {
    /// Returns the device that the operation adds.
    const fn added_device(&self) -> Option<&DeviceName> {
        match self {
            Self::AddDevice(device, _) | Self::AddBridge(device, _) => Some(device),
            _ => None,
        }
    }

    /// Returns whether the operation changes a device itself. Later operations depend on its
    /// result.
    const fn changes_link(&self) -> bool {
        matches!(
            self,
            Self::AddDevice(..)
                | Self::RemoveDevice(_)
                | Self::AddBridge(..)
                | Self::AttachPort(..)
                | Self::Mark(_)
                | Self::SetUnderlay(..)
                | Self::StopLearning(_)
                | Self::SetMac(..)
                | Self::SetMtu(..)
                | Self::EnableIpv6(_)
                | Self::SetLooseRpFilter(_)
                | Self::EnableForwarding(..)
                | Self::DisableChecksumOffload(_)
                | Self::Release(_)
                | Self::DisableVlanFiltering(_)
                | Self::SetUp(_)
        )
    }
}

/// Makes a device a port of `master`, or of no device if that is 0.
fn set_master(batch: &mut Batch, port: u32, master: u32) {
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(port, 0, 0));
    batch.attribute(IFLA_MASTER, &master.to_ne_bytes());
}

fn disable_vlan_filtering(batch: &mut Batch, index: u32) {
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
    batch.nested(IFLA_LINKINFO, |batch| {
        batch.text(IFLA_INFO_KIND, BRIDGE_KIND);
        batch.nested(IFLA_INFO_DATA, |batch| batch.attribute(IFLA_BR_VLAN_FILTERING, &[0]));
    });
}

/// Adds the request of an operation on the device with `index`.
fn encode_operation(operation: &Operation, index: u32, batch: &mut Batch) {
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    match operation {
        Operation::AddDevice(device, link) => add_device(batch, device, link),
        Operation::RemoveDevice(_) => {
            batch.begin(RTM_DELLINK, NLM_F_REQUEST, &if_header(index, 0, 0))
        }
        Operation::AddBridge(device, lost) => add_bridge(batch, device, lost),
        Operation::AttachPort(_, port) => set_master(batch, port.index, index),
        Operation::Mark(_) => {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
            batch.attribute(IFLA_IFALIAS, MARK.as_bytes());
        }
        Operation::SetUnderlay(_, ip) => change_vxlan(batch, index, |batch| {
            batch.address(local_attribute(*ip), *ip);
        }),
        Operation::StopLearning(_) => {
            change_vxlan(batch, index, |batch| batch.attribute(IFLA_VXLAN_LEARNING, &[0]));
        }
        Operation::SetMac(_, mac) => {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
            batch.attribute(IFLA_ADDRESS, &mac.octets());
        }
        Operation::SetMtu(_, mtu) => {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
            batch.attribute(IFLA_MTU, &mtu.bytes().to_ne_bytes());
        }
        Operation::SetUp(_) => {
            batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, IFF_UP, IFF_UP));
        }
        Operation::Release(_) => set_master(batch, index, 0),
        Operation::DisableVlanFiltering(_) => disable_vlan_filtering(batch, index),
        // `change_link` writes these settings to files, not to the socket.
        Operation::EnableIpv6(_)
        | Operation::SetLooseRpFilter(_)
        | Operation::EnableForwarding(..)
        // By a socket of its own.
        | Operation::DisableChecksumOffload(_) => {}
        Operation::AddAddress(_, ip) => write_address(batch, RTM_NEWADDR, SET, index, ip),
        Operation::RemoveAddress(_, ip) => write_address(batch, RTM_DELADDR, 0, index, ip),
        Operation::SetNeighbor(_, ip, mac) => {
            batch.begin(
                RTM_NEWNEIGH,
                NLM_F_REQUEST | SET,
                &neighbor_header(family_of(*ip), index, NUD_PERMANENT, 0),
            );
            batch.address(NDA_DST, *ip);
            batch.attribute(NDA_LLADDR, &mac.octets());
        }
        Operation::RemoveNeighbor(_, ip) => {
            let header = neighbor_header(family_of(*ip), index, 0, 0);
            batch.begin(RTM_DELNEIGH, NLM_F_REQUEST, &header);
            batch.address(NDA_DST, *ip);
        }
        Operation::SetForward(_, mac, agent) => {
            write_forward(batch, RTM_NEWNEIGH, SET, index, *mac);
            batch.address(NDA_DST, *agent);
        }
        Operation::RemoveForward(_, mac, agent) => {
            write_forward(batch, RTM_DELNEIGH, 0, index, *mac);
            batch.address(NDA_DST, *agent);
        }
        Operation::AddRoute(key, hop) => {
            write_route(batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, key, Some(hop), index);
        }
        Operation::ChangeRoute(key, hop) => {
            write_route(batch, RTM_NEWROUTE, NLM_F_REPLACE, key, Some(hop), index);
        }
        Operation::RemoveRoute(key, _) => write_route(batch, RTM_DELROUTE, 0, key, None, 0),
    }
}

/// Removes a bridge by its index, because another device may have the name by now.
pub(super) fn remove_bridge(netlink: &mut Netlink, bridge: &Bridge) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.begin(RTM_DELLINK, NLM_F_REQUEST, &if_header(bridge.index, 0, 0));
    match netlink.run(&mut batch)?.first() {
        Some(error) if error.errno != Errno::NODEV => Err(error.errno.into()),
        _ => Ok(()),
    }
}

pub(super) fn if_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = AF_UNSPEC;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Adds a device together with its MAC: setting the MAC later flushes the neighbor tables, and
/// systemd assigns a MAC to a device without one.
fn add_device(batch: &mut Batch, device: &DeviceName, link: &Link) {
    let header = if_header(0, IFF_UP, IFF_UP);
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &header);
    batch.text(IFLA_IFNAME, device.as_str());
    batch.attribute(IFLA_ADDRESS, &link.mac.octets());
    batch.attribute(IFLA_MTU, &link.mtu.bytes().to_ne_bytes());
    batch.nested(IFLA_LINKINFO, |batch| {
        batch.text(IFLA_INFO_KIND, "vxlan");
        batch.nested(IFLA_INFO_DATA, |batch| {
            batch.attribute(IFLA_VXLAN_ID, &link.identity.vni.number().to_ne_bytes());
            batch.attribute(IFLA_VXLAN_PORT, &link.identity.port.to_be_bytes());
            batch.attribute(IFLA_VXLAN_LEARNING, &[u8::from(link.is_learning)]);
            if let Some(underlay) = link.underlay {
                batch.address(local_attribute(underlay), underlay);
            }
            batch.attribute(IFLA_VXLAN_UDP_CSUM, &[u8::from(link.has_checksum)]);
        });
    });
}

/// Adds a bridge with the MAC that its containers know as that of their gateway.
fn add_bridge(batch: &mut Batch, device: &DeviceName, lost: &LostBridge) {
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &if_header(0, 0, 0));
    batch.text(IFLA_IFNAME, device.as_str());
    if let Some(mac) = lost.mac {
        batch.attribute(IFLA_ADDRESS, &mac.octets());
    }
    batch.attribute(IFLA_MTU, &lost.mtu.bytes().to_ne_bytes());
    batch.nested(IFLA_LINKINFO, |batch| batch.text(IFLA_INFO_KIND, BRIDGE_KIND));
}

fn change_vxlan(batch: &mut Batch, index: u32, write: impl FnOnce(&mut Batch)) {
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
    batch.nested(IFLA_LINKINFO, |batch| {
        batch.text(IFLA_INFO_KIND, "vxlan");
        batch.nested(IFLA_INFO_DATA, write);
    });
}

const fn local_attribute(underlay: IpAddr) -> u16 {
    if underlay.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 }
}

/// The address is unique in the overlay, so IPv6 duplicate address detection is skipped: the
/// address would be unusable meanwhile.
pub(super) fn write_address(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    index: u32,
    ip: &InterfaceAddress,
) {
    let mut header = [0; 8];
    (header[0], header[1], header[3]) = (family_of(ip.address()), ip.prefix(), RT_SCOPE_UNIVERSE);
    header[4..].copy_from_slice(&index.to_ne_bytes());
    batch.begin(kind, NLM_F_REQUEST | flags, &header);
    batch.address(IFA_LOCAL, ip.address());
    batch.address(IFA_ADDRESS, ip.address());
    if kind == RTM_NEWADDR && ip.address().is_ipv6() {
        batch.attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
    }
}

fn neighbor_header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

fn write_forward(batch: &mut Batch, kind: u16, flags: u16, index: u32, mac: Mac) {
    let header = neighbor_header(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF);
    batch.begin(kind, NLM_F_REQUEST | flags, &header);
    batch.attribute(NDA_LLADDR, &mac.octets());
}

/// Returns the scope of a route to a peer. The kernel searches the next hops of all routes with the
/// same scope, metric and device one by one when it adds a route (`fib_find_info` in
/// `net/ipv4/fib_semantics.c`), so the routes get different scopes. Below `RT_SCOPE_SITE`, a scope
/// decides about nothing else. IPv6 has no scopes.
const fn scope_of(gateway: IpAddr) -> u8 {
    match gateway {
        IpAddr::V4(gateway) => gateway.octets()[3] & 0x7f,
        IpAddr::V6(_) => RT_SCOPE_UNIVERSE,
    }
}

fn write_route(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    key: &RouteKey,
    hop: Option<&Hop>,
    index: u32,
) {
    let (scope, route_type, route_flags) = match hop {
        Some(Hop::Via { gateway, is_onlink, .. }) => {
            let flags = if *is_onlink { RTNH_F_ONLINK } else { 0 };
            (scope_of(*gateway), RTN_UNICAST, flags)
        }
        Some(Hop::Direct { gateway, .. }) => (scope_of(*gateway), RTN_UNICAST, RTNH_F_ONLINK),
        Some(_) => (RT_SCOPE_UNIVERSE, RTN_UNREACHABLE, 0),
        None => (RT_SCOPE_NOWHERE, 0, 0),
    };
    let to = key.subnet.first();
    let mut header = [0; 12];
    (header[0], header[1], header[4]) = (family_of(to), key.subnet.prefix(), RT_TABLE_MAIN);
    (header[5], header[6], header[7]) = (PROTOCOL, scope, route_type);
    header[8..].copy_from_slice(&route_flags.to_ne_bytes());
    batch.begin(kind, NLM_F_REQUEST | flags, &header);
    batch.address(RTA_DST, to);
    batch.attribute(RTA_PRIORITY, &key.metric.to_ne_bytes());
    if let Some(Hop::Direct { source, .. }) = hop {
        batch.address(RTA_PREFSRC, *source);
    }
    if let Some(Hop::Via { gateway, .. } | Hop::Direct { gateway, .. }) = hop {
        batch.address(RTA_GATEWAY, *gateway);
        batch.attribute(RTA_OIF, &index.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use netlink_sys::protocols::NETLINK_ROUTE;
    use rustix::net::sockopt;

    use super::*;

    /// Returns operations on a device that does not exist. The kernel refuses each of them, so they
    /// change nothing.
    fn removals(count: u8) -> (Indices, Vec<Operation>) {
        let device: DeviceName = "vtep1024".parse().unwrap();
        let vxlan = [(device.clone(), 0x7fff_ffff)].into();
        let indices = Indices { vxlan, ..Indices::default() };
        let remove = |last| Operation::RemoveNeighbor(device.clone(), [192, 0, 2, last].into());
        (indices, (0..count).map(remove).collect())
    }

    #[test]
    fn lost_answers_are_failures() {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        // The smallest buffer of the kernel holds only some of the answers.
        sockopt::set_socket_recv_buffer_size(netlink.borrowed(), 1).unwrap();
        let (mut indices, operations) = removals(200);
        let result = apply(&mut netlink, &mut indices, operations.clone());
        assert!(result.is_stale && result.done.is_empty(), "{result:?}");
        let failed: Vec<_> = result.failures.iter().map(|failure| &failure.operation).collect();
        assert_eq!(failed, operations.iter().collect::<Vec<_>>());
        assert_eq!(
            result.failures[0].to_string(),
            "remove neighbor 192.0.2.0 on vtep1024: the kernel's answer was lost (no buffer space \
             available): the next verification tries again"
        );
        // The next answers belong to the next requests.
        let (_, operations) = removals(1);
        let result = apply(&mut netlink, &mut indices, operations);
        assert!(!result.is_stale, "{result:?}");
        assert_eq!(result.done.len() + result.failures.len(), 1);
    }

    #[test]
    fn operation_on_missing_device_is_failure() {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let (_, operations) = removals(1);
        let result = apply(&mut netlink, &mut Indices::default(), operations);
        assert!(result.is_stale && result.done.is_empty(), "{result:?}");
        assert_eq!(
            result.failures[0].to_string(),
            "remove neighbor 192.0.2.0 on vtep1024: another program removed the device: the next \
             verification tries again"
        );
    }
}
