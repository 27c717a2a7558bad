//! Dead paths are known without traffic: the agents probe their peers.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use overlay_linux::probe::echo::{EchoRequest, Prober, open_socket};
use rustix::net::{SendFlags, sendto};
use serde_json::{Value, json};

use super::container::Container;
use super::{Cluster, MASTER_ADDRESS};
use crate::hosts::Underlay;
use crate::namespace::{BUSYBOX, Namespace, run, succeed};
use crate::process::PROGRAM;
use crate::traffic::{can_ping, now, sleep, time_factor, time_limit};

/// A broken path: the host, the commands that break and repair it, the hosts whose health names it,
/// and what their health says of which host.
struct Break {
    host: u8,
    cause: &'static str,
    removal: &'static str,
    named_by: &'static [(u8, &'static str)],
}

/// What the health of the other hosts says if host 2 forwards no packets to its containers.
const FORWARDING_LOST: [(u8, &str); 2] = [
    (1, "agent 10.0.0.2 fails probes: its host answers and forwards no packets"),
    (3, "of overlay vxlan-1 to 192.168.1.126, the port of its probes"),
];

const BREAKS: [Break; 8] = [
    Break {
        host: 3,
        cause: "ip link set eth0 down",
        removal: "ip link set eth0 up",
        named_by: &[
            (1, "agent 10.0.0.3 fails probes: no answer"),
            (
                2,
                "no answer through the tunnel: its host is down or drops ICMP, or the network drops UDP port 64000",
            ),
        ],
    },
    Break {
        host: 1,
        cause: "nft 'table ip test { chain c { type filter hook prerouting priority -400; \
                ip saddr 10.0.0.2 udp dport 64000 drop; }; }'",
        removal: "nft delete table ip test",
        named_by: &[
            (1, "between 10.0.0.1 and 10.0.0.2: see whether other agents reach it"),
            (2, "between 10.0.0.2 and 10.0.0.1: see whether other agents reach it"),
        ],
    },
    Break {
        host: 2,
        cause: "nft 'table ip test { chain c { type filter hook prerouting priority -400; \
                ip saddr 10.0.0.3 udp dport 64000 meta length > 1300 drop; }; }'",
        removal: "nft delete table ip test",
        named_by: &[
            (
                2,
                "packets of 1420 bytes are lost, small ones are not: the MTU of the network between \
                 10.0.0.2 and 10.0.0.3 is below 1470",
            ),
            (3, "between 10.0.0.3 and 10.0.0.2 is below 1470"),
        ],
    },
    Break {
        host: 1,
        cause: "nft 'table ip test { chain c { type filter hook forward priority 10; \
                iifname m-vxlan-1 drop; }; }'",
        removal: "nft delete table ip test",
        named_by: &[(
            1,
            "packets of containers reach none of 2 peers, and the VTEPs reach each other",
        )],
    },
    // Packets that this host did not ask for are dropped, so its own probes work.
    Break {
        host: 2,
        cause: "nft 'table ip test { chain c { type filter hook forward priority 10; \
                iifname vtep1024 icmp type echo-request numgen inc mod 1 == 0 drop; }; }'",
        removal: "nft delete table ip test",
        named_by: &FORWARDING_LOST,
    },
    Break {
        host: 2,
        cause: "nft 'table ip test { chain c { type filter hook forward priority 10; \
                iifname vtep1024 icmp type echo-request numgen inc mod 1 == 0 reject; }; }'",
        removal: "nft delete table ip test",
        named_by: &FORWARDING_LOST,
    },
    Break {
        host: 1,
        cause: "nft 'table ip6 test { chain c { type filter hook input priority 10; \
                iifname vtep1024 drop; }; }'",
        removal: "nft delete table ip6 test",
        named_by: &[(2, "agent 10.0.0.1 fails probes"), (3, "IPv4 reaches it, IPv6 does not")],
    },
    Break {
        host: 1,
        cause: "nft 'table ip6 test { chain c { type filter hook output priority 10; \
                oifname vtep1024 drop; }; }'",
        removal: "nft delete table ip6 test",
        named_by: &[
            (1, "this host does not send them (Operation not permitted"),
            (2, "agent 10.0.0.1 fails probes"),
        ],
    },
];

/// Returns the problems in the health of an agent. A host without a network is asked as well.
fn problems(cluster: &Cluster, number: u8) -> String {
    let health = cluster.host(number).health();
    health["problems"].as_array().into_iter().flatten().map(|text| format!("{text}\n")).collect()
}

/// Returns the agents in the state of the master.
fn master_state(cluster: &Cluster) -> Vec<Value> {
    fetch(cluster, "state")["agents"].as_array().cloned().unwrap_or_default()
}

fn master_problems(cluster: &Cluster) -> String {
    fetch(cluster, "health")["problems"].to_string()
}

fn fetch(cluster: &Cluster, endpoint: &str) -> Value {
    let url = format!("http://{MASTER_ADDRESS}/overlay-master/{endpoint}");
    let mut command = cluster.namespace.command(BUSYBOX);
    let output = run(command.args(["wget", "-q", "-O", "-", &url]), "");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn dead_paths_are_known_within_a_minute_and_so_is_their_end() {
    let mut cluster = Cluster::started(3, Underlay::V4);
    let containers = [1, 2, 3].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"));
    for host in &cluster.hosts {
        cluster.wait_for("the probes begin at the bridge", || {
            let probes = &host.health()["probes"];
            probes["bridged_overlays"][0] == "vxlan-1" && probes["reached"] == 2
        });
    }
    let mut table = String::new();
    for Break { host, cause, removal, named_by } in BREAKS {
        let shell = |script| drop(cluster.host(host).namespace().succeed("sh", &["-c", script]));
        let start = now();
        shell(cause);
        for (number, text) in named_by {
            cluster.wait_for(&format!("agent {number} names: {cause}"), || {
                problems(&cluster, *number).contains(text)
            });
            let health = cluster.host(*number).health();
            assert_eq!(health["status"], "degraded", "{health}");
        }
        let unreached = || {
            let agents = master_state(&cluster);
            agents.iter().any(|agent| !agent["unreached_peers"].is_null())
        };
        cluster.wait_for(&format!("the master shows: {cause}"), unreached);
        assert!(master_problems(&cluster).contains("fails probes"));
        let named = start.elapsed();
        assert!(named < time_limit(Duration::from_secs(60)), "{named:?}: {cause}");
        shell(removal);
        let start = now();
        for (number, _) in named_by {
            cluster.wait_for(&format!("agent {number} is ok after: {removal}"), || {
                !problems(&cluster, *number).contains("probes")
            });
        }
        cluster.wait_for(&format!("the master forgets: {cause}"), || !unreached());
        let (named, gone) = (named.as_secs_f64(), start.elapsed().as_secs_f64());
        let _ = writeln!(table, "{named:>6.1} s named, {gone:>6.1} s until ok  {cause}");
    }
    eprintln!("{table}");
    assert!(can_ping(&containers[0].namespace, containers[1].address(), 16));
    // The port of an agent ends with it. Its host reports that, and its containers are reached.
    assert!(cluster.host_mut(3).agent.take().expect("an agent").stop());
    let start = now();
    while start.elapsed() < Duration::from_secs(30) {
        for number in [1, 2] {
            let health = cluster.host(number).health();
            assert_eq!(health["probes"]["unreachable"], 0, "{health}");
        }
        sleep(Duration::from_millis(500));
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn port_of_probes_disturbs_no_container_and_is_removed() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let first = Container::for_mesos(cluster.host(1), "vxlan-1");
    let _other = Container::for_mesos(cluster.host(2), "vxlan-1");
    let mac = |cluster: &Cluster| {
        cluster
            .host(1)
            .namespace()
            .run("ip -o link show m-vxlan-1")
            .split("link/ether ")
            .nth(1)
            .and_then(|text| text.split(' ').next().map(str::to_owned))
    };
    let before = mac(&cluster);
    let has_port =
        |cluster: &Cluster| cluster.host(1).namespace().run("ip -o link").contains("mo-probe0");
    cluster.wait_for("the port exists", || has_port(&cluster));
    let lease = cluster.host(1).daemon.path("leases").join("vxlan-1/192.168.0.126");
    assert!(lease.exists(), "host-local does not lease the address to a container");
    let gateway = "192.168.0.1".parse().expect("an address");
    assert!(can_ping(&first.namespace, gateway, 16));
    let second = Container::for_mesos(cluster.host(1), "vxlan-1");
    assert!(can_ping(&second.namespace, first.address(), 16));
    assert_eq!(mac(&cluster), before, "the bridge keeps its MAC");
    first.leave(cluster.host(1), "vxlan-1");
    second.leave(cluster.host(1), "vxlan-1");
    cluster.wait_for("the peer is reached", || cluster.host(1).health()["probes"]["reached"] == 1);
    // A killed agent leaves no port. The next agent uses the lease again.
    let process = cluster.host_mut(1).agent.take().expect("an agent");
    process.kill();
    cluster.wait_for("the kernel removes the port", || !has_port(&cluster));
    assert!(lease.exists());
    let config = cluster.host(1).write_config();
    let mut clean = cluster.host(1).namespace().command(PROGRAM);
    let shown = succeed(clean.args(["clean", "--dry-run", "--keep-docker", "--config", &config]));
    assert!(shown.contains("remove the lease of 192.168.0.126 for probes"), "{shown}");
    cluster.host_mut(1).start_agent();
    cluster.wait_for("the port exists again", || has_port(&cluster));
    assert!(cluster.host_mut(1).agent.take().expect("an agent").stop());
    assert!(!has_port(&cluster) && !lease.exists(), "the agent removes its port and lease");
}

/// Returns a command that runs another one with the privileges that systemd grants the agent.
fn privileges_of_unit() -> Vec<String> {
    const UNIT: &str = include_str!("../../../packaging/systemd/mesos-overlay-agent.service");
    let granted = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let granted = granted.expect("the unit limits the capabilities").to_lowercase();
    let granted = granted.split(' ').map(|name| name.replacen("cap_", "+", 1));
    let set = ["-all".to_owned()].into_iter().chain(granted).collect::<Vec<_>>().join(",");
    assert!(UNIT.contains("\nNoNewPrivileges=yes\n"));
    let wrapper = ["setpriv", "--no-new-privs", "--inh-caps", "-all", "--bounding-set", &set];
    wrapper.map(str::to_owned).into()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn missing_privileges_are_named_and_degrade_nothing() {
    const NO_NET_RAW: u8 = 2;
    const NO_SYS_ADMIN: u8 = 3;
    const NEEDED_ONLY: u8 = 4;
    let mut cluster = Cluster::new(Underlay::V4);
    cluster.add_host(1);
    for (number, capability) in [(NO_NET_RAW, "-net_raw"), (NO_SYS_ADMIN, "-sys_admin")] {
        let wrapper = ["setpriv", "--bounding-set", capability, "--inh-caps", capability];
        cluster.add_host(number).wrapper = wrapper.map(str::to_owned).into();
    }
    cluster.add_host(NEEDED_ONLY).wrapper = privileges_of_unit();
    cluster.start_agents();
    cluster.wait_until_ok();
    let _containers = cluster.add_containers();
    let has_note = |number, text| {
        let note = cluster.host(number).health()["probes"]["note"].to_string();
        note.contains(text)
    };
    cluster.wait_for("the reason is named", || {
        has_note(NO_NET_RAW, "CAP_NET_RAW") && has_note(NO_SYS_ADMIN, "CAP_SYS_ADMIN")
    });
    let health = cluster.host(NO_NET_RAW).health();
    assert_eq!((&health["probes"]["status"], &health["status"]), (&json!("off"), &json!("ok")));
    cluster.wait_for("the probes begin at the VTEP", || {
        let health = cluster.host(NO_SYS_ADMIN).health();
        health["probes"]["reached"] == 3 && health["status"] == "ok"
    });
    cluster.wait_for("the needed privileges are enough", || {
        let health = cluster.host(NEEDED_ONLY).health();
        let probes = &health["probes"];
        health["status"] == "ok"
            && (&probes["reached"], &probes["note"]) == (&json!(3), &Value::Null)
            && probes["bridged_overlays"] == json!(["vxlan-1"])
    });
    assert_eq!(cluster.host(NO_SYS_ADMIN).health()["probes"]["bridged_overlays"], json!([]));
}

/// An overlay whose Mesos bridges have one address for containers, and one with 13 addresses.
const SMALL_NETWORK: &str = r#"
    { "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
      "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 29,
                      "subnet6": "fd01:b::/64", "prefix6": 80 },
                    { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 27 } ] }"#;

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn containers_of_small_subnets_get_every_address() {
    let mut cluster = Cluster::with_network(Underlay::V4, SMALL_NETWORK);
    cluster.add_host(1);
    cluster.add_host(2);
    cluster.start_agents();
    cluster.wait_until_ok();
    let host = cluster.host(1);
    let lease = |name: &str| host.daemon.path("leases").join(name);
    Container::for_mesos(host, "vxlan-1").leave(host, "vxlan-1");
    let start = now();
    cluster.wait_for("the small subnet is named", || {
        host.health()["probes"]["note"].to_string().contains("192.168.0.0/30 has no address")
    });
    eprintln!("{:>6} ms until the small subnet is named", start.elapsed().as_millis());
    for _ in 0..3 {
        // The plugin skips the address that it leased last, and finds it again.
        Container::for_mesos(host, "vxlan-1").leave(host, "vxlan-1");
    }
    // The larger subnet has a port, until the containers need its address.
    let mut containers = vec![Container::for_mesos(host, "vxlan-2")];
    let start = now();
    cluster.wait_for("the port is leased", || lease("vxlan-2/192.168.128.14").exists());
    eprintln!("{:>6} ms until the probes lease an address", start.elapsed().as_millis());
    containers.extend((0..9).map(|_| Container::for_mesos(host, "vxlan-2")));
    let start = now();
    cluster.wait_for("the lease ends", || !lease("vxlan-2/192.168.128.14").exists());
    eprintln!("{:>6} ms until the containers have it back", start.elapsed().as_millis());
    containers.extend((0..3).map(|_| Container::for_mesos(host, "vxlan-2")));
    assert_eq!(containers.len(), 13, "all addresses but those of network, bridge and broadcast");
    for container in containers {
        container.leave(host, "vxlan-2");
    }
}

/// A container that has no lease, such as one of a program without CNI, and drops echo requests.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn silent_container_without_lease_keeps_its_address() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let _first = Container::for_mesos(cluster.host(1), "vxlan-1");
    let lease = |last: u8| format!("vxlan-1/192.168.0.{last}");
    let has_lease =
        |cluster: &Cluster, last| cluster.host(1).daemon.path("leases").join(lease(last)).exists();
    cluster.wait_for("the port exists", || has_lease(&cluster, 126));
    assert!(cluster.host_mut(1).agent.take().expect("an agent").stop());
    assert!(!has_lease(&cluster, 126));
    let silent = Namespace::new();
    silent.run("sysctl -q -w net.ipv4.icmp_echo_ignore_all=1");
    let host = cluster.host(1).namespace();
    let pair =
        format!("ip link add silent0 type veth peer name eth0 netns {}", silent.path().display());
    host.run(&pair);
    host.run("ip link set silent0 master m-vxlan-1 up");
    silent.run("ip link set eth0 up");
    silent.run("ip addr add 192.168.0.126/25 dev eth0");
    cluster.host_mut(1).start_agent();
    let start = now();
    cluster.wait_for("the port exists again", || {
        cluster.host(1).namespace().run("ip -o link").contains("mo-probe0")
    });
    eprintln!("{:>6} ms until the port exists", start.elapsed().as_millis());
    assert!(has_lease(&cluster, 125) && !has_lease(&cluster, 126));
}

/// A host whose own addresses drop echo requests forwards packets to its containers.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn host_that_drops_echo_requests_is_no_dead_host() {
    let cluster = Cluster::started(2, Underlay::V4);
    let _containers = cluster.add_containers();
    for host in &cluster.hosts {
        cluster.wait_for("the probes begin at the bridge", || {
            let probes = &host.health()["probes"];
            probes["bridged_overlays"][0] == "vxlan-1" && probes["reached"] == 1
        });
    }
    let table = "table ip test { chain c { type filter hook input priority 10; \
                 icmp type echo-request drop; }; }";
    cluster.host(2).namespace().succeed("nft", &[table]);
    let start = now();
    while start.elapsed() < Duration::from_secs(40) {
        let health = cluster.host(1).health();
        assert_eq!(health["probes"]["unreachable"], 0, "{health}");
        sleep(Duration::from_millis(500));
    }
    eprintln!("{:>6} ms without a false failure", start.elapsed().as_millis());
}

/// Raw sockets receive all ICMP messages of the host. The kernel drops those of others.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn flood_of_icmp_messages_costs_the_prober_nothing() {
    let namespace = Namespace::new();
    namespace.run("ip link set lo up");
    let (own, silent) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
    let table = "table ip test { chain c { type filter hook input priority 10; \
                 ip daddr 127.0.0.2 drop; }; }";
    namespace.succeed("nft", &[table]);
    let is_over = AtomicBool::new(false);
    let flood = || {
        let socket = open_socket(silent).expect("a raw socket");
        // A reply with another identifier.
        let packet = [&[0, 0, 0xff, 0xff, 0, 0, 0, 0][..], &[0; 1000]].concat();
        let to = SocketAddr::new(own, 0);
        let mut count = 0_u64;
        while !is_over.load(Ordering::Relaxed) {
            count += u64::from(sendto(&socket, &packet, SendFlags::empty(), &to).is_ok());
        }
        count
    };
    let probe = || {
        let mut prober = Prober::open(&[own].into()).expect("a raw socket");
        let requests = [own, silent].map(|to| EchoRequest { from: own, to, size: 64 });
        let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the time");
        let before = used();
        let round = prober.round(&requests, 1, Duration::from_secs(2));
        (round.outcomes[0].clone(), Duration::from(used() - before))
    };
    let ((outcome, cost), count) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| namespace.inside(flood));
        let probed = namespace.inside(probe);
        is_over.store(true, Ordering::Relaxed);
        (probed, flooding.join().expect("no panic"))
    });
    eprintln!("{count} messages in 2 s cost {} us: {outcome:?}", cost.as_micros());
    assert!(count > 10_000 / u64::from(time_factor()), "no flood");
    assert!(outcome.has_reply());
    assert!(cost < time_limit(Duration::from_millis(50)), "{cost:?}");
}
