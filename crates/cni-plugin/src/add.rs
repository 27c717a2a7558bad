//! ADD: attaches a container.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use overlay_cni::config::NetworkConfig;
use overlay_cni::mesos::MesosArguments;
use overlay_cni::names::{PortNames, bridge_mac, container_mac};
use overlay_cni::request::Attachment;
use overlay_cni::result::{AddResult, ResultAddress, ResultInterface, missing_ipv4};
use overlay_cni::{CniVersion, ErrorCode, PluginError};
use overlay_linux::dataplane::{
    BridgeSettings, ContainerInterface, ContainerNamespace, HostSide, InterfaceSettings,
    PortSettings,
};
use overlay_types::addr::{Family, InterfaceAddress};

use crate::existing::{container_interface, docker_result, missing_part, missing_route, routes};
use crate::{failure, leases, ports};

/// Forwarding of IPv4.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Attaches a container. An attachment that is complete stays as it is.
///
/// # Errors
/// When a part of it cannot be made. Then the parts that were made are removed again.
pub(crate) fn run(
    config: &NetworkConfig,
    attachment: &Attachment,
    namespace: &Path,
) -> Result<AddResult, PluginError> {
    let mut container =
        ContainerNamespace::open(namespace).map_err(|error| failure::of_namespace(&error))?;
    let mut interfaces = container.interfaces().map_err(|error| failure::io(&error))?;
    if let Some(result) = docker_result(config, attachment, namespace, &interfaces) {
        return Ok(result);
    }
    if config.version < CniVersion::V0_3_0 && config.gateway(Family::V4).is_none() {
        return Err(missing_ipv4());
    }
    let mesos = config.mesos()?;
    let names = PortNames::new(&config.name, attachment)?;
    let mut host = HostSide::open().map_err(|error| failure::io(&error))?;
    let bridge = ensure_bridge(config, &mut host)?;
    let mut add = Add { config, attachment, namespace, names, host, container, bridge };
    if let Some(result) = add.existing_result(&interfaces)? {
        add.map_ports(&mesos, &result)?;
        return Ok(result);
    }
    if add.remove_port()? {
        interfaces = add.container.interfaces().map_err(|error| failure::io(&error))?;
    }
    if interfaces.iter().any(|it| it.name == attachment.interface.as_str()) {
        let message = format!("the container has another interface {}", attachment.interface);
        return Err(PluginError::new(ErrorCode::InterfaceExists, message)
            .with_details("give each network of the container an interface of its own"));
    }
    add.attach(&mesos)
}

/// Makes the bridge of the network if it is missing. Returns its index.
fn ensure_bridge(config: &NetworkConfig, host: &mut HostSide) -> Result<u32, PluginError> {
    let gateways: Vec<InterfaceAddress> =
        config.ranges.iter().map(overlay_cni::allocation::Range::gateway).collect();
    let Some(first) = gateways.first() else {
        return Err(PluginError::new(ErrorCode::InvalidConfiguration, "there is no subnet"));
    };
    let (name, mac) = (&config.bridge, bridge_mac(first));
    // The agent sets forwarding as well, and reports a host where it cannot.
    if fs::read(FORWARDING).is_ok_and(|value| value.starts_with(b"0")) {
        let _ = fs::write(FORWARDING, "1");
    }
    host.ensure_bridge(&BridgeSettings { name, mac, mtu: config.mtu, gateways })
        .map_err(|error| failure::io(&error))
}

/// The parts of one ADD.
struct Add<'a> {
    config: &'a NetworkConfig,
    attachment: &'a Attachment,
    namespace: &'a Path,
    names: PortNames,
    host: HostSide,
    container: ContainerNamespace,
    /// The index of the bridge.
    bridge: u32,
}

impl Add<'_> {
    /// Returns the result of an earlier ADD of the attachment, if it is complete.
    fn existing_result(
        &mut self,
        interfaces: &[ContainerInterface],
    ) -> Result<Option<AddResult>, PluginError> {
        let port = self.host.port(&self.names.device).map_err(|error| failure::io(&error))?;
        let Some(port) = port else { return Ok(None) };
        let leases = leases::of_attachment(self.config, self.attachment)?;
        let addresses = self.config.ranges.iter().filter_map(|range| {
            let lease = leases.iter().find(|lease| range.has(lease.address))?;
            InterfaceAddress::within(range.subnet(), lease.address)
        });
        let addresses: Vec<InterfaceAddress> = addresses.collect();
        let name = self.attachment.interface.as_str();
        let interface = interfaces.iter().find(|interface| interface.name == name);
        let has_all_leases = addresses.len() == self.config.ranges.len();
        if !has_all_leases || missing_part(self.bridge, &port, interface, &addresses).is_some() {
            return Ok(None);
        }
        let mac = addresses.first().map(|first| container_mac(first.address()));
        let has_mac = interface.is_some_and(|interface| interface.mac == mac);
        if !has_mac || missing_route(self.config, &mut self.container)?.is_some() {
            return Ok(None);
        }
        self.result(&addresses).map(Some)
    }

    fn map_ports(&self, mesos: &MesosArguments, result: &AddResult) -> Result<(), PluginError> {
        let addresses: Vec<IpAddr> =
            result.addresses.iter().map(|found| found.address.address()).collect();
        ports::map(self.config, &mesos.port_mappings, &addresses)
    }

    fn remove_port(&mut self) -> Result<bool, PluginError> {
        self.host.remove_port(&self.names.device).map_err(|error| failure::io(&error))
    }

    /// Makes the port before the lease: the agent releases a lease whose address no container has
    /// if the bridge has no port.
    fn attach(&mut self, mesos: &MesosArguments) -> Result<AddResult, PluginError> {
        let (names, config) = (&self.names, self.config);
        let port = PortSettings {
            name: &names.device,
            mac: names.mac,
            alias: &names.alias,
            bridge: self.bridge,
            has_hairpin: config.has_hairpin,
            mtu: config.mtu,
            interface: &self.attachment.interface,
        };
        // After a failure the port may be that of another ADD of the attachment, so it stays.
        self.host.add_port(&port, &self.container).map_err(|error| failure::io(&error))?;
        let index = self.port_index()?;
        let mut acquired = leases::Acquired::default();
        let attached = self.attach_port(&mesos.addresses, &mut acquired).and_then(|result| {
            self.map_ports(mesos, &result)?;
            Ok(result)
        });
        if attached.is_err() {
            // The error of the attachment tells more than that of its removal.
            let _ = self.undo(index, &acquired);
        }
        attached
    }

    fn port_index(&mut self) -> Result<Option<u32>, PluginError> {
        let port = self.host.port(&self.names.device).map_err(|error| failure::io(&error))?;
        Ok(port.map(|port| port.index))
    }

    /// Removes the port and ends the new leases. Another ADD of the attachment that has replaced the
    /// port meanwhile keeps them, and so does a container whose interface cannot be removed.
    fn undo(&mut self, index: Option<u32>, acquired: &leases::Acquired) -> Result<(), PluginError> {
        let found = self.port_index()?;
        if found.is_some() && found != index {
            return Ok(());
        }
        self.remove_port()?;
        leases::undo(self.config, self.attachment, acquired)
    }

    fn attach_port(
        &mut self,
        requested: &[IpAddr],
        acquired: &mut leases::Acquired,
    ) -> Result<AddResult, PluginError> {
        let (config, name) = (self.config, &self.attachment.interface);
        let has_ipv6 = config.gateway(Family::V6).is_some();
        self.container.set_up(name, has_ipv6).map_err(|error| failure::io(&error))?;
        let evidence = || leases::read_evidence(config);
        *acquired = leases::acquire(config, self.attachment, requested, &evidence)?;
        let addresses = acquired.addresses.clone();
        let Some(first) = addresses.first() else {
            return Err(PluginError::new(ErrorCode::NoFreeAddress, "no address was leased"));
        };
        for address in &addresses {
            self.host.forget_neighbor(self.bridge, address.address());
        }
        self.host.wait_for_forwarding(&self.names.device);
        let mac = container_mac(first.address());
        let routes = routes(config);
        let settings = InterfaceSettings { name, mac, addresses: addresses.clone(), routes };
        self.container.configure(&settings).map_err(|error| failure::io(&error))?;
        self.result(&addresses)
    }

    fn result(&mut self, addresses: &[InterfaceAddress]) -> Result<AddResult, PluginError> {
        let interfaces = self.container.interfaces().map_err(|error| failure::io(&error))?;
        let name = self.attachment.interface.as_str();
        let Some(interface) = interfaces.iter().find(|interface| interface.name == name) else {
            return Err(failure::io(&format!("another program removed interface {name}")));
        };
        let port = ResultInterface {
            name: self.names.device.to_string(),
            mac: Some(self.names.mac),
            mtu: self.config.mtu,
            sandbox: None,
        };
        let address = |address: &InterfaceAddress| ResultAddress {
            address: *address,
            gateway: self.config.gateway(address.family()),
            interface: 1,
        };
        Ok(AddResult {
            interfaces: vec![port, container_interface(interface, self.namespace)],
            addresses: addresses.iter().map(address).collect(),
            routes: self.config.routes.clone(),
            dns: self.config.dns.clone(),
        })
    }
}
