//! The text of obstacles, and the faults of the overlays.

use overlay_types::addr::Family;
use overlay_types::protocol::Status;
use overlay_types::tunnel::FaultScope;

use super::listing::{Listing, read_queues};
use super::packet::DevicesByAddress;
use super::tests::{desired, found_in, iptables, iptables_filter, nft_table, summary};
use super::{DropCause, obstacles};

#[test]
fn obstacle_names_place_owner_and_remedy() {
    let text = |listing: &Listing| found_in(listing)[0].to_string();
    let docker =
        ":FORWARD ACCEPT\n:DOCKER-USER -\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j DROP";
    assert_eq!(
        text(&iptables(Family::V4, "filter", "", docker)),
        "packets of containers from m-vxlan-1 to peers (192.168.2.0/24) are dropped by rule \
         'DOCKER-USER -j DROP' (iptables-legacy, table filter, chain DOCKER-USER, owned by \
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

#[test]
fn long_rule_does_not_push_command_out_of_status() {
    let addresses: Vec<_> =
        (0..5000).map(|number| format!("10.1.{}.{}", number / 250, number % 250)).collect();
    let comment = addresses.join(",");
    let rules = format!(":FORWARD ACCEPT\n-A FORWARD -m comment --comment \"{comment}\" -j DROP");
    let text = found_in(&iptables_filter(&rules))[0].to_string();
    assert!(text.contains("iptables -I FORWARD -o vtep1024 -j ACCEPT'"), "{text}");
    let Status::Failed(shown) = Status::Failed(text.clone()).sanitized() else { panic!("{text}") };
    assert_eq!(shown, text);
}

#[test]
fn text_does_not_change_with_position_of_rule() {
    let text = |before: &str| {
        let rules = format!(":FORWARD ACCEPT\n{before}-A FORWARD -j DROP");
        found_in(&iptables_filter(&rules))[0].to_string()
    };
    assert_eq!(text(""), text("-A FORWARD -i eth7 -j ACCEPT\n"));
}

#[test]
fn firewalld_moves_devices_and_names_of_others_are_quoted() {
    let mut listing = nft_table("inet", "forward", "drop", &[]);
    listing.nft = listing.nft.map(|text| text.replace("site", "firewalld"));
    let found = &found_in(&listing)[0];
    assert!(
        found.command.text().contains("--zone=trusted --change-interface=m-vxlan-1"),
        "{found}"
    );
    let effect = found.command.effect().unwrap();
    assert!(effect.contains("closes no port of this host to containers"), "{found}");
    let chain = ":FORWARD ACCEPT\n:$(reboot) -\n-A FORWARD -j $(reboot)\n-A $(reboot) -j DROP";
    let found = &found_in(&iptables_filter(chain))[0];
    assert_eq!(found.chain, "$(reboot)");
    assert!(!found.command.text().contains("$(reboot)"), "{found}");
    let mut listing = nft_table("inet", "forward", "drop", &[]);
    listing.nft = listing.nft.map(|text| text.replace("site", "a;b"));
    let found = &found_in(&listing)[0];
    assert!(found.command.text().contains("nft insert rule inet \"a;b\" c "), "{found}");
}

#[test]
fn unknown_uplink_makes_rules_about_devices_uncertain() {
    let two_uplinks = ":INPUT DROP\n-A INPUT -i eth1 -p udp -m udp --dport 64000 -j ACCEPT\n\
                       -A INPUT -i lo -j ACCEPT";
    let found = |rules: &str| {
        let found = obstacles(&iptables_filter(rules), &desired(), &DevicesByAddress::new(), false);
        found.iter().map(|found| found.is_definite).collect::<Vec<_>>()
    };
    assert_eq!(found(two_uplinks), [false]);
    assert_eq!(found(":INPUT DROP\n-A INPUT -i lo -j ACCEPT"), [true]);
}

#[test]
fn queue_without_reader_drops() {
    let causes = |rule: &str, read: Option<&[u16]>| {
        let mut listing = iptables_filter(&format!(":FORWARD ACCEPT\n-A FORWARD {rule}"));
        listing.read_queues = read.map(|read| read.iter().copied().collect());
        found_in(&listing).iter().map(|found| found.cause).collect::<Vec<_>>()
    };
    let unread = [DropCause::UnreadQueue];
    assert_eq!(causes("-j NFQUEUE --queue-num 7", Some(&[6, 8])), unread);
    assert_eq!(causes("-j NFQUEUE --queue-num 7", Some(&[7])), []);
    assert_eq!(causes("-j NFQUEUE --queue-num 7", None), [], "the list cannot be read");
    assert_eq!(causes("-j NFQUEUE --queue-num 7 --queue-bypass", Some(&[])), []);
    assert_eq!(causes("-j NFQUEUE --queue-balance 0:3", Some(&[4])), unread);
    assert_eq!(causes("-j NFQUEUE --queue-balance 0:3", Some(&[3])), []);
    assert_eq!(causes("-j NFQUEUE", Some(&[])), unread);
}

#[test]
fn queues_have_no_reader_before_their_module_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_queues(&dir.path().join("none")), None, "a kernel without netfilter");
    assert_eq!(read_queues(dir.path()), Some([].into()));
    let line = "    7   4711     0 2 65531     0     0        0  1\n";
    std::fs::write(dir.path().join("nfnetlink_queue"), line).unwrap();
    assert_eq!(read_queues(dir.path()), Some([7].into()));
}

#[test]
fn foreign_source_address_is_an_obstacle_to_peers_only() {
    let found = |rule: &str| {
        let rules = format!(":POSTROUTING ACCEPT\n-A POSTROUTING {rule}");
        summary(&iptables(Family::V4, "nat", " (nf_tables)", &rules))
    };
    assert_eq!(found("-j SNAT --to-source 10.0.0.1"), "> POSTROUTING 1");
    assert_eq!(found("-s 192.168.0.0/17 -j SNAT --to-source 10.0.0.1"), "> POSTROUTING 1");
    for harmless in [
        "-o eth0 -j SNAT --to-source 10.0.0.1",
        "-s 172.17.0.0/16 -j SNAT --to-source 10.0.0.1",
        "! -d 192.168.0.0/17 -j SNAT --to-source 10.0.0.1",
        "-o m-vxlan-1 -j SNAT --to-source 192.168.0.1",
        // The packets get the address of the VTEP, which peers accept.
        "-j MASQUERADE",
    ] {
        assert_eq!(found(harmless), "", "{harmless}");
    }
}
