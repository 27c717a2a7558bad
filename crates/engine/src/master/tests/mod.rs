//! Tests of the whole master: events, and the exact commands that follow. The store is a map that
//! the tests can make fail.

mod address_counts;
mod allocations;
mod authentication;
mod configuration;
mod contacts;
mod leadership;
mod leases;
mod overlapping_records;
mod peer_failures;
mod peers;
mod recovery;
mod refused;
mod registrations;
mod reloads;
mod reports;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use overlay_types::addr::{OverlayName, Subnet, agent_upid};
use overlay_types::protocol::{
    AddressRange, AuthenticateAgent, MasterKind, Overlay, State, Status, Vxlan,
};
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

/// Returns a body with the approximate length of an update on the wire.
fn encode_update(update: &PeersUpdate, form: UpdateForm) -> Arc<[u8]> {
    let peers = update.changed.values();
    let subnets: usize = peers.map(|info| info.peer.subnets.len()).sum();
    let plain = 40 * update.changed.len() + 12 * subnets + 6 * update.removed.len();
    let length = match form {
        UpdateForm::Plain => plain,
        UpdateForm::Compact => plain / 20,
    };
    vec![0; 30 + length].into()
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
    peer_updates: Vec<(Vec<Upid>, EncodedUpdate, Version)>,
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
    /// The requests for a session that the master answers.
    challenged: Vec<(Upid, AuthenticateAgent)>,
    /// The secrets that the master uses one after the other.
    secrets: Vec<Option<Arc<SharedSecrets>>>,
}

impl World {
    fn new(network: Network) -> Self {
        let mut world = Self::restored(network, BTreeMap::new(), Version(0));
        world.load();
        world
    }

    fn restored(network: Network, records: BTreeMap<Key, StoredRecord>, version: Version) -> Self {
        let settings = Settings {
            network: Arc::new(network),
            reuse_after: Duration::from_secs(3600),
            kind: MasterKind::Module,
            authentication: None,
        };
        Self::with_settings(settings, records, version)
    }

    fn with_settings(
        settings: Settings,
        records: BTreeMap<Key, StoredRecord>,
        version: Version,
    ) -> Self {
        let mut world = Self {
            master: Master::new(settings, encode_update, 1),
            now: Now { elapsed: Duration::ZERO, unix: 1_700_000_000 },
            records,
            version,
            writing: None,
            sent: Vec::new(),
            peer_updates: Vec::new(),
            replies: Vec::new(),
            abandoned: Vec::new(),
            withdrawn: BTreeSet::new(),
            loads: 0,
            rereads: Vec::new(),
            links: Vec::new(),
            challenged: Vec::new(),
            secrets: Vec::new(),
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
                Command::Challenge { to, request } => self.challenged.push((to, request)),
                Command::SetSecrets(secrets) => self.secrets.push(secrets),
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
                Command::SendPeers { to, update, when } => {
                    self.peer_updates.push((to, update, when));
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
            Message::UpdateAgentOverlays { overlays, .. } => Some(overlays.clone()),
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
        let settings = Settings {
            network: Arc::new(network),
            reuse_after,
            kind: MasterKind::Module,
            authentication: None,
        };
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
