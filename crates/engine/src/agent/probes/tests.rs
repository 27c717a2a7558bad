//! Tests of the probes: which peers the agent probes, and what it concludes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::tunnel::{OverlaySubnets, Peer, ProbeSource, VxlanDevice};

use super::*;

/// A fake cluster: agents 10.x.y.z with VTEP 44.x.y.z, and what is broken.
struct World {
    probes: Probes,
    counters: Counters,
    random: fastrand::Rng,
    now: Now,
    /// Returns the outcome of a packet.
    outcome: fn(&ProbePacket) -> ProbeOutcome,
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
            visits: BTreeMap::new(),
            packets: 0,
        };
        world.set_peers(peers);
        world
    }

    fn set_peers(&mut self, count: u16) {
        let overlay: OverlayName = "vxlan-1".parse().unwrap();
        let other: OverlayName = "vxlan-2".parse().unwrap();
        let peers = (1..=count).map(|number| {
            let [high, low] = number.to_be_bytes();
            let peer = Peer {
                ip: Some([44, 0, high, low].into()),
                ip6: None,
                mac: [0x70, 0xb3, 0xd5, 0, high, low].into(),
                subnets: vec![
                    (overlay.clone(), format!("9.{high}.{low}.0/24").parse().unwrap()),
                    (other.clone(), format!("8.{high}.{low}.0/24").parse().unwrap()),
                ],
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
            containers_mtu: Some(overlay_types::addr::Mtu::OVERLAY_DEFAULT),
            ip: None,
            ip6: None,
        };
        let spaces = [(&overlay, 9), (&other, 8)].map(|(overlay, first)| OverlaySubnets {
            overlay: overlay.clone(),
            device: device.device.clone(),
            whole: vec![format!("{first}.0.0.0/8").parse().unwrap()],
            own: vec![format!("{first}.0.0.0/24").parse().unwrap()],
            bridges: Vec::new(),
        });
        let desired = Desired {
            vxlan_devices: vec![device],
            spaces: spaces.into(),
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
        let report = ProbeReport { outcomes, ..ProbeReport::default() };
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
        self.probes.problems(self.now).join("\n")
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
    let seconds = world.problem();
    let expected = "no answer through the tunnel: its host is down or drops ICMP, or the network \
                    drops UDP port 64000 between 10.0.0.0 and 10.0.0.2: see whether other agents \
                    reach it, and delete the agent at the master if its host is gone";
    assert!(seconds.starts_with("agent 10.0.0.2 fails probes since "), "{seconds}");
    assert!(seconds.ends_with(expected), "{seconds}");
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
                    reports 1400): raise it, or lower overlay_mtu";
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
    let problems = world.probes.problems(world.now);
    assert_eq!(problems.len(), NAMED_MAX + 1);
    let expected = "more peers do not answer probes: 'mesos-overlay doctor --probe' names all";
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
    // The rounds have a quarter of the rate, and the peers outside of the list take a part of it.
    world.run(230);
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
fn obstacle_switches_probes_off_without_degrading() {
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
