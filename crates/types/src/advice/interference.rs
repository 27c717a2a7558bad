//! Commands for objects of other programs in the way of packets. Each names what else it changes.

use std::net::IpAddr;

use super::tunnel::{family_of, ip};
use super::{Command, quoted};
use crate::addr::{DeviceName, Family};

impl Command {
    /// Returns the port of a container to the bridge of an overlay.
    #[must_use]
    pub fn return_port(port: &str, bridge: &DeviceName) -> Self {
        Self::with_effect(
            format!("ip link set {} master {bridge} up", quoted(port)),
            "changes this device only; exclude the devices of containers from the network manager \
             of this host",
        )
    }

    /// Sets the port of a container up.
    #[must_use]
    pub fn set_port_up(port: &str) -> Self {
        Self::with_effect(format!("ip link set {} up", quoted(port)), "changes this port only")
    }

    /// Lets the port of a container forward packets in the spanning tree.
    #[must_use]
    pub fn forward_from_port(port: &str) -> Self {
        Self::with_effect(
            format!("bridge link set dev {} state 3", quoted(port)),
            "changes this port only",
        )
    }

    /// Lets packets use a routing table that every host has.
    #[must_use]
    pub fn restore_policy_rule(family: Family, priority: u32, table: &str) -> Self {
        Self::with_effect(
            format!("{} rule add priority {priority} lookup {}", ip(family), quoted(table)),
            "restores the rule that every host has, for all packets; systemd-networkd removes such \
             rules unless ManageForeignRoutingPolicyRules is no",
        )
    }

    /// Lets a bridge of an overlay answer ARP requests.
    #[must_use]
    pub fn enable_arp(bridge: &DeviceName) -> Self {
        Self::with_effect(format!("ip link set {bridge} arp on"), "changes this bridge only")
    }

    /// Lets a device, or `all` devices, answer ARP requests for their own addresses.
    #[must_use]
    pub fn answer_arp(device: &str) -> Self {
        let whose = if device == "all" { "all devices" } else { device };
        Self::with_effect(
            format!("sysctl -w {}=1", quoted(&format!("net/ipv4/conf/{device}/arp_ignore"))),
            format!("applies to {whose}: each then answers for its own addresses only"),
        )
    }

    /// Removes a permanent neighbor entry of another program.
    #[must_use]
    pub fn remove_foreign_neighbor(address: IpAddr, device: &str) -> Self {
        Self::with_effect(
            format!("{} neigh delete {address} dev {}", ip(family_of(address)), quoted(device)),
            "lets this host ask for the address again",
        )
    }

    /// Restores the default queueing discipline of a device.
    #[must_use]
    pub fn restore_discipline(device: &str, kind: &str) -> Self {
        Self::with_effect(
            format!("tc qdisc delete dev {} root", quoted(device)),
            format!(
                "restores the default discipline of {device}; check first which program made {kind}"
            ),
        )
    }

    /// Shows the filters of a device.
    #[must_use]
    pub fn show_filters(device: &str, hook: &str) -> Self {
        Self::own(format!("tc -s filter show dev {} {hook}", quoted(device)))
    }

    /// Shows the IPsec policies of the host.
    #[must_use]
    pub fn show_ipsec_policies(family: Family) -> Self {
        Self::own(format!("{} xfrm policy", ip(family)))
    }
}
