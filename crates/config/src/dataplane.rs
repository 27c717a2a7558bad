//! The keys of `agent_config` about how the agent programs the network of its host.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use overlay_types::addr::special_address;
use overlay_types::protocol::AgentOptions;

use super::document::{Document, Node, Object};
use super::text::abbreviate;

/// How many characters of an invalid value a message repeats.
const GIVEN_SHOWN: usize = 40;

/// The program that creates the tunnels to other agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataplaneKind {
    /// The agent.
    Vxlan,
    /// Another program, such as dcos-net.
    External,
}

/// The tool that creates the firewall rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirewallKind {
    /// nftables if installed, otherwise iptables with ipset.
    Auto,
    /// nftables.
    Nftables,
    /// iptables with ipset.
    Iptables,
    /// No tool: the operator maintains the rules.
    None,
}

/// What the firewall does with new flows from outside of the overlays to containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayIngress {
    /// Such flows pass.
    Open,
    /// Only flows to published ports and flows of the host itself pass.
    Closed,
}

/// How the host forwards packets between its containers and those of other agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardingKind {
    /// Through all chains of the host, with connection tracking.
    Tracked,
    /// Through all chains of the host, without connection tracking.
    Untracked,
    /// Without connection tracking, and segments of TCP connections past the chains of the host.
    Shortcut,
}

/// How the agent programs the network of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// The program that creates the tunnels.
    pub kind: DataplaneKind,
    /// The local address of the tunnels, if it differs from the address that the agent advertises.
    pub underlay: Option<Ipv6Addr>,
    /// The tool that creates the firewall rules.
    pub firewall: FirewallKind,
    /// Whether packets that leave the overlays get the address of the host as source address.
    pub masquerade: bool,
    /// Whether the firewall blocks traffic between containers of different overlays.
    pub isolate_overlays: bool,
    /// What the firewall does with new flows from outside of the overlays.
    pub overlay_ingress: OverlayIngress,
    /// Whether the firewall accepts VXLAN packets only from agents that the master reports.
    pub known_agents_only: bool,
    /// How the host forwards packets between its containers and those of other agents.
    pub forwarding: ForwardingKind,
    /// Whether new VXLAN devices send UDP packets with a checksum.
    pub vxlan_checksum: bool,
    /// Whether the agent applies the required settings of the host.
    pub host_settings: bool,
    /// Whether the agent refuses overlays that overlap routes or addresses of the host.
    pub refuse_collisions: bool,
    /// Whether packets to peers on the same L2 segment leave without encapsulation.
    pub direct_routing: bool,
    /// Number of peers that the agent probes per second. 0 switches the probes off.
    pub probe_rate: u32,
    /// Whether the agent switches off offloads of its VXLAN devices that the hardware does wrong.
    pub repair_offloads: bool,
    /// The directory for the previous values of changed host settings.
    pub state_dir: PathBuf,
}

impl DataplaneConfig {
    /// Default of `state_dir`.
    pub(super) const STATE_DIR_DEFAULT: &'static str = "/var/lib/mesos-overlay";
    /// Default of `probe_rate`: 5,000 peers are probed in 21 minutes.
    pub(super) const PROBE_RATE_DEFAULT: u32 = 4;
    /// Maximum of `probe_rate`. Each probe sends at least two packets, one of full size.
    pub(super) const PROBE_RATE_MAX: u32 = 100;
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            kind: DataplaneKind::Vxlan,
            underlay: None,
            firewall: FirewallKind::Auto,
            masquerade: true,
            isolate_overlays: false,
            overlay_ingress: OverlayIngress::Closed,
            known_agents_only: true,
            forwarding: ForwardingKind::Shortcut,
            vxlan_checksum: true,
            host_settings: true,
            refuse_collisions: true,
            direct_routing: false,
            probe_rate: Self::PROBE_RATE_DEFAULT,
            repair_offloads: false,
            state_dir: Self::STATE_DIR_DEFAULT.into(),
        }
    }
}

/// Reads the keys of `object`. `options` are those that the agent registers with.
pub(super) fn read<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    options: &AgentOptions,
) -> DataplaneConfig {
    let mut config = DataplaneConfig::default();
    let kinds = [("vxlan", DataplaneKind::Vxlan), ("external", DataplaneKind::External)];
    if let Some(node) = object.value("dataplane") {
        config.kind = read_choice(document, &node, &kinds).unwrap_or(config.kind);
    }
    let firewalls = [
        ("auto", FirewallKind::Auto),
        ("nftables", FirewallKind::Nftables),
        ("iptables", FirewallKind::Iptables),
        ("none", FirewallKind::None),
    ];
    if let Some(node) = object.value("firewall") {
        config.firewall = read_choice(document, &node, &firewalls).unwrap_or(config.firewall);
    }
    config.underlay = object.value("underlay").and_then(|node| read_underlay(document, &node));
    config.masquerade = document.read_boolean_or(object, "masquerade", config.masquerade);
    config.isolate_overlays =
        document.read_boolean_or(object, "isolate_overlays", config.isolate_overlays);
    config.overlay_ingress = read_ingress(document, object, &config, options);
    config.known_agents_only =
        document.read_boolean_or(object, "known_agents_only", config.known_agents_only);
    let forwarding = [
        ("tracked", ForwardingKind::Tracked),
        ("untracked", ForwardingKind::Untracked),
        ("shortcut", ForwardingKind::Shortcut),
    ];
    if let Some(node) = object.value("forwarding") {
        config.forwarding = read_choice(document, &node, &forwarding).unwrap_or(config.forwarding);
    }
    config.vxlan_checksum =
        document.read_boolean_or(object, "vxlan_checksum", config.vxlan_checksum);
    config.host_settings = document.read_boolean_or(object, "host_settings", config.host_settings);
    config.refuse_collisions =
        document.read_boolean_or(object, "refuse_collisions", config.refuse_collisions);
    if let Some(node) = object.value("direct_routing") {
        let choices = [("off", false), ("auto", true)];
        config.direct_routing =
            read_choice(document, &node, &choices).unwrap_or(config.direct_routing);
    }
    let rate = object
        .value("probe_rate")
        .and_then(|node| document.read_number(&node, 0..=DataplaneConfig::PROBE_RATE_MAX));
    config.probe_rate = rate.unwrap_or(config.probe_rate);
    config.repair_offloads =
        document.read_boolean_or(object, "repair_offloads", config.repair_offloads);
    if let Some(node) = object.value("state_dir") {
        let path = document.read_absolute_path(&node, DataplaneConfig::STATE_DIR_DEFAULT);
        config.state_dir = path.unwrap_or(config.state_dir);
    }
    warn_about_unused_keys(document, object, &config);
    warn_about_isolation(document, object, &config);
    warn_about_direct_routing(document, object, &config);
    config
}

/// Reads `overlay_ingress`. The default is `open` without masquerade, where the network outside has
/// routes to the containers, and on an agent without subnets, which is a gateway for other hosts:
/// operators choose both so that flows from outside reach containers.
fn read_ingress<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    config: &DataplaneConfig,
    options: &AgentOptions,
) -> OverlayIngress {
    let choices = [("open", OverlayIngress::Open), ("closed", OverlayIngress::Closed)];
    let chosen = object.value("overlay_ingress");
    let chosen = chosen.and_then(|node| read_choice(document, &node, &choices));
    let is_closed = config.masquerade && options.allocate_subnet;
    chosen.unwrap_or(if is_closed { OverlayIngress::Closed } else { OverlayIngress::Open })
}

fn read_underlay<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Ipv6Addr> {
    let expected = "an IPv6 address of this host, such as \"fd00::5\"";
    let text = document.read_word(node, expected)?;
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

/// Reads one of several words.
pub(super) fn read_choice<'a, T: Copy>(
    document: &mut Document<'a>,
    node: &Node<'a>,
    choices: &[(&str, T)],
) -> Option<T> {
    let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let (last, others) = words.split_last()?;
    let expected = format!("{} or {last}", others.join(", "));
    let text = document.read_word(node, &expected)?;
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if found.is_none() {
        let text = abbreviate(&text, GIVEN_SHOWN);
        document.refuse(node, format_args!("'{text}' is not a valid value: write {expected}"));
    }
    found
}

fn warn_about_unused_keys<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    config: &DataplaneConfig,
) {
    const FIREWALL_KEYS: [&str; 5] =
        ["masquerade", "isolate_overlays", "overlay_ingress", "known_agents_only", "forwarding"];
    const DATAPLANE_KEYS: [&str; 7] = [
        "firewall",
        "underlay",
        "vxlan_checksum",
        "host_settings",
        "direct_routing",
        "probe_rate",
        "repair_offloads",
    ];
    let (keys, reason) = if config.kind == DataplaneKind::External {
        ([&DATAPLANE_KEYS[..], &FIREWALL_KEYS].concat(), "'dataplane' is external")
    } else if config.firewall == FirewallKind::None {
        (FIREWALL_KEYS.to_vec(), "'firewall' is none")
    } else {
        return;
    };
    for node in keys.iter().filter_map(|key| object.value(key)) {
        document.warn(&node, format_args!("has no effect: {reason}"));
    }
}

/// Warns if direct routing cannot be used: only nftables accepts its packets by MAC and source, and
/// only the IPv4 addresses of the underlay are used.
fn warn_about_direct_routing<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    config: &DataplaneConfig,
) {
    let reason = match (config.firewall, config.underlay) {
        (FirewallKind::Iptables | FirewallKind::None, _) => "'firewall' is not nftables",
        (_, Some(_)) => "'underlay' is IPv6",
        _ => return,
    };
    let is_used = config.kind == DataplaneKind::Vxlan && config.direct_routing;
    if let Some(node) = object.value("direct_routing").filter(|_| is_used) {
        document.warn(&node, format_args!("has no effect: {reason}"));
    }
}

/// Warns if isolation is configured while every host can send packets into the overlays: the
/// sources of such packets can be forged, and isolation compares sources.
fn warn_about_isolation<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    config: &DataplaneConfig,
) {
    let has_rules = config.kind == DataplaneKind::Vxlan && config.firewall != FirewallKind::None;
    if has_rules
        && config.isolate_overlays
        && !config.known_agents_only
        && let Some(node) = object.value("isolate_overlays")
    {
        document.warn(&node, "does not hold against forged packets: 'known_agents_only' is false");
    }
}
