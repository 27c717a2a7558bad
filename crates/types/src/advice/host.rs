//! Commands for settings and services of the host. Other programs use them too, so each command
//! names its effect.

use std::net::Ipv4Addr;
use std::path::Path;

use super::{Command, quoted};
use crate::addr::{Family, OverlayName};

impl Command {
    /// Lets the host forward packets of a family.
    #[must_use]
    pub fn enable_host_forwarding(family: Family) -> Self {
        match family {
            Family::V4 => Self::with_effect(
                "sysctl -w net.ipv4.ip_forward=1",
                "lets this host forward IPv4 between all of its devices",
            ),
            // A host that forwards IPv6 ignores router advertisements where accept_ra is 1, and its
            // default route expires.
            Family::V6 => Self::with_effect(
                "for file in $(grep -lx 1 /proc/sys/net/ipv6/conf/*/accept_ra); do echo 2 > $file; \
                 done; sysctl -w net.ipv6.conf.all.forwarding=1",
                "lets this host forward IPv6 between all of its devices, and keeps its default \
                 routes of router advertisements",
            ),
        }
    }

    /// Lets the host forward IPv4 packets from a device that leads to other hosts.
    #[must_use]
    pub fn forward_from_uplink(device: &str) -> Self {
        Self::with_effect(
            format!("sysctl -w {}=1", quoted(&format!("net/ipv4/conf/{device}/forwarding"))),
            format!("concerns all packets from {device}"),
        )
    }

    /// Stops a device of the host from computing checksums.
    #[must_use]
    pub fn disable_all_checksum_offload(device: &str) -> Self {
        Self::with_effect(
            format!("ethtool -K {} tx off", quoted(device)),
            "costs CPU for all packets of this device",
        )
    }

    /// Stops a device of the host from dividing large packets of tunnels.
    #[must_use]
    pub fn disable_tunnel_segmentation(device: &str) -> Self {
        let options = "tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";
        Self::with_effect(
            format!("ethtool -K {} {options}", quoted(device)),
            "costs CPU for all tunnels over this device",
        )
    }

    /// Writes a setting below `/proc/sys`.
    #[must_use]
    pub fn write_setting(name: &str, value: u32) -> Self {
        Self::with_effect(
            format!("sysctl -w {}={value}", quoted(name)),
            "changes this setting of the host",
        )
    }

    /// Raises the number of connections that the host tracks.
    #[must_use]
    pub fn raise_conntrack_max(max: u64) -> Self {
        Self::with_effect(
            format!("sysctl -w net.netfilter.nf_conntrack_max={max}"),
            "raises the limit of the whole host, for about 300 bytes of memory a connection",
        )
    }

    /// Raises the number of neighbor entries of a family.
    #[must_use]
    pub fn raise_neighbor_max(family: Family, max: u64) -> Self {
        let family = family.to_string().to_lowercase();
        Self::with_effect(
            format!("sysctl -w net.{family}.neigh.default.gc_thresh3={max}"),
            "raises the limit of the whole host",
        )
    }

    /// Loads the kernel module of VXLAN.
    #[must_use]
    pub fn load_vxlan_module() -> Self {
        Self::with_effect("modprobe vxlan", "adds a module to the kernel")
    }

    /// Starts the Docker daemon.
    #[must_use]
    pub fn start_docker() -> Self {
        Self::with_effect(
            "systemctl start docker",
            "starts the Docker daemon of this host, and containers with a restart policy",
        )
    }

    /// Removes the Docker network of an overlay, which the agent creates again. Docker refuses
    /// that while containers run in it.
    #[must_use]
    pub fn remove_docker_network(network: &OverlayName) -> Self {
        Self::own(format!("docker network rm {}", quoted(network.as_str())))
    }

    /// Removes the leases of host-local whose containers are gone. Containers are not touched.
    #[must_use]
    pub fn release_leaked_leases() -> Self {
        Self::own("mesos-overlay ipam check --fix".to_owned())
    }

    /// Releases the addresses of an agent that is gone.
    #[must_use]
    pub fn forget_agent(agent: Ipv4Addr, master: &str) -> Self {
        Self::with_effect(
            format!("mesos-overlay forget --master {} {agent}", quoted(master)),
            "releases the addresses of that agent at the master",
        )
    }

    /// Takes the permissions of other users to a file of secrets away.
    #[must_use]
    pub fn restrict_file(path: &Path) -> Self {
        Self::own(format!("chmod 600 {}", quoted(&path.display().to_string())))
    }
}
