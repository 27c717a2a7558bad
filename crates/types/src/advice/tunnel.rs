//! Commands for managed devices, their entries, and managed routes. They change nothing else.

use std::net::IpAddr;

use super::Command;
use crate::addr::{DeviceName, Family, InterfaceAddress, Mac, Mtu, Subnet};

/// The target of a managed route.
#[derive(Debug, Clone, Copy)]
pub enum RouteTarget<'a> {
    /// A peer.
    Via {
        /// The VXLAN device.
        device: &'a DeviceName,
        /// The VTEP address of the peer.
        gateway: IpAddr,
        /// Whether the kernel uses the gateway without a route to it.
        is_onlink: bool,
    },
    /// No host.
    Unreachable,
}

/// The `ip` command for a family.
pub(super) const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip -6",
    }
}

pub(super) const fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

impl Command {
    /// Sets a managed device up.
    #[must_use]
    pub fn set_device_up(device: &DeviceName) -> Self {
        Self::own(format!("ip link set {device} up"))
    }

    /// Sets the MAC of a managed device.
    #[must_use]
    pub fn set_device_mac(device: &DeviceName, mac: Mac) -> Self {
        Self::own(format!("ip link set {device} address {mac}"))
    }

    /// Sets the MTU of a managed device.
    #[must_use]
    pub fn set_device_mtu(device: &DeviceName, mtu: Mtu) -> Self {
        Self::own(format!("ip link set {device} mtu {mtu}"))
    }

    /// Sets the alias that marks a device as managed.
    #[must_use]
    pub fn mark_device(device: &DeviceName, mark: &str) -> Self {
        Self::own(format!("ip link set {device} alias {mark}"))
    }

    /// Adds the bridge of an overlay.
    #[must_use]
    pub fn add_bridge(bridge: &DeviceName) -> Self {
        Self::own(format!("ip link add name {bridge} type bridge"))
    }

    /// Attaches the port of a container to the bridge of an overlay.
    #[must_use]
    pub fn attach_port(port: &str, bridge: &DeviceName) -> Self {
        Self::own(format!("ip link set {} master {bridge}", super::quoted(port)))
    }

    /// Lets a bridge of an overlay forward packets between its VLANs.
    #[must_use]
    pub fn disable_vlan_filtering(bridge: &DeviceName) -> Self {
        Self::own(format!("ip link set {bridge} type bridge vlan_filtering 0"))
    }

    /// Takes a managed device out of the bridge or VRF that another program put it into.
    #[must_use]
    pub fn release_device(device: &str) -> Self {
        Self::own(format!("ip link set {} nomaster", super::quoted(device)))
    }

    /// Takes the device of the underlay from a VRF.
    #[must_use]
    pub fn release_underlay_from_vrf(device: &str) -> Self {
        Self::with_effect(
            format!("ip link set {} nomaster", super::quoted(device)),
            "ends the traffic of the VRF through the device",
        )
    }

    /// Removes an address of another program from the bridge of an overlay.
    #[must_use]
    pub fn remove_foreign_address(bridge: &DeviceName, address: InterfaceAddress) -> Self {
        Self::with_effect(
            format!("ip address delete {address} dev {bridge}"),
            format!("cuts off what uses {address}"),
        )
    }

    /// Removes a managed device.
    #[must_use]
    pub fn remove_device(device: &str) -> Self {
        Self::own(format!("ip link delete {}", super::quoted(device)))
    }

    /// Removes a managed device that the running agent makes again.
    #[must_use]
    pub fn replace_device(device: &DeviceName) -> Self {
        Self::with_effect(
            format!("ip link delete {device}"),
            "interrupts its overlays until the running agent has made it again, in about a second",
        )
    }

    /// Enables IPv6 on a managed device.
    #[must_use]
    pub fn enable_ipv6(device: &DeviceName) -> Self {
        // A name may contain a dot, which sysctl would read as a slash.
        Self::own(format!("sysctl -w net/ipv6/conf/{device}/disable_ipv6=0"))
    }

    /// Lets the host forward packets of a family from a managed device.
    #[must_use]
    pub fn enable_forwarding(device: &DeviceName, family: Family) -> Self {
        let family = family.to_string().to_lowercase();
        Self::own(format!("sysctl -w net/{family}/conf/{device}/forwarding=1"))
    }

    /// Lets a managed device accept packets if the route back uses another device.
    #[must_use]
    pub fn loosen_rp_filter(device: &DeviceName) -> Self {
        Self::own(format!("sysctl -w net/ipv4/conf/{device}/rp_filter=2"))
    }

    /// Stops a managed device from leaving checksums to the hardware.
    #[must_use]
    pub fn disable_checksum_offload(device: &DeviceName) -> Self {
        Self::own(format!("ethtool -K {device} tx-checksum-ip-generic off"))
    }

    /// Lets a managed device leave checksums to the hardware again.
    #[must_use]
    pub fn enable_checksum_offload(device: &DeviceName) -> Self {
        Self::own(format!("ethtool -K {device} tx-checksum-ip-generic on"))
    }

    /// Adds an address to a managed device.
    #[must_use]
    pub fn add_address(device: &DeviceName, address: InterfaceAddress) -> Self {
        let nodad = if address.address().is_ipv6() { " nodad" } else { "" };
        Self::own(format!("ip addr add {address} dev {device}{nodad}"))
    }

    /// Removes an address of a managed device.
    #[must_use]
    pub fn remove_address(device: &DeviceName, address: InterfaceAddress) -> Self {
        Self::own(format!("ip addr delete {address} dev {device}"))
    }

    /// Sets the MAC of a VTEP address.
    #[must_use]
    pub fn set_neighbor(device: &DeviceName, address: IpAddr, mac: Mac) -> Self {
        Self::own(format!("ip neigh replace {address} lladdr {mac} dev {device} nud permanent"))
    }

    /// Removes the neighbor entry of a VTEP address.
    #[must_use]
    pub fn remove_neighbor(device: &DeviceName, address: IpAddr) -> Self {
        Self::own(format!("ip neigh delete {address} dev {device}"))
    }

    /// Sets the FDB entry of a MAC.
    #[must_use]
    pub fn set_fdb_entry(device: &DeviceName, mac: Mac, agent: IpAddr) -> Self {
        Self::own(format!("bridge fdb replace {mac} dev {device} dst {agent} self permanent"))
    }

    /// Removes the FDB entry of a MAC.
    #[must_use]
    pub fn remove_fdb_entry(device: &DeviceName, mac: Mac, agent: IpAddr) -> Self {
        Self::own(format!("bridge fdb delete {mac} dev {device} dst {agent} self"))
    }

    /// Adds a managed route. The command fails where another route has the same destination and
    /// metric.
    #[must_use]
    pub fn add_route(subnet: Subnet, metric: u32, target: RouteTarget<'_>, protocol: u8) -> Self {
        let program = ip(subnet.family());
        Self::own(match target {
            RouteTarget::Unreachable => {
                format!("{program} route add unreachable {subnet} metric {metric} proto {protocol}")
            }
            RouteTarget::Via { device, gateway, is_onlink } => {
                let onlink = if is_onlink { " onlink" } else { "" };
                format!(
                    "{program} route add {subnet} via {gateway} dev {device}{onlink} metric \
                     {metric} proto {protocol}"
                )
            }
        })
    }

    /// Removes a managed route. The protocol number protects routes of other programs.
    #[must_use]
    pub fn remove_route(subnet: Subnet, metric: u32, protocol: u8) -> Self {
        let program = ip(subnet.family());
        Self::own(format!("{program} route delete {subnet} metric {metric} proto {protocol}"))
    }

    /// Lets packets to a subnet of an overlay skip the policy rules from a priority on. No rule can
    /// precede a rule of priority 0.
    #[must_use]
    pub fn skip_policy_rules(subnet: Subnet, first_priority: u32) -> Option<Self> {
        // The kernel evaluates a rule of the same priority after the existing rule.
        let priority = first_priority.checked_sub(1)?;
        let program = ip(subnet.family());
        Some(Self::with_effect(
            format!("{program} rule add priority {priority} to {subnet} lookup main"),
            format!("concerns packets to {subnet} only"),
        ))
    }
}
