//! Parses the listings of our rules. The addresses of agents are collected separately, since they
//! change one by one. All other rules are compared as text.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::iptables;

/// The observed rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// All rules without the agents, as listed.
    pub(super) rest: String,
    /// The elements of the sets of agents.
    pub(super) agents: BTreeSet<IpAddr>,
}

impl Listing {
    /// Adds our table, as `nft` lists it.
    pub(super) fn add_table(&mut self, text: &str) {
        let mut is_agents_set = false;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            match line.trim() {
                line if line.starts_with("set ") => {
                    is_agents_set = line.starts_with("set agents");
                }
                line if is_agents_set && line.starts_with("elements = {") => {
                    self.add_elements(line.trim_start_matches("elements = {"));
                    // nft breaks long lists into several lines.
                    let mut is_complete = line.ends_with('}');
                    while !is_complete && let Some(more) = lines.next() {
                        self.add_elements(more);
                        is_complete = more.ends_with('}');
                    }
                    continue;
                }
                _ => {}
            }
            self.add_line(line);
        }
    }

    fn add_elements(&mut self, text: &str) {
        let words = text.split([',', ' ', '\t', '}']).filter(|word| !word.is_empty());
        for word in words {
            match word.parse() {
                Ok(agent) => _ = self.agents.insert(agent),
                // Our rules have only addresses here. Any other word in `rest` counts as a
                // difference.
                Err(_) => self.add_line(word),
            }
        }
    }

    /// Adds our chains from the output of `iptables-save`. Also adds the policy of FORWARD and the
    /// chain DOCKER-USER: Docker sets them when it starts, and then our chains are needed.
    pub(super) fn add_chains(&mut self, text: &str) {
        let is_relevant = |line: &&str| {
            line.contains(iptables::FORWARD)
                || line.starts_with(":FORWARD ")
                || line.starts_with(":DOCKER-USER ")
        };
        for line in text.lines().filter(is_relevant) {
            // Without the packet counters in brackets.
            self.add_line(line.split(" [").next().unwrap_or(line));
        }
    }

    /// Adds our ipset, as `ipset save` lists it.
    pub(super) fn add_set(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match *words.as_slice() {
                ["add", _, agent] if agent.parse::<IpAddr>().is_ok() => self.add_elements(agent),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn agents(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn table_agents_are_not_in_rest() {
        let mut listing = Listing::default();
        // The output of nft 1.0.6.
        listing.add_table(
            "table inet mesos_overlay {\n\tset spaces4 {\n\t\telements = { 192.168.0.0/16 }\n\t}\n\n\
             \tset agents4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.2, 10.0.0.3,\n\
             \t\t\t     10.0.0.4 }\n\t}\n\n\tset agents6 {\n\t\ttype ipv6_addr\n\
             \t\telements = { fd00::2 }\n\t}\n}\n",
        );
        assert_eq!(listing.agents, agents(&["10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::2"]));
        assert_eq!(
            listing.rest,
            "table inet mesos_overlay {\n\tset spaces4 {\n\t\telements = { 192.168.0.0/16 }\n\t}\n\n\
             \tset agents4 {\n\t\ttype ipv4_addr\n\t}\n\n\
             \tset agents6 {\n\t\ttype ipv6_addr\n\t}\n}\n"
        );
    }

    #[test]
    fn ipset_size_is_ignored() {
        let mut listing = Listing::default();
        listing.add_set(
            "create mesos-overlay-4 hash:ip family inet hashsize 2048 maxelem 1048576 bucketsize \
             12 initval 0x1\nadd mesos-overlay-4 10.0.0.2\nadd mesos-overlay-4 10.0.0.3 timeout 5\n",
        );
        assert_eq!(listing.agents, agents(&["10.0.0.2"]));
        assert_eq!(
            listing.rest,
            "create mesos-overlay-4 hash:ip family inet\nadd mesos-overlay-4 10.0.0.3 timeout 5\n"
        );
    }

    #[test]
    fn element_that_is_no_address_is_a_difference() {
        let mut listing = Listing::default();
        listing.add_table("\tset agents4 {\n\t\telements = { 10.0.0.2 timeout 5s }\n\t}\n");
        assert_eq!(listing.rest, "\tset agents4 {\ntimeout\n5s\n\t}\n");
    }
}
