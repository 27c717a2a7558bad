//! The rules of all programs on a host, in one form for nftables and iptables.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use overlay_types::addr::Family;

/// The backend that holds a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleBackend {
    /// nftables.
    Nftables,
    /// iptables whose rules are in nftables.
    IptablesNft,
    /// iptables with its own tables in the kernel.
    IptablesLegacy,
}

impl fmt::Display for RuleBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        })
    }
}

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TableFamily {
    Ip,
    Ip6,
    Inet,
    Netdev,
    Bridge,
}

impl TableFamily {
    /// Returns the family with this name. Other families do not see IP packets.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "ip" => Self::Ip,
            "ip6" => Self::Ip6,
            "inet" => Self::Inet,
            "netdev" => Self::Netdev,
            "bridge" => Self::Bridge,
            _ => return None,
        })
    }

    pub(super) const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ip,
            Family::V6 => Self::Ip6,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
        }
    }

    /// Returns whether chains of this family see packets of `family`.
    pub(super) fn sees(self, family: Family) -> bool {
        match self {
            Self::Ip => family == Family::V4,
            Self::Ip6 => family == Family::V6,
            Self::Inet | Self::Netdev | Self::Bridge => true,
        }
    }
}

/// A hook of the kernel, in the order in which a packet passes the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Egress,
}

impl Hook {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "ingress" => Self::Ingress,
            "prerouting" | "PREROUTING" => Self::Prerouting,
            "input" | "INPUT" => Self::Input,
            "forward" | "FORWARD" => Self::Forward,
            "output" | "OUTPUT" => Self::Output,
            "postrouting" | "POSTROUTING" => Self::Postrouting,
            "egress" => Self::Egress,
            _ => return None,
        })
    }
}

/// A table with its chains.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) backend: RuleBackend,
    /// The program that changes the table.
    pub(super) program: &'static str,
    pub(super) family: TableFamily,
    pub(super) name: String,
    pub(super) chains: Vec<Chain>,
}

impl Table {
    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    pub(super) fn is_iptables(&self) -> bool {
        self.backend != RuleBackend::Nftables
    }
}

#[derive(Debug, Clone)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Where the kernel calls the chain. `None` if only other chains do.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// The call of a chain by the kernel.
#[derive(Debug, Clone)]
pub(super) struct Base {
    /// Whether only the first packet of a flow passes the chain.
    pub(super) is_nat: bool,
    pub(super) hook: Hook,
    pub(super) priority: i64,
    pub(super) drops_by_policy: bool,
    /// The devices of a chain of family netdev.
    pub(super) devices: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) steps: Vec<Step>,
    /// The handle in nftables, or the position in the chain in iptables.
    pub(super) number: u64,
    /// The rule as iptables lists it. Empty in nftables.
    pub(super) text: String,
}

/// A part of a rule. The kernel executes the parts in order, until a condition does not match.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Match(Condition),
    /// A condition that cannot be evaluated.
    Unclear,
    /// Changes the mark of the packet.
    Mark(MarkChange),
    /// Excludes the packet from connection tracking.
    Untrack,
    /// Changes the destination of the packet.
    Divert,
    Verdict(Verdict),
    /// Selects a verdict by a part of the packet.
    Map {
        keys: Vec<Key>,
        entries: Vec<(Vec<Item>, Verdict)>,
        is_complete: bool,
    },
}

/// A change of a mark: the bits of `mask` are cleared, then those of `flips` are flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MarkChange {
    pub(super) mask: u32,
    pub(super) flips: u32,
    /// Whether the new bits are known.
    pub(super) is_known: bool,
}

impl MarkChange {
    pub(super) const UNKNOWN: Self = Self { mask: u32::MAX, flips: 0, is_known: false };

    pub(super) const fn new(mask: u32, flips: u32) -> Self {
        Self { mask, flips, is_known: true }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Continue,
    Jump(String),
    Goto(String),
    /// Accepts, drops or continues: another program decides, or the verdict is unknown.
    Unclear,
    /// A program that reads one of these queues decides.
    Queue(u16, u16),
    /// No program reads the queue, so the kernel drops the packet.
    UnreadQueue,
    /// Accepts, and changes the source address to a given one.
    Translate,
}

impl Verdict {
    /// Parses the numbers of queues: one, or the first and the last.
    pub(super) fn queue(first: &str, last: &str) -> Self {
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) => Self::Queue(first, last),
            _ => Self::Unclear,
        }
    }

    /// Decides about queues by the numbers of the queues that programs read. A queue is known to be
    /// unread only if that list is known.
    pub(super) fn resolve_queue(&mut self, read: Option<&BTreeSet<u16>>) {
        if let Self::Queue(first, last) = *self {
            let is_unread =
                |read: &BTreeSet<u16>| read.range(first..=last.max(first)).next().is_none();
            *self = if read.is_some_and(is_unread) { Self::UnreadQueue } else { Self::Unclear };
        }
    }
}

/// A comparison of parts of a packet with values.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub(super) keys: Vec<Key>,
    pub(super) is_negated: bool,
    pub(super) values: Arc<Values>,
}

/// The values of a condition: the packet must have one of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Values {
    /// One item for each key.
    pub(super) items: Vec<Vec<Item>>,
    /// Whether all values are known.
    pub(super) is_complete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A range of numbers or addresses.
    Span(u128, u128),
    /// The name of a device. A star at its end matches every end.
    Name(String),
    Any,
    Unclear,
}

/// A part of a packet, before a bit mask is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) field: Field,
    pub(super) mask: Option<u128>,
}

impl Key {
    pub(super) const fn of(field: Field) -> Self {
        Self { field, mask: None }
    }
}

/// A part of a packet or of its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Input,
    Output,
    /// The source address in a header of this family.
    Source(Family),
    Destination(Family),
    /// The address family of the packet, by its Ethernet type.
    EtherType,
    Protocol,
    /// The protocol number in the header of this family.
    ProtocolOf(Family),
    /// A port. With a protocol, only packets of the protocol have it.
    SourcePort(Option<u8>),
    DestinationPort(Option<u8>),
    TcpFlags,
    /// The state of the connection, as a bit.
    State,
    /// The translations of the connection: see [`STATUS_DNAT`].
    Translations,
    Mark,
    SourceType,
    DestinationType,
    PacketType,
    /// Whether the frame passes a bridge instead of being routed: see [`IS_BRIDGED`].
    Bridged,
    /// A part that IP packets with TCP or UDP do not have.
    Absent,
    Unclear,
}

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const STATE_ESTABLISHED: u128 = 2;
pub(super) const STATE_NEW: u128 = 8;
pub(super) const STATE_UNTRACKED: u128 = 64;
pub(super) const STATUS_DNAT: u128 = 32;
pub(super) const STATUS_SNAT: u128 = 16;
/// Also the number of the type `host` of a packet.
pub(super) const TYPE_UNICAST: u128 = 0;
pub(super) const TYPE_LOCAL: u128 = 2;
/// The value of [`Field::Bridged`] of a frame that the kernel forwards between ports of a bridge.
/// Other packets have 0.
pub(super) const IS_BRIDGED: u128 = 1;
pub(super) const ETHER_IPV4: u128 = 0x0800;
pub(super) const ETHER_IPV6: u128 = 0x86dd;
/// A value that no packet between agents or containers has.
pub(super) const OTHER: u128 = u128::MAX;

/// Returns the number of a transport protocol, or [`OTHER`].
pub(super) fn protocol(name: &str) -> u128 {
    match name {
        "tcp" => TCP.into(),
        "udp" => UDP.into(),
        name => name.parse().unwrap_or(OTHER),
    }
}

/// Returns the bit of a state of a connection.
pub(super) fn state(name: &str) -> Option<u128> {
    Some(match name {
        "invalid" => 1,
        "established" => STATE_ESTABLISHED,
        "related" => 4,
        "new" => STATE_NEW,
        "untracked" => STATE_UNTRACKED,
        _ => return None,
    })
}

/// Returns the bit of a TCP flag.
pub(super) fn tcp_flag(name: &str) -> Option<u128> {
    Some(match name {
        "fin" => 1,
        "syn" => 2,
        "rst" => 4,
        "psh" => 8,
        "ack" => 16,
        "urg" => 32,
        "ecn" => 64,
        "cwr" => 128,
        _ => return None,
    })
}

/// Returns the number of an address type.
pub(super) fn address_type(name: &str) -> u128 {
    match name {
        "unicast" => TYPE_UNICAST,
        "local" => TYPE_LOCAL,
        _ => OTHER,
    }
}

/// Returns the number of an address.
pub(super) fn address_number(address: std::net::IpAddr) -> u128 {
    match address {
        std::net::IpAddr::V4(ip) => u32::from(ip).into(),
        std::net::IpAddr::V6(ip) => ip.into(),
    }
}

/// Returns the range of the addresses of a prefix.
pub(super) fn prefix_span(address: std::net::IpAddr, length: u8) -> Option<Item> {
    let (bits, number) = (if address.is_ipv4() { 32 } else { 128 }, address_number(address));
    let host_bits = u32::from(u8::checked_sub(bits, length)?);
    let hosts = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |count| count - 1);
    Some(Item::Span(number & !hosts, number | hosts))
}
