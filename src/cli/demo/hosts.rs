//! Hosts, which are network namespaces. Each host has one device in the underlay, a bridge in the
//! namespace of the process. The master has an address on that bridge.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd as _;

use overlay_linux::dataplane::{LinkBuilder, LinkBuilderError};
use overlay_types::addr::InterfaceAddress;

use super::cluster::AgentLocation;
use super::namespace::{Namespace, device};
use crate::cli::Failure;

/// The device of a host in the underlay.
pub(super) const UPLINK: &str = "eth0";
/// The bridge of the underlay.
const UNDERLAY_BRIDGE: &str = "underlay";
/// The master's address in the underlay, after the addresses of all possible agents.
pub(super) const MASTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 254), 5050);
/// The port of every agent.
const AGENT_PORT: u16 = 5051;

/// Creates the underlay in the namespace of the calling thread.
pub(super) fn build_underlay() -> Result<(), Failure> {
    let build = || {
        let mut links = LinkBuilder::open()?;
        links.set_up(&device("lo"), None)?;
        links.add_bridge(&device(UNDERLAY_BRIDGE))?;
        links.add_address(&device(UNDERLAY_BRIDGE), &in_underlay(*MASTER.ip()))
    };
    build().map_err(|error: LinkBuilderError| Failure::new(format!("build the underlay: {error}")))
}

/// Creates a host. The first host has number 1.
pub(super) fn build(number: u8) -> Result<AgentLocation, Failure> {
    let ip = Ipv4Addr::new(10, 0, 0, number);
    let failed = |error: String| Failure::new(format!("build the host {ip}: {error}"));
    let host = Namespace::new().map_err(|error| failed(error.to_string()))?;
    let connect = || {
        let port = device(&format!("port{number}"));
        let mut links = LinkBuilder::open()?;
        links.add_veth_pair(&port, &device(UPLINK), host.as_fd())?;
        links.set_master(&port, &device(UNDERLAY_BRIDGE))
    };
    connect().map_err(|error: LinkBuilderError| failed(error.to_string()))?;
    let configure = || {
        let mut links = LinkBuilder::open()?;
        links.set_up(&device(UPLINK), None)?;
        links.add_address(&device(UPLINK), &in_underlay(ip))
    };
    let configured = host.run(configure).map_err(|error| failed(error.to_string()))?;
    configured.map_err(|error: LinkBuilderError| failed(error.to_string()))?;
    Ok(AgentLocation { address: SocketAddrV4::new(ip, AGENT_PORT), host: Some(host) })
}

fn in_underlay(ip: Ipv4Addr) -> InterfaceAddress {
    format!("{ip}/24").parse().expect("the text is an address with a prefix length")
}
