//! The plan against arbitrary states of the kernel, whose traps [`State::perform`] has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::addr::{DeviceName, Family, InterfaceAddress, Mac, Mtu, OverlayName, Subnet, Vni};
use crate::tunnel::{Local, Peer, Space};

fn device(number: u32) -> DeviceName {
    DeviceName::vtep(Vni::new(1024 + number).unwrap())
}

fn overlay(number: u32) -> OverlayName {
    format!("o{number}").parse().unwrap()
}

fn mac(number: u8) -> Mac {
    Mac::from([0x70, 0xb3, 0xd5, 0x80, 0, number])
}

fn vtep(number: u8) -> IpAddr {
    Ipv4Addr::new(44, 128, 0, number).into()
}

fn vtep6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd01, 0xa, 0, 0, 0, 0, 0, number.into()).into()
}

fn interface(address: IpAddr) -> InterfaceAddress {
    let prefix = if address.is_ipv4() { 16 } else { 64 };
    InterfaceAddress::within(&Subnet::containing(address, prefix).unwrap(), address).unwrap()
}

fn agent(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn subnet(overlay: u32, number: u8) -> Subnet {
    Subnet::containing(
        Ipv4Addr::new(192, 168 + u8::try_from(overlay).unwrap(), number, 0).into(),
        24,
    )
    .unwrap()
}

fn subnet6(number: u8) -> Subnet {
    let address = Ipv6Addr::new(0xfd01, 0xb, 0, 0, number.into(), 0, 0, 0);
    Subnet::containing(address.into(), 80).unwrap()
}

fn peer(number: u8) -> Peer {
    Peer {
        ip: Some(Ipv4Addr::new(44, 128, 0, number)),
        ip6: Some(Ipv6Addr::new(0xfd01, 0xa, 0, 0, 0, 0, 0, number.into())),
        mac: mac(number),
        subnets: vec![
            (overlay(0), subnet(0, number)),
            (overlay(0), subnet6(number)),
            (overlay(1), subnet(1, number)),
        ],
    }
}

/// A host with two overlays on one device or on a device each, and peers.
fn desired(devices: u32, peers: impl IntoIterator<Item = u8>) -> Desired {
    let local = |number: u32| Local {
        device: device(number),
        vni: Vni::new(1024 + number).unwrap(),
        port: 64000,
        mac: mac(1),
        underlay: agent(1),
        mtu: None,
        containers_mtu: None,
        ip: Some(interface(vtep(1))),
        ip6: Some(interface(vtep6(1))),
    };
    let space = |number: u32| Space {
        overlay: overlay(number),
        device: device(number.min(devices - 1)),
        whole: if number == 0 {
            vec!["192.168.0.0/16".parse().unwrap(), "fd01:b::/64".parse().unwrap()]
        } else {
            vec!["192.169.0.0/16".parse().unwrap()]
        },
        own: vec![subnet(number, 1)],
    };
    Desired {
        locals: (0..devices).map(local).collect(),
        spaces: (0..2).map(space).collect(),
        peers: Some(peers.into_iter().map(|number| (agent(number), peer(number))).collect()),
        left_out: Vec::new(),
    }
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let some = (1..3_u32, prop::collection::btree_set(2..9_u8, 0..6));
    prop_oneof![
        1 => Just(Desired::default()),
        8 => some.prop_map(|(devices, peers)| desired(devices, peers)),
    ]
}

fn any_link() -> impl Strategy<Value = Link> {
    let numbers = (1024..1027_u32, 63999..64001_u16, 1..3_u8, 1400..1451_u32);
    let flags = any::<[bool; 5]>();
    (numbers, flags, prop::option::of(1..3_u8)).prop_map(|((vni, port, own, mtu), flags, from)| {
        let [is_learning, is_up, is_marked, has_ipv6, is_loose] = flags;
        Link {
            identity: Identity { vni: Vni::new(vni).unwrap(), port, family: Family::V4 },
            mac: mac(own),
            mtu: Mtu::new(mtu).unwrap(),
            underlay: from.map(agent),
            is_learning,
            is_up,
            is_marked,
            has_ipv6,
            is_loose,
        }
    })
}

fn any_device() -> impl Strategy<Value = Device> {
    let address = prop_oneof![(1..4_u8).prop_map(vtep), (1..4_u8).prop_map(vtep6)];
    let neighbours = prop::collection::btree_map(
        prop_oneof![(1..9_u8).prop_map(vtep), (1..9_u8).prop_map(vtep6)],
        (1..9_u8).prop_map(mac),
        0..12,
    );
    let forwards =
        prop::collection::btree_map((1..9_u8).prop_map(mac), (1..9_u8).prop_map(agent), 0..12);
    let addresses = prop::collection::btree_set(address.prop_map(interface), 0..4);
    (any_link(), addresses, neighbours, forwards).prop_map(
        |(link, addresses, neighbours, forwards)| Device { link, addresses, neighbours, forwards },
    )
}

fn any_state() -> impl Strategy<Value = State> {
    let devices = prop::collection::btree_map((0..3_u32).prop_map(device), any_device(), 0..3);
    let whole = ["192.168.0.0/16", "192.169.0.0/16", "fd01:b::/64"];
    let to = prop_oneof![
        (0..2_u32, 1..9_u8).prop_map(|(overlay, number)| subnet(overlay, number)),
        (1..9_u8).prop_map(subnet6),
        (0..3_usize).prop_map(move |index| whole[index].parse().unwrap()),
    ];
    let metric = prop_oneof![Just(0_u32), Just(1024), Just(METRIC_UNALLOCATED)];
    let key = (to, metric).prop_map(|(subnet, metric)| RouteKey { subnet, metric });
    let hop = prop_oneof![
        (0..3_u32, 1..9_u8, any::<bool>()).prop_map(|(number, gateway, is_onlink)| Hop::Via {
            device: device(number),
            gateway: vtep(gateway),
            is_onlink,
        }),
        Just(Hop::Unreachable),
        Just(Hop::Elsewhere),
    ];
    (devices, prop::collection::btree_map(key, hop, 0..20))
        .prop_map(|(devices, routes)| State { devices, routes })
}

fn any_observed() -> impl Strategy<Value = Observed> {
    (any_state(), any::<[bool; 2]>()).prop_map(|(mut state, [is_taken, is_known])| {
        let mut observed = Observed::default();
        if is_taken {
            state.devices.remove(&device(0));
            observed.taken.insert(device(0), "bridge".to_owned());
        }
        if is_known {
            observed.underlay_mtus.insert(agent(1), Mtu::new(9000).unwrap());
        }
        Observed { state, ..observed }
    })
}

/// Peers who have what is theirs, or of whom one wants what another has.
fn any_peers() -> impl Strategy<Value = BTreeMap<u8, u8>> {
    let numbers = prop::collection::btree_set(2..40_u8, 0..38);
    let wrong = prop::option::weighted(0.2, (2..40_u8, 1..40_u8));
    (numbers, wrong).prop_map(|(numbers, wrong)| {
        numbers.into_iter().map(|number| (number, number)).chain(wrong).collect()
    })
}

/// A subnet with the next one, or the one before.
fn twice(subnet: Subnet) -> Subnet {
    Subnet::containing(subnet.first(), subnet.prefix() - 1).unwrap()
}

/// The agents with the first numbers, who have what those with the second ones usually have: all of
/// it, or a part.
fn with_peers(devices: u32, peers: &BTreeMap<u8, u8>) -> Desired {
    let mut desired = desired(devices, []);
    let peers = peers.iter().map(|(&number, &like)| {
        let own = peer(number);
        let other = peer(like);
        let peer = match number % 4 {
            _ if like == number => own,
            0 => other,
            1 => {
                let wide = other.subnets.into_iter().map(|(name, subnet)| (name, twice(subnet)));
                Peer { subnets: wide.collect(), ..own }
            }
            2 => Peer { mac: other.mac, ..own },
            _ => Peer { ip6: other.ip6, ..own },
        };
        (agent(number), peer)
    });
    desired.peers = Some(peers.collect());
    desired
}

fn performed(observed: &Observed, operations: &[Operation]) -> Observed {
    let mut after = observed.clone();
    operations.iter().for_each(|operation| after.state.perform(operation));
    after
}

proptest! {
    #[test]
    fn what_was_planned_and_done_is_what_is_wanted(
        desired in any_desired(),
        observed in any_observed(),
    ) {
        let plan = plan(&desired, &observed);
        let after = performed(&observed, &plan.operations);
        let (target, _) = target(&desired, &observed);
        prop_assert_eq!(&after.state, &target);
        prop_assert_eq!(super::plan(&desired, &after).operations, []);
    }

    #[test]
    fn a_device_of_somebody_else_is_never_touched(
        desired in any_desired(),
        observed in any_observed(),
    ) {
        prop_assume!(observed.taken.contains_key(&device(0)));
        for operation in plan(&desired, &observed).operations {
            let text = operation.to_string();
            let is_about_routes = text.contains("remove route");
            prop_assert!(is_about_routes || !text.contains(device(0).as_str()), "{text}");
        }
    }

    #[test]
    fn nothing_is_done_twice(desired in any_desired(), observed in any_observed()) {
        let mut seen = BTreeSet::new();
        for operation in plan(&desired, &observed).operations {
            prop_assert!(seen.insert(operation.to_string()), "{operation} is done twice");
        }
    }

    #[test]
    fn a_change_leads_to_what_a_whole_plan_leads_to(
        devices in 1..3_u32,
        before in any_peers(),
        changes in prop::collection::btree_map(2..40_u8, prop::option::of(1..40_u8), 0..6),
    ) {
        let mut after = before.clone();
        for (number, like) in changes {
            match like {
                Some(like) => after.insert(number, if like % 2 == 0 { number } else { like }),
                None => after.remove(&number),
            };
        }
        let (before, after) = (with_peers(devices, &before), with_peers(devices, &after));
        let observed = Observed::default();
        let first = plan(&before, &observed);
        let settled = first.leaves_out_no_peer().then_some(&before);
        let known = performed(&observed, &first.operations);
        let change = plan_change(settled, &after, &known);
        let whole = plan(&after, &known);
        prop_assert_eq!(&change.problems, &whole.problems);
        let [by_change, by_whole] =
            [&change, &whole].map(|plan| performed(&known, &plan.operations));
        prop_assert_eq!(by_change, by_whole);
        prop_assert_eq!(change.operations.len(), whole.operations.len());
    }

    #[test]
    fn one_peer_costs_what_one_peer_has(count in 2..120_u8) {
        let before = desired(1, 2..count);
        let observed = Observed::default();
        let state = performed(&observed, &plan(&before, &observed).operations);
        let come = plan(&desired(1, 2..=count), &state).operations;
        prop_assert_eq!(come.len(), 6, "2 neighbours, a forwarding entry, 3 routes: {:?}", come);
        let gone = plan(&desired(1, 3..count), &state).operations;
        prop_assert!(gone.len() <= 6, "{:?}", gone);
    }
}

#[test]
fn the_order_is_device_address_neighbour_forward_route() {
    let operations = plan(&desired(1, [2]), &Observed::default()).operations;
    let texts: Vec<_> = operations.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "add device vtep1024 with VNI 1024 on UDP port 64000",
            "mark device vtep1024",
            "enable IPv6 on device vtep1024",
            "set rp_filter 2 of device vtep1024",
            "add address 44.128.0.1/16 on device vtep1024",
            "add address fd01:a::1/64 on device vtep1024",
            "set neighbour 44.128.0.2 to 70:b3:d5:80:00:02 on device vtep1024",
            "set neighbour fd01:a::2 to 70:b3:d5:80:00:02 on device vtep1024",
            "forward 70:b3:d5:80:00:02 to 10.0.0.2 on device vtep1024",
            "add route to 192.168.0.0/16 metric 65000 unreachable",
            "add route to 192.168.2.0/24 metric 0 via 44.128.0.2 on vtep1024",
            "add route to 192.169.0.0/16 metric 65000 unreachable",
            "add route to 192.169.2.0/24 metric 0 via 44.128.0.2 on vtep1024",
            "add route to fd01:b::/64 metric 65000 unreachable",
            "add route to fd01:b:0:0:2::/80 metric 1024 via fd01:a::2 on vtep1024",
        ]
    );
}

#[test]
fn a_changed_mac_gives_the_neighbours_back() {
    let wanted = desired(1, [2]);
    let observed = Observed::default();
    let mut observed = performed(&observed, &plan(&wanted, &observed).operations);
    let own = observed.state.devices.get_mut(&device(0)).unwrap();
    own.link.mac = mac(7);
    let operations = plan(&wanted, &observed).operations;
    assert!(matches!(operations[0], Operation::SetMac(..)));
    assert!(matches!(operations[1..], [Operation::SetNeighbour(..), Operation::SetNeighbour(..)]));
}

#[test]
fn a_replaced_vtep_address_gives_the_routes_back() {
    let wanted = desired(1, [2]);
    let observed = Observed::default();
    let mut observed = performed(&observed, &plan(&wanted, &observed).operations);
    let own = observed.state.devices.get_mut(&device(0)).unwrap();
    own.addresses = BTreeSet::from([interface(vtep(9)), interface(vtep6(1))]);
    let operations = plan(&wanted, &observed).operations;
    let texts: Vec<_> = operations.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "remove address 44.128.0.9/16 of device vtep1024",
            "add address 44.128.0.1/16 on device vtep1024",
            "add route to 192.168.2.0/24 metric 0 via 44.128.0.2 on vtep1024",
            "add route to 192.169.2.0/24 metric 0 via 44.128.0.2 on vtep1024",
        ]
    );
}

fn problems(desired: &Desired, observed: &Observed) -> Vec<String> {
    plan(desired, observed).problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_stands_in_the_way_is_named_with_the_remedy() {
    let mut observed = Observed::default();
    observed.taken.insert(device(0), "bridge".to_owned());
    let wanted = desired(1, [2]);
    assert_eq!(
        problems(&wanted, &observed),
        ["device vtep1024 is a bridge device that is not ours, so it is left alone: remove it \
             with 'ip link delete vtep1024' or rename it"]
    );
    // The overlay's space stays inside all the same.
    let operations = plan(&wanted, &observed).operations;
    assert!(operations.iter().all(|operation| operation.to_string().contains("unreachable")));
    let others = vec![("flannel.1".to_owned(), Vni::new(1024).unwrap(), 64000)];
    assert_eq!(
        problems(&wanted, &Observed { others, ..Observed::default() }),
        ["device vtep1024 cannot have VNI 1024 on UDP port 64000, which VXLAN device flannel.1 \
             has: remove flannel.1, or set another VNI or port on all agents"]
    );
    let underlay_mtus = BTreeMap::from([(agent(1), Mtu::new(1300).unwrap())]);
    assert_eq!(
        problems(&wanted, &Observed { underlay_mtus, ..Observed::default() }),
        ["device vtep1024 would have an MTU of 1250, and needs 1280: raise the MTU of the device \
             with 10.0.0.1 to 1330"]
    );
}

#[test]
fn an_impossible_peer_is_left_out_and_named() {
    let mut wanted = desired(1, [2]);
    let mut add = |address: &str, change: &dyn Fn(&mut Peer)| {
        let number = 10 + u8::try_from(wanted.peers.as_ref().unwrap().len()).unwrap();
        let mut peer = peer(number);
        change(&mut peer);
        wanted.peers.as_mut().unwrap().insert(address.parse().unwrap(), peer);
    };
    add("127.0.0.1", &|_| {});
    add("192.168.7.7", &|_| {});
    add("fe80::1", &|_| {});
    add("10.0.0.20", &|peer| peer.mac = Mac::from([1; 6]));
    add("10.0.0.21", &|peer| peer.ip = Some(Ipv4Addr::new(8, 8, 8, 8)));
    add("10.0.0.22", &|peer| peer.ip = Some(Ipv4Addr::new(44, 128, 0, 2)));
    add("10.0.0.23", &|peer| peer.subnets = vec![(overlay(0), "0.0.0.0/0".parse().unwrap())]);
    add("10.0.0.24", &|peer| peer.subnets = vec![(overlay(0), subnet(0, 1))]);
    add("10.0.0.25", &|peer| {
        peer.subnets = vec![(overlay(0), "192.168.2.128/25".parse().unwrap())];
    });
    add("10.0.0.26", &|peer| {
        peer.ip6 = None;
        peer.subnets = vec![(overlay(0), subnet6(9)), (overlay(9), subnet(0, 30))];
    });
    add("10.0.0.27", &|peer| {
        peer.subnets = vec![(overlay(0), subnet(0, 40)), (overlay(0), subnet(0, 41))];
    });
    add("fd00::99", &|_| {});
    add("::ffff:10.0.0.9", &|_| {});
    let (agent, other) = (Ipv4Addr::new(10, 0, 0, 7), Ipv4Addr::new(10, 0, 0, 2));
    let fault = crate::tunnel::PeerFault::UnderlayTaken { underlay: other.into(), other };
    wanted.left_out =
        vec![crate::tunnel::LeftOutPeer { agent, overlays: [overlay(0)].into(), fault }];
    assert!(wanted.is_hit(&overlay(0), &crate::tunnel::Part::Agent(agent.into())));
    assert!(!wanted.is_hit(&overlay(1), &crate::tunnel::Part::Agent(agent.into())));
    assert_eq!(
        problems(&wanted, &Observed::default()),
        [
            "agent 10.0.0.7: its underlay address 10.0.0.2 belongs to agent 10.0.0.2: set another \
             underlay on one of the two agents, or delete one of them at the master",
            "agent 10.0.0.20: its MAC address 01:01:01:01:01:01 is that of no single host: set \
             another vtep_mac_oui",
            "agent 10.0.0.21: its VTEP address 8.8.8.8 is not one of the VTEP subnet: see the \
             master's vtep_subnet",
            "agent 10.0.0.22: its VTEP address 44.128.0.2 belongs to agent 10.0.0.2: delete one of \
             the two agents at the master",
            "agent 10.0.0.23: its subnet 0.0.0.0/0 is not one of overlay o0: see the overlay's \
             subnet at the master",
            "agent 10.0.0.24: its subnet 192.168.1.0/24 overlaps 192.168.1.0/24 of agent 10.0.0.1: \
             delete one of the two agents",
            "agent 10.0.0.25: its subnet 192.168.2.128/25 overlaps 192.168.2.0/24 of agent \
             10.0.0.2: delete one of the two agents",
            "agent 10.0.0.26: its subnet fd01:b:0:0:9::/80 is IPv6 and its VTEP has no IPv6 \
             address: set vtep_subnet6",
            "agent 10.0.0.27: its subnet 192.168.41.0/24 is its second of overlay o0: see the agent \
             in the master's state",
            "agent 127.0.0.1: its address 127.0.0.1 is that of no host: see under which address it \
             registers",
            "agent 192.168.7.7: its address 192.168.7.7 lies inside of 192.168.0.0/16 of the \
             overlays: give the overlay another subnet",
            "agent ::ffff:10.0.0.9: its address ::ffff:10.0.0.9 is that of no host: see under which \
             address it registers",
            "agent fd00::99: its address fd00::99 has another family than this host's underlay: let \
             both register by the same family",
            "agent fe80::1: its address fe80::1 is that of no host: see under which address it \
             registers",
        ]
    );
    let left: Vec<_> = crate::tunnel::checked_peers(&wanted).0.into_keys().collect();
    assert_eq!(left.len(), 6, "{left:?}");
}

#[test]
fn with_a_vni_each_a_peer_is_where_its_overlays_are() {
    let mut wanted = desired(2, [2, 3]);
    wanted
        .peers
        .as_mut()
        .unwrap()
        .get_mut(&agent(3))
        .unwrap()
        .subnets
        .retain(|(name, _)| *name == overlay(0));
    let (state, problems) = target(&wanted, &Observed::default());
    assert_eq!(problems, []);
    assert_eq!(state.devices[&device(0)].forwards.len(), 2);
    assert_eq!(state.devices[&device(1)].forwards.len(), 1);
}

#[test]
fn errors_say_what_to_do() {
    let text = |operation: Operation, errno: i32, said: Option<&str>| {
        Failure::new(operation, errno, said.map(str::to_owned)).to_string()
    };
    let (state, _) = target(&desired(1, [2]), &Observed::default());
    let add = || Operation::AddDevice(device(0), state.devices[&device(0)].link.clone());
    assert_eq!(
        text(add(), 1, None),
        "add device vtep1024 with VNI 1024 on UDP port 64000: operation not permitted: run the \
         agent as root, or give it CAP_NET_ADMIN"
    );
    assert_eq!(
        text(add(), 98, None),
        "add device vtep1024 with VNI 1024 on UDP port 64000: address already in use: see who has \
         UDP port 64000 with 'ss -ulpn sport = :64000', or set another port on all agents"
    );
    assert_eq!(
        text(add(), 95, Some("Unknown device type.")),
        "add device vtep1024 with VNI 1024 on UDP port 64000: operation not supported (Unknown \
         device type): the kernel has no VXLAN: load it with 'modprobe vxlan', or install the \
         kernel's extra modules"
    );
    let hop = Hop::Unreachable;
    let key = RouteKey { subnet: subnet(0, 2), metric: 0 };
    let mut failure = Failure::new(Operation::AddRoute(key, hop), 17, None);
    failure.holder = Some("a route through eth0".to_owned());
    assert_eq!(
        failure.to_string(),
        "add route to 192.168.2.0/24 metric 0 unreachable: file exists: a route through eth0 has \
         it: remove it with 'ip route delete 192.168.2.0/24', or give the overlay another subnet"
    );
}
