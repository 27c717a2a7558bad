//! Commands that let packets pass foreign rules. They add rules, and remove none.

use super::{Command, quoted};
use crate::addr::DeviceName;

/// The packets that a rule accepts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulePackets {
    /// Packets that enter through a device.
    Input(String),
    /// Packets that leave through a device.
    Output(String),
    /// UDP packets to a port.
    Port(u16),
    /// By source and destination, each with the name of the family.
    Addresses(&'static str, String, String),
}

/// The chain of a rule of iptables.
#[derive(Debug, Clone, Copy)]
pub struct IptablesRule<'a> {
    /// The program, such as `iptables-legacy`.
    pub program: &'a str,
    /// The table.
    pub table: &'a str,
    /// The chain.
    pub chain: &'a str,
}

/// The chain of a rule of nftables.
#[derive(Debug, Clone, Copy)]
pub struct NftRule<'a> {
    /// The family of the table.
    pub family: &'a str,
    /// The table.
    pub table: &'a str,
    /// The chain.
    pub chain: &'a str,
}

impl Command {
    /// Inserts a rule that accepts packets before all rules of a chain of iptables.
    #[must_use]
    pub fn insert_iptables_rule(rule: IptablesRule<'_>, packets: &RulePackets) -> Self {
        let IptablesRule { program, table, chain } = rule;
        let option =
            if table == "filter" { String::new() } else { format!("-t {} ", quoted(table)) };
        let condition = match packets {
            RulePackets::Input(device) => format!("-i {device}"),
            RulePackets::Output(device) => format!("-o {device}"),
            RulePackets::Port(port) => format!("-p udp --dport {port}"),
            RulePackets::Addresses(_, source, destination) => {
                format!("-s {source} -d {destination}")
            }
        };
        Self::with_effect(
            format!("{program} {option}-I {} {condition} -j ACCEPT", quoted(chain)),
            format!("adds rules to chain {chain} of table {table}"),
        )
    }

    /// Inserts a rule that accepts packets before all rules of a chain of nftables.
    #[must_use]
    pub fn insert_nft_rule(rule: NftRule<'_>, packets: &RulePackets) -> Self {
        let NftRule { family, table, chain } = rule;
        let condition = match packets {
            RulePackets::Input(device) => format!("iifname {device}"),
            RulePackets::Output(device) => format!("oifname {device}"),
            RulePackets::Port(port) => format!("udp dport {port}"),
            RulePackets::Addresses(family, source, destination) => {
                format!("{family} saddr {source} {family} daddr {destination}")
            }
        };
        Self::with_effect(
            format!(
                "nft insert rule {family} {} {} {condition} accept",
                quoted(table),
                quoted(chain)
            ),
            format!("adds rules to chain {chain} of table {family} {table}"),
        )
    }

    /// Opens a UDP port in the default zone of firewalld.
    #[must_use]
    pub fn open_firewalld_port(port: u16) -> Self {
        Self::firewalld(
            &format!("--add-port={port}/udp"),
            "adds the port to firewalld's default zone, for every host",
        )
    }

    /// Moves a managed device to the zone of firewalld that accepts all packets. A device can be in
    /// one zone, and firewalld refuses to add a device of another zone. Docker binds its bridges to
    /// its own zone.
    #[must_use]
    pub fn trust_device_in_firewalld(device: &str) -> Self {
        Self::firewalld(
            &format!("--zone=trusted --change-interface={device}"),
            "moves the devices of the overlays to firewalld's zone trusted, so firewalld closes no \
             port of this host to containers any more",
        )
    }

    fn firewalld(option: &str, effect: &str) -> Self {
        let command = format!("firewall-cmd {option} && firewall-cmd --permanent {option}");
        Self::with_effect(command, effect)
    }

    /// Opens a UDP port in ufw.
    #[must_use]
    pub fn open_ufw_port(port: u16, is_output: bool) -> Self {
        let direction = if is_output { "out " } else { "" };
        Self::with_effect(
            format!("ufw allow {direction}{port}/udp"),
            "adds rules to ufw's own rules",
        )
    }

    /// Lets ufw accept packets that are forwarded from and to a managed device.
    #[must_use]
    pub fn allow_forwarding_in_ufw(device: &DeviceName) -> Self {
        Self::with_effect(
            format!("ufw route allow in on {device} && ufw route allow out on {device}"),
            "adds rules to ufw's own rules",
        )
    }
}
