//! Finds the addresses that a container has already: of the overlay's Docker half, or of an earlier
//! ADD of the same attachment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use overlay_cni::PluginError;
use overlay_cni::config::{NetworkConfig, Route};
use overlay_cni::request::Attachment;
use overlay_cni::result::{AddResult, ResultAddress, ResultInterface};
use overlay_linux::dataplane::{ContainerInterface, ContainerNamespace, HostPort};
use overlay_types::addr::{Family, InterfaceAddress, Mtu, Subnet};

use crate::failure;

/// Returns the result for a container that Docker has attached to the overlay. `None` if it has no
/// address of the Docker half. The interface of the attachment itself does not count.
pub(crate) fn docker_result(
    config: &NetworkConfig,
    attachment: &Attachment,
    namespace: &Path,
    interfaces: &[ContainerInterface],
) -> Option<AddResult> {
    let is_docker = |address: &InterfaceAddress| {
        config.docker_subnets.iter().any(|subnet| subnet.contains(address.address()))
    };
    let others = interfaces.iter().filter(|it| it.name != attachment.interface.as_str());
    let mut result = AddResult {
        interfaces: vec![],
        addresses: vec![],
        routes: vec![],
        dns: config.dns.clone(),
    };
    for interface in others {
        let own: Vec<&InterfaceAddress> =
            interface.addresses.iter().filter(|it| is_docker(it)).collect();
        if own.is_empty() {
            continue;
        }
        let index = result.interfaces.len();
        result.interfaces.push(container_interface(interface, namespace));
        result.addresses.extend(own.into_iter().map(|address| ResultAddress {
            address: *address,
            gateway: None,
            interface: index,
        }));
    }
    result.addresses.sort_by_key(|found| found.address.family() == Family::V6);
    (!result.addresses.is_empty()).then_some(result)
}

/// Describes an interface of a container.
pub(crate) fn container_interface(
    interface: &ContainerInterface,
    namespace: &Path,
) -> ResultInterface {
    ResultInterface {
        name: interface.name.clone(),
        mac: interface.mac,
        mtu: Mtu::new(interface.mtu).ok(),
        sandbox: Some(namespace.to_string_lossy().into_owned()),
    }
}

/// Returns why an attachment is incomplete. `None` if the interface of the container is the other end
/// of the port, both are up, the port is at the bridge, and the interface has the addresses.
pub(crate) fn missing_part(
    bridge: u32,
    port: &HostPort,
    interface: Option<&ContainerInterface>,
    addresses: &[InterfaceAddress],
) -> Option<String> {
    let Some(interface) = interface else {
        return Some("the container has no such interface".to_owned());
    };
    if port.peer != Some(interface.index) || interface.peer != Some(port.index) {
        return Some("the interface belongs to another port".to_owned());
    }
    if port.bridge != Some(bridge) {
        return Some("the port is not at the bridge".to_owned());
    }
    if !port.is_up || !interface.is_up {
        return Some("the interface or its port is down".to_owned());
    }
    let found: BTreeSet<&InterfaceAddress> = interface.addresses.iter().collect();
    let missing = addresses.iter().find(|address| !found.contains(address));
    missing.map(|address| format!("the interface does not have {address}"))
}

/// Returns the destination of a route that the container does not have. A container with another
/// default route keeps that one.
pub(crate) fn missing_route(
    config: &NetworkConfig,
    container: &mut ContainerNamespace,
) -> Result<Option<Subnet>, PluginError> {
    let found = container.routes().map_err(|error| failure::io(&error))?;
    let destinations = routes(config).into_iter().map(|(destination, _)| destination);
    let has = |destination: &Subnet| found.iter().any(|(found, ..)| found == destination);
    Ok(destinations.into_iter().find(|destination| !has(destination)))
}

/// Returns the routes of a container. A route of a family without a range is left out.
pub(crate) fn routes(config: &NetworkConfig) -> Vec<(Subnet, IpAddr)> {
    let gateway = |route: &Route| {
        let bridge = config.gateway(route.destination.family())?;
        Some((route.destination, route.gateway.unwrap_or(bridge)))
    };
    config.routes.iter().filter_map(gateway).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> NetworkConfig {
        let config = json!({
            "name": "vxlan-1", "bridge": "m-vxlan-1",
            "dockerSubnets": ["192.168.0.128/25", "fd01:b::/81"],
            "ipam": {"subnet": "192.168.0.0/25"},
        });
        NetworkConfig::parse(config.to_string().as_bytes()).unwrap()
    }

    fn interface(index: u32, name: &str, addresses: &[&str]) -> ContainerInterface {
        ContainerInterface {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1].into()),
            mtu: 1420,
            is_up: true,
            peer: Some(7),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    fn docker(interfaces: &[ContainerInterface]) -> Option<Vec<String>> {
        let attachment = Attachment::new("c1", "eth1").unwrap();
        let namespace = Path::new("/proc/7/ns/net");
        let result = docker_result(&config(), &attachment, namespace, interfaces)?;
        Some(result.addresses.iter().map(|found| found.address.to_string()).collect())
    }

    #[test]
    fn address_of_docker_half_is_the_result() {
        let lo = interface(1, "lo", &[]);
        let eth0 = interface(2, "eth0", &["fd01:b::2/81", "192.168.0.130/25", "10.0.0.2/8"]);
        assert_eq!(
            docker(&[lo.clone(), eth0]),
            Some(vec!["192.168.0.130/25".to_owned(), "fd01:b::2/81".to_owned()])
        );
        assert_eq!(docker(&[lo, interface(2, "eth0", &["172.17.0.2/16"])]), None);
        // Such an interface is one of an earlier ADD, whatever address it has.
        assert_eq!(docker(&[interface(2, "eth1", &["192.168.0.130/25"])]), None);
    }

    #[test]
    fn incomplete_attachment_names_missing_part() {
        let port = HostPort {
            index: 7,
            bridge: Some(3),
            peer: Some(2),
            is_up: true,
            is_forwarding: true,
            mac: None,
        };
        let eth1 = interface(2, "eth1", &["192.168.0.2/25"]);
        let own: Vec<InterfaceAddress> = vec!["192.168.0.2/25".parse().unwrap()];
        let missing = |port: &HostPort, interface| missing_part(3, port, interface, &own);
        assert_eq!(missing(&port, Some(&eth1)), None);
        for (changed, interface) in [
            (port.clone(), None),
            (HostPort { peer: Some(9), ..port.clone() }, Some(&eth1)),
            (HostPort { bridge: None, ..port.clone() }, Some(&eth1)),
            (HostPort { is_up: false, ..port.clone() }, Some(&eth1)),
            (port, Some(&interface(2, "eth1", &["192.168.0.3/25"]))),
        ] {
            assert!(missing(&changed, interface).is_some(), "{changed:?} {interface:?}");
        }
    }
}
