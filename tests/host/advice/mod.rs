//! Every command that messages and the doctor advise is run: each removes its fault, and changes no
//! object of other programs unless it says so. `tests/tidy.rs` compares the names here with the
//! functions of `overlay_types::advice`.
//!
//! The doctor shows the commands of [`CASES`], the operator runs them as shown. The programs of
//! [`programs`] do not work in a network namespace or are not installed: there the test checks what
//! the shell passes to them.

mod interference;
mod programs;

use std::fmt::Write as _;

use serde_json::Value;

use crate::doctor::{DiagnosedCluster, Diagnosis};
use crate::hosts::Underlay;
use crate::namespace::Namespace;
use crate::traffic::now;

/// A fault, and the command that removes it.
struct Case {
    /// The function of `overlay_types::advice::Command`.
    function: &'static str,
    /// A shell script that causes the fault.
    cause: &'static str,
    /// The beginning of the command that the doctor shows first.
    command: &'static str,
    /// What remains to be removed after the command.
    reset: &'static str,
}

const fn case(function: &'static str, cause: &'static str, command: &'static str) -> Case {
    Case { function, cause, command, reset: "true" }
}

const CASES: [Case; 26] = [
    case("set_device_up", "ip link set vtep1024 down", "ip link set vtep1024 up"),
    case("set_device_up", "ip link set m-vxlan-1 down", "ip link set m-vxlan-1 up"),
    case(
        "set_device_mac",
        "ip link set vtep1024 address 70:b3:d5:00:00:99",
        "ip link set vtep1024 address 70:b3:d5:80:00:01",
    ),
    case("set_device_mtu", "ip link set vtep1024 mtu 1500", "ip link set vtep1024 mtu 1450"),
    case("set_device_mtu", "ip link set vtep1024 mtu 1300", "ip link set vtep1024 mtu 1450"),
    case("mark_device", "ip link set vtep1024 alias other", "ip link set vtep1024 alias"),
    case(
        "remove_device",
        "ip link add vtep99 type vxlan id 99 dstport 64001 local 10.0.0.1 nolearning
         ip link set vtep99 alias mesos-overlay up",
        "ip link delete vtep99",
    ),
    case(
        "enable_ipv6",
        "sysctl -qw net.ipv6.conf.vtep1024.disable_ipv6=1",
        "sysctl -w net/ipv6/conf/vtep1024/disable_ipv6=0",
    ),
    case(
        "enable_forwarding",
        "sysctl -qw net.ipv4.conf.vtep1024.forwarding=0",
        "sysctl -w net/ipv4/conf/vtep1024/forwarding=1",
    ),
    case(
        "enable_forwarding",
        "sysctl -qw net.ipv6.conf.vtep1024.forwarding=0",
        "sysctl -w net/ipv6/conf/vtep1024/forwarding=1",
    ),
    case(
        "loosen_rp_filter",
        "sysctl -qw net.ipv4.conf.vtep1024.rp_filter=1",
        "sysctl -w net/ipv4/conf/vtep1024/rp_filter=2",
    ),
    case("add_address", "ip addr flush dev vtep1024", "ip addr add "),
    case("add_address", "ip addr flush dev m-vxlan-1 to 192.168.0.0/16", "ip addr add "),
    case(
        "remove_address",
        "ip addr add 192.168.77.1/25 dev m-vxlan-1",
        "ip addr delete 192.168.77.1/25 dev m-vxlan-1",
    ),
    case(
        "set_neighbor",
        "ip neigh del 44.128.0.2 dev vtep1024",
        "ip neigh replace 44.128.0.2 lladdr 70:b3:d5:80:00:02 dev vtep1024 nud permanent",
    ),
    case(
        "remove_neighbor",
        "ip neigh add 44.128.0.77 lladdr 02:00:00:00:00:77 dev vtep1024 nud permanent",
        "ip neigh delete 44.128.0.77 dev vtep1024",
    ),
    case(
        "set_fdb_entry",
        "bridge fdb del 70:b3:d5:80:00:02 dev vtep1024 dst 10.0.0.2 self",
        "bridge fdb replace 70:b3:d5:80:00:02 dev vtep1024 dst 10.0.0.2 self permanent",
    ),
    case(
        "remove_fdb_entry",
        "bridge fdb add 02:00:00:00:00:77 dev vtep1024 dst 10.0.0.77 self permanent",
        "bridge fdb delete 02:00:00:00:00:77 dev vtep1024 dst 10.0.0.77 self",
    ),
    case("add_route", "ip route flush proto 109", "ip route add "),
    case(
        "remove_route",
        "ip route add 192.168.77.0/24 via 44.128.0.77 dev vtep1024 onlink proto 109",
        "ip route delete 192.168.77.0/24 metric 0 proto 109",
    ),
    // A foreign route with the same destination stays.
    Case {
        function: "remove_route",
        cause: "ip route replace 192.168.2.0/24 via 44.128.0.9 dev vtep1024 onlink proto 109
                ip route add blackhole 192.168.2.0/24 metric 9000",
        command: "ip route delete 192.168.2.0/24 metric 0 proto 109 && ip route add 192.168.2.0/24",
        reset: "ip route delete blackhole 192.168.2.0/24 metric 9000",
    },
    case(
        "enable_host_forwarding",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -w net.ipv4.ip_forward=1",
    ),
    case(
        "enable_host_forwarding",
        "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1",
        "for file in $(grep -lx 1 /proc/sys/net/ipv6/conf/*/accept_ra); do echo 2 > $file; done; ",
    ),
    Case {
        function: "skip_policy_rules",
        cause: "ip route add default via 10.0.0.2 dev eth0 table 100
                ip rule add priority 100 from 192.168.0.0/16 lookup 100",
        command: "ip rule add priority 99 to 192.168.0.0/16 lookup main",
        reset: "ip rule delete priority 99; ip rule delete priority 100
                ip route flush table 100",
    },
    Case {
        function: "insert_nft_rule",
        cause: "nft 'add table inet site
                add chain inet site in { type filter hook input priority 0; }
                add rule inet site in udp dport 64000 drop'",
        command: "nft insert rule inet site in udp dport 64000 accept",
        reset: "nft delete table inet site",
    },
    Case {
        function: "insert_iptables_rule",
        cause: "iptables-legacy -A FORWARD -j REJECT",
        command: "iptables-legacy -I FORWARD -i vtep1024 -j ACCEPT && ",
        reset: "iptables-legacy -F FORWARD",
    },
];

/// Lists what other programs may have configured on a host: one object a line.
const FOREIGN: &str = "\
    for family in -4 -6; do
        ip $family -o addr show | sed 's/^/address /; s/ *valid_lft.*//'
        ip $family rule show | sed 's/^/rule /'
        ip $family route show table all | sed 's/^/route /'
    done
    ip -o link show | sed 's/^[0-9]*: //; s/^/link /'
    nft list ruleset | sed 's/^[ \\t]*/nft /; s/packets [0-9]* bytes [0-9]*//'
    iptables-legacy-save | grep -v '^[#:]' | sed 's/^/legacy /'
    for file in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth0/*; do
        echo setting $file $(cat $file 2>/dev/null)
    done";
/// Names of managed objects. A line with one of them is not foreign.
const MANAGED: [&str; 5] = ["vtep", "m-vxlan-1", "proto 109", "veth0", "mesos_overlay"];

/// Lists the foreign objects of a host.
fn foreign(host: &Namespace) -> Vec<String> {
    let listing = host.succeed("sh", &["-c", FOREIGN]);
    let is_foreign = |line: &&str| {
        // The kernel makes addresses of its own when a device is set up.
        !MANAGED.iter().chain(&["fe80::", "ff00::"]).any(|name| line.contains(name))
    };
    let mut lines: Vec<String> =
        listing.lines().filter(is_foreign).map(|line| line.trim_end().to_owned()).collect();
    lines.sort_unstable();
    lines
}

/// Describes what a command did to foreign objects without having said so.
fn trespasses(before: &[String], after: &[String], effect: &Value) -> Vec<String> {
    let removed =
        before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}"));
    let added = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
    // A command that names its effect adds rules, or changes the setting that it names.
    let is_named = |line: &String| effect.is_string() && !line.starts_with("- route");
    removed.chain(added).filter(|line| !is_named(line)).collect()
}

/// Returns the first finding that is wrong and has a command: the operator begins there.
fn first_with_command(diagnosis: &Diagnosis) -> Option<&Value> {
    let mut wrong = diagnosis.findings.iter().filter(|finding| finding["result"] == "wrong");
    wrong.find(|finding| finding["command"].is_string() && finding.get("cause").is_none())
}

/// Follows the doctor until nothing is wrong. Returns the commands that were run, or what went
/// wrong.
fn follow_doctor(cluster: &DiagnosedCluster, case: &Case) -> Result<Vec<String>, String> {
    let host = &cluster.host(1).namespace;
    let mut commands: Vec<String> = Vec::new();
    loop {
        let diagnosis = cluster.diagnose_without_probe(1);
        if diagnosis.wrong().is_empty() {
            return Ok(commands);
        }
        let Some(finding) = first_with_command(&diagnosis).filter(|_| commands.len() < 4) else {
            return Err(format!("after {commands:?}: {:#?}", diagnosis.wrong()));
        };
        let command = finding["command"].as_str().unwrap_or_default();
        if commands.is_empty() && !command.starts_with(case.command) {
            return Err(format!("the first command is {command}: {:#?}", diagnosis.wrong()));
        }
        let before = foreign(host);
        host.succeed("sh", &["-ec", command]);
        let trespasses = trespasses(&before, &foreign(host), &finding["effect"]);
        if !trespasses.is_empty() {
            return Err(format!("{command} changed\n{}", trespasses.join("\n")));
        }
        commands.push(command.to_owned());
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn advised_command_removes_fault_and_nothing_else() {
    let cluster = DiagnosedCluster::new(Underlay::V4);
    let host = &cluster.host(1).namespace;
    host.run("ip route add default via 10.0.0.9");
    let (mut table, mut failed) = (String::new(), String::new());
    for case in &CASES {
        let Case { function, cause, reset, .. } = case;
        let wrong = cluster.diagnose_without_probe(1).wrong();
        if !wrong.is_empty() {
            let _ = writeln!(failed, "before {function}: {wrong:#?}");
            break;
        }
        host.succeed("sh", &["-ec", cause]);
        let start = now();
        let _ = match follow_doctor(&cluster, case) {
            Ok(commands) if commands.is_empty() => writeln!(failed, "{function}: {cause}: unseen"),
            Ok(commands) => writeln!(
                table,
                "{:>5} ms  {function}: {}",
                start.elapsed().as_millis(),
                commands.join(" ;; ")
            ),
            Err(problem) => writeln!(failed, "{function}: {cause}: {problem}"),
        };
        host.succeed("sh", &["-c", reset]);
        cluster.repair(1);
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    }
    eprintln!("{table}");
    assert!(failed.is_empty(), "{failed}");
    let accept_ra = host.run("sysctl -n net.ipv6.conf.eth0.accept_ra");
    assert_eq!(accept_ra.trim(), "2", "the default route would expire");
}
