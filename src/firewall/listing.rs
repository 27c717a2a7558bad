//! What the programs list of our rules, with the agents apart: those come and go one by one, and
//! the rest is compared as text.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::iptables;

/// The rules of ours as they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// All but the agents, as it is written.
    pub(super) rest: String,
    /// The elements of the sets of agents.
    pub(super) agents: BTreeSet<IpAddr>,
}

impl Listing {
    /// Our table, as `nft` lists it.
    pub(super) fn add_table(&mut self, text: &str) {
        let mut is_set_of_agents = false;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            match line.trim() {
                word if word.starts_with("set ") => {
                    is_set_of_agents = word.starts_with("set agents");
                }
                word if is_set_of_agents && word.starts_with("elements = {") => {
                    self.add_elements(word.trim_start_matches("elements = {"));
                    // They go on over as many lines as there is need for.
                    let mut is_over = word.ends_with('}');
                    while !is_over && let Some(more) = lines.next() {
                        self.add_elements(more);
                        is_over = more.ends_with('}');
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
                // Whatever it is, it is not of ours: so the rest differs.
                Err(_) => self.add_line(word),
            }
        }
    }

    /// Our chains, as `iptables-save` lists everybody's, and what makes ours necessary, which comes
    /// when Docker is started.
    pub(super) fn add_chains(&mut self, text: &str) {
        let is_ours = |line: &&str| {
            line.contains(iptables::FORWARD)
                || line.starts_with(":FORWARD ")
                || line.starts_with(":DOCKER-USER ")
        };
        for line in text.lines().filter(is_ours) {
            // Without the counters, which stand in brackets.
            self.add_line(line.split(" [").next().unwrap_or(line));
        }
    }

    /// Our set, as `ipset save` lists it.
    pub(super) fn add_set(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match *words.as_slice() {
                ["add", _, agent] if agent.parse::<IpAddr>().is_ok() => self.add_elements(agent),
                // Without the size, which grows with what is in it.
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
    fn agents_of_a_table_are_apart_from_the_rest() {
        let mut listing = Listing::default();
        // As nft 1.0.6 writes it.
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
    fn agents_of_an_ipset_are_apart_from_its_size() {
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
    fn what_is_no_address_counts_as_a_difference() {
        let mut listing = Listing::default();
        listing.add_table("\tset agents4 {\n\t\telements = { 10.0.0.2 timeout 5s }\n\t}\n");
        assert_eq!(listing.rest, "\tset agents4 {\ntimeout\n5s\n\t}\n");
    }
}
