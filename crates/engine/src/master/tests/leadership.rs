//! A master with an election: its exact commands after every event.

use super::*;

/// A master that is not elected yet.
struct Candidate {
    master: Master,
    now: Now,
}

impl Candidate {
    fn new() -> Self {
        let settings = Settings {
            network: Arc::new(network()),
            reuse_after: Duration::from_secs(3600),
            kind: MasterKind::Module,
            authentication: None,
        };
        let now = Now { elapsed: Duration::ZERO, unix: 1_700_000_000 };
        Self { master: Master::standing_by(settings, encode_update, 1), now }
    }

    /// Returns the commands of the master after `event`.
    fn after(&mut self, event: Event) -> Vec<String> {
        self.master.handle(self.now, event);
        std::iter::from_fn(|| self.master.poll_command())
            .map(|command| match command {
                Command::Reply { reply: Reply::Unavailable(reason), .. } => reason,
                other => other.to_string(),
            })
            .collect()
    }

    fn register(&mut self, agent: u8) -> Vec<String> {
        let message = Message::RegisterAgent(AgentOptions::default());
        self.after(Event::Message { from: upid(agent), message })
    }

    fn request(&mut self, request: Request) -> Vec<String> {
        self.after(Event::Request(RequestId(1), request))
    }

    fn health(&mut self) -> (Condition, Vec<String>) {
        self.master.handle(self.now, Event::Request(RequestId(1), Request::Health));
        match self.master.poll_command() {
            Some(Command::Reply { reply: Reply::Health(health), .. }) => {
                (health.status, health.problems)
            }
            other => panic!("{other:?} instead of the health"),
        }
    }
}

fn loaded(epoch: u64, version: u64) -> Event {
    let (epoch, version) = (Epoch(epoch), Version(version));
    Event::Loaded(Ok(LoadedState { epoch, version, agents: Vec::new(), history: Vec::new() }))
}

fn committed(version: u64) -> Event {
    Event::Committed(Ok(Version(version)))
}

fn epoch_ended(epoch: u64) -> StoreError {
    StoreError::EpochEnded { store: "zk://a/x".to_owned(), epoch }
}

const NOTHING: [&str; 0] = [];
const ABANDON: &str =
    "abandon pending sends: this is not the leading master, and it knows no master that leads";

#[test]
fn state_is_loaded_after_election() {
    let mut candidate = Candidate::new();
    assert_eq!(candidate.after(Event::Timeout), NOTHING);
    assert_eq!(candidate.after(Event::Leading(false)), NOTHING);
    assert_eq!(candidate.register(1), NOTHING);
    assert_eq!(candidate.health(), (Condition::Standby, Vec::new()));
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
    assert_eq!(candidate.health(), (Condition::Recovering, Vec::new()));
    assert_eq!(candidate.after(Event::Leading(true)), NOTHING, "the master leads already");
    assert_eq!(candidate.register(2), NOTHING);
    assert_eq!(
        candidate.after(loaded(7, 41)),
        [
            "send UpdateAgentOverlaysMessage of 2 overlays to overlay-agent@10.0.0.2:5051 when \
             version 42 is durable",
            "commit 2 changes in epoch 7",
        ],
        "the registration during the load is answered, the earlier one is not"
    );
    assert_eq!(candidate.health(), (Condition::Ok, Vec::new()));
}

#[test]
fn standby_master_refuses_requests() {
    let mut candidate = Candidate::new();
    let reason = ["this is not the leading master, and it knows no master that leads"];
    assert_eq!(candidate.request(Request::State), reason);
    assert_eq!(candidate.request(Request::DeleteAgents(vec![ip(1)])), reason);
    assert_eq!(candidate.register(1), NOTHING);
    let from = upid(1);
    let message = Message::AgentRegistered(Vec::new());
    assert_eq!(candidate.after(Event::Message { from, message }), NOTHING);
    let counters = candidate.master.metrics().counters;
    assert_eq!(counters.register_agent_messages_dropped, 1);
    assert_eq!(counters.agent_registered_messages_dropped, 1);
}

#[test]
fn demotion_drops_pending_sends_and_state() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    candidate.after(loaded(1, 0));
    candidate.register(1);
    candidate.after(committed(1));
    candidate.register(2);
    assert_eq!(candidate.after(Event::Leading(false)), [ABANDON]);
    assert_eq!(candidate.health(), (Condition::Standby, Vec::new()));
    assert_eq!(candidate.master.metrics().agents.total, 0);
    assert_eq!(candidate.register(1), NOTHING, "another master may have changed its addresses");
    assert_eq!(candidate.after(Event::Leading(false)), NOTHING);
    // The result of the commit that was under way at the demotion.
    assert_eq!(candidate.after(committed(2)), NOTHING);
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
}

#[test]
fn load_waits_for_job_of_earlier_term() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    // The state is still being read at the next election: another master may have written
    // meanwhile.
    assert_eq!(candidate.after(Event::Leading(false)), [ABANDON]);
    assert_eq!(candidate.after(Event::Leading(true)), NOTHING, "there is one job at a time");
    assert_eq!(candidate.register(1), NOTHING);
    assert_eq!(candidate.after(loaded(1, 10)), ["load"], "this state may be outdated");
    let commands = candidate.after(loaded(3, 15));
    assert_eq!(commands.last().unwrap(), "commit 2 changes in epoch 3");

    // The result of a commit of the earlier term, success or failure, is ignored as well.
    for end in [committed(16), Event::Committed(Err(epoch_ended(3)))] {
        let mut candidate = Candidate::new();
        candidate.after(Event::Leading(true));
        candidate.after(loaded(3, 15));
        candidate.register(1);
        candidate.after(Event::Leading(false));
        assert_eq!(candidate.after(Event::Leading(true)), NOTHING);
        assert_eq!(candidate.after(end), ["load"]);
        assert_eq!(candidate.health(), (Condition::Recovering, Vec::new()));
    }
}

#[test]
fn demotion_by_store_waits_for_election() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    candidate.after(loaded(1, 0));
    candidate.register(1);
    assert_eq!(candidate.after(Event::Committed(Err(epoch_ended(1)))), [ABANDON]);
    let problem = "zk://a/x: another master has taken over: epoch 1 has ended: the state is \
                   read again soon, unless another master is elected";
    assert_eq!(candidate.health(), (Condition::Standby, vec![problem.to_owned()]));
    assert!(candidate.master.next_timeout().is_some(), "the election may not change");
    assert_eq!(candidate.register(1), NOTHING);
    assert_eq!(candidate.after(Event::Leading(false)), NOTHING);
    assert_eq!(candidate.health(), (Condition::Standby, Vec::new()));
    assert_eq!(candidate.master.next_timeout(), None, "the election has another leader");
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
    // The store may demote the master at a load as well, and the election may repeat its result.
    assert_eq!(candidate.after(Event::Loaded(Err(epoch_ended(2)))), [ABANDON]);
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
    assert_eq!(candidate.after(loaded(3, 5)), NOTHING);
    assert_eq!(candidate.health().0, Condition::Ok);
}

#[test]
fn demoted_master_without_election_reloads() {
    let mut world = World::new(network());
    world.register(1);
    world.handle(Event::Committed(Err(epoch_ended(1))));
    assert_eq!(world.health().status, Condition::Failed);
    assert_eq!(world.abandoned.len(), 1);
    world.now.elapsed = world.master.next_timeout().unwrap();
    world.handle(Event::Timeout);
    assert_eq!(world.loads, 2);
}

#[test]
fn lost_state_fails_leading_master_and_drops_pending_sends() {
    let error = StoreError::Failed {
        store: "file:state".to_owned(),
        action: "check",
        reason: "the file was removed".to_owned(),
    };
    let lost = || Event::StoreLost(error.clone());
    let mut candidate = Candidate::new();
    assert_eq!(candidate.after(lost()), NOTHING, "a standby master holds no state");
    candidate.after(Event::Leading(true));
    assert_eq!(candidate.after(lost()), NOTHING, "the load reports the loss");
    candidate.after(loaded(1, 5));
    candidate.register(1);
    assert_eq!(candidate.after(lost()), NOTHING, "the commit reports the loss");
    candidate.after(committed(6));
    assert_eq!(candidate.health().0, Condition::Ok);
    let abandon = "abandon pending sends: the state could not be written: ask again";
    assert_eq!(candidate.after(lost()), [abandon]);
    assert_eq!(candidate.health(), (Condition::Failed, vec![error.to_string()]));
    assert_eq!(candidate.register(2), NOTHING, "the registration waits");
    candidate.now.elapsed = candidate.master.next_timeout().unwrap();
    assert_eq!(candidate.after(Event::Timeout), ["load"]);
}

#[test]
fn failed_store_is_retried_only_while_leading() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    let error = StoreError::Failed {
        store: "zk://a/x".to_owned(),
        action: "load",
        reason: "connection lost".to_owned(),
    };
    assert_eq!(candidate.after(Event::Loaded(Err(error.clone()))), NOTHING);
    assert_eq!(candidate.health(), (Condition::Failed, vec![error.to_string()]));
    assert!(candidate.master.next_timeout().is_some());
    assert_eq!(candidate.after(Event::Leading(false)), [ABANDON]);
    assert_eq!(candidate.master.next_timeout(), None);
    assert_eq!(candidate.after(Event::Leading(true)), ["load"], "the load starts at once");
}

#[test]
fn standby_master_names_leader() {
    let mut candidate = Candidate::new();
    let leader = Leader { address: "10.0.0.2:5050".parse().unwrap(), id: Some("m-2".to_owned()) };
    let leader_in_health = |candidate: &mut Candidate| {
        candidate.master.handle(candidate.now, Event::Request(RequestId(1), Request::Health));
        match candidate.master.poll_command() {
            Some(Command::Reply { reply: Reply::Health(health), .. }) => health.leader,
            other => panic!("{other:?} instead of the health"),
        }
    };
    assert_eq!(candidate.after(Event::LeaderChanged(Some(leader.clone()))), NOTHING);
    assert_eq!(leader_in_health(&mut candidate), Some(leader));
    let reason = ["this is not the leading master: ask http://10.0.0.2:5050, which leads"];
    assert_eq!(candidate.request(Request::State), reason);
    assert_eq!(candidate.after(Event::LeaderChanged(None)), NOTHING);
    assert_eq!(leader_in_health(&mut candidate), None);
    candidate.after(Event::Leading(true));
    candidate.after(loaded(1, 0));
    let own = Leader { address: "10.0.0.1:5050".parse().unwrap(), id: None };
    candidate.after(Event::LeaderChanged(Some(own)));
    assert_eq!(leader_in_health(&mut candidate), None, "the leader itself");
}

#[test]
fn report_of_other_process_on_agent_host_is_dropped() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    candidate.after(loaded(1, 0));
    candidate.register(1);
    candidate.after(committed(1));
    let mut from = upid(1);
    from.address.set_port(from.address.port() + 1);
    let message = Message::AgentRegistered(Vec::new());
    assert_eq!(candidate.after(Event::Message { from, message }), NOTHING);
    let counters = candidate.master.metrics().counters;
    assert_eq!(counters.agent_registered_messages_dropped, 1);
    assert_eq!(counters.agent_registered_acknowledgements_sent, 0);
}

/// A load proves nothing about writes: a state that can be read and not written is not read again
/// every second.
#[test]
fn store_backoff_grows_until_commit_or_minute_of_work() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    candidate.after(loaded(1, 0));
    let fail = |candidate: &mut Candidate| {
        let (store, reason) = ("zk://a/x".to_owned(), "too large".to_owned());
        let error = StoreError::Failed { store, action: "commit", reason };
        candidate.after(Event::StoreLost(error));
        let due = candidate.master.next_timeout().expect("another load");
        let wait = due - candidate.now.elapsed;
        candidate.now.elapsed = due;
        assert_eq!(candidate.after(Event::Timeout), ["load"]);
        candidate.after(loaded(2, 0));
        wait
    };
    let first = Duration::from_secs(1);
    assert!(fail(&mut candidate) <= first);
    let waits: Vec<Duration> = (0..4).map(|_| fail(&mut candidate)).collect();
    assert!(waits[3] >= first * 8, "{waits:?}");
    candidate.register(1);
    candidate.after(committed(1));
    assert!(fail(&mut candidate) <= first, "a commit succeeded");
    assert!(fail(&mut candidate) >= first);
    candidate.now.elapsed += Duration::from_secs(60);
    assert!(fail(&mut candidate) <= first, "the state was in use for a minute");
}
