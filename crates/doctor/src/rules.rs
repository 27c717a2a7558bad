//! Checks of the host's firewall rules. `overlay-linux` evaluates the packets that the overlays
//! need, and the checks report the rules that drop them.
//!
//! A rule is `wrong` only if it certainly drops packets. If an earlier rule with unknown conditions
//! may accept them, it is a warning.

use overlay_config::FirewallKind;
use overlay_linux::firewall::foreign::{self, Obstacle, PacketKind, RuleBackend};

use super::cause::{Object, Topic};
use super::finding::Finding;
use super::observation::Observation;

const UDP_RULES: &str = "udp-rules";
const FORWARD_POLICY: &str = "forward-policy";

/// Returns the foreign rules that drop packets of the overlays.
fn obstacles(observation: &Observation, is_bridged: bool) -> Vec<Obstacle> {
    let tunnel = &observation.tunnel;
    foreign::obstacles(&observation.rules, &tunnel.desired, &tunnel.uplinks, is_bridged)
}

/// Returns whether the rule drops VXLAN packets between hosts.
fn drops_tunnels(obstacle: &Obstacle) -> bool {
    obstacle.kinds.iter().any(|kind| matches!(kind, PacketKind::VxlanIn | PacketKind::VxlanOut))
}

/// Checks whether rules drop VXLAN packets.
pub(super) fn udp_rules(observation: &Observation) -> Vec<Finding> {
    let found = obstacles(observation, false);
    let found = found.iter().filter(|obstacle| drops_tunnels(obstacle));
    let findings = found.map(|obstacle| finding(observation, UDP_RULES, obstacle)).collect();
    with_summary(observation, UDP_RULES, "no rule drops the packets of peers", findings)
}

/// Checks whether rules drop forwarded packets of the overlays.
pub(super) fn forward_policy(observation: &Observation) -> Vec<Finding> {
    let found = obstacles(observation, false);
    let found = found.iter().filter(|obstacle| !drops_tunnels(obstacle));
    let findings = found.map(|obstacle| finding(observation, FORWARD_POLICY, obstacle)).collect();
    let summary = "no chain drops packets that are forwarded for the overlays";
    with_summary(observation, FORWARD_POLICY, summary, findings)
}

/// Returns the rule that drops packets between containers of one bridge, which pass the rules with
/// `br_netfilter`.
pub(super) fn bridged_obstacle(observation: &Observation) -> Option<Obstacle> {
    let mut found = obstacles(observation, true).into_iter();
    found.find(|obstacle| obstacle.is_definite && obstacle.kinds.contains(&PacketKind::Bridged))
}

fn finding(observation: &Observation, check: &'static str, obstacle: &Obstacle) -> Finding {
    let Obstacle { packets, command, overlays, devices, .. } = obstacle;
    let summary = obstacle.rule_description();
    let topic = if check == UDP_RULES { Topic::VxlanRules } else { Topic::ForwardRules };
    let object = if overlays.is_empty() {
        Object::Devices(devices.clone())
    } else {
        Object::Overlays(overlays.clone())
    };
    if is_overridden_by_agent(observation, obstacle) {
        return Finding::note(check, summary)
            .with_advice("no action: the agent creates rules that accept the packets");
    }
    if obstacle.is_definite {
        return Finding::wrong(check, summary, format!("{packets} {}", obstacle.outcome()))
            .about(topic)
            .on(object)
            .with_command(command.clone())
            .with_advice("check the purpose of the rule first");
    }
    let explanation = format!(
        "{packets} may be dropped: an earlier rule has conditions that doctor cannot check"
    );
    Finding::warning(check, summary, explanation)
        .about(topic)
        .on(object)
        .with_advice(format!("check that the packets of all agents are accepted, or run {command}"))
}

/// Returns whether the agent will accept the packets before the chain drops them. It does so if the
/// policy of the chain FORWARD of iptables is DROP.
fn is_overridden_by_agent(observation: &Observation, obstacle: &Obstacle) -> bool {
    observation.is_before_first_run()
        && observation.config.dataplane.firewall != FirewallKind::None
        && obstacle.backend != RuleBackend::Nftables
        && obstacle.rule.is_none()
        && (obstacle.table.as_str(), obstacle.chain.as_str()) == ("filter", "FORWARD")
}

/// Adds the findings about a host without such rules, and about rules that could not be read.
fn with_summary(
    observation: &Observation,
    check: &'static str,
    summary: &str,
    mut findings: Vec<Finding>,
) -> Vec<Finding> {
    let rules = &observation.rules;
    if let Some(error) = rules.errors.first() {
        let summary = if rules.is_readable() {
            format!("some firewall rules could not be read: {}", error.reason)
        } else {
            "no firewall rules could be read".to_owned()
        };
        let finding = Finding::note(check, summary);
        findings.push(if observation.is_root {
            finding
        } else {
            finding.with_advice("run 'mesos-overlay doctor' as root")
        });
    } else if findings.is_empty() {
        findings.push(Finding::ok(check, summary));
    }
    findings
}
