//! Tests of the probes: which peers the agent probes, and what it concludes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::addr::Mtu;
use overlay_types::tunnel::{ContainersMtu, OverlaySubnets, Peer, ProbeSource, VxlanDevice};

use super::*;

/// A fake cluster: agents 10.x.y.z with VTEP 44.x.y.z, and what is broken.
struct World {
    probes: Probes,
    counters: Counters,
    random: fastrand::Rng,
    now: Now,
    /// Returns the outcome of a packet.
    outcome: fn(&ProbePacket) -> ProbeOutcome,
    /// The addresses that hosts report as missing after a batch.
    missing: BTreeSet<IpAddr>,
    /// The visits of each agent, and the number of packets.
    visits: BTreeMap<IpAddr, u32>,
    packets: usize,
}

fn number_of(to: IpAddr) -> u32 {
    match to {
        IpAddr::V4(ip) if ip.octets()[0] == 44 => u32::from(ip) & 0xffff,
        IpAddr::V4(ip) => (u32::from(ip) >> 8) & 0xffff,
        IpAddr::V6(ip) => u32::from(ip.segments()[7]),
    }
}

fn is_vtep(packet: &ProbePacket) -> bool {
    matches!(packet.to, IpAddr::V4(ip) if ip.octets()[0] == 44)
}

const REPLY: ProbeOutcome = ProbeOutcome::Replied(Duration::from_micros(300));

fn all_works(packet: &ProbePacket) -> ProbeOutcome {
    // The Mesos half has a bridge, the Docker half has none.
    let IpAddr::V4(to) = packet.to else { return REPLY };
    if is_vtep(packet) || to.octets()[3] == 1 { REPLY } else { ProbeOutcome::Unreachable }
}

impl World {
    fn new(peers: u16, rate: u32) -> Self {
        let mut world = Self {
            probes: Probes::new(rate),
            counters: Counters::default(),
            random: fastrand::Rng::with_seed(3),
            now: Now { elapsed: Duration::from_secs(100), unix: 1_700_000_000 },
            outcome: all_works,
            missing: BTreeSet::new(),
            visits: BTreeMap::new(),
            packets: 0,
        };
        world.set_peers(peers);
        world
    }

    fn set_peers(&mut self, count: u16) {
        self.set_overlays(count, &[9, 8]);
    }

    /// Sets overlays vxlan-1 and so on, each with the first octet of its subnet.
    fn set_overlays(&mut self, count: u16, octets: &[u8]) {
        let overlays: Vec<(OverlayName, u8)> = octets
            .iter()
            .enumerate()
            .map(|(index, first)| (format!("vxlan-{}", index + 1).parse().unwrap(), *first))
            .collect();
        let peers = (1..=count).map(|number| {
            let [high, low] = number.to_be_bytes();
            let peer = Peer {
                ip: Some([44, 0, high, low].into()),
                ip6: None,
                mac: [0x70, 0xb3, 0xd5, 0, high, low].into(),
                subnets: overlays
                    .iter()
                    .map(|(overlay, first)| {
                        (overlay.clone(), format!("{first}.{high}.{low}.0/24").parse().unwrap())
                    })
                    .collect(),
                direct: None,
            };
            (IpAddr::from([10, 0, high, low]), peer)
        });
        let device = VxlanDevice {
            device: "vtep1024".parse().unwrap(),
            vni: overlay_types::addr::Vni::DEFAULT,
            port: 64_000,
            mac: [0x70, 0xb3, 0xd5, 0xff, 0, 0].into(),
            underlay: Ipv4Addr::new(10, 0, 0, 0).into(),
            mtu: None,
            containers_mtu: Some(ContainersMtu::Derived(Mtu::OVERLAY_DEFAULT)),
            ip: None,
            ip6: None,
        };
        let spaces = overlays.iter().map(|(overlay, first)| OverlaySubnets {
            overlay: overlay.clone(),
            device: "vtep1024".parse().unwrap(),
            whole: vec![format!("{first}.0.0.0/8").parse().unwrap()],
            own: vec![format!("{first}.0.0.0/24").parse().unwrap()],
            bridges: Vec::new(),
        });
        let spaces = spaces.collect();
        let desired = Desired {
            vxlan_devices: vec![device],
            spaces,
            peers: Some(peers.collect()),
            ..Desired::default()
        };
        self.probes.set_programmed(self.now, Some(&Arc::new(desired)), &mut self.random);
    }

    /// Sends one batch, and returns the numbers of its peers.
    fn batch(&mut self) -> BTreeSet<u32> {
        self.now.elapsed = self.probes.next_due().unwrap().max(self.now.elapsed);
        let Some(Command::Probe { attempt, packets, .. }) =
            self.probes.take_due(self.now, &mut self.random)
        else {
            return BTreeSet::new();
        };
        let numbers: BTreeSet<u32> = packets.iter().map(|packet| number_of(packet.to)).collect();
        for number in &numbers {
            let [_, _, high, low] = number.to_be_bytes();
            *self.visits.entry([10, 0, high, low].into()).or_default() += 1;
        }
        self.packets += packets.len();
        let outcomes = packets.iter().map(self.outcome).collect();
        let missing = self.missing.clone();
        let report = ProbeReport { outcomes, missing, ..ProbeReport::default() };
        self.probes.finish(self.now, attempt, Ok(report), &mut self.counters);
        numbers
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now.elapsed + Duration::from_secs(seconds);
        while self.probes.next_due().unwrap() <= end {
            self.batch();
        }
        self.now.elapsed = end;
    }

    fn problem(&self) -> String {
        self.probes.problems().join("\n")
    }
}

#[test]
fn round_visits_every_peer_once_at_the_rate() {
    let mut world = World::new(100, 4);
    for _ in 0..25 {
        assert_eq!(world.batch().len(), 4);
    }
    assert_eq!(world.visits.len(), 100);
    assert_eq!(world.probes.tally().reached, 100);
    assert_eq!(world.probes.tally().round_trip_microseconds, 300);
    world.run(25);
    assert!(world.visits.values().all(|visits| *visits == 2), "{:?}", world.visits);
    assert_eq!(world.problem(), "");
    // A known gateway is asked, with a small and a full packet.
    let before = world.packets;
    world.batch();
    assert_eq!(world.packets - before, 4 * 2);
}

#[test]
fn small_cluster_is_probed_once_in_five_seconds() {
    let mut world = World::new(2, 4);
    world.run(100);
    assert!(world.visits.values().all(|visits| (19..=21).contains(visits)), "{:?}", world.visits);
}

#[test]
fn dead_host_is_known_within_ten_seconds_and_recovers() {
    let mut world = World::new(2, 4);
    world.run(30);
    world.outcome = |packet| {
        if number_of(packet.to) == 2 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(10);
    let problem = world.problem();
    let expected = "no answer through the tunnel: its host is down or drops ICMP, or the network \
                    drops UDP port 64000 between 10.0.0.0 and 10.0.0.2: see whether other agents \
                    reach it; if its host is gone for good, run 'mesos-overlay forget --master \
                    MASTER 10.0.0.2'";
    assert_eq!(problem, format!("agent 10.0.0.2 fails probes: {expected}"));
    assert!(world.probes.has_problem());
    let health = world.probes.health().unwrap();
    assert_eq!((health.status.as_str(), health.tally.unreachable), ("degraded", 1));
    assert_eq!(
        (health.failing[0].agent.as_str(), health.failing[0].cause.as_str()),
        ("10.0.0.2", "no answer")
    );
    world.outcome = all_works;
    world.run(11);
    assert_eq!(world.problem(), "");
    assert_eq!(world.probes.health().unwrap().status, "ok");
}

#[test]
fn single_loss_is_no_failure() {
    let mut world = World::new(2, 4);
    world.run(30);
    world.outcome = |_| ProbeOutcome::NoReply;
    world.batch();
    world.outcome = all_works;
    world.run(20);
    assert_eq!(world.problem(), "");
    assert!(world.counters.probe_packets_lost > 0);
}

#[test]
fn new_peer_has_time_to_learn_of_this_agent() {
    let mut world = World::new(2, 4);
    world.outcome = |packet| {
        if number_of(packet.to) == 2 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(25);
    assert_eq!(world.problem(), "");
    world.run(10);
    assert!(world.problem().contains("10.0.0.2"));
}

#[test]
fn only_large_packets_lost_names_both_mtus() {
    let mut world = World::new(2, 4);
    world.run(10);
    world.outcome = |packet| match number_of(packet.to) {
        2 if packet.size > 1300 => ProbeOutcome::TooBig(Some(1400)),
        _ => all_works(packet),
    };
    world.run(15);
    let problem = world.problem();
    let expected = "IPv4 packets of 1420 bytes are lost, small ones are not: the MTU of the \
                    network between 10.0.0.0 and 10.0.0.2 is below 1470 (a router on the path \
                    reports 1400): raise it, or set vtep_mtu at the master and overlay_mtu at all \
                    agents to a size that passes: 'mesos-overlay doctor --probe' finds it";
    assert!(problem.ends_with(expected), "{problem}");
    assert_eq!(world.probes.tally().large_lost, 1);
}

#[test]
fn lost_container_packets_are_no_dead_host() {
    let mut world = World::new(2, 4);
    world.run(10);
    world.outcome = |packet| match &packet.source {
        ProbeSource::Vtep => REPLY,
        ProbeSource::Containers(overlay)
            if overlay.as_str() == "vxlan-1" && number_of(packet.to) == 2 =>
        {
            ProbeOutcome::NoReply
        }
        ProbeSource::Containers(_) => all_works(packet),
    };
    world.run(15);
    assert!(world.problem().contains("the VTEPs reach each other, packets of containers do not"));
}

#[test]
fn silent_bridge_is_named_and_missing_bridge_is_no_failure() {
    let mut world = World::new(2, 4);
    world.run(10);
    let silent = |packet: &ProbePacket| match packet.to {
        IpAddr::V4(to) if to.octets() == [9, 0, 2, 1] => ProbeOutcome::NoReply,
        _ => all_works(packet),
    };
    world.outcome = silent;
    world.run(15);
    let problem = world.problem();
    assert!(
        problem.contains("its bridge address 9.0.2.1 of overlay vxlan-1 does not"),
        "{problem}"
    );
    // After a restart the peer has no bridge, and reports that.
    world.outcome = |packet| match packet.to {
        IpAddr::V4(to) if to.octets()[..3] == [9, 0, 2] => ProbeOutcome::Unreachable,
        _ => all_works(packet),
    };
    world.run(15);
    assert_eq!(world.problem(), "");
    world.outcome = all_works;
    world.run(60);
    world.outcome = silent;
    world.run(15);
    assert!(world.problem().contains("9.0.2.1"), "the gateway was learned again");
}

#[test]
fn failing_peers_leave_room_and_are_named_up_to_a_limit() {
    let mut world = World::new(200, 4);
    world.run(60);
    world.outcome = |packet| {
        if number_of(packet.to) <= 40 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.visits.clear();
    world.run(600);
    let healthy = world
        .visits
        .iter()
        .filter(|(agent, _)| matches!(agent, IpAddr::V4(ip) if ip.octets()[3] > 40));
    assert_eq!(healthy.count(), 160, "a round goes on beside the failing peers");
    let problems = world.probes.problems();
    assert_eq!(problems.len(), NAMED_MAX + 1);
    let expected = "more peers fail probes: 'mesos-overlay doctor --probe' names all";
    assert!(problems[NAMED_MAX].ends_with(expected), "{}", problems[NAMED_MAX]);
}

#[test]
fn new_failure_is_confirmed_beside_many_old_ones() {
    let mut world = World::new(200, 4);
    world.run(60);
    world.outcome = |packet| {
        if number_of(packet.to) <= 60 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(1800);
    assert_eq!(world.probes.tally().unreachable, 60);
    world.outcome = |packet| {
        if number_of(packet.to) <= 61 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(120);
    assert_eq!(world.probes.tally().unreachable, 61);
}

#[test]
fn rate_of_one_alternates_between_failing_peers_and_round() {
    let mut world = World::new(40, 1);
    world.run(100);
    world.outcome = |packet| {
        if number_of(packet.to) <= 20 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.visits.clear();
    world.run(600);
    assert_eq!(world.visits.len(), 40);
    assert_eq!(world.probes.tally().unreachable, 20);
}

#[test]
fn containers_cut_off_from_all_peers_are_one_problem() {
    let mut world = World::new(3, 4);
    world.run(10);
    world.outcome = |packet| match &packet.source {
        ProbeSource::Vtep => REPLY,
        ProbeSource::Containers(_) => ProbeOutcome::NoReply,
    };
    world.run(30);
    assert_eq!(
        world.problem(),
        "packets of containers reach none of 3 peers, and the VTEPs reach each other: a rule or a \
         route of this host drops forwarded packets: run 'mesos-overlay doctor' here"
    );
}

#[test]
fn silence_of_all_peers_is_one_problem_of_this_host() {
    let mut world = World::new(3, 4);
    world.run(10);
    world.outcome = |_| ProbeOutcome::NoReply;
    world.run(30);
    assert_eq!(
        world.problem(),
        "none of 3 peers answers probes: see whether this host at 10.0.0.0 has a connection, and \
         whether a firewall drops UDP port 64000 here"
    );
}

#[test]
fn off_reason_switches_probes_off_without_degrading() {
    let mut world = World::new(2, 4);
    let Some(Command::Probe { attempt, .. }) = world.probes.take_due(world.now, &mut world.random)
    else {
        panic!("no batch")
    };
    let result = Err("raw sockets are forbidden".to_owned());
    world.probes.finish(world.now, attempt, result, &mut world.counters);
    let health = world.probes.health().unwrap();
    assert_eq!(
        (health.status.as_str(), health.note.as_deref()),
        ("off", Some("raw sockets are forbidden"))
    );
    assert!(!world.probes.has_problem());
    assert_eq!(world.probes.next_due(), Some(world.now.elapsed + BATCH_MAX));
}

#[test]
fn removed_peer_is_forgotten_with_its_failure() {
    let mut world = World::new(2, 4);
    world.run(10);
    world.outcome = |packet| {
        if number_of(packet.to) == 2 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(20);
    assert!(world.probes.has_problem());
    world.set_peers(1);
    assert!(!world.probes.has_problem());
    world.run(20);
}

#[test]
fn rate_of_zero_sends_nothing() {
    let world = World::new(2, 0);
    assert_eq!(world.probes.next_due(), None);
    assert_eq!(world.probes.health(), None);
}

#[test]
fn report_to_master_follows_changes_at_most_every_ten_seconds() {
    let mut world = World::new(80, 100);
    let identity = |underlay| match underlay {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    };
    let report = |world: &mut World| {
        world
            .probes
            .take_report(world.now, identity)
            .map(|report| (report.peers.len(), report.total))
    };
    world.run(10);
    assert_eq!(report(&mut world), Some((0, 0)), "the master may know former failures");
    assert_eq!(report(&mut world), None, "there is nothing to report");
    world.outcome = |packet| {
        if number_of(packet.to) <= 70 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(40);
    let (named, total) = report(&mut world).unwrap();
    assert!(named > 0 && named <= PeerFailures::MAX && total as usize >= named, "{named} {total}");
    world.run(5);
    assert_eq!(report(&mut world), None, "too early or unchanged");
    world.outcome = all_works;
    world.run(60);
    assert_eq!(report(&mut world), Some((0, 0)));
    assert_eq!(world.probes.report_due(), None);
    world.probes.report_again();
    assert_eq!(world.probes.report_due(), None, "a new master knows of no failure");
    world.outcome = |packet| {
        if number_of(packet.to) == 2 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(60);
    assert_eq!(report(&mut world), Some((1, 1)));
    world.probes.report_again();
    world.run(10);
    assert_eq!(report(&mut world), Some((1, 1)), "a new master gets the report");
}

/// Returns whether the packet goes to one of the first peers.
fn is_to(packet: &ProbePacket, peers: u32) -> bool {
    number_of(packet.to) <= peers
}

fn last_octet(packet: &ProbePacket) -> u8 {
    match packet.to {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

#[test]
fn peers_that_drop_container_packets_do_not_accuse_this_host() {
    let mut world = World::new(100, 4);
    world.run(60);
    world.outcome = |packet| match &packet.source {
        ProbeSource::Containers(_) if is_to(packet, 12) => ProbeOutcome::NoReply,
        _ => all_works(packet),
    };
    for _ in 0..600 {
        world.run(1);
        assert!(!world.problem().contains("reach none"), "{}", world.problem());
    }
    assert_eq!(world.probes.tally().unreachable, 12);
    assert!(world.problem().contains("agent 10.0.0.1 fails probes: the VTEPs reach each other"));
}

#[test]
fn half_of_the_peers_silent_does_not_accuse_this_host() {
    let mut world = World::new(24, 10);
    world.run(60);
    world.outcome =
        |packet| if is_to(packet, 12) { ProbeOutcome::NoReply } else { all_works(packet) };
    for _ in 0..300 {
        world.run(1);
        assert!(!world.problem().contains("none of"), "{}", world.problem());
    }
    assert_eq!(world.probes.tally().unreachable, 12);
}

#[test]
fn silence_in_a_large_cluster_is_one_problem_within_a_minute() {
    let mut world = World::new(5000, 4);
    world.run(60);
    world.outcome = |_| ProbeOutcome::NoReply;
    world.run(60);
    let problem = world.problem();
    assert!(problem.starts_with("none of 5000 peers answers probes"), "{problem}");
}

#[test]
fn single_dead_peer_of_many_does_not_degrade_the_agent() {
    let mut world = World::new(100, 4);
    world.run(60);
    world.outcome =
        |packet| if is_to(packet, 1) { ProbeOutcome::NoReply } else { all_works(packet) };
    world.run(60);
    assert!(!world.probes.has_problem());
    assert_eq!(world.problem(), "");
    let health = world.probes.health().unwrap();
    assert_eq!((health.status.as_str(), health.tally.unreachable), ("degraded", 1));
    let problem = &health.failing[0].problem;
    assert!(problem.starts_with("agent 10.0.0.1 fails probes: no answer"), "{problem}");
    world.outcome =
        |packet| if is_to(packet, 10) { ProbeOutcome::NoReply } else { all_works(packet) };
    world.run(120);
    assert!(world.probes.has_problem(), "a tenth of the peers");
}

/// A peer whose INPUT chain drops everything: its containers are reached, and so is its port.
#[test]
fn peer_that_drops_packets_to_itself_is_reached_at_its_port() {
    let mut world = World::new(2, 4);
    // The second overlay has no bridge.
    world.outcome = |packet| match packet.to {
        IpAddr::V4(ip) if ip.octets()[0] == 9 && ip.octets()[3] == 126 => REPLY,
        IpAddr::V4(ip) if ip.octets()[0] == 8 => ProbeOutcome::Unreachable,
        _ => ProbeOutcome::NoReply,
    };
    for _ in 0..300 {
        world.run(1);
        assert_eq!((world.problem().as_str(), world.probes.tally().unreachable), ("", 0));
    }
    assert_eq!(world.probes.tally().reached, 2);
    // Its host goes down, and returns.
    world.outcome = |_| ProbeOutcome::NoReply;
    world.run(60);
    assert_eq!(world.probes.tally().unreachable, 2);
    world.outcome = |packet| match last_octet(packet) {
        126 if !is_vtep(packet) => REPLY,
        _ => ProbeOutcome::NoReply,
    };
    world.run(60);
    assert_eq!((world.problem().as_str(), world.probes.tally().reached), ("", 2));
}

#[test]
fn port_that_ends_with_its_agent_is_no_failure() {
    let with_port = |packet: &ProbePacket| match last_octet(packet) {
        126 => REPLY,
        _ => all_works(packet),
    };
    let mut world = World::new(2, 4);
    world.outcome = with_port;
    world.run(60);
    let ports = |world: &World| world.probes.peers.values().all(PeerPath::has_port);
    assert!(ports(&world));
    world.outcome = |packet| match last_octet(packet) {
        126 => ProbeOutcome::NoReply,
        _ => all_works(packet),
    };
    // The hosts report the missing ports after three seconds.
    world.run(3);
    let ports_of = |first| [1, 2].map(|number| IpAddr::from([first, 0, number, 126]));
    world.missing = ports_of(9).into_iter().chain(ports_of(8)).collect();
    world.run(60);
    assert_eq!(world.problem(), "");
    assert!(!ports(&world));
    world.missing.clear();
    world.outcome = with_port;
    world.run(120);
    assert!(ports(&world), "the port is learned again");
    // A container at the address may have a smaller MTU.
    world.outcome = |packet| match last_octet(packet) {
        126 if packet.size > 1300 => ProbeOutcome::NoReply,
        126 => REPLY,
        _ => all_works(packet),
    };
    world.run(60);
    assert_eq!(world.problem(), "");
}

#[test]
fn peer_that_drops_or_refuses_forwarded_packets_is_named() {
    fn with_port(packet: &ProbePacket) -> ProbeOutcome {
        if last_octet(packet) == 126 { REPLY } else { all_works(packet) }
    }
    let faults: [fn(&ProbePacket) -> ProbeOutcome; 2] = [
        |packet| if last_octet(packet) == 126 { ProbeOutcome::NoReply } else { all_works(packet) },
        |packet| if last_octet(packet) == 126 { ProbeOutcome::Refused } else { all_works(packet) },
    ];
    for fault in faults {
        let mut world = World::new(1, 4);
        world.outcome = with_port;
        world.run(60);
        world.outcome = fault;
        world.run(20);
        let expected = "agent 10.0.0.1 fails probes: its host answers and forwards no packets of \
                        overlay vxlan-1 to 9.0.1.126, the port of its probes: see the rules for \
                        forwarded packets there, and whether its agent runs: run 'mesos-overlay \
                        doctor' on that host";
        let problem = world.problem();
        assert_eq!(problem.replace("vxlan-2 to 8", "vxlan-1 to 9"), expected);
        world.run(3600);
        assert_eq!(world.problem(), problem, "the failure lasts");
        world.outcome = with_port;
        world.run(320);
        assert_eq!(world.problem(), "");
    }
}

/// The host of a killed agent reports the port only when it forgets the neighbor.
#[test]
fn late_report_of_a_missing_port_ends_the_failure() {
    let mut world = World::new(1, 4);
    let with_port = |packet: &ProbePacket| match last_octet(packet) {
        126 => REPLY,
        _ => all_works(packet),
    };
    world.outcome = with_port;
    world.run(60);
    world.outcome = |packet| match last_octet(packet) {
        126 => ProbeOutcome::NoReply,
        _ => all_works(packet),
    };
    world.run(50);
    assert!(world.problem().contains("forwards no packets"), "{}", world.problem());
    world.missing = [9, 8].map(|first| IpAddr::from([first, 0, 1, 126])).into();
    world.run(35);
    assert_eq!(world.problem(), "");
}

#[test]
fn missing_ports_of_many_peers_do_not_exceed_the_list() {
    let mut world = World::new(100, 40);
    world.outcome = |packet| if last_octet(packet) == 126 { REPLY } else { all_works(packet) };
    world.run(60);
    world.outcome = |packet| match last_octet(packet) {
        126 => ProbeOutcome::NoReply,
        _ => all_works(packet),
    };
    world.run(8);
    let ports = (1..=100).flat_map(|number| [9, 8].map(|first| [first, 0, number, 126].into()));
    world.missing = ports.collect();
    for _ in 0..60 {
        world.batch();
        assert!(world.probes.retries.len() <= RETRIES_MAX, "{}", world.probes.retries.len());
    }
    assert_eq!((world.problem().as_str(), world.probes.tally().reached), ("", 100));
}

#[test]
fn host_that_refuses_the_packets_of_its_own_containers_is_named() {
    let mut world = World::new(3, 4);
    world.run(60);
    world.outcome = |packet| match packet.source {
        ProbeSource::Containers(_) => ProbeOutcome::NotSent("a rule of this host".to_owned()),
        ProbeSource::Vtep => REPLY,
    };
    world.run(60);
    assert!(world.problem().starts_with("packets of containers reach none of 3 peers"));
}

/// A host with the C++ modules has no bridge after a restart until a container starts, and reports
/// nothing.
#[test]
fn bridge_of_foreign_host_that_is_gone_is_no_failure() {
    let mut world = World::new(2, 4);
    // An agent of this project ran there before, with a port.
    world.outcome = |packet| match all_works(packet) {
        _ if last_octet(packet) == 126 => REPLY,
        ProbeOutcome::Unreachable => ProbeOutcome::NoReply,
        outcome => outcome,
    };
    world.run(60);
    world.outcome = |packet| if is_vtep(packet) { REPLY } else { ProbeOutcome::NoReply };
    world.run(60);
    assert_eq!((world.problem().as_str(), world.probes.tally().reached), ("", 2));
}

#[test]
fn gateways_of_former_subnets_are_forgotten() {
    let mut world = World::new(1, 4);
    for first in [20, 30, 40, 50, 60, 70] {
        world.set_overlays(1, &[first, first + 1]);
        world.run(200);
        // A gateway is known, so a visit has two packets.
        let before = world.packets;
        world.batch();
        assert_eq!(world.packets - before, 2, "after {first}");
        assert!(world.probes.peers.values().all(|path| path.target_count() <= 4));
    }
}

#[test]
fn all_overlays_are_probed_in_turn() {
    let mut world = World::new(1, 4);
    let octets = [20, 21, 22, 23, 24, 25, 26];
    world.set_overlays(1, &octets);
    world.run(200);
    world.outcome = |packet| match packet.to {
        IpAddr::V4(ip) if ip.octets()[0] == 26 => ProbeOutcome::NoReply,
        _ => all_works(packet),
    };
    world.run(120);
    assert!(world.problem().contains("of overlay vxlan-7 does not"), "{}", world.problem());
}

#[test]
fn many_dead_peers_take_a_small_part_of_the_rate() {
    let mut world = World::new(400, 4);
    world.run(120);
    world.outcome =
        |packet| if is_to(packet, 40) { ProbeOutcome::NoReply } else { all_works(packet) };
    world.run(1800);
    world.visits.clear();
    world.run(125);
    let healthy = world.visits.keys().filter(|agent| !is_dead(agent)).count();
    assert_eq!(healthy, 360, "a round takes little more than without dead peers");
    let mut to_dead = 0;
    for _ in 0..600 {
        world.now.elapsed = world.probes.next_due().unwrap();
        let command = world.probes.take_due(world.now, &mut world.random);
        let Some(Command::Probe { attempt, packets, .. }) = command else { continue };
        to_dead += packets.iter().filter(|packet| is_to(packet, 40)).count();
        let outcomes = packets.iter().map(world.outcome).collect();
        let report = ProbeReport { outcomes, ..ProbeReport::default() };
        world.probes.finish(world.now, attempt, Ok(report), &mut world.counters);
    }
    assert!(to_dead <= 40 * 2 * 8, "{to_dead} packets to 40 dead peers in 10 minutes");
}

fn is_dead(agent: &IpAddr) -> bool {
    matches!(agent, IpAddr::V4(ip) if ip.octets()[3] <= 40 && ip.octets()[2] == 0)
}

#[test]
fn returning_peer_gets_all_packets_before_its_failure_ends() {
    let mut world = World::new(100, 4);
    world.run(120);
    world.outcome =
        |packet| if is_to(packet, 1) { ProbeOutcome::NoReply } else { all_works(packet) };
    world.run(3600);
    world.outcome = |packet| match &packet.source {
        ProbeSource::Containers(_) if is_to(packet, 1) => ProbeOutcome::NoReply,
        _ => all_works(packet),
    };
    world.run(310);
    let failing = &world.probes.health().unwrap().failing[0];
    assert_eq!(failing.cause, "containers cut off", "its VTEP answers again, and only that");
    world.outcome = all_works;
    world.run(310);
    assert_eq!(world.probes.tally().unreachable, 0);
}

#[test]
fn packets_that_this_host_does_not_send_accuse_no_peer() {
    let mut world = World::new(100, 4);
    world.run(120);
    world.outcome = |packet| {
        let reason = "Operation not permitted (os error 1)".to_owned();
        if is_to(packet, 1) { ProbeOutcome::NotSent(reason) } else { all_works(packet) }
    };
    world.run(60);
    let problem = world.problem();
    let expected = "agent 10.0.0.1 fails probes: this host does not send them (Operation not \
                    permitted (os error 1)): see its routes, its VTEP and the rules of its OUTPUT \
                    chains: run 'mesos-overlay doctor' here";
    assert_eq!(problem, expected);
    let report = world.probes.take_report(world.now, |_| Some(Ipv4Addr::LOCALHOST));
    assert!(report.is_none_or(|report| report.total == 0), "the peer is not to blame");
    world.outcome = |_| ProbeOutcome::NotSent("Network is unreachable".to_owned());
    world.run(120);
    assert!(world.problem().starts_with("probes of 100 peers: this host does not send them"));
}

#[test]
fn former_failures_count_no_more_while_probes_are_off() {
    let mut world = World::new(2, 4);
    world.run(10);
    world.outcome = |_| ProbeOutcome::NoReply;
    world.run(60);
    let report = |world: &mut World| {
        let identity = |_| Some(Ipv4Addr::LOCALHOST);
        world.probes.take_report(world.now, identity).map(|report| report.total)
    };
    assert!(world.probes.has_problem());
    assert_eq!(report(&mut world), Some(2));
    world.run(20);
    let attempt = loop {
        world.now.elapsed = world.probes.next_due().unwrap();
        let command = world.probes.take_due(world.now, &mut world.random);
        if let Some(Command::Probe { attempt, .. }) = command {
            break attempt;
        }
    };
    let result = Err("raw sockets are forbidden".to_owned());
    world.probes.finish(world.now, attempt, result, &mut world.counters);
    assert!(!world.probes.has_problem());
    assert_eq!((world.problem().as_str(), world.probes.tally().unreachable), ("", 0));
    assert_eq!(report(&mut world), Some(0), "the master does not keep them either");
}

#[test]
fn overlay_cut_off_from_peers_without_bridge_is_named() {
    let mut world = World::new(2, 4);
    world.outcome = |packet| match (&packet.source, packet.to) {
        (ProbeSource::Containers(overlay), _) if overlay.as_str() == "vxlan-2" => {
            ProbeOutcome::NoReply
        }
        // The peers have no bridges, and only the first overlay reaches them.
        (ProbeSource::Containers(_), IpAddr::V4(ip)) if ip.octets()[0] != 44 => {
            ProbeOutcome::Unreachable
        }
        _ => REPLY,
    };
    world.run(60);
    assert!(world.problem().contains("packets of containers reach none of 2 peers"));
}

#[test]
fn first_bridge_of_peer_is_learned_once() {
    let agent = IpAddr::from([10, 0, 0, 1]);
    let mut world = World::new(2, 2);
    assert!(!world.probes.has_target(agent));
    world.run(60);
    assert!(world.probes.has_target(agent));
    let mut learned = world.probes.take_learned();
    learned.sort_unstable();
    assert_eq!(learned.len(), 2, "{learned:?}");
    assert!(learned.contains(&agent));
    assert_eq!(world.probes.take_learned(), [] as [IpAddr; 0]);
}

#[test]
fn loss_and_round_trips_of_paths_are_counted() {
    let mut world = World::new(4, 4);
    world.run(600);
    let tally = world.probes.tally();
    assert_eq!(tally.by_loss, [4, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Addresses that no host has are no part of a path.
    assert!(world.counters.probe_packets_lost > 0);
    assert!(world.counters.probe_path_packets_sent > 100);
    assert_eq!(world.counters.probe_path_packets_lost, 0);
    let answered = world.counters.probe_packets_sent - world.counters.probe_packets_lost;
    assert_eq!(world.probes.round_trips().count(), answered);
    let filled: Vec<_> =
        world.probes.round_trips().buckets().filter(|(_, count)| *count > 0).collect();
    assert_eq!(filled, [(0.0005, answered)], "every reply takes 300 us");
    // Agent 2 ends.
    world.outcome = |packet| {
        if number_of(packet.to) == 2 { ProbeOutcome::NoReply } else { all_works(packet) }
    };
    world.run(3600);
    assert_eq!(world.probes.tally().by_loss, [3, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert!(world.counters.probe_path_packets_lost > 4);
    // A peer that is gone is no path.
    world.set_peers(1);
    assert_eq!(world.probes.tally().by_loss.iter().sum::<u64>(), 1);
}

#[test]
fn details_count_every_peer_and_name_failing_ones_first() {
    let mut world = World::new(100, 100);
    let details = |world: &World, max| {
        let identity = |underlay| match underlay {
            IpAddr::V4(ip) if ip.octets()[3] == 1 => Some(Ipv4Addr::new(9, 9, 9, 9)),
            _ => None,
        };
        world.probes.details(max, identity)
    };
    assert_eq!((details(&world, 10).peers, details(&world, 10).unknown), (100, 100));
    world.run(30);
    let found = details(&world, 10);
    assert_eq!((found.status.as_str(), found.ok, found.named.len()), ("ok", 100, 0));
    let times = found.round_trip_microseconds.unwrap();
    assert_eq!((times.min, times.median, times.max), (300, 300, 300));
    world.outcome =
        |packet| if is_to(packet, 40) { ProbeOutcome::NoReply } else { all_works(packet) };
    world.run(60);
    let found = details(&world, 10);
    assert_eq!((found.status.as_str(), found.ok, found.failing), ("degraded", 60, 40));
    assert_eq!((found.unknown, found.lossy, found.named.len()), (0, 0, 10));
    assert_eq!(found.named[0].agent.to_string(), "9.9.9.9", "its identity");
    assert_eq!(found.named[1].agent.to_string(), "10.0.0.2", "an unknown identity");
    assert_eq!((found.named[0].cause, found.named[0].lost), (Some("no answer"), 8));
    world.outcome =
        |packet| if is_to(packet, 1) { ProbeOutcome::NoReply } else { all_works(packet) };
    world.run(20);
    let found = details(&world, 100);
    assert_eq!(
        (found.failing, found.lossy > 0, found.named[0].cause),
        (1, true, Some("no answer"))
    );
    assert!(found.named[1..].iter().all(|peer| peer.cause.is_none() && peer.lost > 0));
    assert_eq!(details(&World::new(2, 0), 10).status, "none");
}
