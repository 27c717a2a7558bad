//! Transfers data in bulk to peers, with and without offloads, and names an offload that is broken.
//!
//! A broken offload is mostly a fault of the own hardware or hypervisor, which every peer shows. So
//! a few peers are enough.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use overlay_linux::dataplane::{Hop, RouteKey};
use overlay_linux::probe::{OffloadPath, test_offloads};
use overlay_types::addr::DeviceName;
use overlay_types::advice::Command;
use overlay_types::text::pluralize;
use overlay_types::tunnel::{Offload, OffloadRound, OffloadVerdict, port_candidate};

use super::diagnosis::TunnelPath;
use crate::cause::Object;
use crate::finding::Finding;
use crate::observation::Observation;

const CHECK: &str = "offload-probe";
/// Number of peers that get data, and the time after which no further one does.
const PEERS_MAX: usize = 8;
const TIME_MAX: Duration = Duration::from_secs(20);
/// Each form of a round transfers this number of bytes.
const BYTES: u32 = 1_000_000;
const ROUNDS: usize = 2;
/// Number of peers that a finding names.
const NAMED_MAX: usize = 3;

/// What the transfer to a peer showed.
#[derive(Debug, Clone)]
struct Tested {
    device: DeviceName,
    agent: IpAddr,
    result: Result<(OffloadVerdict, OffloadRound), String>,
}

/// Transfers data on these paths, which passed small and full-size packets.
pub(super) fn check(observation: &Observation, healthy: &[&TunnelPath]) -> Vec<Finding> {
    let paths: Vec<_> = healthy.iter().filter_map(|path| offload_path(observation, path)).collect();
    let step = paths.len().div_ceil(PEERS_MAX).max(1);
    let start = now();
    let mut tested: Vec<Tested> = Vec::new();
    for (agent, path) in paths.iter().step_by(step) {
        if start.elapsed() > TIME_MAX {
            break;
        }
        let rounds = test_offloads(path, BYTES.div_ceil(path.size.max(1)), ROUNDS);
        let summarize = |rounds: Vec<OffloadRound>| {
            let sum = rounds.iter().fold(OffloadRound::default(), |sum, round| sum.plus(*round));
            (OffloadVerdict::of(&rounds), sum)
        };
        let result = rounds.map(summarize).map_err(|error| error.to_string());
        tested.push(Tested { device: path.device.clone(), agent: *agent, result });
    }
    let underlay = observation.tunnel.desired.vxlan_devices.first();
    let underlay = underlay.and_then(|local| observation.tunnel.device_with(local.underlay));
    findings(&tested, underlay)
}

#[expect(clippy::disallowed_methods, reason = "the duration of a diagnosis is bounded")]
fn now() -> Instant {
    Instant::now()
}

/// Returns the path of the segments to a peer, and the peer; `None` over IPv6, whose packets leave
/// through the same devices.
fn offload_path(observation: &Observation, path: &TunnelPath) -> Option<(IpAddr, OffloadPath)> {
    let (Some(IpAddr::V4(from)), IpAddr::V4(vtep)) = (path.from, path.to) else { return None };
    let ports = ports_of_probes(&observation.tunnel.observed.state.routes, path);
    let to = std::iter::once(vtep).chain(ports).collect();
    let (device, mac, size) = (path.device.clone(), path.mac, path.mtu);
    Some((path.agent, OffloadPath { device, from, mac, to, size }))
}

/// Returns the addresses that the ports of the peer's probes probably have.
fn ports_of_probes(
    routes: &BTreeMap<RouteKey, Hop>,
    path: &TunnelPath,
) -> impl Iterator<Item = Ipv4Addr> {
    routes.iter().filter_map(move |(key, hop)| match (hop, port_candidate(&key.subnet)) {
        (Hop::Via { gateway, .. }, Some(IpAddr::V4(port))) if *gateway == path.to => Some(port),
        _ => None,
    })
}

/// Returns one finding for each device and result.
fn findings(tested: &[Tested], underlay: Option<&str>) -> Vec<Finding> {
    let mut devices: BTreeMap<&DeviceName, Vec<&Tested>> = BTreeMap::new();
    for test in tested {
        devices.entry(&test.device).or_default().push(test);
    }
    let mut findings = Vec::new();
    for (device, tests) in devices {
        for verdict in [
            OffloadVerdict::Broken(Offload::Checksum),
            OffloadVerdict::Broken(Offload::Segmentation),
            OffloadVerdict::Works,
            OffloadVerdict::Lossy,
            OffloadVerdict::NoAnswer,
        ] {
            let alike = tests.iter().filter_map(|test| match &test.result {
                Ok((found, sum)) if *found == verdict => Some((test.agent, *sum)),
                _ => None,
            });
            let alike: Vec<(IpAddr, OffloadRound)> = alike.collect();
            if !alike.is_empty() {
                findings.push(finding(device, verdict, &alike, underlay));
            }
        }
        let error = tests.iter().find_map(|test| test.result.as_ref().err());
        findings.extend(error.map(|error| {
            let summary = format!("offloads of device {device} were not tested: {error}");
            Finding::note(CHECK, summary)
        }));
    }
    findings
}

fn finding(
    device: &DeviceName,
    verdict: OffloadVerdict,
    alike: &[(IpAddr, OffloadRound)],
    underlay: Option<&str>,
) -> Finding {
    let sum = alike.iter().fold(OffloadRound::default(), |sum, (_, round)| sum.plus(*round));
    let agents = named(alike.iter().map(|(agent, _)| *agent));
    let OffloadRound { complete, checksum, segmentation } = sum;
    let megabytes = (complete.bytes + 500_000) / 1_000_000;
    let figures = format!(
        "{megabytes} MB each: {complete} without offloads, {checksum} with checksum offload, \
         {segmentation} with segmentation offload"
    );
    match verdict {
        OffloadVerdict::Broken(offload) => {
            let explanation = match offload {
                Offload::Checksum => {
                    "the hardware or the hypervisor computes wrong checksums inside of the \
                     tunnel, so containers can ping, and their TCP and UDP are lost"
                }
                Offload::Segmentation => {
                    "the hardware or the hypervisor loses or delays the segments of large packets \
                     inside of the tunnel, so transfers of containers hang or are slow"
                }
            };
            let summary =
                format!("{offload} of device {device} is broken to agents {agents}; {figures}");
            Finding::wrong(CHECK, summary, explanation)
                .on(Object::device(device))
                .with_command(Command::disable_checksum_offload(device))
                .with_advice(advice(offload, underlay))
        }
        OffloadVerdict::Works => {
            let peers = pluralize(alike.len() as u128, "peer");
            Finding::ok(CHECK, format!("offloads of device {device} work to {peers}; {figures}"))
        }
        OffloadVerdict::Lossy => Finding::note(
            CHECK,
            format!(
                "offloads of device {device} were not compared: packets to agents {agents} are \
                 lost without offloads as well: {complete}"
            ),
        ),
        OffloadVerdict::NoAnswer => Finding::note(
            CHECK,
            format!(
                "offloads of device {device} were not tested to agents {agents}: a firewall there \
                 drops TCP to the VTEP, and no port of their probes answers"
            ),
        ),
    }
}

/// Returns what else repairs the offload, and keeps it repaired.
fn advice(offload: Offload, underlay: Option<&str>) -> String {
    let keep = "set repair_offloads in the agent_config, so that the agent keeps it off";
    let Some(underlay) = underlay else { return keep.to_owned() };
    let command = match offload {
        Offload::Checksum => Command::disable_all_checksum_offload(underlay),
        Offload::Segmentation => Command::disable_tunnel_segmentation(underlay),
    };
    format!("{keep}; or instead run {command}")
}

/// Lists a few addresses.
fn named(agents: impl ExactSizeIterator<Item = IpAddr>) -> String {
    let more = agents.len().saturating_sub(NAMED_MAX);
    let named: Vec<_> = agents.take(NAMED_MAX).map(|agent| agent.to_string()).collect();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use overlay_types::addr::Vni;
    use overlay_types::tunnel::SegmentTally;

    use super::*;

    fn tested(last: u8, lost: [u32; 3]) -> Tested {
        let [complete, checksum, segmentation] = lost.map(|lost| SegmentTally {
            sent: 1400,
            answered: 1400 - lost,
            bytes: 2_000_000,
            duration: Duration::from_millis(if lost == 1400 { 0 } else { 20 }),
        });
        let sum = OffloadRound { complete, checksum, segmentation };
        Tested {
            device: DeviceName::vtep(Vni::DEFAULT),
            agent: [10, 0, 0, last].into(),
            result: Ok((OffloadVerdict::of(&[sum; 2]), sum)),
        }
    }

    fn shown(tested: &[Tested]) -> String {
        let findings = findings(tested, Some("eth0"));
        findings.iter().map(|finding| format!("{finding}\n")).collect()
    }

    #[test]
    fn broken_checksum_offload_is_named_with_its_command() {
        let text = shown(&[tested(2, [0, 1400, 1400]), tested(3, [0, 1400, 1400])]);
        let indent = " ".repeat(9);
        assert_eq!(
            text,
            format!(
                "wrong    offload-probe    checksum offload of device vtep1024 is broken to \
                 agents 10.0.0.2, 10.0.0.3; 4 MB each: 0 % lost at 800 Mbit/s without offloads, \
                 100 % lost with checksum offload, 100 % lost with segmentation offload: the \
                 hardware or the hypervisor computes wrong checksums inside of the tunnel, so \
                 containers can ping, and their TCP and UDP are lost\n\
                 {indent}  fix with       ethtool -K vtep1024 tx-checksum-ip-generic off\n\
                 {indent}  what to do     set repair_offloads in the agent_config, so that the \
                 agent keeps it off; or instead run 'ethtool -K eth0 tx off', which costs CPU for \
                 all packets of this device\n"
            )
        );
    }

    #[test]
    fn broken_segmentation_offload_names_the_option_of_the_hardware() {
        let text = shown(&[tested(2, [10, 12, 1400])]);
        assert!(
            text.contains("segmentation offload of device vtep1024 is broken to agents 10.0.0.2;")
        );
        assert!(text.contains(
            "or instead run 'ethtool -K eth0 tx-udp_tnl-segmentation off \
             tx-udp_tnl-csum-segmentation off', which costs CPU for all tunnels over this device"
        ));
    }

    #[test]
    fn other_loss_is_no_fault_of_an_offload() {
        let text = shown(&[tested(2, [70, 75, 80]), tested(3, [1400; 3]), tested(4, [900; 3])]);
        assert!(
            text.starts_with(
                "ok       offload-probe    offloads of device vtep1024 work to 1 peer;"
            )
        );
        assert!(text.contains("were not compared: packets to agents 10.0.0.4"));
        assert!(text.contains("were not tested to agents 10.0.0.3: a firewall there"));
        assert!(!text.contains("wrong"), "{text}");
    }
}
