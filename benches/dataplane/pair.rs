//! Two hosts with one container each, connected by hand or by the agent's dataplane.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use overlay_linux::dataplane::{Dataplane, direct_link};
use overlay_linux::firewall::{Backend, Firewall, Ruleset};
use overlay_types::tunnel::{Desired, DirectLink, DirectPeer, DirectRouting};

use crate::namespace::Namespace;
use crate::{
    CLOSING_RULES, agent, all_rules, create_device_manually, desired, mac, operation_count,
    pin_to_processor, vtep,
};

/// Two hosts with one container each.
pub(crate) struct Pair {
    pub(crate) hosts: [Namespace; 2],
    pub(crate) containers: [Namespace; 2],
}

/// Connects two hosts, 10.0.0.1 and 10.0.0.2.
pub(crate) fn connect_hosts(hosts: [&Namespace; 2]) {
    let other = hosts[1].path();
    hosts[0].run(&format!("ip link add eth0 type veth peer name eth0 netns {}", other.display()));
    for (number, host) in (1..).zip(hosts) {
        host.run("sysctl -qw net.ipv4.ip_forward=1");
        // A namespace inherits the settings of the machine.
        host.run("sysctl -qw net.ipv4.conf.all.rp_filter=0");
        host.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=0");
        host.run("ip link set eth0 up");
        host.run(&format!("ip addr add 10.0.0.{number}/8 dev eth0"));
    }
}

/// Returns the device of the host for direct routing.
fn find_link(own: u32) -> DirectLink {
    let link = direct_link(agent(own).into()).expect("netlink is available");
    link.expect("an Ethernet device")
}

impl Pair {
    /// Creates the hosts and the containers, which have this MTU and a bridge each.
    pub(crate) fn new(mtu: u32) -> Self {
        let hosts = [Namespace::new(), Namespace::new()];
        let containers = [Namespace::new(), Namespace::new()];
        hosts.iter().for_each(Namespace::enable_ipv6);
        connect_hosts([&hosts[0], &hosts[1]]);
        for (number, (host, container)) in (1..).zip(hosts.iter().zip(&containers)) {
            let inside = container.path();
            host.run(&format!("ip link add m-vxlan-1 mtu {mtu} type bridge"));
            host.run(&format!(
                "ip link add port0 type veth peer name eth0 netns {}",
                inside.display()
            ));
            host.run(&format!("ip link set port0 master m-vxlan-1 mtu {mtu} up"));
            host.run("ip link set m-vxlan-1 up");
            host.run(&format!("ip addr add 9.0.{number}.1/25 dev m-vxlan-1"));
            container.run(&format!("ip link set eth0 mtu {mtu} up"));
            container.run(&format!("ip addr add 9.0.{number}.2/25 dev eth0"));
            container.run(&format!("ip route add default via 9.0.{number}.1"));
        }
        Self { hosts, containers }
    }

    pub(crate) fn connect_manually(&self) {
        for (host, (own, other)) in self.hosts.iter().zip([(1, 2), (2, 1)]) {
            create_device_manually(host, own);
            let (mac, vtep) = (mac(other), vtep(other));
            host.run(&format!("ip neigh add {vtep} lladdr {mac} dev vtep1024 nud permanent"));
            host.run(&format!("ip route add 9.0.{other}.0/24 via {vtep} dev vtep1024 onlink"));
            let to = agent(other);
            host.run(&format!("bridge fdb add {mac} dev vtep1024 dst {to} self permanent"));
        }
    }

    /// Connects manually, and adds one rule that lets containers reach external networks.
    pub(crate) fn connect_manually_with_masquerade(&self) {
        for host in &self.hosts {
            for line in [
                "nft add table ip manual",
                "nft add chain ip manual post { type nat hook postrouting priority 100 ; }",
                "nft add rule ip manual post ip saddr 9.0.0.0/8 ip daddr != 9.0.0.0/8 masquerade",
            ] {
                host.run(line);
            }
        }
        self.connect_manually();
    }

    /// Connects as the agent does.
    pub(crate) fn connect_by_agent(&self) {
        self.apply([1, 2].map(|own| desired(own, 2)));
    }

    /// Connects as two agents with direct routing do.
    pub(crate) fn connect_directly(&self) {
        let links = [1, 2].map(|own| self.hosts[own as usize - 1].inside(|| find_link(own)));
        let state_of = |(index, own)| {
            let mut state = Arc::unwrap_or_clone(desired(own, 2));
            let [link, other]: [&DirectLink; 2] = [&links[index], &links[1 - index]];
            state.direct = Some(DirectRouting { link: Some(link.clone()) });
            for peer in state.peers.iter_mut().flat_map(BTreeMap::values_mut) {
                peer.direct = Some(DirectPeer { mac: other.mac, is_used: true });
            }
            Arc::new(state)
        };
        self.apply([(0, 1), (1, 2)].map(state_of));
    }

    /// Applies the states of the hosts as the agent does: first the firewall rules, then the
    /// dataplane, and last the shortcut for TCP segments.
    fn apply(&self, states: [Arc<Desired>; 2]) {
        let options = all_rules();
        for (host, state) in self.hosts.iter().zip(states) {
            host.inside(|| {
                let mut firewall = Firewall::new(Backend::detect().expect("a firewall backend"));
                let rules = Ruleset::new(&state, &options);
                firewall.verify(&rules).expect("root may create rules");
                let mut dataplane = Dataplane::open().expect("netlink is available");
                operation_count(dataplane.verify(&state).expect("the state is readable"));
                let links = dataplane.shortcut_links(&state).expect("a known state");
                firewall.apply_shortcut(&state, &options, &links, true);
                assert_eq!(firewall.forwarding(&options), options.forwarding, "the shortcut");
            });
        }
    }

    /// Applies masquerade and the check of senders by hand: what the agent has without the rules
    /// that close overlays.
    pub(crate) fn apply_open_rules(&self) {
        let table = "table inet open {
            set agents { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 }; }
            chain input {
                type filter hook input priority -10
                udp dport 64000 ip saddr != @agents counter drop
            }
            chain post {
                type nat hook postrouting priority 99
                oifname vtep1024 return
                ip daddr 9.0.0.0/8 return
                ip saddr 9.0.0.0/8 masquerade
            }
        }";
        for host in &self.hosts {
            host.succeed("nft", &[table]);
        }
    }

    /// Makes one of the tables of [`CLOSING_RULES`] active and the other dormant.
    pub(crate) fn wake_table(&self, active: &str) {
        let command = CLOSING_RULES.iter().map(|(_, table)| {
            let flags = if active == *table { "" } else { "flags dormant;" };
            format!("add table inet {table} {{ {flags} }}\n")
        });
        let command: String = command.collect();
        for host in &self.hosts {
            host.succeed("nft", &[&command]);
        }
    }

    /// Connects by the dataplane without firewall rules.
    pub(crate) fn connect_by_dataplane(&self) {
        for (host, own) in self.hosts.iter().zip([1, 2]) {
            let desired_state = desired(own, 2);
            host.inside(|| {
                let mut dataplane = Dataplane::open().expect("netlink is available");
                operation_count(dataplane.verify(&desired_state).expect("the state is readable"));
            });
        }
    }

    /// Opens a stream from the first container to the second, through the tunnel that `connect`
    /// creates. A separate thread on this processor discards the received data.
    pub(crate) fn stream(&self, processor: usize, connect: impl FnOnce(&Self)) -> TcpStream {
        connect(self);
        let address = SocketAddr::from(([9, 0, 2, 2], 7007));
        let listen = || TcpListener::bind(address).expect("a free port");
        let listener = self.containers[1].inside(listen);
        let receive = move || {
            pin_to_processor(processor);
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = vec![0; 1 << 18];
            while stream.read(&mut buffer).expect("data arrives") > 0 {}
        };
        let receiver = std::thread::Builder::new().spawn(receive);
        receiver.expect("a thread");
        self.containers[0].inside(|| TcpStream::connect(address).expect("the tunnel works"))
    }
}
