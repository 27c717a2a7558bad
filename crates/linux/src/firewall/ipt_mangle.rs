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
use super::ipt_errors;
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
/// Chain for packets from containers to the port of the tunnels of other hosts.
const TUNNEL_PORT: &str = "MESOS-OVERLAY-VXLAN";
/// Chain for packets with an address of the overlays that come neither from a bridge nor a tunnel.
const OFF_TUNNEL: &str = "MESOS-OVERLAY-OFF";
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
    let chains = [
        CHAIN,
        INPUT,
        INSIDE,
        OUTSIDE,
        TUNNEL,
        TUNNEL_IN,
        STRANGER,
        TUNNEL_PORT,
        OFF_TUNNEL,
        PORTS,
    ];
    chains.contains(&name)
        || ipt_errors::is_own_chain(name)
        || [FROM_BRIDGE, FROM_BRIDGE_IN, ISOLATED].into_iter().any(is_numbered)
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
        if self.layout.masquerade {
            rules.extend(self.internal("-s", "-j DROP"));
        }
        if is_closed {
            rules.extend(self.spaces.iter().map(|space| format!("-d {space} -g {STRANGER}")));
            rules.extend(devices.iter().map(|device| format!("-o {device} -g {STRANGER}")));
        }
        mangle.add(CHAIN, rules);
        for (bridge, number, subnets) in self.bridges() {
            // With br_netfilter, frames between ports of a bridge pass this chain.
            let mut rules = vec![format!("-o {bridge} -j RETURN")];
            rules.extend(self.not_of_this_host(&subnets));
            rules.push(ipt_errors::from_bridge(self.family, number));
            rules.extend(subnets.iter().map(|subnet| format!("-s {subnet} -g {INSIDE}")));
            rules.push("-j DROP".to_owned());
            mangle.add(format!("{FROM_BRIDGE}{number}"), rules);
            ipt_errors::write_bridge(mangle, number, &subnets);
        }
        let internal: Vec<_> = self.layout.internal(self.family).into_iter().collect();
        ipt_errors::write(mangle, self.family, &internal);
        let mut rules = self.tunnel_rules();
        if is_closed {
            // An agent must not use this host as a router that lends its address. Answers pass.
            rules.extend(self.spaces.iter().map(|space| format!("-d {space} -g {INSIDE}")));
            rules.push(format!("-m conntrack --ctstate RELATED,ESTABLISHED -g {OUTSIDE}"));
            rules.push("-j DROP".to_owned());
        } else {
            rules.push(format!("-g {INSIDE}"));
        }
        mangle.add(TUNNEL, rules);
        self.inside(mangle);
        if self.layout.senders != Senders::Any {
            mangle.add(TUNNEL_PORT, self.tunnel_port());
        }
        mangle.add(OUTSIDE, self.outside());
        if is_closed {
            mangle.add(STRANGER, self.stranger());
        }
    }

    /// Returns the rules for packets from other networks to the overlays.
    fn stranger(&self) -> Vec<String> {
        let state = |states| format!("-m conntrack --ctstate {states} -j RETURN");
        let mut rules = vec![ipt_errors::from_other(self.family), state("DNAT")];
        if !self.layout.masquerade {
            // Containers reach published ports with their own addresses, and nothing else.
            rules.extend(self.internal("-s", "-j DROP"));
        }
        rules.extend([state("RELATED,ESTABLISHED"), "-j DROP".to_owned()]);
        rules
    }

    /// Returns rules for packets with an address of the overlays or of a VTEP. With masquerade, new
    /// packets with such a source come from bridges and tunnels only.
    fn internal(&self, address: &str, verdict: &str) -> impl Iterator<Item = String> {
        let internal = self.layout.internal(self.family).into_iter();
        internal.map(move |subnet| format!("{address} {subnet} {verdict}"))
    }

    /// Returns rules that drop packets from a bridge with an address of this host as the source. The
    /// kernel drops those of IPv4.
    fn not_of_this_host(&self, subnets: &[Subnet]) -> Vec<String> {
        let own = subnets.iter().filter(|_| self.family == Family::V6);
        own.map(|own| format!("-s {own} -m addrtype --src-type LOCAL -j DROP")).collect()
    }

    /// Returns the bridges with their numbers in names of chains, and their subnets.
    fn bridges(&self) -> impl Iterator<Item = (&DeviceName, usize, Vec<Subnet>)> {
        self.layout.bridges.iter().enumerate().map(|(number, (bridge, subnets))| {
            (bridge, number, of_family(subnets.iter(), self.family).collect())
        })
    }

    /// Returns the rules that check the source of a packet from a tunnel.
    fn tunnel_rules(&self) -> Vec<String> {
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
    /// closed.
    fn outside(&self) -> Vec<String> {
        let mut rules = self.masters();
        if self.family == Family::V4 {
            let hosts = format!("-m set --match-set {} dst -j DROP", ipsets::HOSTS);
            let ports = port_conditions(&self.layout.control_ports);
            rules.extend(ports.map(|ports| format!("{ports} {hosts}")));
        }
        let knows_agents = self.layout.senders != Senders::Any;
        let verdict = if knows_agents { format!("-g {TUNNEL_PORT}") } else { "-j DROP".to_owned() };
        let ports = self.layout.ports.iter();
        rules.extend(ports.map(|port| format!("-p udp --dport {port} {verdict}")));
        rules
    }

    /// Returns the rules for packets to the port of the tunnels. A client's port may be the same,
    /// but no agent's: a container can make any flow established, and its packets have the address
    /// of its host.
    fn tunnel_port(&self) -> Vec<String> {
        let mut sets = vec![format!("{} dst", ipsets::agents(self.family))];
        if self.family == Family::V4 {
            sets.extend([format!("{} dst", ipsets::HOSTS), format!("{} dst,dst", ipsets::MASTERS)]);
        }
        let mut rules: Vec<_> =
            sets.iter().map(|set| format!("-m set --match-set {set} -j DROP")).collect();
        rules.push("-m conntrack ! --ctstate ESTABLISHED -j DROP".to_owned());
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
        rules.extend(docker.map(|docker| format!("-i {docker} -j {PORTS}")));
        if self.layout.senders != Senders::Any {
            let unknown = format!("-m set ! --match-set {} src", ipsets::agents(self.family));
            let ports = self.layout.ports.iter();
            rules.extend(ports.map(|port| format!("-p udp --dport {port} {unknown} -j DROP")));
        }
        if self.layout.masquerade {
            let ports = self.layout.ports.iter();
            rules.extend(ports.map(|port| format!("-p udp --dport {port} -j RETURN")));
            rules.push("-i lo -j RETURN".to_owned());
            rules.push(ipt_errors::from_other(self.family));
            rules.extend(self.internal("-s", &format!("-g {OFF_TUNNEL}")));
            // A container answers the underlay address of this host outside of the tunnel.
            let mut answers: Vec<_> = self.internal("-d", "-j DROP").collect();
            answers.push("-m conntrack --ctstate ESTABLISHED -j RETURN".to_owned());
            answers.push("-j DROP".to_owned());
            mangle.add(OFF_TUNNEL, answers);
        }
        mangle.add(INPUT, rules);
        for (_, number, subnets) in self.bridges() {
            // Hosts without an address: DHCP, link-local addresses and neighbor discovery. A cloud
            // has services such as 169.254.169.254, so link-local sources reach link-local
            // addresses only.
            let without_address = match self.family {
                Family::V4 => &[
                    "0.0.0.0/32 -p udp --dport 67",
                    "169.254.0.0/16 -d 169.254.0.0/16",
                    "169.254.0.0/16 -d 224.0.0.0/4",
                ][..],
                Family::V6 => &["::/128", "fe80::/10"],
            };
            let mut rules = self.not_of_this_host(&subnets);
            rules.push(ipt_errors::from_bridge(self.family, number));
            let sources = subnets.iter().map(Subnet::to_string);
            let sources = sources.chain(without_address.iter().map(|&source| source.to_owned()));
            rules.extend(sources.map(|source| format!("-s {source} -g {PORTS}")));
            rules.push("-j DROP".to_owned());
            mangle.add(format!("{FROM_BRIDGE_IN}{number}"), rules);
        }
        let errors = Some(ipt_errors::from_tunnel(self.family));
        let errors = errors.filter(|_| self.layout.ingress == Ingress::Closed).into_iter();
        let to_ports = [format!("-g {PORTS}")];
        mangle.add(TUNNEL_IN, errors.chain(self.tunnel_rules()).chain(to_ports).collect());
        let ports = &self.layout.control_ports | &self.layout.local_ports;
        // Containers are no routers: no redirects, and no router advertisements.
        let mut rules = match self.family {
            Family::V4 => vec!["-p icmp --icmp-type 5 -j DROP".to_owned()],
            Family::V6 => {
                [134, 137].map(|kind| format!("-p ipv6-icmp --icmpv6-type {kind} -j DROP")).into()
            }
        };
        rules.extend(port_conditions(&ports).map(|ports| format!("{ports} -j DROP")));
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
