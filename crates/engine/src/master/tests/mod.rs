//! Tests of the whole master: events, and the exact commands that follow. The store is a map that
//! the tests can make fail.

mod configuration;
mod contacts;
mod leadership;
mod leases;
mod peers;
mod recovery;
mod refused;
mod reloads;
mod reports;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use overlay_types::addr::{OverlayName, Subnet, agent_upid};
use overlay_types::protocol::{AddressRange, Overlay, State, Status, Vxlan};
use overlay_types::protocol::{HistoryEntry, PeersUpdate, Record, RequestId};
use overlay_types::state::{
    Epoch, Key, LoadedPart, LoadedState, RecordChange, StoreError, UnreadableRecord, Version,
};
use proptest::prelude::*;

use super::*;
use crate::metrics::HostCounters;

/// A record in the store of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StoredRecord {
    Agent(Result<Record, UnreadableRecord>),
    History(Vec<HistoryEntry>),
}

/// Returns an approximate length of an update, in place of the length on the wire.
fn update_length(update: &PeersUpdate) -> usize {
    let peers = update.changed.values();
    let subnets: usize = peers.map(|info| info.peer.subnets.len()).sum();
    30 + 40 * update.changed.len() + 12 * subnets + 6 * update.removed.len()
}

/// A master and its store. A commit stays under way until the test ends it.
struct World {
    master: Master,
    now: Now,
    records: BTreeMap<Key, StoredRecord>,
    version: Version,
    /// The commit that is under way.
    writing: Option<Vec<RecordChange>>,
    /// The sent messages, each with the version that it waits for.
    sent: Vec<(Upid, Message, Version)>,
    broadcasts: Vec<(Vec<Upid>, Message, Version)>,
    replies: Vec<(Reply, Version)>,
    /// The reasons for which pending sends were abandoned.
    abandoned: Vec<String>,
    /// Released agents whose pending messages were withdrawn.
    withdrawn: BTreeSet<Ipv4Addr>,
    loads: usize,
    /// The requests to read the configuration again.
    rereads: Vec<RequestId>,
    /// The processes to which the master links.
    links: Vec<Upid>,
}

impl World {
    fn new(network: Network) -> Self {
        let mut world = Self::restored(network, BTreeMap::new(), Version(0));
        world.load();
        world
    }

    fn restored(network: Network, records: BTreeMap<Key, StoredRecord>, version: Version) -> Self {
        let settings =
            Settings { network: Arc::new(network), reuse_after: Duration::from_secs(3600) };
        let mut world = Self {
            master: Master::new(settings, update_length, 1),
            now: Now { elapsed: Duration::ZERO, unix: 1_700_000_000 },
            records,
            version,
            writing: None,
            sent: Vec::new(),
            broadcasts: Vec::new(),
            replies: Vec::new(),
            abandoned: Vec::new(),
            withdrawn: BTreeSet::new(),
            loads: 0,
            rereads: Vec::new(),
            links: Vec::new(),
        };
        world.run_commands();
        world
    }

    /// Restarts the master with another configuration on the same store.
    fn restart(self, network: Network) -> Self {
        let mut world = Self::restored(network, self.records, self.version);
        world.load();
        world
    }

    fn handle(&mut self, event: Event) {
        self.master.handle(self.now, event);
        self.run_commands();
    }

    fn run_commands(&mut self) {
        while let Some(command) = self.master.poll_command() {
            match command {
                Command::Load => self.loads += 1,
                Command::Abandon(reason) => self.abandoned.push(reason),
                Command::Withdraw(agents) => self.withdrawn.extend(agents),
                Command::Link(to) => self.links.push(to),
                Command::ReadConfig(id) => self.rereads.push(id),
                Command::Preview { id, job } => {
                    let effect = Box::new(job.run());
                    self.master.handle(self.now, Event::Previewed(id, effect));
                }
                Command::Commit { changes, .. } => {
                    assert!(self.writing.is_none(), "two commits at a time");
                    assert!(!changes.is_empty(), "an empty commit");
                    self.writing = Some(changes);
                }
                Command::Send { to, message, when } => self.sent.push((to, message, when)),
                Command::Broadcast { to, message, when } => {
                    self.broadcasts.push((to, message, when));
                }
                Command::Reply { reply, when, .. } => self.replies.push((reply, when)),
            }
        }
    }

    fn load(&mut self) {
        let loaded = self.state_of(Epoch(1));
        self.handle(Event::Loaded(Ok(loaded)));
    }

    /// Returns the records of the store as a load in `epoch` finds them.
    fn state_of(&self, epoch: Epoch) -> LoadedState {
        let version = self.version;
        let mut state = LoadedState { epoch, version, agents: Vec::new(), history: Vec::new() };
        for (key, record) in self.records.clone() {
            match (key, record) {
                (Key::Agent(ip), StoredRecord::Agent(record)) => state.agents.push((ip, record)),
                (Key::History(number), StoredRecord::History(entries)) => {
                    let entries = Ok(entries);
                    state.history.push(LoadedPart { number, entries, is_lossless: true });
                }
                (key, record) => panic!("{key} has the record {record:?}"),
            }
        }
        state
    }

    /// Completes the commit under way, and all commits that follow.
    fn store(&mut self) {
        while let Some(changes) = self.writing.take() {
            for change in changes {
                let key = change.key();
                let record = match change {
                    RecordChange::PutAgent(_, record) => StoredRecord::Agent(Ok(record)),
                    RecordChange::PutHistory(_, part) => StoredRecord::History(part.to_vec()),
                    RecordChange::Delete(_) => {
                        self.records.remove(&key);
                        continue;
                    }
                };
                self.records.insert(key, record);
            }
            self.version = self.version.next();
            self.handle(Event::Committed(Ok(self.version)));
        }
    }

    /// Returns the agents with a record in the store.
    fn agents(&self) -> Vec<Ipv4Addr> {
        let agents = self.records.keys().filter_map(|key| match key {
            Key::Agent(ip) => Some(*ip),
            Key::History(_) => None,
        });
        agents.collect()
    }

    fn register(&mut self, agent: u8) -> Option<Vec<Assignment>> {
        self.register_with(agent, AgentOptions::default())
    }

    /// Registers the agent 10.0.0.`agent`, and returns the assignments, durable or not.
    fn register_with(&mut self, agent: u8, options: AgentOptions) -> Option<Vec<Assignment>> {
        let before = self.sent.len();
        self.message(agent, Message::RegisterAgent(options));
        let (to, message, _) = self.sent.get(before)?;
        assert_eq!(*to, upid(agent));
        match message {
            Message::UpdateAgentOverlays(overlays) => Some(overlays.clone()),
            other => panic!("{other} instead of an update"),
        }
    }

    fn message(&mut self, agent: u8, message: Message) {
        self.handle(Event::Message { from: upid(agent), message });
    }

    fn request(&mut self, request: Request) -> (Reply, Version) {
        self.handle(Event::Request(RequestId(1), request));
        self.replies.pop().expect("the reply is a command at once, even if it is held back")
    }

    /// Reloads another configuration.
    fn reload(&mut self, network: Network) -> Effect {
        self.handle(Event::Request(RequestId(2), Request::Reload));
        assert_eq!(self.rereads.pop(), Some(RequestId(2)));
        let reuse_after = Duration::from_secs(3600);
        let settings = Settings { network: Arc::new(network), reuse_after };
        self.handle(Event::ConfigRead(RequestId(2), Ok(settings)));
        match self.replies.pop() {
            Some((Reply::Effect(effect), _)) => *effect,
            other => panic!("{other:?} instead of the effect"),
        }
    }

    fn preview(&mut self, network: Network) -> Effect {
        match self.request(Request::Preview(Box::new(network))).0 {
            Reply::Effect(effect) => *effect,
            other => panic!("{other:?} instead of the effect"),
        }
    }

    fn state(&mut self) -> State {
        match self.request(Request::State).0 {
            Reply::State(state) => state,
            other => panic!("{other:?} instead of the state"),
        }
    }

    fn delete(&mut self, agent: u8) {
        let reply = self.request(Request::DeleteAgents(vec![ip(agent)])).0;
        assert!(matches!(reply, Reply::State(_)), "{reply:?}");
    }

    fn health(&mut self) -> Health {
        match self.request(Request::Health).0 {
            Reply::Health(health) => {
                if matches!(health.status, Condition::Ok | Condition::Degraded) {
                    assert_eq!(health.status == Condition::Ok, health.problems.is_empty());
                }
                *health
            }
            other => panic!("{other:?} instead of the health"),
        }
    }

    /// Returns the values of these metrics.
    fn metrics<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let (metrics, host) = (self.master.metrics(), HostCounters::default());
        let all = Master::CATALOGUE.metrics;
        let find = |name: &str| all.iter().find(|metric| metric.name == name).unwrap();
        names.map(|name| find(name).read(&metrics, &host))
    }

    /// Returns the statuses of an agent's overlays in the state.
    fn statuses(&mut self, agent: u8) -> Vec<Option<Status>> {
        let state = self.state();
        let agent = state.agents.iter().find(|known| known.ip == ip(agent)).unwrap();
        agent.overlays.iter().map(|overlay| overlay.status.clone()).collect()
    }
}

fn ip(agent: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, agent)
}

fn upid(agent: u8) -> Upid {
    agent_upid(std::net::SocketAddrV4::new(ip(agent), 5051))
}

fn range(subnet: &str, prefix: u8) -> Option<AddressRange> {
    Some(AddressRange { subnet: subnet.parse().unwrap(), prefix })
}

fn overlay(name: &str, subnet: &str) -> Overlay {
    Overlay {
        name: name.parse().unwrap(),
        range: range(subnet, 24),
        range6: None,
        vni: None,
        enabled: true,
    }
}

/// Returns the network of the recorded traffic.
fn network() -> Network {
    let dual =
        Overlay { range6: range("fd01:b::/64", 80), ..overlay("vxlan-2", "192.168.128.0/17") };
    Network {
        vtep_subnet: "44.128.0.0/16".parse().unwrap(),
        vtep_subnet6: Some("fd01:a::/64".parse().unwrap()),
        vtep_mac_oui: "70:B3:D5:00:00:00".parse().unwrap(),
        vtep_mtu: Some(overlay_types::addr::Mtu::new(1450).unwrap()),
        vxlan: Vxlan::default(),
        overlays: vec![overlay("vxlan-1", "192.168.0.0/17"), dual],
    }
}

/// Returns a network with one small overlay.
fn small(vteps: &str, subnet: &str) -> Network {
    Network {
        vtep_subnet: vteps.parse().unwrap(),
        vtep_subnet6: None,
        vtep_mtu: None,
        overlays: vec![overlay("net", subnet)],
        ..network()
    }
}

fn subnets(assignments: &[Assignment]) -> Vec<String> {
    assignments.iter().filter_map(|one| one.subnet).map(|subnet| subnet.to_string()).collect()
}

fn report(assignments: &[Assignment], status: &Status) -> Message {
    let with = |one: &Assignment| Assignment { status: Some(status.clone()), ..one.clone() };
    Message::AgentRegistered(assignments.iter().map(with).collect())
}

#[test]
fn assignments_wait_for_their_commit() {
    let mut world = World::new(network());
    world.register(1);
    assert_eq!(world.sent[0].2, Version(1), "the update waits for the first commit");
    let (_, when) = world.request(Request::State);
    assert_eq!(when, Version(1), "the reply with the state waits for the same commit");
    world.store();
    assert_eq!(world.version, Version(1));
    assert_eq!(world.request(Request::State).1, Version(1));
    // A repeated registration changes nothing, and is not stored.
    world.register(1);
    assert_eq!(world.sent[1].2, Version(1));
    assert_eq!(world.writing, None);
}

#[test]
fn registrations_during_commit_share_next_commit() {
    let mut world = World::new(network());
    for agent in 1..=50 {
        world.register(agent);
    }
    assert_eq!(
        world.writing.as_ref().unwrap().len(),
        2,
        "the record of the agent, and its history"
    );
    let waits: BTreeSet<Version> = world.sent[1..].iter().map(|(_, _, when)| *when).collect();
    assert_eq!(waits, BTreeSet::from([Version(2)]));
    world.store();
    assert_eq!(world.health().counters.commits, 2);
    assert_eq!(world.agents().len(), 50);
}

#[test]
fn repeated_request_while_store_hangs_is_answered_once() {
    let mut world = World::new(network());
    world.register(1);
    for _ in 0..100 {
        world.register(1);
        world.register(2);
    }
    assert_eq!(world.sent.len(), 2, "the held back messages do not pile up");
    // The assignments have changed now.
    let mesos_only = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    assert!(world.register_with(2, mesos_only).is_some());
    world.store();
    assert!(world.register(1).is_some(), "a stored assignment is sent again");
}

#[test]
fn agent_keeps_addresses_across_restarts() {
    let mut world = World::new(network());
    let first: Vec<_> = (1..=5).map(|agent| world.register(agent).unwrap()).collect();
    world.store();
    let mut world = world.restart(network());
    for agent in (1..=5).rev() {
        assert_eq!(world.register(agent).unwrap(), first[usize::from(agent) - 1]);
    }
    assert_eq!(world.writing, None, "without a change there is no commit");
}

#[test]
fn report_with_endless_reason_is_cut() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    world.message(1, report(&overlays, &Status::Failed("x".repeat(1_000_000))));
    let cut = Some(Status::Failed(format!("{}… (cut)", "x".repeat(1017))));
    assert_eq!(world.statuses(1), [cut.clone(), cut]);
}

#[test]
fn report_is_shown_and_acknowledged() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    assert_eq!(world.statuses(1), [None, None]);
    let failed = Status::Failed("docker: not\nrunning\u{202e}".to_owned());
    world.message(1, report(&overlays, &failed));
    let shown = Some(Status::Failed(r"docker: not\nrunning\u{202e}".to_owned()));
    assert_eq!(world.statuses(1), [shown.clone(), shown]);
    assert_eq!(world.health().agents, AgentTally { total: 1, failed: 1, ..AgentTally::default() });
    assert_eq!(
        world.health().problems,
        ["1 agent with a failed overlay: see the state for the reasons"]
    );
    assert_eq!(world.sent[1].1, Message::AgentRegisteredAcknowledgement);

    world.message(1, report(&overlays, &Status::Ok));
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.sent.len(), 4, "a duplicate is acknowledged like the first");
    assert_eq!(world.health().status, Condition::Ok);
    // A registration keeps the reported statuses.
    world.register(1);
    assert_eq!(world.statuses(1), [Some(Status::Ok), Some(Status::Ok)]);
}

#[test]
fn acknowledgement_waits_for_record() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.sent[1].2, Version(1));
}

#[test]
fn unexpected_reports_are_counted() {
    let mut world = World::new(network());
    // A report of an agent that is not registered.
    let mut others = World::new(small("44.128.0.0/16", "20.0.0.0/8"));
    let foreign = others.register(7).unwrap();
    world.message(7, report(&foreign, &Status::Ok));
    assert_eq!(world.sent, []);
    assert_eq!(world.health().counters.agent_registered_messages_dropped, 1);

    // A report of an overlay that does not exist: the other overlays are noted.
    let mut overlays = world.register(1).unwrap();
    world.store();
    overlays.extend(foreign);
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.health().counters.unknown_overlays_reported, 1);
    assert_eq!(world.statuses(1), [Some(Status::Ok), Some(Status::Ok)]);

    // A report with other addresses: an outdated report must not look like a success.
    let mut outdated = overlays[0].clone();
    outdated.subnet = Some("192.168.99.0/24".parse().unwrap());
    world.message(1, report(&[outdated], &Status::Ok));
    assert_eq!(world.health().counters.outdated_overlays_reported, 1);
    assert_eq!(
        world.statuses(1)[0].as_ref().unwrap().to_string(),
        "failed: the agent still uses 192.168.99.0/24, VTEP 44.128.0.1, and was assigned \
         192.168.0.0/24, VTEP 44.128.0.1: restart it"
    );

    // Messages that only a master sends, and malformed messages.
    world.message(1, Message::AgentRegisteredAcknowledgement);
    world.message(1, Message::UpdateAgentOverlays(Vec::new()));
    let malformed =
        Event::Malformed { from: upid(1), name: "x".to_owned(), reason: "y".to_owned() };
    world.handle(malformed);
    let counters = world.health().counters;
    assert_eq!((counters.unexpected_messages, counters.malformed_messages), (2, 1));
}

#[test]
fn options_select_assignments_and_may_change() {
    let mut world = World::new(network());
    let gateway = AgentOptions { allocate_subnet: false, ..AgentOptions::default() };
    let overlays = world.register_with(1, gateway).unwrap();
    assert_eq!(overlays.len(), 2);
    assert!(overlays.iter().all(|one| one.subnet.is_none() && one.subnet6.is_none()));
    assert!(overlays.iter().all(|one| one.mesos_bridge.is_none() && one.docker_bridge.is_none()));

    let mesos_only = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let overlays = world.register_with(1, mesos_only).unwrap();
    assert_eq!(subnets(&overlays), ["192.168.0.0/24", "192.168.128.0/24"]);
    assert!(overlays.iter().all(|one| one.mesos_bridge.is_some() && one.docker_bridge.is_none()));

    let both = world.register(1).unwrap();
    assert_eq!(subnets(&both), subnets(&overlays));
    let docker = both[1].docker_bridge.as_ref().unwrap();
    assert_eq!(docker.subnet.unwrap().to_string(), "192.168.128.128/25");
    assert_eq!(docker.subnet6.unwrap().to_string(), "fd01:b::8000:0:0/81");
    assert_eq!(docker.name.as_str(), "d-vxlan-2");
}

#[test]
fn added_overlay_is_assigned_at_next_registration() {
    let mut world = World::new(small("44.128.0.0/16", "20.0.0.0/8"));
    world.register(1);
    world.store();
    let mut wider = small("44.128.0.0/16", "20.0.0.0/8");
    wider.overlays.insert(0, overlay("new", "21.0.0.0/8"));
    let mut world = world.restart(wider);
    assert_eq!(subnets(&world.register(1).unwrap()), ["21.0.0.0/24", "20.0.0.0/24"]);
}

#[test]
fn disabled_overlay_is_not_sent_and_is_kept() {
    let mut world = World::new(network());
    world.register(1);
    let second = world.register(2).unwrap();
    world.store();
    let mut disabled = network();
    disabled.overlays[0].enabled = false;
    let mut world = world.restart(disabled);
    assert_eq!(subnets(&world.register(2).unwrap()), ["192.168.128.0/24".replace("128", "129")]);
    world.register(3);
    world.store();
    let mut world = world.restart(network());
    assert_eq!(world.register(2).unwrap(), second);
    assert_eq!(subnets(&world.register(3).unwrap())[0], "192.168.2.0/24");
}

#[test]
fn register_without_free_vtep_is_refused() {
    // Two hosts in a /30.
    let mut world = World::new(small("44.128.0.0/30", "20.0.0.0/8"));
    assert!(world.register(1).is_some() && world.register(2).is_some());
    assert_eq!(world.register(3), None);
    let health = world.health();
    assert_eq!(health.counters.ip_allocation_failures, 1);
    assert_eq!(
        health.problems,
        ["the VTEP subnet is exhausted: 1 agent did not get any: widen it or delete dead agents"]
    );
    world.delete(1);
    assert!(world.register(3).is_some(), "the VTEP of the deleted agent is free");
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn shortage_ends_with_option_or_release() {
    let mut tight = small("44.128.0.0/30", "20.0.0.0/24");
    tight.vtep_subnet6 = Some("fd01:a::/127".parse().unwrap());
    let mut world = World::new(tight);
    for agent in 1..=3 {
        world.register(agent);
    }
    let shortage = |pool: &str| {
        format!("{pool} is exhausted: 1 agent did not get any: widen it or delete dead agents")
    };
    assert_eq!(
        world.health().problems,
        ["overlay net (IPv4)", "the IPv6 VTEP subnet", "the VTEP subnet"].map(shortage)
    );
    let gateway = AgentOptions { allocate_subnet: false, ..AgentOptions::default() };
    world.register_with(2, gateway);
    world.delete(3);
    assert_eq!(world.health().problems, ["the IPv6 VTEP subnet"].map(shortage));
}

#[test]
fn exhausted_family_leaks_no_subnet_of_other_family() {
    let mut two = network();
    // IPv6 is enough for two agents, IPv4 for 128.
    two.overlays[1].range6 = range("fd01:b::/79", 80);
    let mut world = World::new(two);
    for agent in 1..=3 {
        world.register(agent);
    }
    world.store();
    let third = world.register(3).unwrap();
    assert_eq!(subnets(&third), ["192.168.2.0/24"], "the agent gets a subnet of the other overlay");
    let usage = world.health().pools;
    let vxlan2: Vec<u128> =
        usage.iter().filter(|pool| pool.name == "vxlan-2").map(|pool| pool.in_use).collect();
    assert_eq!(vxlan2, [2, 2], "no IPv4 subnet is lost");
    assert_eq!(world.health().counters.subnet6_allocation_failures, 2);
    assert_eq!(
        world.health().problems,
        ["overlay vxlan-2 (IPv6) is exhausted: 1 agent did not get any: widen it or delete dead \
          agents"]
    );
}

#[test]
fn returning_agent_gets_addresses_back() {
    let mut world = World::new(network());
    world.register(1);
    let second = world.register(2).unwrap();
    world.store();
    world.delete(2);
    world.store();
    assert_eq!(world.state().agents.len(), 1);
    // A new agent gets unused addresses, before and after a restart of the master.
    assert_eq!(subnets(&world.register(3).unwrap())[0], "192.168.2.0/24");
    world.store();
    let mut world = world.restart(network());
    assert_eq!(subnets(&world.register(4).unwrap())[0], "192.168.3.0/24");
    assert_eq!(world.register(2).unwrap(), second);
}

#[test]
fn returning_agent_keeps_subnets_of_unconfigured_overlay() {
    let part = || small("44.128.0.0/16", "20.0.0.0/23");
    let other = overlay("other", "20.1.0.0/23");
    let whole = || Network { overlays: vec![part().overlays[0].clone(), other.clone()], ..part() };
    let mut world = World::new(whole());
    let first = world.register(1).unwrap();
    world.delete(1);
    world.store();
    let mut world = world.restart(part());
    assert_eq!(subnets(&world.register(1).unwrap()), subnets(&first[..1]));
    world.store();
    let mut world = world.restart(whole());
    assert_eq!(subnets(&world.register(2).unwrap()), ["20.0.1.0/24", "20.1.1.0/24"]);
    assert_eq!(world.register(1).unwrap(), first);
}

#[test]
fn returning_agent_gets_nothing_outside_narrowed_overlay() {
    let mut world = World::new(small("44.128.0.0/16", "20.0.0.0/22"));
    for agent in 1..=3 {
        world.register(agent);
    }
    world.store();
    world.delete(2);
    world.store();
    world.delete(3);
    world.store();
    // No registered agent has an address outside of the narrowed overlay.
    let mut world = world.restart(small("44.128.0.0/16", "20.0.0.0/23"));
    assert_eq!(subnets(&world.register(3).unwrap()), ["20.0.1.0/24"]);
    world.store();
    assert_eq!(world.health().problems, [""; 0]);
    let mut world = world.restart(small("44.128.0.0/16", "20.0.0.0/23"));
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(subnets(&world.register(3).unwrap()), ["20.0.1.0/24"]);
}

#[test]
fn unconfigured_subnet_allocated_to_another_is_dropped() {
    let two = |prefix: u8| {
        let plain = small("44.128.0.0/16", "20.0.0.0/24");
        let (kept, mut cut) = (overlay("kept", "20.1.0.0/23"), plain.overlays[0].clone());
        cut.range = cut.range.map(|range| AddressRange { prefix, ..range });
        Network { overlays: vec![kept, cut], ..plain }
    };
    let mut world = World::new(two(24));
    world.register(1);
    world.delete(1);
    world.store();
    let mut world = world.restart(two(25));
    assert_eq!(subnets(&world.register(2).unwrap())[1], "20.0.0.0/25");
    world.store();
    let none = Network { overlays: vec![overlay("kept", "20.1.0.0/23")], ..two(24) };
    let mut world = world.restart(none);
    world.register(1);
    world.store();
    let StoredRecord::Agent(Ok(Record::Agent(record))) = &world.records[&Key::Agent(ip(1))] else {
        panic!("no record of an agent")
    };
    assert_eq!(record.overlays.len(), 1, "{record:?}");
}

#[test]
fn release_withdraws_unstored_assignments() {
    let mut world = World::new(small("44.128.0.0/30", "20.0.0.0/23"));
    world.register(1);
    world.store();
    world.delete(1);
    assert_eq!(world.withdrawn, BTreeSet::new(), "the stored assignments are not withdrawn");
    world.store();
    // The agent is released before its record is durable, and the next agent gets the last
    // addresses.
    let first = world.register(2).unwrap();
    world.register(3);
    world.delete(3);
    world.delete(9);
    assert_eq!(world.withdrawn, BTreeSet::from([ip(3)]));
    let fourth = world.register(4).unwrap();
    assert_ne!(subnets(&fourth), subnets(&first));
    // A returning agent is sent its assignments again.
    world.delete(4);
    assert_eq!(world.withdrawn, BTreeSet::from([ip(3), ip(4)]));
    assert_eq!(world.register(4), Some(fourth));
}

#[test]
fn released_addresses_are_reused_last_oldest_first() {
    // Four subnets.
    let mut world = World::new(small("44.128.0.0/16", "20.0.0.0/22"));
    for agent in 1..=3 {
        world.register(agent);
    }
    for agent in [2, 1] {
        world.now.unix += 10;
        world.delete(agent);
    }
    world.store();
    assert_eq!(subnets(&world.register(4).unwrap()), ["20.0.3.0/24"], "the unused subnet");
    world.store();
    let mut world = world.restart(small("44.128.0.0/16", "20.0.0.0/22"));
    world.now.unix += 3600;
    assert_eq!(
        subnets(&world.register(5).unwrap()),
        ["20.0.1.0/24"],
        "the subnet that was freed first"
    );
    assert_eq!(world.health().counters.early_reuses, 1, "3590 seconds are not an hour");
    assert_eq!(subnets(&world.register(6).unwrap()), ["20.0.0.0/24"]);
    assert_eq!(subnets(&world.register(7).unwrap()), [""; 0], "no subnet is left");
    // An agent that returns too late gets its former VTEP, and no subnet.
    let late = world.register(2).unwrap();
    assert_eq!(late, []);
}

#[test]
fn reused_address_is_removed_from_released_record() {
    let mut world = World::new(small("44.128.0.0/30", "20.0.0.0/23"));
    world.register(1);
    world.register(2);
    world.delete(1);
    world.store();
    world.register(3);
    world.store();
    assert_eq!(world.agents(), [ip(2), ip(3)]);
    assert_eq!(world.register(1), None);
}

#[test]
fn failed_commit_reloads_state_and_sends_nothing() {
    let mut world = World::new(network());
    let first = world.register(1).unwrap();
    world.store();
    world.message(1, report(&first, &Status::Ok));
    world.register(2);
    world.writing = None;
    let failed = StoreError::Failed {
        store: "file:/var/lib/x".to_owned(),
        action: "commit",
        reason: "no space left on device".to_owned(),
    };
    let dropped = ["internal/register_agent_messages_dropped"];
    assert_eq!(world.metrics(dropped), [0]);
    world.handle(Event::Committed(Err(failed)));
    assert_eq!(world.metrics(dropped), [1], "agent 2 is not answered, agent 1 was");
    assert_eq!(world.abandoned, ["the state could not be written: ask again"]);
    let health = world.health();
    assert_eq!(health.status, Condition::Failed);
    assert_eq!(health.problems, ["file:/var/lib/x: commit: no space left on device"]);
    let unavailable = Reply::Unavailable(health.problems[0].clone());
    assert_eq!(world.request(Request::State).0, unavailable);
    assert_eq!(world.request(Request::DeleteAgents(vec![ip(1)])).0, unavailable);

    // Registrations in between are answered when the state is loaded.
    assert_eq!(world.register(3), None);
    assert_eq!(world.register(3), None);
    let loads = world.loads;
    world.now.elapsed = world.master.next_timeout().unwrap();
    world.handle(Event::Timeout);
    assert_eq!((world.loads, world.master.next_timeout()), (loads + 1, None));
    let before = world.sent.len();
    world.load();
    assert_eq!(world.sent.len(), before + 1, "one answer to both registrations");
    // The first agent does not notice the failure, and does not report again.
    let statuses = |world: &mut World| {
        let agents = world.state().agents.clone();
        let first = agents.iter().find(|agent| agent.ip == ip(1)).unwrap().overlays.clone();
        first.into_iter().map(|overlay| overlay.status).collect::<Vec<_>>()
    };
    assert_eq!(statuses(&mut world), [Some(Status::Ok), Some(Status::Ok)]);
    world.store();
    assert_eq!(world.agents(), [ip(1), ip(3)]);
    assert_eq!(subnets(&world.register(2).unwrap())[0], "192.168.2.0/24");
}

#[test]
fn conflicting_records_are_quarantined() {
    let mut world = World::new(network());
    for agent in 1..=3 {
        world.register(agent);
    }
    world.store();
    let first = world.records[&Key::Agent(ip(1))].clone();
    world.records.insert(Key::Agent(ip(2)), first);
    world.records.insert(
        Key::Agent(ip(4)),
        StoredRecord::Agent(Err(UnreadableRecord("garbage".to_owned()))),
    );
    let mut world = world.restart(network());
    let shown: Vec<usize> = world.state().agents.iter().map(|agent| agent.overlays.len()).collect();
    assert_eq!(shown, [2, 0, 2, 0], "quarantined agents are shown without overlays");
    assert_eq!(world.register(2), None);
    assert_eq!(world.register(4), None);
    assert!(world.register(1).is_some() && world.register(3).is_some());
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert_eq!(health.problems.len(), 2, "{:?}", health.problems);
    assert!(
        health.problems[0].starts_with("agent 10.0.0.2 is not served: "),
        "{:?}",
        health.problems
    );
    assert!(health.problems[1].contains("its record is unreadable: "), "{:?}", health.problems);
    assert_eq!(world.writing, None, "the records stay unchanged in the store");
    // The operator releases the agent.
    world.delete(2);
    assert!(world.register(2).is_some());
    assert_eq!(world.health().problems.len(), 1);
}

#[test]
fn subnet_outside_configuration_is_kept_and_reported() {
    let mut world = World::new(network());
    let before = world.register(1).unwrap();
    world.register(2);
    world.store();
    let mut moved = network();
    moved.overlays[0] = overlay("vxlan-1", "20.0.0.0/8");
    moved.overlays.remove(1);
    let mut world = world.restart(moved);
    assert_eq!(subnets(&world.register(1).unwrap()), [""; 0]);
    assert_eq!(subnets(&world.register(3).unwrap()), ["20.0.0.0/24"]);
    assert_eq!(world.health().problems.len(), 2, "{:?}", world.health().problems);
    world.store();
    let mut world = world.restart(network());
    assert_eq!(world.register(1).unwrap(), before, "the subnet is served again");
}

#[test]
fn addresses_of_quarantined_record_stay_reserved() {
    let mut world = World::new(network());
    let before = world.register(1).unwrap();
    world.store();
    // The operator moves the VTEP subnet: no agent can be served. Its containers keep running.
    let moved = || Network { vtep_subnet: "44.129.0.0/16".parse().unwrap(), ..network() };
    let mut world = world.restart(moved());
    assert_eq!(world.register(1), None);
    let other = world.register(2).unwrap();
    assert_eq!(subnets(&other), ["192.168.1.0/24", "192.168.129.0/24"]);
    world.store();
    let mut repaired = World::restored(network(), world.records.clone(), world.version);
    repaired.load();
    assert_eq!(repaired.register(1).unwrap(), before);

    // Alternatively the operator releases the agent.
    world.delete(1);
    let in_use: Vec<u128> = world.health().pools.iter().map(|pool| pool.in_use).collect();
    assert_eq!(in_use, [1; 5], "the allocations of the other agent");
    assert_eq!(subnets(&world.register(1).unwrap()), subnets(&before), "its released addresses");
}

#[test]
fn release_partly_conflicting_overlay_leaks_nothing() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    let mut moved = network();
    moved.overlays[1].range6 = range("fd01:c::/64", 80);
    let mut world = world.restart(moved);
    assert_eq!(world.health().problems.len(), 1);
    world.delete(1);
    let in_use: Vec<u128> = world.health().pools.iter().map(|pool| pool.in_use).collect();
    assert_eq!(in_use, [0; 5]);
}

/// A step of a random cluster.
#[derive(Debug, Clone)]
enum Step {
    Register(u8, bool),
    Delete(u8),
    Store,
    Fail,
    Restart,
}

/// The addresses that were sent to an agent: its VTEP, and its subnet of each overlay.
type SentAddresses = (String, BTreeMap<OverlayName, Subnet>);

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u8..12, any::<bool>()).prop_map(|(agent, subnet)| Step::Register(agent, subnet)),
        2 => (1_u8..12).prop_map(Step::Delete),
        3 => Just(Step::Store),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// For every sequence of steps: sent addresses are stored, no two agents have the same, and the
    /// addresses of an agent change only after its release.
    #[test]
    fn sent_assignments_are_stored_and_distinct(steps in prop::collection::vec(step(), 1..60)) {
        // Eight subnets and six VTEPs for eleven agents.
        let tight = || small("44.128.0.0/29", "20.0.0.0/21");
        let mut world = World::new(tight());
        let mut addresses_by_agent: BTreeMap<Ipv4Addr, SentAddresses> = BTreeMap::new();
        for step in steps {
            world.now.unix += 1;
            match step {
                Step::Register(agent, allocate_subnet) => {
                    let options = AgentOptions { allocate_subnet, ..AgentOptions::default() };
                    world.register_with(agent, options);
                }
                Step::Delete(agent) => {
                    addresses_by_agent.remove(&ip(agent));
                    world.sent.retain(|(to, ..)| *to != upid(agent));
                    let request = Request::DeleteAgents(vec![ip(agent)]);
                    world.handle(Event::Request(RequestId(1), request));
                    // A release that fails later leaves the agent unchanged.
                    world.store();
                }
                Step::Store => world.store(),
                Step::Fail => {
                    if world.writing.take().is_some() {
                        let demoted = StoreError::EpochEnded { store: "test".to_owned(), epoch: 1 };
                        world.handle(Event::Committed(Err(demoted)));
                    }
                    world.sent.retain(|(_, _, when)| *when <= world.version);
                    world.now.elapsed += Duration::from_secs(60);
                    world.handle(Event::Timeout);
                    world.load();
                }
                Step::Restart => {
                    let sent = std::mem::take(&mut world.sent);
                    let durable = sent.into_iter().filter(|(_, _, when)| *when <= world.version);
                    let sent: Vec<_> = durable.collect();
                    world = world.restart(tight());
                    world.sent = sent;
                }
            }
            // The messages that are sent now.
            let version = world.version;
            for (to, message, _) in world.sent.extract_if(.., |(_, _, when)| *when <= version) {
                let Message::UpdateAgentOverlays(overlays) = message else { continue };
                let known = addresses_by_agent.entry(*to.address.ip()).or_default();
                for one in overlays {
                    let vtep = one.vtep.ip.to_string();
                    let is_kept = known.0.is_empty() || known.0 == vtep;
                    prop_assert!(is_kept, "{to}: {} became {vtep}", known.0);
                    known.0 = vtep;
                    if let Some(subnet) = one.subnet {
                        let before = known.1.insert(one.name().clone(), subnet);
                        prop_assert!(before.is_none_or(|before| before == subnet));
                    }
                }
            }
            let vteps = addresses_by_agent.values().map(|known| &known.0);
            let vteps: Vec<&String> = vteps.filter(|vtep| !vtep.is_empty()).collect();
            prop_assert_eq!(vteps.iter().collect::<BTreeSet<_>>().len(), vteps.len());
            let subnets: Vec<&Subnet> =
                addresses_by_agent.values().flat_map(|known| known.1.values()).collect();
            prop_assert_eq!(subnets.iter().collect::<BTreeSet<_>>().len(), subnets.len());
        }
        // The store has the sent addresses.
        let mut world = world.restart(tight());
        let state = world.state();
        for (ip, known) in addresses_by_agent.iter().filter(|(_, known)| !known.0.is_empty()) {
            let agent = state.agents.iter().find(|agent| agent.ip == *ip).unwrap();
            for (name, subnet) in &known.1 {
                let one = agent.overlays.iter().find(|one| one.name() == name).unwrap();
                prop_assert_eq!(one.subnet, Some(*subnet));
                prop_assert_eq!(one.vtep.ip.to_string(), known.0.clone());
            }
        }
    }
}

#[test]
fn metrics_follow_state() {
    const STATE: [&str; 6] =
        ["recovering", "status/ok", "status/degraded", "agents/ok", "agents/unreported", "version"];
    let small = small("44.128.0.0/29", "192.168.0.0/23");
    let mut world = World::restored(small.clone(), BTreeMap::new(), Version(0));
    assert_eq!(world.metrics(STATE), [1, 0, 0, 0, 0, 0]);
    world.load();
    assert_eq!(world.metrics(STATE), [0, 1, 0, 0, 0, 0]);
    let mut reported = world.register(1).unwrap();
    world.store();
    assert_eq!(world.metrics(STATE), [0, 1, 0, 0, 1, 1]);
    reported[0].status = Some(Status::Ok);
    world.message(1, Message::AgentRegistered(reported));
    world.register(2);
    assert_eq!(world.metrics(STATE), [0, 1, 0, 1, 1, 1]);
    world.register(3);
    assert_eq!(world.metrics(["status/degraded", "subnet_allocation_failures"]), [1, 1]);

    let Reply::Metrics(snapshot) = world.request(Request::Metrics).0 else {
        panic!("no metrics");
    };
    assert_eq!(snapshot.metrics, world.master.metrics());
    let pools: Vec<String> = snapshot
        .configured
        .iter()
        .flat_map(|family| family.series.iter().map(|series| (family.name, series)))
        .map(|(name, series)| {
            format!("{name} {} {} {}", series.labels[0].1, series.labels[1].1, series.value)
        })
        .collect();
    assert_eq!(
        pools,
        [
            "pool_in_use vtep 44.128.0.0/29 3",
            "pool_in_use net 192.168.0.0/23 2",
            "pool_capacity vtep 44.128.0.0/29 6",
            "pool_capacity net 192.168.0.0/23 2",
        ]
    );
}

#[test]
fn ignored_messages_are_counted_by_kind() {
    let mut world = World::new(network());
    let from = upid(9);
    assert!(world.master.accepts(&from, MessageKind::RegisterAgent));
    assert!(!world.master.accepts(&from, MessageKind::AgentRegistered));
    for kind in MessageKind::ALL {
        if !world.master.accepts(&from, kind) {
            world.handle(Event::Ignored { from: from.clone(), kind });
        }
    }
    let counters = world.health().counters;
    assert_eq!(counters.agent_registered_messages_dropped, 1);
    assert_eq!(counters.request_peers_messages_dropped, 1);
    assert_eq!(counters.unexpected_messages, 4);
    world.register(9).unwrap();
    assert!(world.master.accepts(&from, MessageKind::AgentRegistered));
    assert!(world.master.accepts(&from, MessageKind::RequestPeers));
    assert!(!world.master.accepts(&from, MessageKind::UpdatePeers));
}
