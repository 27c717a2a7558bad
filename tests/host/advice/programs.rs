//! Commands of programs that do not work in a network namespace or are not installed, and commands
//! that only show something.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use overlay_linux::dataplane::Dataplane;
use overlay_types::addr::Family;
use overlay_types::advice::{Command, IptablesRule, NftRule, RulePackets};

use crate::hosts::{Hosts, Underlay, device};
use crate::namespace::{Namespace, run};
use crate::process::PROGRAM;

/// The programs that are replaced by one that records its arguments, and why.
///
/// | programs | why |
/// | --- | --- |
/// | firewall-cmd, ufw, ethtool, docker | not installed on every machine |
/// | systemctl | manages the machine |
/// | modprobe | loads modules for the whole machine |
/// | sysctl of `nf_conntrack_max` and `gc_thresh3` | limits of the whole machine, which a network namespace cannot change |
/// | mesos-overlay forget | needs a master with that agent: see `tests/cli/forget.rs` |
const RECORDED: [&str; 8] = [
    "firewall-cmd",
    "ufw",
    "ethtool",
    "docker",
    "systemctl",
    "modprobe",
    "sysctl",
    "mesos-overlay",
];

/// Runs the command with the programs of `folder` before those of the system.
fn run_with(namespace: &Namespace, folder: &Path, command: &Command) -> std::process::Output {
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    let mut shell = namespace.command("env");
    run(shell.arg(format!("PATH={path}")).args(["sh", "-ec", command.text()]), "")
}

/// Returns the arguments that the programs of the command get, one line a program.
fn recorded(command: &Command) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    for name in RECORDED {
        let path = dir.path().join(name);
        let script = format!("#!/bin/sh\necho {name} \"$@\" >> {}\n", log.display());
        fs::write(&path, script).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permission");
    }
    let output = run_with(&Namespace::new(), dir.path(), command);
    assert!(output.status.success(), "{command}: {output:?}");
    fs::read_to_string(log).unwrap_or_default()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn command_of_other_program_gets_its_arguments() {
    let overlay = "vxlan-1".parse().expect("a valid name");
    let agent = "10.0.0.7".parse().expect("an address");
    let cases = [
        (
            Command::open_firewalld_port(64_000),
            "firewall-cmd --add-port=64000/udp\nfirewall-cmd --permanent --add-port=64000/udp\n",
        ),
        (
            Command::trust_device_in_firewalld("vtep1024"),
            "firewall-cmd --zone=trusted --change-interface=vtep1024\n\
             firewall-cmd --permanent --zone=trusted --change-interface=vtep1024\n",
        ),
        (Command::open_ufw_port(64_000, false), "ufw allow 64000/udp\n"),
        (Command::open_ufw_port(64_000, true), "ufw allow out 64000/udp\n"),
        (
            Command::allow_forwarding_in_ufw(&device()),
            "ufw route allow in on vtep1024\nufw route allow out on vtep1024\n",
        ),
        (Command::load_vxlan_module(), "modprobe vxlan\n"),
        (Command::start_docker(), "systemctl start docker\n"),
        (Command::raise_conntrack_max(9), "sysctl -w net.netfilter.nf_conntrack_max=9\n"),
        (
            Command::raise_neighbor_max(Family::V6, 9),
            "sysctl -w net.ipv6.neigh.default.gc_thresh3=9\n",
        ),
        (
            Command::disable_checksum_offload(&device()),
            "ethtool -K vtep1024 tx-checksum-ip-generic off\n",
        ),
        (
            Command::enable_checksum_offload(&device()),
            "ethtool -K vtep1024 tx-checksum-ip-generic on\n",
        ),
        (Command::disable_all_checksum_offload("eth0"), "ethtool -K eth0 tx off\n"),
        (
            Command::disable_tunnel_segmentation("eth0"),
            "ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off\n",
        ),
        (Command::remove_docker_network(&overlay), "docker network rm vxlan-1\n"),
        (
            Command::forget_agent(agent, "10.0.0.1:5050"),
            "mesos-overlay forget --master 10.0.0.1:5050 10.0.0.7\n",
        ),
        (Command::release_leaked_leases(), "mesos-overlay ipam check --fix\n"),
        (Command::write_setting("net/ipv4/ip_forward", 1), "sysctl -w net/ipv4/ip_forward=1\n"),
    ];
    for (command, expected) in cases {
        assert_eq!(recorded(&command), expected);
        assert!(command.effect().is_some() || is_own(&command), "{command} names no effect");
    }
    // The limits exist, under these names.
    for name in ["net/netfilter/nf_conntrack_max", "net/ipv6/neigh/default/gc_thresh3"] {
        let path = Path::new("/proc/sys").join(name);
        assert!(path.exists() || !Path::new("/proc/sys/net/netfilter").exists(), "{name}");
    }
}

fn is_own(command: &Command) -> bool {
    ["vtep1024", "docker network rm vxlan-1", "mesos-overlay ipam"]
        .iter()
        .any(|own| command.text().contains(own))
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn command_that_shows_something_succeeds() {
    let hosts = Hosts::new(2, Underlay::V4);
    hosts.program();
    let host = &hosts.hosts[0].namespace;
    let ip = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let subnet = "192.168.2.0/24".parse().expect("a subnet");
    let bridge = "m-vxlan-1".parse().expect("a name");
    let dir = tempfile::tempdir().expect("a temporary directory");
    symlink(PROGRAM, dir.path().join("mesos-overlay")).expect("a link");
    let docker = "#!/bin/sh\nif [ \"$2\" = ls ]; then echo 1 2; fi\n";
    fs::write(dir.path().join("docker"), docker).expect("a script");
    fs::set_permissions(dir.path().join("docker"), fs::Permissions::from_mode(0o755))
        .expect("permission");
    host.run("sysctl -qw net.ipv4.ip_forward=1");
    let commands = [
        Command::show_route_to(ip("10.0.0.2")),
        Command::show_route_of_forwarded(ip("192.168.2.2"), ip("192.168.1.2"), &bridge),
        Command::show_routes(subnet),
        Command::show_device("vtep1024"),
        Command::show_process(std::process::id()),
        Command::show_port_owner(64_000),
        Command::show_docker_networks(),
        Command::show_nft_version(),
    ];
    let before = super::foreign(host);
    for command in commands {
        let output = run_with(host, dir.path(), &command);
        assert!(output.status.success(), "{command}: {output:?}");
        assert_eq!(command.effect(), None, "{command}");
    }
    let command = Command::run_doctor_in_namespace_of(std::process::id());
    let output = run_with(host, dir.path(), &command);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains(" findings: "), "{command}: {output:?}");
    assert_eq!(super::foreign(host), before);
}

/// Commands that the agent advises for what it does not repair itself, on a bridge of an overlay.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn command_for_bridge_changes_only_what_it_names() {
    let host = Namespace::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    host.succeed(
        "sh",
        &["-ec", "ip link add port type veth peer name other; ip link add eth9 type bridge"],
    );
    host.run("sysctl -qw net.ipv4.conf.eth9.forwarding=0");
    let bridge = "d-vxlan-1".parse().expect("a name");
    let before = super::foreign(&host);
    for command in [Command::add_bridge(&bridge), Command::attach_port("port", &bridge)] {
        let output = run_with(&host, dir.path(), &command);
        assert!(output.status.success(), "{command}: {output:?}");
        assert_eq!(command.effect(), None);
    }
    assert!(host.run("ip link show port").contains("master d-vxlan-1"));
    // Not every kernel has VRFs: `tests/run kernels` runs these commands with one.
    let [own, underlay] =
        [Command::release_device("port"), Command::release_underlay_from_vrf("port")];
    assert_eq!((own.text(), own.effect()), (underlay.text(), None));
    assert_eq!(underlay.effect(), Some("ends the traffic of the VRF through the device"));
    assert!(run_with(&host, dir.path(), &own).status.success());
    assert!(!host.run("ip link show port").contains("master"));
    host.run("ip link delete d-vxlan-1");
    assert_eq!(super::foreign(&host), before);

    host.run("ip link add d-vxlan-1 type bridge");
    host.run("ip addr add 10.9.9.1/24 dev d-vxlan-1");
    let address = "10.9.9.1/24".parse().expect("an address");
    let cases = [
        (Command::remove_foreign_address(&bridge, address), "cuts off what uses 10.9.9.1/24"),
        (Command::forward_from_uplink("eth9"), "concerns all packets from eth9"),
    ];
    for (command, effect) in cases {
        let output = run_with(&host, dir.path(), &command);
        assert!(output.status.success(), "{command}: {output:?}");
        assert_eq!(command.effect(), Some(effect));
    }
    assert!(!host.run("ip addr show d-vxlan-1").contains("10.9.9.1"));
    assert_eq!(host.run("sysctl -n net.ipv4.conf.eth9.forwarding").trim(), "1");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn chain_and_file_with_special_letters_are_quoted() {
    let host = Namespace::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rule = IptablesRule { program: "iptables", table: "filter", chain: "a$(b)c" };
    host.succeed("iptables", &["-N", rule.chain]);
    let packets = RulePackets::Port(64_000);
    for command in [
        Command::insert_iptables_rule(rule, &packets),
        Command::insert_iptables_rule(IptablesRule { chain: "FORWARD", ..rule }, &packets),
    ] {
        let output = run_with(&host, dir.path(), &command);
        assert!(output.status.success(), "{command}: {output:?}");
    }
    host.succeed("nft", &["add table inet site; add chain inet site fw"]);
    let rule = NftRule { family: "inet", table: "site", chain: "fw" };
    let output = run_with(&host, dir.path(), &Command::insert_nft_rule(rule, &packets));
    assert!(output.status.success(), "{output:?}");
    let file = dir.path().join("a credential");
    fs::write(&file, "").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("permission");
    let output = run_with(&host, dir.path(), &Command::restrict_file(&file));
    assert!(output.status.success(), "{output:?}");
    let mode = fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn device_without_checksum_is_kept_until_replaced() {
    let hosts = Hosts::new(1, Underlay::V4);
    let (host, desired) = (&hosts.hosts[0], Arc::new(hosts.desired(&hosts.hosts[0])));
    let verify = |has_checksum| {
        host.namespace.inside(|| {
            let mut dataplane = Dataplane::open().expect("a netlink socket");
            dataplane.set_checksum(has_checksum);
            dataplane.verify(&desired).expect("the state is readable");
        });
        host.namespace.run("ip -d link show vtep1024").contains(" udpcsum")
    };
    assert!(!verify(false));
    assert!(!verify(true), "an existing device is kept");
    host.namespace.succeed("sh", &["-ec", Command::replace_device(&device()).text()]);
    assert!(verify(true));
    assert!(verify(false), "an existing device is kept");
}
