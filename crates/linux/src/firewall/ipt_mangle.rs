//! Writes the iptables chains that drop packets, in the table `mangle`.
//!
//! The chains FORWARD and INPUT of `mangle` have the priority -150. They come before `filter` (0),
//! where a rule of another program that accepts a packet would skip our chains. They come after
//! conntrack (-200) and the destination NAT of `nat`, which is in the earlier hook PREROUTING. So a
//! port and an address are those of the receiver.
//!
//! The rules are those of [`super::nft_chains`], with two exceptions. iptables cannot compare the
//! sender of a VXLAN packet with the source of the packet inside. So the source is checked after
//! the kernel has removed the headers, and must belong to some agent. And the rule that closes the
//! VXLAN port always uses conntrack.

use std::collections::BTreeSet;

use overlay_types::addr::{DeviceName, Family, Subnet};

use super::ipsets;
use super::iptables::{CHAIN, INPUT, Table};
use super::ruleset::{Ingress, Layout, Ruleset, Senders, of_family};

/// Chain for packets from containers of the overlays.
const INSIDE: &str = "MESOS-OVERLAY-INS";
/// Chain for packets from containers that leave the overlays.
const OUTSIDE: &str = "MESOS-OVERLAY-OUT";
/// Chain for forwarded packets from a tunnel.
const TUNNEL: &str = "MESOS-OVERLAY-TUN";
/// Chain for packets from a tunnel to this host.
const TUNNEL_IN: &str = "MESOS-OVERLAY-TIN";
/// Chain for packets from other networks to the overlays.
const STRANGER: &str = "MESOS-OVERLAY-STR";
/// Chain for packets from containers to this host.
const PORTS: &str = "MESOS-OVERLAY-PORTS";

/// Maximum number of ports in one rule of the match `multiport`.
const MULTIPORT_MAX: usize = 15;

/// Chain for forwarded packets from one bridge. The number of the bridge follows.
const FROM_BRIDGE: &str = "MESOS-OVERLAY-F";
/// Chain for packets from one bridge to this host. The number of the bridge follows.
const FROM_BRIDGE_IN: &str = "MESOS-OVERLAY-N";
/// Chain for packets from one isolated overlay. The number of the overlay follows.
const ISOLATED: &str = "MESOS-OVERLAY-I";

/// Returns whether a chain is one of the managed chains of `mangle`.
pub(super) fn is_own_chain(name: &str) -> bool {
    let is_numbered = |beginning| {
        let number = name.strip_prefix(beginning).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let chains = [CHAIN, INPUT, INSIDE, OUTSIDE, TUNNEL, TUNNEL_IN, STRANGER, PORTS];
    chains.contains(&name) || [FROM_BRIDGE, FROM_BRIDGE_IN, ISOLATED].into_iter().any(is_numbered)
}

/// Writes all chains that drop packets.
pub(super) fn write(mangle: &mut Table, rules: &Ruleset, family: Family) {
    let layout = &rules.layout;
    let chains = Chains { rules, layout, family, spaces: layout.spaces(family) };
    chains.forward(mangle);
    chains.input(mangle);
}

struct Chains<'a> {
    rules: &'a Ruleset,
    layout: &'a Layout,
    family: Family,
    /// The subnets of all overlays of the family.
    spaces: BTreeSet<Subnet>,
}

impl Chains<'_> {
    /// Writes the chain for forwarded packets, and the chains that it goes to.
    fn forward(&self, mangle: &mut Table) {
        let is_closed = self.layout.ingress == Ingress::Closed;
        let mut rules: Vec<String> = self
            .bridges()
            .map(|(bridge, number, _)| format!("-i {bridge} -g {FROM_BRIDGE}{number}"))
            .collect();
        let devices = &self.layout.devices;
        rules.extend(devices.iter().map(|device| format!("-i {device} -g {TUNNEL}")));
        let docker = self.layout.docker_bridge();
        rules.extend(docker.map(|docker| format!("-i {docker} -j {OUTSIDE}")));
        if is_closed {
            rules.extend(self.spaces.iter().map(|space| format!("-d {space} -g {STRANGER}")));
            rules.extend(devices.iter().map(|device| format!("-o {device} -g {STRANGER}")));
        }
        mangle.add(CHAIN, rules);
        for (bridge, number, subnets) in self.bridges() {
            // With br_netfilter, frames between ports of a bridge pass this chain.
            let mut rules = vec![format!("-o {bridge} -j RETURN")];
            rules.extend(subnets.iter().map(|subnet| format!("-s {subnet} -g {INSIDE}")));
            rules.push("-j DROP".to_owned());
            mangle.add(format!("{FROM_BRIDGE}{number}"), rules);
        }
        mangle.add(TUNNEL, self.tunnel_rules(INSIDE));
        self.inside(mangle);
        mangle.add(OUTSIDE, self.outside());
        if is_closed {
            let states = "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j RETURN";
            mangle.add(STRANGER, vec![states.to_owned(), "-j DROP".to_owned()]);
        }
    }

    /// Returns the bridges with their numbers in names of chains, and their subnets.
    fn bridges(&self) -> impl Iterator<Item = (&DeviceName, usize, Vec<Subnet>)> {
        self.layout.bridges.iter().enumerate().map(|(number, (bridge, subnets))| {
            (bridge, number, of_family(subnets.iter(), self.family).collect())
        })
    }

    /// Returns the rules that check the source of a packet from a tunnel.
    fn tunnel_rules(&self, target: &str) -> Vec<String> {
        let mut rules = Vec::new();
        if self.layout.senders == Senders::Sources {
            let set = ipsets::inner(self.family);
            let drop = format!("-m set ! --match-set {set} src -j DROP");
            if self.rules.accepts_external() {
                let internal = self.layout.internal(self.family);
                rules.extend(internal.iter().map(|subnet| format!("-s {subnet} {drop}")));
            } else {
                rules.push(drop);
            }
        }
        rules.push(format!("-g {target}"));
        rules
    }

    /// Writes the chain for packets from containers of the overlays, and those of isolated
    /// overlays.
    fn inside(&self, mangle: &mut Table) {
        let mut rules = Vec::new();
        if self.layout.isolate {
            for (number, subnets) in self.layout.spaces.values().enumerate() {
                let own: Vec<_> = of_family(subnets.iter(), self.family).collect();
                let chain = format!("{ISOLATED}{number}");
                rules.extend(own.iter().map(|space| format!("-s {space} -g {chain}")));
                let others = self.spaces.iter().filter(|space| !own.contains(space));
                let from_own = own.iter().map(|space| format!("-d {space} -j RETURN"));
                let to_others = others.map(|space| format!("-d {space} -j DROP"));
                let outside = [format!("-g {OUTSIDE}")];
                mangle.add(chain, from_own.chain(to_others).chain(outside).collect());
            }
        }
        rules.extend(self.spaces.iter().map(|space| format!("-d {space} -j RETURN")));
        rules.push(format!("-g {OUTSIDE}"));
        mangle.add(INSIDE, rules);
    }

    /// Returns the rules for packets that leave the overlays: control ports of other hosts are
    /// closed. A client's port may be the port of the tunnels.
    fn outside(&self) -> Vec<String> {
        let mut rules = self.masters();
        if self.family == Family::V4 {
            let hosts = format!("-m set --match-set {} dst -j DROP", ipsets::HOSTS);
            let ports = port_conditions(&self.layout.control_ports);
            rules.extend(ports.map(|ports| format!("{ports} {hosts}")));
        }
        rules.extend(self.layout.ports.iter().map(|port| {
            format!("-p udp --dport {port} -m conntrack ! --ctstate ESTABLISHED -j DROP")
        }));
        rules
    }

    /// Returns the rule that closes the ports of the masters. Masters have only IPv4 addresses.
    fn masters(&self) -> Vec<String> {
        let set = ipsets::MASTERS;
        let rule = format!("-p tcp -m set --match-set {set} dst,dst -j DROP");
        Some(rule).filter(|_| self.family == Family::V4).into_iter().collect()
    }

    /// Writes the chain for packets to this host, and the chains that it goes to.
    fn input(&self, mangle: &mut Table) {
        let mut rules: Vec<String> = self
            .bridges()
            .map(|(bridge, number, _)| format!("-i {bridge} -g {FROM_BRIDGE_IN}{number}"))
            .collect();
        let devices = self.layout.devices.iter();
        rules.extend(devices.map(|device| format!("-i {device} -g {TUNNEL_IN}")));
        let docker = self.layout.docker_bridge();
        rules.extend(docker.map(|docker| format!("-i {docker} -g {PORTS}")));
        if self.layout.senders != Senders::Any {
            let unknown = format!("-m set ! --match-set {} src", ipsets::agents(self.family));
            let ports = self.layout.ports.iter();
            rules.extend(ports.map(|port| format!("-p udp --dport {port} {unknown} -j DROP")));
        }
        mangle.add(INPUT, rules);
        for (_, number, subnets) in self.bridges() {
            // Hosts without an address: DHCP, link-local addresses and neighbor discovery.
            let without_address = match self.family {
                Family::V4 => ["0.0.0.0/32", "169.254.0.0/16"],
                Family::V6 => ["::/128", "fe80::/10"],
            };
            let sources = subnets.iter().map(Subnet::to_string);
            let sources = sources.chain(without_address.map(str::to_owned));
            let mut rules: Vec<_> =
                sources.map(|source| format!("-s {source} -g {PORTS}")).collect();
            rules.push("-j DROP".to_owned());
            mangle.add(format!("{FROM_BRIDGE_IN}{number}"), rules);
        }
        mangle.add(TUNNEL_IN, self.tunnel_rules(PORTS));
        let ports = &self.layout.control_ports | &self.layout.local_ports;
        let mut rules: Vec<_> =
            port_conditions(&ports).map(|ports| format!("{ports} -j DROP")).collect();
        rules.extend(self.masters());
        let ports = self.layout.ports.iter();
        rules.extend(ports.map(|port| format!("-p udp --dport {port} -j DROP")));
        mangle.add(PORTS, rules);
    }
}

/// Returns conditions on TCP ports, each for as many ports as one rule can name.
fn port_conditions(ports: &BTreeSet<u16>) -> impl Iterator<Item = String> {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let chunks = ports.chunks(MULTIPORT_MAX).map(|ports| ports.join(","));
    let conditions = chunks.map(|ports| format!("-p tcp -m multiport --dports {ports}"));
    conditions.collect::<Vec<_>>().into_iter()
}
