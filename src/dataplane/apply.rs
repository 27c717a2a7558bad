//! Does what a plan says: devices one by one, since everything else needs them, and then all the
//! rest in batches. An operation that fails takes nothing with it but what hangs on its device.

use std::collections::BTreeSet;
use std::io;

use super::error::Failure;
use super::message::{Batch, family_of};
use super::observe::{Indices, Route, routes};
use super::socket::{Netlink, Refusal};
use super::state::{Hop, Link, Operation, RouteKey};
use super::sysctl::write_number;
use super::uapi::{
    AF_BRIDGE, AF_INET, AF_INET6, AF_UNSPEC, EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH,
    IFA_ADDRESS, IFA_F_NODAD, IFA_FLAGS, IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_IFALIAS,
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_VXLAN_ID,
    IFLA_VXLAN_LEARNING, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_PORT, IFLA_VXLAN_UDP_CSUM,
    NDA_DST, NDA_LLADDR, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NTF_SELF,
    NUD_NOARP, NUD_PERMANENT, RT_SCOPE_NOWHERE, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST,
    RTA_GATEWAY, RTA_OIF, RTA_PRIORITY, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTN_UNICAST, RTN_UNREACHABLE,
    RTNH_F_ONLINK,
};
use super::{MARK, PROTOCOL};
use crate::addr::{DeviceName, InterfaceAddress, Mac};

/// What became of a plan.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// What was done.
    pub(super) done: Vec<Operation>,
    /// What was refused.
    pub(super) failures: Vec<Failure>,
    /// Whether the kernel's state was not what the plan was made for: somebody else changed it.
    pub(super) is_stale: bool,
}

pub(super) fn apply(
    netlink: &mut Netlink,
    indices: &mut Indices,
    operations: Vec<Operation>,
) -> Applied {
    let mut run = Run { netlink, indices, applied: Applied::default(), lost: BTreeSet::new() };
    let mut batch = Batch::default();
    let mut waiting = Vec::new();
    for operation in operations {
        if operation.device().is_some_and(|device| run.lost.contains(device)) {
            continue;
        }
        if operation.is_of_link() {
            run.flush(&mut batch, &mut waiting);
            run.change_link(operation, &mut batch);
            continue;
        }
        if run.write(&operation, &mut batch) {
            waiting.push(operation);
        }
        if Netlink::is_full(&batch) {
            run.flush(&mut batch, &mut waiting);
        }
    }
    run.flush(&mut batch, &mut waiting);
    run.take_over();
    run.applied
}

struct Run<'a> {
    netlink: &'a mut Netlink,
    indices: &'a mut Indices,
    applied: Applied,
    /// Devices that could not be made.
    lost: BTreeSet<DeviceName>,
}

impl Run<'_> {
    /// Sends what waits.
    fn flush(&mut self, batch: &mut Batch, waiting: &mut Vec<Operation>) {
        let refused = match self.netlink.run(batch) {
            Ok(refused) => refused,
            Err(error) => {
                log::warn!("the kernel's answers are lost: {error}: its state is read again");
                self.applied.is_stale = true;
                let _ = self.netlink.drain();
                Vec::new()
            }
        };
        batch.clear();
        let mut refused = refused.into_iter().peekable();
        for (index, operation) in waiting.drain(..).enumerate() {
            match refused.next_if(|refusal| refusal.index == index) {
                None => self.applied.done.push(operation),
                Some(refusal) => self.applied.refused(operation, refusal),
            }
        }
    }

    /// What to do with routes that are there already: through a device of ours they are those of an
    /// earlier dataplane, and become ours. All others belong to somebody.
    fn take_over(&mut self) {
        let is_there = |failure: &Failure| {
            failure.errno == EEXIST && matches!(failure.operation, Operation::AddRoute(..))
        };
        if !self.applied.failures.iter().any(is_there) {
            return;
        }
        let mut there = Vec::new();
        for family in [AF_INET, AF_INET6] {
            there.extend(routes(self.netlink, family, None).unwrap_or_default());
        }
        let mut batch = Batch::default();
        let mut waiting = Vec::new();
        for mut failure in std::mem::take(&mut self.applied.failures) {
            let found = match &failure.operation {
                Operation::AddRoute(key, hop) if failure.errno == EEXIST => {
                    there.iter().find(|route| route.key == *key).map(|route| (route, key, hop))
                }
                _ => None,
            };
            match found {
                Some((route, key, hop)) if self.is_ours(route) => {
                    let change = Operation::ChangeRoute(*key, hop.clone());
                    if self.write(&change, &mut batch) {
                        waiting.push(change);
                    }
                    if Netlink::is_full(&batch) {
                        self.flush(&mut batch, &mut waiting);
                    }
                }
                Some((route, ..)) => {
                    failure.holder = Some(self.holder(route));
                    self.applied.failures.push(failure);
                }
                None => self.applied.failures.push(failure),
            }
        }
        self.flush(&mut batch, &mut waiting);
    }

    fn is_ours(&self, route: &Route) -> bool {
        let is_on_ours = self.indices.values().any(|index| Some(*index) == route.index);
        is_on_ours || route.protocol == PROTOCOL
    }

    fn holder(&self, route: &Route) -> String {
        let name = route.index.and_then(|index| {
            rustix::net::netdevice::index_to_name(self.netlink.borrowed(), index).ok()
        });
        match name {
            Some(name) => format!("a route through {name}"),
            None => format!("a route of protocol {}", route.protocol),
        }
    }

    fn change_link(&mut self, operation: Operation, batch: &mut Batch) {
        let done = match &operation {
            Operation::EnableIpv6(device) => {
                write_number(&format!("ipv6/conf/{device}/disable_ipv6"), 0)
            }
            Operation::Loosen(device) => write_number(&format!("ipv4/conf/{device}/rp_filter"), 2),
            _ => {
                if !self.write(&operation, batch) {
                    return;
                }
                let refused = self.netlink.run(batch);
                batch.clear();
                match refused.map(|refused| refused.into_iter().next()) {
                    Ok(None) => Ok(()),
                    Ok(Some(refusal)) => {
                        if let Operation::AddDevice(device, _) = &operation {
                            self.lost.insert(device.clone());
                        }
                        self.applied.refused(operation, refusal);
                        return;
                    }
                    Err(error) => Err(error),
                }
            }
        };
        if let Err(error) = done.and_then(|()| self.note_device(&operation)) {
            self.applied.failures.push(Failure::io(operation, &error));
        } else {
            self.applied.done.push(operation);
        }
    }

    /// Takes note of the index of a new device.
    fn note_device(&mut self, operation: &Operation) -> io::Result<()> {
        match operation {
            Operation::AddDevice(device, _) => {
                let index = rustix::net::netdevice::name_to_index(
                    self.netlink.borrowed(),
                    device.as_str(),
                )?;
                self.indices.insert(device.clone(), index);
            }
            Operation::RemoveDevice(device) => {
                self.indices.remove(device);
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes the request of an operation. `false` if its device is not there.
    fn write(&mut self, operation: &Operation, batch: &mut Batch) -> bool {
        let index = operation.device().map(|device| self.indices.get(device).copied());
        let index = match (operation, index) {
            (Operation::AddDevice(..), _) | (_, None) => 0,
            (_, Some(Some(index))) => index,
            (_, Some(None)) => {
                self.applied.is_stale = true;
                return false;
            }
        };
        write(operation, index, batch);
        true
    }
}

impl Applied {
    /// What is gone need not be removed; what vanished under our hands is looked at again.
    fn refused(&mut self, operation: Operation, refusal: Refusal) {
        let Refusal { errno, said, .. } = refusal;
        let is_gone = matches!(errno, ENOENT | ESRCH | ENODEV | EADDRNOTAVAIL);
        let is_removal = matches!(
            operation,
            Operation::RemoveDevice(_)
                | Operation::RemoveAddress(..)
                | Operation::RemoveNeighbour(..)
                | Operation::RemoveForward(..)
                | Operation::RemoveRoute(..)
        );
        if is_removal && is_gone {
            self.done.push(operation);
            return;
        }
        self.is_stale |= matches!(errno, ENOENT | ESRCH | ENODEV);
        self.failures.push(Failure::new(operation, errno, said));
    }
}

impl Operation {
    /// Whether others wait for it.
    const fn is_of_link(&self) -> bool {
        matches!(
            self,
            Self::AddDevice(..)
                | Self::RemoveDevice(_)
                | Self::Mark(_)
                | Self::SetUnderlay(..)
                | Self::StopLearning(_)
                | Self::SetMac(..)
                | Self::SetMtu(..)
                | Self::EnableIpv6(_)
                | Self::Loosen(_)
                | Self::SetUp(_)
        )
    }
}

/// The request of an operation on the device with `index`.
fn write(operation: &Operation, index: u32, batch: &mut Batch) {
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    match operation {
        Operation::AddDevice(device, link) => add_device(batch, device, link),
        Operation::RemoveDevice(_) => {
            batch.begin(RTM_DELLINK, NLM_F_REQUEST, &if_header(index, 0, 0))
        }
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
        // Written to files, not to the socket.
        Operation::EnableIpv6(_) | Operation::Loosen(_) => {}
        Operation::AddAddress(_, ip) => address(batch, RTM_NEWADDR, SET, index, ip),
        Operation::RemoveAddress(_, ip) => address(batch, RTM_DELADDR, 0, index, ip),
        Operation::SetNeighbour(_, ip, mac) => {
            batch.begin(
                RTM_NEWNEIGH,
                NLM_F_REQUEST | SET,
                &neighbour_header(family_of(*ip), index, NUD_PERMANENT, 0),
            );
            batch.address(NDA_DST, *ip);
            batch.attribute(NDA_LLADDR, &mac.octets());
        }
        Operation::RemoveNeighbour(_, ip) => {
            let header = neighbour_header(family_of(*ip), index, 0, 0);
            batch.begin(RTM_DELNEIGH, NLM_F_REQUEST, &header);
            batch.address(NDA_DST, *ip);
        }
        Operation::SetForward(_, mac, agent) => {
            forward(batch, RTM_NEWNEIGH, SET, index, *mac);
            batch.address(NDA_DST, *agent);
        }
        Operation::RemoveForward(_, mac, agent) => {
            forward(batch, RTM_DELNEIGH, 0, index, *mac);
            batch.address(NDA_DST, *agent);
        }
        Operation::AddRoute(key, hop) => {
            route(batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, key, Some(hop), index);
        }
        Operation::ChangeRoute(key, hop) => {
            route(batch, RTM_NEWROUTE, NLM_F_REPLACE, key, Some(hop), index);
        }
        Operation::RemoveRoute(key, _) => route(batch, RTM_DELROUTE, 0, key, None, 0),
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

/// A new device has its MAC from the start: setting it later empties the neighbour tables, and
/// systemd would set one of its own.
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
            // The inner packet has a checksum, and some network cards get the outer one wrong.
            batch.attribute(IFLA_VXLAN_UDP_CSUM, &[0]);
        });
    });
}

fn change_vxlan(batch: &mut Batch, index: u32, write: impl FnOnce(&mut Batch)) {
    batch.begin(RTM_NEWLINK, NLM_F_REQUEST, &if_header(index, 0, 0));
    batch.nested(IFLA_LINKINFO, |batch| {
        batch.text(IFLA_INFO_KIND, "vxlan");
        batch.nested(IFLA_INFO_DATA, write);
    });
}

const fn local_attribute(underlay: std::net::IpAddr) -> u16 {
    if underlay.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 }
}

/// Nobody else can have the address, so it need not be asked for, during which it would not work.
pub(super) fn address(batch: &mut Batch, kind: u16, flags: u16, index: u32, ip: &InterfaceAddress) {
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

fn neighbour_header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

fn forward(batch: &mut Batch, kind: u16, flags: u16, index: u32, mac: Mac) {
    let header = neighbour_header(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF);
    batch.begin(kind, NLM_F_REQUEST | flags, &header);
    batch.attribute(NDA_LLADDR, &mac.octets());
}

fn route(batch: &mut Batch, kind: u16, flags: u16, key: &RouteKey, hop: Option<&Hop>, index: u32) {
    let (scope, route_type, route_flags) = match hop {
        Some(Hop::Via { is_onlink, .. }) => {
            (RT_SCOPE_UNIVERSE, RTN_UNICAST, if *is_onlink { RTNH_F_ONLINK } else { 0 })
        }
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
    if let Some(Hop::Via { gateway, .. }) = hop {
        batch.address(RTA_GATEWAY, *gateway);
        batch.attribute(RTA_OIF, &index.to_ne_bytes());
    }
}
