//! Checks of the overlays of this host: the assignment, the state of the kernel, and the reports of
//! the agent and the master. The checks are pure functions of the observation.

use std::net::IpAddr;

use overlay_linux::dataplane::{MtuProblem, Problem, Underlay};
use overlay_types::addr::Mtu;
use overlay_types::advice::Command;
use overlay_types::protocol::Status;
use overlay_types::text::pluralize;
use overlay_types::tunnel::{Collision, HostObject, HostRoute, SubnetOwner, VxlanDevice};

use super::cause::{Object, Topic};
use super::dataplane::dataplane;
use super::finding::{Finding, Severity};
use super::observation::{
    AgentProcess, AgentQueryError, AgentReport, DesiredSource, Observation, ReportedAuthentication,
    ReportedProblem,
};

/// Runs all checks of the overlays in a fixed order.
pub(crate) fn check(observation: &Observation) -> Vec<Finding> {
    let checks: [fn(&Observation) -> Vec<Finding>; 7] =
        [agent, master, collisions, mtu, dataplane, peers, paths];
    checks.iter().flat_map(|check| check(observation)).collect()
}

/// Number of peers through the tunnel that are named.
const PATHS_MAX: usize = 16;

/// Shows the path of each peer, if direct routing is on. Both paths carry the packets of containers,
/// so the tunnel is no problem.
fn paths(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "paths";
    let report = observation.agent.answer.as_ref().ok();
    let Some(paths) = report.and_then(|report| report.paths.as_ref()) else {
        return Vec::new();
    };
    let peers = |count: usize| pluralize(count as u128, "peer");
    let summary = format!(
        "{} by direct routing, {} through the tunnel",
        peers(paths.direct.len()),
        peers(paths.vxlan.len())
    );
    if let Some(problem) = &paths.problem {
        return vec![Finding::note(CHECK, format!("{summary}: {problem}"))];
    }
    let mut findings = vec![Finding::ok(CHECK, summary)];
    for (agent, reason) in paths.vxlan.iter().take(PATHS_MAX) {
        let summary = format!("packets to agent {agent} take the tunnel: {reason}");
        findings.push(Finding::note(CHECK, summary));
    }
    if let Some(more) = paths.vxlan.len().checked_sub(PATHS_MAX).filter(|more| *more > 0) {
        let summary =
            format!("packets to {} take the tunnel", pluralize(more as u128, "more peer"));
        findings.push(Finding::note(CHECK, summary));
    }
    findings
}

fn agent(observation: &Observation) -> Vec<Finding> {
    const CHECK: &str = "agent";
    let address = &observation.agent.address;
    let report = match &observation.agent.answer {
        Ok(report) => report,
        Err(error) => return vec![agent_unavailable(CHECK, observation, error)],
    };
    let mut findings: Vec<_> = problems(report).into_iter().map(reported_problem).collect();
    if !findings.is_empty() {
        return findings;
    }
    findings.extend(report.authentication.as_ref().map(authentication));
    let status = report.health.as_ref().map_or("", |(status, _)| status.as_str());
    let finding = match status {
        "registering" | "detached" => Finding::wrong(
            CHECK,
            format!("the agent at {address} is {status}"),
            "no master has sent its assignment",
        )
        .about(Topic::ReportedMaster)
        .with_advice("check that the master runs and is reachable, and see the agent's log"),
        _ => {
            let overlays = pluralize(report.info.overlays.len() as u128, "overlay");
            Finding::ok(CHECK, format!("the agent at {address} has {overlays}"))
        }
    };
    findings.insert(0, finding);
    findings
}

/// Describes the authentication of an agent without problems. Problems of the authentication are
/// among those of the agent.
fn authentication(reported: &ReportedAuthentication) -> Finding {
    const CHECK: &str = "authentication";
    let principal = &reported.principal;
    if reported.is_master_authenticated {
        let summary = format!("agent and master authenticate each other, principal '{principal}'");
        return Finding::ok(CHECK, summary);
    }
    Finding::warning(
        CHECK,
        "the master does not authenticate, and the agent permits that",
        "a container on the master's host may send in the name of the master",
    )
    .about(Topic::ReportedMaster)
    .with_advice("set 'credentials' of the master")
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
            if observation.configuration.agents.iter().any(AgentProcess::is_agent_here) {
                "restart the agent, which runs and does not answer, or name its address with --agent"
            } else {
                "start the agent, or name its address with --agent"
            },
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
        AgentQueryError::CredentialWithheld(status) => (
            format!("the server at {address} requires a credential ({status})"),
            "it did not get the credential, since no trusted agent runs with this address",
            "if it is the agent of this host, give the address as --agent",
        ),
    };
    let finding = if observation.tunnel.is_programmed() {
        Finding::warning(check, summary, explanation)
    } else {
        Finding::note(check, summary)
    };
    finding.about(Topic::AgentStopped).with_advice(advice)
}

/// Returns the problems in the agent's health, or else its failed overlays.
fn problems(report: &AgentReport) -> Vec<ReportedProblem> {
    if let Some((_, problems)) = &report.health {
        return problems.clone();
    }
    let failed = report.info.overlays.iter().filter_map(|overlay| match &overlay.status {
        Some(Status::Failed(reason)) => Some(ReportedProblem {
            text: format!("overlay {}: {reason}", overlay.name()),
            parts: Vec::new(),
            overlay: Some(overlay.name().to_string()),
        }),
        _ => None,
    });
    failed.collect()
}

fn reported_problem(problem: ReportedProblem) -> Finding {
    let ReportedProblem { text, parts, overlay } = problem;
    let topic = |part: &String| match part.as_str() {
        "address" => Some(Topic::ReportedAddress),
        "master" => Some(Topic::ReportedMaster),
        "peers" => Some(Topic::ReportedPeers),
        "collision" => Some(Topic::ReportedCollision),
        "docker network" => Some(Topic::ReportedDocker),
        "cni network" => Some(Topic::ReportedCni),
        "tunnel" if overlay.is_some() => Some(Topic::ReportedOverlay),
        "tunnel" => Some(Topic::ReportedTunnel),
        "probes" => Some(Topic::ReportedProbes),
        _ => None,
    };
    // A part without a known cause makes the problem a root.
    let topics: Option<Vec<Topic>> = parts.iter().map(topic).collect();
    let object = match overlay.and_then(|overlay| overlay.parse().ok()) {
        Some(overlay) => Object::Overlays([overlay].into()),
        None => Object::Host,
    };
    let explanation = "the agent reports this problem and retries";
    let finding = Finding::wrong("agent", text, explanation).on(object);
    Finding { topics: topics.unwrap_or_default(), ..finding }
        .with_advice("fix the reported problem, or see the agent's log")
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
            let explanation =
                "starting agents get no assignment, and running agents learn of no new peer";
            return vec![Finding::wrong(CHECK, reason.as_str(), explanation).about(Topic::Master)];
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
        let finding = Finding::note(CHECK, "not checked: the overlays' addresses are unknown")
            .about(Topic::Unchecked);
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
    // Without the route, this host could not reach the network behind it, perhaps that of the
    // operator. So no command removes it.
    let alternative = match object {
        HostObject::Route(HostRoute { gateway: Some(_), .. }) => "that of the network behind it",
        HostObject::Route(_) | HostObject::Address(_) => "the addresses of the host",
    };
    let object = match owner {
        SubnetOwner::Overlay(overlay) => Object::Overlays([overlay.clone()].into()),
        SubnetOwner::Vteps(device) => Object::device(device),
    };
    finding
        .about(Topic::Collision)
        .on(object)
        .with_advice(format!("change the subnet of the overlay at the master, or {alternative}"))
}

/// Returns the MTU of a VXLAN device that exists.
fn device_mtu(observation: &Observation, local: &VxlanDevice) -> Option<Mtu> {
    let device = observation.tunnel.observed.state.devices.get(&local.device);
    device.map(|device| device.link.mtu)
}

/// The check of the MTUs, and of the address of this host in the underlay.
const MTU: &str = "mtu";

fn mtu(observation: &Observation) -> Vec<Finding> {
    let tunnel = &observation.tunnel;
    let mut findings = Vec::new();
    // The largest packet that the underlay of the first device carries.
    let mut known_max = None;
    for local in &tunnel.desired.vxlan_devices {
        let Some(path) = tunnel.observed.underlays.get(&local.underlay) else {
            let is_registered = tunnel.source != DesiredSource::Defaults;
            findings.extend(is_registered.then(|| missing_underlay(local.underlay)));
            continue;
        };
        let max = path.mtu.bytes().saturating_sub(local.overhead());
        known_max.get_or_insert(max);
        findings.extend(several_owners(local.underlay, path));
        let mtu = device_mtu(observation, local).filter(|mtu| mtu.bytes() > max);
        findings.extend(mtu.map(|mtu| device_exceeds_underlay(local, mtu, max, path)));
    }
    let problems = tunnel.plan.problems.iter();
    findings.extend(problems.filter_map(|problem| mtu_problem(observation, problem)));
    if findings.iter().all(|finding| finding.severity < Severity::Wrong) {
        findings.push(match known_max {
            Some(max) => {
                Finding::ok(MTU, format!("the tunnel carries inner packets of up to {max} bytes"))
            }
            None => Finding::note(MTU, "unknown: this host has no default route"),
        });
    }
    findings
}

fn missing_underlay(underlay: IpAddr) -> Finding {
    let finding = Finding::wrong(
        MTU,
        format!("no device of this host has the address {underlay}"),
        "the tunnels of this agent use it as their source",
    );
    finding
        .about(Topic::Address)
        .with_advice("restore the address of the host, or register the agent with another address")
}

/// Returns a note if several devices have the address of this host in the underlay.
fn several_owners(underlay: IpAddr, path: &Underlay) -> Option<Finding> {
    let (others, chosen) = (path.others.join(", "), &path.device);
    let reason = if path.is_routed { "which leads to the peers" } else { "until a peer is known" };
    let summary =
        format!("{others} has the address {underlay} too: the MTU is that of {chosen}, {reason}");
    (!path.others.is_empty()).then(|| Finding::note(MTU, summary))
}

/// Returns the finding about a VXLAN device whose packets exceed the MTU of the underlay.
fn device_exceeds_underlay(local: &VxlanDevice, mtu: Mtu, max: u32, path: &Underlay) -> Finding {
    let device = &local.device;
    let finding = Finding::wrong(
        MTU,
        format!("device {device} has an MTU of {mtu}, and the underlay carries {max} ({path})"),
        "large packets are fragmented, and many routers drop fragments",
    );
    let finding = finding
        .about(Topic::Mtu)
        .on(Object::device(device))
        .with_advice(format!("set vtep_mtu to {max} or less, or remove it"));
    let command = Mtu::new(max).ok().map(|max| Command::set_device_mtu(device, max));
    Finding { command, ..finding }
}

/// Returns the finding for a problem of the plan that concerns an MTU.
fn mtu_problem(observation: &Observation, problem: &Problem) -> Option<Finding> {
    let tunnel = &observation.tunnel;
    let Problem::Mtu(problem) = problem else { return None };
    let MtuProblem::ContainersDoNotFit { device, mtu, containers, overhead, underlay } = problem
    else {
        let (MtuProblem::UnderlayTooSmall { device, .. }
        | MtuProblem::VtepMtuTooSmall { device, .. }) = problem
        else {
            return None;
        };
        let text = problem.to_string();
        let (summary, advice) = text.split_once(": ").unwrap_or((&text, ""));
        let finding = Finding::wrong("mtu", summary, "these overlays have no connection");
        return Some(finding.about(Topic::Mtu).on(Object::device(device)).with_advice(advice));
    };
    let object = Object::device(device);
    let exists = tunnel.observed.state.devices.contains_key(device);
    let has = if exists { "has" } else { "would have" };
    let summary = format!("device {device} {has} an MTU of {mtu}, and the containers {containers}");
    let needed = containers.bytes() + overhead;
    let device = tunnel.device_with(*underlay).unwrap_or("DEVICE");
    // The network may not carry packets of this size. A larger MTU of the device would then break
    // other traffic as well.
    let advice = format!(
        "set network_config.overlay_mtu to {mtu} or less, or remove it, or, if the network between \
         the agents carries {needed} bytes, raise the MTU of the host's device {device} to {needed}"
    );
    let finding = Finding::wrong("mtu", summary, "large packets of containers do not fit");
    Some(finding.about(Topic::Mtu).on(object).with_advice(advice))
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
            .about(Topic::UnderlayRoute)
            .on(Object::Peers([*peer].into()))
            .with_advice(format!("see {}", Command::show_route_to(*peer))),
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
                    .about(Topic::Entries)
                    .on(Object::Peers([*address].into()))
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
            0 => Finding::note(CHECK, "unknown: this host has no VXLAN device"),
            _ => Finding::ok(CHECK, format!("the kernel has a route to each of {peers}")),
        });
    }
    findings
}
