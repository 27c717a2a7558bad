//! Sends the probes of the agent. A packet of an overlay begins at a port of the overlay's bridge,
//! with an address of the bridge's subnet, and so passes forwarding, firewall and routes as the
//! packets of containers. The other packets begin at the VTEP.
//!
//! All calls block. They act on the network namespace of the calling thread.

pub mod echo;
mod filter;
mod offload;
mod port;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use overlay_types::addr::{InterfaceAddress, Mtu, OverlayName};
use overlay_types::tunnel::{
    ContainersMtu, Desired, OverlayBridge, OverlaySubnets, ProbeOutcome, ProbePacket, ProbeReport,
    ProbeSource, VxlanDevice,
};

use self::echo::{EchoRequest, IcmpError, Outcome, Prober, UnreachableReason, open_socket};
pub use self::offload::{OffloadPath, test_offloads, test_peer};
use self::port::Port;
pub use self::port::{answering_addresses, existing_ports, is_probe_port, remove_port};
use crate::cni::Leases;

/// Time for the replies to a batch.
const TIMEOUT: Duration = Duration::from_millis(900);
/// Shortest and longest interval between two attempts to add a port to a bridge. An attempt that
/// finds no free address takes seconds, in which no peer is probed.
const PORT_INTERVAL: Duration = Duration::from_secs(10);
const PORT_INTERVAL_MAX: Duration = Duration::from_mins(10);
/// Duration of an attempt after which the interval doubles.
const SLOW_ATTEMPT: Duration = Duration::from_secs(1);

/// The sockets and the ports of the probes. Dropping it removes the ports.
#[derive(Debug)]
pub struct PeerProber {
    leases: Leases,
    echo: Prober,
    ports: BTreeMap<OverlayName, Port>,
    /// When the bridges without a port are examined again.
    ports_due: Option<Instant>,
    /// The bridges without a port, by overlay: when the next attempt is due, the interval before it, and why
    /// the last attempt failed.
    attempts: BTreeMap<OverlayName, Attempt>,
}

/// A failed attempt to add a port.
#[derive(Debug)]
struct Attempt {
    due: Instant,
    interval: Duration,
    reason: String,
}

impl PeerProber {
    /// Creates a prober that sends nothing yet. Removes the ports of an earlier agent.
    ///
    /// # Errors
    /// When the kernel forbids raw sockets.
    pub fn new(leases: Leases) -> Result<Self, String> {
        port::remove_all();
        let echo = Prober::open(&BTreeSet::new()).map_err(|error| socket_problem(&error))?;
        Ok(Self {
            leases,
            echo,
            ports: BTreeMap::new(),
            ports_due: None,
            attempts: BTreeMap::new(),
        })
    }

    /// Sends packets and waits for the replies, for less than a second.
    ///
    /// # Errors
    /// When no packet can be sent, with the remedy.
    pub fn probe(
        &mut self,
        desired: &Desired,
        packets: &[ProbePacket],
    ) -> Result<ProbeReport, String> {
        let vteps: Vec<IpAddr> = desired
            .vxlan_devices
            .iter()
            .take(1)
            .flat_map(VxlanDevice::addresses)
            .map(|vtep| vtep.address())
            .collect();
        self.open_vteps(&vteps)?;
        self.update_ports(desired);
        let mut requests = Vec::with_capacity(packets.len());
        for packet in packets {
            let port = match &packet.source {
                ProbeSource::Containers(overlay) => self.ports.get(overlay),
                ProbeSource::Vtep => None,
            };
            let vtep = vteps.iter().find(|vtep| vtep.is_ipv4() == packet.to.is_ipv4());
            let from = port.map(Port::address).or_else(|| vtep.copied());
            // The echo requests of a host without a VTEP fail with this reason.
            let from = from.unwrap_or(packet.to);
            requests.push(EchoRequest { from, to: packet.to, size: packet.size });
        }
        let round = self.echo.round(&requests, 1, TIMEOUT);
        let gateways = desired.bridges().flat_map(|bridge| &bridge.gateways);
        let own: BTreeSet<IpAddr> = gateways.map(InterfaceAddress::address).chain(vteps).collect();
        let outcomes = requests.iter().zip(round.outcomes);
        let late = round.late_errors.into_iter();
        let missing = late
            .filter(|(to, error)| outcome_of_error(*to, error, &own) == ProbeOutcome::Unreachable);
        Ok(ProbeReport {
            outcomes: outcomes.map(|(request, found)| outcome(request.to, found, &own)).collect(),
            missing: missing.map(|(to, _)| to).collect(),
            bridged: self.ports.keys().cloned().collect(),
            limitation: self.attempts.values().next().map(|attempt| attempt.reason.clone()),
        })
    }

    /// Opens the sockets of the VTEP. The address of a VTEP changes with the assignment.
    fn open_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), String> {
        for vtep in vteps {
            if self.echo.has(*vtep) {
                continue;
            }
            match open_socket(*vtep) {
                Ok(socket) => {
                    self.echo.add(*vtep, socket).map_err(|error| socket_problem(&error))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(error) => return Err(socket_problem(&error)),
            }
        }
        Ok(())
    }

    /// Removes the ports of bridges that are gone or no longer desired, and adds missing ports.
    fn update_ports(&mut self, desired: &Desired) {
        let mtu = desired.vxlan_devices.first().and_then(|device| device.containers_mtu);
        let mtu = mtu.map(ContainersMtu::mtu);
        let spaces = &desired.spaces;
        let echo = &mut self.echo;
        self.ports.retain(|overlay, port| {
            let space = spaces.iter().find(|space| space.overlay == *overlay);
            // The MTU of both ends changes only together.
            let is_kept = space.is_some_and(|space| port.is_attached(space) && port.mtu() == mtu);
            if !is_kept {
                echo.remove(port.address());
            }
            is_kept
        });
        self.attempts.retain(|overlay, _| spaces.iter().any(|space| space.overlay == *overlay));
        let now = echo::now();
        if self.ports_due.is_some_and(|due| now < due) {
            return;
        }
        self.ports_due = Some(now + PORT_INTERVAL);
        let is_due = |space: &&OverlaySubnets| {
            !self.ports.contains_key(&space.overlay)
                && self.attempts.get(&space.overlay).is_none_or(|attempt| attempt.due <= now)
        };
        let missing: Vec<&OverlaySubnets> = spaces.iter().filter(is_due).collect();
        if missing.is_empty() || self.free_port().is_none() {
            return;
        }
        let addresses = interface_addresses();
        for space in missing {
            // host-local leases the addresses of this bridge. Docker has no way to lease one.
            let bridge = space.bridges.iter().find(|bridge| {
                let has_gateway = |gateway: &InterfaceAddress| {
                    addresses.contains(&(bridge.device.to_string(), gateway.address()))
                };
                bridge.device == space.overlay.mesos_bridge()
                    && bridge.gateways.iter().any(has_gateway)
            });
            match bridge {
                Some(bridge) => self.add_port(&space.overlay, bridge, mtu),
                // The reason of an earlier bridge is no longer true.
                None => drop(self.attempts.remove(&space.overlay)),
            }
        }
    }

    /// Adds a port to a bridge, or records why that fails.
    fn add_port(&mut self, overlay: &OverlayName, bridge: &OverlayBridge, mtu: Option<Mtu>) {
        let Some(index) = self.free_port() else { return };
        let start = echo::now();
        let added = Port::open(index, overlay, bridge, mtu, &self.leases);
        let added = added.and_then(|(port, socket)| {
            let address = port.address();
            self.echo.add(address, socket).map_err(|error| socket_problem(&error))?;
            Ok(port)
        });
        let reason = match added {
            Ok(port) => {
                self.attempts.remove(overlay);
                self.ports.insert(overlay.clone(), port);
                return;
            }
            Err(reason) => reason,
        };
        let end = echo::now();
        let former = self.attempts.get(overlay).map_or(PORT_INTERVAL, |attempt| attempt.interval);
        let is_slow = end - start > SLOW_ATTEMPT;
        let interval = if is_slow { (former * 2).min(PORT_INTERVAL_MAX) } else { PORT_INTERVAL };
        let reason = format!(
            "probes of overlay {overlay} begin at the VTEP, not at bridge {}: {reason}",
            bridge.device
        );
        self.attempts.insert(overlay.clone(), Attempt { due: end + interval, interval, reason });
    }

    /// Returns the number of an unused port.
    fn free_port(&self) -> Option<usize> {
        (0..port::PORTS_MAX).find(|index| self.ports.values().all(|port| port.index() != *index))
    }
}

/// Returns the addresses of all devices.
fn interface_addresses() -> BTreeSet<(String, IpAddr)> {
    let Ok(interfaces) = getifaddrs() else { return BTreeSet::new() };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let ip = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let ip = ip.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())));
        Some((interface.interface_name, ip?))
    });
    addresses.collect()
}

/// Returns the outcome of a packet to `to`. `own` are the addresses of this host.
fn outcome(to: IpAddr, outcome: Outcome, own: &BTreeSet<IpAddr>) -> ProbeOutcome {
    match outcome {
        Outcome::Replied(duration) => ProbeOutcome::Replied(duration),
        Outcome::NoReply => ProbeOutcome::NoReply,
        Outcome::Unreachable(error) => outcome_of_error(to, &error, own),
        Outcome::TooBig(mtu) => ProbeOutcome::TooBig(mtu),
        Outcome::NotSent(reason) => ProbeOutcome::NotSent(reason),
    }
}

fn outcome_of_error(to: IpAddr, error: &IcmpError, own: &BTreeSet<IpAddr>) -> ProbeOutcome {
    match error.reason {
        // A container that has the address and refuses echo requests, so no port of probes has it.
        _ if error.reporter == to => ProbeOutcome::Unreachable,
        _ if own.contains(&error.reporter) => ProbeOutcome::NotSent(
            "a rule or a route of this host refuses packets of containers".to_owned(),
        ),
        UnreachableReason::Network | UnreachableReason::Host => ProbeOutcome::Unreachable,
        UnreachableReason::Port | UnreachableReason::Prohibited => ProbeOutcome::Refused,
    }
}

fn socket_problem(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::PermissionDenied {
        format!(
            "open a raw socket: {error}: run the agent as root, or give it CAP_NET_RAW, or set \
             probe_rate to 0"
        )
    } else {
        format!("open a raw socket: {error}: set probe_rate to 0, and report this")
    }
}

#[cfg(test)]
mod tests {
    use UnreachableReason::{Host, Network, Port, Prohibited};

    use super::*;

    #[test]
    fn only_another_host_reports_a_missing_destination() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (to, own) = (address("192.168.1.126"), BTreeSet::from([address("192.168.0.1")]));
        let outcome_of = |reporter, reason| {
            let error = IcmpError { reporter: address(reporter), reason };
            outcome(to, Outcome::Unreachable(error), &own)
        };
        let peer = "44.128.0.2";
        assert_eq!(outcome_of(peer, Host), ProbeOutcome::Unreachable);
        assert_eq!(outcome_of(peer, Network), ProbeOutcome::Unreachable);
        assert_eq!(outcome_of(peer, Port), ProbeOutcome::Refused);
        assert_eq!(outcome_of(peer, Prohibited), ProbeOutcome::Refused);
        let refused_here = outcome_of("192.168.0.1", Host);
        assert!(matches!(refused_here, ProbeOutcome::NotSent(_)), "{refused_here:?}");
        assert_eq!(outcome_of("192.168.1.126", Prohibited), ProbeOutcome::Unreachable);
    }
}
