//! Agents that are forgotten, and the history of who had what.

use super::*;
use crate::protocol::{HistoryEntry, HistoryEvent};

impl World {
    fn forget(&mut self, agents: &[u8], force: bool, dry_run: bool) -> Vec<Fate> {
        let agents = agents.iter().map(|&agent| ip(agent)).collect();
        let forget = Forget { agents, force, dry_run };
        match self.request(Request::Forget(forget)) {
            (Reply::Fates(fates), when) => {
                let is_durable = self.writing.is_none();
                assert_eq!(when, if is_durable { self.version } else { self.version.next() });
                fates
            }
            other => panic!("{other:?} instead of the fates"),
        }
    }

    fn history(&mut self, agent: Option<u8>) -> Vec<HistoryEntry> {
        match self.request(Request::History(agent.map(ip))).0 {
            Reply::History(history) => history.entries().0,
            other => panic!("{other:?} instead of the history"),
        }
    }

    fn sleep(&mut self, seconds: u64) {
        self.now.elapsed += Duration::from_secs(seconds);
        self.now.unix += seconds;
    }
}

fn verdicts(fates: &[Fate]) -> Vec<(u8, Verdict, Option<u64>)> {
    let verdict = |fate: &Fate| (fate.ip.octets()[3], fate.result, fate.heard_seconds_ago);
    fates.iter().map(verdict).collect()
}

#[test]
fn an_agent_that_is_running_is_not_forgotten_unless_it_is_forced() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    world.sleep(29 * 60);
    assert_eq!(
        world.forget(&[1, 9], false, false),
        [
            Fate {
                vtep_ip: Some("44.128.0.1".to_owned()),
                subnets: ["192.168.0.0/24", "192.168.128.0/24", "fd01:b::/80"]
                    .map(str::to_owned)
                    .into(),
                result: Verdict::Running,
                heard_seconds_ago: Some(29 * 60),
                ..Fate::unknown(ip(1))
            },
            Fate::unknown(ip(9)),
        ]
    );
    assert_eq!(world.state().agents.len(), 1);
    // A report counts as much as a registration.
    world.message(1, report(&overlays, &Status::Ok));
    world.sleep(29 * 60);
    let running = (1, Verdict::Running, Some(29 * 60));
    assert_eq!(verdicts(&world.forget(&[1], false, true)), [running]);
    world.sleep(60);
    let gone = Some(30 * 60);
    assert_eq!(verdicts(&world.forget(&[1], false, true)), [(1, Verdict::WouldBeDeleted, gone)]);
    assert_eq!(world.writing, None, "nothing was done so far");
    assert_eq!(verdicts(&world.forget(&[1], false, false)), [(1, Verdict::Deleted, gone)]);
    world.store();
    assert_eq!(world.state().agents.len(), 0);

    world.register(2);
    world.store();
    let forced = [(2, Verdict::WouldBeDeleted, Some(0))];
    assert_eq!(verdicts(&world.forget(&[2], true, true)), forced);
    world.sleep(7);
    assert_eq!(verdicts(&world.forget(&[2], true, false)), [(2, Verdict::Deleted, Some(7))]);
    world.store();
    // Whether it was running is more than the master knows.
    let forced = world.history(Some(2)).pop().unwrap();
    assert_eq!(forced.reason, "it was forgotten by force, 7 s after it was last heard");
    let unforced = world.history(Some(1)).pop().unwrap();
    assert_eq!(unforced.reason, "it was forgotten");
}

#[test]
fn a_master_that_just_began_to_lead_does_not_know_who_is_running() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    let mut world = world.restart(network());
    assert_eq!(verdicts(&world.forget(&[1], false, true)), [(1, Verdict::MayBeRunning, None)]);
    assert_eq!(verdicts(&world.forget(&[1], true, true)), [(1, Verdict::WouldBeDeleted, None)]);
    world.sleep(120);
    assert_eq!(verdicts(&world.forget(&[1], false, true)), [(1, Verdict::WouldBeDeleted, None)]);
    let mut world = world.restart(network());
    assert_eq!(verdicts(&world.forget(&[1], true, false)), [(1, Verdict::Deleted, None)]);
    world.store();
    let forced = world.history(Some(1)).pop().unwrap();
    assert_eq!(forced.reason, "it was forgotten by force, before this master had heard it");
}

#[test]
fn an_agent_that_is_not_served_and_asks_for_it_is_running() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    let moved = Network { vtep_subnet: "44.129.0.0/16".parse().unwrap(), ..network() };
    let mut world = world.restart(moved);
    world.sleep(1000);
    world.register(1);
    let fates = world.forget(&[1], false, false);
    assert_eq!(verdicts(&fates), [(1, Verdict::Running, Some(0))]);
    let reason = "44.128.0.1 is no host address of the VTEP subnet 44.129.0.0/16";
    assert_eq!(fates[0].set_aside.as_deref(), Some(reason));
    assert_eq!(verdicts(&world.forget(&[1], true, false)), [(1, Verdict::Deleted, Some(0))]);
    assert!(world.register(1).is_some());
}

#[test]
fn what_the_cpp_modules_delete_is_deleted() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.delete(1);
    assert_eq!(world.state().agents.len(), 0, "their form knows no refusal");
}

#[test]
fn the_history_says_who_had_what_when_and_why() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.sleep(10);
    world.delete(1);
    world.store();
    world.sleep(10);
    world.register(1);
    // Nothing that an agent has changes by these.
    world.register(1);
    world.register_with(1, AgentOptions { docker_bridge: false, ..AgentOptions::default() });
    world.store();
    let mut renamed = network();
    renamed.overlays[0].name = "renamed".parse().unwrap();
    world.reload(renamed.clone());
    world.store();
    let shown: Vec<String> = world
        .history(None)
        .iter()
        .map(|HistoryEntry { at, version, agent, event, addresses, reason }| {
            let agent = agent.map_or("-".to_owned(), |ip| ip.to_string());
            let names = addresses.overlays.iter().flat_map(|overlay| {
                overlay.subnets().map(|subnet| format!("{} {subnet}", overlay.name))
            });
            let vteps = addresses.vtep_ip.map(|ip| ip.to_string());
            let vteps = vteps.into_iter().chain(addresses.vtep_ip6.map(|ip| ip.to_string()));
            let all: Vec<String> = vteps.chain(names).collect();
            let at = at - 1_700_000_000;
            format!("{at} {version} {agent} {event}: {}: {reason}", all.join(", "))
        })
        .collect();
    let all = "44.128.0.1, fd01:a::1, vxlan-1 192.168.0.0/24, vxlan-2 192.168.128.0/24, vxlan-2 \
               fd01:b::/80";
    assert_eq!(
        shown,
        [
            format!("0 1 10.0.0.1 assigned: {all}: it registered"),
            format!("10 2 10.0.0.1 released: {all}: it was deleted over HTTP"),
            format!("20 3 10.0.0.1 returned: {all}: it registered"),
            "20 5 10.0.0.1 renamed: renamed 192.168.0.0/24: the configuration has another name for \
             the overlay"
                .to_owned(),
            "20 5 - configured: : overlay renamed is added: 192.168.0.0/17 in /24; overlay vxlan-1 \
             is removed"
                .to_owned(),
        ]
    );
    let before = world.history(Some(1));
    assert_eq!(before.len(), 4);
    let mut world = world.restart(renamed);
    assert_eq!(world.history(Some(1)), before, "a restart forgets nothing");
    assert_eq!(world.history(Some(2)), []);
    world.sleep(1000);
    world.forget(&[1], false, false);
    let last = world.history(None).pop().unwrap();
    assert_eq!((last.event, last.reason.as_str()), (HistoryEvent::Released, "it was forgotten"));
    assert_eq!(last.version, world.version.0 + 1, "with the change itself");
}
