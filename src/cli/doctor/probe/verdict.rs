//! From what became of the packets to a peer to the cause, and what mends it. Pure.
//!
//! What works is believed before what is silent: that a peer does not answer in the underlay means
//! nothing if it does in the tunnel.

use std::net::IpAddr;

use super::super::super::echo::{Outcome, Refusal, Unreachable};
use super::super::finding::Finding;
use super::counters::{Counters, RP_FILTER};
use crate::addr::{DeviceName, Mac, Vni};

const CHECK: &str = "probe";

/// A way through the tunnel to a peer, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) device: DeviceName,
    pub(super) vni: Vni,
    pub(super) port: u16,
    /// MTU of the device.
    pub(super) mtu: u32,
    /// What VXLAN takes.
    pub(super) overhead: u32,
    /// Our own VTEP address; `None`: the device has none of this family.
    pub(super) from: Option<IpAddr>,
    /// The peer's VTEP address.
    pub(super) to: IpAddr,
    /// The peer's MAC, as the kernel has it.
    pub(super) mac: Mac,
    /// The peer's address in the underlay.
    pub(super) agent: IpAddr,
}

/// What became of the packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) way: Way,
    pub(super) small: Outcome,
    /// As large as the device takes.
    pub(super) full: Outcome,
    /// The largest that was answered, if a full one was not.
    pub(super) largest: Option<u32>,
    /// To the peer's address in the underlay.
    pub(super) underlay: Outcome,
    /// What was said against packets of the tunnel.
    pub(super) said: Option<Refusal>,
    /// What the peer's agent says that it has: VNI and MAC; `None`: it was not asked, or does not
    /// answer.
    pub(super) peer: Option<(Vni, Mac)>,
}

impl Trace {
    pub(super) fn is_well(&self) -> bool {
        self.small.is_answered() && self.full.is_answered()
    }

    /// The cause of a loss, and what mends it; `None` if there was none.
    pub(super) fn finding(&self, counted: &Counters) -> Option<Finding> {
        if self.is_well() {
            return None;
        }
        let finding = match (&self.small, &self.underlay) {
            (Outcome::Answered(_), _) => self.too_large(),
            (Outcome::NotSent(reason), _) => self.not_sent(reason),
            (_, underlay) => match self.wrong_identity().or_else(|| self.refused()) {
                Some(finding) => finding,
                None => self.silent(underlay, counted),
            },
        };
        let what = format!("{}{}", finding.what, counted.evidence());
        Some(Finding { what, ..finding })
    }

    /// Whom it is about.
    fn name(&self) -> String {
        format!("agent {}, VTEP {}", self.way.agent, self.way.to)
    }

    fn too_large(&self) -> Finding {
        let Way { mtu, overhead, .. } = &self.way;
        let (what, advice) = match self.largest {
            Some(largest) => (
                format!("packets of {largest} bytes arrive, and of {mtu} do not"),
                format!(
                    "raise the MTU of the network in between to {}, or set vtep_mtu to {largest} at \
                     the master and network_config.overlay_mtu to {largest} or less at the agents",
                    mtu + overhead
                ),
            ),
            None => (
                format!("small packets arrive, and of {mtu} bytes not all do"),
                "see whether the network in between loses packets at random".to_owned(),
            ),
        };
        let path = self.largest.unwrap_or(*mtu) + overhead;
        Finding::wrong(
            CHECK,
            format!("{}: {what}", self.name()),
            format!("on the path there is an MTU of {path}, and this host counts on more"),
        )
        .advise(advice)
    }

    fn not_sent(&self, reason: &str) -> Finding {
        let Way { device, .. } = &self.way;
        let finding = Finding::wrong(
            CHECK,
            format!("{}: nothing can be sent: {reason}", self.name()),
            format!("device {device} is down, or lacks its address, or a rule forbids it"),
        );
        finding
            .mend(format!("ip link set {device} up"))
            .advise("start the agent, which gives the device its address back")
    }

    /// The peer's own agent says that it has something else than the kernel here.
    fn wrong_identity(&self) -> Option<Finding> {
        let Way { device, vni, mac, to, .. } = &self.way;
        let (its_vni, its_mac) = self.peer?;
        if its_vni != *vni {
            return Some(
                Finding::wrong(
                    CHECK,
                    format!("{}: it has VNI {its_vni}, and device {device} {vni}", self.name()),
                    "packets of another VNI are dropped",
                )
                .advise("see whether both agents have the same master, and restart the wrong one"),
            );
        }
        if its_mac != *mac {
            return Some(
                Finding::wrong(
                    CHECK,
                    format!("{}: it has MAC {its_mac}, and this host sends to {mac}", self.name()),
                    "packets to another MAC are dropped",
                )
                .mend(format!(
                    "ip neigh replace {to} lladdr {its_mac} dev {device} nud permanent && bridge \
                     fdb replace {its_mac} dev {device} dst {} self permanent",
                    self.way.agent
                )),
            );
        }
        None
    }

    /// What hosts and routers say.
    fn refused(&self) -> Option<Finding> {
        let name = self.name();
        let Way { port, agent, .. } = &self.way;
        let underlay = match &self.underlay {
            Outcome::Refused(refusal) => Some(refusal),
            _ => None,
        };
        let Refusal { by, why } = self.said.as_ref().or(underlay)?;
        let finding = |what: String, why: &str| Finding::wrong(CHECK, what, why);
        Some(match why {
            Unreachable::Port => finding(
                format!("{name}: nobody listens on UDP port {port} there"),
                "its agent has no VXLAN device, or one on another port",
            )
            .advise(format!("start the agent on {agent}, or run 'mesos-overlay doctor' there")),
            Unreachable::Prohibited => finding(
                format!("{name}: {by} forbids UDP port {port}"),
                "a firewall there does not let the tunnel pass",
            )
            .advise(format!("open UDP port {port} on {by}, in both directions")),
            Unreachable::Host => finding(
                format!("{name}: {by} says that the host is unreachable"),
                "it does not answer in its own network: it is down, or its address moved",
            )
            .advise(format!("see that host; if it is gone: mesos-overlay forget {agent}")),
            Unreachable::Network => finding(
                format!("{name}: {by} has no route to it"),
                "packets of the tunnel end there",
            )
            .advise(format!("give {by} a route to {agent}")),
        })
    }

    fn silent(&self, underlay: &Outcome, counted: &Counters) -> Finding {
        let name = self.name();
        let Way { device, port, agent, .. } = &self.way;
        let program = if agent.is_ipv4() { "ip" } else { "ip -6" };
        let finding = |what: String, why: String| Finding::wrong(CHECK, what, why);
        match underlay {
            Outcome::NotSent(reason) => finding(
                format!("{name}: nothing can be sent to it: {reason}"),
                "this host has no way to it in the underlay".to_owned(),
            )
            .advise(format!("see '{program} route get {agent}'")),
            _ if counted.count(RP_FILTER) > 0 => finding(
                format!("{name}: what it answers is dropped here"),
                "rp_filter is strict, and drops packets whose way back is another device"
                    .to_owned(),
            )
            .mend(format!("sysctl -w net.ipv4.conf.{device}.rp_filter=2")),
            Outcome::Answered(_) => finding(
                format!("{name}: it answers in the underlay, and not in the tunnel"),
                match self.peer {
                    Some(_) => format!(
                        "its agent has the same VNI and the MAC that is expected, so a firewall \
                         drops UDP port {port} in one direction, or it does not know this agent"
                    ),
                    None => format!(
                        "a firewall drops UDP port {port} in one direction, or it has another VNI \
                         or MAC, or does not know this agent"
                    ),
                },
            )
            .advise(format!(
                "run 'mesos-overlay doctor --probe' on {agent} as well, and open UDP port {port} \
                 between the two, also in security groups of a cloud"
            )),
            _ => finding(
                format!("{name}: it answers neither in the tunnel nor in the underlay"),
                "it is down, or the network in between drops everything".to_owned(),
            )
            .advise(format!(
                "see that host and the network to it; if it is gone: mesos-overlay forget {agent}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ANSWERED: Outcome = Outcome::Answered(Duration::ZERO);

    fn trace() -> Trace {
        let way = Way {
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
        Trace {
            way,
            small: Outcome::Silent,
            full: Outcome::Silent,
            largest: None,
            underlay: ANSWERED,
            said: None,
            peer: None,
        }
    }

    #[test]
    fn what_the_kernel_counted_is_evidence() {
        let counted = Counters::of(RP_FILTER, 3);
        let finding = trace().finding(&counted);
        let mut silent = trace();
        silent.underlay = Outcome::Silent;
        for finding in [finding, silent.finding(&counted)] {
            let finding = finding.expect("there is a loss");
            assert_eq!(
                finding.what,
                "agent 10.0.0.2, VTEP 44.128.0.2: what it answers is dropped here; counted \
                 meanwhile: 3 packets dropped by rp_filter"
            );
            assert_eq!(
                finding.why,
                "rp_filter is strict, and drops packets whose way back is another device"
            );
            let command = "sysctl -w net.ipv4.conf.vtep1024.rp_filter=2";
            assert_eq!(finding.command.as_deref(), Some(command));
        }
    }

    /// What is found: what and why, the command, the advice.
    fn found(change: impl FnOnce(&mut Trace)) -> (String, Option<String>, Option<String>) {
        let mut trace = trace();
        change(&mut trace);
        let finding = trace.finding(&Counters::default()).expect("there is a loss");
        let about = finding.what.strip_prefix("agent 10.0.0.2, VTEP 44.128.0.2: ");
        let about = about.expect("it names the peer");
        (format!("{about}: {}", finding.why), finding.command, finding.advice)
    }

    fn refusal(why: Unreachable) -> Refusal {
        Refusal { by: "10.0.0.9".parse().unwrap(), why }
    }

    #[test]
    fn what_works_in_the_tunnel_is_well_whatever_the_underlay_says() {
        let mut trace = trace();
        (trace.small, trace.full) = (ANSWERED, ANSWERED);
        trace.underlay = Outcome::Silent;
        trace.said = Some(refusal(Unreachable::Port));
        assert_eq!(trace.finding(&Counters::default()), None);
    }

    #[test]
    fn packets_that_are_too_large_are_told_with_what_fits() {
        let (what, command, advice) = found(|trace| {
            trace.small = ANSWERED;
            trace.largest = Some(1350);
        });
        assert_eq!(
            what,
            "packets of 1350 bytes arrive, and of 1450 do not: on the path there is an MTU of 1400, \
             and this host counts on more"
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
    fn what_hosts_and_routers_say_names_the_cause() {
        let cases = [
            (
                Unreachable::Port,
                "nobody listens on UDP port 64000 there: its agent has no VXLAN device, or one on \
                 another port",
                "start the agent on 10.0.0.2, or run 'mesos-overlay doctor' there",
            ),
            (
                Unreachable::Prohibited,
                "10.0.0.9 forbids UDP port 64000: a firewall there does not let the tunnel pass",
                "open UDP port 64000 on 10.0.0.9, in both directions",
            ),
            (
                Unreachable::Host,
                "10.0.0.9 says that the host is unreachable: it does not answer in its own network: \
                 it is down, or its address moved",
                "see that host; if it is gone: mesos-overlay forget 10.0.0.2",
            ),
            (
                Unreachable::Network,
                "10.0.0.9 has no route to it: packets of the tunnel end there",
                "give 10.0.0.9 a route to 10.0.0.2",
            ),
        ];
        for (why, what, advice) in cases {
            let expected = (what.to_owned(), None, Some(advice.to_owned()));
            assert_eq!(found(|trace| trace.said = Some(refusal(why))), expected);
            if why != Unreachable::Port {
                let underlay = |trace: &mut Trace| trace.underlay = Outcome::Refused(refusal(why));
                assert_eq!(found(underlay), expected);
            }
        }
    }

    #[test]
    fn another_vni_or_mac_of_the_peer_is_told() {
        let own = trace().way;
        let (what, _, advice) =
            found(|trace| trace.peer = Some((Vni::new(2048).unwrap(), own.mac)));
        assert_eq!(
            what,
            "it has VNI 2048, and device vtep1024 1024: packets of another VNI are dropped"
        );
        assert_eq!(
            advice.as_deref(),
            Some("see whether both agents have the same master, and restart the wrong one")
        );
        let (what, command, _) =
            found(|trace| trace.peer = Some((own.vni, "70:B3:D5:80:00:09".parse().unwrap())));
        assert_eq!(
            what,
            "it has MAC 70:b3:d5:80:00:09, and this host sends to 70:b3:d5:80:00:02: packets to \
             another MAC are dropped"
        );
        assert_eq!(
            command.as_deref(),
            Some(
                "ip neigh replace 44.128.0.2 lladdr 70:b3:d5:80:00:09 dev vtep1024 nud permanent && \
                 bridge fdb replace 70:b3:d5:80:00:09 dev vtep1024 dst 10.0.0.2 self permanent"
            )
        );
    }

    #[test]
    fn of_silence_what_is_left_is_told() {
        let open = "run 'mesos-overlay doctor --probe' on 10.0.0.2 as well, and open UDP port 64000 \
                    between the two, also in security groups of a cloud";
        let silent = "it answers in the underlay, and not in the tunnel";
        let (what, command, advice) = found(|_| {});
        assert_eq!(
            what,
            format!(
                "{silent}: a firewall drops UDP port 64000 in one direction, or it has another VNI \
                 or MAC, or does not know this agent"
            )
        );
        assert_eq!((command, advice.as_deref()), (None, Some(open)));
        let same = trace().way;
        let (what, ..) = found(|trace| trace.peer = Some((same.vni, same.mac)));
        assert_eq!(
            what,
            format!(
                "{silent}: its agent has the same VNI and the MAC that is expected, so a firewall \
                 drops UDP port 64000 in one direction, or it does not know this agent"
            )
        );
        let (what, _, advice) = found(|trace| trace.underlay = Outcome::Silent);
        assert_eq!(
            what,
            "it answers neither in the tunnel nor in the underlay: it is down, or the network in \
             between drops everything"
        );
        assert_eq!(
            advice.as_deref(),
            Some(
                "see that host and the network to it; if it is gone: mesos-overlay forget 10.0.0.2"
            )
        );
        let unreachable = || Outcome::NotSent("Network is unreachable".to_owned());
        let (what, _, advice) = found(|trace| trace.underlay = unreachable());
        assert_eq!(
            what,
            "nothing can be sent to it: Network is unreachable: this host has no way to it in the \
             underlay"
        );
        assert_eq!(advice.as_deref(), Some("see 'ip route get 10.0.0.2'"));
        let (what, command, _) = found(|trace| trace.small = unreachable());
        assert_eq!(
            what,
            "nothing can be sent: Network is unreachable: device vtep1024 is down, or lacks its \
             address, or a rule forbids it"
        );
        assert_eq!(command.as_deref(), Some("ip link set vtep1024 up"));
    }
}
