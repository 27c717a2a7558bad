//! A master that waits for its election: exactly what it wants done, command by command.

use super::*;

/// A master that was not elected yet.
struct Candidate {
    master: Master,
    now: Now,
}

impl Candidate {
    fn new() -> Self {
        let settings =
            Settings { network: Arc::new(network()), reuse_after: Duration::from_secs(3600) };
        let now = Now { elapsed: Duration::ZERO, unix: 1_700_000_000 };
        Self { master: Master::standing_by(settings, 1), now }
    }

    /// What the master wants done after `event`.
    fn after(&mut self, event: Event) -> Vec<String> {
        self.master.handle(self.now, event);
        std::iter::from_fn(|| self.master.poll_command())
            .map(|command| match command {
                Command::Reply { reply: Reply::Unavailable(reason), .. } => reason,
                other => other.to_string(),
            })
            .collect()
    }

    fn registers(&mut self, agent: u8) -> Vec<String> {
        let message = Message::RegisterAgent(AgentOptions::default());
        self.after(Event::Message { from: upid(agent), message })
    }

    fn asked(&mut self, request: Request) -> Vec<String> {
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
    Event::Loaded(Ok(Loaded { epoch, version, records: Vec::new() }))
}

fn committed(version: u64) -> Event {
    Event::Committed(Ok(Version(version)))
}

fn deposed(epoch: u64) -> StoreError {
    StoreError::Deposed { store: "zk://a/x".to_owned(), epoch }
}

const NOTHING: [&str; 0] = [];
const ABANDON: &str =
    "abandon what is held back: this is not the leading master: ask the one that leads";

#[test]
fn the_state_is_read_when_the_master_begins_to_lead_and_not_before() {
    let mut candidate = Candidate::new();
    assert_eq!(candidate.after(Event::Timeout), NOTHING);
    assert_eq!(candidate.after(Event::Leading(false)), NOTHING);
    assert_eq!(candidate.registers(1), NOTHING);
    assert_eq!(candidate.health(), (Condition::Standby, Vec::new()));
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
    assert_eq!(candidate.health(), (Condition::Recovering, Vec::new()));
    assert_eq!(candidate.after(Event::Leading(true)), NOTHING, "it is known");
    assert_eq!(candidate.registers(2), NOTHING);
    assert_eq!(
        candidate.after(loaded(7, 41)),
        [
            "send UpdateAgentOverlaysMessage of 2 overlays to overlay-agent@10.0.0.2:5051 when \
             version 42 is durable",
            "commit 2 changes in epoch 7",
        ],
        "who registered meanwhile is answered; who did before asks again"
    );
    assert_eq!(candidate.health(), (Condition::Ok, Vec::new()));
}

#[test]
fn a_master_that_does_not_lead_serves_nothing_and_says_so() {
    let mut candidate = Candidate::new();
    let words = ["this is not the leading master: ask the one that leads"];
    assert_eq!(candidate.asked(Request::State), words);
    assert_eq!(candidate.asked(Request::DeleteAgents(vec![ip(1)])), words);
    assert_eq!(candidate.registers(1), NOTHING);
    let from = upid(1);
    let message = Message::AgentRegistered(Vec::new());
    assert_eq!(candidate.after(Event::Message { from, message }), NOTHING);
    let counters = candidate.master.metrics().counters;
    assert_eq!(counters.register_agent_messages_dropped, 1);
    assert_eq!(counters.agent_registered_messages_dropped, 1);
}

#[test]
fn who_steps_down_drops_what_waits_and_forgets_what_it_knew() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    candidate.after(loaded(1, 0));
    candidate.registers(1);
    candidate.after(committed(1));
    candidate.registers(2);
    assert_eq!(candidate.after(Event::Leading(false)), [ABANDON]);
    assert_eq!(candidate.health(), (Condition::Standby, Vec::new()));
    assert_eq!(candidate.master.metrics().agents.total, 0);
    assert_eq!(candidate.registers(1), NOTHING, "another master may have moved it");
    assert_eq!(candidate.after(Event::Leading(false)), NOTHING);
    // What it was writing when it was deposed.
    assert_eq!(candidate.after(committed(2)), NOTHING);
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
}

#[test]
fn the_store_is_done_with_the_earlier_tenure_before_the_state_is_read_anew() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    // Still being read when it steps down and leads again: another one may have written meanwhile.
    assert_eq!(candidate.after(Event::Leading(false)), [ABANDON]);
    assert_eq!(candidate.after(Event::Leading(true)), NOTHING, "there is one job at a time");
    assert_eq!(candidate.registers(1), NOTHING);
    assert_eq!(candidate.after(loaded(1, 10)), ["load"], "that one is too old");
    let said = candidate.after(loaded(3, 15));
    assert_eq!(said.last().unwrap(), "commit 2 changes in epoch 3");

    // The same with a commit, whose end says nothing of this tenure, be it good or bad.
    for end in [committed(16), Event::Committed(Err(deposed(3)))] {
        let mut candidate = Candidate::new();
        candidate.after(Event::Leading(true));
        candidate.after(loaded(3, 15));
        candidate.registers(1);
        candidate.after(Event::Leading(false));
        assert_eq!(candidate.after(Event::Leading(true)), NOTHING);
        assert_eq!(candidate.after(end), ["load"]);
        assert_eq!(candidate.health(), (Condition::Recovering, Vec::new()));
    }
}

#[test]
fn who_is_deposed_by_the_store_gives_the_election_time() {
    let mut candidate = Candidate::new();
    candidate.after(Event::Leading(true));
    candidate.after(loaded(1, 0));
    candidate.registers(1);
    assert_eq!(candidate.after(Event::Committed(Err(deposed(1)))), [ABANDON]);
    let problem = "zk://a/x: another master has taken over: epoch 1 has ended: soon it is read \
                   again, unless another master is elected";
    assert_eq!(candidate.health(), (Condition::Standby, vec![problem.to_owned()]));
    assert!(candidate.master.next_timeout().is_some(), "the election may stay as it is");
    assert_eq!(candidate.registers(1), NOTHING);
    assert_eq!(candidate.after(Event::Leading(false)), NOTHING);
    assert_eq!(candidate.health(), (Condition::Standby, Vec::new()));
    assert_eq!(candidate.master.next_timeout(), None, "the election has another leader");
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
    // The store may say so when the state is read, too; and the election may repeat itself.
    assert_eq!(candidate.after(Event::Loaded(Err(deposed(2)))), [ABANDON]);
    assert_eq!(candidate.after(Event::Leading(true)), ["load"]);
    assert_eq!(candidate.after(loaded(3, 5)), NOTHING);
    assert_eq!(candidate.health().0, Condition::Ok);
}

#[test]
fn without_an_election_a_deposed_master_reads_the_state_again() {
    let mut world = World::new(network());
    world.register(1);
    world.handle(Event::Committed(Err(deposed(1))));
    assert_eq!(world.health().status, Condition::Failed);
    assert_eq!(world.abandoned.len(), 1);
    world.now.elapsed = world.master.next_timeout().unwrap();
    world.handle(Event::Timeout);
    assert_eq!(world.loads, 2);
}

#[test]
fn a_store_that_fails_is_tried_again_only_as_long_as_the_master_leads() {
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
    assert_eq!(candidate.after(Event::Leading(true)), ["load"], "at once, when it leads again");
}
