//! `--probe`: sends echo requests to every peer that the kernel knows.
//!
//! Small and full-size requests go through the tunnel, and small ones to the peer's underlay
//! address, so that a loss can be located. If full-size packets are lost, the largest size that
//! passes is searched with several sizes at once. If a peer is silent in the tunnel only, its agent
//! is queried for its VNI and MAC. At the end [`offloads`] transfers data in bulk.

mod counters;
mod diagnosis;
mod offloads;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_linux::dataplane::Remedy;
use overlay_linux::probe::echo::{EchoRequest, Outcome, Prober, Round};
use overlay_types::addr::{DeviceName, InterfaceAddress, Vni};
use overlay_types::advice::Command;
use overlay_types::protocol::AgentInfo;
use overlay_types::text::pluralize;
use overlay_types::tunnel::overhead;

use self::counters::{Counters, WRONG_CHECKSUM};
use self::diagnosis::{PathProbe, TunnelPath};
use super::finding::Finding;
use super::observation::Observation;

const CHECK: &str = "probe";
/// Size of a small packet with its IP header: the default of `ping`.
const SMALL: u32 = 84;
/// Number of tries, and timeout of each. The kernel needs three seconds to detect that ARP gets no
/// reply.
const TRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_millis(1200);
/// Number of tries and timeout on a path that has already passed small packets.
const STEP_TRIES: u32 = 2;
const STEP_TIMEOUT: Duration = Duration::from_millis(500);
/// Number of sizes that one step of the search sends.
const STEP_SIZES: u32 = 11;
/// Maximum number of silent peers whose agents are queried. Several silent peers mostly have the
/// same cause.
const QUERIES_MAX: usize = 32;

/// Probes all peers. `query` returns the reports of the agents at these addresses. An agent that
/// does not answer is absent.
///
/// # Errors
/// When no raw socket can be opened.
pub fn check(
    observation: &Observation,
    query: impl FnOnce(&BTreeSet<Ipv4Addr>) -> BTreeMap<Ipv4Addr, AgentInfo>,
) -> io::Result<Vec<Finding>> {
    if !observation.is_root {
        let finding = Finding::wrong(CHECK, "not probed", "raw sockets need root");
        return Ok(vec![finding.with_advice("run the doctor as root, or without --probe")]);
    }
    let paths = tunnel_paths(observation);
    if paths.is_empty() {
        let summary = "not probed: the kernel of this host knows no peer";
        return Ok(vec![Finding::note(CHECK, summary)]);
    }
    let devices = devices(observation, &paths);
    let before = Counters::read(&devices);
    let mut probes = send_all(&paths, &underlay_addresses(observation))?;
    let counters = Counters::read(&devices).since(&before);
    query_silent_peers(&mut probes, query);
    for probe in &mut probes {
        probe.master = observation.master_address();
    }
    let mut findings = findings(&probes, &counters);
    let healthy: Vec<&TunnelPath> =
        probes.iter().filter(|probe| probe.is_healthy()).map(|probe| &probe.path).collect();
    findings.extend(offloads::check(observation, &healthy));
    if probes.iter().any(|probe| !probe.is_healthy()) {
        findings.extend(possible_causes(observation));
    }
    Ok(findings)
}

/// Returns the objects of other programs that may have dropped the packets.
fn possible_causes(observation: &Observation) -> impl Iterator<Item = Finding> {
    observation.tunnel.possible_causes.iter().map(|cause| {
        let finding = Finding::warning(CHECK, &cause.cause, "this may be the cause of the loss");
        match &cause.remedy {
            Remedy::Run(command) => finding.with_command(command.clone()),
            Remedy::Advice(advice) => finding.with_advice(advice),
        }
    })
}

/// Returns the names of the devices of the tunnels and of the underlay, each once.
fn devices(observation: &Observation, paths: &[TunnelPath]) -> Vec<String> {
    let tunnel = &observation.tunnel;
    let mut devices: BTreeSet<String> = paths.iter().map(|path| path.device.to_string()).collect();
    for local in &tunnel.desired.vxlan_devices {
        devices.extend(tunnel.device_with(local.underlay).map(str::to_owned));
    }
    devices.into_iter().collect()
}

fn findings(probes: &[PathProbe], counters: &Counters) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        probes.iter().filter_map(|probe| probe.finding(counters)).collect();
    let wrong_checksums = counters.count(WRONG_CHECKSUM);
    if wrong_checksums > 0 {
        let device = probes.first().map(|probe| probe.path.device.clone());
        let device = device.unwrap_or_else(|| DeviceName::vtep(Vni::DEFAULT));
        findings.push(
            Finding::warning(
                CHECK,
                format!("{wrong_checksums} {WRONG_CHECKSUM} arrived during the probe"),
                "a peer leaves checksums to hardware that miscalculates them",
            )
            .with_advice(format!(
                "run {} on the peers; if that changes nothing, their network interface miscalculates \
                 the checksum of the tunnel itself: set vxlan_checksum to false on the peers, and let \
                 their agents make {device} again",
                Command::disable_checksum_offload(&device)
            )),
        );
    }
    let (healthy, unhealthy): (Vec<_>, Vec<_>) =
        probes.iter().partition(|probe| probe.is_healthy());
    let agents = |probes: &[&PathProbe]| -> BTreeSet<IpAddr> {
        probes.iter().map(|probe| probe.path.agent).collect()
    };
    let count = agents(&healthy).difference(&agents(&unhealthy)).count();
    if count > 0 {
        let peers = pluralize(count as u128, "peer");
        let summary =
            format!("{peers} reached through the tunnel, with small and full-size packets");
        findings.insert(0, Finding::ok(CHECK, summary));
    }
    findings
}

/// Returns the tunnel paths to all peers that the kernel knows.
fn tunnel_paths(observation: &Observation) -> Vec<TunnelPath> {
    let mut paths = Vec::new();
    for (name, device) in &observation.tunnel.observed.state.devices {
        let link = &device.link;
        let own = device.addresses.iter().map(InterfaceAddress::address);
        for (&to, &mac) in &device.neighbors {
            // Another check reports a missing forwarding entry.
            let Some(&agent) = device.forwards.get(&mac) else { continue };
            paths.push(TunnelPath {
                device: name.clone(),
                vni: link.identity.vni,
                port: link.identity.port,
                mtu: link.mtu.bytes(),
                overhead: overhead(agent),
                from: own.clone().find(|own| own.is_ipv4() == to.is_ipv4()),
                to,
                mac,
                agent,
            });
        }
    }
    paths
}

/// Returns the source addresses of the tunnels in the underlay.
fn underlay_addresses(observation: &Observation) -> BTreeSet<IpAddr> {
    let devices = observation.tunnel.observed.state.devices.values();
    let of_devices = devices.filter_map(|device| device.link.underlay);
    let of_desired = observation.tunnel.desired.vxlan_devices.iter().map(|local| local.underlay);
    of_devices.chain(of_desired).collect()
}

/// Sends all echo requests, and returns their outcomes by path.
fn send_all(paths: &[TunnelPath], underlays: &BTreeSet<IpAddr>) -> io::Result<Vec<PathProbe>> {
    let sources = paths.iter().filter_map(|path| path.from).chain(underlays.iter().copied());
    let mut prober = Prober::open(&sources.collect())?;
    let agents: BTreeSet<IpAddr> = paths.iter().map(|path| path.agent).collect();
    let mut requests: Vec<EchoRequest> =
        paths.iter().map(|path| request_through(path, SMALL)).collect();
    for &to in &agents {
        let from = underlays.iter().find(|own| own.is_ipv4() == to.is_ipv4());
        requests.push(EchoRequest { from: from.copied().unwrap_or(to), to, size: SMALL });
    }
    let Round { mut outcomes, datagram_errors, .. } = prober.round(&requests, TRIES, TIMEOUT);
    let underlay_outcomes: BTreeMap<IpAddr, Outcome> =
        agents.into_iter().zip(outcomes.split_off(paths.len())).collect();
    let mut probes = Vec::new();
    for (path, small) in paths.iter().zip(outcomes) {
        let small = match path.from {
            Some(_) => small,
            None => {
                let device = &path.device;
                Outcome::NotSent(format!("device {device} has no address of this family"))
            }
        };
        probes.push(PathProbe {
            underlay: underlay_outcomes.get(&path.agent).cloned().unwrap_or(Outcome::NoReply),
            tunnel_error: datagram_errors.get(&(path.agent, path.port)).cloned(),
            path: path.clone(),
            small,
            full: Outcome::NoReply,
            largest: None,
            master: None,
            peer: None,
        });
    }
    probe_sizes(&mut prober, &mut probes);
    Ok(probes)
}

fn request_through(path: &TunnelPath, size: u32) -> EchoRequest {
    EchoRequest { from: path.from.unwrap_or(path.to), to: path.to, size }
}

/// Sends full-size packets on the paths that passed small ones. Searches the largest size that
/// passes where the full size is lost.
fn probe_sizes(prober: &mut Prober, probes: &mut [PathProbe]) {
    let mut open: Vec<&mut PathProbe> =
        probes.iter_mut().filter(|probe| probe.small.has_reply()).collect();
    let requests: Vec<EchoRequest> =
        open.iter().map(|probe| request_through(&probe.path, probe.path.mtu)).collect();
    let outcomes = prober.round(&requests, STEP_TRIES, STEP_TIMEOUT).outcomes;
    for (probe, outcome) in open.iter_mut().zip(outcomes) {
        probe.full = outcome;
    }
    open.retain(|probe| !probe.full.has_reply() && probe.path.mtu > SMALL);
    // For each path, the largest size that passed and the smallest size that was lost.
    let mut bounds: Vec<(u32, u32)> = open.iter().map(|probe| (SMALL, probe.path.mtu)).collect();
    while bounds.iter().any(|bound| sizes_between(*bound).next().is_some()) {
        let steps: Vec<(usize, u32)> = (0..open.len())
            .flat_map(|index| sizes_between(bounds[index]).map(move |size| (index, size)))
            .collect();
        let requests: Vec<EchoRequest> =
            steps.iter().map(|(index, size)| request_through(&open[*index].path, *size)).collect();
        let outcomes = prober.round(&requests, STEP_TRIES, STEP_TIMEOUT).outcomes;
        let passed = steps.iter().zip(&outcomes).filter(|(_, outcome)| outcome.has_reply());
        for ((index, size), _) in passed {
            bounds[*index].0 = bounds[*index].0.max(*size);
        }
        // A lost size below one that passed was lost at random. Every other lost size is too large.
        for (index, size) in steps {
            let (passed, lost) = &mut bounds[index];
            if size > *passed {
                *lost = size.min(*lost);
            }
        }
    }
    for (probe, (passed, _)) in open.iter_mut().zip(bounds) {
        // A loss of the full size alone is random loss, not an MTU.
        probe.largest = (passed + 1 < probe.path.mtu).then_some(passed);
    }
}

/// Returns evenly spread sizes between two exclusive bounds.
fn sizes_between((low, high): (u32, u32)) -> impl Iterator<Item = u32> {
    let step = (high - low).div_ceil(STEP_SIZES + 1).max(1);
    (1..=STEP_SIZES).map(move |count| low + count * step).take_while(move |size| *size < high)
}

/// Queries the agents of peers that reply in the underlay only, and stores their VNI and MAC.
fn query_silent_peers(
    probes: &mut [PathProbe],
    query: impl FnOnce(&BTreeSet<Ipv4Addr>) -> BTreeMap<Ipv4Addr, AgentInfo>,
) {
    let is_silent = |probe: &&PathProbe| {
        probe.small == Outcome::NoReply
            && probe.underlay.has_reply()
            && probe.tunnel_error.is_none()
    };
    let silent: BTreeSet<IpAddr> =
        probes.iter().filter(is_silent).map(|probe| probe.path.agent).take(QUERIES_MAX).collect();
    let v4 = |agent: &IpAddr| if let IpAddr::V4(ip) = agent { Some(*ip) } else { None };
    for (ip, info) in query(&silent.iter().filter_map(v4).collect()) {
        let agent = IpAddr::V4(ip);
        for probe in probes.iter_mut().filter(|probe| probe.path.agent == agent) {
            // If overlays have their own VNIs, the VTEP of this path has the VNI of the device.
            let mut vteps = info.overlays.iter().map(|overlay| &overlay.vtep);
            let first = vteps.clone().next();
            let vtep = vteps.find(|vtep| vtep.vni == probe.path.vni).or(first);
            probe.peer = vtep.map(|vtep| (vtep.vni, vtep.mac));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_between_converge_to_the_largest_passing_size() {
        assert_eq!(sizes_between((84, 90)).collect::<Vec<_>>(), [85, 86, 87, 88, 89]);
        assert_eq!(sizes_between((84, 85)).next(), None);
        for largest in 84..1450 {
            let mut bound = (84, 1450);
            let mut steps = 0;
            while sizes_between(bound).next().is_some() {
                let passed = sizes_between(bound).filter(|size| *size <= largest).max();
                let lost = sizes_between(bound).find(|size| *size > largest);
                bound = (passed.unwrap_or(bound.0), lost.unwrap_or(bound.1));
                steps += 1;
            }
            assert_eq!((bound.0, bound.1, steps <= 3), (largest, largest + 1, true));
        }
    }

    #[test]
    fn wrong_checksums_are_reported_without_loss() {
        let findings = findings(&[], &Counters::with(WRONG_CHECKSUM, 7));
        let shown: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [format!(
                "warning  probe            7 UDP packets with a wrong checksum arrived during the \
                 probe: a peer leaves checksums to hardware that miscalculates them\n{:<11}what \
                 to do     run 'ethtool -K vtep1024 tx-checksum-ip-generic off' on the peers; if \
                 that changes nothing, their network interface miscalculates the checksum of the \
                 tunnel itself: set vxlan_checksum to false on the peers, and let their agents make \
                 vtep1024 again",
                ""
            )]
        );
    }
}
