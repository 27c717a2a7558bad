//! Writes the rules as one managed nftables table. One transaction replaces the whole table, so
//! that every packet meets either all old or all new rules. Foreign tables are not changed.
//!
//! The input of nft is text: not every nft reads JSON, and text is easier to read in a test.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use overlay_types::addr::Family;

use super::ruleset::{AgentChanges, Ruleset};

/// Our table.
pub const TABLE: &str = "inet mesos_overlay";

/// The smallest table that uses every feature that a kernel may not support.
pub(super) const PROBE: &str = "table inet mesos_overlay_probe {
    set agents { type ipv4_addr; flags interval; }
    chain input { type filter hook input priority -10; ip saddr != @agents counter drop; }
    chain postrouting { type nat hook postrouting priority 99; oifname != lo masquerade; }
}
";

/// Returns the input of `nft -f -` that replaces the table.
pub(super) fn script(rules: &Ruleset) -> String {
    let mut text = remove();
    if rules.is_empty() {
        return text;
    }
    let mut body = String::new();
    for family in [Family::V4, Family::V6] {
        let (_, suffix) = keywords(family);
        let kind = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        set(&mut body, &format!("spaces{suffix}"), kind, true, &rules.subnets(family, None));
        set(&mut body, &format!("agents{suffix}"), kind, false, &rules.agents(family));
        if rules.isolate {
            for (index, name) in rules.spaces.keys().enumerate() {
                let subnets = rules.subnets(family, Some(name));
                set(&mut body, &format!("overlay{index}_{suffix}"), kind, true, &subnets);
            }
        }
    }
    input(&mut body, rules);
    forward(&mut body, rules);
    postrouting(&mut body, rules);
    let _ = write!(text, "table {TABLE} {{\n{body}}}\n");
    text
}

/// Returns the input of nft that removes the table. It succeeds without a table as well.
pub(super) fn remove() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// Returns the input of nft that changes the sets of agents, in one transaction.
pub(super) fn agents(changes: &AgentChanges) -> String {
    let mut text = String::new();
    for (verb, agents) in [("add", &changes.added), ("delete", &changes.removed)] {
        for family in [Family::V4, Family::V6] {
            let (_, suffix) = keywords(family);
            let is_of_family = |agent: &&IpAddr| agent.is_ipv4() == (family == Family::V4);
            let elements = list(agents.iter().filter(is_of_family));
            if !elements.is_empty() {
                let _ = writeln!(text, "{verb} element {TABLE} agents{suffix} {{ {elements} }}");
            }
        }
    }
    text
}

/// Returns nft's protocol keyword of a family, and the suffix of our sets.
const fn keywords(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("ip", "4"),
        Family::V6 => ("ip6", "6"),
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn set<T: Display>(body: &mut String, name: &str, kind: &str, has_ranges: bool, items: &[T]) {
    let _ = write!(body, "\tset {name} {{\n\t\ttype {kind}\n");
    if has_ranges {
        body.push_str("\t\tflags interval\n");
    }
    if !items.is_empty() {
        let _ = writeln!(body, "\t\telements = {{ {} }}", list(items));
    }
    body.push_str("\t}\n");
}

/// The chain runs before the chains of other programs: a rule that accepts a packet there does not
/// skip this chain.
fn input(body: &mut String, rules: &Ruleset) {
    if rules.agents.is_none() {
        return;
    }
    let ports = list(&rules.ports);
    body.push_str("\tchain input {\n\t\ttype filter hook input priority -10; policy accept;\n");
    for family in [Family::V4, Family::V6] {
        let (ip, suffix) = keywords(family);
        let _ = writeln!(
            body,
            "\t\tudp dport {{ {ports} }} {ip} saddr != @agents{suffix} counter drop"
        );
    }
    body.push_str("\t}\n");
}

fn forward(body: &mut String, rules: &Ruleset) {
    if !rules.isolate {
        return;
    }
    body.push_str("\tchain forward {\n\t\ttype filter hook forward priority -10; policy accept;\n");
    for family in [Family::V4, Family::V6] {
        let (ip, suffix) = keywords(family);
        for index in 0..rules.spaces.len() {
            let _ = writeln!(
                body,
                "\t\t{ip} saddr @overlay{index}_{suffix} {ip} daddr @spaces{suffix} \
                 {ip} daddr != @overlay{index}_{suffix} counter drop"
            );
        }
    }
    body.push_str("\t}\n");
}

/// Packets that enter a tunnel or stay on the host keep their source address.
fn postrouting(body: &mut String, rules: &Ruleset) {
    if !rules.masquerade {
        return;
    }
    let devices = list(rules.devices.iter().map(|device| format!("\"{device}\"")));
    body.push_str("\tchain postrouting {\n\t\ttype nat hook postrouting priority 99;\n");
    for (family, multicast) in [(Family::V4, "224.0.0.0/4"), (Family::V6, "ff00::/8")] {
        let (ip, suffix) = keywords(family);
        let _ = writeln!(
            body,
            "\t\t{ip} saddr @spaces{suffix} {ip} daddr != @spaces{suffix} {ip} daddr != \
             {multicast} oifname != {{ {devices} }} masquerade"
        );
    }
    body.push_str("\t}\n");
}
