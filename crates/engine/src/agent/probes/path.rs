//! The path to one peer: what to send, and what the outcomes say.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_types::addr::{Mtu, OverlayName, Subnet};
use overlay_types::clock::Now;
use overlay_types::protocol::{PeerFailure, PeerFailureCause};
use overlay_types::tunnel::{
    Desired, Peer, ProbeOutcome, ProbePacket, VxlanDevice, port_candidate,
};

use super::super::view::PeerProbeHealth;
use super::visit::{Role, Visit};
use super::{CONFIRMING_VISITS, GRACE, RETRY_INTERVAL, RETRY_INTERVAL_MAX};

/// Length of a small packet.
pub(super) const SMALL: u32 = 64;
/// Visits in a row that confirm that a peer forwards no packets to its port. Its host reports a port
/// that ended with its agent when three ARP requests have failed, one a second.
const SILENT_PORT_VISITS: u32 = 5;
/// Failed visits in a row after which packets take the tunnel instead of a direct path. They are
/// fewer than those that confirm a failure, so that the tunnel is tried before a failure is reported.
const DIRECT_LOST_VISITS: u32 = 2;
/// Longest interval between two visits of such a peer.
const PORT_RETRY_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Number of gateways, and number of ports, that are kept of each peer.
const TARGETS_MAX: usize = 32;
/// A peer without a known gateway or port is asked for them once in so many visits of an overlay.
const LEARNING_INTERVAL: u64 = 8;

/// The likely cause of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    /// The kernel of this host does not send the packets, with its reason.
    NotSent(String),
    /// Nothing comes back from the host of the peer.
    NoAnswer,
    /// The VTEPs reach each other, but packets of the containers of this host do not get through.
    ContainersCutOff,
    /// The VTEP of the peer answers, but not its bridge of this overlay.
    OverlayLost(OverlayName, IpAddr),
    /// The host of the peer answers, but forwards no packets to the port of its probes.
    ForwardingLost(OverlayName, IpAddr),
    /// IPv4 works, IPv6 does not.
    Ipv6Lost,
    /// Only packets of full size are lost. The MTU is that of the router that reported the loss.
    LargeLost { size: u32, reported: Option<u32>, is_ipv6: bool },
}

impl Cause {
    const fn kind(&self) -> PeerFailureCause {
        match self {
            Self::NotSent(_) => PeerFailureCause::NotSent,
            Self::NoAnswer => PeerFailureCause::NoAnswer,
            Self::ContainersCutOff => PeerFailureCause::ContainersCutOff,
            Self::OverlayLost(..) | Self::ForwardingLost(..) => PeerFailureCause::OverlayLost,
            Self::Ipv6Lost => PeerFailureCause::Ipv6Lost,
            Self::LargeLost { .. } => PeerFailureCause::LargeLost,
        }
    }
}

/// The reply of the peer's VTEP to this host's VTEP, at the last visit that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VtepReply {
    /// It answers, or nothing is known.
    Answers,
    Silent,
    /// It is silent, and a port of the peer answers: the host drops echo requests to itself.
    Dropped,
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
    /// Ports of the peer's probes that have answered.
    ports: Vec<IpAddr>,
    /// Whether the host of the peer reports addresses that it does not have. A host with the C++
    /// modules loses its bridges silently.
    reports_missing: bool,
    vtep: VtepReply,
    /// Whether a peer with a confirmed failure has answered a reduced visit.
    is_returning: bool,
    /// Consecutive visits with a failure, and the time of the first.
    failed_visits: u32,
    failing_since: Option<Now>,
    /// Those of them, up to the last one, in which the peer forwarded no packets to its port.
    silent_port_visits: u32,
    /// Whether the failed visits are enough to confirm the last failure.
    has_enough_visits: bool,
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
            ports: Vec::new(),
            reports_missing: false,
            vtep: VtepReply::Answers,
            is_returning: false,
            failed_visits: 0,
            failing_since: None,
            silent_port_visits: 0,
            has_enough_visits: false,
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

    /// Returns whether a gateway, or a port of the peer's probes, is known.
    pub(super) const fn has_target(&self) -> bool {
        !self.gateways.is_empty() || !self.ports.is_empty()
    }

    /// Lets a gateway have answered.
    #[cfg(test)]
    pub(super) fn learn_gateway(&mut self, gateway: IpAddr) {
        self.gateways.push(gateway);
    }

    /// Returns whether a port of the peer's probes is known.
    #[cfg(test)]
    pub(super) const fn has_port(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Returns the number of known gateways and ports.
    #[cfg(test)]
    pub(super) const fn target_count(&self) -> usize {
        self.gateways.len() + self.ports.len()
    }

    /// Returns why the kernel does not send packets to the peer.
    pub(super) const fn not_sent_reason(&self) -> Option<&String> {
        match &self.cause {
            Some(Cause::NotSent(reason)) => Some(reason),
            _ => None,
        }
    }

    pub(super) const fn failed_visits(&self) -> u32 {
        self.failed_visits
    }

    /// Returns whether the failed visits are enough to confirm the failure.
    pub(super) const fn has_enough_visits(&self) -> bool {
        self.has_enough_visits
    }

    pub(super) const fn is_reached(&self) -> bool {
        self.last_success.is_some()
    }

    /// Returns the number of unanswered visits of the last 8.
    pub(super) const fn unanswered_visits(&self) -> u32 {
        self.lost.count_ones()
    }

    pub(super) const fn smoothed_round_trip(&self) -> Option<Duration> {
        self.smoothed_round_trip
    }

    /// Returns how long after a failed visit the next one is due. The interval grows with the
    /// outage: all agents of a cluster visit a dead host. Returns `None` if the last visit
    /// succeeded.
    pub(super) fn retry_delay(&self, now: Now) -> Option<Duration> {
        let since = self.failing_since.filter(|_| self.failed_visits > 0)?;
        if !self.has_enough_visits() || self.is_returning {
            return Some(Duration::ZERO);
        }
        let outage = now.elapsed.saturating_sub(since.elapsed);
        let max = match self.cause {
            // The host of a killed agent may report its port as missing after a minute only.
            Some(Cause::ForwardingLost(..)) => PORT_RETRY_INTERVAL_MAX,
            _ => RETRY_INTERVAL_MAX,
        };
        Some((outage / 4).clamp(RETRY_INTERVAL, max))
    }

    /// Adds the packets of the next visit. Each visit tests one overlay. A peer that failed gets
    /// packets that show where the others are lost, and a silent one the least number of packets.
    pub(super) fn visit(
        &mut self,
        agent: IpAddr,
        desired: &Desired,
        packets: &mut Vec<ProbePacket>,
    ) -> Option<Visit> {
        let peer = desired.peers.as_ref()?.get(&agent)?;
        let device = desired.vxlan_devices.first()?;
        let full = device.containers_mtu.map_or(SMALL, |mtu| mtu.mtu().bytes());
        let is_current =
            |target: &IpAddr| peer.subnets.iter().any(|(_, subnet)| subnet.contains(*target));
        self.gateways.retain(is_current);
        self.ports.retain(is_current);
        let shared = peer.subnets.iter().filter(|(overlay, subnet)| {
            subnet.first().is_ipv4()
                && desired.space(overlay).is_some_and(|space| !space.own.is_empty())
        });
        let shared: Vec<_> = shared.collect();
        let round = self.successes / shared.len().max(1) as u64;
        // Direct routing waits for the first target.
        let is_awaited = peer.direct.is_some() && !self.has_target();
        let is_learning = round.is_multiple_of(LEARNING_INTERVAL) || is_awaited;
        let chosen = self.choose(&shared, is_learning);
        let known = |targets: &[IpAddr]| {
            let (_, subnet) = chosen?;
            targets.iter().copied().find(|target| subnet.contains(*target))
        };
        let mut visit = Visit {
            agent,
            overlay: chosen.map(|(overlay, _)| overlay.clone()),
            gateway: known(&self.gateways),
            port: known(&self.ports),
            packets: Vec::new(),
            full,
            is_reduced: self.cause == Some(Cause::NoAnswer) && !self.is_returning,
        };
        let sizes = [SMALL, full];
        for (role, to) in self.targets(&visit, peer, desired, is_learning) {
            let sizes = match role {
                Role::PortCandidate | Role::GatewayCandidate => &[SMALL][..],
                _ if visit.is_reduced => &[SMALL],
                _ => &sizes,
            };
            visit.add(role, to, sizes, packets);
        }
        Some(visit)
    }

    /// Returns the overlay of the next visit, with the subnet of the peer. A host that drops echo
    /// requests to its own addresses is visited in an overlay with a port, if there is one.
    fn choose<'a>(
        &self,
        shared: &[&'a (OverlayName, Subnet)],
        is_learning: bool,
    ) -> Option<&'a (OverlayName, Subnet)> {
        let at = |count: u64| {
            let index = usize::try_from(count).ok()?.checked_rem(shared.len())?;
            shared.get(index).copied()
        };
        let has = |subnet: &Subnet, targets: &[IpAddr]| {
            targets.iter().any(|target| subnet.contains(*target))
        };
        let (_, subnet) = at(self.successes)?;
        let is_known = has(subnet, &self.ports) || has(subnet, &self.gateways);
        // Where the VTEPs reach each other, the failure belongs to this overlay.
        let is_silent = match self.vtep {
            VtepReply::Answers => false,
            VtepReply::Silent => self.failed_visits > 0,
            VtepReply::Dropped => self.failed_visits > 0 || !is_learning,
        };
        if is_known || !is_silent {
            return at(self.successes);
        }
        let with_port = shared.iter().find(|(_, subnet)| has(subnet, &self.ports)).copied();
        with_port.or_else(|| at(self.successes + u64::from(self.failed_visits)))
    }

    /// Returns what the packets of a visit test, and their destinations.
    fn targets(
        &self,
        visit: &Visit,
        peer: &Peer,
        desired: &Desired,
        is_learning: bool,
    ) -> Vec<(Role, IpAddr)> {
        let Visit { gateway, port, is_reduced, .. } = *visit;
        let has_failed = self.failed_visits > 0;
        let subnet = peer.subnets.iter().find(|(overlay, subnet)| {
            subnet.first().is_ipv4() && visit.overlay.as_ref() == Some(overlay)
        });
        let subnet = subnet.map(|(_, subnet)| subnet);
        let mut targets: Vec<(Role, IpAddr)> = Vec::new();
        targets.extend(port.map(|port| (Role::Port, port)));
        if port.is_none() && (is_learning || has_failed) {
            let candidate = subnet.and_then(port_candidate);
            targets.extend(candidate.map(|candidate| (Role::PortCandidate, candidate)));
        }
        if !is_reduced && (port.is_none() || has_failed) {
            targets.extend(gateway.map(|gateway| (Role::Gateway, gateway)));
        }
        if !is_reduced && gateway.is_none() && is_learning {
            let halves = subnet.and_then(Subnet::halves).map(|(low, high)| [low, high]);
            let candidates = halves.into_iter().flatten().filter_map(|half| half.address_at(1));
            targets.extend(candidates.map(|candidate| (Role::GatewayCandidate, candidate)));
        }
        let vtep = peer.ip.map(IpAddr::V4);
        if !is_reduced && (gateway.is_none() && port.is_none() || has_failed) {
            targets.extend(vtep.map(|vtep| (Role::Vtep, vtep)));
        }
        if has_failed {
            targets.extend(vtep.map(|vtep| (Role::Host, vtep)));
        }
        if !is_reduced || vtep.is_none() {
            targets.extend(ipv6_target(peer, desired).map(|vtep| (Role::Host6, vtep)));
        }
        targets
    }

    /// Returns whether enough visits failed to give up a direct path. A silent port alone may have
    /// ended with its agent, so it has to be confirmed.
    pub(super) const fn is_direct_path_lost(&self) -> bool {
        self.has_enough_visits
            || self.failed_visits >= DIRECT_LOST_VISITS && self.silent_port_visits == 0
    }

    /// Records the outcomes of a visit.
    pub(super) fn record(&mut self, now: Now, visit: &Visit, outcomes: &[ProbeOutcome]) {
        let is_answered = outcomes.iter().any(ProbeOutcome::has_reply);
        self.lost = self.lost << 1 | u8::from(!is_answered);
        if is_answered {
            self.last_success = Some(now);
        }
        self.record_round_trip(outcomes);
        self.learn_targets(visit, outcomes);
        self.is_returning = visit.is_reduced && is_answered;
        let cause = match (self.is_returning, visit.is_reduced) {
            // A visit with all packets follows at once, and decides.
            (true, _) => return,
            (false, true) => {
                let reason = visit.not_sent_reason(outcomes, |_| true);
                Some(reason.map_or(Cause::NoAnswer, Cause::NotSent))
            }
            (false, false) => self.find_cause(visit, outcomes),
        };
        match cause {
            None => {
                self.successes += 1;
                (self.failed_visits, self.failing_since, self.cause) = (0, None, None);
                (self.silent_port_visits, self.has_enough_visits) = (0, false);
                if self.vtep == VtepReply::Silent {
                    self.vtep = VtepReply::Answers;
                }
            }
            Some(cause) => {
                self.failed_visits = self.failed_visits.saturating_add(1);
                self.failing_since.get_or_insert(now);
                let is_new = self.last_success.is_none() && now.elapsed < self.added + GRACE;
                let is_silent_port = matches!(cause, Cause::ForwardingLost(..));
                self.silent_port_visits =
                    if is_silent_port { self.silent_port_visits + 1 } else { 0 };
                self.has_enough_visits = self.failed_visits >= CONFIRMING_VISITS
                    && (!is_silent_port || self.silent_port_visits >= SILENT_PORT_VISITS);
                if self.has_enough_visits && !is_new {
                    self.cause = Some(cause);
                }
            }
        }
    }

    fn record_round_trip(&mut self, outcomes: &[ProbeOutcome]) {
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
    }

    /// Adds the gateways and ports that answered, and removes those that are gone. The peer reports
    /// a missing bridge as unreachable: it removes a bridge with its last network, and has none
    /// after a restart. A port ends with its agent, and containers do not need it. A host with the
    /// C++ modules has no bridge after a restart and does not report that.
    fn learn_targets(&mut self, visit: &Visit, outcomes: &[ProbeOutcome]) {
        for (packet, outcome) in visit.packets.iter().zip(outcomes) {
            let targets = match packet.role {
                Role::Port | Role::PortCandidate => &mut self.ports,
                Role::Gateway | Role::GatewayCandidate => &mut self.gateways,
                Role::Vtep | Role::Host | Role::Host6 => continue,
            };
            match outcome {
                ProbeOutcome::Replied(_)
                    if targets.len() < TARGETS_MAX && !targets.contains(&packet.to) =>
                {
                    targets.push(packet.to);
                }
                ProbeOutcome::Unreachable => {
                    self.reports_missing = true;
                    targets.retain(|target| *target != packet.to);
                }
                _ => {}
            }
        }
        let is_answered = |role| visit.is_answered(outcomes, role);
        if visit.has(Role::Host) {
            let has_port = is_answered(Role::Port) || is_answered(Role::PortCandidate);
            self.vtep = match (is_answered(Role::Host), has_port) {
                (true, _) => VtepReply::Answers,
                (false, true) => VtepReply::Dropped,
                (false, false) => VtepReply::Silent,
            };
        }
        let works = |role| visit.works(outcomes, role);
        // A container at the address may have a smaller MTU than the port had.
        if is_answered(Role::Port) && !works(Role::Port) {
            let has_other = works(Role::Gateway) || works(Role::Vtep);
            self.ports.retain(|port| Some(*port) != visit.port || !has_other);
        }
        if !self.reports_missing && works(Role::Vtep) && !is_answered(Role::Gateway) {
            self.gateways.retain(|gateway| Some(*gateway) != visit.gateway);
            // Such a host does not report the port of an agent that ran there before, either.
            if visit.has(Role::Gateway) && !is_answered(Role::Port) {
                self.ports.retain(|port| Some(*port) != visit.port);
            }
        }
    }

    /// Removes a target that the host of the peer reported as missing after the visit.
    pub(super) fn forget_target(&mut self, missing: IpAddr) {
        self.reports_missing = true;
        self.ports.retain(|port| *port != missing);
        self.gateways.retain(|gateway| *gateway != missing);
    }

    /// Returns the port to which the host of the peer forwards no packets, although the host
    /// answers. A rule may refuse the packets to an unknown port too.
    fn lost_port(&self, visit: &Visit, outcomes: &[ProbeOutcome]) -> Option<IpAddr> {
        let is_silent =
            |port: &IpAddr| self.ports.contains(port) && !visit.is_answered(outcomes, Role::Port);
        let refused = visit.refused(outcomes, &[Role::Port, Role::PortCandidate]);
        refused.or_else(|| visit.port.filter(is_silent))
    }

    /// Returns the cause of a failed visit with all packets. `docs/dataplane.md` has the table.
    fn find_cause(&self, visit: &Visit, outcomes: &[ProbeOutcome]) -> Option<Cause> {
        let has_ipv4 =
            [Role::Port, Role::Gateway, Role::Vtep].into_iter().any(|role| visit.has(role));
        let ipv4 = if has_ipv4 { self.find_ipv4_cause(visit, outcomes) } else { None };
        ipv4.or_else(|| find_ipv6_cause(visit, outcomes, has_ipv4))
            .or_else(|| find_large_loss(visit, outcomes))
    }

    /// Returns why packets of containers do not reach the peer, or the containers of the peer.
    fn find_ipv4_cause(&self, visit: &Visit, outcomes: &[ProbeOutcome]) -> Option<Cause> {
        let is_answered = |role| visit.is_answered(outcomes, role);
        if visit.works(outcomes, Role::Port) {
            return None;
        }
        let is_gateway_gone =
            visit.gateway.is_some_and(|gateway| !self.gateways.contains(&gateway));
        let is_port_gone = visit.port.is_some_and(|port| !self.ports.contains(&port));
        if !visit.has_container_reply(outcomes) && !is_gateway_gone && !is_port_gone {
            let reason = visit.not_sent_reason(outcomes, |role| role != Role::Host6);
            return Some(match reason {
                Some(reason) => Cause::NotSent(reason),
                None if is_answered(Role::Host) => Cause::ContainersCutOff,
                None => Cause::NoAnswer,
            });
        }
        if let Some(reason) = visit.not_sent_reason(outcomes, |role| role == Role::Port) {
            return Some(Cause::NotSent(reason));
        }
        let overlay = visit.overlay.as_ref()?;
        let is_gateway_lost = visit.has(Role::Gateway)
            && !is_gateway_gone
            && !is_answered(Role::Gateway)
            && !is_answered(Role::Port);
        if let Some(gateway) = visit.gateway.filter(|_| is_gateway_lost) {
            return Some(Cause::OverlayLost(overlay.clone(), gateway));
        }
        let port = self.lost_port(visit, outcomes)?;
        Some(Cause::ForwardingLost(overlay.clone(), port))
    }

    /// Describes the failure, with its likely cause and the remedy.
    pub(super) fn problem(&self, agent: IpAddr, desired: &Desired) -> String {
        let device = desired.vxlan_devices.first();
        let (port, own) = device.map_or((0, agent), |device| (device.port, device.underlay));
        let intro = format!("agent {agent} fails probes");
        match &self.cause {
            None => intro,
            Some(Cause::NotSent(reason)) => format!("{intro}: {}", not_sent_problem(reason)),
            Some(Cause::NoAnswer) => format!(
                "{intro}: no answer through the tunnel: its host is down or drops ICMP, or the \
                 network drops UDP port {port} between {own} and {agent}: see whether other \
                 agents reach it; if its host is gone for good, run 'mesos-overlay forget --master \
                 MASTER {agent}'"
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
            Some(Cause::ForwardingLost(overlay, port)) => format!(
                "{intro}: its host answers and forwards no packets of overlay {overlay} to {port}, \
                 the port of its probes: see the rules for forwarded packets there, and whether its \
                 agent runs: run 'mesos-overlay doctor' on that host"
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
                     it, or set vtep_mtu at the master and overlay_mtu at all agents to a size \
                     that passes: 'mesos-overlay doctor --probe' finds it"
                )
            }
        }
    }

    pub(super) fn health(&self, agent: IpAddr, desired: &Desired) -> PeerProbeHealth {
        PeerProbeHealth {
            agent: agent.to_string(),
            problem: self.problem(agent, desired),
            cause: self.failure_cause().map_or("", PeerFailureCause::name).to_owned(),
            since_unix: self.failing_since.map(|since| since.unix),
            last_success_unix: self.last_success.map(|success| success.unix),
            lost: self.lost.count_ones(),
            round_trip_min_microseconds: microseconds(self.min_round_trip),
            round_trip_microseconds: microseconds(self.smoothed_round_trip),
        }
    }
}

/// Describes packets that the kernel does not send.
pub(super) fn not_sent_problem(reason: &str) -> String {
    format!(
        "this host does not send them ({reason}): see its routes, its VTEP and the rules of its \
         OUTPUT chains: run 'mesos-overlay doctor' here"
    )
}

/// Returns why the VTEP of the peer does not answer over IPv6.
fn find_ipv6_cause(visit: &Visit, outcomes: &[ProbeOutcome], has_ipv4: bool) -> Option<Cause> {
    if !visit.has(Role::Host6) || visit.is_answered(outcomes, Role::Host6) {
        return None;
    }
    Some(match visit.not_sent_reason(outcomes, |role| role == Role::Host6) {
        Some(reason) => Cause::NotSent(reason),
        None if has_ipv4 => Cause::Ipv6Lost,
        None => Cause::NoAnswer,
    })
}

/// Returns the loss of large packets. Over IPv4 such a loss counts only if no packets to another
/// address of the peer prove that the path carries large ones: the port of the peer, or a container
/// at its former address, may have a smaller MTU.
fn find_large_loss(visit: &Visit, outcomes: &[ProbeOutcome]) -> Option<Cause> {
    let works = |role| visit.works(outcomes, role);
    let has_other = works(Role::Gateway) || works(Role::Vtep);
    let counts = |role: &Role| match role {
        Role::Port => !has_other,
        Role::Host6 => true,
        _ => !works(Role::Port),
    };
    let roles = [Role::Gateway, Role::Vtep, Role::Port, Role::Host6].into_iter();
    let role = roles.filter(counts).find(|role| visit.loses_large(outcomes, *role))?;
    Some(Cause::LargeLost {
        size: visit.full,
        reported: visit.reported_mtu(outcomes, role),
        is_ipv6: role == Role::Host6,
    })
}

fn microseconds(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// Returns the IPv6 address of the peer's VTEP, if this host has one as well.
fn ipv6_target(peer: &Peer, desired: &Desired) -> Option<IpAddr> {
    let device = desired.vxlan_devices.first()?;
    // An underlay that is too small for IPv6 is named already.
    let has_room = device.containers_mtu.is_none_or(|mtu| mtu.mtu().bytes() >= Mtu::MIN_IPV6);
    device.ip6.filter(|_| has_room).and(peer.ip6).map(IpAddr::V6)
}
