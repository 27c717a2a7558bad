//! Changes that other processes make on an agent's host, and the time until the agent has repaired
//! them.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::reachability::assert_all_reachable;
use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::namespace::run;
use crate::traffic::{now, sleep, time_limit};

/// Time limit for a repair on a busy machine. The specified time is one second.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(5);
/// Lists the managed objects of a host, without counters and indices.
const DUMP: &str = "\
    ip -d link show vtep1024 | sed 's/^[0-9]*: //'
    ip addr show vtep1024 | grep inet | grep -v fe80
    ip route show proto 109
    ip -6 route show proto 109
    ip neigh show nud permanent dev vtep1024
    bridge fdb show dev vtep1024 | grep dst
    nft list table inet mesos_overlay
    sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.vtep1024.rp_filter
    sysctl net.ipv6.conf.vtep1024.disable_ipv6
    for device in vtep1024 m-vxlan-1; do
        cat /proc/sys/net/ipv4/conf/$device/forwarding /proc/sys/net/ipv6/conf/$device/forwarding
    done | tr '\\n' ' '; echo families forwarded
    sysctl net.ipv4.conf.eth0.forwarding
    ip -o link show master m-vxlan-1 | grep -v mo-probe | sed 's/^[0-9]*: /port /'
    ip link show m-vxlan-1 | sed 's/^[0-9]*: //'
    ip addr show m-vxlan-1 | grep inet | grep -v fe80 | sed 's/ brd [^ ]*//'";

/// A command, and the part of the listing that stays changed after the repair, if any: the text
/// before and after.
type Drift = (&'static str, Option<(&'static str, &'static str)>);
const DRIFTS: [[Drift; 12]; 3] = [
    [
        ("ip link delete vtep1024", None),
        ("ip route flush proto 109", None),
        ("ip neigh flush dev vtep1024 nud permanent", None),
        ("bridge fdb del 70:b3:d5:80:00:02 dev vtep1024 dst 10.0.0.2 self", None),
        ("nft delete table inet mesos_overlay", None),
        ("sysctl -qw net.ipv4.ip_forward=0", None),
        ("ip link set eth0 mtu 1480", Some((" mtu 1450 ", " mtu 1430 "))),
        ("ip link set m-vxlan-1 down", None),
        ("sysctl -qw net.ipv4.conf.m-vxlan-1.forwarding=0", None),
        ("ip link set m-vxlan-1 mtu 1280", None),
        // The address of an earlier assignment.
        ("ip addr add 192.168.77.1/25 dev m-vxlan-1", None),
        ("sysctl -qw net.ipv4.conf.eth0.forwarding=0", None),
    ],
    [
        ("ip link set vtep1024 down", None),
        ("ip -6 route flush proto 109", None),
        ("ip link set vtep1024 address 70:b3:d5:00:00:99", None),
        ("ip addr flush dev vtep1024", None),
        ("nft flush ruleset", None),
        ("sysctl -qw net.ipv6.conf.all.forwarding=0", None),
        ("sysctl -qw net.ipv4.conf.vtep1024.rp_filter=1", None),
        ("ip addr flush dev m-vxlan-1", None),
        ("sysctl -qw net.ipv4.conf.vtep1024.forwarding=0", None),
        ("sysctl -qw net.ipv6.conf.vtep1024.forwarding=0", None),
        ("sysctl -qw net.ipv4.conf.all.forwarding=0", None),
        // The container keeps its port, and the MAC of its gateway.
        ("ip link delete m-vxlan-1", None),
    ],
    [
        ("ip addr del 44.128.0.3/16 dev vtep1024", None),
        ("ip neigh replace 44.128.0.2 lladdr 02:00:00:00:00:01 dev vtep1024 nud permanent", None),
        ("ip route replace 192.168.1.0/24 via 44.128.0.9 dev vtep1024 onlink", None),
        ("bridge fdb replace 70:b3:d5:80:00:02 dev vtep1024 dst 10.0.0.9 self", None),
        ("nft flush chain inet mesos_overlay postrouting", None),
        ("ip link set vtep1024 mtu 1300", None),
        ("sysctl -qw net.ipv6.conf.vtep1024.disable_ipv6=1", None),
        ("ip addr del 192.168.2.1/25 dev m-vxlan-1", None),
        ("sysctl -qw net.ipv4.conf.m-vxlan-1.forwarding=0", None),
        ("ip link set m-vxlan-1 down mtu 1280", None),
        // The connected route returns with the address.
        ("ip addr change 192.168.2.1/25 dev m-vxlan-1 valid_lft 1 preferred_lft 1", None),
        ("sysctl -qw net.ipv4.conf.default.forwarding=0 net.ipv4.conf.eth0.forwarding=0", None),
    ],
];

fn dump(host: &Host) -> String {
    let mut command = host.namespace().command("sh");
    let output = run(command.args(["-c", DUMP]), "");
    // Sort the lines, since the listings have no fixed order.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Runs `act`. Returns the time until the listing is as expected, or the difference after a
/// timeout.
fn measure_repair(host: &Host, expected: &str, act: impl FnOnce()) -> Result<Duration, String> {
    let start = now();
    act();
    loop {
        let shown = dump(host);
        let elapsed = start.elapsed();
        if shown == expected {
            return Ok(elapsed);
        }
        if elapsed > time_limit(REPAIR_TIMEOUT) {
            let missing = expected.lines().filter(|line| !shown.contains(line));
            let surplus = shown.lines().filter(|line| !expected.contains(line));
            let lines: Vec<_> = missing
                .map(|line| format!("-{line}"))
                .chain(surplus.map(|line| format!("+{line}")))
                .collect();
            return Err(lines.join("\n"));
        }
        sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn agent_repairs_drift_within_time_limit() {
    let mut cluster = Cluster::new(Underlay::V4);
    for number in 1..=3 {
        // Otherwise the bridge follows the underlay.
        cluster.add_host(number).config["network_config"]["overlay_mtu"] = json!(1420);
    }
    cluster.start_agents();
    cluster.wait_until_ok();
    let containers = cluster.add_containers();
    let mut table = String::new();
    let mut failed = String::new();
    for (host, drifts) in cluster.hosts.iter().zip(DRIFTS) {
        let mut expected = dump(host);
        for (drift, difference) in drifts {
            if let Some((before, after)) = difference {
                expected = expected.replace(before, after);
            }
            match measure_repair(host, &expected, || drop(host.namespace().run(drift))) {
                Ok(elapsed) => {
                    let _ = writeln!(table, "{:>6} ms  {drift}", elapsed.as_millis());
                }
                Err(difference) => {
                    let _ = writeln!(failed, "{drift}\n{difference}");
                }
            }
        }
    }
    eprintln!("{table}");
    assert!(failed.is_empty(), "not repaired:\n{failed}\n{}", cluster.logs());
    assert_all_reachable(&cluster, &containers);
}

/// An `nft` that once changes the rules of the agent right after it has made them, before the agent
/// lists them.
const FLUSHING_NFT: &str = r#"#!/bin/sh
"$DIR/nft.real" "$@"
status=$?
if [ "$1" = -f ] && [ -e "$DIR/flush" ]; then
    rm "$DIR/flush"
    "$DIR/nft.real" flush chain inet mesos_overlay postrouting
fi
exit $status
"#;

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn change_of_rules_during_job_of_agent_is_repaired() {
    let mut cluster = Cluster::new(Underlay::V4);
    let host = cluster.add_host(1);
    let dir = host.daemon.path("nft");
    fs::create_dir(&dir).expect("a new directory");
    let path = dir.to_str().expect("a UTF-8 path").to_owned();
    fs::copy("/usr/sbin/nft", dir.join("nft.real")).expect("nft is installed");
    let script = FLUSHING_NFT.replace("$DIR", &path);
    fs::write(dir.join("nft"), script).expect("a script");
    fs::set_permissions(dir.join("nft"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let mount = format!("mount --bind {path}/nft /usr/sbin/nft && exec \"$0\" \"$@\"");
    host.wrapper = ["unshare", "--mount", "sh", "-c", &mount].map(str::to_owned).into();
    cluster.start_agents();
    cluster.wait_until_ok();
    let host = cluster.host(1);
    let expected = dump(host);
    assert!(expected.contains("masquerade"), "{expected}");
    fs::write(dir.join("flush"), "").expect("a file");
    let elapsed = measure_repair(host, &expected, || {
        host.namespace().run("nft delete table inet mesos_overlay");
        cluster.wait_for("the rules are changed during the repair", || !dir.join("flush").exists());
    });
    let elapsed = elapsed.unwrap_or_else(|shown| panic!("{shown}\n{}", cluster.logs()));
    eprintln!("{:>6} ms  a change of rules while the agent makes them", elapsed.as_millis());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn drift_during_netlink_overflow_is_repaired() {
    const ROUTES: u32 = 50_000;
    let cluster = Cluster::started(2, Underlay::V4);
    let host = cluster.host(1);
    let expected = dump(host);
    let agent = host.agent.as_ref().expect("a running agent");
    agent.signal(Signal::STOP);
    let route = |number: u32| {
        format!("route add 11.{}.{}.{}/32 dev lo\n", number >> 16, number >> 8 & 255, number & 255)
    };
    let batch: String = (0..ROUTES).map(route).collect();
    let added = run(host.namespace().command("ip").args(["-batch", "-"]), &batch);
    assert!(added.status.success(), "{added:?}");
    let sockets = host.namespace().run("cat /proc/net/netlink");
    let drops =
        |line: &str| line.split_whitespace().nth(8).and_then(|word| word.parse::<u64>().ok());
    let dropped: u64 = sockets.lines().filter_map(drops).sum();
    assert!(dropped > 0, "no event was dropped:\n{sockets}");
    host.namespace().run("ip route flush proto 109");
    let elapsed = measure_repair(host, &expected, || agent.signal(Signal::CONT));
    eprintln!("repaired in {elapsed:?} after {dropped} lost events");
    elapsed.unwrap_or_else(|difference| panic!("{difference}\n{}", cluster.logs()));
}
