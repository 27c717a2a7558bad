//! Collisions of overlay subnets with routes and addresses of the host. Such an overlay would cut
//! off the hosts behind the route. Collisions are detected before anything is programmed, and the
//! operator gets the route in the message.

use std::fmt;
use std::net::IpAddr;

use super::Desired;
use crate::addr::{DeviceName, InterfaceAddress, OverlayName, Subnet};

/// A unicast or managed route of the host's main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// Destination.
    pub subnet: Subnet,
    /// Device; `None` if it is unknown.
    pub device: Option<String>,
    /// Next hop; `None` if the subnet is directly connected.
    pub gateway: Option<IpAddr>,
    /// Whether the dataplane created the route.
    pub is_ours: bool,
}

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub address: InterfaceAddress,
    /// Device of the address.
    pub device: String,
}

/// The owner of a subnet that collides with the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubnetOwner {
    /// An overlay.
    Overlay(OverlayName),
    /// The VTEPs, and so every overlay on this device.
    Vteps(DeviceName),
}

/// The object of the host that a subnet collides with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostObject {
    /// A route to a connected network or through a gateway.
    Route(HostRoute),
    /// An address of the host.
    Address(HostAddress),
}

/// A subnet that collides with an object of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// Owner of the subnet.
    pub owner: SubnetOwner,
    /// The colliding subnet.
    pub subnet: Subnet,
    /// The object of the host.
    pub object: HostObject,
    /// Whether the kernel already has the subnet. Then the overlay was in use first, and the object
    /// of the host was added later.
    pub is_programmed: bool,
}

impl Collision {
    /// Whether the collision prevents an overlay on this device.
    #[must_use]
    pub fn concerns(&self, overlay: &OverlayName, device: &DeviceName) -> bool {
        match &self.owner {
            SubnetOwner::Overlay(owner) => owner == overlay,
            SubnetOwner::Vteps(owner) => owner == device,
        }
    }
}

impl fmt::Display for HostObject {
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
        let Self { subnet, object, .. } = self;
        let (subject, remedy) = match &self.owner {
            SubnetOwner::Overlay(name) => {
                (format!("subnet {subnet} of overlay {name}"), "give the overlay another subnet")
            }
            SubnetOwner::Vteps(_) => {
                (format!("VTEP subnet {subnet}"), "set another vtep_subnet or vtep_subnet6")
            }
        };
        // Without the route, this host could not reach the network behind the gateway, perhaps
        // that of the operator.
        let alternative = match object {
            HostObject::Route(HostRoute { gateway: Some(_), .. }) => {
                "give the network behind the gateway another subnet"
            }
            HostObject::Route(_) | HostObject::Address(_) => "give this host another address",
        };
        write!(
            f,
            "{subject} collides with the host's {object}: {remedy} at the master, or {alternative}"
        )
    }
}

/// Returns the collisions of the desired subnets with routes and addresses of the host.
///
/// An address or a connected network collides if it overlaps. A route through a gateway collides if
/// its destination is inside the desired subnet. A less specific route through a gateway does not
/// collide, because the overlay's route takes precedence. Default routes, managed devices and the
/// overlay's own bridges do not collide.
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
            let owner = SubnetOwner::Overlay(space.overlay.clone());
            let checked = CheckedSubnet { desired, owner, subnet: *subnet, bridges: &bridges };
            checked.add_collisions(routes, addresses, &mut found);
        }
    }
    for local in &desired.vxlan_devices {
        let subnets = local.addresses();
        let subnets = subnets.filter_map(|own| Subnet::containing(own.address(), own.prefix()));
        for subnet in subnets {
            let owner = SubnetOwner::Vteps(local.device.clone());
            let checked = CheckedSubnet { desired, owner, subnet, bridges: &[] };
            checked.add_collisions(routes, addresses, &mut found);
        }
    }
    found
}

/// A desired subnet that is checked for collisions.
struct CheckedSubnet<'a> {
    /// The desired state that contains the subnet.
    desired: &'a Desired,
    owner: SubnetOwner,
    subnet: Subnet,
    /// The bridges of the overlay. They do not collide with its subnet.
    bridges: &'a [DeviceName],
}

impl CheckedSubnet<'_> {
    fn add_collisions(
        &self,
        routes: &[HostRoute],
        addresses: &[HostAddress],
        found: &mut Vec<Collision>,
    ) {
        let is_programmed = self.is_programmed(routes, addresses);
        let collision = |object| {
            let owner = self.owner.clone();
            Collision { owner, subnet: self.subnet, object, is_programmed }
        };
        let routes: Vec<_> = routes.iter().filter(|route| self.collides_with(route)).collect();
        for address in addresses {
            // The connected route of an address already describes this collision.
            let has_route = routes.iter().any(|route| {
                route.device.as_ref() == Some(&address.device)
                    && route.subnet.contains(address.address.address())
            });
            let is_inside = self.subnet.contains(address.address.address());
            if is_inside && !has_route && !self.is_own_device(&address.device) {
                found.push(collision(HostObject::Address(address.clone())));
            }
        }
        found.extend(routes.into_iter().map(|route| collision(HostObject::Route(route.clone()))));
    }

    fn collides_with(&self, route: &HostRoute) -> bool {
        // Some VPNs split the default route into two halves.
        let is_default = route.subnet.prefix() <= 1;
        let is_own = route.device.as_ref().is_some_and(|device| self.is_own_device(device));
        let is_overlapping = match route.gateway {
            Some(_) => self.subnet.covers(&route.subnet),
            None => self.subnet.overlaps(&route.subnet),
        };
        is_overlapping && !is_default && !is_own && !route.is_ours
    }

    /// Whether a previous run of the agent programmed this subnet: the kernel has the route of the
    /// overlay's unallocated addresses, or the address of the VTEP. A part of the subnet does not
    /// count, because the rest was never checked.
    fn is_programmed(&self, routes: &[HostRoute], addresses: &[HostAddress]) -> bool {
        match &self.owner {
            SubnetOwner::Overlay(_) => routes.iter().any(|route| {
                route.is_ours && route.gateway.is_none() && route.subnet == self.subnet
            }),
            SubnetOwner::Vteps(device) => {
                let local = self.desired.vxlan_devices.iter().find(|local| local.device == *device);
                let is_present = |own: InterfaceAddress| {
                    addresses
                        .iter()
                        .any(|address| address.device == device.as_str() && address.address == own)
                };
                let of_subnet = |own: &InterfaceAddress| self.subnet.contains(own.address());
                local.is_some_and(|local| local.addresses().filter(of_subnet).any(is_present))
            }
        }
    }

    fn is_own_device(&self, device: &str) -> bool {
        let vxlan_devices = self.desired.vxlan_devices.iter().map(|local| &local.device);
        vxlan_devices.chain(self.bridges).any(|own| own.as_str() == device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::{OverlaySubnets, PORT_DEFAULT, VxlanDevice};

    fn desired() -> Desired {
        let device = DeviceName::vtep(crate::addr::Vni::DEFAULT);
        let local = VxlanDevice {
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
        let space = |name: &str, whole: &str| OverlaySubnets {
            overlay: name.parse().unwrap(),
            device: device.clone(),
            whole: vec![whole.parse().unwrap()],
            own: Vec::new(),
            bridges: Vec::new(),
        };
        let spaces = vec![space("one", "192.168.0.0/17"), space("two", "fd01:b::/64")];
        Desired { vxlan_devices: vec![local], spaces, ..Desired::default() }
    }

    /// Parses a route in the format of `ip route show`.
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
    fn objects_of_host_with_overlays_do_not_collide() {
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
    fn message_names_host_object_and_remedy() {
        let overlay = "subnet 192.168.0.0/17 of overlay one collides with the host's";
        let change = "give the overlay another subnet at the master, or";
        let cases = [
            // The network of the host, reported once.
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
                    "{overlay} route '192.168.0.0/17 via 10.0.0.254 dev eth0': {change} give the \
                     network behind the gateway another subnet"
                ),
            ),
            (
                &["192.168.7.0/24 via 10.0.0.254"],
                &[],
                format!(
                    "{overlay} route '192.168.7.0/24 via 10.0.0.254': {change} give the network \
                     behind the gateway another subnet"
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
                 give the network behind the gateway another subnet"
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
    fn collision_with_programmed_subnet_is_marked() {
        let is_programmed = |routes: &[&str], addresses: &[(&str, &str)]| {
            let routes: Vec<_> = routes.iter().map(|text| route(text)).collect();
            let addresses = addresses.iter().map(|(address, device)| HostAddress {
                address: address.parse().unwrap(),
                device: (*device).to_owned(),
            });
            let found = collisions(&desired(), &routes, &addresses.collect::<Vec<_>>());
            found.iter().map(|collision| collision.is_programmed).collect::<Vec<_>>()
        };
        let foreign = "192.168.7.0/24 via 10.0.0.254";
        assert_eq!(is_programmed(&[foreign], &[]), [false]);
        assert_eq!(is_programmed(&[foreign, "192.168.0.0/17 proto 109"], &[]), [true]);
        for other in [
            "192.168.0.0/17 dev eth1",
            "192.168.0.0/18 proto 109",
            "192.168.0.0/16 proto 109",
            "192.168.0.0/17 via 44.128.0.2 dev vtep1024 proto 109",
            "fd01:b::/64 proto 109",
        ] {
            assert!(!is_programmed(&[foreign, other], &[])[0], "{other}");
        }
        let foreign = "44.128.7.0/24 via 10.0.0.254";
        assert_eq!(is_programmed(&[foreign, "192.168.0.0/17 proto 109"], &[]), [false]);
        assert_eq!(is_programmed(&[foreign], &[("44.128.0.1/16", "vtep1024")]), [true]);
        assert_eq!(is_programmed(&[foreign], &[("44.128.0.2/16", "vtep1024")]), [false]);
    }

    #[test]
    fn collision_of_vteps_concerns_all_overlays_on_device() {
        let [one, two] = ["one", "two"].map(|name| name.parse::<OverlayName>().unwrap());
        let vtep = DeviceName::vtep(crate::addr::Vni::DEFAULT);
        let found = collisions(&desired(), &[route("192.168.7.0/24 via 10.0.0.254")], &[]);
        assert!(found[0].concerns(&one, &vtep) && !found[0].concerns(&two, &vtep));
        let found = collisions(&desired(), &[route("44.128.7.0/24 dev eth1")], &[]);
        assert!(found[0].concerns(&one, &vtep) && found[0].concerns(&two, &vtep));
        assert!(!found[0].concerns(&one, &"vtep7".parse().unwrap()));
    }
}
