//! The rules in a table of our own, written anew in one transaction whatever was there: so nobody
//! ever sees half of them, and nobody else's rules are touched. Text instead of JSON, which not
//! every nft can read, and which reads worse in a test.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use super::ruleset::{AgentNews, Ruleset};
use crate::addr::Family;

/// Our table.
pub const TABLE: &str = "inet mesos_overlay";

/// The least that has what a kernel may lack of all this.
pub(super) const PROBE: &str = "table inet mesos_overlay_probe {
    set agents { type ipv4_addr; flags interval; }
    chain input { type filter hook input priority -10; ip saddr != @agents counter drop; }
    chain postrouting { type nat hook postrouting priority 99; oifname != lo masquerade; }
}
";

/// What makes the table right, for `nft -f -`.
pub(super) fn script(rules: &Ruleset) -> String {
    let mut text = remove();
    if rules.is_empty() {
        return text;
    }
    let mut body = String::new();
    for family in [Family::V4, Family::V6] {
        let (_, short) = words(family);
        let kind = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        set(&mut body, &format!("spaces{short}"), kind, true, &rules.subnets(family, None));
        set(&mut body, &format!("agents{short}"), kind, false, &rules.agents(family));
        if rules.isolate {
            for (index, name) in rules.spaces.keys().enumerate() {
                let subnets = rules.subnets(family, Some(name));
                set(&mut body, &format!("overlay{index}_{short}"), kind, true, &subnets);
            }
        }
    }
    input(&mut body, rules);
    forward(&mut body, rules);
    postrouting(&mut body, rules);
    let _ = write!(text, "table {TABLE} {{\n{body}}}\n");
    text
}

/// What removes the table, also where there is none.
pub(super) fn remove() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// What brings the sets of agents up to date, in one transaction.
pub(super) fn agents(news: &AgentNews) -> String {
    let mut text = String::new();
    for (how, agents) in [("add", &news.came), ("delete", &news.gone)] {
        for family in [Family::V4, Family::V6] {
            let (_, short) = words(family);
            let is_its = |agent: &&IpAddr| agent.is_ipv4() == (family == Family::V4);
            let elements = list(agents.iter().filter(is_its));
            if !elements.is_empty() {
                let _ = writeln!(text, "{how} element {TABLE} agents{short} {{ {elements} }}");
            }
        }
    }
    text
}

const fn words(family: Family) -> (&'static str, &'static str) {
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

/// Before all that others decide at this place, since what they accept we would not hear of.
fn input(body: &mut String, rules: &Ruleset) {
    if rules.agents.is_none() {
        return;
    }
    let ports = list(&rules.ports);
    body.push_str("\tchain input {\n\t\ttype filter hook input priority -10; policy accept;\n");
    for family in [Family::V4, Family::V6] {
        let (ip, short) = words(family);
        let _ =
            writeln!(body, "\t\tudp dport {{ {ports} }} {ip} saddr != @agents{short} counter drop");
    }
    body.push_str("\t}\n");
}

fn forward(body: &mut String, rules: &Ruleset) {
    if !rules.isolate {
        return;
    }
    body.push_str("\tchain forward {\n\t\ttype filter hook forward priority -10; policy accept;\n");
    for family in [Family::V4, Family::V6] {
        let (ip, short) = words(family);
        for index in 0..rules.spaces.len() {
            let _ = writeln!(
                body,
                "\t\t{ip} saddr @overlay{index}_{short} {ip} daddr @spaces{short} \
                 {ip} daddr != @overlay{index}_{short} counter drop"
            );
        }
    }
    body.push_str("\t}\n");
}

/// What goes into a tunnel keeps its sender, and so does what stays on the host.
fn postrouting(body: &mut String, rules: &Ruleset) {
    if !rules.masquerade {
        return;
    }
    let devices = list(rules.devices.iter().map(|device| format!("\"{device}\"")));
    body.push_str("\tchain postrouting {\n\t\ttype nat hook postrouting priority 99;\n");
    for (family, multicast) in [(Family::V4, "224.0.0.0/4"), (Family::V6, "ff00::/8")] {
        let (ip, short) = words(family);
        let _ = writeln!(
            body,
            "\t\t{ip} saddr @spaces{short} {ip} daddr != @spaces{short} {ip} daddr != {multicast} \
             oifname != {{ {devices} }} masquerade"
        );
    }
    body.push_str("\t}\n");
}
