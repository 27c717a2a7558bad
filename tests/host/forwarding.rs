//! The ways of packets between containers of different hosts: tracked, untracked, and with the
//! shortcut for TCP segments. With each of them translated connections work, and with the shortcut
//! rules about new connections hold.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use overlay_linux::dataplane::Dataplane;
use overlay_linux::firewall::{Backend, Firewall, Forwarding, Options, Outcome, Ruleset};
use overlay_types::addr::InterfaceAddress;
use overlay_types::tunnel::Desired;

use crate::hosts::{Host, Hosts, Underlay};
use crate::namespace::{BUSYBOX, Namespace, require_root_and_files};
use crate::traffic::{now, time_limit, transfer};

const ALL: [Forwarding; 3] = [Forwarding::Tracked, Forwarding::Untracked, Forwarding::Shortcut];
/// Bytes of a transfer: many times the buffers of a connection.
const BYTES: usize = 8 << 20;
/// The port of the server in a container, and the published one.
const PORT: u16 = 8000;
const PUBLISHED: u16 = 8080;

/// Three hosts; the third is outside of the overlays.
struct Setup {
    hosts: Hosts,
    firewalls: Vec<Firewall>,
    dataplanes: Vec<Dataplane>,
    options: Options,
}

impl Setup {
    fn new(forwarding: Forwarding) -> Self {
        require_root_and_files(&[BUSYBOX, "/usr/sbin/nft", "/usr/sbin/conntrack"]);
        let hosts = Hosts::new(3, Underlay::V4);
        let options = Options { forwarding, ..Options::default() };
        let mut setup = Self { hosts, firewalls: Vec::new(), dataplanes: Vec::new(), options };
        for host in &setup.hosts.hosts[..2] {
            // As the CNI plugin creates a port.
            host.namespace.run("ip link set veth0 mtu 1450");
            let open = || Dataplane::open().expect("a netlink socket");
            setup.dataplanes.push(host.namespace.inside(open));
            setup.firewalls.push(Firewall::new(Backend::Nftables));
        }
        setup.program();
        setup
    }

    /// Programs both hosts, as an agent does. Returns the outcomes of the shortcut.
    fn program(&mut self) -> Vec<Outcome> {
        let hosts = self.hosts.hosts.iter();
        let programs = self.firewalls.iter_mut().zip(&mut self.dataplanes);
        let outcomes = hosts.zip(programs).map(|(host, (firewall, dataplane))| {
            let desired = desired(host);
            host.apply_settings(&desired);
            host.namespace.inside(|| {
                let rules = Ruleset::new(&desired, &self.options);
                firewall.verify(&rules).expect("root may make rules");
                let desired = Arc::new(desired);
                let report = dataplane.verify(&desired).expect("the state is readable");
                assert!(report.is_complete(), "{report:?}");
                let links = dataplane.shortcut_links(&desired).expect("a known state");
                let outcome = firewall.apply_shortcut(&desired, &self.options, &links, true);
                assert_eq!(firewall.forwarding(&self.options), self.options.forwarding);
                outcome
            })
        });
        outcomes.collect()
    }

    fn host(&self, number: usize) -> &Host {
        &self.hosts.hosts[number - 1]
    }
}

/// Returns the desired state of a host with the gateway addresses of its bridges.
fn desired(host: &Host) -> Desired {
    let mut desired = crate::hosts::desired(host.number, 1..=2, Underlay::V4);
    let number = host.number;
    for (bridge, last) in desired.spaces[0].bridges.iter_mut().zip([1, 129]) {
        let gateway = format!("192.168.{number}.{last}/25");
        bridge.gateways.push(gateway.parse::<InterfaceAddress>().expect("a valid address"));
    }
    desired
}

/// Connects to `to`, which leads to a server in `server`, and transfers data in both directions, one
/// after the other. Returns the address of the client that the server sees.
fn exchange(client: &Namespace, to: SocketAddr, server: &Namespace, port: u16) -> IpAddr {
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(20));
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let listener = server.inside(|| TcpListener::bind(SocketAddr::new(any, port)));
    let listener = listener.expect("a free port");
    std::thread::scope(|scope| {
        let serve = || {
            let (mut stream, peer) = listener.accept().expect("a connection");
            stream.set_read_timeout(TIMEOUT).expect("a socket timeout");
            stream.set_write_timeout(TIMEOUT).expect("a socket timeout");
            stream.write_all(&vec![1; BYTES]).unwrap_or_else(|error| panic!("{to}: {error}"));
            let mut bytes = vec![0; BYTES];
            stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{to}: {error}"));
            stream.write_all(&[2]).expect("a sent byte");
            peer.ip()
        };
        let server = std::thread::Builder::new().spawn_scoped(scope, serve).expect("a thread");
        client.inside(|| {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5));
            let mut stream = stream.unwrap_or_else(|error| panic!("connect to {to}: {error}"));
            stream.set_read_timeout(TIMEOUT).expect("a socket timeout");
            stream.set_write_timeout(TIMEOUT).expect("a socket timeout");
            let mut bytes = vec![0; BYTES];
            stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{to}: {error}"));
            stream.write_all(&bytes).unwrap_or_else(|error| panic!("{to}: {error}"));
            stream.read_exact(&mut [0]).unwrap_or_else(|error| panic!("{to}: {error}"));
        });
        server.join().expect("the server does not panic")
    })
}

/// Counts the forwarded TCP packets of containers with and without SYN.
pub(crate) const COUNTERS: &str = "table inet count {
    counter syn { }
    counter segments { }
    chain forward {
        type filter hook forward priority 50
        tcp flags & syn != 0 counter name syn accept
        meta l4proto tcp counter name segments
    }
}";

/// Returns the packets of one of the [`COUNTERS`].
pub(crate) fn count(host: &Namespace, counter: &str) -> u64 {
    let text = host.run(&format!("nft list counter inet count {counter}"));
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|count| count.parse().ok()).expect("a counter")
}

/// Returns the tracked flows of containers to containers, and of VXLAN.
fn tracked_flows(host: &Host) -> Vec<String> {
    let flows = host.namespace.run("conntrack -L -o extended");
    let is_inner = |line: &&str| {
        line.contains("dport=64000")
            || (line.contains("src=192.168.1.2") && line.contains("dst=192.168.2.2"))
    };
    flows.lines().filter(is_inner).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn shortcut_skips_forward_chain_and_flows_are_untracked() {
    for forwarding in ALL {
        let setup = Setup::new(forwarding);
        let [one, two] = [1, 2].map(|number| setup.host(number));
        for host in [one, two] {
            host.namespace.succeed("nft", &[COUNTERS]);
        }
        transfer(&one.container, &two.container, two.address().into(), BYTES);
        transfer(&two.container, &one.container, one.address6().into(), BYTES);
        assert!(one.container_can_ping(&two.address().to_string(), 1400));
        for host in [one, two] {
            assert_eq!(count(&host.namespace, "syn"), 4, "{forwarding:?}");
            let has_segments = count(&host.namespace, "segments") > 0;
            assert_eq!(has_segments, forwarding != Forwarding::Shortcut, "{forwarding:?}");
            let flows = tracked_flows(host);
            assert_eq!(flows.is_empty(), forwarding != Forwarding::Tracked, "{flows:?}");
        }
    }
}

/// Publishes the port of the second host's container, as Docker does, and an address of the first
/// host that leads to it.
fn publish(setup: &Setup) {
    let container = setup.host(2).address();
    let rules = |condition: &str| {
        format!(
            "table ip published {{
                chain prerouting {{
                    type nat hook prerouting priority -100
                    {condition} dnat to {container}:{PORT}
                }}
            }}"
        )
    };
    let published = rules(&format!("fib daddr type local tcp dport {PUBLISHED}"));
    setup.host(2).namespace.succeed("nft", &[&published]);
    let service = rules(&format!("ip daddr 198.51.100.1 tcp dport {PUBLISHED}"));
    setup.host(1).namespace.succeed("nft", &[&service]);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn translated_connections_work_with_every_forwarding() {
    for forwarding in ALL {
        let setup = Setup::new(forwarding);
        let [one, two] = [1, 2].map(|number| setup.host(number));
        let neighbor = add_neighbor(two);
        publish(&setup);
        let server = &two.container;
        let connect = |client: &Namespace, to: &str| {
            let to = SocketAddr::new(to.parse().expect("an address"), PUBLISHED);
            exchange(client, to, server, PORT).to_string()
        };
        // The host's address, its VTEP, and the addresses of its bridges.
        for to in ["10.0.0.2", "44.128.0.2", "192.168.2.1", "192.168.2.129"] {
            connect(&one.container, to);
            let seen = connect(&neighbor, to);
            assert_eq!(seen, "192.168.2.130", "{forwarding:?}: a local client keeps its source");
        }
        // An address that the client's host translates to a container of another host.
        connect(&one.container, "198.51.100.1");
        // A host outside of the overlays.
        assert_eq!(connect(&setup.host(3).namespace, "10.0.0.2"), "10.0.0.3", "{forwarding:?}");
        // A connection to a host outside of the overlays is masqueraded.
        let outside = SocketAddr::new([10, 0, 0, 3].into(), PORT);
        let seen = exchange(&one.container, outside, &setup.host(3).namespace, PORT);
        assert_eq!(seen.to_string(), "10.0.0.1", "{forwarding:?}");
        // A connection between containers keeps its source.
        let direct = SocketAddr::new(two.address().into(), PORT);
        let seen = exchange(&one.container, direct, server, PORT);
        assert_eq!(seen, IpAddr::from(one.address()), "{forwarding:?}");
    }
}

/// Adds a container to the second bridge of a host.
fn add_neighbor(host: &Host) -> Namespace {
    let (neighbor, network, number) = (Namespace::new(), &host.namespace, host.number);
    network.run("ip link add d-vxlan-1 type bridge");
    network.run("ip link set d-vxlan-1 up");
    network.run(&format!("ip addr add 192.168.{number}.129/25 dev d-vxlan-1"));
    let inside = neighbor.path();
    network.run(&format!("ip link add veth1 type veth peer name eth0 netns {}", inside.display()));
    network.run("ip link set veth1 master d-vxlan-1 up");
    neighbor.run("ip link set eth0 up");
    neighbor.run(&format!("ip addr add 192.168.{number}.130/25 dev eth0"));
    neighbor.run(&format!("ip route add default via 192.168.{number}.129"));
    neighbor
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn rules_about_new_connections_hold_with_shortcut() {
    let setup = Setup::new(Forwarding::Shortcut);
    let [one, two] = [1, 2].map(|number| setup.host(number));
    let connect = |to: SocketAddr| {
        one.container.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))
    };
    // A missing container is reported by its host, as soon as its ARP requests have failed.
    let begin = now();
    let error = connect(SocketAddr::new([192, 168, 2, 77].into(), PORT)).expect_err("no container");
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    assert!(begin.elapsed() < time_limit(Duration::from_secs(8)));
    // A foreign rule that refuses a port refuses it to new connections.
    let listen = || TcpListener::bind(SocketAddr::new(two.address().into(), PORT));
    let _listener = two.container.inside(listen).expect("a free port");
    let to = SocketAddr::new(two.address().into(), PORT);
    connect(to).expect("the port is open");
    for host in [one, two] {
        let rule = format!("iptables -I FORWARD -p tcp --dport {PORT} -j REJECT");
        host.namespace.run(&rule);
        let error = connect(to).expect_err("the rule refuses it");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        host.namespace.run(&rule.replace("-I", "-D"));
    }
    connect(to).expect("the port is open again");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn shortcut_follows_devices_and_is_repaired() {
    let mut setup = Setup::new(Forwarding::Shortcut);
    assert_eq!(setup.program(), [Outcome::Unchanged; 2]);
    let works = |setup: &Setup| {
        let [one, two] = [1, 2].map(|number| setup.host(number));
        transfer(&one.container, &two.container, two.address().into(), BYTES);
        transfer(&two.container, &one.container, one.address().into(), BYTES);
    };
    // Without the table, packets take the ordinary path.
    setup.host(1).namespace.run("nft delete table netdev mesos_overlay");
    works(&setup);
    setup.firewalls[0].note_event(overlay_linux::firewall::RulesEvent::Managed, false);
    assert_eq!(setup.program(), [Outcome::Repaired, Outcome::Unchanged]);
    works(&setup);
    // A device that was replaced has another index.
    setup.host(1).namespace.run("ip link delete vtep1024");
    assert_eq!(setup.program(), [Outcome::Made, Outcome::Unchanged]);
    works(&setup);
    // A port with a larger MTU than the tunnel needs the ordinary path, which sends ICMP errors.
    setup.host(1).namespace.run("ip link set veth0 mtu 1500");
    setup.options.forwarding = Forwarding::Untracked;
    assert_eq!(setup.program(), [Outcome::Made; 2]);
    let tables = setup.host(2).namespace.run("nft list tables");
    assert!(!tables.contains("netdev"), "{tables}");
    works(&setup);
}
