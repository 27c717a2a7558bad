//! Commands for objects of other programs in the way of packets: each is run against its cause.

use overlay_types::addr::Family;
use overlay_types::advice::Command;

use crate::namespace::{Namespace, run};

struct Case {
    /// What another program did, for a shell.
    cause: &'static str,
    command: Command,
    /// Prints what the command must restore.
    shown: &'static str,
    expected: &'static str,
}

const fn case(
    cause: &'static str,
    command: Command,
    shown: &'static str,
    expected: &'static str,
) -> Case {
    Case { cause, command, shown, expected }
}

/// The commands whose effect is visible in a namespace with bridge `m-vxlan-1` and port `port`.
fn cases() -> Vec<Case> {
    let bridge = "m-vxlan-1".parse().expect("a name");
    let container = "192.168.0.2".parse().expect("an address");
    vec![
        case(
            "ip link set port nomaster",
            Command::return_port("port", &bridge),
            "ip -o link show port | grep -o 'master m-vxlan-1'",
            "master m-vxlan-1",
        ),
        case(
            "ip link set port down",
            Command::set_port_up("port"),
            "ip -o link show port | grep -o ',UP'",
            ",UP",
        ),
        case(
            "bridge link set dev port state 0",
            Command::forward_from_port("port"),
            "bridge link show dev port | grep -o 'state forwarding'",
            "state forwarding",
        ),
        case(
            "ip rule delete priority 32766",
            Command::restore_policy_rule(Family::V4, 32_766, "main"),
            "ip rule show | grep -o 'lookup main'",
            "lookup main",
        ),
        case(
            "ip link set m-vxlan-1 arp off",
            Command::enable_arp(&bridge),
            "ip -o link show m-vxlan-1 | grep -c NOARP || true",
            "0",
        ),
        case(
            "sysctl -qw net.ipv4.conf.all.arp_ignore=8",
            Command::answer_arp("all"),
            "sysctl -n net.ipv4.conf.all.arp_ignore",
            "1",
        ),
        case(
            "ip neigh replace 192.168.0.2 lladdr 02:00:00:00:00:99 dev m-vxlan-1 nud permanent",
            Command::remove_foreign_neighbor(container, "m-vxlan-1"),
            "ip neigh show dev m-vxlan-1 | grep -c 02:00:00:00:00:99 || true",
            "0",
        ),
        case(
            "tc qdisc replace dev m-vxlan-1 root htb",
            Command::restore_discipline("m-vxlan-1", "htb"),
            "tc qdisc show dev m-vxlan-1 | grep -c htb || true",
            "0",
        ),
    ]
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn command_for_interference_ends_it_and_names_its_effect() {
    let host = Namespace::new();
    let shell = |script: &str| host.succeed("sh", &["-ec", script]);
    shell(
        "ip link add m-vxlan-1 type bridge; ip link set m-vxlan-1 up; \
         ip link add port type veth peer name other; ip link set other up; \
         ip link set port master m-vxlan-1 up",
    );
    for Case { cause, command, shown, expected } in cases() {
        shell(cause);
        shell(command.text());
        assert_eq!(shell(shown).trim(), expected, "{command}");
        assert!(command.effect().is_some(), "{command} names no effect");
    }
    for command in [
        Command::show_filters("m-vxlan-1", "ingress"),
        Command::show_ipsec_policies(Family::V4),
        Command::show_ipsec_policies(Family::V6),
    ] {
        shell(command.text());
        assert_eq!(command.effect(), None, "{command}");
    }
}

/// A kernel that cannot separate VLANs refuses the command, and never needs it.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn command_for_vlans_sets_option_of_bridge() {
    let host = Namespace::new();
    host.run("ip link add m-vxlan-1 type bridge");
    let command = Command::disable_vlan_filtering(&"m-vxlan-1".parse().expect("a name"));
    assert_eq!(command.effect(), None);
    let can_separate = run(
        host.command("sh").args(["-ec", "ip link set m-vxlan-1 type bridge vlan_filtering 1"]),
        "",
    );
    let output = run(host.command("sh").args(["-ec", command.text()]), "");
    assert_eq!(output.status.success(), can_separate.status.success(), "{output:?}");
    let shown = host.run("ip -d link show m-vxlan-1");
    assert!(!shown.contains("vlan_filtering 1"), "{shown}");
}
