//! Finds obstacles repeatedly at a low cost: the rules are evaluated only after a change.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use overlay_types::tunnel::{Desired, Fault};
use tokio::time::Instant;

use super::listing::{Listing, ListingError, SetListings};
use super::packet::{DevicesByAddress, Packet, packets};
use super::{Obstacle, RuleBackend, evaluate};
use crate::firewall::command::{SystemTools, Tools};

/// The foreign rules of this host.
#[derive(Debug)]
pub struct Inspector {
    tools: Box<dyn Tools>,
    sets: SetListings,
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
        Self { tools, sets: SetListings::default(), last: None, errors: Vec::new() }
    }

    /// Reads the rules, and returns the faults of the rules that certainly drop packets of the
    /// overlays.
    pub fn inspect(&mut self, desired: &Desired, now: Instant) -> Vec<Fault> {
        let packets = packets(desired, &devices_by_address(), false);
        let mut listing = Listing::read_with(&*self.tools, &mut self.sets, now);
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
        obstacles.extend(self.unverified(&listing));
        let found = faults(&obstacles, desired);
        self.last = Some(Inspection { listing: hash, packets, obstacles });
        found
    }

    /// Returns the known obstacles in the rules that could not be read now.
    fn unverified(&self, listing: &Listing) -> Vec<Obstacle> {
        let is_unread = |obstacle: &&Obstacle| {
            let is_iptables = obstacle.backend != RuleBackend::Nftables;
            listing.errors.iter().any(|error| error.is_iptables == is_iptables)
        };
        let known = self.last.iter().flat_map(|last| &last.obstacles);
        known.filter(is_unread).cloned().collect()
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

/// Returns the device of each address of this host. An address that several devices have is absent.
#[must_use]
pub fn devices_by_address() -> DevicesByAddress {
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

    use overlay_types::tunnel::{FaultScope, VxlanDevice};
    use parking_lot::Mutex;

    use super::*;
    use crate::firewall::command::FirewallError;

    /// A host with nft only. Counts the runs.
    #[derive(Debug, Clone, Default)]
    struct Host(Arc<Mutex<(Option<String>, usize)>>);

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
    }

    #[test]
    fn unchanged_rules_are_not_evaluated_again() {
        let host = Host::default();
        let mut inspector = Inspector::with(Box::new(host.clone()));
        let now = Instant::now();
        let mut inspect = |rules: Option<&str>| {
            *host.0.lock() = (rules.map(|rules| format!(r#"{{"nftables":[{rules}]}}"#)), 0);
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
            let desired = Desired { vxlan_devices: vec![local], ..Desired::default() };
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
}
