//! The dataplane on the real kernel: connectivity of three hosts, adoption of existing devices,
//! repair of drift, and removal of all managed objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlay_linux::dataplane::{Dataplane, KernelEvent, Monitor};
use overlay_types::addr::{DeviceName, Mtu, Vni};
use overlay_types::tunnel::Desired;

use crate::hosts::{Host, Hosts, Underlay, desired};
use crate::traffic::{Stream, now, on_drop, sleep, time_limit, transfer};

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn containers_on_three_hosts_reach_each_other() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let hosts = Hosts::new(3, underlay);
        hosts.program();
        hosts.assert_full_reachability();
        let [first, second, third] = &hosts.hosts[..] else { panic!("three hosts") };
        for (from, to) in [(first, second), (second, third), (third, first)] {
            for address in [to.address().into(), to.address6().into()] {
                transfer(&from.container, &to.container, address, 4_000_000);
            }
        }
        // Hosts reach the containers of other hosts, and containers reach other hosts.
        assert!(first.namespace.can_reach(&second.address().to_string()));
        assert!(first.namespace.can_reach(&second.address6().to_string()));
        assert!(first.container.can_reach("44.128.0.2"));
        assert!(first.container.can_reach("fd01:a::2"));
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn second_verify_is_noop_and_unallocated_stays_unreachable() {
    let hosts = Hosts::new(2, Underlay::V4);
    hosts.program();
    let host = &hosts.hosts[0];
    let report = host.verify(&hosts.desired(host));
    assert!(report.is_complete() && report.done.is_empty(), "{report:?}");
    host.namespace.run("ip route add default via 10.0.0.2");
    for address in ["192.168.200.7", "fd01:b:0:0:200::7"] {
        let output = host.namespace.command("ip").args(["route", "get", address]).output();
        let output = output.expect("ip runs");
        let route = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() || route.starts_with("unreachable"), "{output:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn restart_adopts_dataplane_without_packet_loss() {
    let hosts = Hosts::new(3, Underlay::V4);
    hosts.program();
    let (first, second) = (&hosts.hosts[0], &hosts.hosts[1]);
    let stream = Stream::new(&first.container, &second.container, second.address().into());
    let (sent, lost) = stream.measure_loss_during(|| {
        for host in [first, second, first, second] {
            let report = host.verify(&hosts.desired(host));
            assert_eq!(report.done, []);
        }
        // Meanwhile the third agent leaves, and two new agents register.
        for all in [vec![1, 2], vec![1, 2, 4, 5]] {
            let report = first.verify(&desired(1, all.into_iter(), Underlay::V4));
            assert!(report.is_complete() && !report.done.is_empty(), "{report:?}");
        }
    });
    assert!(sent > 100, "{sent}");
    assert_eq!(lost, 0, "lost datagrams of {sent}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn dcos_net_dataplane_is_adopted_without_packet_loss() {
    let hosts = Hosts::new(2, Underlay::V4);
    let [first, second] = &hosts.hosts[..] else { panic!("two hosts") };
    // Create the objects that dcos-net creates.
    for (host, other) in [(first, second), (second, first)] {
        let (own, peer) = (host.number, other.number);
        let namespace = &host.namespace;
        namespace.run("ip link add vtep1024 type vxlan id 1024 dstport 64000 noudpcsum");
        namespace.run(&format!("ip link set vtep1024 address 70:b3:d5:80:00:0{own} up"));
        namespace.run(&format!("ip addr add 44.128.0.{own}/16 dev vtep1024"));
        namespace.run(&format!(
            "ip neigh replace 44.128.0.{peer} lladdr 70:b3:d5:80:00:0{peer} dev vtep1024 nud \
             permanent"
        ));
        namespace.run(&format!("ip route replace 192.168.{peer}.0/24 via 44.128.0.{peer}"));
        namespace.run(&format!(
            "bridge fdb replace 70:b3:d5:80:00:0{peer} dev vtep1024 dst 10.0.0.{peer} self permanent"
        ));
        host.apply_settings(&hosts.desired(host));
    }
    let index = |host: &Host| {
        let shown = host.namespace.run("ip -o link show vtep1024");
        shown.split(':').next().map(str::to_owned)
    };
    let before = (index(first), index(second));
    let stream = Stream::new(&first.container, &second.container, second.address().into());
    let (sent, lost) = stream.measure_loss_during(|| {
        for host in [first, second] {
            let report = host.verify(&hosts.desired(host));
            assert!(report.is_complete(), "{report:?}");
        }
    });
    assert_eq!((lost, before), (0, (index(first), index(second))), "lost datagrams of {sent}");
    let routes = first.namespace.run("ip -4 route show proto 109");
    let route = routes.lines().find(|line| line.starts_with("192.168.2.0/24 via 44.128.0.2 "));
    let is_adopted = |route: &str| route.contains(" dev vtep1024 ") && route.contains(" onlink");
    assert!(route.is_some_and(is_adopted), "{routes}");
    hosts.assert_full_reachability();
    assert_eq!(first.verify(&hosts.desired(first)).done, []);
}

/// Runs `act` while another thread repairs the host, as the agent does.
fn while_repairing(host: &Host, desired: &Arc<Desired>, act: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let repair = || {
            host.namespace.inside(|| {
                let mut monitor = Monitor::open().expect("a netlink socket");
                let mut dataplane = Dataplane::open().expect("a netlink socket");
                dataplane.verify(desired).expect("kernel state is readable");
                while !is_over.load(Ordering::Relaxed) {
                    let watch = dataplane.watch(desired);
                    let event = monitor.take(Duration::from_millis(50), &watch, None);
                    if event.expect("monitor socket works") != KernelEvent::Unrelated {
                        dataplane.verify(desired).expect("kernel state is readable");
                    }
                }
            });
        };
        let repairer = std::thread::Builder::new().spawn_scoped(scope, repair);
        let repairer = repairer.expect("a thread");
        // The guard also ends the repairs when `act` panics.
        let over = on_drop(|| is_over.store(true, Ordering::Relaxed));
        act();
        drop(over);
        repairer.join().expect("thread does not panic");
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn drift_is_repaired_within_one_second() {
    const DRIFTS: [&str; 13] = [
        "ip link delete vtep1024",
        "ip link set vtep1024 down",
        "ip route flush proto 109",
        "ip -6 route flush proto 109",
        "ip route replace 192.168.2.0/24 via 44.128.0.9 dev vtep1024 onlink",
        "ip link set vtep1024 address 70:b3:d5:00:00:99",
        "ip addr flush dev vtep1024",
        "ip addr del 44.128.0.1/16 dev vtep1024",
        "ip neigh flush dev vtep1024 nud permanent",
        "ip neigh replace 44.128.0.2 lladdr 02:00:00:00:00:01 dev vtep1024 nud permanent",
        "bridge fdb del 70:b3:d5:80:00:02 dev vtep1024 dst 10.0.0.2 self",
        "ip link set vtep1024 mtu 1300",
        "sysctl -qw net.ipv6.conf.vtep1024.disable_ipv6=1",
    ];
    let hosts = Hosts::new(2, Underlay::V4);
    hosts.program();
    let host = &hosts.hosts[0];
    let desired = Arc::new(hosts.desired(host));
    let is_repaired = || {
        host.namespace.inside(|| {
            let mut dataplane = Dataplane::open().expect("a netlink socket");
            let observed = dataplane.observe(&desired).expect("kernel state is readable");
            overlay_linux::dataplane::plan(&desired, &observed).operations.is_empty()
        })
    };
    while_repairing(host, &desired, || {
        // The monitor needs some time to start.
        sleep(time_limit(Duration::from_millis(200)));
        for drift in DRIFTS {
            let start = now();
            host.namespace.run(drift);
            // A flush of several objects takes a while, and the dataplane repairs meanwhile.
            let mut repaired_checks = 0;
            while repaired_checks < 2 {
                repaired_checks = if is_repaired() { repaired_checks + 1 } else { 0 };
                let limit = time_limit(Duration::from_secs(5));
                assert!(start.elapsed() < limit, "{drift}\n{}", host.dump());
                sleep(Duration::from_millis(10));
            }
            let elapsed = start.elapsed();
            eprintln!("{:>5} ms  {drift}", elapsed.as_millis());
            assert!(elapsed < time_limit(Duration::from_secs(1)), "{drift}: {elapsed:?}");
        }
        hosts.assert_full_reachability();
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn vtep_mtu_follows_underlay() {
    let hosts = Hosts::new(2, Underlay::V4);
    hosts.program();
    let host = &hosts.hosts[0];
    let desired = hosts.desired(host);
    host.namespace.run("ip link set eth0 mtu 1400");
    let report = host.verify(&desired);
    assert_eq!(report.done.len(), 1, "{report:?}");
    let shown = host.namespace.run("ip link show vtep1024");
    assert!(shown.contains("mtu 1350"), "{shown}");
    let mut fixed = desired;
    fixed.vxlan_devices[0].mtu = Mtu::new(1300).ok();
    host.verify(&fixed);
    let shown = host.namespace.run("ip link show vtep1024");
    assert!(shown.contains("mtu 1300"), "{shown}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn overlay_with_own_vni_gets_own_device() {
    let hosts = Hosts::new(2, Underlay::V4);
    let separate = |host: &Host| {
        let mut desired = hosts.desired(host);
        let vni = Vni::new(2048).expect("a valid VNI");
        let device = DeviceName::vtep(vni);
        let mut second = desired.vxlan_devices[0].clone();
        (second.device, second.vni) = (device.clone(), vni);
        desired.vxlan_devices.push(second);
        desired.spaces[0].device = device;
        desired
    };
    for host in &hosts.hosts {
        let report = host.verify(&separate(host));
        assert!(report.is_complete(), "{report:?}");
        host.apply_settings(&separate(host));
        assert_eq!(host.verify(&separate(host)).done, []);
    }
    hosts.assert_full_reachability();
    let routes = hosts.hosts[0].namespace.run("ip route show proto 109");
    assert!(routes.contains("dev vtep2048") && !routes.contains("dev vtep1024"), "{routes}");
    // Return to a single VNI for all overlays, without a restart.
    for host in &hosts.hosts {
        let report = host.verify(&hosts.desired(host));
        assert!(report.is_complete(), "{report:?}");
    }
    hosts.assert_full_reachability();
    assert!(!hosts.hosts[0].namespace.devices().contains(&"vtep2048".to_owned()));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn update_changes_only_affected_peers() {
    let hosts = Hosts::new(2, Underlay::V4);
    let host = &hosts.hosts[0];
    let desired_for = |all: std::ops::RangeInclusive<u8>| Arc::new(desired(1, all, Underlay::V4));
    host.namespace.inside(|| {
        let mut dataplane = Dataplane::open().expect("a netlink socket");
        let report = dataplane.update(&desired_for(1..=200)).expect("kernel state is readable");
        assert!(report.is_complete(), "{report:?}");
        for (all, count) in [(1..=201, 5), (1..=200, 5), (1..=200, 0)] {
            let report = dataplane.update(&desired_for(all)).expect("kernel state is readable");
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(report.done.len(), count, "{report:?}");
        }
        assert_eq!(
            dataplane.verify(&desired_for(1..=200)).expect("kernel state is readable").done,
            []
        );
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn clean_restores_previous_host_state() {
    let hosts = Hosts::new(2, Underlay::V4);
    let host = &hosts.hosts[0];
    // Unmanaged objects that resemble managed objects as closely as possible.
    for line in [
        "ip link add vtep7 type vxlan id 7 dstport 64000 local 10.0.0.1",
        "ip addr add 44.7.0.1/16 dev vtep7",
        "ip link set vtep7 up",
        "bridge fdb append 70:b3:d5:80:00:02 dev vtep7 dst 10.0.0.2",
        "ip neigh add 44.7.0.2 lladdr 70:b3:d5:80:00:02 dev vtep7 nud permanent",
        "ip route add 192.168.77.0/24 via 44.7.0.2",
        "ip route add 192.168.0.0/16 via 10.0.0.2 metric 100",
        "ip route add default via 10.0.0.2",
        "ip -6 route add unreachable fd01:b::/64 metric 4000 proto 110",
    ] {
        host.namespace.run(line);
    }
    let before = host.dump();
    hosts.program();
    let during = host.dump();
    for line in before.lines().filter(|line| line.contains("vtep7") || line.contains("default")) {
        assert!(during.contains(line), "{line}\n{during}");
    }
    assert!(during.contains("vtep1024") && during.contains("proto 109"));
    let report = host.namespace.inside(|| {
        assert_eq!(host.settings().restore().failed, []);
        Dataplane::open().expect("a netlink socket").clean().expect("kernel state is readable")
    });
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(before, host.dump());
}
