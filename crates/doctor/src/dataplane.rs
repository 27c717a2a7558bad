//! Compares the kernel with the desired state. The missing changes of one object are one finding.

use std::net::IpAddr;

use overlay_linux::dataplane::{
    Detour, Hop, Impact, MARK, METRIC_UNALLOCATED, Operation, PROTOCOL, Problem, Remedy, RouteKey,
};
use overlay_types::addr::DeviceName;
use overlay_types::advice::{Command, RouteTarget};
use overlay_types::text::pluralize;
use overlay_types::tunnel::Desired;

use super::cause::{Object, Topic};
use super::finding::Finding;
use super::observation::{DesiredSource, Observation};

const CHECK: &str = "dataplane";
/// Number of changes of one object for which a command is shown.
const COMMANDS_MAX: usize = 8;

/// Compares the kernel with the desired state, and reports the problems of the plan.
pub(crate) fn dataplane(observation: &Observation) -> Vec<Finding> {
    let tunnel = &observation.tunnel;
    if observation.is_external() {
        let summary =
            "another program manages the tunnels: they are not compared with the assignment";
        return vec![Finding::note(CHECK, summary)];
    }
    let problems = tunnel.plan.problems.iter();
    let mut findings: Vec<_> =
        problems.filter_map(|problem| problem_finding(problem, &tunnel.desired)).collect();
    findings.extend(detours(&tunnel.plan.problems));
    let operations = tunnel.plan.operations.iter();
    let missing: Vec<_> = operations
        .filter(|operation| is_compared(tunnel.source, operation))
        .filter(|operation| !tunnel.is_refused(operation))
        .collect();
    if observation.is_before_first_run() && !missing.is_empty() {
        let finding = Finding::note(CHECK, "nothing is programmed yet").about(Topic::Unchecked);
        return vec![finding.with_advice("start the agent, which programs the dataplane")];
    }
    findings.extend(groups(observation, &missing).iter().map(|group| group.finding(observation)));
    if findings.is_empty() {
        let summary = match tunnel.source {
            DesiredSource::Assignments => "the kernel matches the desired state of the overlays",
            DesiredSource::Kernel => "the VXLAN devices are up",
            DesiredSource::Defaults | DesiredSource::MasterNetwork => {
                "no object of the host conflicts with the VXLAN device"
            }
        };
        findings.push(Finding::ok(CHECK, summary));
    }
    findings.extend(missing_checksums(observation));
    findings
}

/// Names the devices that the agent would make with a checksum now. The kernel cannot change them.
fn missing_checksums(observation: &Observation) -> Vec<Finding> {
    if !observation.config.dataplane.vxlan_checksum {
        return Vec::new();
    }
    let devices = observation.tunnel.observed.state.devices.iter();
    let devices = devices.filter(|(_, device)| !device.link.has_checksum);
    let note = |(name, _): (&DeviceName, _)| {
        let summary = format!(
            "device {name} was made without outer UDP checksums, so a peer may not merge its packets \
             (GRO), which costs throughput"
        );
        let finding = Finding::note(CHECK, summary).on(Object::device(name));
        finding.with_command(Command::replace_device(name))
    };
    devices.map(note).collect()
}

/// Returns whether a missing operation is a problem, given the source of the desired state.
const fn is_compared(source: DesiredSource, operation: &Operation) -> bool {
    match (source, operation) {
        // The check of rp_filter considers the setting of all devices too.
        (_, Operation::SetLooseRpFilter(_)) => false,
        (DesiredSource::Assignments, _) => true,
        // Without assignments, only the condition of existing devices can be judged.
        (DesiredSource::Kernel, Operation::SetUp(_) | Operation::StopLearning(_)) => true,
        _ => false,
    }
}

/// Returns the finding for a problem of the plan that concerns a device or a peer.
fn problem_finding(problem: &Problem, desired: &Desired) -> Option<Finding> {
    let explanation = "the agent does not change foreign devices, and creates no tunnel";
    let owner = |device: &str| {
        let show = Command::show_device(device);
        format!("find its owner with {show}, and let the owner rename or remove it")
    };
    Some(match problem {
        Problem::NameTaken { device, kind } => {
            let summary = format!("device {device} is a foreign {kind} device");
            let finding = Finding::wrong(CHECK, summary, explanation).about(Topic::ForeignDevice);
            finding.on(Object::device(device)).with_advice(owner(device.as_str()))
        }
        Problem::VniTaken { device, vni, port, other } => {
            let summary = format!(
                "VXLAN device {other} has VNI {vni} on UDP port {port}, which device {device} needs"
            );
            let finding = Finding::wrong(CHECK, summary, explanation).about(Topic::ForeignDevice);
            finding.on(Object::device(device)).with_advice(owner(other))
        }
        Problem::Peer { agent, fault } => {
            let summary = format!("agent {agent} is skipped");
            let finding = Finding::wrong(CHECK, summary, fault.to_string()).about(Topic::Entries);
            finding.on(Object::Peers([*agent].into()))
        }
        Problem::ForeignAddress { bridge, address, .. } => {
            let summary = format!("bridge {bridge} has a foreign address before its own");
            let finding = Finding::wrong(CHECK, summary, "the CNI plugin adds no container to it");
            let finding = finding.about(Topic::Bridge).on(Object::device(bridge));
            finding.with_advice(format!(
                "find the owner of {address}; if nothing uses it, run {}",
                Command::remove_foreign_address(bridge, *address)
            ))
        }
        Problem::UnderlayInVrf { device, member, .. } => {
            let summary = format!("the underlay does not carry VXLAN packets: {member}");
            let finding = Finding::wrong(CHECK, summary, "the tunnels use no route of the VRF");
            let finding = finding.about(Topic::UnderlayRoute).on(Object::device(device));
            finding.with_advice(format!(
                "set 'underlay' to an address outside of the VRF; if nothing else uses the VRF \
                 through {}, run {}, instead",
                member.device,
                Command::release_underlay_from_vrf(&member.device)
            ))
        }
        Problem::Interference(interference) => {
            let explanation = match interference.impact {
                Impact::SomeContainers => {
                    "packets of these containers are lost, and the overlay reaches its others"
                }
                Impact::Overlays | Impact::Possible => "packets of the overlays are lost",
            };
            let finding = Finding::wrong(CHECK, &interference.cause, explanation);
            let finding = finding
                .about(Topic::Interference)
                .on(Object::of_scope(&interference.scope, desired));
            match &interference.remedy {
                Remedy::Run(command) => finding.with_command(command.clone()),
                Remedy::Advice(advice) => finding.with_advice(advice),
            }
        }
        // Detours are grouped.
        Problem::Detour(_) => return None,
        // The checks `mtu` and `peers` name them.
        Problem::Mtu(_) | Problem::Unroutable { .. } => return None,
    })
}

/// Returns a finding for each cause of detours: the same way because of the same rules.
fn detours(problems: &[Problem]) -> Vec<Finding> {
    let mut groups: Vec<Vec<&Detour>> = Vec::new();
    let all = problems.iter().filter_map(|problem| match problem {
        Problem::Detour(detour) => Some(&**detour),
        _ => None,
    });
    for detour in all {
        let cause = |detour: &Detour| {
            (detour.found.clone(), detour.rule.clone(), detour.vrf_member.clone())
        };
        match groups.iter_mut().find(|group| cause(group[0]) == cause(detour)) {
            Some(group) => group.push(detour),
            None => groups.push(vec![detour]),
        }
    }
    groups.iter().map(|group| detour(group)).collect()
}

/// Returns the finding for detours with the same cause.
fn detour(group: &[&Detour]) -> Finding {
    let first = group[0];
    let Detour { from, to, source, destination, subnet, whole, found, rule, vrf_member } = first;
    let more = match group.len() - 1 {
        0 => String::new(),
        more => format!(", and {} of packets", pluralize(more as u128, "more path")),
    };
    let summary = format!("packets from {from} to {subnet} do not leave through {to}{more}");
    let devices = group.iter().flat_map(|detour| [detour.from.clone(), detour.to.clone()]);
    let object = Object::Devices(devices.collect());
    let finding = |explanation: String| {
        let finding = Finding::wrong(CHECK, summary, explanation);
        finding.about(Topic::Detour).on(object)
    };
    if let Some(member) = vrf_member {
        let command = Command::release_device(&member.device);
        return finding(format!("they {found}: {member}")).with_command(command);
    }
    let Some(rule) = rule else {
        return finding(format!("they {found}")).with_advice(format!(
            "see {} and {}",
            Command::show_route_of_forwarded(*destination, *source, from),
            Command::show_routes(*subnet)
        ));
    };
    let finding = finding(format!("they {found}: policy rule '{}' is in the way", rule.text));
    match first.command() {
        Some(command) => finding.with_command(command),
        None => finding.with_advice(format!("let its program exclude packets to {whole}")),
    }
}

/// Missing changes of one object.
struct Group<'a> {
    topic: Topic,
    object: Object,
    operations: Vec<&'a Operation>,
}

/// Returns the missing changes by object, in the order of the plan.
fn groups<'a>(observation: &Observation, missing: &[&'a Operation]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for operation in missing {
        let topic = topic(observation, operation);
        let object = object(observation, operation);
        let same = groups.iter_mut().find(|group| {
            // The entries of all peers of a device have the same cause.
            let is_same_object = group.object == object || topic == Topic::Entries;
            group.topic == topic && is_same_object
        });
        match same {
            Some(group) => {
                group.object.join(object);
                group.operations.push(operation);
            }
            None => groups.push(Group { topic, object, operations: vec![operation] }),
        }
    }
    groups
}

fn is_bridge(observation: &Observation, device: &DeviceName) -> bool {
    let spaces = &observation.tunnel.desired.spaces;
    spaces.iter().flat_map(|space| &space.bridges).any(|bridge| bridge.device == *device)
}

fn topic(observation: &Observation, operation: &Operation) -> Topic {
    match operation {
        Operation::SetNeighbor(..)
        | Operation::RemoveNeighbor(..)
        | Operation::SetForward(..)
        | Operation::RemoveForward(..)
        | Operation::AddRoute(..)
        | Operation::ChangeRoute(..)
        | Operation::RemoveRoute(..) => Topic::Entries,
        Operation::EnableForwarding(..) => Topic::DeviceForwarding,
        other => match other.device() {
            Some(device) if is_bridge(observation, device) => Topic::Bridge,
            _ => Topic::Device,
        },
    }
}

fn object(observation: &Observation, operation: &Operation) -> Object {
    let peers = |peers: &[IpAddr]| Object::Peers(peers.iter().copied().collect());
    match operation {
        Operation::SetNeighbor(_, vtep, mac) => {
            let devices = observation.tunnel.observed.state.devices.values();
            let agents = devices.filter_map(|device| device.forwards.get(mac));
            peers(&agents.copied().chain([*vtep]).collect::<Vec<_>>())
        }
        Operation::RemoveNeighbor(_, vtep) => peers(&[*vtep]),
        Operation::SetForward(_, _, agent) | Operation::RemoveForward(_, _, agent) => {
            peers(&[*agent])
        }
        Operation::AddRoute(_, Hop::Via { gateway, .. } | Hop::Direct { gateway, .. })
        | Operation::ChangeRoute(_, Hop::Via { gateway, .. } | Hop::Direct { gateway, .. })
        | Operation::RemoveRoute(_, Hop::Via { gateway, .. } | Hop::Direct { gateway, .. }) => {
            peers(&[*gateway])
        }
        other => other.device().map_or(Object::Host, Object::device),
    }
}

impl Group<'_> {
    fn finding(&self, observation: &Observation) -> Finding {
        let (first, more) = (self.operations[0], self.operations.len() - 1);
        let condition = condition(observation, first);
        let summary = match more {
            0 => condition,
            more => {
                format!("{condition} (and {})", pluralize(more as u128, "more difference"))
            }
        };
        let is_answering = observation.agent.answer.is_ok();
        let (explanation, advice) = if is_answering {
            (
                "packets of containers are lost until the agent repairs it, normally within a \
                 second",
                "if it does not go away, see the agent's log",
            )
        } else {
            (
                "packets of containers are lost, and no agent answers that repairs it",
                "start or restart the agent, which repairs it",
            )
        };
        let finding = Finding::wrong(CHECK, summary, explanation).about(self.topic);
        let commands: Option<Vec<Command>> =
            self.operations.iter().map(|operation| command(operation)).collect();
        let commands = commands.filter(|commands| commands.len() <= COMMANDS_MAX);
        Finding { command: commands.and_then(Command::all), ..finding }
            .on(self.object.clone())
            .with_advice(advice)
    }
}

/// Describes the condition that the operation repairs.
fn condition(observation: &Observation, operation: &Operation) -> String {
    let kind = |device: &DeviceName| {
        let kind = if is_bridge(observation, device) { "bridge" } else { "device" };
        format!("{kind} {device}")
    };
    match operation {
        Operation::AddDevice(device, _) | Operation::AddBridge(device, _) => {
            format!("{} is missing", kind(device))
        }
        Operation::SetUp(device) => format!("{} is down", kind(device)),
        Operation::EnableForwarding(device, family) => {
            format!("{family} forwarding is off for {}", kind(device))
        }
        Operation::AddAddress(device, address) => {
            format!("{} does not have its address {address}", kind(device))
        }
        Operation::RemoveAddress(device, address) => {
            format!("{} has the stale address {address}", kind(device))
        }
        Operation::SetMtu(device, mtu) => format!("{} does not have its MTU {mtu}", kind(device)),
        Operation::AddRoute(RouteKey { subnet, .. }, _) => {
            format!("the route to {subnet} is missing")
        }
        other => format!("the kernel differs from the desired state, missing change: {other}"),
    }
}

/// Returns a command that does the same as the operation, if there is such a command.
fn command(operation: &Operation) -> Option<Command> {
    Some(match operation {
        Operation::Mark(device) => Command::mark_device(device, MARK),
        Operation::SetMac(device, mac) => Command::set_device_mac(device, *mac),
        Operation::SetMtu(device, mtu) => Command::set_device_mtu(device, *mtu),
        Operation::SetUp(device) => Command::set_device_up(device),
        Operation::Release(device) => Command::release_device(device.as_str()),
        Operation::DisableVlanFiltering(device) => Command::disable_vlan_filtering(device),
        Operation::RemoveDevice(device) => Command::remove_device(device.as_str()),
        Operation::AddBridge(device, _) => Command::add_bridge(device),
        Operation::AttachPort(device, port) => Command::attach_port(&port.name, device),
        Operation::EnableIpv6(device) => Command::enable_ipv6(device),
        Operation::EnableForwarding(device, family) => Command::enable_forwarding(device, *family),
        Operation::AddAddress(device, address) => Command::add_address(device, *address),
        Operation::RemoveAddress(device, address) => Command::remove_address(device, *address),
        Operation::SetNeighbor(device, address, mac) => {
            Command::set_neighbor(device, *address, *mac)
        }
        Operation::RemoveNeighbor(device, address) => Command::remove_neighbor(device, *address),
        Operation::SetForward(device, mac, agent) => Command::set_fdb_entry(device, *mac, *agent),
        Operation::RemoveForward(device, mac, agent) => {
            Command::remove_fdb_entry(device, *mac, *agent)
        }
        Operation::AddRoute(key, hop) => add_route(key, hop)?,
        // `ip route replace` could replace a route of another program.
        Operation::ChangeRoute(key, hop) => remove_route(key).then(add_route(key, hop)?),
        Operation::RemoveRoute(key, _) => remove_route(key),
        Operation::AddDevice(..)
        | Operation::SetUnderlay(..)
        | Operation::StopLearning(_)
        | Operation::SetLooseRpFilter(_) => return None,
        Operation::DisableChecksumOffload(device) => Command::disable_checksum_offload(device),
    })
}

fn remove_route(RouteKey { subnet, metric }: &RouteKey) -> Command {
    Command::remove_route(*subnet, *metric, PROTOCOL)
}

fn add_route(RouteKey { subnet, metric }: &RouteKey, hop: &Hop) -> Option<Command> {
    let (metric, target) = match hop {
        Hop::Unreachable => (METRIC_UNALLOCATED, RouteTarget::Unreachable),
        Hop::Via { device, gateway, is_onlink } => {
            (*metric, RouteTarget::Via { device, gateway: *gateway, is_onlink: *is_onlink })
        }
        // The agent alone chooses this path.
        Hop::Direct { .. } | Hop::Elsewhere => return None,
    };
    Some(Command::add_route(*subnet, metric, target, PROTOCOL))
}

impl Object {
    /// Adds the parts of another object.
    fn join(&mut self, other: Self) {
        match (self, other) {
            (Self::Peers(own), Self::Peers(others)) => own.extend(others),
            (Self::Devices(own), Self::Devices(others)) => own.extend(others),
            (own, other) if *own != other => *own = Self::Host,
            _ => {}
        }
    }
}
