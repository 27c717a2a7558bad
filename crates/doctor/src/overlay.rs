//! Checks of the overlays of this host: the assignment, the state of the kernel, and the reports of
//! the agent and the master. The checks are pure functions of the observation.

use std::net::IpAddr;

use overlay_linux::dataplane::{
    Hop, MARK, METRIC_UNALLOCATED, Operation, PROTOCOL, Problem, RouteKey,
};
use overlay_linux::docker::DockerFailure;
use overlay_types::addr::{DeviceName, Mtu};
use overlay_types::protocol::Status;
use overlay_types::text::pluralize;
use overlay_types::tunnel::{Collision, HostObject, HostRoute, SubnetOwner, VxlanDevice};

use super::finding::Finding;
use super::observation::{AgentQueryError, AgentReport, DesiredSource, Observation};

/// Maximum number of missing changes that are shown one by one.
const SHOWN_MAX: usize = 20;

/// Runs all checks of the overlays in a fixed order.
pub(crate) fn check(observation: &Observation) -> Vec<Finding> {
    let checks: [fn(&Observation) -> Vec<Finding>; 6] =
        [agent, master, collisions, mtu, dataplane, peers];
    checks.iter().flat_map(|check| check(observation)).collect()
}

fn agent(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "agent";
    let address = &observation.agent.address;
    let report = match &observation.agent.answer {
        Ok(report) => report,
        Err(error) => return vec![agent_unavailable(CHECK, observation, error)],
    };
    let (docker_problems, other_problems): (Vec<_>, Vec<_>) =
        problems(report).into_iter().partition(|problem| is_caused_by_docker(observation, problem));
    let mut findings = Vec::new();
    for problem in other_problems {
        let explanation = "the agent reports this problem and retries";
        let finding = Finding::wrong(CHECK, problem, explanation);
        findings.push(finding.with_advice("fix the reported problem, or see the agent's log"));
    }
    if !docker_problems.is_empty() {
        let problems = pluralize(docker_problems.len(), "problem");
        let summary = format!(
            "the agent has {problems} because the Docker daemon does not run, as shown above"
        );
        let finding = Finding::note(CHECK, summary);
        findings.push(finding.with_advice("fix the Docker daemon: the agent retries"));
    }
    if !findings.is_empty() {
        return findings;
    }
    let status = report.health.as_ref().map_or("", |(status, _)| status.as_str());
    vec![match status {
        "registering" | "detached" => Finding::wrong(
            CHECK,
            format!("the agent at {address} is {status}"),
            "no master has sent its assignment",
        )
        .with_advice("check that the master runs and is reachable, and see the agent's log"),
        _ => {
            let overlays = pluralize(report.info.overlays.len() as u128, "overlay");
            Finding::ok(CHECK, format!("the agent at {address} has {overlays}"))
        }
    }]
}

fn agent_unavailable(
    check: &'static str,
    observation: &Observation,
    error: &AgentQueryError,
) -> Finding {
    let address = &observation.agent.address;
    let (summary, explanation, advice) = match error {
        AgentQueryError::NoResponse(reason) => (
            format!("no agent answers at {address}: {reason}"),
            "the programmed dataplane stays, but nothing is repaired and no peer is added",
            "start the agent, or name its address with --agent",
        ),
        AgentQueryError::NotAnAgent(answer) => (
            format!("something else answers at {address} ({answer}), perhaps a Mesos agent"),
            "it is unknown whether an agent maintains the programmed dataplane",
            "give the address of the overlay agent as --agent",
        ),
        AgentQueryError::NoPermission(status) => (
            format!("the agent at {address} refuses the request ({status})"),
            "it is unknown whether the agent maintains the programmed dataplane",
            "give the file of a credential that the agent accepts as --credential",
        ),
    };
    let finding = if observation.tunnel.is_programmed() {
        Finding::warning(check, summary, explanation)
    } else {
        Finding::note(check, summary)
    };
    finding.with_advice(advice)
}

/// Returns the problems in the agent's health, or else its failed overlays.
fn problems(report: &AgentReport) -> Vec<String> {
    if let Some((_, problems)) = &report.health {
        return problems.clone();
    }
    let failed = report.info.overlays.iter().filter_map(|overlay| match &overlay.status {
        Some(Status::Failed(reason)) => Some(format!("overlay {}: {reason}", overlay.name())),
        _ => None,
    });
    failed.collect()
}

/// Returns whether the stopped Docker daemon causes a problem of the agent. The check of Docker
/// reports the daemon, and one cause is reported as one problem.
fn is_caused_by_docker(observation: &Observation, problem: &str) -> bool {
    matches!(observation.docker, Some(Err(DockerFailure::NotRunning { .. })))
        && problem.contains(DockerFailure::NOT_RUNNING)
}

fn master(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "master";
    let Some(master) = &observation.master else {
        let finding = Finding::note(CHECK, "not queried: peers are compared with the kernel only");
        return vec![finding.with_advice("name the master with --master IP:PORT")];
    };
    let address = &master.address;
    let state = match &master.answer {
        Ok(state) => state,
        Err(reason) => {
            return vec![Finding::wrong(
                CHECK,
                reason.as_str(),
                "starting agents get no assignment, and running agents learn of no new peer",
            )];
        }
    };
    let Ok(report) = &observation.agent.answer else {
        let agents = pluralize(state.agents.len() as u128, "agent");
        return vec![Finding::ok(CHECK, format!("master {address} knows {agents}"))];
    };
    let ip = report.info.ip;
    if state.agents.iter().any(|agent| agent.ip == ip) {
        return vec![Finding::ok(CHECK, format!("master {address} knows this agent, {ip}"))];
    }
    let finding = Finding::wrong(
        CHECK,
        format!("master {address} does not know this agent, {ip}"),
        "its peers do not know the agent, and drop its packets",
    );
    vec![finding.with_advice(
        "check that the agent has the same master, and which address the agent advertises",
    )]
}

fn collisions(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "collisions";
    let tunnel = &observation.tunnel;
    if matches!(tunnel.source, DesiredSource::Defaults | DesiredSource::Kernel) {
        let finding = Finding::note(CHECK, "not checked: the overlays' addresses are unknown");
        return vec![finding.with_advice("name the master with --master IP:PORT")];
    }
    if tunnel.collisions.is_empty() {
        return vec![Finding::ok(CHECK, "no route or address of the host overlaps the overlays")];
    }
    tunnel.collisions.iter().map(|collision| collision_finding(CHECK, collision)).collect()
}

fn collision_finding(check: &'static str, collision: &Collision) -> Finding {
    let Collision { owner, subnet, object, is_programmed } = collision;
    let subnet = match owner {
        SubnetOwner::Overlay(name) => format!("subnet {subnet} of overlay {name}"),
        SubnetOwner::Vteps(_) => format!("VTEP subnet {subnet}"),
    };
    let finding = Finding::wrong(
        check,
        format!("{subnet} collides with the host's {object}"),
        if *is_programmed {
            "the overlay was in use before, so the agent keeps it until the next reboot"
        } else {
            "the overlay would make these addresses unreachable, so the agent refuses the overlay"
        },
    );
    let advice = "change the subnet of the overlay at the master, or the addresses of the host";
    finding.with_advice(match object {
        HostObject::Route(HostRoute { subnet, gateway: Some(_), .. }) => {
            let delete = format!("{} route delete {subnet}", ip_command(subnet.first()));
            format!("{advice}; or cut this host off from {subnet} with '{delete}'")
        }
        HostObject::Route(_) | HostObject::Address(_) => advice.to_owned(),
    })
}

/// Returns the `ip` command for the family of the address.
const fn ip_command(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip -6" }
}

/// Returns the MTU of a VXLAN device that exists.
fn device_mtu(observation: &Observation, local: &VxlanDevice) -> Option<Mtu> {
    let device = observation.tunnel.observed.state.devices.get(&local.device);
    device.map(|device| device.link.mtu)
}

fn mtu(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "mtu";
    let tunnel = &observation.tunnel;
    let mut findings = Vec::new();
    // The largest packet that the underlay of the first device carries.
    let mut known_max = None;
    for local in &tunnel.desired.vxlan_devices {
        let VxlanDevice { device, underlay, .. } = local;
        let Some(underlay_mtu) = tunnel.observed.underlay_mtus.get(underlay) else {
            if tunnel.source != DesiredSource::Defaults {
                findings.push(
                    Finding::wrong(
                        CHECK,
                        format!("no device of this host has the address {underlay}"),
                        "the tunnels of this agent use it as their source",
                    )
                    .with_advice(
                        "restore the address of the host, or register the agent with another \
                         address",
                    ),
                );
            }
            continue;
        };
        let max = underlay_mtu.bytes().saturating_sub(local.overhead());
        known_max.get_or_insert(max);
        if let Some(mtu) = device_mtu(observation, local).filter(|mtu| mtu.bytes() > max) {
            findings.push(
                Finding::wrong(
                    CHECK,
                    format!("device {device} has an MTU of {mtu}, and the underlay carries {max}"),
                    "large packets are fragmented, and many routers drop fragments",
                )
                .with_command(format!("ip link set {device} mtu {max}"))
                .with_advice(format!("set vtep_mtu to {max} or less, or remove it")),
            );
        }
    }
    let problems = tunnel.plan.problems.iter();
    findings.extend(problems.filter_map(|problem| mtu_problem(observation, problem)));
    if findings.is_empty() {
        findings.push(match known_max {
            Some(max) => Finding::ok(CHECK, format!("the underlay carries packets of {max} bytes")),
            None => Finding::note(CHECK, "unknown: this host has no default route"),
        });
    }
    findings
}

/// Returns the finding for a problem of the plan that concerns an MTU.
fn mtu_problem(observation: &Observation, problem: &Problem) -> Option<Finding> {
    let tunnel = &observation.tunnel;
    let (summary, lower, needed, underlay) = match problem {
        Problem::MtuTooSmall { device, mtu, least, overhead, underlay } => (
            format!("device {device} would have an MTU of {mtu}, and needs {least}"),
            String::new(),
            least + overhead,
            underlay,
        ),
        Problem::ContainersDoNotFit { device, mtu, containers, overhead, underlay } => {
            let exists = tunnel.observed.state.devices.contains_key(device);
            let has = if exists { "has" } else { "would have" };
            (
                format!("device {device} {has} an MTU of {mtu}, and the containers {containers}"),
                format!("set network_config.overlay_mtu to {mtu} or less, or, "),
                containers.bytes() + overhead,
                underlay,
            )
        }
        _ => return None,
    };
    let device = tunnel.device_with(*underlay).unwrap_or("DEVICE");
    // The network may not carry packets of this size. A larger MTU of the device would then break
    // other traffic as well.
    let raise = format!(
        "if the network between the agents carries {needed} bytes, 'ip link set {device} mtu \
         {needed}'"
    );
    let finding = Finding::wrong("mtu", summary, "large packets of containers do not fit");
    Some(finding.with_advice(format!("{lower}{raise}")))
}

/// Compares the kernel with the desired state, and reports the problems of the plan.
fn dataplane(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "dataplane";
    let tunnel = &observation.tunnel;
    if observation.is_external() {
        let summary =
            "another program manages the tunnels: they are not compared with the assignment";
        return vec![Finding::note(CHECK, summary)];
    }
    let mut findings: Vec<_> = tunnel.plan.problems.iter().filter_map(obstacle).collect();
    let operations = tunnel.plan.operations.iter();
    let missing: Vec<_> = operations
        .filter(|operation| is_compared(tunnel.source, operation))
        .filter(|operation| !tunnel.is_refused(operation))
        .collect();
    if observation.is_before_first_run() && !missing.is_empty() {
        let finding = Finding::note(CHECK, "nothing is programmed yet");
        return vec![finding.with_advice("start the agent, which programs the dataplane")];
    }
    for operation in missing.iter().take(SHOWN_MAX) {
        let finding = Finding::wrong(
            CHECK,
            format!("the kernel differs from the desired state, missing change: {operation}"),
            "a running agent repairs it within its verify_interval",
        );
        findings.push(match command(operation) {
            Some(command) => finding.with_command(command),
            None => finding.with_advice("start the agent, or see its log"),
        });
    }
    if missing.len() > SHOWN_MAX {
        let more = missing.len() - SHOWN_MAX;
        let summary = format!("the kernel differs from the desired state in {more} more respects");
        let finding = Finding::wrong(CHECK, summary, "a running agent repairs it");
        findings.push(finding.with_advice("start the agent, or see its log"));
    }
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
    findings
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
fn obstacle(problem: &Problem) -> Option<Finding> {
    const CHECK: &str = "dataplane";
    let explanation = "the agent does not change foreign devices, and creates no tunnel";
    match problem {
        Problem::NameTaken { device, kind } => {
            let summary = format!("device {device} is a foreign {kind} device");
            let finding = Finding::wrong(CHECK, summary, explanation);
            Some(finding.with_advice(delete_if_unneeded(device.as_str())))
        }
        Problem::VniTaken { device, vni, port, other } => {
            let summary = format!(
                "VXLAN device {other} has VNI {vni} on UDP port {port}, which device {device} needs"
            );
            let finding = Finding::wrong(CHECK, summary, explanation);
            Some(finding.with_advice(delete_if_unneeded(other)))
        }
        Problem::Peer { agent, fault } => {
            Some(Finding::wrong(CHECK, format!("agent {agent} is skipped"), fault.to_string()))
        }
        Problem::Detour(detour) => {
            let wrong = format!("packets from {} to {}", detour.from, detour.subnet);
            Some(Finding::wrong(CHECK, wrong, detour.to_string()))
        }
        Problem::ForeignAddress { bridge, .. } => {
            let wrong = format!("bridge {bridge} has a foreign address before its own");
            Some(Finding::wrong(CHECK, wrong, problem.to_string()))
        }
        Problem::MtuTooSmall { .. } | Problem::ContainersDoNotFit { .. } => None,
    }
}

fn delete_if_unneeded(device: &str) -> String {
    format!("find its owner; if the device is not needed, 'ip link delete {device}'")
}

/// Returns a command that does the same as the operation, if there is such a command.
fn command(operation: &Operation) -> Option<String> {
    let set = |device: &DeviceName, value: String| Some(format!("ip link set {device} {value}"));
    match operation {
        Operation::Mark(device) => set(device, format!("alias {MARK}")),
        Operation::SetMac(device, mac) => set(device, format!("address {mac}")),
        Operation::SetMtu(device, mtu) => set(device, format!("mtu {mtu}")),
        Operation::SetUp(device) => set(device, "up".to_owned()),
        Operation::RemoveDevice(device) => Some(format!("ip link delete {device}")),
        Operation::AddBridge(device, _) => Some(format!("ip link add name {device} type bridge")),
        Operation::AttachPort(device, port) => {
            Some(format!("ip link set {} master {device}", port.name))
        }
        Operation::EnableIpv6(device) => {
            Some(format!("sysctl -w net.ipv6.conf.{device}.disable_ipv6=0"))
        }
        Operation::EnableForwarding(device, family) => {
            let family = family.to_string().to_lowercase();
            Some(format!("sysctl -w net/{family}/conf/{device}/forwarding=1"))
        }
        Operation::AddAddress(device, address) => {
            let nodad = if address.address().is_ipv6() { " nodad" } else { "" };
            Some(format!("ip addr add {address} dev {device}{nodad}"))
        }
        Operation::RemoveAddress(device, address) => {
            Some(format!("ip addr delete {address} dev {device}"))
        }
        Operation::SetNeighbor(device, address, mac) => {
            Some(format!("ip neigh replace {address} lladdr {mac} dev {device} nud permanent"))
        }
        Operation::RemoveNeighbor(device, address) => {
            Some(format!("ip neigh delete {address} dev {device}"))
        }
        Operation::SetForward(device, mac, agent) => {
            Some(format!("bridge fdb replace {mac} dev {device} dst {agent} self permanent"))
        }
        Operation::RemoveForward(device, mac, agent) => {
            Some(format!("bridge fdb delete {mac} dev {device} dst {agent} self"))
        }
        // `replace` would also replace a route of the host.
        Operation::AddRoute(key, hop) => route_command("add", key, hop),
        Operation::ChangeRoute(key, hop) => route_command("replace", key, hop),
        Operation::RemoveRoute(RouteKey { subnet, metric }, _) => {
            let program = ip_command(subnet.first());
            Some(format!("{program} route delete {subnet} metric {metric} proto {PROTOCOL}"))
        }
        Operation::AddDevice(..)
        | Operation::SetUnderlay(..)
        | Operation::StopLearning(_)
        | Operation::SetLooseRpFilter(_) => None,
    }
}

/// Returns the command that adds a route, or replaces one of ours.
fn route_command(verb: &str, RouteKey { subnet, metric }: &RouteKey, hop: &Hop) -> Option<String> {
    let replace = format!("{} route {verb}", ip_command(subnet.first()));
    match hop {
        Hop::Unreachable => Some(format!(
            "{replace} unreachable {subnet} metric {METRIC_UNALLOCATED} proto {PROTOCOL}"
        )),
        Hop::Via { device, gateway, is_onlink } => {
            let onlink = if *is_onlink { " onlink" } else { "" };
            Some(format!(
                "{replace} {subnet} via {gateway} dev {device}{onlink} metric {metric} proto \
                 {PROTOCOL}"
            ))
        }
        Hop::Elsewhere => None,
    }
}

/// Checks the entries of the peers. No packet is sent.
fn peers(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "peers";
    let tunnel = &observation.tunnel;
    let state = &tunnel.observed.state;
    let mut findings = Vec::new();
    for (peer, reason) in &tunnel.unroutable {
        findings.push(
            Finding::wrong(
                CHECK,
                format!("no route to agent {peer}: {reason}"),
                "tunnel packets to the agent cannot be sent",
            )
            .with_advice(format!("see '{} route get {peer}'", ip_command(*peer))),
        );
    }
    for (name, device) in &state.devices {
        for (address, mac) in &device.neighbors {
            if !device.forwards.contains_key(mac) {
                findings.push(
                    Finding::wrong(
                        CHECK,
                        format!(
                            "device {name} has no FDB entry for {mac}, the MAC of VTEP {address}"
                        ),
                        "packets to the VTEP are dropped",
                    )
                    .with_advice("start the agent, or see its log"),
                );
            }
        }
    }
    if findings.is_empty() {
        let count: usize = state.devices.values().map(|device| device.forwards.len()).sum();
        let peers = pluralize(count as u128, "peer");
        findings.push(match count {
            0 if tunnel.is_programmed() => Finding::ok(CHECK, "there is no other agent yet"),
            0 => Finding::note(CHECK, "unknown before the agent has run"),
            _ => Finding::ok(CHECK, format!("the kernel has a route to each of {peers}")),
        });
    }
    findings
}
