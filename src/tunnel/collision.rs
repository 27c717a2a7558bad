//! What the host has already where an overlay is to be. An overlay over the network that the host
//! lives in, or over a route that leads somewhere, would cut off what is there; so it is found out
//! before anything is programmed, and the operator is told by which route.

use std::fmt;
use std::net::IpAddr;

use super::Desired;
use crate::addr::{DeviceName, InterfaceAddress, OverlayName, Subnet};

/// A route of the host's main table that leads somewhere, or is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// Where to.
    pub subnet: Subnet,
    /// The device; `None` if it cannot be known.
    pub device: Option<String>,
    /// The next hop; `None` if the subnet is connected to the device.
    pub gateway: Option<IpAddr>,
    /// Whether it is one that our dataplane made.
    pub is_ours: bool,
}

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub address: InterfaceAddress,
    /// The device that has it.
    pub device: String,
}

/// Whose addresses are there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimant {
    /// An overlay's.
    Overlay(OverlayName),
    /// Those of the tunnel ends, and so of every overlay on this device.
    Vteps(DeviceName),
}

/// What is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A network that the host is connected to, or a gateway's.
    Route(HostRoute),
    /// An address of the host.
    Address(HostAddress),
}

/// A subnet that cannot be ours, since the host has something there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// Who would have it.
    pub claimant: Claimant,
    /// What of it.
    pub subnet: Subnet,
    /// What the host has there.
    pub obstacle: Obstacle,
    /// Whether the kernel has what is claimed already: so it was in use before, and what collides
    /// came later.
    pub is_late: bool,
}

impl Collision {
    /// Whether an overlay on this device cannot be as long as this is so.
    #[must_use]
    pub fn concerns(&self, overlay: &OverlayName, device: &DeviceName) -> bool {
        match &self.claimant {
            Claimant::Overlay(its) => its == overlay,
            Claimant::Vteps(its) => its == device,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(HostRoute { subnet, device, gateway, .. }) => {
                write!(f, "route '{subnet}")?;
                gateway.iter().try_for_each(|gateway| write!(f, " via {gateway}"))?;
                device.iter().try_for_each(|device| write!(f, " dev {device}"))?;
                f.write_str("'")
            }
            Self::Address(HostAddress { address, device }) => {
                write!(f, "address {address} on device {device}")
            }
        }
    }
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subnet, obstacle, .. } = self;
        let (what, remedy) = match &self.claimant {
            Claimant::Overlay(name) => {
                (format!("subnet {subnet} of overlay {name}"), "give the overlay another subnet")
            }
            Claimant::Vteps(_) => {
                (format!("VTEP subnet {subnet}"), "set another vtep_subnet or vtep_subnet6")
            }
        };
        let other = match obstacle {
            Obstacle::Route(HostRoute { subnet, gateway: Some(_), .. }) => {
                format!("remove the route with 'ip route delete {subnet}'")
            }
            Obstacle::Route(_) | Obstacle::Address(_) => {
                "give this host another address".to_owned()
            }
        };
        write!(f, "{what} collides with the host's {obstacle}: {remedy} at the master, or {other}")
    }
}

/// What of the wanted overlays cannot be, since the host has something there.
///
/// What counts: an address of the host, or a network that it is connected to, that overlaps; a
/// route by a gateway whose subnet lies in one of ours or is the same. A wider one by a gateway
/// does not: ours are more exact, and that is what they are for. Nor do the default route, what is
/// on our devices, and the overlay's own bridges.
#[must_use]
pub fn collisions(
    desired: &Desired,
    routes: &[HostRoute],
    addresses: &[HostAddress],
) -> Vec<Collision> {
    let mut found = Vec::new();
    for space in &desired.spaces {
        let bridges = [space.overlay.mesos_bridge(), space.overlay.docker_bridge()];
        for subnet in &space.whole {
            let claimant = Claimant::Overlay(space.overlay.clone());
            let claim = Claim { desired, claimant, subnet: *subnet, bridges: &bridges };
            claim.against(routes, addresses, &mut found);
        }
    }
    for local in &desired.locals {
        let subnets = local.addresses();
        let subnets = subnets.filter_map(|own| Subnet::containing(own.address(), own.prefix()));
        for subnet in subnets {
            let claimant = Claimant::Vteps(local.device.clone());
            let claim = Claim { desired, claimant, subnet, bridges: &[] };
            claim.against(routes, addresses, &mut found);
        }
    }
    found
}

struct Claim<'a> {
    desired: &'a Desired,
    claimant: Claimant,
    subnet: Subnet,
    bridges: &'a [DeviceName],
}

impl Claim<'_> {
    fn against(&self, routes: &[HostRoute], addresses: &[HostAddress], found: &mut Vec<Collision>) {
        let is_late = self.is_programmed(routes, addresses);
        let collision = |obstacle| {
            let claimant = self.claimant.clone();
            Collision { claimant, subnet: self.subnet, obstacle, is_late }
        };
        let routes: Vec<_> = routes.iter().filter(|route| self.is_in_the_way(route)).collect();
        for address in addresses {
            // The network that an address brings along says it better.
            let is_said = routes.iter().any(|route| {
                route.device.as_ref() == Some(&address.device)
                    && route.subnet.contains(address.address.address())
            });
            let is_inside = self.subnet.contains(address.address.address());
            if is_inside && !is_said && !self.is_own(&address.device) {
                found.push(collision(Obstacle::Address(address.clone())));
            }
        }
        found.extend(routes.into_iter().map(|route| collision(Obstacle::Route(route.clone()))));
    }

    fn is_in_the_way(&self, route: &HostRoute) -> bool {
        // Some VPNs write the default route as its two halves.
        let is_default = route.subnet.prefix() <= 1;
        let is_own = route.device.as_ref().is_some_and(|device| self.is_own(device));
        let is_there = match route.gateway {
            Some(_) => self.subnet.covers(&route.subnet),
            None => self.subnet.overlaps(&route.subnet),
        };
        is_there && !is_default && !is_own && !route.is_ours
    }

    /// Whether an agent has programmed this very claim, before it was started anew: the route that
    /// keeps the overlay's unallocated addresses inside is there, or this VTEP's address. A part of
    /// it is not enough: there was no judgement on the rest.
    fn is_programmed(&self, routes: &[HostRoute], addresses: &[HostAddress]) -> bool {
        match &self.claimant {
            Claimant::Overlay(_) => routes.iter().any(|route| {
                route.is_ours && route.gateway.is_none() && route.subnet == self.subnet
            }),
            Claimant::Vteps(device) => {
                let local = self.desired.locals.iter().find(|local| local.device == *device);
                let is_there = |own: InterfaceAddress| {
                    addresses.iter().any(|it| it.device == device.as_str() && it.address == own)
                };
                let of_subnet = |own: &InterfaceAddress| self.subnet.contains(own.address());
                local.is_some_and(|it| it.addresses().filter(of_subnet).any(is_there))
            }
        }
    }

    fn is_own(&self, device: &str) -> bool {
        let locals = self.desired.locals.iter().map(|local| &local.device);
        locals.chain(self.bridges).any(|own| own.as_str() == device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::{Local, PORT_DEFAULT, Space};

    fn desired() -> Desired {
        let device = DeviceName::vtep(crate::addr::Vni::DEFAULT);
        let local = Local {
            device: device.clone(),
            vni: crate::addr::Vni::DEFAULT,
            port: PORT_DEFAULT,
            mac: "70:B3:D5:80:00:01".parse().unwrap(),
            underlay: "10.0.0.1".parse().unwrap(),
            mtu: None,
            containers_mtu: None,
            ip: "44.128.0.1/16".parse().ok(),
            ip6: None,
        };
        let space = |name: &str, whole: &str| Space {
            overlay: name.parse().unwrap(),
            device: device.clone(),
            whole: vec![whole.parse().unwrap()],
            own: Vec::new(),
        };
        let spaces = vec![space("one", "192.168.0.0/17"), space("two", "fd01:b::/64")];
        Desired { locals: vec![local], spaces, ..Desired::default() }
    }

    /// As `ip route show` writes it.
    fn route(text: &str) -> HostRoute {
        let words: Vec<&str> = text.split(' ').collect();
        let after = |name| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
        HostRoute {
            subnet: words[0].parse().unwrap(),
            device: after("dev").map(str::to_owned),
            gateway: after("via").map(|gateway| gateway.parse().unwrap()),
            is_ours: text.ends_with(" proto 109"),
        }
    }

    fn found(routes: &[&str], addresses: &[&str]) -> Vec<String> {
        let routes: Vec<_> = routes.iter().map(|text| route(text)).collect();
        let address = |text: &&str| {
            let (address, device) = text.split_once(' ').unwrap();
            HostAddress { address: address.parse().unwrap(), device: device.to_owned() }
        };
        let addresses: Vec<_> = addresses.iter().map(address).collect();
        let found = collisions(&desired(), &routes, &addresses);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_a_host_with_overlays_has_is_no_collision() {
        let routes = [
            "0.0.0.0/0 via 10.0.0.254 dev eth0",
            "0.0.0.0/1 dev tun0",
            "128.0.0.0/1 dev tun0",
            "10.0.0.0/24 dev eth0",
            "192.168.0.0/16 via 10.0.0.254 dev eth0",
            "192.168.0.0/17 proto 109",
            "192.168.2.0/24 via 44.128.0.2 dev vtep1024",
            "192.168.1.0/25 dev m-one",
            "192.168.1.128/25 dev d-one",
            "44.128.0.0/16 dev vtep1024",
            "44.0.0.0/8 via 10.0.0.254 dev eth0",
            "fe80::/64 dev eth0",
            "::/0 via fe80::1 dev eth0",
        ];
        let addresses = [
            "10.0.0.1/24 eth0",
            "192.168.1.1/25 m-one",
            "44.128.0.1/16 vtep1024",
            "127.0.0.1/8 lo",
        ];
        assert_eq!(found(&routes, &addresses), [""; 0]);
    }

    #[test]
    fn each_obstacle_is_named_with_the_remedy() {
        let overlay = "subnet 192.168.0.0/17 of overlay one collides with the host's";
        let change = "give the overlay another subnet at the master, or";
        let cases = [
            // The network of the host itself, said once.
            (
                &["192.168.5.0/24 dev eth0"][..],
                &["192.168.5.9/24 eth0"][..],
                format!(
                    "{overlay} route '192.168.5.0/24 dev eth0': {change} give this host another \
                     address"
                ),
            ),
            (
                &["192.0.0.0/8 dev wg0"],
                &[],
                format!(
                    "{overlay} route '192.0.0.0/8 dev wg0': {change} give this host another address"
                ),
            ),
            (
                &["192.168.0.0/17 via 10.0.0.254 dev eth0"],
                &[],
                format!(
                    "{overlay} route '192.168.0.0/17 via 10.0.0.254 dev eth0': {change} remove the \
                     route with 'ip route delete 192.168.0.0/17'"
                ),
            ),
            (
                &["192.168.7.0/24 via 10.0.0.254"],
                &[],
                format!(
                    "{overlay} route '192.168.7.0/24 via 10.0.0.254': {change} remove the route \
                     with 'ip route delete 192.168.7.0/24'"
                ),
            ),
            // The bridge of another overlay.
            (
                &["192.168.1.0/25 dev m-two"],
                &[],
                format!(
                    "{overlay} route '192.168.1.0/25 dev m-two': {change} give this host another \
                     address"
                ),
            ),
            (
                &[],
                &["192.168.5.9/32 lo"],
                format!(
                    "{overlay} address 192.168.5.9/32 on device lo: {change} give this host another \
                     address"
                ),
            ),
            (
                &["44.128.3.0/24 via 10.0.0.254 dev eth0"],
                &[],
                "VTEP subnet 44.128.0.0/16 collides with the host's route '44.128.3.0/24 via \
                 10.0.0.254 dev eth0': set another vtep_subnet or vtep_subnet6 at the master, or \
                 remove the route with 'ip route delete 44.128.3.0/24'"
                    .to_owned(),
            ),
            (
                &["fd01:b::/80 dev eth1"],
                &[],
                "subnet fd01:b::/64 of overlay two collides with the host's route 'fd01:b::/80 dev \
                 eth1': give the overlay another subnet at the master, or give this host another \
                 address"
                    .to_owned(),
            ),
        ];
        for (routes, addresses, expected) in cases {
            assert_eq!(found(routes, addresses), [expected]);
        }
    }

    #[test]
    fn what_is_programmed_was_there_first() {
        let late = |routes: &[&str], addresses: &[(&str, &str)]| {
            let routes: Vec<_> = routes.iter().map(|text| route(text)).collect();
            let addresses = addresses.iter().map(|(address, device)| HostAddress {
                address: address.parse().unwrap(),
                device: (*device).to_owned(),
            });
            let found = collisions(&desired(), &routes, &addresses.collect::<Vec<_>>());
            found.iter().map(|collision| collision.is_late).collect::<Vec<_>>()
        };
        let obstacle = "192.168.7.0/24 via 10.0.0.254";
        assert_eq!(late(&[obstacle], &[]), [false]);
        assert_eq!(late(&[obstacle, "192.168.0.0/17 proto 109"], &[]), [true]);
        for other in [
            "192.168.0.0/17 dev eth1",
            "192.168.0.0/18 proto 109",
            "192.168.0.0/16 proto 109",
            "192.168.0.0/17 via 44.128.0.2 dev vtep1024 proto 109",
            "fd01:b::/64 proto 109",
        ] {
            assert!(!late(&[obstacle, other], &[])[0], "{other}");
        }
        let obstacle = "44.128.7.0/24 via 10.0.0.254";
        assert_eq!(late(&[obstacle, "192.168.0.0/17 proto 109"], &[]), [false]);
        assert_eq!(late(&[obstacle], &[("44.128.0.1/16", "vtep1024")]), [true]);
        assert_eq!(late(&[obstacle], &[("44.128.0.2/16", "vtep1024")]), [false]);
    }

    #[test]
    fn a_collision_concerns_its_overlay_and_one_of_the_vteps_all_on_the_device() {
        let [one, two] = ["one", "two"].map(|name| name.parse::<OverlayName>().unwrap());
        let vtep = DeviceName::vtep(crate::addr::Vni::DEFAULT);
        let found = collisions(&desired(), &[route("192.168.7.0/24 via 10.0.0.254")], &[]);
        assert!(found[0].concerns(&one, &vtep) && !found[0].concerns(&two, &vtep));
        let found = collisions(&desired(), &[route("44.128.7.0/24 dev eth1")], &[]);
        assert!(found[0].concerns(&one, &vtep) && found[0].concerns(&two, &vtep));
        assert!(!found[0].concerns(&one, &"vtep7".parse().unwrap()));
    }
}
