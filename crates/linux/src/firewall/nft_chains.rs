//! Writes the chains of the nftables table.
//!
//! Our base chains have the priority -10: after conntrack (-200) and destination NAT (-100), so that
//! a port and an address are those of the receiver, and before the chains of Docker, iptables and
//! kube-proxy (0) and of firewalld (10). A drop is final. A rule that accepts a packet ends only our
//! chain, and a rule of another program that accepts it does not skip our chain (nft(8), VERDICT
//! STATEMENTS).
//!
//! The kernel's VXLAN socket receives a packet after the input hook, and after the reassembly of
//! its fragments. The tunnel's device then receives the packet inside of it. So the input chain
//! checks packets with the underlay's addresses and, before the kernel removes the headers, the
//! packet inside. Offsets in bits from the UDP header (RFC 7348, section 5): UDP 64, VXLAN 64,
//! Ethernet 112 with the type in the last 16, then the IP header with the source after 96 bits
//! (IPv4) or 64 bits (IPv6). Options of IPv4 follow the source. A VLAN tag would move the offsets
//! and is removed by the kernel, so only IPv4 and IPv6 directly after the Ethernet header are
//! accepted. ARP and neighbor discovery are not needed: all neighbors are permanent.

use std::fmt::Write as _;
use std::net::IpAddr;

use overlay_types::addr::{Family, Subnet};

use super::InnerCheck;
use super::nft_errors::{self, Origin};
use super::nft_untracked;
use super::nftables::{hex, keyword, prefixes, suffix};
use super::ruleset::{Ingress, Layout, Senders, of_family};

pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Packets of hosts without an address: DHCP, link-local addresses and neighbor discovery. A cloud
/// has services such as 169.254.169.254, so link-local sources reach link-local addresses only.
const WITHOUT_ADDRESS: [&str; 5] = [
    "ip saddr 0.0.0.0 udp dport 67",
    "ip saddr 169.254.0.0/16 ip daddr 169.254.0.0/16",
    "ip saddr 169.254.0.0/16 ip daddr 224.0.0.0/4",
    "ip6 saddr ::",
    "ip6 saddr fe80::/10",
];

/// Writes all chains, each before the chains that go to it.
pub(super) fn write(body: &mut String, layout: &Layout, check: InnerCheck, has_gateways: bool) {
    let chains = Chains { layout, check, has_gateways };
    chains.errors(body);
    chains.control(body);
    chains.vxlan(body);
    chains.input(body);
    chains.outside(body);
    chains.forward(body);
    chains.postrouting(body);
    nft_untracked::write(body, layout);
}

struct Chains<'a> {
    layout: &'a Layout,
    check: InnerCheck,
    /// Whether a peer forwards packets from other networks.
    has_gateways: bool,
}

impl Chains<'_> {
    fn checks_sources(&self, check: InnerCheck) -> bool {
        self.layout.senders == Senders::Sources && self.check == check
    }

    fn has_bridges(&self) -> bool {
        !self.layout.bridges.is_empty()
    }

    fn is_closed(&self) -> bool {
        self.layout.ingress == Ingress::Closed
    }

    /// Writes the chains that check ICMP errors.
    fn errors(&self, body: &mut String) {
        if self.has_bridges() {
            nft_errors::write(body, self.layout, Origin::Bridges);
        }
        if self.is_closed() {
            nft_errors::write(body, self.layout, Origin::Tunnels);
        }
        if self.is_closed() || self.layout.masquerade {
            nft_errors::write(body, self.layout, Origin::Others);
        }
    }

    /// Writes the chain for packets from containers to this host: control ports are closed, and
    /// containers are no routers.
    fn control(&self, body: &mut String) {
        let mut rules = vec![
            "icmp type redirect counter drop".to_owned(),
            "icmpv6 type nd-redirect counter drop".to_owned(),
            "icmpv6 type nd-router-advert counter drop".to_owned(),
        ];
        if !self.layout.control_ports.is_empty() {
            rules.push("tcp dport @control_ports counter drop".to_owned());
        }
        if !self.layout.local_ports.is_empty() {
            rules.push("tcp dport @local_ports counter drop".to_owned());
        }
        rules.push("ip daddr . tcp dport @masters4 counter drop".to_owned());
        for port in &self.layout.ports {
            rules.push(format!("udp dport {port} counter drop"));
        }
        chain(body, "control", rules);
    }

    /// Writes the chains for VXLAN packets before the kernel removes their headers.
    fn vxlan(&self, body: &mut String) {
        let outer = self.layout.underlay();
        let rules = match self.layout.senders {
            Senders::Any => return,
            Senders::Sources if self.check == InnerCheck::Pair => {
                self.inner(body);
                vec![
                    format!("{} goto inner4", inner_type(Family::V4)),
                    format!("{} goto inner6", inner_type(Family::V6)),
                    "counter drop".to_owned(),
                ]
            }
            Senders::Agents | Senders::Sources => vec![
                format!("{} saddr @agents{} accept", keyword(outer), suffix(outer)),
                "counter drop".to_owned(),
            ],
        };
        chain(body, "vxlan", rules);
    }

    /// Writes the chains that check the source inside of a VXLAN packet against its sender.
    fn inner(&self, body: &mut String) {
        let (outer, ingress) = (self.layout.underlay(), self.layout.ingress);
        let mut rules = Vec::new();
        // A source of the overlays that belongs to no set is forged.
        for family in FAMILIES {
            for subnet in self.layout.internal(family) {
                let source = masked_inner_source(family, subnet.prefix());
                let (kind, first) = (inner_type(family), hex(subnet.first()));
                rules.push(format!("{kind} {source} == {first} counter drop"));
            }
        }
        let senders = if ingress == Ingress::Open { "agents" } else { "gateways" };
        rules.push(format!("{} saddr @{senders}{} accept", keyword(outer), suffix(outer)));
        rules.push("counter drop".to_owned());
        chain(body, "inner_external", rules);
        for family in FAMILIES {
            let mut rules: Vec<_> = self
                .inner_prefixes(family)
                .map(|prefix| {
                    let source = masked_inner_source(family, prefix);
                    let set = format!("inner{}_{prefix}", suffix(family));
                    format!("{} saddr . {source} @{set} accept", keyword(outer))
                })
                .collect();
            rules.push("goto inner_external".to_owned());
            chain(body, &format!("inner{}", suffix(family)), rules);
        }
    }

    fn inner_prefixes(&self, family: Family) -> impl Iterator<Item = u8> {
        let prefixes = self.layout.prefixes.iter();
        prefixes.filter(move |(other, _)| *other == family).map(|(_, prefix)| *prefix)
    }

    /// Writes the input chain, and the chains that it goes to.
    fn input(&self, body: &mut String) {
        if self.has_bridges() {
            let mut rules = nft_errors::rules(Origin::Bridges).to_vec();
            rules.extend(self.own_sources("control"));
            rules.extend(WITHOUT_ADDRESS.iter().map(|source| format!("{source} goto control")));
            rules.push("counter drop".to_owned());
            chain(body, "from_bridge_in", rules);
        }
        if self.layout.masquerade {
            // A container answers the underlay address of this host outside of the tunnel.
            let mut rules = self.internal("daddr", "counter drop");
            rules.push("ct state established accept".to_owned());
            rules.push("counter drop".to_owned());
            chain(body, "off_tunnel", rules);
        }
        let mut rules =
            if self.is_closed() { nft_errors::rules(Origin::Tunnels).to_vec() } else { Vec::new() };
        if self.checks_sources(InnerCheck::Membership) {
            rules.extend(self.members("control"));
        } else {
            rules.push("goto control".to_owned());
        }
        chain(body, "tunnel_in", rules);
        if self.layout.direct.is_some() {
            let mut rules = Vec::new();
            if self.is_closed() {
                rules.extend(nft_errors::rules(Origin::Tunnels));
            }
            rules.push("goto control".to_owned());
            chain(body, "direct_in", rules);
        }
        let mut rules = vec![base("filter", "input", "-10")];
        if self.has_bridges() {
            rules.push("iifname @bridges goto from_bridge_in".to_owned());
        }
        for device in &self.layout.devices {
            rules.push(format!("iifname \"{device}\" goto tunnel_in"));
        }
        rules.extend(self.direct("direct_in"));
        if let Some(docker) = self.layout.docker_bridge() {
            rules.push(format!("iifname \"{docker}\" jump control"));
        }
        let verdict = if self.layout.senders == Senders::Any { "accept" } else { "goto vxlan" };
        for port in &self.layout.ports {
            rules.push(format!("udp dport {port} {verdict}"));
        }
        if self.layout.masquerade {
            rules.push("iifname \"lo\" accept".to_owned());
            rules.extend(nft_errors::rules(Origin::Others));
            rules.extend(self.internal("saddr", "goto off_tunnel"));
        }
        chain(body, "input", rules);
    }

    /// Returns rules for packets with an address of the overlays or of a VTEP. With masquerade, new
    /// packets with such a source come from bridges and tunnels only.
    fn internal(&self, address: &str, verdict: &str) -> Vec<String> {
        let vteps = FAMILIES.into_iter().flat_map(|family| {
            let vteps = of_family(self.layout.vteps.iter(), family);
            vteps.map(move |subnet| format!("{} {address} {subnet}", keyword(family)))
        });
        self.spaces(address)
            .chain(vteps)
            .map(|condition| format!("{condition} {verdict}"))
            .collect()
    }

    /// Returns rules for packets of peers without encapsulation: the MAC is that of the peer, and
    /// the source is in a subnet of the same peer.
    fn direct(&self, target: &str) -> Vec<String> {
        let Some(device) = &self.layout.direct else { return Vec::new() };
        let rule = |prefix| {
            let source = masked(Family::V4, "saddr", prefix);
            let set = direct_set(prefix);
            format!("iifname \"{device}\" ether saddr . {source} @{set} goto {target}")
        };
        self.layout.direct_prefixes().map(rule).collect()
    }

    /// Returns rules that check the source of a packet from the tunnel against all agents.
    fn members(&self, target: &str) -> Vec<String> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            for prefix in self.inner_prefixes(family) {
                let source = masked(family, "saddr", prefix);
                let set = format!("members{}_{prefix}", suffix(family));
                rules.push(format!("{source} @{set} goto {target}"));
            }
        }
        if self.layout.ingress == Ingress::Open || self.has_gateways {
            for family in FAMILIES {
                for subnet in self.layout.internal(family) {
                    rules.push(format!("{} saddr {subnet} counter drop", keyword(family)));
                }
            }
            rules.push(format!("goto {target}"));
        } else {
            rules.push("counter drop".to_owned());
        }
        rules
    }

    /// Returns rules for packets with a source of the bridge that they come from. This host has
    /// one address there: of IPv4 the kernel drops packets with it, of IPv6 these rules.
    fn own_sources(&self, target: &str) -> Vec<String> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let subnets = self.layout.bridge_subnets(family).into_iter();
            for prefix in prefixes(subnets.map(|(_, subnet)| subnet)) {
                let source = masked(family, "saddr", prefix);
                let set = format!("own{}_{prefix}", suffix(family));
                let foreign = not_of_this_host(family);
                rules.push(format!("iifname . {source} @{set} {foreign}goto {target}"));
            }
        }
        rules
    }

    /// Writes the chain for packets from containers that leave the overlays: control ports of
    /// other hosts are closed. A client's port may be the port of the tunnels, but no agent's: a
    /// container can make any flow established, and its packets have the address of its host.
    fn outside(&self, body: &mut String) {
        // Without another rule that uses conntrack, this one does not enable it.
        let has_conntrack = self.layout.masquerade || self.layout.ingress == Ingress::Closed;
        let knows_agents = self.layout.senders != Senders::Any;
        let verdict =
            if has_conntrack && knows_agents { "goto tunnel_port" } else { "counter drop" };
        if has_conntrack && knows_agents {
            let outer = self.layout.underlay();
            let rules = [
                format!("{} daddr @agents{} counter drop", keyword(outer), suffix(outer)),
                "ip daddr @hosts4 counter drop".to_owned(),
                "ip daddr . udp dport @masters4 counter drop".to_owned(),
                "ct state != established counter drop".to_owned(),
            ];
            chain(body, "tunnel_port", rules);
        }
        let mut rules = vec!["ip daddr . tcp dport @masters4 counter drop".to_owned()];
        if !self.layout.control_ports.is_empty() {
            rules.push("ip daddr @hosts4 tcp dport @control_ports counter drop".to_owned());
        }
        for port in &self.layout.ports {
            rules.push(format!("udp dport {port} {verdict}"));
        }
        chain(body, "outside", rules);
    }

    /// Writes the forward chain, and the chains that it goes to. The rules for packets inside of an
    /// overlay are the first.
    fn forward(&self, body: &mut String) {
        let overlay = || self.overlay_rules().into_iter();
        chain(body, "inside", overlay().chain(["goto outside".to_owned()]));
        if self.has_bridges() {
            // With br_netfilter, frames between ports of a bridge pass this hook.
            let mut rules = vec!["iifname . oifname @same_bridge accept".to_owned()];
            rules.extend(nft_errors::rules(Origin::Bridges));
            rules.extend(self.own_sources("inside"));
            rules.push("counter drop".to_owned());
            chain(body, "from_bridge", rules);
        }
        let mut from_tunnel = "inside";
        if self.is_closed() {
            // An agent must not use this host as a router that lends its address. Answers pass.
            let rules = ["ct state established,related goto outside", "counter drop"];
            chain(body, "tunnel", overlay().chain(rules.map(str::to_owned)));
            chain(body, "stranger", self.stranger_rules());
            from_tunnel = "tunnel";
        }
        let from_peer = from_tunnel;
        if self.checks_sources(InnerCheck::Membership) {
            chain(body, "tunnel_source", self.members(from_tunnel));
            from_tunnel = "tunnel_source";
        }
        let mut rules = vec![base("filter", "forward", "-10")];
        for device in &self.layout.devices {
            rules.push(format!("iifname \"{device}\" goto {from_tunnel}"));
        }
        rules.extend(self.direct(from_peer));
        if self.has_bridges() {
            rules.extend(self.within_overlay());
            rules.push("iifname @bridges goto from_bridge".to_owned());
        }
        if let Some(docker) = self.layout.docker_bridge() {
            rules.push(format!("iifname \"{docker}\" jump outside"));
        }
        if self.layout.masquerade {
            rules.extend(self.internal("saddr", "counter drop"));
        }
        if self.is_closed() {
            rules.extend(self.spaces("daddr").map(|to| format!("{to} goto stranger")));
            for device in &self.layout.devices {
                rules.push(format!("oifname \"{device}\" goto stranger"));
            }
        }
        chain(body, "forward", rules);
    }

    /// Returns the rules for packets from other networks to the overlays.
    fn stranger_rules(&self) -> Vec<String> {
        let mut rules = nft_errors::rules(Origin::Others).to_vec();
        rules.push("ct status dnat accept".to_owned());
        if !self.layout.masquerade {
            // Containers reach published ports with their own addresses, and nothing else.
            rules.extend(self.internal("saddr", "counter drop"));
        }
        rules.push("ct state established,related accept".to_owned());
        rules.push("counter drop".to_owned());
        rules
    }

    /// Returns rules that accept packets from a bridge to the same overlay. Each set has an element
    /// for a bridge and a subnet, so that a packet needs one lookup.
    fn within_overlay(&self) -> impl Iterator<Item = String> {
        FAMILIES.into_iter().flat_map(move |family| {
            self.layout.within(family).into_keys().map(move |(own, space)| {
                let (from, to) = (masked(family, "saddr", own), masked(family, "daddr", space));
                let set = format!("within{}_{own}_{space}", suffix(family));
                format!("iifname . {from} . {to} @{set} {}accept", not_of_this_host(family))
            })
        })
    }

    /// Returns the rules for packets to the overlays from containers and tunnels.
    fn overlay_rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        if self.layout.isolate {
            for (family, prefix) in self.space_prefixes() {
                let [from, to] = ["saddr", "daddr"].map(|address| masked(family, address, prefix));
                let set = format!("pairs{}_{prefix}", suffix(family));
                rules.push(format!("{from} . {to} @{set} accept"));
            }
            for family in FAMILIES {
                let to = self.spaces_of(family, "daddr");
                for from in self.spaces_of(family, "saddr") {
                    rules.extend(to.iter().map(|to| format!("{from} {to} counter drop")));
                }
            }
        }
        rules.extend(self.spaces("daddr").map(|to| format!("{to} accept")));
        rules
    }

    /// Returns the families and lengths of the subnets of the overlays.
    fn space_prefixes(&self) -> impl Iterator<Item = (Family, u8)> {
        FAMILIES.into_iter().flat_map(|family| {
            let prefixes = prefixes(self.layout.spaces(family).into_iter());
            prefixes.into_iter().map(move |prefix| (family, prefix))
        })
    }

    /// Returns conditions that an address is in an overlay.
    fn spaces(&self, address: &str) -> impl Iterator<Item = String> {
        FAMILIES.into_iter().flat_map(move |family| self.spaces_of(family, address))
    }

    fn spaces_of(&self, family: Family, address: &str) -> Vec<String> {
        let prefixes = self.space_prefixes().filter(|(other, _)| *other == family);
        let condition = |(_, prefix)| {
            format!("{} @spaces{}_{prefix}", masked(family, address, prefix), suffix(family))
        };
        prefixes.map(condition).collect()
    }

    /// Writes the chain that masquerades, just before the chains of other programs (100). Packets
    /// that enter a tunnel or stay on the host keep their source address.
    fn postrouting(&self, body: &mut String) {
        if !self.layout.masquerade && !self.layout.is_untracked {
            return;
        }
        let mut rules = vec![base("nat", "postrouting", "99")];
        if self.layout.is_untracked {
            chain(body, "translated", nft_untracked::translated(self.layout));
            rules.push("ct status dnat jump translated".to_owned());
        }
        if self.layout.masquerade {
            rules.extend(self.masquerade());
        }
        chain(body, "postrouting", rules);
    }

    fn masquerade(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for device in &self.layout.devices {
            rules.push(format!("oifname \"{device}\" return"));
        }
        rules.extend(self.spaces("daddr").map(|to| format!("{to} return")));
        rules.push("ip daddr 224.0.0.0/4 return".to_owned());
        rules.push("ip6 daddr ff00::/8 return".to_owned());
        rules.extend(self.spaces("saddr").map(|from| format!("{from} masquerade")));
        rules
    }
}

/// Returns the name of the set of accepted sources of packets without encapsulation.
pub(super) fn direct_set(prefix: u8) -> String {
    format!("direct4_{prefix}")
}

/// Returns the condition that a packet does not have an address of this host as its source.
const fn not_of_this_host(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "fib saddr type != local ",
    }
}

pub(super) fn chain(body: &mut String, name: &str, rules: impl IntoIterator<Item = String>) {
    let _ = writeln!(body, "\tchain {name} {{");
    for rule in rules {
        let _ = writeln!(body, "\t\t{rule}");
    }
    body.push_str("\t}\n");
}

pub(super) fn base(kind: &str, hook: &str, priority: &str) -> String {
    format!("type {kind} hook {hook} priority {priority}; policy accept;")
}

/// Returns the part of a packet's address that a subnet of this length has.
pub(super) fn masked(family: Family, address: &str, prefix: u8) -> String {
    let ip = keyword(family);
    match mask(family, prefix) {
        Some(mask) => format!("{ip} {address} & {mask}"),
        None => format!("{ip} {address}"),
    }
}

/// Returns the mask of a subnet as an address, or `None` for a single address.
pub(super) fn mask(family: Family, prefix: u8) -> Option<IpAddr> {
    let whole = match family {
        Family::V4 => [0xff; 4].into(),
        Family::V6 => [0xff; 16].into(),
    };
    let mask = Subnet::containing(whole, prefix).map(|subnet| subnet.first());
    mask.filter(|_| prefix < family.bits())
}

/// Returns the expression for the source inside of a VXLAN packet.
pub(super) const fn inner_source(family: Family) -> &'static str {
    match family {
        Family::V4 => "@th,336,32",
        Family::V6 => "@th,304,128",
    }
}

fn masked_inner_source(family: Family, prefix: u8) -> String {
    let source = inner_source(family);
    match mask(family, prefix) {
        Some(mask) => format!("{source} & {}", hex(mask)),
        None => source.to_owned(),
    }
}

/// Returns the condition on the type of the Ethernet frame inside of a VXLAN packet.
const fn inner_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "@th,224,16 0x0800",
        Family::V6 => "@th,224,16 0x86dd",
    }
}
