//! Names the program that owns a rule, and the commands that let the overlays pass. A command adds
//! rules and never removes a foreign rule.

use std::collections::BTreeSet;

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

/// Commands that let the packets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remedy {
    pub(super) command: String,
    /// What the commands change.
    pub(super) effect: String,
}

/// Returns the commands that let the packets pass that the rule drops.
pub(super) fn remedy(hit: &Hit<'_>, owner: Option<&str>, packets: &[&Packet]) -> Remedy {
    let ports = || packets.iter().filter_map(|packet| packet.port).collect::<BTreeSet<_>>();
    let is_output = packets.iter().any(|packet| packet.kind == PacketKind::VxlanOut);
    let hook = hit.base.base.as_ref().map(|base| base.hook);
    let is_filter = matches!(hook, Some(Hook::Input | Hook::Forward | Hook::Output));
    match owner {
        Some(FIREWALLD) if is_filter && !is_output => firewalld(packets, &ports()),
        Some(UFW) if is_filter => ufw(packets, &ports(), is_output),
        _ => insertion(hit, packets),
    }
}

/// A device can be in one zone. Docker binds its bridges to its own zone, and firewalld refuses to
/// add a device that is in another zone, so the devices are moved.
fn firewalld(packets: &[&Packet], ports: &BTreeSet<u16>) -> Remedy {
    let (options, effect): (Vec<_>, _) = if ports.is_empty() {
        let devices = packets.iter().flat_map(|packet| [&packet.input, &packet.output]);
        let devices: BTreeSet<_> = devices.flatten().collect();
        let options =
            devices.iter().map(|device| format!("--zone=trusted --change-interface={device}"));
        let effect = "moves the devices of the overlays to firewalld's zone trusted, so firewalld \
                      closes no port of this host to containers any more";
        (options.collect(), effect)
    } else {
        let options = ports.iter().map(|port| format!("--add-port={port}/udp"));
        (options.collect(), "adds the port to firewalld's default zone, for every host")
    };
    let commands = options.iter().flat_map(|option| {
        [format!("firewall-cmd {option}"), format!("firewall-cmd --permanent {option}")]
    });
    Remedy { command: commands.collect::<Vec<_>>().join(" && "), effect: effect.to_owned() }
}

fn ufw(packets: &[&Packet], ports: &BTreeSet<u16>, is_output: bool) -> Remedy {
    let commands: Vec<_> = if ports.is_empty() {
        let devices: BTreeSet<_> = packets.iter().map(|packet| &packet.device).collect();
        let route = |device| {
            ["in", "out"].map(|direction| format!("ufw route allow {direction} on {device}"))
        };
        devices.into_iter().flat_map(route).collect()
    } else {
        let direction = if is_output { "out " } else { "" };
        ports.iter().map(|port| format!("ufw allow {direction}{port}/udp")).collect()
    };
    Remedy { command: commands.join(" && "), effect: "adds rules to ufw's own rules".to_owned() }
}

/// Which packets a rule accepts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Accepted {
    Input(String),
    Output(String),
    Port(u16),
    /// By source and destination, each with the name of the family.
    Addresses(&'static str, String, String),
}

/// Returns the rules that accept the packets at a hook.
fn accepted(hit: &Hit<'_>, packets: &[&Packet]) -> BTreeSet<Accepted> {
    let hook = hit.base.base.as_ref().map(|base| base.hook);
    let mut accepted = BTreeSet::new();
    for packet in packets {
        if let Some(port) = packet.port {
            accepted.insert(Accepted::Port(port));
            continue;
        }
        let (input, output) = (packet.input.clone(), packet.output.clone());
        let device = packet.device.to_string();
        match (hook, packet.kind, hit.table.family) {
            (_, _, TableFamily::Bridge) => {
                let family = if packet.source.first().is_ipv4() { "ip" } else { "ip6" };
                let [source, destination] =
                    [packet.source, packet.destination].map(|subnet| subnet.to_string());
                accepted.insert(Accepted::Addresses(family, source, destination));
            }
            (Some(Hook::Forward), PacketKind::ToPeer | PacketKind::FromPeer, _) => {
                accepted.insert(Accepted::Input(device.clone()));
                accepted.insert(Accepted::Output(device));
            }
            (Some(Hook::Postrouting | Hook::Egress | Hook::Output), ..) => {
                accepted.extend(output.map(Accepted::Output));
            }
            _ => accepted.extend(input.map(Accepted::Input)),
        }
    }
    accepted
}

/// Returns commands that insert rules before all rules of the chain. Docker has a chain for rules
/// of other programs.
fn insertion(hit: &Hit<'_>, packets: &[&Packet]) -> Remedy {
    let table: &Table = hit.table;
    let is_docker_user = table.is_iptables() && hit.chain.name == DOCKER_USER;
    let chain = if is_docker_user { &hit.chain.name } else { &hit.base.name };
    let accepted = accepted(hit, packets);
    // Other programs choose these names.
    let [quoted_table, quoted_chain] = [&table.name, chain].map(|name| quoted(name));
    let commands = accepted.iter().map(|packets| {
        if table.is_iptables() {
            let option =
                if table.name == "filter" { String::new() } else { format!("-t {quoted_table} ") };
            let condition = match packets {
                Accepted::Input(device) => format!("-i {device}"),
                Accepted::Output(device) => format!("-o {device}"),
                Accepted::Port(port) => format!("-p udp --dport {port}"),
                Accepted::Addresses(_, source, destination) => {
                    format!("-s {source} -d {destination}")
                }
            };
            format!("{} {option}-I {quoted_chain} {condition} -j ACCEPT", table.program)
        } else {
            let condition = match packets {
                Accepted::Input(device) => format!("iifname {device}"),
                Accepted::Output(device) => format!("oifname {device}"),
                Accepted::Port(port) => format!("udp dport {port}"),
                Accepted::Addresses(family, source, destination) => {
                    format!("{family} saddr {source} {family} daddr {destination}")
                }
            };
            let family = table.family.name();
            format!("nft insert rule {family} {quoted_table} {quoted_chain} {condition} accept")
        }
    });
    let command = commands.collect::<Vec<_>>().join(" && ");
    let effect = format!("adds rules to chain {chain} of table {}", table_name(table));
    Remedy { command, effect }
}

/// Quotes a name for a shell, if that is needed.
fn quoted(name: &str) -> String {
    shlex::try_quote(name).map_or_else(|_| "NAME".to_owned(), |name| name.into_owned())
}

/// Returns the name of a table, in nftables with its family.
pub(super) fn table_name(table: &Table) -> String {
    if table.is_iptables() {
        table.name.clone()
    } else {
        format!("{} {}", table.family.name(), table.name)
    }
}
