//! `--probe`: packets through the tunnel to every peer that the kernel knows, small and as large as
//! the device takes, and to the peer's address in the underlay, so that a loss can be located. What
//! is too large is narrowed down, with several sizes at once. A peer that is silent in the tunnel
//! only is asked what it has, through the port of its agent.

mod counters;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddrV4};
use std::time::Duration;

use tokio::task::JoinSet;

use self::counters::{Counters, WRONG_CHECKSUM};
use self::verdict::{Trace, Way};
use super::super::Failure;
use super::super::echo::{Echo, Outcome, Prober, Round};
use super::super::host::counted;
use super::super::http_client::block_on;
use super::ask::agent_info;
use super::finding::Finding;
use super::observed::Observed;
use crate::addr::{DeviceName, InterfaceAddress, Mac, Vni};
use crate::tunnel::overhead;

const CHECK: &str = "probe";
/// Of a small packet, its IP header included: as a common ping.
const SMALL: u32 = 84;
/// How often, and how long an answer is waited for: the kernel needs three seconds to find out that
/// nobody answers ARP.
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_millis(1200);
/// The same where small packets were answered already.
const STEP_TRIES: u32 = 2;
const STEP_WAIT: Duration = Duration::from_millis(500);
/// How many sizes between what went and what did not are sent at once.
const STEP_SIZES: u32 = 11;
/// Most silent peers that are asked what they have: they mostly have one cause.
const ASKED_MAX: usize = 32;

/// Probes all peers.
pub(super) fn check(observed: &Observed, agent_port: u16) -> Result<Vec<Finding>, Failure> {
    if !observed.is_root {
        let finding = Finding::wrong(CHECK, "not probed", "raw sockets need root");
        return Ok(vec![finding.advise("run it as root, or without --probe")]);
    }
    let ways = ways(observed);
    if ways.is_empty() {
        let what = "not probed: the kernel of this host knows no peer";
        return Ok(vec![Finding::note(CHECK, what)]);
    }
    let devices: BTreeSet<String> =
        ways.iter()
            .map(|way| way.device.to_string())
            .chain(
                observed.tunnel.desired.locals.iter().filter_map(|local| {
                    observed.tunnel.device_with(local.underlay).map(str::to_owned)
                }),
            )
            .collect();
    let devices: Vec<String> = devices.into_iter().collect();
    let before = Counters::read(&devices);
    let mut traces = send(&ways, &underlays(observed))
        .map_err(|error| Failure::new(format!("doctor: probe: {error}: run it as root")))?;
    let counted = Counters::read(&devices).since(&before);
    ask_silent(&mut traces, agent_port)?;
    Ok(findings(&traces, &counted))
}

fn findings(traces: &[Trace], counted_meanwhile: &Counters) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        traces.iter().filter_map(|trace| trace.finding(counted_meanwhile)).collect();
    let spoilt = counted_meanwhile.count(WRONG_CHECKSUM);
    if spoilt > 0 {
        let device = traces.first().map(|trace| trace.way.device.clone());
        let device = device.unwrap_or_else(|| DeviceName::vtep(Vni::DEFAULT));
        findings.push(
            Finding::warning(
                CHECK,
                format!("{spoilt} {WRONG_CHECKSUM} arrived meanwhile"),
                "a peer leaves checksums to hardware that miscalculates them",
            )
            .advise(format!("run 'ethtool -K {device} tx-checksum-ip-generic off' on the peers")),
        );
    }
    let well: BTreeSet<IpAddr> =
        traces.iter().filter(|trace| trace.is_well()).map(|trace| trace.way.agent).collect();
    let ill: BTreeSet<IpAddr> =
        traces.iter().filter(|trace| !trace.is_well()).map(|trace| trace.way.agent).collect();
    let count = well.difference(&ill).count();
    if count > 0 {
        let peers = counted(count as u128, "peer");
        let what = format!("{peers} reached through the tunnel, with small and full-size packets");
        findings.insert(0, Finding::ok(CHECK, what));
    }
    findings
}

/// Each way to a peer that the kernel knows.
fn ways(observed: &Observed) -> Vec<Way> {
    let mut ways = Vec::new();
    for (name, device) in &observed.tunnel.seen.state.devices {
        let link = &device.link;
        let own = device.addresses.iter().map(InterfaceAddress::address);
        for (&to, &mac) in &device.neighbours {
            // Without a forwarding entry there is no way, which another check tells.
            let Some(&agent) = device.forwards.get(&mac) else { continue };
            ways.push(Way {
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
    ways
}

/// From where the packets of the tunnels leave.
fn underlays(observed: &Observed) -> BTreeSet<IpAddr> {
    let devices = observed.tunnel.seen.state.devices.values();
    let of_devices = devices.filter_map(|device| device.link.underlay);
    of_devices.chain(observed.tunnel.desired.locals.iter().map(|local| local.underlay)).collect()
}

/// Sends everything, and notes what became of it.
fn send(ways: &[Way], underlays: &BTreeSet<IpAddr>) -> std::io::Result<Vec<Trace>> {
    let sources = ways.iter().filter_map(|way| way.from).chain(underlays.iter().copied());
    let mut prober = Prober::open(&sources.collect())?;
    let agents: BTreeSet<IpAddr> = ways.iter().map(|way| way.agent).collect();
    let mut echoes: Vec<Echo> = ways.iter().map(|way| through(way, SMALL)).collect();
    for &to in &agents {
        let from = underlays.iter().find(|own| own.is_ipv4() == to.is_ipv4());
        echoes.push(Echo { from: from.copied().unwrap_or(to), to, size: SMALL });
    }
    let Round { mut outcomes, datagrams } = prober.round(&echoes, TRIES, WAIT);
    let below: BTreeMap<IpAddr, Outcome> =
        agents.into_iter().zip(outcomes.split_off(ways.len())).collect();
    let trace = |(way, small): (&Way, Outcome)| {
        let small = match way.from {
            Some(_) => small,
            None => Outcome::NotSent(format!("device {} has no address for it", way.device)),
        };
        Trace {
            underlay: below.get(&way.agent).cloned().unwrap_or(Outcome::Silent),
            said: datagrams.get(&(way.agent, way.port)).cloned(),
            way: way.clone(),
            small,
            full: Outcome::Silent,
            largest: None,
            peer: None,
        }
    };
    let mut traces: Vec<Trace> = ways.iter().zip(outcomes).map(trace).collect();
    send_full(&mut prober, &mut traces);
    Ok(traces)
}

fn through(way: &Way, size: u32) -> Echo {
    Echo { from: way.from.unwrap_or(way.to), to: way.to, size }
}

/// Full-size packets on the ways on which small ones went, and then between the two.
fn send_full(prober: &mut Prober, traces: &mut [Trace]) {
    let went = |trace: &&mut Trace| trace.small.is_answered();
    let mut open: Vec<&mut Trace> = traces.iter_mut().filter(went).collect();
    let echoes: Vec<Echo> = open.iter().map(|trace| through(&trace.way, trace.way.mtu)).collect();
    let outcomes = prober.round(&echoes, STEP_TRIES, STEP_WAIT).outcomes;
    for (trace, outcome) in open.iter_mut().zip(outcomes) {
        trace.full = outcome;
    }
    open.retain(|trace| !trace.full.is_answered() && trace.way.mtu > SMALL);
    // The largest that went, and the smallest that did not.
    let mut bounds: Vec<(u32, u32)> = open.iter().map(|trace| (SMALL, trace.way.mtu)).collect();
    while bounds.iter().any(|bound| between(*bound).next().is_some()) {
        let steps: Vec<(usize, u32)> = (0..open.len())
            .flat_map(|index| between(bounds[index]).map(move |size| (index, size)))
            .collect();
        let echoes: Vec<Echo> =
            steps.iter().map(|(index, size)| through(&open[*index].way, *size)).collect();
        let outcomes = prober.round(&echoes, STEP_TRIES, STEP_WAIT).outcomes;
        let went = steps.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_answered());
        for ((index, size), _) in went {
            bounds[*index].0 = bounds[*index].0.max(*size);
        }
        // What is larger than one that went, and did not, was lost by chance or is too large.
        for (index, size) in steps {
            let (low, high) = &mut bounds[index];
            if size > *low {
                *high = size.min(*high);
            }
        }
    }
    for (trace, (low, _)) in open.iter_mut().zip(bounds) {
        // One less than full is chance, not an MTU.
        trace.largest = (low + 1 < trace.way.mtu).then_some(low);
    }
}

/// Sizes between two, spread evenly.
fn between((low, high): (u32, u32)) -> impl Iterator<Item = u32> {
    let step = (high - low).div_ceil(STEP_SIZES + 1).max(1);
    (1..=STEP_SIZES).map(move |count| low + count * step).take_while(move |size| *size < high)
}

/// Asks the agents that answer in the underlay only.
fn ask_silent(traces: &mut [Trace], port: u16) -> Result<(), Failure> {
    let is_silent = |trace: &&Trace| {
        trace.small == Outcome::Silent && trace.underlay.is_answered() && trace.said.is_none()
    };
    let silent: BTreeSet<IpAddr> =
        traces.iter().filter(is_silent).map(|trace| trace.way.agent).take(ASKED_MAX).collect();
    let answers = block_on(async {
        let mut questions = JoinSet::new();
        for agent in silent {
            let IpAddr::V4(ip) = agent else { continue };
            let address = SocketAddrV4::new(ip, port);
            questions.spawn(async move { (agent, agent_info(address).await) });
        }
        Ok(questions.join_all().await)
    })?;
    for (agent, answer) in answers {
        let Ok(info) = answer else { continue };
        for trace in traces.iter_mut().filter(|trace| trace.way.agent == agent) {
            // With a VNI for each overlay, the one on this device.
            let vteps = info.overlays.iter().map(|overlay| &overlay.vtep);
            let same = vteps.clone().find(|vtep| vtep.vni == trace.way.vni);
            let vtep = same.or_else(|| vteps.clone().next());
            let has: Option<(Vni, Mac)> = vtep.map(|vtep| (vtep.vni, vtep.mac));
            trace.peer = has;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_between_two_come_closer_until_there_is_none() {
        assert_eq!(between((84, 90)).collect::<Vec<_>>(), [85, 86, 87, 88, 89]);
        assert_eq!(between((84, 85)).next(), None);
        for largest in 84..1450 {
            let mut bound = (84, 1450);
            let mut steps = 0;
            while between(bound).next().is_some() {
                let fits = between(bound).filter(|size| *size <= largest).max();
                let too_large = between(bound).find(|size| *size > largest);
                bound = (fits.unwrap_or(bound.0), too_large.unwrap_or(bound.1));
                steps += 1;
            }
            assert_eq!((bound.0, bound.1, steps <= 3), (largest, largest + 1, true));
        }
    }

    #[test]
    fn wrong_checksums_are_told_also_where_every_echo_is_answered() {
        let said = findings(&[], &Counters::of(WRONG_CHECKSUM, 7));
        let shown: Vec<_> = said.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [format!(
                "warning  probe            7 UDP packets with a wrong checksum arrived meanwhile: a \
                 peer leaves checksums to hardware that miscalculates them\n{:<11}what to do     run \
                 'ethtool -K vtep1024 tx-checksum-ip-generic off' on the peers",
                ""
            )]
        );
    }
}
