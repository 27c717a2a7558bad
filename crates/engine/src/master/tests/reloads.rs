//! Concurrent reloads, previews of an earlier term, and replies that wait while agents are released.

use super::super::durability_gate::{DurabilityGate, PendingSend};
use super::*;

fn with_overlay(name: &str, subnet: &str) -> Network {
    let mut changed = network();
    changed.overlays.push(overlay(name, subnet));
    changed
}

fn settings(network: Network) -> Result<Settings, Vec<String>> {
    Ok(Settings {
        network: Arc::new(network),
        reuse_after: Duration::from_secs(3600),
        kind: MasterKind::Module,
        authentication: None,
    })
}

impl World {
    fn take_changes(&mut self) -> Vec<Vec<String>> {
        let replies = std::mem::take(&mut self.replies).into_iter();
        let changes = replies.map(|(reply, _)| match reply {
            Reply::Effect(effect) => effect.changes,
            Reply::Unavailable(reason) => vec![reason],
            other => panic!("{other:?} instead of the effect"),
        });
        changes.collect()
    }
}

#[test]
fn concurrent_reloads_are_read_in_order() {
    let mut world = World::new(network());
    for id in [1, 2, 3] {
        world.handle(Event::Request(RequestId(id), Request::Reload));
    }
    assert_eq!(world.rereads, [RequestId(1)], "one configuration is read at a time");
    let added = "overlay a is added: 10.1.0.0/16 in /24".to_owned();
    world.handle(Event::ConfigRead(RequestId(1), settings(with_overlay("a", "10.1.0.0/16"))));
    assert_eq!((world.take_changes(), world.rereads.len()), (vec![vec![added]], 2));
    world.handle(Event::ConfigRead(RequestId(2), Err(vec!["line 3".to_owned()])));
    assert!(matches!(world.replies.pop(), Some((Reply::Misconfigured(_), _))));
    let last = with_overlay("b", "10.2.0.0/16");
    world.handle(Event::ConfigRead(RequestId(3), settings(last.clone())));
    let changes = world.take_changes().concat();
    assert_eq!(
        changes,
        ["overlay b is added: 10.2.0.0/16 in /24", "overlay a is removed"],
        "each answer has the changes that its own request made"
    );
    assert_eq!(*world.state().network, last, "the last request wins");
    world.handle(Event::Request(RequestId(4), Request::Reload));
    assert_eq!(world.rereads.last(), Some(&RequestId(4)));
}

#[test]
fn configuration_that_is_read_too_slowly_is_not_applied() {
    let mut world = World::new(network());
    world.handle(Event::Request(RequestId(1), Request::Reload));
    world.now.elapsed += Duration::from_secs(60);
    world.handle(Event::Request(RequestId(2), Request::Reload));
    assert_eq!(world.rereads, [RequestId(1), RequestId(2)]);
    world.handle(Event::ConfigRead(RequestId(2), settings(with_overlay("a", "10.1.0.0/16"))));
    world.handle(Event::ConfigRead(RequestId(1), settings(network())));
    let reason = "the configuration was read too slowly, and a later request was served";
    assert_eq!(world.take_changes()[1], [reason]);
    assert_eq!(world.state().network.overlays.len(), 3);
}

#[test]
fn slow_configuration_does_not_end_later_reading() {
    let mut world = World::new(network());
    world.handle(Event::Request(RequestId(1), Request::Reload));
    world.now.elapsed += Duration::from_secs(60);
    world.handle(Event::Request(RequestId(2), Request::Reload));
    world.handle(Event::ConfigRead(RequestId(1), settings(with_overlay("a", "10.1.0.0/16"))));
    assert_eq!(world.state().network.overlays.len(), 2);
    world.replies.clear();
    let last = with_overlay("b", "10.2.0.0/16");
    world.handle(Event::ConfigRead(RequestId(2), settings(last.clone())));
    assert_eq!(world.take_changes(), [["overlay b is added: 10.2.0.0/16 in /24"]]);
    assert_eq!(*world.state().network, last);
}

#[test]
fn request_behind_hung_reading_is_served_after_a_minute() {
    let mut world = World::new(network());
    world.handle(Event::Request(RequestId(1), Request::Reload));
    world.now.elapsed += Duration::from_secs(5);
    assert_eq!(world.master.next_timeout(), None);
    world.handle(Event::Request(RequestId(2), Request::Reload));
    assert_eq!(world.master.next_timeout(), Some(Duration::from_secs(60)));
    world.now.elapsed = Duration::from_secs(60);
    world.handle(Event::Timeout);
    assert_eq!(world.rereads, [RequestId(1), RequestId(2)]);
    world.handle(Event::ConfigRead(RequestId(2), settings(with_overlay("a", "10.1.0.0/16"))));
    assert_eq!(world.state().network.overlays.len(), 3);
    assert_eq!(world.master.next_timeout(), None);
}

#[test]
fn requests_behind_hung_reading_are_bounded() {
    let mut world = World::new(network());
    for id in 1..=102 {
        world.handle(Event::Request(RequestId(id), Request::Reload));
    }
    let reason = "too many requests wait for the configuration: see whether its file can be read";
    assert_eq!(world.take_changes(), [[reason]]);
}

#[test]
fn preview_of_earlier_term_is_not_answered() {
    let mut world = World::new(network());
    world.register(1);
    let network = Box::new(with_overlay("a", "10.1.0.0/16"));
    world.master.handle(world.now, Event::Request(RequestId(7), Request::Preview(network)));
    let commands: Vec<Command> = std::iter::from_fn(|| world.master.poll_command()).collect();
    let job = commands.into_iter().find_map(|command| match command {
        Command::Preview { job, .. } => Some(job),
        _ => None,
    });
    let effect = Box::new(job.unwrap().run());
    assert_eq!(effect.agents.len(), 1, "the effect shows an agent that is not stored");
    // The commit fails, so the agent was never registered.
    world.writing = None;
    let error = StoreError::Failed { store: "s".into(), action: "commit", reason: "full".into() };
    world.handle(Event::Committed(Err(error)));
    world.load();
    world.handle(Event::Previewed(RequestId(7), effect));
    let reason = "the state was read again meanwhile: ask again";
    assert_eq!(world.take_changes(), [[reason]]);
}

#[test]
fn pending_state_and_peers_do_not_show_released_agent() {
    let mut world = World::new(network());
    world.register(1);
    world.register(2);
    let (state, when) = world.request(Request::State);
    assert_eq!(when, Version(2));
    let peer = |agent| (ip(agent), world.master.peer_of(ip(agent)));
    let update = |agents: &[u8]| {
        let changed = agents.iter().map(|agent| peer(*agent)).collect();
        let update = Arc::new(PeersUpdate { changed, ..PeersUpdate::default() });
        let body = encode_update(&update, UpdateForm::Plain);
        PendingSend::Peers(vec![upid(9)], EncodedUpdate::new(update, body))
    };
    let mut gate = DurabilityGate::new();
    gate.hold(when, PendingSend::Reply(RequestId(1), state));
    gate.hold(when, update(&[1, 2]));
    gate.hold(when, update(&[1]));
    let other = update(&[1]);
    world.delete(2);
    assert_eq!(world.withdrawn, BTreeSet::from([ip(2)]));
    gate.withdraw(&world.withdrawn);
    gate.observe(&Event::Committed(Ok(when)));
    let sent: Vec<PendingSend> = gate.release().collect();
    let [PendingSend::Reply(_, Reply::State(state)), peers] = &sent[..] else { panic!("{sent:?}") };
    let shown: Vec<Ipv4Addr> = state.agents.iter().map(|agent| agent.ip).collect();
    assert_eq!((shown, peers), (vec![ip(1)], &other));
    // A stored agent that is released while another commit is under way.
    world.store();
    world.withdrawn.clear();
    world.register(3);
    world.delete(1);
    assert_eq!(world.withdrawn, BTreeSet::from([ip(1)]));
}
