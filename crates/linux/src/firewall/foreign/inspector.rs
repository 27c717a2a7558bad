//! Finds obstacles repeatedly at a low cost: the rules are evaluated only after a change.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use overlay_types::tunnel::{Desired, Fault};
use tokio::time::Instant;

use super::listing::{KnownListings, Listing, ListingError, UnreadRules};
use super::model::TableFamily;
use super::packet::{DevicesByAddress, Packet, packets};
use super::{Obstacle, RuleBackend, evaluate};
use crate::dataplane;
use crate::firewall::command::{SystemTools, Tools};

/// The foreign rules of this host.
#[derive(Debug)]
pub struct Inspector {
    tools: Box<dyn Tools>,
    known: KnownListings,
    last: Option<Inspection>,
    /// The reported errors of the last inspection.
    errors: Vec<ListingError>,
}

#[derive(Debug)]
struct Inspection {
    /// Hash of the listing.
    listing: u64,
    packets: Vec<Packet>,
    obstacles: Vec<Obstacle>,
}

impl Default for Inspector {
    fn default() -> Self {
        Self::with(Box::<SystemTools>::default())
    }
}

impl Inspector {
    pub(super) fn with(tools: Box<dyn Tools>) -> Self {
        Self { tools, known: KnownListings::default(), last: None, errors: Vec::new() }
    }

    /// Reads the rules, and returns the faults of the rules that certainly drop packets of the
    /// overlays.
    pub fn inspect(&mut self, desired: &Desired, now: Instant) -> Vec<Fault> {
        let packets = packets(desired, &underlay_devices(desired), false);
        // A reported rule must not outlive its table.
        if self.last.as_ref().is_some_and(|last| !last.obstacles.is_empty()) {
            self.known.forget_ruleset();
        }
        let mut listing = Listing::read_with(&*self.tools, &mut self.known, now);
        self.log_errors(&listing);
        let mut hasher = DefaultHasher::new();
        listing.hash(&mut hasher);
        let hash = hasher.finish();
        let is_known = |last: &&Inspection| last.listing == hash && last.packets == packets;
        if let Some(last) = self.last.as_ref().filter(is_known) {
            return faults(&last.obstacles, desired);
        }
        let mut obstacles = evaluate(&listing, &packets);
        let is_native = |obstacle: &Obstacle| obstacle.backend == RuleBackend::Nftables;
        if obstacles.iter().any(is_native) {
            listing.read_text(&*self.tools);
            obstacles = evaluate(&listing, &packets);
        }
        let unverified = self.unverified(&listing, &obstacles);
        obstacles.retain(|new| !unverified.iter().any(|old| old.has_same_place(new)));
        obstacles.extend(unverified);
        let found = faults(&obstacles, desired);
        self.last = Some(Inspection { listing: hash, packets, obstacles });
        found
    }

    /// Returns the known obstacles in the rules that could not be read now, without those in
    /// `found`, the obstacles in the other rules.
    fn unverified(&self, listing: &Listing, found: &[Obstacle]) -> Vec<Obstacle> {
        if listing.unread.is_empty() {
            return Vec::new();
        }
        let tables = listing.tables();
        let known = self.last.iter().flat_map(|last| &last.obstacles);
        let is_unverified = |old: &&Obstacle| {
            let mut same = found.iter().filter(|new| new.has_same_place(old));
            let is_unread = |unread: &UnreadRules| match unread {
                UnreadRules::Nftables => old.backend == RuleBackend::Nftables,
                // Without its elements a set has an unknown content, but its rule is known.
                UnreadRules::Sets(family, table) => {
                    old.backend == RuleBackend::Nftables
                        && old.table.split_once(' ') == Some((family.as_str(), table.as_str()))
                        && tables.iter().any(|table| old.is_in(table))
                }
                UnreadRules::Iptables(family, backend) => {
                    old.backend != RuleBackend::Nftables
                        && old.family == TableFamily::of(*family)
                        && backend.is_none_or(|backend| backend == old.backend)
                }
            };
            listing.unread.iter().any(is_unread) && same.all(|new| !new.is_definite)
        };
        known.filter(is_unverified).cloned().collect()
    }

    fn log_errors(&mut self, listing: &Listing) {
        if self.errors != listing.errors {
            for error in &listing.errors {
                log::warn!(
                    "cannot look for foreign rules that drop packets of the overlays: {}",
                    error.reason
                );
            }
            self.errors.clone_from(&listing.errors);
        }
    }
}

fn faults(obstacles: &[Obstacle], desired: &Desired) -> Vec<Fault> {
    let definite = obstacles.iter().filter(|obstacle| obstacle.is_definite);
    definite.flat_map(|obstacle| obstacle.faults(desired)).collect()
}

/// Returns the devices of the underlay addresses. An address is absent unless the packets between it
/// and the peers certainly pass its device: it may be on a device without a link, and the host may
/// have several uplinks.
#[must_use]
pub fn underlay_devices(desired: &Desired) -> DevicesByAddress {
    let mut devices = devices_by_address();
    let uplinks = dataplane::uplinks_to_peers(desired).unwrap_or_default();
    devices.retain(|address, device| uplinks.get(address) == Some(device));
    devices
}

/// Returns the device of each address of this host. An address that several devices have is absent.
fn devices_by_address() -> DevicesByAddress {
    let mut devices = DevicesByAddress::new();
    let mut shared = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let v6 = address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
        if let Some(ip) = v4.or(v6)
            && devices.insert(ip, interface.interface_name).is_some()
        {
            shared.push(ip);
        }
    }
    for ip in shared {
        devices.remove(&ip);
    }
    devices
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use overlay_types::tunnel::{FaultScope, VxlanDevice};
    use parking_lot::Mutex;

    use super::*;
    use crate::firewall::command::FirewallError;

    /// A host with nft only, whose rules have this generation. Counts the runs.
    #[derive(Debug, Clone, Default)]
    struct Host(Arc<Mutex<(Option<String>, usize)>>, Arc<Mutex<Option<u32>>>);

    impl Tools for Host {
        fn has(&self, program: &str) -> bool {
            program == "nft"
        }

        fn run(
            &self,
            _: &'static str,
            arguments: &[&str],
            _: &str,
        ) -> Result<String, FirewallError> {
            let (rules, runs) = &mut *self.0.lock();
            *runs += 1;
            match rules {
                Some(rules) if arguments.contains(&"-j") => Ok(rules.clone()),
                Some(_) => Ok(String::new()),
                None => Err(FirewallError::TimedOut { command: "nft".to_owned() }),
            }
        }

        fn generation(&self) -> Option<u32> {
            *self.1.lock()
        }
    }

    fn one_device() -> Desired {
        let local = VxlanDevice {
            device: "vtep1024".parse().unwrap(),
            vni: overlay_types::addr::Vni::DEFAULT,
            port: 64_000,
            mac: "70:b3:d5:80:00:01".parse().unwrap(),
            underlay: "192.0.2.1".parse().unwrap(),
            mtu: None,
            containers_mtu: None,
            ip: None,
            ip6: None,
        };
        Desired { vxlan_devices: vec![local], ..Desired::default() }
    }

    /// Answers of programs by their command line. The others fail.
    #[derive(Debug, Clone, Default)]
    struct Answers(Arc<Mutex<Vec<(&'static str, String)>>>);

    impl Tools for Answers {
        fn has(&self, _: &str) -> bool {
            true
        }

        fn run(
            &self,
            program: &'static str,
            arguments: &[&str],
            _: &str,
        ) -> Result<String, FirewallError> {
            let command = format!("{program} {}", arguments.join(" "));
            let answers = self.0.lock();
            let answer = answers.iter().find(|(start, _)| command.starts_with(start));
            answer.map(|(_, answer)| answer.clone()).ok_or(FirewallError::TimedOut { command })
        }
    }

    /// Returns the places of the reported rules after each list of answers.
    fn places(steps: Vec<Vec<(&'static str, String)>>) -> Vec<Vec<String>> {
        let answers = Answers::default();
        let mut inspector = Inspector::with(Box::new(answers.clone()));
        let (desired, mut now) = (one_device(), Instant::now());
        let step = |step| {
            *answers.0.lock() = step;
            now += Duration::from_secs(3600);
            inspector.inspect(&desired, now);
            let obstacles = inspector.last.iter().flat_map(|last| &last.obstacles);
            obstacles.map(|found| format!("{} {}", found.table, found.chain)).collect()
        };
        steps.into_iter().map(step).collect()
    }

    fn nft(objects: &str) -> String {
        format!(
            r#"{{"nftables":[{{"table":{{"family":"ip","name":"filter"}}}},
                {{"table":{{"family":"inet","name":"a"}}}},
                {{"table":{{"family":"inet","name":"b"}}}}{objects}]}}"#
        )
    }

    #[test]
    fn failed_listing_keeps_only_obstacles_that_it_may_contain() {
        let saved = |policy: &str| {
            format!(
                "# Generated by iptables-save v1.8.9 (nf_tables)\n*filter\n:INPUT {policy}\nCOMMIT"
            )
        };
        let with = |rules: &str, iptables: &str| {
            vec![
                ("nft -j -s -t", nft(rules)),
                ("nft -a", String::new()),
                ("iptables-nft-save", saved(iptables)),
            ]
        };
        // The program of IPv6 fails each time.
        let found = places(vec![
            with("", "DROP"),
            with("", "DROP"),
            with("", "ACCEPT"),
            vec![("nft -j -s -t", nft("")), ("nft -a", String::new())],
        ]);
        let input = || vec!["filter INPUT".to_owned()];
        assert_eq!(found, [input(), input(), vec![], vec![]]);
        // All programs of iptables fail, with different rules of nftables.
        let chain = |name: &str| {
            format!(
                r#",{{"chain":{{"family":"inet","table":"a","name":"{name}","type":"filter",
                    "hook":"output","prio":0,"policy":"accept"}}}}"#
            )
        };
        let without = |rules: &str| vec![("nft -j -s -t", nft(rules)), ("nft -a", String::new())];
        let found = places(vec![
            with("", "DROP"),
            without(&chain("x")),
            without(&chain("y")),
            without(&chain("z")),
        ]);
        assert_eq!(found, [input(), input(), input(), input()], "no duplicates");
    }

    #[test]
    fn failed_listing_of_sets_keeps_obstacles_of_existing_rules() {
        let objects = |(handle, verdict): (u8, &str)| {
            let mut objects = String::new();
            for table in ["a", "b"] {
                objects += &format!(
                    r#",{{"set":{{"family":"inet","table":"{table}","name":"s","type":"inet_service"}}}},
                    {{"chain":{{"family":"inet","table":"{table}","name":"in","type":"filter",
                        "hook":"input","prio":0,"policy":"accept"}}}},
                    {{"rule":{{"family":"inet","table":"{table}","chain":"in","handle":{handle},"expr":[
                        {{"match":{{"op":"==","left":{{"payload":{{"protocol":"udp","field":"dport"}}}},
                            "right":"@s"}}}},{{"{verdict}":null}}]}}}}"#
                );
            }
            objects
        };
        let set = |table: &str, elements: &str| {
            format!(
                r#"{{"nftables":[{{"set":{{"family":"inet","table":"{table}","name":"s",
                    "type":"inet_service","elem":[{elements}]}}}}]}}"#
            )
        };
        let with = |verdict: (u8, &str), a: Option<&str>, b: &str| {
            let mut answers = vec![
                ("nft -j -s -t", nft(&objects(verdict))),
                ("nft -a", String::new()),
                ("nft -j -s list table inet b", set("b", b)),
                ("iptables", String::new()),
                ("ip6tables", String::new()),
            ];
            answers.extend(a.map(|a| ("nft -j -s list table inet a", set("a", a))));
            answers
        };
        let found = places(vec![
            with((3, "drop"), Some("64000"), "64000"),
            with((3, "drop"), None, "53"),
            with((4, "accept"), None, "53"),
        ]);
        let [a, b] = ["inet a in", "inet b in"].map(str::to_owned);
        assert_eq!(found[0], [a.clone(), b]);
        assert_eq!(found[1], [a], "the set of table a is unknown, that of b is not");
        assert!(found[2].is_empty(), "the rule is gone");
    }

    #[test]
    fn listing_that_is_too_large_is_not_evaluated() {
        let large = nft(&format!(r#",{{"x":"{}"}}"#, "x".repeat(9 << 20)));
        let answers = Answers::default();
        *answers.0.lock() = vec![("nft", large), ("ip", String::new())];
        let mut inspector = Inspector::with(Box::new(answers));
        assert!(inspector.inspect(&one_device(), Instant::now()).is_empty());
        let reasons: Vec<_> = inspector.errors.iter().map(|error| error.reason.as_str()).collect();
        assert_eq!(
            reasons,
            ["the listing of nftables has 9 MiB, of which the agent evaluates 8: use sets with \
              fewer elements, or fewer rules"]
        );
    }

    #[test]
    fn elements_of_managed_sets_are_no_change() {
        let own = |elements: &str| {
            let set = format!(
                r#",{{"set":{{"family":"inet","table":"mesos_overlay","name":"agents4",
                    "elem":[{elements}]}}}}"#
            );
            vec![("nft -j -s -t", nft(&set)), ("ip", String::new())]
        };
        let answers = Answers::default();
        let mut inspector = Inspector::with(Box::new(answers.clone()));
        let mut hash = |elements: &str| {
            *answers.0.lock() = own(elements);
            inspector.inspect(&one_device(), Instant::now());
            inspector.last.as_ref().map(|last| last.listing)
        };
        assert_eq!(hash(r#""10.0.0.2""#), hash(r#""10.0.0.2","10.0.0.3""#));
    }

    #[test]
    fn unchanged_rules_are_not_evaluated_again() {
        let host = Host::default();
        let mut inspector = Inspector::with(Box::new(host.clone()));
        let now = Instant::now();
        let mut inspect = |rules: Option<&str>| {
            *host.0.lock() = (rules.map(|rules| format!(r#"{{"nftables":[{rules}]}}"#)), 0);
            let desired = one_device();
            let faults = inspector.inspect(&desired, now);
            let scopes: Vec<_> = faults.into_iter().map(|fault| fault.scope).collect();
            (scopes, host.0.lock().1)
        };
        let drops = r#"{"table":{"family":"inet","name":"site"}},
            {"chain":{"family":"inet","table":"site","name":"in","type":"filter","hook":"input",
                "prio":0,"policy":"drop"}}"#;
        let device = vec![FaultScope::Device("vtep1024".parse().unwrap())];
        assert_eq!(inspect(Some("")), (vec![], 1));
        // The text of the rules is read for a new obstacle only.
        assert_eq!(inspect(Some(drops)), (device.clone(), 2));
        assert_eq!(inspect(Some(drops)), (device.clone(), 1));
        // Rules that cannot be read are not gone.
        assert_eq!(inspect(None), (device.clone(), 1));
        assert_eq!(inspect(None), (device, 1));
        assert_eq!(inspect(Some("")), (vec![], 1));
        // The elements of a set, and of a large set, which is kept for two seconds.
        let set = |elements: usize| {
            let elements = vec!["1"; elements].join(",");
            format!(
                r#"{{"set":{{"family":"inet","table":"site","name":"a","elem":[{elements}]}}}}"#
            )
        };
        assert_eq!(inspect(Some(&set(9))), (vec![], 2));
        assert_eq!(inspect(Some(&set(9))), (vec![], 2));
        assert_eq!(inspect(Some(&set(40_000))), (vec![], 2));
        assert_eq!(inspect(Some(&set(40_000))), (vec![], 1));
    }

    #[test]
    fn rules_of_a_known_generation_are_not_listed_again() {
        let host = Host::default();
        let mut inspector = Inspector::with(Box::new(host.clone()));
        let mut now = Instant::now();
        let mut runs = |generation| {
            *host.1.lock() = generation;
            *host.0.lock() = (Some(r#"{"nftables":[]}"#.to_owned()), 0);
            now += Duration::from_secs(30);
            inspector.inspect(&one_device(), now);
            host.0.lock().1
        };
        assert_eq!([Some(7), Some(7), Some(8), Some(8)].map(&mut runs), [1, 0, 1, 0]);
        assert_eq!([None, None, Some(8)].map(&mut runs), [1, 1, 1], "the generation was unknown");
        // The kernel may have changed the rules without a transaction.
        assert_eq!([Some(8); 4].map(runs), [0, 0, 0, 1]);
    }
}
