//! What is wrong with the overlays of this host: what is assigned, what is in the kernel, and what
//! the agent and the master say. Pure.

use std::net::IpAddr;

use super::super::host::counted;
use super::finding::Finding;
use super::observed::{AgentAnswer, Basis, NoAgent, Observed};
use crate::addr::{DeviceName, Mtu};
use crate::dataplane::{Hop, MARK, METRIC_UNALLOCATED, Operation, PROTOCOL, Problem, RouteKey};
use crate::docker::Reason;
use crate::protocol::Status;
use crate::tunnel::{Claimant, Collision, HostRoute, Local, Obstacle};

/// Most of what the kernel lacks that is shown one by one: after that, more of the same.
const SHOWN_MAX: usize = 20;

/// All of it, in a fixed order.
pub(super) fn check(observed: &Observed) -> Vec<Finding> {
    let checks: [fn(&Observed) -> Vec<Finding>; 6] =
        [agent, master, collisions, mtu, dataplane, peers];
    checks.iter().flat_map(|check| check(observed)).collect()
}

fn agent(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "agent";
    let address = &observed.agent.address;
    let answer = match &observed.agent.answer {
        Ok(answer) => answer,
        Err(reason) => return vec![no_agent(CHECK, observed, reason)],
    };
    let (of_docker, others): (Vec<_>, Vec<_>) =
        problems(answer).into_iter().partition(|problem| is_of_docker(observed, problem));
    let failed = |problem: String| {
        let why = "the agent says so, and tries again by itself";
        Finding::wrong(CHECK, problem, why).advise("mend what it says, or see its log")
    };
    let mut findings: Vec<_> = others.into_iter().map(failed).collect();
    if !of_docker.is_empty() {
        let count = counted(of_docker.len(), "problem");
        let what = format!("the agent has {count} for want of the Docker daemon, as told above");
        findings.push(Finding::note(CHECK, what).advise("mend that: it tries again by itself"));
    }
    if findings.is_empty() {
        let status = answer.health.as_ref().map_or("", |(status, _)| status.as_str());
        let count = answer.info.overlays.len();
        let overlays = counted(count as u128, "overlay");
        let what = format!("the agent at {address} has {overlays}");
        findings.push(match status {
            "registering" | "detached" => Finding::wrong(
                CHECK,
                format!("the agent at {address} is {status}"),
                "no master has given it its share",
            )
            .advise("see whether the master runs and is reached, and the agent's log"),
            _ => Finding::ok(CHECK, what),
        });
    }
    findings
}

fn no_agent(check: &'static str, observed: &Observed, reason: &NoAgent) -> Finding {
    let address = &observed.agent.address;
    let (what, why, advice) = match reason {
        NoAgent::Silent(reason) => (
            format!("no agent answers at {address}: {reason}"),
            "what is programmed stays, but nothing is repaired and no peer is added",
            "start the agent, or name its address with --agent",
        ),
        NoAgent::Stranger(answer) => (
            format!("something else answers at {address} ({answer}), perhaps a Mesos agent"),
            "whether anybody looks after what is programmed is not known",
            "give the address of the overlay agent as --agent",
        ),
    };
    let finding = if observed.tunnel.is_programmed() {
        Finding::warning(check, what, why)
    } else {
        Finding::note(check, what)
    };
    finding.advise(advice)
}

/// What the agent says that is wrong.
fn problems(answer: &AgentAnswer) -> Vec<String> {
    if let Some((_, problems)) = &answer.health {
        return problems.clone();
    }
    let failed = answer.info.overlays.iter().filter_map(|overlay| match &overlay.status {
        Some(Status::Failed(reason)) => Some(format!("overlay {}: {reason}", overlay.name())),
        _ => None,
    });
    failed.collect()
}

/// Whether a problem of the agent is the one of Docker that we have found ourselves: one thing to
/// mend is one thing that is wrong.
fn is_of_docker(observed: &Observed, problem: &str) -> bool {
    matches!(observed.docker, Some(Err(Reason::NotRunning { .. })))
        && problem.contains(Reason::NOT_RUNNING)
}

fn master(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "master";
    let Some(master) = &observed.master else {
        let what = "not asked: peers are compared with nothing but the kernel";
        return vec![Finding::note(CHECK, what).advise("name it with --master IP:PORT")];
    };
    let address = &master.address;
    let state = match &master.answer {
        Ok(state) => state,
        Err(reason) => {
            let why = "agents that start get nothing, and hear of no new peer";
            return vec![Finding::wrong(CHECK, reason.as_str(), why)];
        }
    };
    let Ok(answer) = &observed.agent.answer else {
        let agents = counted(state.agents.len() as u128, "agent");
        return vec![Finding::ok(CHECK, format!("master {address} knows {agents}"))];
    };
    let ip = answer.info.ip;
    if state.agents.iter().any(|agent| agent.ip == ip) {
        return vec![Finding::ok(CHECK, format!("master {address} knows this agent, {ip}"))];
    }
    vec![
        Finding::wrong(
            CHECK,
            format!("master {address} does not know this agent, {ip}"),
            "its peers are not told of it, and drop its packets",
        )
        .advise("see whether both name the same master, and which address the agent advertises"),
    ]
}

fn collisions(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "collisions";
    let tunnel = &observed.tunnel;
    if matches!(tunnel.basis, Basis::Defaults | Basis::Kernel) {
        let what = "not looked for: the overlays' addresses are not known";
        return vec![Finding::note(CHECK, what).advise("name the master with --master IP:PORT")];
    }
    let finding = |collision: &Collision| {
        let Collision { claimant, subnet, obstacle, is_late } = collision;
        let whose = match claimant {
            Claimant::Overlay(name) => format!("subnet {subnet} of overlay {name}"),
            Claimant::Vteps(_) => format!("VTEP subnet {subnet}"),
        };
        let finding = Finding::wrong(
            CHECK,
            format!("{whose} collides with the host's {obstacle}"),
            if *is_late {
                "it came later, so the agent keeps the overlay as it is, until the next reboot"
            } else {
                "what is there would be cut off, so the agent refuses the overlay"
            },
        );
        let advice = "give one of the two other addresses: the overlay's are the master's";
        finding.advise(match obstacle {
            Obstacle::Route(HostRoute { subnet, gateway: Some(_), .. }) => {
                let delete = format!("{} route delete {subnet}", ip(subnet.first()));
                format!("{advice}; if nobody needs the route, '{delete}'")
            }
            Obstacle::Route(_) | Obstacle::Address(_) => advice.to_owned(),
        })
    };
    let mut findings: Vec<_> = tunnel.collisions.iter().map(finding).collect();
    if findings.is_empty() {
        let what = "the host has nothing where the overlays are";
        findings.push(Finding::ok(CHECK, what));
    }
    findings
}

/// The program for a family.
const fn ip(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip -6" }
}

/// The MTU of a VXLAN device, there or to come.
fn mtu_of(observed: &Observed, local: &Local) -> Option<Mtu> {
    let there = observed.tunnel.seen.state.devices.get(&local.device);
    there.map(|device| device.link.mtu)
}

fn mtu(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "mtu";
    let tunnel = &observed.tunnel;
    let mut findings = Vec::new();
    for local in &tunnel.desired.locals {
        let Local { device, underlay, .. } = local;
        let Some(below) = tunnel.seen.underlay_mtus.get(underlay) else {
            if tunnel.basis != Basis::Defaults {
                findings.push(
                    Finding::wrong(
                        CHECK,
                        format!("no device of this host has the address {underlay}"),
                        "the tunnels of this agent begin there",
                    )
                    .advise("give the host its address back, or register with another one"),
                );
            }
            continue;
        };
        let room = below.bytes().saturating_sub(local.overhead());
        if let Some(mtu) = mtu_of(observed, local).filter(|mtu| mtu.bytes() > room) {
            findings.push(
                Finding::wrong(
                    CHECK,
                    format!(
                        "device {device} has an MTU of {mtu}, and the underlay has room for {room}"
                    ),
                    "large packets are cut in pieces, which much equipment drops",
                )
                .mend(format!("ip link set {device} mtu {room}"))
                .advise(format!("set vtep_mtu to {room} or less, or leave it out")),
            );
        }
    }
    findings.extend(tunnel.plan.problems.iter().filter_map(|problem| too_small(observed, problem)));
    if findings.is_empty() {
        let known = tunnel
            .desired
            .locals
            .iter()
            .find_map(|local| Some((local, tunnel.seen.underlay_mtus.get(&local.underlay)?)));
        findings.push(match known {
            Some((local, below)) => {
                let room = below.bytes().saturating_sub(local.overhead());
                Finding::ok(CHECK, format!("the underlay has room for packets of {room} bytes"))
            }
            None => Finding::note(CHECK, "not known: this host has no default route"),
        });
    }
    findings
}

/// A problem of the plan, if it is about an MTU.
fn too_small(observed: &Observed, problem: &Problem) -> Option<Finding> {
    let tunnel = &observed.tunnel;
    let (what, need, underlay) = match problem {
        Problem::MtuTooSmall { device, mtu, least, overhead, underlay } => (
            format!("device {device} would have an MTU of {mtu}, and needs {least}"),
            least + overhead,
            underlay,
        ),
        Problem::ContainersDoNotFit { device, mtu, containers, overhead, underlay } => {
            let is_there = tunnel.seen.state.devices.contains_key(device);
            let has = if is_there { "has" } else { "would have" };
            (
                format!("device {device} {has} an MTU of {mtu}, and the containers {containers}"),
                containers.bytes() + overhead,
                underlay,
            )
        }
        _ => return None,
    };
    let lower = match problem {
        Problem::ContainersDoNotFit { mtu, .. } => {
            format!("set network_config.overlay_mtu to {mtu} or less, or, ")
        }
        _ => String::new(),
    };
    let below = tunnel.device_with(*underlay).unwrap_or("DEVICE");
    // Where it does not, this would cut off more than the overlays.
    let raise = format!(
        "if the network between the agents carries {need} bytes, 'ip link set {below} mtu {need}'"
    );
    let finding = Finding::wrong("mtu", what, "large packets of containers do not fit");
    Some(finding.advise(format!("{lower}{raise}")))
}

/// What the kernel lacks or has too much, and what stands in the way.
fn dataplane(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "dataplane";
    let tunnel = &observed.tunnel;
    if observed.is_external() {
        let what = "the tunnels are left to somebody else, and not compared with what is assigned";
        return vec![Finding::note(CHECK, what)];
    }
    let mut findings: Vec<_> = tunnel.plan.problems.iter().filter_map(obstacle).collect();
    let is_wanted = |operation: &&Operation| match (tunnel.basis, operation) {
        // It has a check of its own, which knows the kernel's rule; so has the MTU.
        (_, Operation::Loosen(_)) => false,
        (Basis::Assignments, _) => true,
        // Of what is there, only how the devices are is known to be wrong or right.
        (Basis::Kernel, Operation::SetUp(_) | Operation::StopLearning(_)) => true,
        _ => false,
    };
    let lacking: Vec<_> = tunnel.plan.operations.iter().filter(is_wanted).collect();
    if observed.is_before() && !lacking.is_empty() {
        let what = "nothing is programmed yet";
        return vec![Finding::note(CHECK, what).advise("start the agent, which programs it")];
    }
    for operation in lacking.iter().take(SHOWN_MAX) {
        let finding = Finding::wrong(
            CHECK,
            format!("the kernel is not as it is wanted, to do: {operation}"),
            "an agent that runs repairs it within its verify_interval",
        );
        findings.push(match command(operation) {
            Some(command) => finding.mend(command),
            None => finding.advise("start the agent, or see its log"),
        });
    }
    if lacking.len() > SHOWN_MAX {
        let more = lacking.len() - SHOWN_MAX;
        let what = format!("the kernel is not as it is wanted in {more} more respects");
        findings.push(
            Finding::wrong(CHECK, what, "an agent that runs repairs it")
                .advise("start the agent, or see its log"),
        );
    }
    if findings.is_empty() {
        findings.push(match tunnel.basis {
            Basis::Assignments => {
                Finding::ok(CHECK, "the kernel has what is wanted for the overlays")
            }
            Basis::Kernel => Finding::ok(CHECK, "the VXLAN devices are up"),
            Basis::Defaults | Basis::Network => {
                Finding::ok(CHECK, "nothing stands in the way of the VXLAN device")
            }
        });
    }
    findings
}

/// A problem of the plan, if it is about a device.
fn obstacle(problem: &Problem) -> Option<Finding> {
    const CHECK: &str = "dataplane";
    let why = "the agent leaves alone what is not its own, and makes no tunnel";
    let remove =
        |device: &str| format!("see whose it is; if nobody needs it, 'ip link delete {device}'");
    match problem {
        Problem::NameTaken { device, kind } => Some(
            Finding::wrong(CHECK, format!("device {device} is a {kind} device, not ours"), why)
                .advise(remove(device.as_str())),
        ),
        Problem::VniTaken { device, vni, port, other } => Some(
            Finding::wrong(
                CHECK,
                format!(
                    "VXLAN device {other} has VNI {vni} on UDP port {port}, which device {device} \
                     needs"
                ),
                why,
            )
            .advise(remove(other)),
        ),
        Problem::Peer { agent, fault } => {
            Some(Finding::wrong(CHECK, format!("agent {agent} is left out"), fault.to_string()))
        }
        Problem::MtuTooSmall { .. } | Problem::ContainersDoNotFit { .. } => None,
    }
}

/// The operation by hand, where that is a command.
fn command(operation: &Operation) -> Option<String> {
    let set = |device: &DeviceName, what: String| Some(format!("ip link set {device} {what}"));
    match operation {
        Operation::Mark(device) => set(device, format!("alias {}", MARK)),
        Operation::SetMac(device, mac) => set(device, format!("address {mac}")),
        Operation::SetMtu(device, mtu) => set(device, format!("mtu {mtu}")),
        Operation::SetUp(device) => set(device, "up".to_owned()),
        Operation::RemoveDevice(device) => Some(format!("ip link delete {device}")),
        Operation::EnableIpv6(device) => {
            Some(format!("sysctl -w net.ipv6.conf.{device}.disable_ipv6=0"))
        }
        Operation::AddAddress(device, address) => {
            let nodad = if address.address().is_ipv6() { " nodad" } else { "" };
            Some(format!("ip addr add {address} dev {device}{nodad}"))
        }
        Operation::RemoveAddress(device, address) => {
            Some(format!("ip addr delete {address} dev {device}"))
        }
        Operation::SetNeighbour(device, address, mac) => {
            Some(format!("ip neigh replace {address} lladdr {mac} dev {device} nud permanent"))
        }
        Operation::RemoveNeighbour(device, address) => {
            Some(format!("ip neigh delete {address} dev {device}"))
        }
        Operation::SetForward(device, mac, agent) => {
            Some(format!("bridge fdb replace {mac} dev {device} dst {agent} self permanent"))
        }
        Operation::RemoveForward(device, mac, agent) => {
            Some(format!("bridge fdb delete {mac} dev {device} dst {agent} self"))
        }
        Operation::AddRoute(key, hop) | Operation::ChangeRoute(key, hop) => route(key, hop),
        Operation::RemoveRoute(RouteKey { subnet, metric }, _) => {
            let program = ip(subnet.first());
            Some(format!("{program} route delete {subnet} metric {metric} proto {PROTOCOL}"))
        }
        Operation::AddDevice(..)
        | Operation::SetUnderlay(..)
        | Operation::StopLearning(_)
        | Operation::Loosen(_) => None,
    }
}

fn route(RouteKey { subnet, metric }: &RouteKey, hop: &Hop) -> Option<String> {
    let replace = format!("{} route replace", ip(subnet.first()));
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

/// What can be said of the peers without a packet.
fn peers(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "peers";
    let tunnel = &observed.tunnel;
    let state = &tunnel.seen.state;
    let mut findings = Vec::new();
    for (peer, reason) in &tunnel.unroutable {
        findings.push(
            Finding::wrong(
                CHECK,
                format!("no way to agent {peer}: {reason}"),
                "packets in the tunnel to it cannot be sent",
            )
            .advise(format!("see '{} route get {peer}'", ip(*peer))),
        );
    }
    for (name, device) in &state.devices {
        for (address, mac) in &device.neighbours {
            if !device.forwards.contains_key(mac) {
                findings.push(
                    Finding::wrong(
                        CHECK,
                        format!(
                            "nothing says behind which agent VTEP {address} is, {mac} on {name}"
                        ),
                        "packets to it are dropped",
                    )
                    .advise("start the agent, or see its log"),
                );
            }
        }
    }
    if findings.is_empty() {
        let count: usize = state.devices.values().map(|device| device.forwards.len()).sum();
        let peers = counted(count as u128, "peer");
        findings.push(match count {
            0 if tunnel.is_programmed() => Finding::ok(CHECK, "there is no other agent yet"),
            0 => Finding::note(CHECK, "none are known before the agent has run"),
            _ => Finding::ok(CHECK, format!("there is a way to each of {peers}")),
        });
    }
    findings
}
