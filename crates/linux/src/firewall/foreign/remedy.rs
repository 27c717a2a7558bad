//! Names the program that owns a rule, and the commands that let the overlays pass. A command adds
//! rules and never removes a foreign rule.

use std::collections::BTreeSet;

use overlay_types::advice::{Command, IptablesRule, NftRule, RulePackets};

use super::model::{Chain, Hook, Step, Table, TableFamily, Verdict};
use super::packet::{Packet, PacketKind};
use super::walk::Hit;
use crate::firewall::iptables::DOCKER_USER;

const FIREWALLD: &str = "firewalld";
const UFW: &str = "ufw";
/// The beginnings of the names of chains, and their owners.
const CHAINS: [(&str, &str); 16] = [
    ("DOCKER", "Docker"),
    ("ufw-", UFW),
    ("ufw6-", UFW),
    ("KUBE-", "kube-proxy"),
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("LIBVIRT_", "libvirt"),
    ("NETAVARK", "Podman"),
    ("CNI-", "a CNI plugin"),
    ("FLANNEL-", "flannel"),
    ("WEAVE", "Weave Net"),
    ("f2b-", "fail2ban"),
    ("ts-", "Tailscale"),
    ("nixos-fw", "the firewall of NixOS"),
    ("INPUT_ZONES", FIREWALLD),
    ("FORWARD_IN_ZONES", FIREWALLD),
];
/// Names of tables of nftables, and their owners.
const TABLES: [(&str, &str); 10] = [
    ("firewalld", FIREWALLD),
    ("docker-bridges", "Docker"),
    ("kube-proxy", "kube-proxy"),
    ("calico", "Calico"),
    ("cilium", "Cilium"),
    ("libvirt_network", "libvirt"),
    ("netavark", "Podman"),
    ("f2b-table", "fail2ban"),
    ("lxd", "LXD"),
    ("incus", "Incus"),
];

fn owner_of_chain(name: &str) -> Option<&'static str> {
    CHAINS.iter().find(|(start, _)| name.starts_with(start)).map(|(_, owner)| *owner)
}

/// Returns the program that owns the rule, as far as the names show it.
pub(super) fn owner(hit: &Hit<'_>) -> Option<&'static str> {
    let of_table = TABLES.iter().find(|(name, _)| hit.table.name == *name).map(|(_, owner)| *owner);
    of_table.or_else(|| owner_of_chain(&hit.chain.name)).or_else(|| {
        // A program that sets the policy of a chain has jumps to its own chains there. An
        // operator's rule may be in the same chain.
        hit.rule.is_none().then(|| targets(hit.base).find_map(owner_of_chain)).flatten().or_else(
            || targets(hit.base).find_map(owner_of_chain).filter(|owner| *owner == FIREWALLD),
        )
    })
}

/// Returns the chains that a chain jumps to.
fn targets(chain: &Chain) -> impl Iterator<Item = &str> {
    chain.rules.iter().flat_map(|rule| &rule.steps).filter_map(|step| match step {
        Step::Verdict(Verdict::Jump(target) | Verdict::Goto(target)) => Some(target.as_str()),
        _ => None,
    })
}

/// Returns the commands that let the packets pass that the rule drops. Returns `None` without
/// packets.
pub(super) fn remedy(hit: &Hit<'_>, owner: Option<&str>, packets: &[&Packet]) -> Option<Command> {
    let ports = || packets.iter().filter_map(|packet| packet.port).collect::<BTreeSet<_>>();
    let is_output = packets.iter().any(|packet| packet.kind == PacketKind::VxlanOut);
    let hook = hit.base.base.as_ref().map(|base| base.hook);
    let is_filter = matches!(hook, Some(Hook::Input | Hook::Forward | Hook::Output));
    Command::all(match owner {
        Some(FIREWALLD) if is_filter && !is_output => firewalld(packets, &ports()),
        Some(UFW) if is_filter => ufw(packets, &ports(), is_output),
        _ => insertion(hit, packets),
    })
}

fn firewalld(packets: &[&Packet], ports: &BTreeSet<u16>) -> Vec<Command> {
    if !ports.is_empty() {
        return ports.iter().map(|port| Command::open_firewalld_port(*port)).collect();
    }
    let devices = packets.iter().flat_map(|packet| [&packet.input, &packet.output]);
    let devices: BTreeSet<_> = devices.flatten().collect();
    devices.into_iter().map(|device| Command::trust_device_in_firewalld(device)).collect()
}

fn ufw(packets: &[&Packet], ports: &BTreeSet<u16>, is_output: bool) -> Vec<Command> {
    if !ports.is_empty() {
        return ports.iter().map(|port| Command::open_ufw_port(*port, is_output)).collect();
    }
    let devices: BTreeSet<_> = packets.iter().map(|packet| &packet.device).collect();
    devices.into_iter().map(Command::allow_forwarding_in_ufw).collect()
}

/// Returns the packets that new rules accept at a hook.
fn accepted(hit: &Hit<'_>, packets: &[&Packet]) -> BTreeSet<RulePackets> {
    let hook = hit.base.base.as_ref().map(|base| base.hook);
    let mut accepted = BTreeSet::new();
    for packet in packets {
        if let Some(port) = packet.port {
            accepted.insert(RulePackets::Port(port));
            continue;
        }
        let (input, output) = (packet.input.clone(), packet.output.clone());
        let device = packet.device.to_string();
        match (hook, packet.kind, hit.table.family) {
            (_, _, TableFamily::Bridge) => {
                let family = if packet.source.first().is_ipv4() { "ip" } else { "ip6" };
                let [source, destination] =
                    [packet.source, packet.destination].map(|subnet| subnet.to_string());
                accepted.insert(RulePackets::Addresses(family, source, destination));
            }
            (Some(Hook::Forward), PacketKind::ToPeer | PacketKind::FromPeer, _) => {
                accepted.insert(RulePackets::Input(device.clone()));
                accepted.insert(RulePackets::Output(device));
            }
            (Some(Hook::Postrouting | Hook::Egress | Hook::Output), ..) => {
                accepted.extend(output.map(RulePackets::Output));
            }
            _ => accepted.extend(input.map(RulePackets::Input)),
        }
    }
    accepted
}

/// Returns commands that insert rules before all rules of the chain. Docker has a chain for rules
/// of other programs.
fn insertion(hit: &Hit<'_>, packets: &[&Packet]) -> Vec<Command> {
    let table: &Table = hit.table;
    let is_docker_user = table.is_iptables() && hit.chain.name == DOCKER_USER;
    let chain = if is_docker_user { &hit.chain.name } else { &hit.base.name };
    let insert = |packets: &RulePackets| {
        if table.is_iptables() {
            let rule = IptablesRule { program: table.program, table: &table.name, chain };
            Command::insert_iptables_rule(rule, packets)
        } else {
            let rule = NftRule { family: table.family.name(), table: &table.name, chain };
            Command::insert_nft_rule(rule, packets)
        }
    };
    accepted(hit, packets).iter().map(insert).collect()
}

/// Returns the name of a table, in nftables with its family.
pub(super) fn table_name(table: &Table) -> String {
    if table.is_iptables() {
        table.name.clone()
    } else {
        format!("{} {}", table.family.name(), table.name)
    }
}
