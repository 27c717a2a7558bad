//! Three hosts with agents of the program, a host outside, and containers of every kind.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cluster::container::Container;
use crate::cluster::{Cluster, Host, MASTER_ADDRESS};
use crate::hosts::Underlay;
use crate::namespace::{Namespace, require_root_and_files, succeed};

const XTABLES_NFT: &str = "/usr/sbin/xtables-nft-multi";
const XTABLES_LEGACY: &str = "/usr/sbin/xtables-legacy-multi";
/// Address of the stranger: the host outside of the overlays. It has no agent and no master, and
/// stands for the host of a Mesos master too.
pub(super) const STRANGER: &str = "10.0.0.101";

/// The backend of the agent's rules, and the variant of iptables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rules {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Rules {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// Returns the value of the agent's key `firewall`.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft | Self::IptablesLegacy => "iptables",
        }
    }

    /// Returns the command that runs the agent. For legacy iptables, the command starts a mount
    /// namespace in which the legacy program covers the variant for nftables.
    pub(super) fn wrapper(self) -> Vec<String> {
        let cover = format!("mount --bind {XTABLES_LEGACY} {XTABLES_NFT} && exec \"$@\"");
        let wrapper = match self {
            Self::Nftables | Self::IptablesNft => &[][..],
            Self::IptablesLegacy => &["unshare", "--mount", "sh", "-c", &cover, "sh"],
        };
        wrapper.iter().map(|&word| word.to_owned()).collect()
    }
}

/// Three hosts with agents, and the stranger. Hosts 1 and 2 have Docker, and the master runs on
/// host 2. Host 3 is a known agent whose root user is hostile.
pub(super) struct Lab {
    pub(super) containers: BTreeMap<&'static str, Container>,
    pub(super) cluster: Cluster,
}

impl Lab {
    /// Starts the agents and Docker. `config` is added to the configuration of each agent, and
    /// `daemon` is the configuration of Docker.
    pub(super) fn new(rules: Rules, daemon: &str, config: &Value) -> Self {
        require_root_and_files(&[XTABLES_NFT, XTABLES_LEGACY, "/usr/sbin/nft", "/usr/sbin/ipset"]);
        let mut cluster = Cluster::new(Underlay::V4);
        for number in 1..=3 {
            let host = cluster.add_host(number);
            host.wrapper = rules.wrapper();
            host.config["firewall"] = json!(rules.key());
            if number < 3 {
                host.config["network_config"] = json!({});
            }
            for (key, value) in config.as_object().expect("an object") {
                host.config[key] = value.clone();
            }
            prepare_host(host);
        }
        start_docker(&mut cluster, daemon);
        move_master(&mut cluster);
        cluster.start_agents();
        cluster.wait_until_ok();
        Self { containers: BTreeMap::new(), cluster }
    }

    /// Adds the containers `a1`, `b1` (Mesos half of each overlay), `d1` (Docker half of the first
    /// overlay) and `x1` (Docker's default bridge) to host 1, and the same to host 2.
    pub(super) fn with_all_containers(mut self) -> Self {
        let names = [["a1", "b1", "d1", "x1"], ["a2", "b2", "d2", "x2"]];
        for (index, [a, b, d, x]) in names.into_iter().enumerate() {
            let host = &self.cluster.hosts[index];
            let docker_half = [
                (format!("192.168.{index}.200/25"), format!("192.168.{index}.129")),
                (format!("fd01:b:0:0:{index}:8000::c8/81"), format!("fd01:b:0:0:{index}:8000::1")),
            ];
            let default = [("172.17.0.200/16".to_owned(), "172.17.0.1".to_owned())];
            let containers = [
                (a, Container::for_mesos(host, "vxlan-1")),
                (b, Container::for_mesos(host, "vxlan-2")),
                (d, attach(host, "d-vxlan-1", &docker_half)),
                (x, attach(host, "docker0", &default)),
            ];
            self.containers.extend(containers);
        }
        self
    }

    pub(super) fn container(&self, name: &str) -> &Namespace {
        &self.containers[name].namespace
    }

    pub(super) fn host(&self, number: u8) -> &Namespace {
        self.cluster.host(number).namespace()
    }

    /// Returns the host outside of the overlays.
    pub(super) const fn stranger(&self) -> &Namespace {
        &self.cluster.namespace
    }

    /// Restarts all agents with another value of a key.
    pub(super) fn restart_with(&mut self, key: &str, value: &Value) {
        for host in &mut self.cluster.hosts {
            host.agent.take().expect("a running process").kill();
            host.config[key] = value.clone();
            host.start_agent();
        }
        self.cluster.wait_until_ok();
    }
}

/// Prepares a host, so that nothing besides the rules drops a forged packet: no `rp_filter`, an
/// IPv6 address, and a default route.
pub(super) fn prepare_host(host: &Host) {
    let (number, host) = (host.number, host.namespace());
    for name in ["all", "default", "eth0"] {
        host.run(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter=0"));
    }
    Underlay::V6.add_address(host, number);
    host.run(&format!("ip route add default via {STRANGER}"));
}

fn start_docker(cluster: &mut Cluster, config: &str) {
    std::thread::scope(|scope| {
        for host in cluster.hosts.iter_mut().filter(|host| host.number < 3) {
            host.daemon.config = config.to_owned();
            let start = || host.daemon.start();
            std::thread::Builder::new().spawn_scoped(scope, start).expect("a thread");
        }
    });
}

/// Moves the master with its address to host 2. Its former host becomes the stranger, which has
/// routes to the containers through host 1.
fn move_master(cluster: &mut Cluster) {
    cluster.master.take().expect("a running process").kill();
    let (address, _) = MASTER_ADDRESS.split_once(':').expect("an address with a port");
    let stranger = &cluster.namespace;
    stranger.run(&format!("ip addr add {STRANGER}/24 dev eth0"));
    stranger.run(&format!("ip addr del {address}/24 dev eth0"));
    // The kernel removes the secondary addresses of a subnet with the first one.
    stranger.run(&format!("ip addr replace {STRANGER}/24 dev eth0"));
    Underlay::V6.add_address(stranger, 101);
    for number in 0..2 {
        stranger.run(&format!("ip route add 192.168.{number}.0/24 via 10.0.0.1"));
    }
    stranger.run("ip -6 route add fd01:b::/64 via fd00:10::1");
    let host = cluster.host(2).namespace();
    host.run(&format!("ip addr add {address}/24 dev eth0"));
    cluster.master_host = Some(2);
    cluster.start_master();
}

/// Connects a container to a bridge that Docker created. It has these addresses and gateways.
fn attach(host: &Host, bridge: &str, addresses: &[(String, String)]) -> Container {
    let namespace = Namespace::new();
    namespace.enable_ipv6();
    let path = namespace.path();
    let network = host.namespace();
    network
        .run(&format!("ip link add v-{bridge} type veth peer name eth0 netns {}", path.display()));
    network.run(&format!("ip link set v-{bridge} master {bridge} up"));
    namespace.run("ip link set eth0 mtu 1420 up");
    for (address, gateway) in addresses {
        let (family, nodad) = if address.contains(':') { ("-6", "nodad") } else { ("-4", "") };
        namespace.run(&format!("ip addr add {address} dev eth0 {nodad}"));
        namespace.run(&format!("ip {family} route add default via {gateway}"));
    }
    let address = |text: &String| -> IpAddr {
        let (address, _) = text.split_once('/').expect("an address with a length");
        address.parse().expect("a valid address")
    };
    let addresses = addresses.iter().map(|(text, _)| address(text)).collect();
    Container { name: format!("{} on {bridge}", host.number), namespace, addresses }
}

/// Masquerades the packets of Docker's default bridge, as Docker does.
pub(super) fn masquerade_docker0(host: &Namespace) {
    let chain = "add chain ip docker_like post { type nat hook postrouting priority 100 ; }";
    let rule = "add rule ip docker_like post ip saddr 172.17.0.0/16 oifname != docker0 masquerade";
    for line in ["add table ip docker_like", chain, rule] {
        succeed(host.command("nft").arg(line));
    }
}
