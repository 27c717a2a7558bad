//! A visit of a peer: its packets, and what their outcomes say.

use std::net::IpAddr;

use overlay_types::addr::OverlayName;
use overlay_types::tunnel::{ProbeOutcome, ProbePacket, ProbeSource};

use super::path::SMALL;

/// What a packet of a visit tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// From containers to the known port of the peer's probes. The peer forwards the packet as the
    /// packets to its containers, so that no rule for its own addresses applies.
    Port,
    /// From containers to the known gateway of the peer's bridge.
    Gateway,
    /// From containers to an address that may be such a port.
    PortCandidate,
    /// From containers to an address that may be such a gateway.
    GatewayCandidate,
    /// From containers to the VTEP of the peer.
    Vtep,
    /// From VTEP to VTEP.
    Host,
    /// From VTEP to VTEP, over IPv6.
    Host6,
}

/// The packets of one peer in a batch.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) agent: IpAddr,
    pub(super) overlay: Option<OverlayName>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) port: Option<IpAddr>,
    /// The packets in their order.
    pub(super) packets: Vec<VisitPacket>,
    pub(super) full: u32,
    /// Whether the visit only tests whether a silent peer answers again.
    pub(super) is_reduced: bool,
}

#[derive(Debug)]
pub(super) struct VisitPacket {
    pub(super) role: Role,
    pub(super) is_full: bool,
    pub(super) to: IpAddr,
}

impl Visit {
    /// Adds a packet of each size.
    pub(super) fn add(
        &mut self,
        role: Role,
        to: IpAddr,
        sizes: &[u32],
        packets: &mut Vec<ProbePacket>,
    ) {
        for size in sizes {
            let source = match (role, &self.overlay) {
                (Role::Host | Role::Host6, _) | (_, None) => ProbeSource::Vtep,
                (_, Some(overlay)) => ProbeSource::Containers(overlay.clone()),
            };
            packets.push(ProbePacket { source, to, size: *size });
            // Without a known MTU, there are small packets only.
            let is_full = *size == self.full && self.full != SMALL;
            self.packets.push(VisitPacket { role, is_full, to });
        }
    }

    pub(super) const fn length(&self) -> usize {
        self.packets.len()
    }

    /// Returns the number of the packets to gateways and ports that have answered before, and how
    /// many of these packets were not answered. Other packets may go to addresses that no host has.
    pub(super) fn path_packets(&self, outcomes: &[ProbeOutcome]) -> (u64, u64) {
        let packets = self.packets.iter().zip(outcomes);
        let known = packets.filter(|(packet, _)| matches!(packet.role, Role::Port | Role::Gateway));
        known.fold((0, 0), |(sent, lost), (_, outcome)| {
            (sent + 1, lost + u64::from(!outcome.has_reply()))
        })
    }

    fn outcomes<'a>(
        &'a self,
        outcomes: &'a [ProbeOutcome],
        role: Role,
        is_full: bool,
    ) -> impl Iterator<Item = &'a ProbeOutcome> {
        let packets = self.packets.iter().zip(outcomes);
        packets
            .filter(move |(packet, _)| packet.role == role && packet.is_full == is_full)
            .map(|(_, outcome)| outcome)
    }

    pub(super) fn has(&self, role: Role) -> bool {
        self.packets.iter().any(|packet| packet.role == role)
    }

    pub(super) fn is_answered(&self, outcomes: &[ProbeOutcome], role: Role) -> bool {
        [false, true]
            .into_iter()
            .any(|is_full| self.outcomes(outcomes, role, is_full).any(ProbeOutcome::has_reply))
    }

    /// Returns whether packets of all sizes of this role are answered.
    pub(super) fn works(&self, outcomes: &[ProbeOutcome], role: Role) -> bool {
        let works = |is_full| {
            let mut found = self.outcomes(outcomes, role, is_full).peekable();
            found.peek().is_none() || found.any(ProbeOutcome::has_reply)
        };
        self.has(role) && works(false) && works(true)
    }

    /// Returns whether a packet from the containers of this host is answered.
    pub(super) fn has_container_reply(&self, outcomes: &[ProbeOutcome]) -> bool {
        [Role::Port, Role::Gateway, Role::PortCandidate, Role::GatewayCandidate, Role::Vtep]
            .into_iter()
            .any(|role| self.is_answered(outcomes, role))
    }

    /// Returns the first destination of these roles for which the packet was refused.
    pub(super) fn refused(&self, outcomes: &[ProbeOutcome], roles: &[Role]) -> Option<IpAddr> {
        let mut packets = self.packets.iter().zip(outcomes);
        let is_refused = |(packet, outcome): &(&VisitPacket, &ProbeOutcome)| {
            roles.contains(&packet.role) && matches!(outcome, ProbeOutcome::Refused)
        };
        packets.find(is_refused).map(|(packet, _)| packet.to)
    }

    /// Returns whether the VTEPs reach each other.
    pub(super) fn has_host_reply(&self, outcomes: &[ProbeOutcome]) -> bool {
        self.is_answered(outcomes, Role::Host)
    }

    /// Returns whether all packets of full size of this role are lost, and small ones are not.
    pub(super) fn loses_large(&self, outcomes: &[ProbeOutcome], role: Role) -> bool {
        self.outcomes(outcomes, role, false).any(ProbeOutcome::has_reply)
            && self.outcomes(outcomes, role, true).next().is_some()
            && !self.outcomes(outcomes, role, true).any(ProbeOutcome::has_reply)
    }

    /// Returns the MTU that a router on the path reported for packets of this role.
    pub(super) fn reported_mtu(&self, outcomes: &[ProbeOutcome], role: Role) -> Option<u32> {
        self.outcomes(outcomes, role, true).find_map(|outcome| match outcome {
            ProbeOutcome::TooBig(mtu) => *mtu,
            _ => None,
        })
    }

    /// Returns why the kernel sent none of the packets of these roles. Packets that are too large do
    /// not count.
    pub(super) fn not_sent_reason(
        &self,
        outcomes: &[ProbeOutcome],
        is_counted: impl Fn(Role) -> bool,
    ) -> Option<String> {
        let packets = self.packets.iter().zip(outcomes);
        let mut counted = packets
            .filter(|(packet, outcome)| {
                is_counted(packet.role) && !matches!(outcome, ProbeOutcome::TooBig(_))
            })
            .map(|(_, outcome)| match outcome {
                ProbeOutcome::NotSent(reason) => Some(reason),
                _ => None,
            });
        let first = counted.next()??;
        counted.all(|reason| reason.is_some()).then(|| first.clone())
    }
}
