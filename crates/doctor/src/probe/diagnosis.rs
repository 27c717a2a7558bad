//! Derives the cause of a loss and its remedy from the outcomes of the echo requests. The diagnosis
//! is a pure function.
//!
//! A reply is stronger evidence than silence: a peer that replies through the tunnel is healthy,
//! even if it does not reply in the underlay.

use std::net::IpAddr;

use overlay_linux::probe::echo::{IcmpError, Outcome, UnreachableReason};
use overlay_types::addr::{DeviceName, Mac, Vni};
use overlay_types::advice::Command;

use super::counters::{Counters, RP_FILTER};
use crate::cause::{Object, Topic};
use crate::finding::Finding;

const CHECK: &str = "probe";

/// The path through the tunnel to a peer, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TunnelPath {
    pub(super) device: DeviceName,
    pub(super) vni: Vni,
    pub(super) port: u16,
    /// MTU of the device.
    pub(super) mtu: u32,
    /// Bytes of the VXLAN headers.
    pub(super) overhead: u32,
    /// The VTEP address of this host; `None` if the device has no address of this family.
    pub(super) from: Option<IpAddr>,
    /// The peer's VTEP address.
    pub(super) to: IpAddr,
    /// The peer's MAC in the kernel's neighbor entry.
    pub(super) mac: Mac,
    /// The peer's address in the underlay.
    pub(super) agent: IpAddr,
}

/// The outcomes of the echo requests to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathProbe {
    pub(super) path: TunnelPath,
    /// Outcome of the small request.
    pub(super) small: Outcome,
    /// Outcome of the request with the size of the device's MTU.
    pub(super) full: Outcome,
    /// The largest size with a reply, if the full size got none.
    pub(super) largest: Option<u32>,
    /// Outcome of the request to the peer's underlay address.
    pub(super) underlay: Outcome,
    /// ICMP error for the packets of the tunnel.
    pub(super) tunnel_error: Option<IcmpError>,
    /// Address of the master; `None` if it is unknown.
    pub(super) master: Option<String>,
    /// VNI and MAC that the peer's agent reports; `None` if it was not queried or did not answer.
    pub(super) peer: Option<(Vni, Mac)>,
}

impl PathProbe {
    pub(super) fn is_healthy(&self) -> bool {
        self.small.has_reply() && self.full.has_reply()
    }

    /// Returns the cause of a loss and its remedy; `None` if no packet was lost.
    pub(super) fn finding(&self, counters: &Counters) -> Option<Finding> {
        if self.is_healthy() {
            return None;
        }
        let finding = match (&self.small, &self.underlay) {
            (Outcome::Replied(_), _) => self.too_large(),
            (Outcome::NotSent(reason), _) => self.not_sent(reason),
            (_, underlay) => match self.wrong_identity().or_else(|| self.unreachable()) {
                Some(finding) => finding,
                None => self.silent(underlay, counters),
            },
        };
        let topic = if self.small.has_reply() { Topic::ProbeLarge } else { Topic::Probe };
        let peer = Object::Peers([self.path.agent, self.path.to].into());
        let summary = format!("{}{}", finding.summary, counters.evidence());
        Some(Finding { summary, ..finding }.about(topic).on(peer))
    }

    /// Returns the name of the peer in findings.
    fn name(&self) -> String {
        format!("agent {}, VTEP {}", self.path.agent, self.path.to)
    }

    /// Returns what to do about a host that is gone.
    fn forget(&self) -> String {
        match (self.path.agent, &self.master) {
            (IpAddr::V4(agent), Some(master)) => {
                format!("run {}", Command::forget_agent(agent, master))
            }
            // The master knows an agent by its IPv4 address.
            _ => "forget its agent at the master".to_owned(),
        }
    }

    fn too_large(&self) -> Finding {
        let TunnelPath { mtu, overhead, .. } = &self.path;
        let (summary, advice) = match self.largest {
            Some(largest) => (
                format!("packets of {largest} bytes arrive, packets of {mtu} bytes do not"),
                format!(
                    "raise the MTU of the network in between to {}, or set vtep_mtu to {largest} \
                     at the master and network_config.overlay_mtu to {largest} or less at the \
                     agents",
                    mtu + overhead
                ),
            ),
            None => (
                format!("small packets arrive, some packets of {mtu} bytes are lost"),
                "check whether the network in between loses packets at random".to_owned(),
            ),
        };
        let path = self.largest.unwrap_or(*mtu) + overhead;
        Finding::wrong(
            CHECK,
            format!("{}: {summary}", self.name()),
            format!("the path has an MTU of {path}, and this host expects more"),
        )
        .with_advice(advice)
    }

    fn not_sent(&self, reason: &str) -> Finding {
        let TunnelPath { device, .. } = &self.path;
        let finding = Finding::wrong(
            CHECK,
            format!("{}: packets cannot be sent: {reason}", self.name()),
            format!("device {device} is down or has no address, or a rule drops the packets"),
        );
        finding
            .with_command(Command::set_device_up(device))
            .with_advice("start the agent, which restores the device's address")
    }

    /// Compares the VNI and MAC that the peer's agent reports with those in the kernel of this
    /// host.
    fn wrong_identity(&self) -> Option<Finding> {
        let TunnelPath { device, vni, mac, to, .. } = &self.path;
        let (peer_vni, peer_mac) = self.peer?;
        if peer_vni != *vni {
            return Some(
                Finding::wrong(
                    CHECK,
                    format!(
                        "{}: the peer has VNI {peer_vni}, and device {device} has VNI {vni}",
                        self.name()
                    ),
                    "packets of another VNI are dropped",
                )
                .with_advice(
                    "check that both agents have the same master, and restart the wrong one",
                ),
            );
        }
        if peer_mac != *mac {
            return Some(
                Finding::wrong(
                    CHECK,
                    format!(
                        "{}: the peer has MAC {peer_mac}, and this host sends to {mac}",
                        self.name()
                    ),
                    "packets to another MAC are dropped",
                )
                .with_command(
                    Command::set_neighbor(device, *to, peer_mac).then(Command::set_fdb_entry(
                        device,
                        peer_mac,
                        self.path.agent,
                    )),
                ),
            );
        }
        None
    }

    /// Returns the finding for an ICMP error of a host or router.
    fn unreachable(&self) -> Option<Finding> {
        let name = self.name();
        let TunnelPath { port, agent, .. } = &self.path;
        let underlay = match &self.underlay {
            Outcome::Unreachable(error) => Some(error),
            _ => None,
        };
        let IcmpError { reporter, reason } = self.tunnel_error.as_ref().or(underlay)?;
        let finding = |summary: String, cause: &str| Finding::wrong(CHECK, summary, cause);
        Some(match reason {
            UnreachableReason::Port => finding(
                format!("{name}: nothing listens on UDP port {port} there"),
                "the peer's agent has no VXLAN device, or a device on another port",
            )
            .with_advice(format!(
                "start the agent on {agent}, or run 'mesos-overlay doctor' there"
            )),
            UnreachableReason::Prohibited => finding(
                format!("{name}: {reporter} refuses UDP port {port}"),
                "a firewall there refuses tunnel packets",
            )
            .with_advice(format!("open UDP port {port} on {reporter}, in both directions")),
            UnreachableReason::Host => finding(
                format!("{name}: {reporter} reports that the host is unreachable"),
                "the host does not answer in its own network: it is down, or its address moved",
            )
            .with_advice(format!("check that host; if it is gone: {}", self.forget())),
            UnreachableReason::Network => finding(
                format!("{name}: {reporter} has no route to the agent"),
                "tunnel packets are dropped there",
            )
            .with_advice(format!("add a route to {agent} on {reporter}")),
        })
    }

    fn silent(&self, underlay: &Outcome, counters: &Counters) -> Finding {
        let name = self.name();
        let TunnelPath { device, port, agent, .. } = &self.path;
        let finding = |summary: String, cause: String| Finding::wrong(CHECK, summary, cause);
        match underlay {
            Outcome::NotSent(reason) => finding(
                format!("{name}: packets to the agent cannot be sent: {reason}"),
                "this host has no route to the agent in the underlay".to_owned(),
            )
            .with_advice(format!("see {}", Command::show_route_to(*agent))),
            _ if counters.count(RP_FILTER) > 0 => finding(
                format!("{name}: replies are dropped on this host"),
                "rp_filter is strict, and drops packets whose reverse path is another device"
                    .to_owned(),
            )
            .with_command(Command::loosen_rp_filter(device)),
            Outcome::Replied(_) => finding(
                format!("{name}: the peer answers in the underlay, and not in the tunnel"),
                match self.peer {
                    Some(_) => format!(
                        "the peer's agent has the same VNI and the expected MAC, so a firewall \
                         drops UDP port {port} in one direction, or the peer does not know this \
                         agent"
                    ),
                    None => format!(
                        "a firewall drops UDP port {port} in one direction, or the peer has \
                         another VNI or MAC, or does not know this agent"
                    ),
                },
            )
            .with_advice(format!(
                "run 'mesos-overlay doctor --probe' on {agent} as well, and open UDP port {port} \
                 between the two hosts, also in security groups of a cloud"
            )),
            _ => finding(
                format!("{name}: the peer answers neither in the tunnel nor in the underlay"),
                "the peer is down, or the network in between drops all packets".to_owned(),
            )
            .with_advice(format!(
                "check that host and the network to it; if the host is gone: {}",
                self.forget()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const REPLIED: Outcome = Outcome::Replied(Duration::ZERO);

    fn lost_probe() -> PathProbe {
        let path = TunnelPath {
            device: DeviceName::vtep(Vni::DEFAULT),
            vni: Vni::DEFAULT,
            port: 64_000,
            mtu: 1450,
            overhead: 50,
            from: "44.128.0.1".parse().ok(),
            to: "44.128.0.2".parse().unwrap(),
            mac: "70:B3:D5:80:00:02".parse().unwrap(),
            agent: "10.0.0.2".parse().unwrap(),
        };
        PathProbe {
            path,
            small: Outcome::NoReply,
            full: Outcome::NoReply,
            largest: None,
            underlay: REPLIED,
            tunnel_error: None,
            master: Some("10.0.0.100:5050".to_owned()),
            peer: None,
        }
    }

    #[test]
    fn kernel_counters_are_evidence() {
        let counters = Counters::with(RP_FILTER, 3);
        let finding = lost_probe().finding(&counters);
        let mut silent = lost_probe();
        silent.underlay = Outcome::NoReply;
        for finding in [finding, silent.finding(&counters)] {
            let finding = finding.expect("a loss");
            assert_eq!(
                finding.summary,
                "agent 10.0.0.2, VTEP 44.128.0.2: replies are dropped on this host; counted \
                 during the probe: 3 packets dropped by rp_filter"
            );
            assert_eq!(
                finding.explanation,
                "rp_filter is strict, and drops packets whose reverse path is another device"
            );
            let command = "sysctl -w net/ipv4/conf/vtep1024/rp_filter=2";
            assert_eq!(finding.command.as_ref().map(Command::text), Some(command));
        }
    }

    /// Returns summary and explanation, command, and advice of the finding after `change`.
    fn diagnose(change: impl FnOnce(&mut PathProbe)) -> (String, Option<String>, Option<String>) {
        let mut probe = lost_probe();
        change(&mut probe);
        let finding = probe.finding(&Counters::default()).expect("a loss");
        let summary = finding.summary.strip_prefix("agent 10.0.0.2, VTEP 44.128.0.2: ");
        let summary = summary.expect("it names the peer");
        let command = finding.command.map(|command| command.text().to_owned());
        (format!("{summary}: {}", finding.explanation), command, finding.advice)
    }

    fn icmp_error(reason: UnreachableReason) -> IcmpError {
        IcmpError { reporter: "10.0.0.9".parse().unwrap(), reason }
    }

    #[test]
    fn reply_through_tunnel_outweighs_underlay_errors() {
        let mut probe = lost_probe();
        (probe.small, probe.full) = (REPLIED, REPLIED);
        probe.underlay = Outcome::NoReply;
        probe.tunnel_error = Some(icmp_error(UnreachableReason::Port));
        assert_eq!(probe.finding(&Counters::default()), None);
    }

    #[test]
    fn lost_large_packets_are_reported_with_largest_size() {
        let (summary, command, advice) = diagnose(|probe| {
            probe.small = REPLIED;
            probe.largest = Some(1350);
        });
        assert_eq!(
            summary,
            "packets of 1350 bytes arrive, packets of 1450 bytes do not: the path has an MTU of \
             1400, and this host expects more"
        );
        assert_eq!(command, None);
        assert_eq!(
            advice.as_deref(),
            Some(
                "raise the MTU of the network in between to 1500, or set vtep_mtu to 1350 at the \
                 master and network_config.overlay_mtu to 1350 or less at the agents"
            )
        );
    }

    #[test]
    fn icmp_error_names_the_cause() {
        let cases = [
            (
                UnreachableReason::Port,
                "nothing listens on UDP port 64000 there: the peer's agent has no VXLAN device, \
                 or a device on another port",
                "start the agent on 10.0.0.2, or run 'mesos-overlay doctor' there",
            ),
            (
                UnreachableReason::Prohibited,
                "10.0.0.9 refuses UDP port 64000: a firewall there refuses tunnel packets",
                "open UDP port 64000 on 10.0.0.9, in both directions",
            ),
            (
                UnreachableReason::Host,
                "10.0.0.9 reports that the host is unreachable: the host does not answer in its \
                 own network: it is down, or its address moved",
                "check that host; if it is gone: run 'mesos-overlay forget --master \
                 10.0.0.100:5050 10.0.0.2', which releases the addresses of that agent at the \
                 master",
            ),
            (
                UnreachableReason::Network,
                "10.0.0.9 has no route to the agent: tunnel packets are dropped there",
                "add a route to 10.0.0.2 on 10.0.0.9",
            ),
        ];
        for (reason, summary, advice) in cases {
            let expected = (summary.to_owned(), None, Some(advice.to_owned()));
            assert_eq!(diagnose(|probe| probe.tunnel_error = Some(icmp_error(reason))), expected);
            if reason != UnreachableReason::Port {
                let underlay = |probe: &mut PathProbe| {
                    probe.underlay = Outcome::Unreachable(icmp_error(reason))
                };
                assert_eq!(diagnose(underlay), expected);
            }
        }
    }

    #[test]
    fn different_vni_or_mac_of_peer_is_reported() {
        let own = lost_probe().path;
        let (summary, _, advice) =
            diagnose(|probe| probe.peer = Some((Vni::new(2048).unwrap(), own.mac)));
        assert_eq!(
            summary,
            "the peer has VNI 2048, and device vtep1024 has VNI 1024: packets of another VNI are \
             dropped"
        );
        assert_eq!(
            advice.as_deref(),
            Some("check that both agents have the same master, and restart the wrong one")
        );
        let (summary, command, _) =
            diagnose(|probe| probe.peer = Some((own.vni, "70:B3:D5:80:00:09".parse().unwrap())));
        assert_eq!(
            summary,
            "the peer has MAC 70:b3:d5:80:00:09, and this host sends to 70:b3:d5:80:00:02: \
             packets to another MAC are dropped"
        );
        assert_eq!(
            command.as_deref(),
            Some(
                "ip neigh replace 44.128.0.2 lladdr 70:b3:d5:80:00:09 dev vtep1024 nud permanent \
                 && bridge fdb replace 70:b3:d5:80:00:09 dev vtep1024 dst 10.0.0.2 self permanent"
            )
        );
    }

    #[test]
    fn silence_is_reported_with_remaining_causes() {
        let open = "run 'mesos-overlay doctor --probe' on 10.0.0.2 as well, and open UDP port \
                    64000 between the two hosts, also in security groups of a cloud";
        let silent = "the peer answers in the underlay, and not in the tunnel";
        let (summary, command, advice) = diagnose(|_| {});
        assert_eq!(
            summary,
            format!(
                "{silent}: a firewall drops UDP port 64000 in one direction, or the peer has \
                 another VNI or MAC, or does not know this agent"
            )
        );
        assert_eq!((command, advice.as_deref()), (None, Some(open)));
        let path = lost_probe().path;
        let (summary, ..) = diagnose(|probe| probe.peer = Some((path.vni, path.mac)));
        assert_eq!(
            summary,
            format!(
                "{silent}: the peer's agent has the same VNI and the expected MAC, so a firewall \
                 drops UDP port 64000 in one direction, or the peer does not know this agent"
            )
        );
        let (summary, _, advice) = diagnose(|probe| probe.underlay = Outcome::NoReply);
        assert_eq!(
            summary,
            "the peer answers neither in the tunnel nor in the underlay: the peer is down, or the \
             network in between drops all packets"
        );
        assert_eq!(
            advice.as_deref(),
            Some(
                "check that host and the network to it; if the host is gone: run 'mesos-overlay \
                 forget --master 10.0.0.100:5050 10.0.0.2', which releases the addresses of that \
                 agent at the master"
            )
        );
        let unreachable = || Outcome::NotSent("Network is unreachable".to_owned());
        let (summary, _, advice) = diagnose(|probe| probe.underlay = unreachable());
        assert_eq!(
            summary,
            "packets to the agent cannot be sent: Network is unreachable: this host has no route \
             to the agent in the underlay"
        );
        assert_eq!(advice.as_deref(), Some("see 'ip route get 10.0.0.2'"));
        let (summary, command, _) = diagnose(|probe| probe.small = unreachable());
        assert_eq!(
            summary,
            "packets cannot be sent: Network is unreachable: device vtep1024 is down or has no \
             address, or a rule drops the packets"
        );
        assert_eq!(command.as_deref(), Some("ip link set vtep1024 up"));
    }
}
