//! Hosts that are network namespaces, each with one device in the network that they share, the
//! underlay: a bridge where the process itself is, with the master on it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd as _;

use super::cluster::Seat;
use super::stage::{Namespace, device};
use crate::addr::InterfaceAddress;
use crate::cli::Failure;
use crate::dataplane::{Wiring, WiringError};

/// The device of a host in the underlay.
pub(super) const UPLINK: &str = "eth0";
/// The underlay.
const SWITCH: &str = "underlay";
/// The master's address in it, behind those of all the agents that there can be.
pub(super) const MASTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 254), 5050);
/// The port of every agent.
const AGENT_PORT: u16 = 5051;

/// The underlay, where the calling thread is.
pub(super) fn build_underlay() -> Result<(), Failure> {
    let build = || {
        let mut wiring = Wiring::open()?;
        wiring.set_up(&device("lo"), None)?;
        wiring.add_bridge(&device(SWITCH))?;
        wiring.add_address(&device(SWITCH), &in_underlay(*MASTER.ip()))
    };
    build().map_err(|error: WiringError| Failure::new(format!("build the underlay: {error}")))
}

/// A host, the first one being number 1.
pub(super) fn build(number: u8) -> Result<Seat, Failure> {
    let ip = Ipv4Addr::new(10, 0, 0, number);
    let failed = |error: String| Failure::new(format!("build the host {ip}: {error}"));
    let host = Namespace::new().map_err(|error| failed(error.to_string()))?;
    let connect = || {
        let port = device(&format!("port{number}"));
        let mut wiring = Wiring::open()?;
        wiring.add_pair(&port, &device(UPLINK), host.as_fd())?;
        wiring.set_master(&port, &device(SWITCH))
    };
    connect().map_err(|error: WiringError| failed(error.to_string()))?;
    let settle = || {
        let mut wiring = Wiring::open()?;
        wiring.set_up(&device(UPLINK), None)?;
        wiring.add_address(&device(UPLINK), &in_underlay(ip))
    };
    let settled = host.inside(settle).map_err(|error| failed(error.to_string()))?;
    settled.map_err(|error: WiringError| failed(error.to_string()))?;
    Ok(Seat { address: SocketAddrV4::new(ip, AGENT_PORT), host: Some(host) })
}

fn in_underlay(ip: Ipv4Addr) -> InterfaceAddress {
    format!("{ip}/24").parse().expect("it is an address with a length")
}
