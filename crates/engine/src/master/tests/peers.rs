//! Tests of the peer updates, which followers apply like correct agents.

use std::net::Ipv6Addr;

use overlay_types::addr::agent_upid;
use overlay_types::protocol::{PeerInfo, PeerTableVersion, PeersRequest, PeersUpdate, peer_digest};

use super::super::gate::Gated;
use super::*;

/// An agent's copy of the table of peers.
#[derive(Debug, Default)]
struct Follower {
    have: PeerTableVersion,
    table: BTreeMap<Ipv4Addr, PeerInfo>,
}

impl Follower {
    /// Applies an update. Returns whether it fits.
    fn apply(&mut self, update: &PeersUpdate) -> bool {
        let PeersUpdate { epoch, version, digest, base, changed, removed } = update.clone();
        if (epoch, version) < (self.have.epoch, self.have.version) {
            return true;
        }
        if digest != self.have.digest {
            if base.is_some_and(|base| base != self.have.digest) {
                return false;
            }
            if base.is_none() {
                self.table.clear();
            }
            self.table.extend(changed);
            self.table.retain(|ip, _| !removed.contains(ip));
        }
        let digests = self.table.iter().map(|(ip, info)| peer_digest(*ip, info));
        assert_eq!(digests.fold(0, u64::wrapping_add), digest, "{update:?}");
        self.have = PeerTableVersion { epoch, version, digest };
        true
    }
}

impl World {
    fn pass(&mut self, time: Duration) {
        self.now.elapsed += time;
        self.handle(Event::Timeout);
    }

    /// Ends all commits, and runs everything that is due.
    fn settle(&mut self) {
        self.store();
        self.pass(Duration::from_secs(1));
        while self.master.next_timeout().is_some_and(|due| due < self.now.elapsed + SECOND) {
            self.pass(Duration::from_millis(100));
        }
    }

    fn ask(&mut self, agent: u8, have: PeerTableVersion) {
        self.message(
            agent,
            Message::RequestPeers(PeersRequest { have, ..PeersRequest::default() }),
        );
    }

    /// Returns the updates of peers with their receivers and the versions that they wait for.
    fn updates(&mut self) -> Vec<(Vec<Upid>, EncodedUpdate, Version)> {
        std::mem::take(&mut self.peer_updates)
    }

    /// Returns the only update that was sent.
    fn update(&mut self) -> (Vec<Upid>, PeersUpdate) {
        let mut updates = self.updates();
        assert_eq!(updates.len(), 1, "{updates:?}");
        let (to, update, when) = updates.remove(0);
        assert!(when <= self.version, "the update is held back");
        (to, update.content().clone())
    }

    /// Returns a world with registered and subscribed agents.
    fn subscribed<const N: usize>(network: Network, agents: [u8; N]) -> (Self, Follower) {
        let mut world = Self::new(network);
        for agent in agents {
            world.register(agent);
        }
        world.settle();
        agents.iter().for_each(|agent| world.ask(*agent, PeerTableVersion::default()));
        world.settle();
        let (to, update) = world.update();
        assert_eq!(to, agents.map(upid));
        let mut follower = Follower::default();
        assert!(follower.apply(&update));
        (world, follower)
    }

    /// Lets another master load the state.
    fn fail_over(self, network: Network, epoch: u64) -> Self {
        let mut world = Self::restored(network, self.records, self.version);
        world.now = self.now;
        let loaded = world.state_of(Epoch(epoch));
        world.handle(Event::Loaded(Ok(loaded)));
        world
    }
}

const SECOND: Duration = Duration::from_secs(1);
const SUBSCRIBERS: [&str; 2] = ["peers", "peers_subscribers"];

fn changed(update: &PeersUpdate) -> Vec<Ipv4Addr> {
    update.changed.keys().copied().collect()
}

#[test]
fn peer_table_has_mac_of_agents_with_direct_routing_only() {
    let mut world = World::new(network());
    world.register(1);
    let mac = Some([2, 0, 0, 0, 0, 2].into());
    world.register_with(2, AgentOptions { direct_mac: mac, ..AgentOptions::default() });
    world.store();
    world.ask(1, PeerTableVersion::default());
    world.pass(SECOND);
    let offer = |update: &PeersUpdate, number| {
        update.changed[&ip(number)].peer.direct.map(|direct| direct.mac)
    };
    let (_, whole) = world.update();
    assert_eq!((offer(&whole, 1), offer(&whole, 2)), (None, mac));
    // The agent registers again without direct routing.
    world.register(2);
    world.store();
    world.pass(SECOND);
    let (_, delta) = world.update();
    assert_eq!((changed(&delta), offer(&delta, 2)), (vec![ip(2)], None));
}

#[test]
fn subscriber_gets_snapshot_then_deltas() {
    let mut world = World::new(network());
    world.register(1);
    let underlay = Some("fd00::2".parse().unwrap());
    world.register_with(2, AgentOptions { underlay, ..AgentOptions::default() });
    world.register_with(3, AgentOptions { allocate_subnet: false, ..AgentOptions::default() });
    world.store();
    world.ask(1, PeerTableVersion::default());
    assert_eq!(world.updates(), [], "the change is debounced");
    world.pass(Duration::from_millis(499));
    assert_eq!(world.updates(), []);
    world.pass(Duration::from_millis(1));
    let (to, whole) = world.update();
    assert_eq!((to, whole.base, whole.epoch), (vec![upid(1)], None, 1));
    assert_eq!(changed(&whole), [ip(1), ip(2), ip(3)]);
    let PeerInfo { underlay, peer } = &whole.changed[&ip(2)];
    assert_eq!(underlay.to_string(), "fd00::2");
    assert_eq!(peer.ip, Some("44.128.0.2".parse().unwrap()));
    assert_eq!(peer.ip6, Some("fd01:a::2".parse().unwrap()));
    assert_eq!(peer.mac.to_string(), "70:b3:d5:80:00:02");
    let subnets: Vec<String> =
        peer.subnets.iter().map(|(name, subnet)| format!("{name} {subnet}")).collect();
    let expected =
        ["vxlan-1 192.168.1.0/24", "vxlan-2 192.168.129.0/24", "vxlan-2 fd01:b:0:0:1::/80"];
    assert_eq!(subnets, expected);
    // A gateway without subnets is a peer as well.
    assert_eq!(whole.changed[&ip(3)].underlay, ip(3));
    assert_eq!(whole.changed[&ip(3)].peer.subnets, []);

    // Changes within the debounce are combined into one delta.
    let mut follower = Follower::default();
    assert!(follower.apply(&whole));
    (4..=6).for_each(|agent| drop(world.register(agent)));
    world.store();
    world.pass(Duration::from_millis(400));
    world.delete(2);
    world.store();
    world.pass(Duration::from_millis(100));
    let (_, delta) = world.update();
    assert_eq!((changed(&delta), delta.base), ([4, 5, 6].map(ip).to_vec(), Some(whole.digest)));
    assert_eq!(delta.removed, BTreeSet::from([ip(2)]));
    assert!(follower.apply(&delta));
    world.settle();
    assert_eq!(world.updates(), []);
    assert_eq!(
        world.master.next_timeout(),
        Some(Duration::from_secs(195)),
        "no update is due: only agents become silent, and then the subscription expires"
    );
}

#[test]
fn change_without_effect_on_peers_is_not_sent() {
    let (mut world, follower) = World::subscribed(network(), [1, 2]);
    let assigned = world.register(1).unwrap();
    world.message(1, report(&assigned, &Status::Ok));
    world.register_with(2, AgentOptions { docker_bridge: false, ..AgentOptions::default() });
    let mut reordered = network();
    reordered.overlays.reverse();
    assert!(world.reload(reordered).accepted);
    world.settle();
    assert_eq!(world.updates(), []);
    // A request is answered at once: nothing has changed.
    world.ask(1, follower.have);
    let (to, update) = world.update();
    let PeerTableVersion { epoch, version, digest } = follower.have;
    let nothing = PeersUpdate { epoch, version, digest, base: Some(digest), ..Default::default() };
    assert_eq!((to, &update), (vec![upid(1)], &nothing));
}

#[test]
fn changed_underlay_is_stored_and_sent() {
    let (mut world, mut follower) = World::subscribed(network(), [1, 2]);
    let moved =
        AgentOptions { underlay: Some("fd00::9".parse().unwrap()), ..AgentOptions::default() };
    world.register_with(1, moved);
    world.settle();
    assert!(follower.apply(&world.update().1));
    assert_eq!(follower.table[&ip(1)].underlay.to_string(), "fd00::9");
    let mut world = world.fail_over(network(), 2);
    world.ask(2, follower.have);
    assert_eq!(world.update().1.base, Some(follower.have.digest), "the next master loads it");
}

#[test]
fn peers_wait_for_store_without_piling_up() {
    let (mut world, _) = World::subscribed(network(), [1]);
    world.register(2);
    world.pass(SECOND);
    let updates = world.updates();
    assert_eq!(updates.len(), 1);
    assert!(updates[0].2 > world.version, "the update waits for the store");
    // The store hangs.
    for agent in 3..10 {
        world.register(agent);
        world.pass(SECOND);
    }
    assert_eq!(world.updates(), []);
    world.store();
    world.pass(SECOND);
    assert_eq!(changed(&world.update().1), (3..10).map(ip).collect::<Vec<_>>());
}

#[test]
fn delta_as_long_as_snapshot_becomes_snapshot() {
    let (mut world, _) = World::subscribed(network(), [1, 2]);
    for agent in [1, 2] {
        let underlay = format!("fd00::{agent}").parse().ok();
        world.register_with(agent, AgentOptions { underlay, ..AgentOptions::default() });
    }
    world.settle();
    let (_, update) = world.update();
    assert_eq!((update.base, update.changed.len()), (None, 2));
}

#[test]
fn request_after_gap_gets_missing_changes() {
    let (mut world, mut first) = World::subscribed(network(), [1, 2, 3]);
    world.register(4);
    world.settle();
    drop(world.updates());
    world.register(5);
    world.settle();
    let (_, update) = world.update();
    assert!(!first.apply(&update), "the previous update was lost");
    world.ask(1, first.have);
    world.settle();
    let (to, update) = world.update();
    assert_eq!((to, changed(&update)), (vec![upid(1)], vec![ip(4), ip(5)]));
    assert!(first.apply(&update));
    // A request with an unknown table gets a snapshot.
    world.ask(1, PeerTableVersion { digest: 1, ..first.have });
    world.settle();
    assert_eq!(world.update().1.base, None);
}

#[test]
fn change_log_is_bounded() {
    let (mut world, follower) = World::subscribed(network(), [1, 2, 3]);
    let Phase::Leading(leading) = &mut world.master.phase else { panic!("the master leads") };
    let peers = leading.peers_mut();
    let info = follower.table[&ip(3)].clone();
    for number in 0..40_000_u128 {
        let moved = PeerInfo { underlay: Ipv6Addr::from(number).into(), ..info.clone() };
        peers.set(ip(3), Gated::new(Some(moved), Version(0)));
    }
    assert_eq!(peers.log_sizes(), (32 * 1024, 32 * 1024 + 1));
    world.ask(1, follower.have);
    world.settle();
    let updates = world.updates();
    assert!(updates.iter().all(|(_, update, _)| update.content().base.is_none()), "{updates:?}");
}

#[test]
fn failover_sends_deltas_only() {
    let (world, mut follower) = World::subscribed(network(), [1, 2, 3]);
    let mut world = world.fail_over(network(), 2);
    world.register(4);
    for agent in 1..=3 {
        world.register(agent);
        world.store();
        world.ask(agent, follower.have);
    }
    world.settle();
    let (to, update) = world.update();
    assert_eq!(to, [1, 2, 3].map(upid));
    assert_eq!((changed(&update), update.epoch), (vec![ip(4)], 2));
    assert_eq!(update.base, Some(follower.have.digest));
    let before = follower.have;
    assert!(follower.apply(&update));
    // Later updates of the old master are ignored.
    let late = PeersUpdate { epoch: 1, version: 99, ..PeersUpdate::default() };
    assert!(follower.apply(&late) && follower.have != before && follower.table.len() == 4);
}

#[test]
fn disabled_and_renamed_overlays_reach_peers() {
    let (mut world, mut follower) = World::subscribed(network(), [1, 2]);
    let overlays = |follower: &Follower| {
        let subnets = follower.table[&ip(1)].peer.subnets.iter();
        subnets.map(|(name, _)| name.to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(overlays(&follower).len(), 2);
    let mut network = network();
    network.overlays[0].enabled = false;
    network.overlays[1].name = "other".parse().unwrap();
    assert!(world.reload(network).accepted);
    world.settle();
    assert!(follower.apply(&world.update().1));
    assert_eq!(overlays(&follower), BTreeSet::from(["other".to_owned()]));
    assert_eq!(follower.table.len(), 2);
}

#[test]
fn released_agent_is_unsubscribed_and_removed() {
    let (mut world, mut follower) = World::subscribed(network(), [1, 2, 3]);
    assert_eq!(world.metrics(SUBSCRIBERS), [3, 3]);
    let forget = Forget { agents: vec![ip(2)], force: true, dry_run: false };
    world.request(Request::Forget(forget));
    world.settle();
    let (to, update) = world.update();
    assert_eq!((to, &update.removed), ([1, 3].map(upid).to_vec(), &BTreeSet::from([ip(2)])));
    assert!(follower.apply(&update));
    assert_eq!(world.metrics(SUBSCRIBERS), [2, 2]);
    world.ask(2, follower.have);
    world.settle();
    assert_eq!((world.updates(), world.metrics(SUBSCRIBERS)), (Vec::new(), [2, 2]));
}

#[test]
fn silent_subscriber_expires() {
    let (mut world, follower) = World::subscribed(network(), [1, 2]);
    world.pass(Duration::from_secs(200));
    world.ask(1, follower.have);
    world.updates();
    // The master has a timeout for the expiry.
    world.now.elapsed = world.master.next_timeout().unwrap();
    world.pass(Duration::ZERO);
    assert_eq!(world.metrics(SUBSCRIBERS), [2, 1]);
    world.register(3);
    world.settle();
    assert_eq!(world.update().0, [upid(1)]);
}

#[test]
fn subscribe_needs_registered_sender() {
    let (mut world, follower) = World::subscribed(network(), [1, 2]);
    world.ask(9, PeerTableVersion::default());
    let other = Upid { id: "x".to_owned(), ..upid(1) };
    let message = Message::RequestPeers(PeersRequest::default());
    world.handle(Event::Message { from: other, message });
    world.message(1, Message::UpdatePeers(Arc::default()));
    world.register(3);
    world.settle();
    let (to, update) = world.update();
    assert_eq!((to, update.base), ([1, 2].map(upid).to_vec(), Some(follower.have.digest)));
    let names = ["internal/request_peers_messages_dropped", "unexpected_messages"];
    assert_eq!(world.metrics(names), [2, 1]);
    // An agent with many requests gets no more updates than other agents.
    for _ in 0..1000 {
        world.ask(1, PeerTableVersion { digest: 7, ..PeerTableVersion::default() });
    }
    world.settle();
    assert_eq!(world.update().0, [upid(1)]);
}

#[test]
fn recovering_master_sends_no_peers() {
    let (mut world, _) = World::subscribed(network(), [1]);
    world.register(2);
    world.handle(Event::Committed(Err(StoreError::Failed {
        store: "store".to_owned(),
        action: "commit",
        reason: "the disk is full".to_owned(),
    })));
    world.ask(1, PeerTableVersion::default());
    world.now.elapsed += Duration::from_secs(60);
    world.handle(Event::Timeout);
    assert_eq!((world.updates(), world.metrics(SUBSCRIBERS)), (Vec::new(), [0, 0]));
    assert_eq!(world.metrics(["internal/request_peers_messages_dropped"]), [1]);
}

#[test]
fn sends_are_paced_and_counted() {
    let wide = small("44.0.0.0/8", "20.0.0.0/8");
    let mut world = World::new(wide);
    let agent = |number: u32| Ipv4Addr::from_bits(0xac10_0000 + number);
    let upid = |number| agent_upid(std::net::SocketAddrV4::new(agent(number), 5051));
    let send = |world: &mut World, number, message| {
        world.handle(Event::Message { from: upid(number), message });
    };
    for number in 0..3000 {
        send(&mut world, number, Message::RegisterAgent(AgentOptions::default()));
    }
    world.store();
    for number in 0..3000 {
        send(&mut world, number, Message::RequestPeers(PeersRequest::default()));
    }
    world.updates();
    world.pass(Duration::from_millis(500));
    let (mut receivers, mut slices) = (BTreeSet::new(), 0);
    let [_, mut before] = world.metrics(SENT);
    while receivers.len() < 3000 {
        let (to, update) = world.update();
        assert_eq!((update.base, update.changed.len()), (None, 3000));
        assert!(to.into_iter().all(|to| receivers.insert(to)), "an agent gets the update twice");
        let [messages, bytes] = world.metrics(SENT);
        assert_eq!(messages, receivers.len() as u64);
        assert!(bytes - before <= 10_000_000, "{}", bytes - before);
        before = bytes;
        slices += 1;
        world.pass(Duration::from_millis(100));
    }
    // 3,000 tables of 3,000 agents with 36 bytes each.
    assert!((25..60).contains(&slices), "{slices} slices");
    assert_eq!(world.updates(), []);
    // One change is one broadcast to all of them.
    send(&mut world, 3000, Message::RegisterAgent(AgentOptions::default()));
    world.settle();
    assert_eq!(world.update().0.len(), 3000);
}

#[test]
fn update_is_encoded_once_for_each_form() {
    let mut world = World::new(network());
    let agents = [1, 2, 3, 4, 5];
    for agent in agents {
        world.register(agent);
    }
    world.settle();
    for agent in agents {
        let form = if agent < 4 { UpdateForm::Compact } else { UpdateForm::Plain };
        world.message(agent, Message::RequestPeers(PeersRequest { form, ..Default::default() }));
    }
    let names = ["internal/update_peers_messages_encoded", "peers_plain_subscribers"];
    assert_eq!(world.metrics(names), [0, 2]);
    world.settle();
    let updates = world.updates();
    let [(plain_to, plain, _), (compact_to, compact, _)] = &updates[..] else {
        panic!("{updates:?}")
    };
    assert_eq!((plain_to, compact_to), (&vec![upid(4), upid(5)], &[1, 2, 3].map(upid).to_vec()));
    assert_eq!(plain.content(), compact.content());
    assert_eq!(*plain.body(), encode_update(plain.content(), UpdateForm::Plain));
    assert_eq!(*compact.body(), encode_update(plain.content(), UpdateForm::Compact));
    assert_eq!(world.metrics(names), [2, 2]);

    // An agent that is upgraded gets the other form.
    let request = PeersRequest { form: UpdateForm::Compact, ..PeersRequest::default() };
    world.message(4, Message::RequestPeers(request));
    world.settle();
    let updates = world.updates();
    assert_eq!(updates.len(), 1, "{updates:?}");
    assert_eq!((&updates[0].0, &updates[0].1), (&vec![upid(4)], compact));
    assert_eq!(world.metrics(names), [3, 1]);
    world.delete(5);
    assert_eq!(world.metrics(names), [3, 0]);
}

const SENT: [&str; 2] = ["internal/update_peers_messages_sent", "internal/update_peers_bytes_sent"];

#[test]
fn too_large_peer_table_is_reported_and_not_sent() {
    let (mut world, follower) = World::subscribed(network(), [1, 2]);
    let Phase::Leading(leading) = &mut world.master.phase else { panic!("the master leads") };
    let info = &follower.table[&ip(1)];
    let name = |number| format!("overlay-{number}").parse().unwrap();
    for number in 0..3000 {
        let mut info = info.clone();
        info.peer.subnets = (0..500).map(|at| (name(at), info.peer.subnets[0].1)).collect();
        let info = Gated::new(Some(info), Version(0));
        leading.peers_mut().set(Ipv4Addr::from_bits(0xac10_0000 + number), info);
    }
    world.ask(1, PeerTableVersion { digest: 7, ..PeerTableVersion::default() });
    world.settle();
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    let problem = &health.problems[0];
    assert!(problem.starts_with("the table of peers has "), "{problem}");
    assert!(world.updates().is_empty());
    // A smaller table is sent, and the problem ends.
    let Phase::Leading(leading) = &mut world.master.phase else { panic!("the master leads") };
    for number in 0..3000 {
        let gone = Gated::new(None, Version(0));
        leading.peers_mut().set(Ipv4Addr::from_bits(0xac10_0000 + number), gone);
    }
    world.ask(1, PeerTableVersion { digest: 7, ..PeerTableVersion::default() });
    world.settle();
    assert_eq!(world.health().problems, [""; 0]);
    assert!(!world.updates().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Register(u8, bool),
    Delete(u8),
    Ask(u8),
    Store,
    Pass(u64),
    Lose,
    FailOver,
    Disable(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let agent = || 1_u8..6;
    prop_oneof![
        4 => (agent(), any::<bool>()).prop_map(|(agent, moves)| Step::Register(agent, moves)),
        1 => agent().prop_map(Step::Delete),
        3 => agent().prop_map(Step::Ask),
        4 => Just(Step::Store),
        4 => (1_u64..2000).prop_map(Step::Pass),
        1 => Just(Step::Lose),
        1 => Just(Step::FailOver),
        1 => any::<bool>().prop_map(Step::Disable),
    ]
}

proptest! {
    /// For every sequence of steps: all agents have the same peers at the end, and never peers that
    /// are not stored.
    #[test]
    fn agents_get_same_stored_peers(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new(network());
        let mut network = network();
        let mut followers: BTreeMap<u8, Follower> = BTreeMap::new();
        let mut held = Vec::new();
        let mut epoch = 1;
        let end = (1..6).map(|agent| Step::Register(agent, false));
        let end = end.chain([Step::Store]).chain((1..6).map(Step::Ask));
        let end = end.chain([Step::Store, Step::Pass(3000), Step::Store, Step::Pass(3000)]);
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Register(agent, moves) => {
                    let underlay = moves.then(|| "fd00::1".parse().unwrap());
                    let options = AgentOptions { underlay, ..AgentOptions::default() };
                    world.message(agent, Message::RegisterAgent(options));
                }
                Step::Delete(agent) => world.delete(agent),
                Step::Ask(agent) => {
                    let have = followers.entry(agent).or_default().have;
                    world.ask(agent, have);
                }
                Step::Store => world.store(),
                Step::Pass(milliseconds) => {
                    for _ in 0..=milliseconds / 100 {
                        world.pass(Duration::from_millis(100));
                        held.extend(world.updates());
                    }
                }
                Step::Lose => {
                    world.updates();
                    held.clear();
                }
                Step::FailOver => {
                    held.clear();
                    epoch += 1;
                    world = world.fail_over(network.clone(), epoch);
                }
                Step::Disable(is_disabled) => {
                    network.overlays[0].enabled = !is_disabled;
                    world.reload(network.clone());
                }
            }
            held.extend(world.updates());
            let durable = world.version;
            for (to, update, _) in held.extract_if(.., |(_, _, when)| *when <= durable) {
                for to in to {
                    let agent = to.address.ip().octets()[3];
                    let follower = followers.entry(agent).or_default();
                    if !follower.apply(update.content()) {
                        world.ask(agent, follower.have);
                    }
                }
            }
        }
        let Phase::Leading(leading) = &world.master.phase else { panic!("the master leads") };
        let truth = leading.peers_of_registry();
        prop_assert_eq!(truth.len(), 5);
        for (agent, follower) in followers {
            prop_assert_eq!(&follower.table, &truth, "agent {}", agent);
        }
    }
}

#[test]
fn repeated_request_while_store_hangs_is_answered_once() {
    let (mut world, follower) = World::subscribed(network(), [1, 2]);
    // The change of this record does not change the table.
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    world.message(2, Message::RegisterAgent(options));
    for _ in 0..3 {
        world.ask(1, follower.have);
        world.pass(5 * SECOND);
    }
    let updates = world.updates();
    assert_eq!(updates.len(), 1, "{updates:?}");
    assert!(updates[0].2 > world.version, "the update is held back");
    world.store();
    world.ask(1, follower.have);
    assert_eq!(world.updates().len(), 1, "a later request is answered again");
}
