//! The path to one peer: what to send, and what the outcomes say.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_types::addr::{Mtu, OverlayName};
use overlay_types::clock::Now;
use overlay_types::protocol::{PeerFailure, PeerFailureCause};
use overlay_types::tunnel::{Desired, Peer, ProbeOutcome, ProbePacket, ProbeSource, VxlanDevice};

use super::super::view::PeerProbeHealth;
use super::{CONFIRMING_VISITS, GRACE};

/// Length of a small packet.
const SMALL: u32 = 64;
/// Number of gateways that are kept of each peer.
const GATEWAYS_MAX: usize = 4;
/// A peer without a known gateway is asked for its gateways once in so many visits.
const LEARNING_INTERVAL: u64 = 8;

/// The likely cause of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    /// Nothing comes back from the host of the peer.
    NoAnswer,
    /// The VTEPs reach each other, but packets of the containers of this host do not get through.
    ContainersCutOff,
    /// The VTEP of the peer answers, but not its bridge of this overlay.
    OverlayLost(OverlayName, IpAddr),
    /// IPv4 works, IPv6 does not.
    Ipv6Lost,
    /// Only packets of full size are lost. The MTU is that of the router that reported the loss.
    LargeLost { size: u32, reported: Option<u32>, is_ipv6: bool },
}

impl Cause {
    const fn kind(&self) -> PeerFailureCause {
        match self {
            Self::NoAnswer => PeerFailureCause::NoAnswer,
            Self::ContainersCutOff => PeerFailureCause::ContainersCutOff,
            Self::OverlayLost(..) => PeerFailureCause::OverlayLost,
            Self::Ipv6Lost => PeerFailureCause::Ipv6Lost,
            Self::LargeLost { .. } => PeerFailureCause::LargeLost,
        }
    }
}

/// What a packet of a visit tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// From containers to the known gateway of the peer's bridge.
    Gateway,
    /// From containers to an address that may be such a gateway.
    Candidate(IpAddr),
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
    overlay: Option<OverlayName>,
    gateway: Option<IpAddr>,
    /// The role of each packet, and whether it has full size.
    packets: Vec<(Role, bool)>,
    full: u32,
}

impl Visit {
    pub(super) const fn length(&self) -> usize {
        self.packets.len()
    }

    fn outcomes<'a>(
        &'a self,
        outcomes: &'a [ProbeOutcome],
        role: Role,
        is_full: bool,
    ) -> impl Iterator<Item = &'a ProbeOutcome> {
        let packets = self.packets.iter().zip(outcomes);
        packets.filter(move |(packet, _)| **packet == (role, is_full)).map(|(_, outcome)| outcome)
    }

    fn has(&self, role: Role) -> bool {
        self.packets.iter().any(|(found, _)| *found == role)
    }

    fn is_answered(&self, outcomes: &[ProbeOutcome], role: Role) -> bool {
        [false, true]
            .into_iter()
            .any(|is_full| self.outcomes(outcomes, role, is_full).any(ProbeOutcome::has_reply))
    }

    /// Returns the cause if all packets of full size of this role are lost, and small ones are not.
    fn large_lost(&self, outcomes: &[ProbeOutcome], role: Role) -> Option<Cause> {
        let is_lost = self.outcomes(outcomes, role, false).any(ProbeOutcome::has_reply)
            && self.outcomes(outcomes, role, true).next().is_some()
            && !self.outcomes(outcomes, role, true).any(ProbeOutcome::has_reply);
        let reported = self.outcomes(outcomes, role, true).find_map(|outcome| match outcome {
            ProbeOutcome::TooBig(mtu) => *mtu,
            _ => None,
        });
        let is_ipv6 = role == Role::Host6;
        is_lost.then_some(Cause::LargeLost { size: self.full, reported, is_ipv6 })
    }
}

/// The state of the path to a peer.
#[derive(Debug)]
pub(super) struct PeerPath {
    added: Duration,
    /// The successful visits. They determine the overlay of the next visit, so that a failure is
    /// confirmed in the overlay in which it was found.
    successes: u64,
    /// The last 8 visits, of which the lowest bit is the latest: 1 if nothing was answered.
    lost: u8,
    last_success: Option<Now>,
    min_round_trip: Option<Duration>,
    smoothed_round_trip: Option<Duration>,
    /// Gateways of bridges of the peer that have answered.
    gateways: Vec<IpAddr>,
    /// Consecutive visits with a failure, and the time of the first.
    failed_visits: u32,
    failing_since: Option<Now>,
    /// The confirmed failure.
    cause: Option<Cause>,
}

impl PeerPath {
    pub(super) const fn new(now: Now) -> Self {
        Self {
            added: now.elapsed,
            successes: 0,
            lost: 0,
            last_success: None,
            min_round_trip: None,
            smoothed_round_trip: None,
            gateways: Vec::new(),
            failed_visits: 0,
            failing_since: None,
            cause: None,
        }
    }

    /// Returns the cause of the confirmed failure.
    pub(super) fn failure_cause(&self) -> Option<PeerFailureCause> {
        self.cause.as_ref().map(Cause::kind)
    }

    /// Returns the failure for the report to the master.
    pub(super) fn failure(&self, agent: Ipv4Addr, cause: PeerFailureCause) -> PeerFailure {
        PeerFailure {
            agent,
            cause,
            since: self.failing_since.map_or(0, |since| since.unix),
            lost: self.lost.count_ones(),
            round_trip: microseconds(self.smoothed_round_trip),
        }
    }

    pub(super) const fn failed_visits(&self) -> u32 {
        self.failed_visits
    }

    pub(super) const fn is_reached(&self) -> bool {
        self.last_success.is_some()
    }

    pub(super) const fn smoothed_round_trip(&self) -> Option<Duration> {
        self.smoothed_round_trip
    }

    /// Adds the packets of the next visit. Each visit tests one overlay. A peer that failed gets
    /// packets that show where the others are lost.
    pub(super) fn visit(
        &mut self,
        agent: IpAddr,
        desired: &Desired,
        packets: &mut Vec<ProbePacket>,
    ) -> Option<Visit> {
        let peer = desired.peers.as_ref()?.get(&agent)?;
        let device = desired.vxlan_devices.first()?;
        let full = device.containers_mtu.map_or(SMALL, Mtu::bytes);
        let shared = peer.subnets.iter().filter(|(overlay, subnet)| {
            subnet.first().is_ipv4()
                && desired.space(overlay).is_some_and(|space| !space.own.is_empty())
        });
        let shared: Vec<_> = shared.take(GATEWAYS_MAX).collect();
        let index =
            usize::try_from(self.successes).ok().and_then(|at| at.checked_rem(shared.len()));
        let chosen = index.map(|index| shared[index]);
        let gateway = chosen.and_then(|(_, subnet)| {
            self.gateways.iter().copied().find(|gateway| subnet.contains(*gateway))
        });
        let mut visit = Visit {
            agent,
            overlay: chosen.map(|(overlay, _)| overlay.clone()),
            gateway,
            packets: Vec::new(),
            full,
        };
        let has_failed = self.failed_visits > 0;
        let mut send = |role: Role, to: IpAddr, sizes: &[u32]| {
            for size in sizes {
                let source = match (role, &visit.overlay) {
                    (Role::Host | Role::Host6, _) | (_, None) => ProbeSource::Vtep,
                    (_, Some(overlay)) => ProbeSource::Containers(overlay.clone()),
                };
                packets.push(ProbePacket { source, to, size: *size });
                visit.packets.push((role, *size == full && full != SMALL));
            }
        };
        if let Some(gateway) = gateway {
            send(Role::Gateway, gateway, &[SMALL, full]);
        } else if let Some((_, subnet)) = chosen
            && (self.successes / shared.len().max(1) as u64).is_multiple_of(LEARNING_INTERVAL)
        {
            let halves = subnet.halves().into_iter().flat_map(|(low, high)| [low, high]);
            for candidate in halves.filter_map(|half| half.address_at(1)) {
                send(Role::Candidate(candidate), candidate, &[SMALL]);
            }
        }
        if let Some(ip) = peer.ip.map(IpAddr::V4) {
            if gateway.is_none() || has_failed {
                send(Role::Vtep, ip, &[SMALL, full]);
            }
            if has_failed {
                send(Role::Host, ip, &[SMALL, full]);
            }
        }
        if let Some(ip6) = ipv6_target(peer, desired) {
            send(Role::Host6, ip6, &[SMALL, full]);
        }
        Some(visit)
    }

    /// Records the outcomes of a visit.
    pub(super) fn record(&mut self, now: Now, visit: &Visit, outcomes: &[ProbeOutcome]) {
        self.learn_gateways(visit, outcomes);
        let is_answered = outcomes.iter().any(ProbeOutcome::has_reply);
        self.lost = self.lost << 1 | u8::from(!is_answered);
        if is_answered {
            self.last_success = Some(now);
        }
        let round_trips = outcomes.iter().filter_map(|outcome| match outcome {
            ProbeOutcome::Replied(duration) => Some(*duration),
            _ => None,
        });
        if let Some(round_trip) = round_trips.min() {
            let min = self.min_round_trip.map_or(round_trip, |min| min.min(round_trip));
            self.min_round_trip = Some(min);
            // The weight of TCP (RFC 6298).
            let smoothed =
                self.smoothed_round_trip.map_or(round_trip, |old| (old * 7 + round_trip) / 8);
            self.smoothed_round_trip = Some(smoothed);
        }
        match self.find_cause(visit, outcomes) {
            None => {
                self.successes += 1;
                (self.failed_visits, self.failing_since, self.cause) = (0, None, None);
            }
            Some(cause) => {
                self.failed_visits = self.failed_visits.saturating_add(1);
                self.failing_since.get_or_insert(now);
                let is_new = self.last_success.is_none() && now.elapsed < self.added + GRACE;
                if self.failed_visits >= CONFIRMING_VISITS && !is_new {
                    self.cause = Some(cause);
                }
            }
        }
    }

    /// Adds the gateways that answered. A gateway that the peer reports as unreachable is gone: the
    /// peer removes a bridge with its last network, and has none after a restart.
    fn learn_gateways(&mut self, visit: &Visit, outcomes: &[ProbeOutcome]) {
        for ((role, _), outcome) in visit.packets.iter().zip(outcomes) {
            match (role, outcome) {
                (Role::Candidate(gateway), ProbeOutcome::Replied(_))
                    if self.gateways.len() < GATEWAYS_MAX && !self.gateways.contains(gateway) =>
                {
                    self.gateways.push(*gateway);
                }
                (Role::Gateway, ProbeOutcome::Unreachable) => {
                    self.gateways.retain(|gateway| Some(*gateway) != visit.gateway);
                }
                _ => {}
            }
        }
    }

    fn find_cause(&self, visit: &Visit, outcomes: &[ProbeOutcome]) -> Option<Cause> {
        let is_answered = |role| visit.is_answered(outcomes, role);
        let has_ipv4 = visit.has(Role::Gateway) || visit.has(Role::Vtep);
        if has_ipv4 {
            let is_gone = visit.gateway.is_some_and(|gateway| !self.gateways.contains(&gateway));
            let is_reached = is_answered(Role::Gateway) || is_answered(Role::Vtep) || is_gone;
            if !is_reached {
                let has_path = is_answered(Role::Host);
                return Some(if has_path { Cause::ContainersCutOff } else { Cause::NoAnswer });
            }
            if !is_answered(Role::Gateway)
                && let (Some(gateway), Some(overlay), false) =
                    (visit.gateway, &visit.overlay, is_gone)
            {
                return Some(Cause::OverlayLost(overlay.clone(), gateway));
            }
        }
        if visit.has(Role::Host6) && !is_answered(Role::Host6) {
            return Some(if has_ipv4 { Cause::Ipv6Lost } else { Cause::NoAnswer });
        }
        let roles = [Role::Gateway, Role::Vtep, Role::Host6];
        roles.into_iter().find_map(|role| visit.large_lost(outcomes, role))
    }

    /// Describes the failure, with its likely cause and the remedy.
    pub(super) fn problem(&self, agent: IpAddr, now: Now, desired: &Desired) -> String {
        let device = desired.vxlan_devices.first();
        let (port, own) = device.map_or((0, agent), |device| (device.port, device.underlay));
        let since = self.failing_since.map_or(now.elapsed, |since| since.elapsed);
        let seconds = now.elapsed.saturating_sub(since).as_secs();
        let intro = format!("agent {agent} fails probes since {seconds} s");
        match &self.cause {
            None => intro,
            Some(Cause::NoAnswer) => format!(
                "{intro}: no answer through the tunnel: its host is down or drops ICMP, or the \
                 network drops UDP port {port} between {own} and {agent}: see whether other \
                 agents reach it, and delete the agent at the master if its host is gone"
            ),
            Some(Cause::ContainersCutOff) => format!(
                "{intro}: the VTEPs reach each other, packets of containers do not: see which rule \
                 or route of one of the two hosts drops forwarded packets: run 'mesos-overlay \
                 doctor' on both"
            ),
            Some(Cause::OverlayLost(overlay, gateway)) => format!(
                "{intro}: its VTEP answers, its bridge address {gateway} of overlay {overlay} does \
                 not: see the bridge, its route and the firewall there: run 'mesos-overlay doctor' \
                 on that host"
            ),
            Some(Cause::Ipv6Lost) => format!(
                "{intro}: IPv4 reaches it, IPv6 does not: see the IPv6 routes and ip6tables of \
                 both hosts: run 'mesos-overlay doctor' on both"
            ),
            Some(Cause::LargeLost { size, reported, is_ipv6 }) => {
                let family = if *is_ipv6 { "IPv6" } else { "IPv4" };
                let needed = size + device.map_or(0, VxlanDevice::overhead);
                let router = reported.map_or_else(String::new, |mtu| {
                    format!(" (a router on the path reports {mtu})")
                });
                format!(
                    "{intro}: {family} packets of {size} bytes are lost, small ones are not: the \
                     MTU of the network between {own} and {agent} is below {needed}{router}: raise \
                     it, or lower overlay_mtu"
                )
            }
        }
    }

    pub(super) fn health(&self, agent: IpAddr) -> PeerProbeHealth {
        PeerProbeHealth {
            agent: agent.to_string(),
            cause: self.failure_cause().map_or("", PeerFailureCause::name).to_owned(),
            since_unix: self.failing_since.map(|since| since.unix),
            last_success_unix: self.last_success.map(|success| success.unix),
            lost: self.lost.count_ones(),
            round_trip_min_microseconds: microseconds(self.min_round_trip),
            round_trip_microseconds: microseconds(self.smoothed_round_trip),
        }
    }
}

fn microseconds(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// Returns the IPv6 address of the peer's VTEP, if this host has one as well.
fn ipv6_target(peer: &Peer, desired: &Desired) -> Option<IpAddr> {
    let device = desired.vxlan_devices.first()?;
    device.ip6.and(peer.ip6).map(IpAddr::V6)
}
