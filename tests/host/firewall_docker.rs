//! The firewall next to the rules of Docker engines that are not installed: the test creates the
//! rules of each engine. `tests/host/docker.rs` uses a real engine.

use overlay_linux::firewall::{Backend, Firewall, Options, Outcome, Ruleset};

use crate::hosts::{Host, Hosts, Underlay};
use crate::namespace::{BUSYBOX, Namespace, require_root_and_files, run};

/// The rules of an engine. `{bridge}` is the overlay's bridge, `{ends}` is the verdict on a packet
/// from outside to an unpublished port, and `{raw}` is the verdict on a packet from another host
/// directly to a container. The gateway mode decides both verdicts. The device d-vxlan-1 stands for
/// a second overlay network, which Docker isolates from the first.
struct Layout {
    engines: &'static str,
    tool: Tool,
    rules: &'static str,
    /// Whether the gateway mode decides on packets from other hosts.
    has_modes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    Iptables,
    Nftables,
}

/// The rules of each engine for a bridge. Rules are in reverse order, since every engine inserts
/// its jumps before existing rules.
const LAYOUTS: [Layout; 6] = [
    Layout {
        engines: "17.06 to 18.04",
        tool: Tool::Iptables,
        rules: "*filter\n:FORWARD DROP\n:DOCKER -\n:DOCKER-ISOLATION -\n:DOCKER-USER -\n\
            -I FORWARD -i {bridge} -o {bridge} -j ACCEPT\n\
            -I FORWARD -i {bridge} ! -o {bridge} -j ACCEPT\n\
            -I FORWARD -o {bridge} -j DOCKER\n\
            -I FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
            -I FORWARD -j DOCKER-ISOLATION\n\
            -I FORWARD -j DOCKER-USER\n\
            -A DOCKER-ISOLATION -i {bridge} -o d-vxlan-1 -j DROP\n\
            -A DOCKER-ISOLATION -i d-vxlan-1 -o {bridge} -j DROP\n\
            -A DOCKER-USER -j RETURN\nCOMMIT\n",
        has_modes: false,
    },
    Layout {
        engines: "18.05 to 27",
        tool: Tool::Iptables,
        rules: "*filter\n:FORWARD DROP\n:DOCKER -\n:DOCKER-USER -\n\
            :DOCKER-ISOLATION-STAGE-1 -\n:DOCKER-ISOLATION-STAGE-2 -\n\
            -I FORWARD -i {bridge} -o {bridge} -j ACCEPT\n\
            -I FORWARD -i {bridge} ! -o {bridge} -j ACCEPT\n\
            -I FORWARD -o {bridge} -j DOCKER\n\
            -I FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
            -I FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
            -I FORWARD -j DOCKER-USER\n\
            -A DOCKER-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2\n\
            -A DOCKER-ISOLATION-STAGE-1 -i d-vxlan-1 ! -o d-vxlan-1 -j DOCKER-ISOLATION-STAGE-2\n\
            -A DOCKER-ISOLATION-STAGE-2 -o d-vxlan-1 -j DROP\n\
            -A DOCKER-ISOLATION-STAGE-2 -o {bridge} -j DROP\n\
            -A DOCKER-USER -j RETURN\nCOMMIT\n",
        has_modes: false,
    },
    Layout {
        engines: "28.0.0",
        tool: Tool::Iptables,
        rules: "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -d {container} ! -i {bridge} -j {raw}\nCOMMIT\n\
            *filter\n:FORWARD DROP\n:DOCKER -\n:DOCKER-USER -\n\
            :DOCKER-ISOLATION-STAGE-1 -\n:DOCKER-ISOLATION-STAGE-2 -\n\
            -I FORWARD -i {bridge} -j ACCEPT\n\
            -I FORWARD -m set --match-set {set} dst -j DOCKER\n\
            -I FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
            -I FORWARD -m set --match-set {set} dst -m conntrack \
                --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
            -I FORWARD -j DOCKER-USER\n\
            -A DOCKER ! -i {bridge} -o {bridge} -j {ends}\n\
            -A DOCKER-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2\n\
            -A DOCKER-ISOLATION-STAGE-1 -i d-vxlan-1 ! -o d-vxlan-1 -j DOCKER-ISOLATION-STAGE-2\n\
            -A DOCKER-ISOLATION-STAGE-2 -o d-vxlan-1 -j DROP\n\
            -A DOCKER-ISOLATION-STAGE-2 -o {bridge} -j DROP\nCOMMIT\n",
        has_modes: true,
    },
    Layout {
        engines: "28.0.1 to 28.5",
        tool: Tool::Iptables,
        rules: "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -d {container} ! -i {bridge} -j {raw}\nCOMMIT\n\
            *filter\n:FORWARD DROP\n:DOCKER -\n:DOCKER-USER -\n:DOCKER-FORWARD -\n:DOCKER-CT -\n\
            :DOCKER-BRIDGE -\n:DOCKER-ISOLATION-STAGE-1 -\n:DOCKER-ISOLATION-STAGE-2 -\n\
            -I FORWARD -j DOCKER-FORWARD\n\
            -I FORWARD -j DOCKER-USER\n\
            -A DOCKER-FORWARD -j DOCKER-CT\n\
            -A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
            -A DOCKER-FORWARD -j DOCKER-BRIDGE\n\
            -A DOCKER-FORWARD -i {bridge} -j ACCEPT\n\
            -A DOCKER-CT -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
            -A DOCKER-BRIDGE -o {bridge} -j DOCKER\n\
            -A DOCKER ! -i {bridge} -o {bridge} -j {ends}\n\
            -A DOCKER-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2\n\
            -A DOCKER-ISOLATION-STAGE-1 -i d-vxlan-1 ! -o d-vxlan-1 -j DOCKER-ISOLATION-STAGE-2\n\
            -A DOCKER-ISOLATION-STAGE-2 -o d-vxlan-1 -j DROP\n\
            -A DOCKER-ISOLATION-STAGE-2 -o {bridge} -j DROP\nCOMMIT\n",
        has_modes: true,
    },
    Layout {
        engines: "29 with iptables",
        tool: Tool::Iptables,
        rules: "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -d {container} ! -i {bridge} -j {raw}\nCOMMIT\n\
            *filter\n:FORWARD DROP\n:DOCKER -\n:DOCKER-USER -\n:DOCKER-FORWARD -\n:DOCKER-CT -\n\
            :DOCKER-BRIDGE -\n:DOCKER-INTERNAL -\n\
            -I FORWARD -j DOCKER-FORWARD\n\
            -I FORWARD -j DOCKER-USER\n\
            -A DOCKER-FORWARD -j DOCKER-CT\n\
            -A DOCKER-FORWARD -j DOCKER-INTERNAL\n\
            -A DOCKER-FORWARD -j DOCKER-BRIDGE\n\
            -A DOCKER-FORWARD -i {bridge} -j ACCEPT\n\
            -A DOCKER-CT -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
            -A DOCKER-BRIDGE -o {bridge} -j DOCKER\n\
            -A DOCKER ! -i {bridge} -o {bridge} -j {ends}\nCOMMIT\n",
        has_modes: true,
    },
    Layout {
        engines: "29 with nftables",
        tool: Tool::Nftables,
        rules: "table {family} docker-bridges {\n\
            chain to {\n ct state established,related accept\n iifname {bridge} accept\n {ends}\n }\n\
            chain from {\n accept\n }\n\
            chain filter-FORWARD {\n type filter hook forward priority filter; policy accept;\n\
             oifname vmap { {bridge} : jump to }\n iifname vmap { {bridge} : jump from }\n }\n\
            chain raw-PREROUTING {\n type filter hook prerouting priority raw; policy accept;\n\
             {family} daddr {container} iifname != {bridge} {raw}\n }\n}\n",
        has_modes: true,
    },
];

/// The bridge that stands for the Docker bridge of an overlay. No rule depends on its name.
const BRIDGE: &str = "m-vxlan-1";

impl Layout {
    /// Creates the rules, as an engine does at its start. `is_open` stands for the gateway mode
    /// `nat-unprotected`; every other mode drops packets to unpublished ports.
    fn install(&self, host: &Host, is_open: bool) {
        for (program, family, kind) in
            [("iptables-restore", "ip", "inet"), ("ip6tables-restore", "ip6", "inet6")]
        {
            let number = host.number;
            let (container, subnet) = match family {
                "ip" => (host.address().to_string(), format!("192.168.{number}.0/25")),
                _ => (host.address6().to_string(), format!("fd01:b:0:0:{number}::/81")),
            };
            let (ends, raw) = if is_open { ("ACCEPT", "RETURN") } else { ("DROP", "DROP") };
            let set = format!("docker-{family}");
            let rules = self.rules.replace("{bridge}", BRIDGE).replace("{container}", &container);
            let rules = rules.replace("{set}", &set).replace("{family}", family);
            let (mut command, rules) = match self.tool {
                Tool::Iptables => {
                    let namespace = &host.namespace;
                    namespace.run(&format!("ipset -exist create {set} hash:net family {kind}"));
                    namespace.run(&format!("ipset -exist add {set} {subnet}"));
                    let mut command = namespace.command(program);
                    command.arg("--noflush");
                    (command, rules.replace("{ends}", ends).replace("{raw}", raw))
                }
                Tool::Nftables => {
                    let mut command = host.namespace.command("nft");
                    command.args(["-f", "-"]);
                    let (ends, raw) = (ends.to_lowercase(), raw.to_lowercase());
                    (command, rules.replace("{ends}", &ends).replace("{raw}", &raw))
                }
            };
            let output = run(&mut command, &rules);
            assert!(output.status.success(), "{}: {output:?}\n{rules}", self.engines);
        }
    }
}

/// Three hosts. The first host has a second Docker bridge, which belongs to the overlays.
struct FirewalledHosts {
    hosts: Hosts,
    neighbor: Namespace,
    firewalls: Vec<Firewall>,
}

impl FirewalledHosts {
    fn new(backend: Backend) -> Self {
        require_root_and_files(&["/usr/sbin/nft", "/usr/sbin/iptables", "/usr/sbin/ipset"]);
        let hosts = Hosts::new(3, Underlay::V4);
        hosts.program();
        let neighbor = Namespace::new();
        let network = &hosts.hosts[0].namespace;
        network.run("ip link add d-vxlan-1 type bridge");
        network.run("ip link set d-vxlan-1 up");
        network.run("ip addr add 192.168.1.129/25 dev d-vxlan-1");
        let inside = neighbor.path();
        let inside = inside.display();
        network.run(&format!("ip link add veth1 type veth peer name eth0 netns {inside}"));
        network.run("ip link set veth1 master d-vxlan-1 up");
        neighbor.run("ip link set eth0 up");
        neighbor.run("ip addr add 192.168.1.130/25 dev eth0");
        neighbor.run("ip route add default via 192.168.1.129");
        let firewalls = hosts.hosts.iter().map(|_| Firewall::new(backend)).collect();
        Self { hosts, neighbor, firewalls }
    }

    fn install(&self, layout: &Layout, is_open: bool) {
        self.hosts.hosts.iter().for_each(|host| layout.install(host, is_open));
    }

    fn verify(&mut self) {
        for (host, firewall) in self.hosts.hosts.iter().zip(&mut self.firewalls) {
            let rules = Ruleset::new(&self.hosts.desired(host), &Options::default());
            let mut verify = || host.namespace.inside(|| firewall.verify(&rules));
            verify().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(verify(), Ok(Outcome::Unchanged));
        }
    }

    /// Returns whether pings succeed: from another host to the first host's container, from the
    /// second bridge of the first host to the container, and from the container to a host outside.
    fn pings_succeed(&self) -> [bool; 3] {
        let [first, second, _] = &self.hosts.hosts[..] else { panic!("three hosts") };
        let to = first.address().to_string();
        let from_neighbor = ["ping", "-c", "1", "-W", "2", &to];
        [
            second.container_can_ping(&to, 16),
            run(self.neighbor.command(BUSYBOX).args(from_neighbor), "").status.success(),
            first.container_can_ping("10.0.0.3", 16),
        ]
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn containers_reach_each_other_with_every_docker_engine() {
    for layout in LAYOUTS {
        for backend in [Backend::Nftables, Backend::Iptables] {
            let mut setup = FirewalledHosts::new(backend);
            assert_eq!(setup.pings_succeed(), [true; 3]);
            setup.install(&layout, true);
            let engines = layout.engines;
            if !layout.has_modes {
                assert_eq!(setup.pings_succeed(), [false, false, true], "{engines}");
            }
            // First Docker's rules exist before the agent's; then Docker restarts.
            for moment in ["before", "after"] {
                setup.verify();
                assert_eq!(setup.pings_succeed(), [true; 3], "{engines} {backend:?} {moment}");
                setup.hosts.assert_full_reachability();
                setup.install(&layout, true);
            }
        }
    }
}

/// Shows why the agent creates networks with the gateway mode `nat-unprotected` where the engine
/// supports gateway modes, and why it reports networks of older engines.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn closed_gateway_mode_overrides_firewall_rules() {
    for layout in LAYOUTS.iter().filter(|layout| layout.has_modes) {
        let mut setup = FirewalledHosts::new(Backend::Nftables);
        setup.install(layout, false);
        setup.verify();
        let [from_another_host, ..] = setup.pings_succeed();
        assert!(!from_another_host, "{}", layout.engines);
    }
}
