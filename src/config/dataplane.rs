//! How the agent programs the network of its host: the keys of `agent_config` that say so.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use super::document::{Document, Node, Object};
use super::problem::abbreviate;
use crate::addr::special_address;

/// How much is shown of what is none of the choices.
const GIVEN_SHOWN: usize = 40;

/// Who programs the packets' way to other agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataplaneKind {
    /// The agent.
    Vxlan,
    /// Somebody else, such as dcos-net.
    External,
}

/// Who makes the rules of the firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirewallKind {
    /// nftables where it is there, otherwise iptables with ipset.
    Auto,
    /// nftables.
    Nftables,
    /// iptables with ipset.
    Iptables,
    /// Nobody: the operator has rules of their own.
    None,
}

/// How the agent programs the network of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// Who does it.
    pub kind: DataplaneKind,
    /// The address from which tunnels run, where that is not the one that the agent advertises.
    pub underlay: Option<Ipv6Addr>,
    /// Who makes the rules of the firewall.
    pub firewall: FirewallKind,
    /// Whether packets that leave the overlays get the host's address as their sender.
    pub masquerade: bool,
    /// Whether the containers of one overlay are kept from those of another.
    pub isolate_overlays: bool,
    /// Whether VXLAN packets are taken only from agents that the master names.
    pub known_agents_only: bool,
    /// Whether the host's own settings are seen to.
    pub host_settings: bool,
    /// Whether overlays that collide with what the host has are refused.
    pub refuse_collisions: bool,
    /// Where it is kept what these were before.
    pub state_dir: PathBuf,
}

impl DataplaneConfig {
    /// Default of `state_dir`.
    pub const STATE_DIR_DEFAULT: &'static str = "/var/lib/mesos-overlay";
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            kind: DataplaneKind::Vxlan,
            underlay: None,
            firewall: FirewallKind::Auto,
            masquerade: true,
            isolate_overlays: false,
            known_agents_only: true,
            host_settings: true,
            refuse_collisions: true,
            state_dir: Self::STATE_DIR_DEFAULT.into(),
        }
    }
}

pub(super) fn read<'a>(document: &mut Document<'a>, object: &Object<'a>) -> DataplaneConfig {
    let mut config = DataplaneConfig::default();
    let kinds = [("vxlan", DataplaneKind::Vxlan), ("external", DataplaneKind::External)];
    if let Some(node) = object.value("dataplane") {
        config.kind = choice(document, &node, &kinds).unwrap_or(config.kind);
    }
    let firewalls = [
        ("auto", FirewallKind::Auto),
        ("nftables", FirewallKind::Nftables),
        ("iptables", FirewallKind::Iptables),
        ("none", FirewallKind::None),
    ];
    if let Some(node) = object.value("firewall") {
        config.firewall = choice(document, &node, &firewalls).unwrap_or(config.firewall);
    }
    config.underlay = object.value("underlay").and_then(|node| read_underlay(document, &node));
    let mut boolean = |key: &str, value: &mut bool| {
        if let Some(node) = object.value(key) {
            *value = document.boolean(&node).unwrap_or(*value);
        }
    };
    boolean("masquerade", &mut config.masquerade);
    boolean("isolate_overlays", &mut config.isolate_overlays);
    boolean("known_agents_only", &mut config.known_agents_only);
    boolean("host_settings", &mut config.host_settings);
    boolean("refuse_collisions", &mut config.refuse_collisions);
    if let Some(node) = object.value("state_dir") {
        let path = document.absolute_path(&node, DataplaneConfig::STATE_DIR_DEFAULT);
        config.state_dir = path.unwrap_or(config.state_dir);
    }
    warn_of_no_effect(document, object, &config);
    config
}

fn read_underlay<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Ipv6Addr> {
    let expected = "an IPv6 address of this host, such as \"fd00::5\"";
    let text = document.word(node, expected)?;
    match text.parse::<Ipv6Addr>() {
        Ok(ip) => {
            let special = special_address(ip.into());
            if let Some(kind) = special {
                document.refuse(node, format_args!("{ip} is {kind} address: write {expected}"));
            }
            special.is_none().then_some(ip)
        }
        Err(_) => {
            let text = abbreviate(&text, GIVEN_SHOWN);
            document.refuse(node, format_args!("'{text}' is no IPv6 address: write {expected}"));
            None
        }
    }
}

/// One of a few words.
fn choice<'a, T: Copy>(
    document: &mut Document<'a>,
    node: &Node<'a>,
    choices: &[(&str, T)],
) -> Option<T> {
    let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let (last, others) = words.split_last()?;
    let expected = format!("{} or {last}", others.join(", "));
    let text = document.word(node, &expected)?;
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if found.is_none() {
        let text = abbreviate(&text, GIVEN_SHOWN);
        document.refuse(node, format_args!("'{text}' is no choice: write {expected}"));
    }
    found
}

fn warn_of_no_effect<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    config: &DataplaneConfig,
) {
    let mut warn = |keys: &[&str], why: &str| {
        for node in keys.iter().filter_map(|key| object.value(key)) {
            document.warn(&node, format_args!("has no effect: {why}"));
        }
    };
    let rules = ["masquerade", "isolate_overlays", "known_agents_only"];
    if config.kind == DataplaneKind::External {
        warn(&["firewall", "underlay", "host_settings"], "'dataplane' is external");
        warn(&rules, "'dataplane' is external");
    } else if config.firewall == FirewallKind::None {
        warn(&rules, "'firewall' is none");
    }
}
