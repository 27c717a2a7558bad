//! Parses the expressions of nftables: the parts of a packet and the values of conditions.

use std::net::IpAddr;

use overlay_types::addr::Family;
use serde_json::Value;

use super::model::{
    ETHER_IPV4, ETHER_IPV6, Field, Item, Key, STATUS_DNAT, STATUS_SNAT, TCP, TYPE_LOCAL,
    TYPE_UNICAST, UDP, address_number, prefix_span, state, tcp_flag,
};

/// Returns the parts of a packet that a condition compares.
pub(super) fn keys_of(left: &Value) -> Vec<Key> {
    match left["concat"].as_array() {
        Some(parts) => parts.iter().map(key_of).collect(),
        None => vec![key_of(left)],
    }
}

pub(super) fn key_of(left: &Value) -> Key {
    let Some((kind, value)) = left.as_object().and_then(|object| object.iter().next()) else {
        return Key::of(Field::Unclear);
    };
    let word = |key: &str| value[key].as_str().unwrap_or_default();
    match kind.as_str() {
        "meta" => Key::of(meta(word("key"))),
        "payload" => Key::of(payload(word("protocol"), word("field"))),
        "ct" if value.get("dir").is_none() => Key::of(match word("key") {
            "state" => Field::State,
            "status" => Field::Translations,
            _ => Field::Unclear,
        }),
        "fib" if word("result") == "type" => Key::of(address_type_of(&value["flags"])),
        "&" => {
            let mask = value.get(1).map(mask_of);
            let key = value.get(0).map_or(Key::of(Field::Unclear), key_of);
            match mask {
                Some(Some(mask)) if key.mask.is_none() => Key { mask: Some(mask), ..key },
                _ => Key::of(Field::Unclear),
            }
        }
        _ => Key::of(Field::Unclear),
    }
}

fn meta(key: &str) -> Field {
    match key {
        "iifname" | "iif" => Field::Input,
        "oifname" | "oif" => Field::Output,
        "l4proto" => Field::Protocol,
        "nfproto" | "protocol" => Field::EtherType,
        "mark" => Field::Mark,
        "pkttype" => Field::PacketType,
        _ => Field::Unclear,
    }
}

fn payload(protocol: &str, field: &str) -> Field {
    match (protocol, field) {
        ("ip", "saddr") => Field::Source(Family::V4),
        ("ip", "daddr") => Field::Destination(Family::V4),
        ("ip6", "saddr") => Field::Source(Family::V6),
        ("ip6", "daddr") => Field::Destination(Family::V6),
        ("ip", "protocol") => Field::ProtocolOf(Family::V4),
        ("ip6", "nexthdr") => Field::ProtocolOf(Family::V6),
        ("tcp", "sport") => Field::SourcePort(Some(TCP)),
        ("tcp", "dport") => Field::DestinationPort(Some(TCP)),
        ("udp", "sport") => Field::SourcePort(Some(UDP)),
        ("udp", "dport") => Field::DestinationPort(Some(UDP)),
        ("th", "sport") => Field::SourcePort(None),
        ("th", "dport") => Field::DestinationPort(None),
        ("tcp", "flags") => Field::TcpFlags,
        ("ether", "type") => Field::EtherType,
        (
            "icmp" | "icmpv6" | "igmp" | "sctp" | "dccp" | "udplite" | "esp" | "ah" | "comp"
            | "arp",
            _,
        ) => Field::Absent,
        _ => Field::Unclear,
    }
}

fn address_type_of(flags: &Value) -> Field {
    let flags: Vec<_> = match flags {
        Value::Array(flags) => flags.iter().filter_map(Value::as_str).collect(),
        flag => flag.as_str().into_iter().collect(),
    };
    match flags[..] {
        ["daddr"] => Field::DestinationType,
        ["saddr"] => Field::SourceType,
        _ => Field::Unclear,
    }
}

/// Returns the bits of a mask: a number, an address, or flags.
fn mask_of(value: &Value) -> Option<u128> {
    match value {
        Value::Number(number) => number.as_u64().map(u128::from),
        Value::String(word) => number_of(word),
        Value::Array(flags) => flags.iter().map(mask_of).try_fold(0, |bits, bit| Some(bits | bit?)),
        value => value["|"]
            .as_array()
            .and_then(|flags| flags.iter().map(mask_of).try_fold(0, |bits, bit| Some(bits | bit?))),
    }
}

/// Returns the number of a word: an address, a number, or a name that has one meaning in all
/// places where it may occur.
fn number_of(word: &str) -> Option<u128> {
    let address = word.parse::<IpAddr>().ok().map(address_number);
    let hexadecimal = || u128::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let number = address.or_else(|| word.parse().ok()).or_else(hexadecimal);
    number.or_else(|| state(word)).or_else(|| tcp_flag(word)).or_else(|| named(word))
}

fn named(word: &str) -> Option<u128> {
    Some(match word {
        "ip" | "ipv4" => ETHER_IPV4,
        "ip6" | "ipv6" => ETHER_IPV6,
        "tcp" => TCP.into(),
        "udp" => UDP.into(),
        "dnat" => STATUS_DNAT,
        "snat" => STATUS_SNAT,
        "local" => TYPE_LOCAL,
        // `host` is the type of a packet to this host.
        "unicast" | "host" => TYPE_UNICAST,
        _ => return None,
    })
}

/// Returns the values of a set, each with an item for each key.
pub(super) fn items(elements: &Value) -> Vec<Vec<Item>> {
    elements.as_array().into_iter().flatten().map(parts).collect()
}

/// Returns the keys of a map with their data.
pub(super) fn pairs(elements: &Value) -> impl Iterator<Item = (Vec<Item>, &Value)> {
    let elements = elements.as_array().into_iter().flatten();
    elements.filter_map(|pair| Some((parts(pair.get(0)?), pair.get(1)?)))
}

fn parts(element: &Value) -> Vec<Item> {
    let element = element.get("elem").map_or(element, |element| &element["val"]);
    match element["concat"].as_array() {
        Some(parts) => parts.iter().map(item).collect(),
        None => vec![item(element)],
    }
}

fn item(value: &Value) -> Item {
    match value {
        Value::Number(number) => {
            number.as_u64().map_or(Item::Unclear, |number| Item::Span(number.into(), number.into()))
        }
        Value::String(word) if word == "*" => Item::Any,
        Value::String(word) => match number_of(word) {
            Some(number) => Item::Span(number, number),
            None => Item::Name(word.clone()),
        },
        value => prefix(&value["prefix"])
            .or_else(|| range(&value["range"]))
            .or_else(|| mask_of(value).map(|bits| Item::Span(bits, bits)))
            .unwrap_or(Item::Unclear),
    }
}

fn prefix(value: &Value) -> Option<Item> {
    let address = value["addr"].as_str()?.parse().ok()?;
    prefix_span(address, value["len"].as_u64()?.try_into().ok()?)
}

fn range(value: &Value) -> Option<Item> {
    match (item(value.get(0)?), item(value.get(1)?)) {
        (Item::Span(first, _), Item::Span(_, last)) => Some(Item::Span(first, last)),
        _ => None,
    }
}
