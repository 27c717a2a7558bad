//! Tests of the plan against arbitrary states of the kernel. [`State::perform`] models the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_types::addr::{
    DeviceName, Family, InterfaceAddress, Mac, Mtu, OverlayName, Subnet, Vni,
};
use overlay_types::tunnel::{
    ContainersMtu, DirectLink, DirectPeer, DirectRouting, ExcludedPeer, FaultScope, OverlayBridge,
    OverlaySubnets, Peer, PeerFault, VxlanDevice, validate_peers,
};
use proptest::prelude::*;
use rustix::io::Errno;

use super::plan::target;
use super::*;

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
        direct: None,
    }
}

/// The device of this host for direct routing.
fn link() -> DirectLink {
    DirectLink { device: "eth0".parse().unwrap(), mac: mac(101) }
}

/// Returns the offer of a peer. Packets go directly to every third peer.
fn offer(number: u8) -> Option<DirectPeer> {
    let is_used = number.is_multiple_of(3);
    (number % 3 < 2).then_some(DirectPeer { mac: mac(100 + number), is_used })
}

fn direct_underlay(neighbors: &[(u8, u8)]) -> DirectUnderlay {
    DirectUnderlay {
        link: Ok(link()),
        subnet: "10.0.0.0/24".parse().ok(),
        detours: ["10.0.0.7/32".parse().unwrap()].into(),
        neighbors: neighbors.iter().map(|(number, of)| (agent(*number), mac(*of))).collect(),
    }
}

fn bridge() -> OverlayBridge {
    let subnets = ["192.168.1.0/25", "fd01:b:0:0:1::/81"].map(|subnet| subnet.parse().unwrap());
    let gateways = ["192.168.1.1/25", "fd01:b:0:0:1::1/81"].map(|address| address.parse().unwrap());
    let (subnets, gateways) = (subnets.to_vec(), gateways.to_vec());
    OverlayBridge { device: bridge_name(), subnets, gateways }
}

/// A host with two overlays on one device or on a device each, and peers.
fn desired(devices: u32, peers: impl IntoIterator<Item = u8>) -> Desired {
    let local = |number: u32| VxlanDevice {
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
    let space = |number: u32| OverlaySubnets {
        overlay: overlay(number),
        device: device(number.min(devices - 1)),
        whole: if number == 0 {
            vec!["192.168.0.0/16".parse().unwrap(), "fd01:b::/64".parse().unwrap()]
        } else {
            vec!["192.169.0.0/16".parse().unwrap()]
        },
        own: vec![subnet(number, 1)],
        bridges: if number == 0 { vec![bridge()] } else { Vec::new() },
    };
    Desired {
        vxlan_devices: (0..devices).map(local).collect(),
        spaces: (0..2).map(space).collect(),
        peers: Some(peers.into_iter().map(|number| (agent(number), peer(number))).collect()),
        ..Desired::default()
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
    let flags = any::<[bool; 6]>();
    (numbers, flags, prop::option::of(1..3_u8)).prop_map(|((vni, port, own, mtu), flags, from)| {
        let [is_learning, is_up, is_marked, has_ipv6, has_loose_rp_filter, forwards] = flags;
        Link {
            identity: Identity { vni: Vni::new(vni).unwrap(), port, family: Family::V4 },
            mac: mac(own),
            mtu: Mtu::new(mtu).unwrap(),
            underlay: from.map(agent),
            is_learning,
            has_checksum: true,
            is_up,
            is_marked,
            has_ipv6,
            has_loose_rp_filter,
            forwarding: forwards.then_some(Family::V4).into_iter().collect(),
            is_port: forwards,
        }
    })
}

/// Arbitrary states of the bridge of overlay 0.
fn any_bridges() -> impl Strategy<Value = BTreeMap<DeviceName, BridgeState>> {
    let addresses =
        ["192.168.1.1/25", "192.168.2.1/25", "fd01:b:0:0:1::1/81", "fd01:b:0:0:2::1/81"];
    let addresses = prop::sample::subsequence(addresses.to_vec(), 0..=4);
    let bridge =
        (any::<[bool; 3]>(), 1300..1500_u32, addresses).prop_map(|(flags, mtu, addresses)| {
            let [is_up, has_ipv6, forwards] = flags;
            BridgeState {
                is_up,
                mtu: Mtu::new(mtu).unwrap(),
                addresses: addresses.into_iter().map(|address| address.parse().unwrap()).collect(),
                has_ipv6,
                forwarding: forwards.then_some(Family::V6).into_iter().collect(),
                detached: is_up.then(port).into_iter().collect(),
                has_vlan_filtering: forwards,
            }
        });
    prop::option::of(bridge)
        .prop_map(|bridge| bridge.into_iter().map(|bridge| (bridge_name(), bridge)).collect())
}

fn port() -> Port {
    Port { index: 7, name: "veth7".to_owned() }
}

fn lost_bridge() -> LostBridge {
    LostBridge { mac: Some(mac(9)), mtu: Mtu::new(1420).unwrap(), ports: [port()].into() }
}

fn bridge_name() -> DeviceName {
    "m-o0".parse().unwrap()
}

fn any_device() -> impl Strategy<Value = Device> {
    let address = prop_oneof![(1..4_u8).prop_map(vtep), (1..4_u8).prop_map(vtep6)];
    let neighbors = prop::collection::btree_map(
        prop_oneof![(1..9_u8).prop_map(vtep), (1..9_u8).prop_map(vtep6)],
        (1..9_u8).prop_map(mac),
        0..12,
    );
    let forwards =
        prop::collection::btree_map((1..9_u8).prop_map(mac), (1..9_u8).prop_map(agent), 0..12);
    let addresses = prop::collection::btree_set(address.prop_map(interface), 0..4);
    (any_link(), addresses, neighbors, forwards).prop_map(
        |(link, addresses, neighbors, forwards)| Device { link, addresses, neighbors, forwards },
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
    (devices, prop::collection::btree_map(key, hop, 0..20), any_bridges(), any::<bool>()).prop_map(
        |(devices, routes, bridges, is_lost)| {
            let is_lost = is_lost && bridges.is_empty();
            let lost = is_lost.then(|| (bridge_name(), lost_bridge()));
            State { devices, routes, bridges, lost_bridges: lost.into_iter().collect() }
        },
    )
}

fn any_observed() -> impl Strategy<Value = Observed> {
    (any_state(), any::<[bool; 2]>()).prop_map(|(mut state, [is_taken, is_known])| {
        let mut observed = Observed::default();
        if is_taken {
            state.devices.remove(&device(0));
            observed.name_conflicts.insert(device(0), "bridge".to_owned());
        }
        if is_known {
            observed.underlays.insert(agent(1), underlay(9000));
        }
        Observed { state, ..observed }
    })
}

/// Peers with their own addresses. Sometimes one peer has addresses of another peer.
fn any_peers() -> impl Strategy<Value = BTreeMap<u8, u8>> {
    let numbers = prop::collection::btree_set(2..40_u8, 0..38);
    let wrong = prop::option::weighted(0.2, (2..40_u8, 1..40_u8));
    (numbers, wrong).prop_map(|(numbers, wrong)| {
        numbers.into_iter().map(|number| (number, number)).chain(wrong).collect()
    })
}

/// Returns the subnet of twice the size that contains `subnet`.
fn doubled(subnet: Subnet) -> Subnet {
    Subnet::containing(subnet.first(), subnet.prefix() - 1).unwrap()
}

/// Returns the desired state with a peer for each key of `peers`. The value is the number of the
/// agent from which the peer copies all or some addresses.
fn with_peers(devices: u32, peers: &BTreeMap<u8, u8>) -> Desired {
    let mut desired = desired(devices, []);
    desired.direct = Some(DirectRouting { link: Some(link()) });
    let peers = peers.iter().map(|(&number, &like)| {
        let own = Peer { direct: offer(number), ..peer(number) };
        let other = peer(like);
        let peer = match number % 4 {
            _ if like == number => own,
            0 => other,
            1 => {
                let wide = other.subnets.into_iter().map(|(name, subnet)| (name, doubled(subnet)));
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

/// Returns the hops of the IPv4 routes to agent 3, after the plan is applied.
fn hops_to_agent_3(desired: &Desired, observed: &Observed) -> Vec<String> {
    let plan = plan(desired, observed);
    assert_eq!(plan.problems, []);
    let after = state_after(observed, &plan.operations);
    let routes = after.state.routes.iter();
    let hops = routes.filter(|(key, _)| [subnet(0, 3), subnet(1, 3)].contains(&key.subnet));
    hops.map(|(_, hop)| hop.to_string()).collect()
}

#[test]
fn direct_peer_has_routes_through_the_underlay() {
    let direct = "directly to 10.0.0.3 on eth0";
    let tunnel = "via 44.128.0.3 on vtep1024";
    let peers = BTreeMap::from([(2, 2), (3, 3)]);
    let mut desired = with_peers(1, &peers);
    let mut observed = Observed { direct: Some(direct_underlay(&[])), ..Observed::default() };
    assert_eq!(hops_to_agent_3(&desired, &observed), [direct, direct]);
    let route6 = |observed: &Observed| {
        let key = RouteKey { subnet: subnet6(3), metric: 1024 };
        plan(&desired, observed).operations.iter().any(
            |operation| matches!(operation, Operation::AddRoute(to, Hop::Via { .. }) if *to == key),
        )
    };
    assert!(route6(&observed), "IPv6 takes the tunnel");
    observed.direct = Some(DirectUnderlay { link: Err("down".to_owned()), ..direct_underlay(&[]) });
    assert_eq!(hops_to_agent_3(&desired, &observed), [tunnel, tunnel], "the device is gone");
    observed.direct = Some(direct_underlay(&[]));
    desired.peers.as_mut().unwrap().get_mut(&agent(3)).unwrap().direct = None;
    assert_eq!(hops_to_agent_3(&desired, &observed), [tunnel, tunnel], "the offer has ended");
}

#[test]
fn direct_routes_stay_until_the_master_sends_peers() {
    let mut desired = with_peers(1, &[(3, 3)].into());
    let observed = Observed { direct: Some(direct_underlay(&[])), ..Observed::default() };
    let after = state_after(&observed, &plan(&desired, &observed).operations);
    desired.peers = None;
    assert_eq!(plan(&desired, &after).operations, []);
}

#[test]
fn kernel_removes_direct_routes_with_their_source() {
    let desired = with_peers(1, &[(3, 3)].into());
    let observed = Observed { direct: Some(direct_underlay(&[])), ..Observed::default() };
    let mut after = state_after(&observed, &plan(&desired, &observed).operations);
    after.state.perform(&Operation::RemoveAddress(device(0), interface(vtep(1))));
    let is_direct = |hop: &Hop| matches!(hop, Hop::Direct { .. });
    assert!(!after.state.routes.values().any(is_direct));
    let repaired = state_after(&after, &plan(&desired, &after).operations);
    assert_eq!(repaired.state.routes.values().filter(|hop| is_direct(hop)).count(), 2);
}

#[test]
fn direct_report_names_obstacles() {
    let mut desired = desired(1, [2, 3, 4, 5, 7]);
    let peers = desired.peers.as_mut().unwrap();
    for number in [3, 4, 5, 7] {
        let offer = DirectPeer { mac: mac(100 + number), is_used: false };
        peers.get_mut(&agent(number)).unwrap().direct = Some(offer);
    }
    let far = Peer { mac: mac(9), ..peers[&agent(3)].clone() };
    peers.insert("10.0.1.3".parse().unwrap(), far);
    let report = direct_underlay(&[(3, 103), (4, 9), (7, 107)]).report(&desired);
    assert_eq!(report.link, Ok(link()));
    let obstacles = report
        .peers
        .iter()
        .map(|(agent, check)| format!("{agent}: {}", check.obstacle.as_deref().unwrap_or("none")));
    assert_eq!(
        obstacles.collect::<Vec<_>>(),
        [
            "10.0.0.3: none",
            "10.0.0.4: its address has the MAC address 70:b3:d5:80:00:09 here instead of \
             70:b3:d5:80:00:68, which it announces",
            "10.0.0.5: its MAC address is not resolved yet",
            "10.0.0.7: the route to 10.0.0.7/32 leads elsewhere",
            "10.0.1.3: it is in another subnet of the underlay",
        ]
    );
}

#[test]
fn resolved_mac_is_remembered_while_peer_offers_direct_path() {
    let mut desired = desired(1, [3, 4]);
    let offer = DirectPeer { mac: mac(103), is_used: false };
    desired.peers.as_mut().unwrap().get_mut(&agent(3)).unwrap().direct = Some(offer);
    let mut resolved = BTreeMap::new();
    direct_underlay(&[(3, 103), (4, 104)]).remember(&mut resolved, &desired);
    assert_eq!(resolved, BTreeMap::from([(agent(3), mac(103))]), "agent 4 offers nothing");
    let mut idle = direct_underlay(&[]);
    idle.remember(&mut resolved, &desired);
    assert_eq!(idle.neighbors, resolved);
    direct_underlay(&[(3, 9)]).remember(&mut resolved, &desired);
    assert_eq!(resolved, BTreeMap::from([(agent(3), mac(9))]), "the latest MAC counts");
    desired.peers.as_mut().unwrap().clear();
    idle.remember(&mut resolved, &desired);
    assert_eq!(resolved, BTreeMap::new());
}

fn state_after(observed: &Observed, operations: &[Operation]) -> Observed {
    let mut after = observed.clone();
    operations.iter().for_each(|operation| after.state.perform(operation));
    after
}

proptest! {
    #[test]
    fn applied_plan_reaches_desired_state(
        desired in any_desired(),
        observed in any_observed(),
    ) {
        let plan = plan(&desired, &observed);
        let after = state_after(&observed, &plan.operations);
        let (target, _) = target(&desired, &observed);
        prop_assert_eq!(&after.state, &target);
        prop_assert_eq!(super::plan(&desired, &after).operations, []);
    }

    #[test]
    fn plan_never_changes_unmanaged_device(
        desired in any_desired(),
        observed in any_observed(),
    ) {
        prop_assume!(observed.name_conflicts.contains_key(&device(0)));
        for operation in plan(&desired, &observed).operations {
            let text = operation.to_string();
            let is_about_routes = text.contains("remove route");
            prop_assert!(is_about_routes || !text.contains(device(0).as_str()), "{text}");
        }
    }

    #[test]
    fn plan_has_no_duplicate_operation(desired in any_desired(), observed in any_observed()) {
        let mut seen = BTreeSet::new();
        for operation in plan(&desired, &observed).operations {
            prop_assert!(seen.insert(operation.to_string()), "{operation} is planned twice");
        }
    }

    #[test]
    fn partial_plan_matches_full_plan(
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
        let observed = Observed { direct: Some(direct_underlay(&[])), ..Observed::default() };
        let first = plan(&before, &observed);
        let applied = first.includes_every_peer().then_some(&before);
        let applied_state = state_after(&observed, &first.operations);
        let change = plan_change(applied, &after, &applied_state);
        let whole = plan(&after, &applied_state);
        prop_assert_eq!(&change.problems, &whole.problems);
        let [by_change, by_whole] =
            [&change, &whole].map(|plan| state_after(&applied_state, &plan.operations));
        prop_assert_eq!(by_change, by_whole);
        prop_assert_eq!(change.operations.len(), whole.operations.len());
    }

    #[test]
    fn changed_peer_costs_only_its_entries(count in 2..120_u8) {
        let before = desired(1, 2..count);
        let observed = Observed::default();
        let state = state_after(&observed, &plan(&before, &observed).operations);
        let added = plan(&desired(1, 2..=count), &state).operations;
        prop_assert_eq!(added.len(), 6, "2 neighbors, an FDB entry, 3 routes: {:?}", added);
        let removed = plan(&desired(1, 3..count), &state).operations;
        prop_assert!(removed.len() <= 6, "{:?}", removed);
    }
}

#[test]
fn new_device_port_or_overlay_is_not_included() {
    let desired = desired(2, [2, 3]);
    let none = Observed::default();
    assert!(!none.includes_overlays(&desired) && none.includes_overlays(&Desired::default()));
    let complete = state_after(&none, &plan(&desired, &none).operations);
    assert!(complete.includes_overlays(&desired));
    let other_peers = Desired { peers: Some(BTreeMap::new()), ..desired.clone() };
    assert!(complete.includes_overlays(&other_peers), "peers open nothing");
    let mut other_port = desired.clone();
    other_port.vxlan_devices[1].port += 1;
    assert!(!complete.includes_overlays(&other_port));
    let mut other_overlay = desired.clone();
    other_overlay.spaces[0].whole.push("203.0.113.0/24".parse().unwrap());
    assert!(!complete.includes_overlays(&other_overlay));
    let mut without_device = complete;
    without_device.state.devices.remove(&desired.vxlan_devices[1].device);
    assert!(!without_device.includes_overlays(&desired));
}

#[test]
fn plan_order_is_device_address_entry_route() {
    let operations = plan(&desired(1, [2]), &Observed::default()).operations;
    let texts: Vec<_> = operations.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "add device vtep1024 with VNI 1024 on UDP port 64000",
            "mark device vtep1024",
            "enable IPv6 on device vtep1024",
            "set rp_filter 2 of device vtep1024",
            "enable IPv4 forwarding from device vtep1024",
            "enable IPv6 forwarding from device vtep1024",
            "add address 44.128.0.1/16 on device vtep1024",
            "add address fd01:a::1/64 on device vtep1024",
            "set neighbor 44.128.0.2 to 70:b3:d5:80:00:02 on device vtep1024",
            "set neighbor fd01:a::2 to 70:b3:d5:80:00:02 on device vtep1024",
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
fn broken_bridge_is_repaired() {
    let desired_state = Desired { peers: None, ..desired(1, []) };
    let none = Observed::default();
    let mut observed = state_after(&none, &plan(&desired_state, &none).operations);
    // A missing bridge is left to the CNI plugin.
    assert_eq!(plan(&desired_state, &observed).operations, []);
    let stale = ["192.168.7.1/25", "fd01:b:0:0:7::1/81"].map(|address| address.parse().unwrap());
    let bridge = BridgeState {
        is_up: false,
        mtu: Mtu::new(1420).unwrap(),
        addresses: stale.into(),
        has_ipv6: false,
        forwarding: BTreeSet::new(),
        detached: [port()].into(),
        has_vlan_filtering: false,
    };
    observed.state.bridges.insert(bridge_name(), bridge);
    let texts: Vec<_> =
        plan(&desired_state, &observed).operations.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "enable IPv6 on device m-o0",
            "enable IPv4 forwarding from device m-o0",
            "enable IPv6 forwarding from device m-o0",
            "set device m-o0 up",
            "attach port veth7 to bridge m-o0 again",
            "remove address 192.168.7.1/25 of device m-o0",
            "remove address fd01:b::7:0:0:1/81 of device m-o0",
            "add address 192.168.1.1/25 on device m-o0",
            "add address fd01:b::1:0:0:1/81 on device m-o0",
        ]
    );
}

#[test]
fn lost_bridge_is_added_again_with_its_ports() {
    let desired_state = Desired { peers: None, ..desired(1, []) };
    let none = Observed::default();
    let mut observed = state_after(&none, &plan(&desired_state, &none).operations);
    observed.state.lost_bridges.insert(bridge_name(), lost_bridge());
    let operations = plan(&desired_state, &observed).operations;
    let texts: Vec<_> = operations.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "add bridge m-o0 again",
            "enable IPv6 on device m-o0",
            "enable IPv4 forwarding from device m-o0",
            "enable IPv6 forwarding from device m-o0",
            "set device m-o0 up",
            "attach port veth7 to bridge m-o0 again",
            "add address 192.168.1.1/25 on device m-o0",
            "add address fd01:b::1:0:0:1/81 on device m-o0",
        ]
    );
    let after = state_after(&observed, &operations);
    assert_eq!(plan(&desired_state, &after).operations, []);
}

#[test]
fn addresses_that_stop_plugin_are_removed_or_named() {
    let desired_state = Desired { peers: None, ..desired(1, []) };
    let none = Observed::default();
    let mut observed = state_after(&none, &plan(&desired_state, &none).operations);
    let gateways: BTreeSet<_> = bridge().gateways.into_iter().collect();
    let other: InterfaceAddress = "192.168.1.9/25".parse().unwrap();
    // The gateway of a longer subnet, and another address in the bridge's own subnet.
    let stale: InterfaceAddress = "192.168.1.1/24".parse().unwrap();
    let mut state = BridgeState { is_up: true, ..lost_bridge().bare() };
    state.has_ipv6 = true;
    state.forwarding = [Family::V4, Family::V6].into();
    state.addresses = &gateways | &[other, stale].into();
    observed.state.bridges.insert(bridge_name(), state);
    let foreign: InterfaceAddress = "10.9.0.1/24".parse().unwrap();
    observed.foreign_addresses.push((bridge_name(), foreign));
    let plan = plan(&desired_state, &observed);
    let texts: Vec<_> = plan.operations.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["remove address 192.168.1.1/24 of device m-o0"]);
    assert_eq!(
        plan.problems[0].to_string(),
        "bridge m-o0 has the address 10.9.0.1/24 before its own 192.168.1.1/25, so the CNI plugin \
         adds no container to it: find the owner of 10.9.0.1/24; if nothing uses it, run 'ip \
         address delete 10.9.0.1/24 dev m-o0', which cuts off what uses 10.9.0.1/24"
    );
    assert!(desired_state.is_overlay_affected(&overlay(0), &plan.problems[0].scope()));
    assert!(!desired_state.is_overlay_affected(&overlay(1), &plan.problems[0].scope()));
}

#[test]
fn bridge_mtu_fits_containers() {
    let mut desired_state = desired(1, []);
    let containers = Mtu::OVERLAY_DEFAULT;
    desired_state.vxlan_devices[0].containers_mtu = Some(ContainersMtu::Configured(containers));
    let mut observed = Observed::default();
    for (mtu, expected) in [(1300, 1420), (1420, 1420), (1500, 1500)] {
        let bridge = BridgeState {
            is_up: true,
            mtu: Mtu::new(mtu).unwrap(),
            addresses: bridge().gateways.into_iter().collect(),
            has_ipv6: true,
            forwarding: [Family::V4, Family::V6].into(),
            detached: BTreeSet::new(),
            has_vlan_filtering: false,
        };
        observed.state.bridges.insert(bridge_name(), bridge);
        let after = state_after(&observed, &plan(&desired_state, &observed).operations);
        assert_eq!(after.state.bridges[&bridge_name()].mtu.bytes(), expected);
    }
}

#[test]
fn changed_mac_restores_neighbors() {
    let desired_state = desired(1, [2]);
    let observed = Observed::default();
    let mut observed = state_after(&observed, &plan(&desired_state, &observed).operations);
    let own = observed.state.devices.get_mut(&device(0)).unwrap();
    own.link.mac = mac(7);
    let operations = plan(&desired_state, &observed).operations;
    assert!(matches!(operations[0], Operation::SetMac(..)));
    assert!(matches!(operations[1..], [Operation::SetNeighbor(..), Operation::SetNeighbor(..)]));
}

#[test]
fn replaced_vtep_address_restores_routes() {
    let desired_state = desired(1, [2]);
    let observed = Observed::default();
    let mut observed = state_after(&observed, &plan(&desired_state, &observed).operations);
    let own = observed.state.devices.get_mut(&device(0)).unwrap();
    own.addresses = BTreeSet::from([interface(vtep(9)), interface(vtep6(1))]);
    let operations = plan(&desired_state, &observed).operations;
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
fn problem_names_conflict_and_remedy() {
    let mut observed = Observed::default();
    observed.name_conflicts.insert(device(0), "bridge".to_owned());
    let desired_state = desired(1, [2]);
    assert_eq!(
        problems(&desired_state, &observed),
        ["device vtep1024 is a foreign bridge device, so it is left alone: see 'ip -d \
             link show vtep1024', and let its owner rename or remove it"]
    );
    // The unreachable routes of the overlay stay.
    let operations = plan(&desired_state, &observed).operations;
    assert!(operations.iter().all(|operation| operation.to_string().contains("unreachable")));
    let foreign_vxlans = vec![("flannel.1".to_owned(), Vni::new(1024).unwrap(), 64000)];
    assert_eq!(
        problems(&desired_state, &Observed { foreign_vxlans, ..Observed::default() }),
        ["device vtep1024 cannot have VNI 1024 on UDP port 64000, which VXLAN device flannel.1 \
             has: let the owner of flannel.1 remove it, or set another VNI or port on all agents"]
    );
}

fn underlay(mtu: u32) -> Underlay {
    Underlay {
        device: "eth0".to_owned(),
        mtu: Mtu::new(mtu).unwrap(),
        limited_route: None,
        is_routed: true,
        others: Vec::new(),
    }
}

/// Returns the desired state of containers whose MTU follows from the underlay.
fn derived(mtu: u32) -> Desired {
    let mut desired = desired(1, [2]);
    let mtu = Mtu::new(mtu).unwrap();
    desired.vxlan_devices[0].containers_mtu = Some(ContainersMtu::Derived(mtu));
    desired
}

fn on_underlay(underlay: Underlay) -> Observed {
    Observed { underlays: [(agent(1), underlay)].into(), ..Observed::default() }
}

#[test]
fn underlay_below_1360_carries_ipv4_only() {
    for mtu in [1360, 1500, 9000] {
        assert_eq!(problems(&derived(1280), &on_underlay(underlay(mtu))), [""; 0]);
    }
    let observed = on_underlay(underlay(1359));
    let desired_state = derived(1279);
    let plan = plan(&desired_state, &observed);
    let reasons: Vec<_> = plan.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        ["underlay device eth0 has an MTU of 1359, and IPv6 overlays need 1360: if the network \
          carries 1360 bytes, raise it, which changes all traffic of eth0; otherwise remove \
          subnet6 of the overlay"]
    );
    assert_eq!(plan.problems[0].scope(), FaultScope::Subnet("fd01:b::/64".parse().unwrap()));
    let after = state_after(&observed, &plan.operations);
    let own = &after.state.devices[&device(0)];
    assert!(own.addresses.iter().all(|address| address.family() == Family::V4));
    assert!(own.neighbors.keys().all(IpAddr::is_ipv4) && !own.neighbors.is_empty());
    let leads_to_peer =
        |(key, hop): (&RouteKey, &Hop)| (*hop != Hop::Unreachable).then_some(key.subnet.family());
    let families: BTreeSet<_> = after.state.routes.iter().filter_map(leads_to_peer).collect();
    assert_eq!(families, [Family::V4].into());
}

#[test]
fn underlay_below_576_carries_nothing() {
    let mut ipv4 = derived(496);
    ipv4.vxlan_devices[0].ip6 = None;
    ipv4.peers = Some(BTreeMap::new());
    assert_eq!(problems(&ipv4, &on_underlay(underlay(576))), [""; 0]);
    let limited = Underlay { limited_route: Some(agent(2)), ..underlay(575) };
    assert_eq!(
        problems(&ipv4, &on_underlay(limited)),
        ["the route to 10.0.0.2 through eth0 has an MTU of 575, and IPv4 overlays need 576: if \
          the network carries 576 bytes, raise it, which changes all traffic of eth0"]
    );
    ipv4.vxlan_devices[0].mtu = Mtu::new(500).ok();
    assert_eq!(
        problems(&ipv4, &on_underlay(underlay(1500))),
        ["the vtep_mtu of the master gives device vtep1024 an MTU of 500, and IPv4 overlays need \
          526: raise or remove vtep_mtu"]
    );
}

#[test]
fn underlay_without_address_or_route_is_named() {
    let mut observed = Observed::default();
    observed.missing_underlays.insert(agent(1));
    assert_eq!(
        problems(&derived(1420), &observed),
        ["no device of this host has the address 10.0.0.1, from which device vtep1024 sends, so \
          the MTU of the underlay is unknown: restore the address, or register the agent with \
          another one"]
    );
    let mut observed = on_underlay(underlay(1500));
    observed.unroutable.insert(agent(1), (agent(2), Errno::NETUNREACH));
    assert_eq!(
        problems(&derived(1420), &observed),
        ["packets from 10.0.0.1 to agent 10.0.0.2 are dropped without a route: see 'ip route get \
             10.0.0.2', and restore the route to it or the default route"]
    );
}

#[test]
fn shrinking_underlay_removes_ipv6_in_the_order_of_the_kernel() {
    let observed = on_underlay(underlay(1500));
    let desired_state = derived(1420);
    let mut observed = state_after(&observed, &plan(&desired_state, &observed).operations);
    let before = observed.clone();
    observed.underlays.insert(agent(1), underlay(1300));
    let texts: Vec<_> =
        plan(&derived(1220), &observed).operations.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["set MTU 1250 of device vtep1024"]);
    let mut small = state_after(&observed, &plan(&derived(1220), &observed).operations);
    small.underlays.insert(agent(1), underlay(1500));
    let after = state_after(&small, &plan(&desired_state, &small).operations);
    assert_eq!(after.state, before.state);
}

#[test]
fn bridge_mtu_follows_underlay_and_kept_containers() {
    let mut observed = on_underlay(underlay(9000));
    let desired_state = derived(8920);
    let name: OverlayName = "o0".parse().unwrap();
    let cases = [
        (1420, vec![], 8920),
        (1420, vec![("a", 1420), ("b", 8920)], 1420),
        (8950, vec![("b", 8920)], 8920),
        (1420, vec![("a", 1000)], 1280),
    ];
    for (seen, ports, expected) in cases {
        let bridge = BridgeState {
            is_up: true,
            mtu: Mtu::new(seen).unwrap(),
            addresses: bridge().gateways.into_iter().collect(),
            has_ipv6: true,
            forwarding: [Family::V4, Family::V6].into(),
            detached: BTreeSet::new(),
            has_vlan_filtering: false,
        };
        observed.state.bridges.insert(bridge_name(), bridge);
        let ports = ports.into_iter().map(|(port, mtu)| (port.to_owned(), Mtu::new(mtu).unwrap()));
        observed.ports.insert(bridge_name(), ports.collect());
        let after = state_after(&observed, &plan(&desired_state, &observed).operations);
        assert_eq!(after.state.bridges[&bridge_name()].mtu.bytes(), expected);
    }
    assert_eq!(name.mesos_bridge(), bridge_name());
    assert_eq!(
        observed.kept_mtus(&desired_state),
        ["1 container of overlay o0 (ports a of m-o0) with an MTU of 1000 instead of 8920: \
          restart them as tasks of their framework to change it"]
    );
}

#[test]
fn invalid_peer_is_left_out_and_named() {
    let mut desired_state = desired(1, [2]);
    let mut add = |address: &str, change: &dyn Fn(&mut Peer)| {
        let number = 10 + u8::try_from(desired_state.peers.as_ref().unwrap().len()).unwrap();
        let mut peer = peer(number);
        change(&mut peer);
        desired_state.peers.as_mut().unwrap().insert(address.parse().unwrap(), peer);
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
    let fault = PeerFault::UnderlayTaken { underlay: other.into(), other };
    desired_state.excluded_peers =
        vec![ExcludedPeer { agent, overlays: [overlay(0)].into(), fault }];
    assert!(desired_state.is_overlay_affected(&overlay(0), &FaultScope::Agent(agent.into())));
    assert!(!desired_state.is_overlay_affected(&overlay(1), &FaultScope::Agent(agent.into())));
    assert_eq!(
        problems(&desired_state, &Observed::default()),
        [
            "agent 10.0.0.7: its underlay address 10.0.0.2 belongs to agent 10.0.0.2: set another \
             underlay on one of the two agents, or delete one of them at the master",
            "agent 10.0.0.20: its MAC address 01:01:01:01:01:01 is not unicast: set another \
             vtep_mac_oui",
            "agent 10.0.0.21: its VTEP address 8.8.8.8 is no host address of the VTEP subnet: \
             check vtep_subnet at the master",
            "agent 10.0.0.22: its VTEP address 44.128.0.2 belongs to agent 10.0.0.2: delete one of \
             the two agents at the master",
            "agent 10.0.0.23: its subnet 0.0.0.0/0 is outside overlay o0: check the overlay's \
             subnet at the master",
            "agent 10.0.0.24: its subnet 192.168.1.0/24 overlaps 192.168.1.0/24 of agent 10.0.0.1: \
             delete one of the two agents",
            "agent 10.0.0.25: its subnet 192.168.2.128/25 overlaps 192.168.2.0/24 of agent \
             10.0.0.2: delete one of the two agents",
            "agent 10.0.0.26: its subnet fd01:b:0:0:9::/80 is IPv6 and its VTEP has no IPv6 \
             address: set vtep_subnet6",
            "agent 10.0.0.27: its subnet 192.168.41.0/24 is its second in overlay o0: check the \
             agent in the master's state",
            "agent 127.0.0.1: its address 127.0.0.1 is not a host address: check the address \
             that the agent advertises",
            "agent 192.168.7.7: its address 192.168.7.7 lies inside of 192.168.0.0/16 of the \
             overlays: give the overlay another subnet",
            "agent ::ffff:10.0.0.9: its address ::ffff:10.0.0.9 is not a host address: check \
             the address that the agent advertises",
            "agent fd00::99: its address fd00::99 and this host's underlay differ in address \
             family: register both agents with the same family",
            "agent fe80::1: its address fe80::1 is not a host address: check the address that \
             the agent advertises",
        ]
    );
    let left: Vec<_> = validate_peers(&desired_state).0.into_keys().collect();
    assert_eq!(left.len(), 6, "{left:?}");
}

#[test]
fn peer_is_only_on_devices_of_its_overlays() {
    let mut desired_state = desired(2, [2, 3]);
    desired_state
        .peers
        .as_mut()
        .unwrap()
        .get_mut(&agent(3))
        .unwrap()
        .subnets
        .retain(|(name, _)| *name == overlay(0));
    let (state, problems) = target(&desired_state, &Observed::default());
    assert_eq!(problems, []);
    assert_eq!(state.devices[&device(0)].forwards.len(), 2);
    assert_eq!(state.devices[&device(1)].forwards.len(), 1);
}

#[test]
fn error_names_remedy() {
    let text = |operation: Operation, errno: Errno, message: Option<&str>| {
        Failure::new(operation, errno, message.map(str::to_owned)).to_string()
    };
    let (state, _) = target(&desired(1, [2]), &Observed::default());
    let add = || Operation::AddDevice(device(0), state.devices[&device(0)].link.clone());
    assert_eq!(
        text(add(), Errno::PERM, None),
        "add device vtep1024 with VNI 1024 on UDP port 64000: operation not permitted: run the \
         agent as root, or give it CAP_NET_ADMIN"
    );
    assert_eq!(
        text(add(), Errno::ADDRINUSE, None),
        "add device vtep1024 with VNI 1024 on UDP port 64000: address already in use: find the \
         owner of UDP port 64000 with 'ss -ulpn sport = :64000', or set another port on all agents"
    );
    assert_eq!(
        text(add(), Errno::OPNOTSUPP, Some("Unknown device type.")),
        "add device vtep1024 with VNI 1024 on UDP port 64000: operation not supported (Unknown \
         device type): the kernel has no VXLAN: load it with 'modprobe vxlan', which adds a \
         module to the kernel, or install the kernel's extra modules"
    );
    let hop = Hop::Unreachable;
    let key = RouteKey { subnet: subnet(0, 2), metric: 0 };
    let mut failure = Failure::new(Operation::AddRoute(key, hop), Errno::EXIST, None);
    failure.holder = Some("a route through eth0".to_owned());
    assert_eq!(
        failure.to_string(),
        "add route to 192.168.2.0/24 metric 0 unreachable: file exists: the new route conflicts \
         with a route through eth0, which this host may need: see 'ip route show table all \
         192.168.2.0/24', and give the overlay another subnet, or let the owner of that route move \
         it"
    );
}
