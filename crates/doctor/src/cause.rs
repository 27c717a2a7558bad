//! The relation between causes and effects. A cause is shown once, with the findings that follow
//! from it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, OverlayName};
use overlay_types::tunnel::{Desired, FaultScope};

use super::finding::{Finding, Severity};

/// What a finding is about. A cause precedes its effects in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// The configuration of the agent is not known.
    Configuration,
    /// No agent answers.
    AgentStopped,
    /// The master does not answer.
    Master,
    /// The kernel has no VXLAN.
    Kernel,
    /// No firewall rules can be created.
    Firewall,
    /// This host has lost the address of its tunnels.
    Address,
    /// This host has no route to a peer.
    UnderlayRoute,
    /// A process has the UDP port of the tunnels.
    Port,
    /// A foreign device is in the way.
    ForeignDevice,
    /// An overlay overlaps a network of the host.
    Collision,
    /// The Docker daemon does not answer.
    DockerDaemon,
    /// A Docker network is not as the agent needs it.
    DockerNetwork,
    /// CNI plugins are missing.
    Plugins,
    /// The host does not forward packets.
    HostForwarding,
    /// Strict `rp_filter`.
    ReversePath,
    /// Foreign rules drop VXLAN packets.
    VxlanRules,
    /// Foreign rules drop forwarded packets.
    ForwardRules,
    /// Foreign rules drop packets between containers of one bridge.
    BridgedRules,
    /// An object of another program drops packets.
    Interference,
    /// A VXLAN device differs.
    Device,
    /// A bridge differs.
    Bridge,
    /// Packets of devices and bridges are not forwarded.
    DeviceForwarding,
    /// Routes, neighbors or FDB entries differ.
    Entries,
    /// The kernel routes packets of containers elsewhere.
    Detour,
    /// An MTU does not fit.
    Mtu,
    /// A check that was not possible.
    Unchecked,
    /// The agent reports a problem with its address.
    ReportedAddress,
    /// The agent reports a problem with its master.
    ReportedMaster,
    /// The agent reports a problem with the table of peers.
    ReportedPeers,
    /// The agent reports a collision.
    ReportedCollision,
    /// The agent reports a problem with a Docker network.
    ReportedDocker,
    /// The agent reports a problem with a CNI configuration.
    ReportedCni,
    /// The agent reports a problem with the dataplane.
    ReportedTunnel,
    /// The agent reports the status of an overlay, because of the dataplane.
    ReportedOverlay,
    /// The agent reports lost probes.
    ReportedProbes,
    /// The doctor's probe lost packets.
    Probe,
    /// The doctor's probe lost large packets only.
    ProbeLarge,
}

use Topic::{
    Address, AgentStopped, BridgedRules, Collision, Configuration, Detour, Device,
    DeviceForwarding, DockerDaemon, DockerNetwork, Entries, Firewall, ForeignDevice, ForwardRules,
    HostForwarding, Interference, Kernel, Master, Mtu, Plugins, Port, ReversePath, UnderlayRoute,
    VxlanRules,
};

/// Everything that prevents the agent from programming the dataplane, and what breaks the path of
/// containers.
const OF_TUNNEL: &[Topic] = &[
    Kernel,
    Firewall,
    Address,
    UnderlayRoute,
    Port,
    ForeignDevice,
    Collision,
    HostForwarding,
    VxlanRules,
    ForwardRules,
    Interference,
    Device,
    Topic::Bridge,
    DeviceForwarding,
    Entries,
    Detour,
    Mtu,
];
/// The effects, each with its possible causes.
const RELATION: &[(Topic, &[Topic])] = &[
    (UnderlayRoute, &[Address]),
    (BridgedRules, &[ForwardRules]),
    (Device, &[Kernel, Firewall, Address, Port, ForeignDevice, Collision]),
    (DeviceForwarding, &[HostForwarding, Device]),
    (Entries, &[Kernel, Firewall, Address, ForeignDevice, Collision, Device]),
    (
        Detour,
        &[
            ForeignDevice,
            Collision,
            HostForwarding,
            Interference,
            Device,
            Topic::Bridge,
            DeviceForwarding,
            Entries,
        ],
    ),
    (Mtu, &[Address]),
    (Topic::Unchecked, &[Configuration, AgentStopped]),
    (Topic::ReportedAddress, &[Address]),
    (Topic::ReportedMaster, &[Master]),
    (Topic::ReportedPeers, &[Master, Topic::ReportedMaster]),
    (Topic::ReportedCollision, &[Collision]),
    (Topic::ReportedDocker, &[DockerDaemon, DockerNetwork]),
    (Topic::ReportedCni, &[Plugins]),
    (Topic::ReportedTunnel, OF_TUNNEL),
    (Topic::ReportedOverlay, OF_TUNNEL),
    (Topic::ReportedOverlay, &[Topic::ReportedTunnel]),
    (Topic::ReportedProbes, OF_TUNNEL),
    (Topic::ReportedProbes, &[ReversePath, Topic::ReportedTunnel]),
    (
        Topic::Probe,
        &[
            Kernel,
            Firewall,
            Address,
            UnderlayRoute,
            Port,
            ForeignDevice,
            ReversePath,
            VxlanRules,
            Interference,
            Device,
            Entries,
        ],
    ),
    (Topic::ProbeLarge, &[Mtu]),
];

/// The object that a finding concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    /// The host, and so every overlay.
    Host,
    /// VXLAN devices or bridges, and their overlays.
    Devices(BTreeSet<DeviceName>),
    /// Overlays.
    Overlays(BTreeSet<OverlayName>),
    /// Peers, by their addresses in underlay and VTEP subnet.
    Peers(BTreeSet<IpAddr>),
}

impl Object {
    pub(crate) fn device(device: &DeviceName) -> Self {
        Self::Devices([device.clone()].into())
    }

    /// Returns the object that a fault affects.
    pub(crate) fn of_scope(scope: &FaultScope, desired: &Desired) -> Self {
        match scope {
            FaultScope::Host => Self::Host,
            FaultScope::Device(device) => Self::device(device),
            FaultScope::Agent(agent) => Self::Peers([*agent].into()),
            FaultScope::Subnet(subnet) => {
                let spaces = desired.spaces.iter();
                let spaces = spaces.filter(|space| space.whole.iter().any(|of| of.covers(subnet)));
                Self::Overlays(spaces.map(|space| space.overlay.clone()).collect())
            }
        }
    }

    /// Returns the overlays that the object carries; `None` if it carries all.
    fn overlays(&self, desired: &Desired) -> Option<BTreeSet<OverlayName>> {
        match self {
            Self::Host | Self::Peers(_) => None,
            Self::Overlays(overlays) => Some(overlays.clone()),
            Self::Devices(devices) => {
                let spaces = desired.spaces.iter().filter(|space| {
                    devices.contains(&space.device)
                        || space.bridges.iter().any(|bridge| devices.contains(&bridge.device))
                });
                let overlays: BTreeSet<_> = spaces.map(|space| space.overlay.clone()).collect();
                (!overlays.is_empty()).then_some(overlays)
            }
        }
    }

    /// Returns whether a cause at this object can have an effect at the other object.
    fn affects(&self, other: &Self, desired: &Desired) -> bool {
        if let (Self::Peers(own), Self::Peers(others)) = (self, other) {
            return !own.is_disjoint(others);
        }
        match (self.overlays(desired), other.overlays(desired)) {
            (Some(own), Some(others)) => !own.is_disjoint(&others),
            _ => true,
        }
    }
}

fn is_cause(cause: Topic, effect: Topic) -> bool {
    RELATION.iter().any(|(found, causes)| *found == effect && causes.contains(&cause))
}

/// Returns the index of the cause of each finding, or `None` for a root.
pub(crate) fn causes(findings: &[Finding], desired: &Desired) -> Vec<Option<usize>> {
    let is_report = |cause: &Finding| cause.topics.contains(&Topic::ReportedTunnel);
    let explain = |effect: &Finding, is_candidate: &dyn Fn(usize, &Finding) -> bool| {
        cause_of(effect, findings, desired, is_candidate)
    };
    let observed = |effect| explain(effect, &|_, cause| !is_report(cause));
    let mut causes: Vec<_> = findings.iter().map(observed).collect();
    let explained: Vec<bool> = causes.iter().map(Option::is_some).collect();
    // A report of the agent is a cause where the doctor found none.
    for (cause, effect) in causes.iter_mut().zip(findings) {
        *cause = cause
            .or_else(|| explain(effect, &|index, cause| is_report(cause) && !explained[index]));
    }
    causes
}

/// Returns the most basic candidate that explains the effect. Every topic of the effect needs a
/// cause: otherwise an independent problem would be hidden.
fn cause_of(
    effect: &Finding,
    findings: &[Finding],
    desired: &Desired,
    is_candidate: &dyn Fn(usize, &Finding) -> bool,
) -> Option<usize> {
    if effect.severity == Severity::Ok {
        return None;
    }
    let explain = |topic: Topic| {
        let candidates = findings.iter().enumerate().filter(|(index, cause)| {
            // A warning does not explain what is certainly wrong.
            cause.severity >= effect.severity
                && cause.topics.iter().any(|cause| is_cause(*cause, topic))
                && cause.object.affects(&effect.object, desired)
                && is_candidate(*index, cause)
        });
        candidates.min_by_key(|(_, cause)| cause.topics.clone()).map(|(index, _)| index)
    };
    let causes: Option<Vec<usize>> = effect.topics.iter().map(|topic| explain(*topic)).collect();
    causes?.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_precedes_its_effects() {
        for (effect, causes) in RELATION {
            for cause in *causes {
                assert!(cause < effect, "{cause:?} -> {effect:?}");
            }
        }
    }

    #[test]
    fn loss_of_other_peer_is_independent() {
        let peers = |last: u8| Object::Peers([IpAddr::from([10, 0, 0, last])].into());
        let entry = Finding::wrong("peers", "entry", "").about(Entries).on(peers(2));
        let lost = |last| Finding::wrong("probe", "lost", "").about(Topic::Probe).on(peers(last));
        let findings = [lost(2), entry, lost(3)];
        assert_eq!(causes(&findings, &Desired::default()), [Some(1), None, None]);
    }

    #[test]
    fn problem_with_unexplained_part_is_root() {
        let daemon = Finding::wrong("docker", "stopped", "").about(DockerDaemon);
        let mut reported = Finding::wrong("agent", "vxlan-1", "").about(Topic::ReportedDocker);
        let of = |reported: &Finding| {
            causes(&[daemon.clone(), reported.clone()], &Desired::default())[1]
        };
        assert_eq!(of(&reported), Some(0));
        reported.topics.push(Topic::ReportedTunnel);
        assert_eq!(of(&reported), None);
    }

    #[test]
    fn warning_explains_no_certain_loss() {
        let rule = |severity| {
            let finding = Finding::wrong("udp-rules", "rule", "").about(VxlanRules);
            finding.at_most(severity)
        };
        let lost = Finding::wrong("probe", "lost", "").about(Topic::Probe);
        for (severity, expected) in [(Severity::Warning, None), (Severity::Wrong, Some(0))] {
            let found = causes(&[rule(severity), lost.clone()], &Desired::default());
            assert_eq!(found, [None, expected]);
        }
    }
}
