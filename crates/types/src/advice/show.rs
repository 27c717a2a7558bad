//! Commands that only show something.

use std::net::IpAddr;

use super::tunnel::{family_of, ip};
use super::{Command, quoted};
use crate::addr::{DeviceName, Subnet};

impl Command {
    /// Shows the route of packets of this host to an address.
    #[must_use]
    pub fn show_route_to(address: IpAddr) -> Self {
        Self::own(format!("{} route get {address}", ip(family_of(address))))
    }

    /// Shows the route of packets that enter through a device.
    #[must_use]
    pub fn show_route_of_forwarded(to: IpAddr, from: IpAddr, device: &DeviceName) -> Self {
        Self::own(format!("{} route get {to} from {from} iif {device}", ip(family_of(to))))
    }

    /// Shows the routes to a subnet in all routing tables.
    #[must_use]
    pub fn show_routes(subnet: Subnet) -> Self {
        Self::own(format!("{} route show table all {subnet}", ip(subnet.family())))
    }

    /// Shows a device with its kind.
    #[must_use]
    pub fn show_device(device: &str) -> Self {
        Self::own(format!("ip -d link show {}", quoted(device)))
    }

    /// Shows a process.
    #[must_use]
    pub fn show_process(pid: u32) -> Self {
        Self::own(format!("ps -fp {pid}"))
    }

    /// Diagnoses the host in the network namespace of a process.
    #[must_use]
    pub fn run_doctor_in_namespace_of(pid: u32) -> Self {
        Self::own(format!("nsenter --net=/proc/{pid}/ns/net mesos-overlay doctor"))
    }

    /// Shows the process that has a UDP port.
    #[must_use]
    pub fn show_port_owner(port: u16) -> Self {
        Self::own(format!("ss -ulpn sport = :{port}"))
    }

    /// Shows the subnets of all Docker networks.
    #[must_use]
    pub fn show_docker_networks() -> Self {
        Self::own("docker network inspect $(docker network ls -q)")
    }

    /// Shows the versions that decide which rules of nftables work.
    #[must_use]
    pub fn show_nft_version() -> Self {
        Self::own("nft --version && uname -r")
    }
}
