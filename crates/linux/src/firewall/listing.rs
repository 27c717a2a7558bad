//! Parses the listings of the managed rules. The elements of the dynamic sets, which follow the
//! peers and the masters, are collected separately, since they change one by one. All other rules
//! are compared as text.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_types::addr::Mac;

use super::elements::ListedElements;
use super::iptables::Jump;
use super::{ipsets, iptables, nftables, shortcut};

/// The observed rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// All rules without the elements of dynamic sets, as listed.
    pub(super) rest: String,
    /// The elements of the dynamic sets.
    pub(super) elements: ListedElements,
}

impl Listing {
    /// Adds our table, as `nft` lists it.
    pub(super) fn add_table(&mut self, text: &str) {
        let mut set = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let words = line.trim();
            if words.is_empty() {
                continue;
            }
            let chain = words.strip_prefix("chain ").map(|name| name.trim_end_matches(" {"));
            if let Some(chain) = chain.filter(|name| shortcut::is_port_chain(name)) {
                let rules: Vec<_> =
                    lines.by_ref().map(str::trim).take_while(|line| *line != "}").collect();
                let port = shortcut::listed_port(chain, &rules);
                self.elements.entry(shortcut::PORTS.to_owned()).or_default().insert(port);
                continue;
            }
            let object = words.strip_prefix("set ").or_else(|| words.strip_prefix("map "));
            if let Some(name) = object {
                let name = name.trim_end_matches(" {");
                let is_dynamic =
                    |name: &&str| nftables::is_dynamic(name) || shortcut::is_dynamic(name);
                set = Some(name).filter(is_dynamic);
            } else if let Some(set) = set
                && let Some(elements) = words.strip_prefix("elements = {")
            {
                self.add_elements(set, elements);
                // nft breaks long lists into several lines.
                let mut is_complete = line.ends_with('}');
                while !is_complete && let Some(more) = lines.next() {
                    self.add_elements(set, more);
                    is_complete = more.ends_with('}');
                }
                continue;
            }
            self.add_line(line);
        }
    }

    fn add_elements(&mut self, set: &str, text: &str) {
        let elements = text.trim_end_matches('}').split(',').map(str::trim);
        for element in elements.filter(|element| !element.is_empty()) {
            let normalized = |key: &str| {
                let parts: Option<Vec<_>> = key.split(" . ").map(normalize).collect();
                parts.map(|parts| parts.join(" . "))
            };
            let pair: Option<Vec<_>> = element.split(" : ").map(normalized).collect();
            self.add_element(set, element, pair.map(|pair| pair.join(" : ")));
        }
    }

    /// Adds an element. Every element that the agent writes can be parsed. Any other element is
    /// foreign: it goes into `rest`, so that the verification finds a difference.
    fn add_element(&mut self, set: &str, text: &str, element: Option<String>) {
        match element {
            Some(element) => {
                self.elements.entry(set.to_owned()).or_default().insert(element);
            }
            None => self.add_line(text),
        }
    }

    /// Adds a jump to the managed chains that another program's rules precede.
    pub(super) fn add_misplaced_jump(&mut self, jump: &Jump) {
        self.add_line(&format!("not the first rule of {}: {}", jump.table, jump.rule()));
    }

    /// Adds the managed chains from the output of `iptables-save`. Adds also the policy of FORWARD,
    /// the chain DOCKER-USER and the bridges of Docker, since the managed chains depend on them.
    pub(super) fn add_chains(&mut self, text: &str) {
        let is_relevant = |line: &&str| {
            line.contains(iptables::CHAIN)
                || line.starts_with(":FORWARD ")
                || line.starts_with(":DOCKER-USER ")
                || iptables::docker_bridge(line).is_some()
        };
        for line in text.lines().filter(is_relevant) {
            // Without the packet counters in brackets.
            self.add_line(line.split(" [").next().unwrap_or(line));
        }
    }

    /// Adds managed ipsets, as `ipset save` lists them.
    pub(super) fn add_set(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match *words.as_slice() {
                ["add", set, element] => {
                    self.add_element(set, line, ipsets::normalize(element));
                }
                // Without the hash size, which grows with the number of entries.
                ["create", set, kind, "family", family, ..] => {
                    self.add_line(&format!("create {set} {kind} family {family}"));
                }
                _ => self.add_line(line),
            }
        }
    }

    fn add_line(&mut self, line: &str) {
        self.rest.push_str(line);
        self.rest.push('\n');
    }
}

/// Returns the rules of a listing that decide by the first packet of a flow: those that masquerade,
/// and those about states of connections.
pub(super) fn flow_rules(rest: &str) -> BTreeSet<&str> {
    const WORDS: [&str; 5] = ["masquerade", "MASQUERADE", "ct state", "ct status", "--ctstate"];
    let is_of_flows = |line: &&str| WORDS.iter().any(|word| line.contains(word));
    rest.lines().map(str::trim).filter(is_of_flows).collect()
}

/// Returns a part of a listed element of nft in the form in which the agent writes it: an address,
/// a MAC, a port, or a hexadecimal number.
fn normalize(part: &str) -> Option<String> {
    if let Some(digits) = part.strip_prefix("0x") {
        return u128::from_str_radix(digits, 16).ok().map(|number| format!("{number:#x}"));
    }
    let address = part.parse::<IpAddr>().ok().map(|address| address.to_string());
    let mac = || part.parse::<Mac>().ok().map(|mac| mac.to_string());
    address.or_else(mac).or_else(|| part.parse::<u16>().ok().map(|port| port.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(sets: &[(&str, &[&str])]) -> ListedElements {
        let set = |(set, elements): &(&str, &[&str])| {
            ((*set).to_owned(), elements.iter().map(|&element| element.to_owned()).collect())
        };
        sets.iter().map(set).collect()
    }

    #[test]
    fn dynamic_elements_are_not_in_rest() {
        let mut listing = Listing::default();
        // The output of nft 1.0.6.
        listing.add_table(
            "table inet mesos_overlay {\n\tset spaces4_16 {\n\t\telements = { 192.168.0.0 }\n\t}\n\n\
             \tset agents4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.2, 10.0.0.3,\n\
             \t\t\t     10.0.0.4 }\n\t}\n\n\tset inner4_24 {\n\t\ttypeof ip saddr . @th,336,32\n\
             \t\telements = { 10.0.0.2 . 0xa000002,\n\t\t\t     10.0.0.3 . 0x0a000003 }\n\t}\n\n\
             \tset masters4 {\n\t\telements = { 10.0.0.2 . 5050 }\n\t}\n\
             \tset direct4_24 {\n\t\telements = { 06:00:00:00:00:0a . 10.0.2.0 }\n\t}\n}\n",
        );
        assert_eq!(
            listing.elements,
            elements(&[
                ("agents4", &["10.0.0.2", "10.0.0.3", "10.0.0.4"]),
                ("direct4_24", &["06:00:00:00:00:0a . 10.0.2.0"]),
                ("inner4_24", &["10.0.0.2 . 0xa000002", "10.0.0.3 . 0xa000003"]),
                ("masters4", &["10.0.0.2 . 5050"]),
            ])
        );
        assert_eq!(
            listing.rest,
            "table inet mesos_overlay {\n\tset spaces4_16 {\n\t\telements = { 192.168.0.0 }\n\t}\n\
             \tset agents4 {\n\t\ttype ipv4_addr\n\t}\n\
             \tset inner4_24 {\n\t\ttypeof ip saddr . @th,336,32\n\t}\n\
             \tset masters4 {\n\t}\n\tset direct4_24 {\n\t}\n}\n"
        );
    }

    #[test]
    fn chain_of_port_is_an_element() {
        let mut listing = Listing::default();
        listing.add_table(
            "table netdev mesos_overlay {\n\tchain from0 {\n\t}\n\n\tchain port3 {\n\t\ttype filter \
             hook ingress device \"veth1\" priority filter; policy accept;\n\t\tether daddr \
             02:00:00:00:01:03 goto from0\n\t}\n}\n",
        );
        let port = "port3 veth1 ether daddr 02:00:00:00:01:03 goto from0";
        assert_eq!(listing.elements, elements(&[("ports", &[port])]));
        assert_eq!(listing.rest, "table netdev mesos_overlay {\n\tchain from0 {\n\t}\n}\n");
    }

    #[test]
    fn ipset_size_is_ignored() {
        let mut listing = Listing::default();
        listing.add_set(
            "create mesos-overlay-4 hash:ip family inet hashsize 2048 maxelem 1048576 bucketsize \
             12 initval 0x1\nadd mesos-overlay-4 10.0.0.2\nadd mesos-overlay-4 10.0.0.3 timeout 5\n\
             add mesos-overlay-inner-6 fd01:b:0:0:2::/80\nadd mesos-overlay-inner-6 fd01:a::2\n\
             add mesos-overlay-masters 10.0.0.2,tcp:5050\n\
             add mesos-overlay-masters 10.0.0.3,6:5050\n\
             add mesos-overlay-masters 10.0.0.2,udp:64000\nadd mesos-overlay-4 eth0\n",
        );
        assert_eq!(
            listing.elements,
            elements(&[
                ("mesos-overlay-4", &["10.0.0.2"]),
                ("mesos-overlay-inner-6", &["fd01:a::2", "fd01:b:0:0:2::/80"]),
                ("mesos-overlay-masters", &["10.0.0.2,17:64000", "10.0.0.2,5050", "10.0.0.3,5050"]),
            ])
        );
        assert_eq!(
            listing.rest,
            "create mesos-overlay-4 hash:ip family inet\nadd mesos-overlay-4 10.0.0.3 timeout 5\n\
             add mesos-overlay-4 eth0\n"
        );
    }

    #[test]
    fn element_with_timeout_is_a_difference() {
        let mut listing = Listing::default();
        listing.add_table("\tset agents4 {\n\t\telements = { 10.0.0.2 timeout 5s }\n\t}\n");
        assert_eq!(listing.rest, "\tset agents4 {\n10.0.0.2 timeout 5s\n\t}\n");
    }
}
