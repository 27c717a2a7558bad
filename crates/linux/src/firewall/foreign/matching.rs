//! Evaluates conditions with three values. The addresses and ports of a packet are ranges: a
//! condition matches if all packets of the range match, and it is unknown if only some do.

use std::net::IpAddr;

use overlay_types::addr::{Family, Subnet};

use super::model::{
    Condition, ETHER_IPV4, ETHER_IPV6, Field, Hook, IS_BRIDGED, Item, Key, MarkChange,
    STATE_ESTABLISHED, STATE_NEW, STATE_UNTRACKED, TCP, TYPE_LOCAL, TYPE_UNICAST, TableFamily,
    Values, address_number,
};
use super::packet::{Packet, PacketKind};

/// Source port of the evaluated packets of containers.
const SOURCE_PORT: u128 = 45_678;
/// Their destination port. It is not a port of a known service, nor one that Mesos offers.
const DESTINATION_PORT: u128 = 34_567;
/// Below `-200` a packet has no connection yet.
const CONNTRACK_PRIORITY: i64 = -200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Unknown,
}

impl Truth {
    const fn negated_if(self, is_negated: bool) -> Self {
        match (self, is_negated) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (truth, _) => truth,
        }
    }
}

/// What earlier rules may have done to the packet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changes {
    pub(super) mark: Mark,
    pub(super) is_untracked: bool,
    pub(super) is_diverted: bool,
}

/// The mark of the packet, which is 0 at first.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mark {
    value: u32,
    /// The bits that are unknown.
    unknown: u32,
}

impl Mark {
    /// Applies a change. If it is not certain that the packet gets there, the changed bits are
    /// unknown.
    pub(super) const fn change(&mut self, change: MarkChange, is_certain: bool) {
        let MarkChange { mask, flips, is_known } = change;
        if is_certain && is_known {
            self.value = (self.value & !mask) ^ flips;
            self.unknown &= !mask;
        } else {
            self.unknown |= mask | flips;
        }
    }
}

/// A packet at a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) packet: &'a Packet,
    pub(super) protocol: u8,
    pub(super) is_established: bool,
    /// Whether the managed rules keep the packet out of connection tracking.
    pub(super) is_untracked: bool,
    /// Whether a condition that the port of the evaluated packet does not meet is unknown, since a
    /// packet with another port may meet it.
    pub(super) has_any_port: bool,
    pub(super) family: TableFamily,
    pub(super) hook: Hook,
    pub(super) priority: i64,
}

/// The value of a part of a packet.
enum Seen<'a> {
    Span(u128, u128),
    Mark(Mark),
    Name(&'a str),
    /// The packet has no such part, so no condition about it matches.
    Absent,
    Unknown,
}

impl View<'_> {
    pub(super) fn matches(&self, condition: &Condition, changes: Changes) -> Truth {
        let Condition { keys, is_negated, values } = condition;
        if keys.iter().any(|key| matches!(self.see(key.field, changes), Seen::Absent)) {
            return Truth::No;
        }
        self.with_any_port(keys, self.is_among(keys, values, changes).negated_if(*is_negated))
    }

    fn with_any_port(&self, keys: &[Key], truth: Truth) -> Truth {
        let is_port =
            |key: &Key| matches!(key.field, Field::SourcePort(_) | Field::DestinationPort(_));
        let is_open = self.has_any_port && self.packet.port.is_none() && keys.iter().any(is_port);
        if is_open && truth == Truth::No { Truth::Unknown } else { truth }
    }

    /// Returns whether a packet has the key of an entry of a map.
    pub(super) fn selects(&self, keys: &[Key], items: &[Item], changes: Changes) -> Truth {
        if keys.iter().any(|key| matches!(self.see(key.field, changes), Seen::Absent)) {
            return Truth::No;
        }
        self.with_any_port(keys, self.has(keys, items, changes))
    }

    fn is_among(&self, keys: &[Key], values: &Values, changes: Changes) -> Truth {
        let mut result = if values.is_complete { Truth::No } else { Truth::Unknown };
        for items in &values.items {
            match self.has(keys, items, changes) {
                Truth::Yes => return Truth::Yes,
                Truth::Unknown => result = Truth::Unknown,
                Truth::No => {}
            }
        }
        result
    }

    /// Returns whether every key of the packet is in its item.
    fn has(&self, keys: &[Key], items: &[Item], changes: Changes) -> Truth {
        if let [Item::Any] = items {
            return Truth::Yes;
        }
        if keys.len() != items.len() {
            return Truth::Unknown;
        }
        let mut result = Truth::Yes;
        for (key, item) in keys.iter().zip(items) {
            match self.is_in(*key, item, changes) {
                Truth::No => return Truth::No,
                Truth::Unknown => result = Truth::Unknown,
                Truth::Yes => {}
            }
        }
        result
    }

    fn is_in(&self, key: Key, item: &Item, changes: Changes) -> Truth {
        match (masked(self.see(key.field, changes), key.mask), item) {
            (Seen::Absent, _) => Truth::No,
            (_, Item::Any) => Truth::Yes,
            (Seen::Span(first, last), Item::Span(from, to)) => {
                if (from..=to).contains(&&first) && (from..=to).contains(&&last) {
                    Truth::Yes
                } else if last < *from || first > *to {
                    Truth::No
                } else {
                    Truth::Unknown
                }
            }
            (Seen::Mark(Mark { value, unknown }), Item::Span(first, last)) if first == last => {
                let differs = (u128::from(value) ^ first) & !u128::from(unknown) != 0;
                if differs { Truth::No } else { Truth::Unknown }
            }
            // A name of a value that packets between agents do not have.
            (Seen::Span(..), Item::Name(_)) if has_names(key.field) => Truth::No,
            (Seen::Name(device), Item::Name(pattern)) => {
                let is_same = match pattern.strip_suffix('*') {
                    Some(start) => device.starts_with(start),
                    None => device == pattern,
                };
                if is_same { Truth::Yes } else { Truth::No }
            }
            // No packet of another host and no packet to another host passes the loopback device.
            (Seen::Unknown, Item::Name(device)) if device == "lo" && is_device(key.field) => {
                Truth::No
            }
            _ => Truth::Unknown,
        }
    }

    fn see(&self, field: Field, changes: Changes) -> Seen<'_> {
        let Packet { family, source, destination, .. } = self.packet;
        let has_protocol = |wanted: Option<u8>| wanted.is_none_or(|number| number == self.protocol);
        match field {
            Field::Input | Field::Output => self.device(field),
            Field::Source(of) if of == *family => span(source),
            Field::Destination(of) if of == *family && !changes.is_diverted => span(destination),
            Field::Destination(of) if of == *family => Seen::Unknown,
            Field::Source(_) | Field::Destination(_) | Field::Absent => Seen::Absent,
            Field::EtherType => match family {
                Family::V4 => single(ETHER_IPV4),
                Family::V6 => single(ETHER_IPV6),
            },
            Field::ProtocolOf(of) if of != *family => Seen::Absent,
            Field::Protocol | Field::ProtocolOf(_) => single(self.protocol.into()),
            Field::SourcePort(of) if has_protocol(of) => self.source_port(),
            Field::DestinationPort(of) if has_protocol(of) => self.destination_port(),
            Field::SourcePort(_) | Field::DestinationPort(_) => Seen::Absent,
            Field::TcpFlags if self.protocol != TCP => Seen::Absent,
            Field::TcpFlags => single(if self.is_established { 16 } else { 2 }),
            Field::State if changes.is_untracked || !self.has_connection() => Seen::Unknown,
            Field::State if self.is_untracked => single(STATE_UNTRACKED),
            Field::State if self.is_established => single(STATE_ESTABLISHED),
            Field::State => single(STATE_NEW),
            Field::Translations if changes.is_diverted || changes.is_untracked => Seen::Unknown,
            // Other bits of the status are unknown, but no condition about them is parsed.
            Field::Translations => single(0),
            Field::Mark => Seen::Mark(changes.mark),
            // In a bridge a frame for another host has type `other`, until br_netfilter changes it.
            Field::PacketType if self.family == TableFamily::Bridge => Seen::Unknown,
            Field::PacketType => single(TYPE_UNICAST),
            Field::Bridged => single(if self.is_bridged() { IS_BRIDGED } else { 0 }),
            Field::SourceType => match self.packet.kind {
                PacketKind::VxlanOut => single(TYPE_LOCAL),
                _ => single(TYPE_UNICAST),
            },
            Field::DestinationType if changes.is_diverted => Seen::Unknown,
            Field::DestinationType => match self.packet.kind {
                PacketKind::VxlanIn => single(TYPE_LOCAL),
                _ => single(TYPE_UNICAST),
            },
            Field::Unclear => Seen::Unknown,
        }
    }

    /// Returns whether br_netfilter knows a port of a bridge that the packet leaves through. It
    /// knows none before the kernel has selected the port.
    fn is_bridged(&self) -> bool {
        self.packet.kind == PacketKind::Bridged
            && matches!(self.hook, Hook::Forward | Hook::Postrouting)
    }

    /// Returns the device that the packet enters or leaves through, as the hook knows it.
    fn device(&self, field: Field) -> Seen<'_> {
        let Packet { input, output, .. } = self.packet;
        // A bridge's ports are unknown.
        if self.family == TableFamily::Bridge {
            return Seen::Unknown;
        }
        let known = match (field, self.hook) {
            (Field::Output, Hook::Ingress | Hook::Prerouting | Hook::Input) => Some(""),
            // Kernels differ in whether they know the input device here.
            (Field::Input, Hook::Postrouting | Hook::Egress) => None,
            (Field::Input, _) => input.as_deref(),
            _ => output.as_deref(),
        };
        known.map_or(Seen::Unknown, Seen::Name)
    }

    fn has_connection(&self) -> bool {
        match (self.family, self.hook) {
            (TableFamily::Netdev | TableFamily::Bridge, _) => false,
            (_, Hook::Prerouting | Hook::Output) => self.priority > CONNTRACK_PRIORITY,
            _ => true,
        }
    }

    fn source_port(&self) -> Seen<'_> {
        match self.packet.port {
            // The kernel selects the port of a VXLAN packet.
            Some(_) => Seen::Span(1024, u16::MAX.into()),
            None => single(SOURCE_PORT),
        }
    }

    fn destination_port(&self) -> Seen<'_> {
        match self.packet.port {
            Some(port) => single(port.into()),
            None => single(DESTINATION_PORT),
        }
    }
}

const fn single(number: u128) -> Seen<'static> {
    Seen::Span(number, number)
}

fn span(subnet: &Subnet) -> Seen<'static> {
    let number = |address: IpAddr| address_number(address);
    Seen::Span(number(subnet.first()), number(subnet.last()))
}

/// Applies a mask to a value. The result of a range is the range of the results.
fn masked(seen: Seen<'_>, mask: Option<u128>) -> Seen<'_> {
    match (seen, mask) {
        (Seen::Mark(Mark { value, unknown }), mask) => {
            // A mark has 32 bits.
            let mask = mask.map_or(u32::MAX, |mask| u32::try_from(mask).unwrap_or(u32::MAX));
            let (value, unknown) = (value & mask, unknown & mask);
            if unknown == 0 { single(value.into()) } else { Seen::Mark(Mark { value, unknown }) }
        }
        (seen, None) => seen,
        (Seen::Span(first, last), Some(mask)) if first == last => single(first & mask),
        (Seen::Span(first, last), Some(mask)) => {
            // Only the upper bits of an address may be compared.
            let width = if mask.leading_zeros() >= 96 { u32::MAX.into() } else { u128::MAX };
            let is_prefix = (!mask & width).wrapping_add(1).is_power_of_two();
            if is_prefix { Seen::Span(first & mask, last & mask) } else { Seen::Unknown }
        }
        (Seen::Absent, _) => Seen::Absent,
        _ => Seen::Unknown,
    }
}

const fn is_device(field: Field) -> bool {
    matches!(field, Field::Input | Field::Output)
}

/// Returns whether every value of this part that the overlays use has a number, so that a name
/// without a number is another value.
const fn has_names(field: Field) -> bool {
    matches!(
        field,
        Field::Protocol
            | Field::ProtocolOf(_)
            | Field::EtherType
            | Field::PacketType
            | Field::SourceType
            | Field::DestinationType
    )
}
