//! IPsec policies that block or encrypt packets of the overlays.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_XFRM;
use overlay_types::addr::Subnet;
use overlay_types::advice::Command;
use overlay_types::tunnel::FaultScope;
use rustix::io::Errno;

use super::super::message::{Message, address, attributes, u16_at, u32_at};
use super::super::path::{PEERS_MAX, route_samples};
use super::super::policy_rules::is_unsupported;
use super::super::socket::Netlink;
use super::super::uapi::{AF_INET, AF_INET6, XFRM_MSG_GETPOLICY, XFRMA_TMPL};
use super::{Impact, InspectionContext, Interference, Remedy};

/// Directions of a policy, from `linux/xfrm.h`.
const IN: u8 = 0;
const OUT: u8 = 1;
const FORWARD: u8 = 2;
/// The action of a policy that drops packets.
const BLOCK: u8 = 1;
const UDP: u8 = 17;

/// A policy for packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    source: Subnet,
    destination: Subnet,
    /// The transport protocol. 0 for every protocol.
    protocol: u8,
    /// The destination port, if the policy selects one.
    port: Option<u16>,
    /// Whether it selects other parts of a packet too.
    has_other_selectors: bool,
    priority: u32,
    direction: u8,
    is_block: bool,
    /// Whether it demands encryption.
    encrypts: bool,
}

/// A packet of the overlays.
struct Packet {
    direction: u8,
    source: IpAddr,
    destination: IpAddr,
    /// UDP and its destination port. `None` for a packet of a container, with any protocol.
    port: Option<u16>,
    what: &'static str,
    scope: FaultScope,
}

pub(super) fn find(context: &InspectionContext<'_>) -> io::Result<Option<Interference>> {
    let policies = match policies() {
        Ok(policies) => policies,
        // The kernel has no IPsec, or this process must not list the policies.
        Err(error) if is_unavailable(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if policies.is_empty() {
        return Ok(None);
    }
    let packets = packets(context);
    let hits = packets.iter().filter_map(|packet| Some((packet, policy_of(&policies, packet)?)));
    let mut hits: Vec<_> = hits.collect();
    hits.sort_by_key(|(_, policy)| !policy.is_block);
    Ok(hits.first().map(|(packet, policy)| interference(packet, policy)))
}

fn is_unavailable(error: &io::Error) -> bool {
    let errnos = [Errno::PERM, Errno::ACCESS, Errno::INVAL];
    is_unsupported(error)
        || Errno::from_io_error(error).is_some_and(|errno| errnos.contains(&errno))
}

/// Lists the policies for forwarded packets, and for packets of this host.
fn policies() -> io::Result<Vec<Policy>> {
    let mut netlink = Netlink::open(NETLINK_XFRM)?;
    let add = |found: &mut Vec<_>, message: Message<'_>| found.extend(policy(message.body));
    // The header is `xfrm_userpolicy_id`.
    netlink.dump(XFRM_MSG_GETPOLICY, &[0; 64], |_| {}, add, Vec::new)
}

/// Parses `xfrm_userpolicy_info`.
pub(super) fn policy(body: &[u8]) -> Option<Policy> {
    const LENGTH: usize = 168;
    let family = u16_at(body, 40)?;
    let octets = match u8::try_from(family).ok()? {
        AF_INET => 4,
        AF_INET6 => 16,
        _ => return None,
    };
    let subnet = |from: usize, prefix: u8| {
        Subnet::containing(address(body.get(from..from + octets)?)?, prefix)
    };
    let [to_prefix, from_prefix, protocol] = *body.get(42..45)? else { return None };
    let port = u16::from_be(u16_at(body, 32)?);
    let has_port = u16_at(body, 34)? != 0;
    let [direction, action] = *body.get(160..162)? else { return None };
    let mut templates = attributes(body, LENGTH).filter(|(kind, _)| *kind == XFRMA_TMPL);
    Some(Policy {
        destination: subnet(0, to_prefix)?,
        source: subnet(16, from_prefix)?,
        protocol,
        port: has_port.then_some(port),
        // The mask of the source port, and the device.
        has_other_selectors: u16_at(body, 38)? != 0 || u32_at(body, 48)? != 0,
        priority: u32_at(body, 152)?,
        direction,
        is_block: action == BLOCK,
        encrypts: templates.next().is_some(),
    })
}

/// Returns the policy that the kernel applies to a packet, if it blocks or encrypts.
fn policy_of<'a>(policies: &'a [Policy], packet: &Packet) -> Option<&'a Policy> {
    let matching = policies.iter().filter(|policy| policy.may_match(packet));
    let first = matching.min_by_key(|policy| policy.priority)?;
    (first.is_block || first.encrypts).then_some(first)
}

impl Policy {
    fn may_match(&self, packet: &Packet) -> bool {
        let has_protocol = match (self.protocol, packet.port) {
            (0, _) => true,
            (protocol, Some(port)) => {
                protocol == UDP && self.port.is_none_or(|selected| selected == port)
            }
            // Containers use any protocol.
            (_, None) => true,
        };
        self.direction == packet.direction
            && self.source.contains(packet.source)
            && self.destination.contains(packet.destination)
            && has_protocol
    }

    /// Returns whether the policy applies to every packet between its subnets.
    const fn is_for_all(&self, packet: &Packet) -> bool {
        !self.has_other_selectors && (packet.port.is_some() || self.protocol == 0)
    }
}

/// Returns packets between containers, and between tunnels, of a few peers.
fn packets(context: &InspectionContext<'_>) -> Vec<Packet> {
    let mut packets = Vec::new();
    for space in &context.desired.spaces {
        for sample in route_samples(context.desired, context.peers, space, context.bridges) {
            for direction in [FORWARD, OUT] {
                packets.push(Packet {
                    direction,
                    source: sample.source,
                    destination: sample.destination,
                    port: None,
                    what: "between containers",
                    scope: FaultScope::Subnet(sample.subnet),
                });
            }
        }
    }
    let peers = context.peers.keys().copied();
    for local in &context.desired.vxlan_devices {
        let peers = peers.clone().filter(|agent| agent.is_ipv4() == local.underlay.is_ipv4());
        for agent in peers.take(PEERS_MAX) {
            for (direction, source, destination) in
                [(OUT, local.underlay, agent), (IN, agent, local.underlay)]
            {
                packets.push(Packet {
                    direction,
                    source,
                    destination,
                    port: Some(local.port),
                    what: "of the tunnel",
                    scope: FaultScope::Device(local.device.clone()),
                });
            }
        }
    }
    packets
}

fn interference(packet: &Packet, policy: &Policy) -> Interference {
    let Policy { source, destination, direction, is_block, .. } = policy;
    let direction = match *direction {
        IN => "in",
        OUT => "out",
        _ => "fwd",
    };
    let effect = if *is_block { "blocks" } else { "encrypts, or drops without a key," };
    Interference {
        scope: packet.scope.clone(),
        cause: format!(
            "an IPsec policy ('src {source} dst {destination} dir {direction}') {effect} packets {}",
            packet.what
        ),
        remedy: Remedy::Advice(format!(
            "exclude the addresses in the IPsec program of this host, such as strongSwan or \
             Libreswan; {} lists the policies",
            Command::show_ipsec_policies(destination.family())
        )),
        impact: if *is_block && policy.is_for_all(packet) {
            Impact::Overlays
        } else {
            Impact::Possible
        },
        removes_routes: false,
    }
}
