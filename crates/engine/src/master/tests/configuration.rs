//! The effect of every change of the network file on a populated state, after a restart and on a
//! running master. Each row of the table in `docs/configuration.md` has a test.

use overlay_types::addr::Vni;
use overlay_types::protocol::AddressRange;

use super::*;

/// Returns a world of two agents and two overlays, one of them dual-stack, with everything stored.
fn populated() -> World {
    let mut world = World::new(network());
    world.register(1);
    world.register(2);
    world.store();
    world
}

/// Registers an agent, stores its record, and returns its VTEP and subnets by overlay.
fn assigned(world: &mut World, agent: u8) -> Vec<String> {
    let Some(overlays) = world.register(agent) else {
        return vec!["nothing".to_owned()];
    };
    world.store();
    shown(&overlays)
}

fn shown(overlays: &[Assignment]) -> Vec<String> {
    let overlay = |one: &Assignment| {
        let ip6 = one.vtep.ip6.map(|ip6| ip6.to_string());
        let vtep = [Some(one.vtep.ip.to_string()), ip6].into_iter().flatten();
        let subnets = one.subnet.into_iter().chain(one.subnet6).map(|subnet| subnet.to_string());
        format!(
            "{} {} at {}",
            one.name(),
            subnets.collect::<Vec<_>>().join(" "),
            vtep.collect::<Vec<_>>().join(" ")
        )
    };
    overlays.iter().map(overlay).collect()
}

/// The assignments of the first two agents at the start.
const FIRST: [&str; 2] = [
    "vxlan-1 192.168.0.0/24 at 44.128.0.1/16 fd01:a::1/64",
    "vxlan-2 192.168.128.0/24 fd01:b::/80 at 44.128.0.1/16 fd01:a::1/64",
];
const SECOND: [&str; 2] = [
    "vxlan-1 192.168.1.0/24 at 44.128.0.2/16 fd01:a::2/64",
    "vxlan-2 192.168.129.0/24 fd01:b:0:0:1::/80 at 44.128.0.2/16 fd01:a::2/64",
];

fn changed(change: impl FnOnce(&mut Network)) -> Network {
    let mut network = network();
    change(&mut network);
    network
}

fn vni(number: u32) -> Option<Vni> {
    Vni::new(number).ok()
}

/// Asserts that a running master takes the change and sends `first` and `second` to exactly the
/// agents that were seen, that a restart has the same result, and that reverting the change
/// restores all assignments.
fn assert_accepted(sentences: &[&str], network: &Network, first: &[&str], second: &[&str]) {
    let mut world = populated();
    assert_eq!(assigned(&mut world, 1), FIRST);
    assert_eq!(assigned(&mut world, 2), SECOND);
    let preview = world.preview(network.clone());
    let before = (world.sent.len(), world.records.clone());
    let effect = world.reload(network.clone());
    assert_eq!(effect, preview, "the preview matches the reload");
    assert_eq!((effect.accepted, effect.problems), (true, Vec::new()));
    assert_eq!(effect.changes, sentences);
    world.store();
    let updates: Vec<(Upid, Vec<String>)> = world.sent[before.0..]
        .iter()
        .map(|(to, message, when)| match message {
            Message::UpdateAgentOverlays { overlays, .. } => {
                assert!(*when <= world.version);
                (to.clone(), shown(overlays))
            }
            other => panic!("{other}"),
        })
        .collect();
    let is_changed = first != FIRST;
    let expected = [(upid(1), first), (upid(2), second)];
    let expected = expected.map(|(to, it)| (to, it.iter().map(ToString::to_string).collect()));
    assert_eq!(updates, if is_changed { expected.to_vec() } else { updates.clone() });
    assert_eq!(assigned(&mut world, 2), second);
    assert_eq!(assigned(&mut world, 1), first);
    assert_eq!(world.health().problems, [""; 0]);

    // A restart from the records before has the same result.
    let mut world = populated();
    world.records = before.1;
    let mut world = world.restart(network.clone());
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(assigned(&mut world, 1), first);
    assert_eq!(assigned(&mut world, 2), second);
    let effect = world.reload(super::network());
    assert_eq!((effect.accepted, effect.problems), (true, Vec::new()));
    world.store();
    assert_eq!(assigned(&mut world, 1), FIRST, "the change is reverted");
    assert_eq!(assigned(&mut world, 2), SECOND, "the change is reverted");
}

/// Asserts that a running master refuses the change with these problems and goes on, and that after
/// a restart the agents have `first` and `second` until the change is reverted.
fn assert_refused(problems: &[&str], network: &Network, first: &[&str], second: &[&str]) {
    let mut world = populated();
    let preview = world.preview(network.clone());
    let sent = world.sent.len();
    let effect = world.reload(network.clone());
    assert_eq!(effect, preview);
    let remedy = ": fix the configuration or delete the agent";
    let problems: Vec<String> = problems.iter().map(|text| format!("{text}{remedy}")).collect();
    assert_eq!((effect.accepted, &effect.problems), (false, &problems));
    assert_eq!(
        (world.sent.len(), world.writing.take()),
        (sent, None),
        "no message is sent and no commit starts"
    );
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(assigned(&mut world, 1), FIRST, "the master keeps its configuration");

    let mut world = world.restart(network.clone());
    assert_eq!(world.health().problems, problems);
    assert_eq!(assigned(&mut world, 1), first);
    assert_eq!(assigned(&mut world, 2), second);
    // A new agent gets no address that another agent may be using.
    let third = world.register(3).unwrap_or_default();
    let taken: Vec<Subnet> = ["192.168.0.0/24", "192.168.1.0/24", "192.168.128.0/23"]
        .map(|text| text.parse().unwrap())
        .into();
    for one in third.iter().filter_map(|one| one.subnet) {
        assert!(
            !taken.iter().any(|taken| taken.overlaps(&one)),
            "{one} is allocated to another agent"
        );
    }
    world.delete(3);
    world.store();
    let mut world = world.restart(super::network());
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(assigned(&mut world, 1), FIRST, "the change is reverted");
    assert_eq!(assigned(&mut world, 2), SECOND, "the change is reverted");
}

fn and<'a>(first: [&'a str; 2], more: &[&'a str]) -> Vec<&'a str> {
    first.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn reload_same_network_changes_nothing() {
    assert_accepted(&[], &network(), &FIRST, &SECOND);
}

#[test]
fn add_overlay_is_accepted() {
    let network = changed(|network| network.overlays.push(overlay("new", "20.9.0.0/16")));
    assert_accepted(
        &["overlay new is added: 20.9.0.0/16 in /24"],
        &network,
        &and(FIRST, &["new 20.9.0.0/24 at 44.128.0.1/16 fd01:a::1/64"]),
        &and(SECOND, &["new 20.9.1.0/24 at 44.128.0.2/16 fd01:a::2/64"]),
    );
}

#[test]
fn disable_overlay_is_accepted() {
    let network = changed(|network| network.overlays[0].enabled = false);
    let sentence = "overlay vxlan-1 is disabled instead of enabled";
    assert_accepted(&[sentence], &network, &FIRST[1..], &SECOND[1..]);
}

#[test]
fn remove_overlay_is_accepted() {
    let network = changed(|network| drop(network.overlays.remove(0)));
    assert_accepted(&["overlay vxlan-1 is removed"], &network, &FIRST[1..], &SECOND[1..]);
}

#[test]
fn replace_all_overlays_is_accepted() {
    let network = changed(|network| network.overlays = vec![overlay("new", "20.9.0.0/16")]);
    assert_accepted(
        &[
            "overlay new is added: 20.9.0.0/16 in /24",
            "overlay vxlan-1 is removed",
            "overlay vxlan-2 is removed",
        ],
        &network,
        &["new 20.9.0.0/24 at 44.128.0.1/16 fd01:a::1/64"],
        &["new 20.9.1.0/24 at 44.128.0.2/16 fd01:a::2/64"],
    );
}

#[test]
fn rename_overlay_is_accepted() {
    let network = changed(|network| network.overlays[1].name = "renamed".parse().unwrap());
    assert_accepted(
        &[
            "overlay renamed is added: 192.168.128.0/17 in /24 and fd01:b::/64 in /80",
            "overlay vxlan-2 is removed",
        ],
        &network,
        &[FIRST[0], &FIRST[1].replace("vxlan-2", "renamed")],
        &[SECOND[0], &SECOND[1].replace("vxlan-2", "renamed")],
    );
}

#[test]
fn widen_overlay_keeps_allocations() {
    // The overlay is widened on both sides: the index of each subnet changes, the subnets must not.
    let network = changed(|network| {
        network.overlays[0].range = range("192.168.0.0/17", 24);
        network.overlays[1].range = range("192.168.128.0/17", 24);
    });
    assert_accepted(&[], &network, &FIRST, &SECOND);
    let mut narrow = super::network();
    narrow.overlays[0].range = range("192.168.4.0/23", 24);
    let mut world = World::new(narrow.clone());
    let before: Vec<_> = (1..=2).map(|agent| assigned(&mut world, agent)[0].clone()).collect();
    assert!(before[0].starts_with("vxlan-1 192.168.4.0/24") && before[1].contains(".5.0/24"));
    narrow.overlays[0].range = range("192.168.0.0/17", 24);
    let effect = world.reload(narrow.clone());
    assert_eq!(
        effect.changes,
        ["overlay vxlan-1: subnet is 192.168.0.0/17 in /24 instead of 192.168.4.0/23 in /24"]
    );
    assert!(effect.accepted);
    world.store();
    let third = assigned(&mut world, 3);
    assert!(third[0].starts_with("vxlan-1 192.168.0.0/24"), "{third:?}");
    let mut world = world.restart(narrow);
    let after: Vec<_> = (1..=2).map(|agent| assigned(&mut world, agent)[0].clone()).collect();
    assert_eq!(after, before);
    assert_eq!(assigned(&mut world, 3), third);
}

#[test]
fn widen_exhausted_overlay_assigns_missing_subnets() {
    let mut tight = network();
    tight.overlays[0].range = range("192.168.0.0/24", 24);
    let mut world = World::new(tight);
    assigned(&mut world, 1);
    assert_eq!(assigned(&mut world, 2).len(), 1, "vxlan-1 is exhausted");
    assert_eq!(world.health().problems.len(), 1);
    let sent = world.sent.len();
    let effect = world.reload(network());
    let agents: Vec<_> = effect.agents.iter().map(|agent| (agent.ip, agent.at_once)).collect();
    assert_eq!(agents, [(ip(1), true), (ip(2), true)]);
    let gets = AddressEffect {
        of: "vxlan-1".to_owned(),
        before: Vec::new(),
        after: vec!["192.168.1.0/24".to_owned()],
    };
    assert_eq!(effect.agents[1].addresses, [gets]);
    assert_eq!(effect.agents[0].addresses, [], "the agent is sent the wider overlay");
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(world.sent.len(), sent + 2);
}

#[test]
fn narrow_overlay_below_allocation_is_refused() {
    let network = changed(|network| network.overlays[0].range = range("192.168.1.0/24", 24));
    assert_refused(
        &[
            "agent 10.0.0.1 is not served its allocation: overlay vxlan-1: 192.168.0.0/24 is none of the \
           /24 subnets of 192.168.1.0/24",
        ],
        &network,
        &FIRST[1..],
        &SECOND,
    );
}

#[test]
fn narrow_overlay_around_allocations_is_accepted() {
    let network = changed(|network| network.overlays[0].range = range("192.168.0.0/23", 24));
    assert_accepted(
        &["overlay vxlan-1: subnet is 192.168.0.0/23 in /24 instead of 192.168.0.0/17 in /24"],
        &network,
        &FIRST,
        &SECOND,
    );
}

#[test]
fn change_prefix_is_refused() {
    for prefix in [23, 25] {
        let network = changed(|network| {
            network.overlays[0].range = range("192.168.0.0/17", prefix);
        });
        let problem = |agent, subnet| {
            format!(
                "agent 10.0.0.{agent} is not served its allocation: overlay vxlan-1: {subnet} is none of \
                 the /{prefix} subnets of 192.168.0.0/17"
            )
        };
        let problems = [problem(1, "192.168.0.0/24"), problem(2, "192.168.1.0/24")];
        assert_refused(
            &problems.each_ref().map(String::as_str),
            &network,
            &FIRST[1..],
            &SECOND[1..],
        );
    }
    // Without allocations in the overlay the change is accepted.
    let gateway = AgentOptions { allocate_subnet: false, ..AgentOptions::default() };
    let mut world = World::new(network());
    world.register_with(1, gateway);
    let network = changed(|network| network.overlays[0].range = range("192.168.0.0/17", 25));
    assert!(world.reload(network).accepted);
}

#[test]
fn move_overlay_is_refused() {
    let network = changed(|network| network.overlays[0].range = range("20.9.0.0/16", 24));
    let problem = |agent, subnet| {
        format!(
            "agent 10.0.0.{agent} is not served its allocation: overlay vxlan-1: {subnet} is none of the \
             /24 subnets of 20.9.0.0/16"
        )
    };
    let problems = [problem(1, "192.168.0.0/24"), problem(2, "192.168.1.0/24")];
    assert_refused(&problems.each_ref().map(String::as_str), &network, &FIRST[1..], &SECOND[1..]);
}

#[test]
fn move_vtep_subnet_is_refused() {
    let network = changed(|network| network.vtep_subnet = "44.129.0.0/16".parse().unwrap());
    let problem = |agent| {
        format!(
            "agent 10.0.0.{agent} is not served: 44.128.0.{agent} is no host address of the VTEP \
             subnet 44.129.0.0/16"
        )
    };
    let problems = [problem(1), problem(2)];
    assert_refused(&problems.each_ref().map(String::as_str), &network, &["nothing"], &["nothing"]);
}

#[test]
fn move_vtep_subnet6_is_refused() {
    let network = changed(|network| network.vtep_subnet6 = Some("fd01:c::/64".parse().unwrap()));
    let problem = |agent| {
        format!(
            "agent 10.0.0.{agent} is not served its IPv6 VTEP address: fd01:a::{agent} is no host \
             address of the VTEP subnet fd01:c::/64"
        )
    };
    let problems = [problem(1), problem(2)];
    let without = |lines: [&str; 2], vtep6: &str| lines.map(|line| line.replace(vtep6, ""));
    let (first, second) = (without(FIRST, " fd01:a::1/64"), without(SECOND, " fd01:a::2/64"));
    assert_refused(
        &problems.each_ref().map(String::as_str),
        &network,
        &first.each_ref().map(String::as_str),
        &second.each_ref().map(String::as_str),
    );
}

#[test]
fn widen_vtep_subnet_is_accepted() {
    let network = changed(|network| network.vtep_subnet = "44.128.0.0/15".parse().unwrap());
    let wider = |lines: [&str; 2]| lines.map(|line| line.replace("/16 ", "/15 "));
    let (first, second) = (wider(FIRST), wider(SECOND));
    assert_accepted(
        &["vtep_subnet is 44.128.0.0/15 instead of 44.128.0.0/16"],
        &network,
        &first.each_ref().map(String::as_str),
        &second.each_ref().map(String::as_str),
    );
}

#[test]
fn add_and_remove_ipv6_is_accepted() {
    let network = changed(|network| network.overlays[0].range6 = range("fd01:d::/64", 80));
    assert_accepted(
        &["overlay vxlan-1: subnet6 is added: fd01:d::/64 in /80"],
        &network,
        &["vxlan-1 192.168.0.0/24 fd01:d::/80 at 44.128.0.1/16 fd01:a::1/64", FIRST[1]],
        &["vxlan-1 192.168.1.0/24 fd01:d:0:0:1::/80 at 44.128.0.2/16 fd01:a::2/64", SECOND[1]],
    );
    let network = changed(|network| network.overlays[1].range6 = None);
    assert_accepted(
        &["overlay vxlan-2: subnet6 is removed; it was fd01:b::/64 in /80"],
        &network,
        &[FIRST[0], "vxlan-2 192.168.128.0/24 at 44.128.0.1/16 fd01:a::1/64"],
        &[SECOND[0], "vxlan-2 192.168.129.0/24 at 44.128.0.2/16 fd01:a::2/64"],
    );
    let network = changed(|network| network.vtep_subnet6 = None);
    let without = |lines: [&str; 2], vtep6: &str| lines.map(|line| line.replace(vtep6, ""));
    let (first, second) = (without(FIRST, " fd01:a::1/64"), without(SECOND, " fd01:a::2/64"));
    assert_accepted(
        &["vtep_subnet6 is removed; it was fd01:a::/64"],
        &network,
        &first.each_ref().map(String::as_str),
        &second.each_ref().map(String::as_str),
    );
}

#[test]
fn overlay_with_own_vni_has_own_device() {
    let network = changed(|network| {
        network.vxlan = Vxlan { port: 4789, ..Vxlan::with_vni(vni(6).unwrap()) };
        network.overlays[1].vni = vni(7);
    });
    let mut world = World::new(network.clone());
    let devices = |overlays: Vec<Assignment>| {
        let vteps = overlays.into_iter().map(|one| one.vtep);
        vteps.map(|it| format!("{} {} {}", it.vni, it.device, it.port)).collect::<Vec<_>>()
    };
    let expected = ["6 vtep6 4789", "7 vtep7 4789"];
    assert_eq!(devices(world.register(1).unwrap()), expected);
    world.store();
    // An overlay with the shared VNI is on the shared device.
    let mut shared = network;
    shared.overlays[1].vni = vni(6);
    let mut world = world.restart(shared);
    assert_eq!(devices(world.register(1).unwrap()), ["6 vtep6 4789", "6 vtep6 4789"]);
}

#[test]
fn change_without_addresses_is_sent_to_all() {
    for (sentence, network) in [
        (
            "vtep_mtu is 1600 instead of 1450",
            changed(|network| network.vtep_mtu = overlay_types::addr::Mtu::new(1600).ok()),
        ),
        (
            "vtep_mac_oui is 02:00:00:00:00:00 instead of 70:B3:D5:00:00:00",
            changed(|network| network.vtep_mac_oui = "02:00:00:00:00:00".parse().unwrap()),
        ),
        ("vtep_port is 4789 instead of 64000", changed(|network| network.vxlan.port = 4789)),
        (
            "vtep_name is vtep-a instead of vtep1024",
            changed(|network| network.vxlan.device = "vtep-a".parse().unwrap()),
        ),
        ("overlay vxlan-2: vni is added: 7", changed(|network| network.overlays[1].vni = vni(7))),
        ("the overlays have another order", changed(|network| network.overlays.reverse())),
    ] {
        let mut world = populated();
        let sent = world.sent.len();
        let effect = world.reload(network.clone());
        assert_eq!((effect.accepted, effect.changes), (true, vec![sentence.to_owned()]));
        assert!(effect.agents.iter().all(|agent| agent.at_once && agent.addresses.is_empty()));
        assert_eq!(world.sent.len(), sent + 2);
        world.store();
        let mut world = world.restart(network);
        assert_eq!(world.health().problems, [""; 0]);
        let mut now = assigned(&mut world, 1);
        now.sort();
        assert_eq!(now, FIRST);
    }
}

#[test]
fn swap_overlay_ranges_is_refused() {
    // No agent may get a subnet that containers of another agent use in the other overlay.
    let network = changed(|network| {
        let (first, second) = network.overlays.split_at_mut(1);
        std::mem::swap(&mut first[0].range, &mut second[0].range);
    });
    let mut world = populated();
    let effect = world.reload(network.clone());
    assert_eq!((effect.accepted, effect.problems.len()), (false, 4));
    let mut world = world.restart(network);
    assert_eq!(world.health().problems.len(), 4);
    let third = world.register(3).unwrap();
    assert_eq!(subnets(&third), ["192.168.130.0/24", "192.168.2.0/24"]);
}

#[test]
fn unseen_agent_is_updated_at_registration() {
    let world = populated();
    let mut world = world.restart(network());
    world.register(2);
    let sent = world.sent.len();
    let network = changed(|network| network.overlays.push(overlay("new", "20.9.0.0/16")));
    let preview = world.preview(network.clone());
    let whens: Vec<_> = preview.agents.iter().map(|agent| (agent.ip, agent.at_once)).collect();
    assert_eq!(whens, [(ip(1), false), (ip(2), true)]);
    assert_eq!(
        preview.agents[1].addresses[0].after,
        ["20.9.0.0/24"],
        "the seen agent registers first"
    );
    assert_eq!(preview.agents[0].addresses[0].after, ["20.9.1.0/24"]);
    let effect = world.reload(network);
    assert_eq!(effect.agents, preview.agents[1..]);
    assert_eq!(world.sent.len(), sent + 1);
    assert_eq!(subnets(&world.register(1).unwrap())[2], "20.9.1.0/24");
}

#[test]
fn reload_waits_for_commit() {
    let mut world = populated();
    world.reload(changed(|network| network.overlays.push(overlay("new", "20.9.0.0/16"))));
    let (_, _, when) = world.sent.last().unwrap();
    assert_eq!(*when, world.version.next());
    // After a failed commit the stored state is loaded, under the new configuration.
    world.writing = None;
    let failed = StoreError::Failed {
        store: "file:/x".to_owned(),
        action: "commit",
        reason: "no space".to_owned(),
    };
    world.handle(Event::Committed(Err(failed)));
    world.now.elapsed = world.master.next_timeout().unwrap();
    world.handle(Event::Timeout);
    world.load();
    assert_eq!(assigned(&mut world, 1).len(), 3);
}

#[test]
fn reload_invalid_configuration_changes_nothing() {
    let mut world = populated();
    world.handle(Event::Request(RequestId(2), Request::Reload));
    let problems = vec!["network.json:1:1: it is no JSON".to_owned()];
    world.handle(Event::ConfigRead(RequestId(2), Err(problems.clone())));
    assert_eq!(world.replies.pop().unwrap().0, Reply::Misconfigured(problems));
    assert_eq!(assigned(&mut world, 1), FIRST);
}

#[test]
fn reload_without_state_applies_after_recovery() {
    let world = populated();
    let mut world = World::restored(network(), world.records, world.version);
    let new = changed(|network| network.overlays.push(overlay("new", "20.9.0.0/16")));
    let effect = world.reload(new);
    assert_eq!(effect.changes, ["overlay new is added: 20.9.0.0/16 in /24"]);
    assert_eq!(
        effect.warnings,
        ["this master does not know the agents now: when it does, it quarantines agents that \
          conflict with this configuration"]
    );
    world.load();
    assert_eq!(assigned(&mut world, 1).len(), 3);
}

#[test]
fn reload_event_without_request_is_applied() {
    let mut world = populated();
    let sent = world.sent.len();
    world.handle(Event::Reload(changed(|network| drop(network.overlays.remove(0)))));
    assert_eq!(world.sent.len(), sent + 2);
    assert_eq!(assigned(&mut world, 1), FIRST[1..]);
}

/// Returns networks with few different values, so that they conflict.
fn any_network() -> impl Strategy<Value = Network> {
    let range = prop_oneof![
        Just("20.0.0.0/22"),
        Just("20.0.0.0/21"),
        Just("20.0.4.0/22"),
        Just("20.0.8.0/22"),
    ];
    let prefix = prop_oneof![4 => Just(24_u8), 1 => Just(25_u8), 1 => Just(23_u8)];
    let vteps = prop_oneof![
        4 => Just("44.128.0.0/28"), 2 => Just("44.128.0.0/27"), 1 => Just("44.128.0.16/28")
    ];
    (vteps, prop::collection::vec((0..3_usize, range, prefix, any::<bool>()), 1..3)).prop_map(
        |(vteps, drawn)| {
            let mut network = small(vteps, "20.0.0.0/22");
            network.overlays.clear();
            for (name, subnet, prefix, enabled) in drawn {
                let name: OverlayName = ["a", "b", "c"][name].parse().unwrap();
                let subnet: Subnet = subnet.parse().unwrap();
                let clashes = network.overlays.iter().any(|one| {
                    one.name == name || one.range.is_some_and(|one| one.subnet.overlaps(&subnet))
                });
                if !clashes {
                    let range = Some(AddressRange { subnet, prefix });
                    network.overlays.push(Overlay {
                        name,
                        range,
                        range6: None,
                        vni: None,
                        enabled,
                    });
                }
            }
            network
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Register(u8),
    Delete(u8),
    Reload(Network),
    Restart(Network),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u8..9).prop_map(Step::Register),
        1 => (1_u8..9).prop_map(Step::Delete),
        2 => any_network().prop_map(Step::Reload),
        2 => any_network().prop_map(Step::Restart),
    ]
}

proptest! {
    /// For every sequence of configurations: the subnets that were ever sent to two registered
    /// agents do not overlap, and an agent keeps its VTEP.
    #[test]
    fn no_reload_assigns_addresses_in_use(
        first in any_network(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(first);
        let mut sent: BTreeMap<u8, BTreeSet<Subnet>> = BTreeMap::new();
        let mut vteps: BTreeMap<u8, String> = BTreeMap::new();
        for step in steps {
            world.now.unix += 1;
            match step {
                Step::Register(agent) => {
                    world.register(agent);
                }
                Step::Delete(agent) => {
                    let request = Request::DeleteAgents(vec![ip(agent)]);
                    world.handle(Event::Request(RequestId(1), request));
                    sent.remove(&agent);
                    vteps.remove(&agent);
                }
                Step::Reload(network) => {
                    world.reload(network);
                }
                Step::Restart(network) => {
                    world.store();
                    world = world.restart(network);
                }
            }
            world.store();
            for (to, message, _) in std::mem::take(&mut world.sent) {
                let Message::UpdateAgentOverlays { overlays, .. } = message else { continue };
                let agent = to.address.ip().octets()[3];
                for one in overlays {
                    let vtep = one.vtep.ip.address().to_string();
                    let known = vteps.entry(agent).or_insert_with(|| vtep.clone());
                    prop_assert_eq!(known, &vtep, "of {}", to);
                    sent.entry(agent).or_default().extend(one.subnet);
                }
            }
            for (agent, subnets) in &sent {
                for (other, others) in sent.iter().filter(|(other, _)| *other > agent) {
                    for subnet in subnets {
                        let clash = others.iter().find(|theirs| theirs.overlaps(subnet));
                        prop_assert_eq!(clash, None, "{} of {} and {}", subnet, agent, other);
                    }
                }
            }
            let unique: BTreeSet<&String> = vteps.values().collect();
            prop_assert_eq!(unique.len(), vteps.len());
        }
    }
}
