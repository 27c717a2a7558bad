//! The text of obstacles, and the faults of the overlays.

use overlay_types::addr::Family;
use overlay_types::tunnel::FaultScope;

use super::listing::Listing;
use super::obstacles;
use super::packet::DevicesByAddress;
use super::tests::{desired, found_in, iptables, iptables_filter, nft_table};

#[test]
fn obstacle_names_place_owner_and_remedy() {
    let text = |listing: &Listing| found_in(listing)[0].to_string();
    let docker =
        ":FORWARD ACCEPT\n:DOCKER-USER -\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j DROP";
    assert_eq!(
        text(&iptables(Family::V4, "filter", "", docker)),
        "packets of containers from m-vxlan-1 to peers (192.168.2.0/24) are dropped by rule \
         'DOCKER-USER -j DROP' (iptables-legacy, table filter, chain DOCKER-USER, rule 1, owned by \
         Docker): let them pass with 'iptables -I DOCKER-USER -i vtep1024 -j ACCEPT && iptables -I \
         DOCKER-USER -o vtep1024 -j ACCEPT', which adds rules to chain DOCKER-USER of table filter"
    );
    let ufw = ":INPUT DROP\n:ufw-before-input -\n-A INPUT -j ufw-before-input";
    let shown = text(&iptables(Family::V4, "filter", "", ufw));
    assert!(
        shown.contains("chain INPUT, owned by ufw): let them pass with 'ufw allow 64000/udp'"),
        "{shown}"
    );
    let mut firewalld = nft_table("inet", "input", "drop", &[]);
    firewalld.nft = firewalld.nft.map(|text| text.replace("site", "firewalld"));
    let shown = text(&firewalld);
    let expected = "owned by firewalld): let them pass with 'firewall-cmd --add-port=64000/udp && \
                    firewall-cmd --permanent --add-port=64000/udp'";
    assert!(shown.contains(expected), "{shown}");
    let mangle = ":PREROUTING ACCEPT\n-A PREROUTING -i vtep1024 -j DROP";
    let mut listing = iptables(Family::V4, "mangle", " (nf_tables)", mangle);
    listing.iptables[0].is_default = false;
    let shown = text(&listing);
    assert!(
        shown.contains("'iptables-nft -t mangle -I PREROUTING -i vtep1024 -j ACCEPT'"),
        "{shown}"
    );
}

#[test]
fn faults_affect_overlays_whose_packets_are_dropped() {
    let mut desired = desired();
    let mut other = desired.vxlan_devices[0].clone();
    other.device = "vtep2048".parse().unwrap();
    desired.vxlan_devices.push(other);
    let mut second = desired.spaces[0].clone();
    second.overlay = "vxlan-2".parse().unwrap();
    second.own = vec!["192.168.128.0/24".parse().unwrap()];
    desired.spaces.push(second);
    let scopes = |rules: &str| -> Vec<FaultScope> {
        let listing = iptables_filter(rules);
        let found = obstacles(&listing, &desired, &DevicesByAddress::new(), false);
        let faults = found.iter().flat_map(|found| found.faults(&desired));
        faults.map(|fault| fault.scope).collect()
    };
    let device = |name: &str| FaultScope::Device(name.parse().unwrap());
    assert_eq!(scopes(":INPUT DROP"), [device("vtep1024"), device("vtep2048")]);
    assert_eq!(scopes(":FORWARD DROP"), [device("vtep1024")]);
    let subnet = FaultScope::Subnet("192.168.0.0/24".parse().unwrap());
    assert_eq!(scopes(":FORWARD ACCEPT\n-A FORWARD -d 192.168.2.0/23 -j DROP"), [subnet]);
}
