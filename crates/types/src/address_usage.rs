//! The addresses of a host that its containers use: one half of each subnet is for the
//! MesosContainerizer, and the other half is for Docker.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::addr::{OverlayName, Subnet};
use crate::container_network::NetworkKind;

/// The number of IPv4 addresses of one half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressCount {
    /// The addresses that containers have.
    pub used: u32,
    /// The addresses that the next containers can get. The addresses of the network, of the bridge
    /// and of broadcasts are neither used nor free.
    pub free: u32,
}

impl AddressCount {
    /// Returns how full the half is.
    #[must_use]
    pub const fn level(self) -> FillLevel {
        /// The share of used addresses from which on the half is nearly full: nine tenths, as in the
        /// alert `MesosOverlayContainerAddressesNearlyFull`.
        const NEARLY_FULL: (u64, u64) = (9, 10);
        let (used, all) = (self.used as u64, self.used as u64 + self.free as u64);
        if self.free == 0 {
            FillLevel::Full
        } else if used * NEARLY_FULL.1 >= all * NEARLY_FULL.0 {
            FillLevel::NearlyFull
        } else {
            FillLevel::Ample
        }
    }

    /// Returns the used addresses in percent of all, rounded down. A half without any address is
    /// full.
    #[must_use]
    pub fn percent(self) -> u64 {
        let (used, all) = (u64::from(self.used), u64::from(self.used) + u64::from(self.free));
        (used * 100).checked_div(all).unwrap_or(100)
    }
}

/// How full a half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FillLevel {
    /// More than a tenth of the addresses is free.
    Ample,
    /// At most a tenth of the addresses is free.
    NearlyFull,
    /// No further container gets an address.
    Full,
}

/// The numbers of addresses of both halves of an overlay on one host. `None` if the host has no such
/// half, or if its addresses could not be counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HalfCounts {
    /// The half of the MesosContainerizer.
    pub mesos: Option<AddressCount>,
    /// The half of Docker.
    pub docker: Option<AddressCount>,
}

impl HalfCounts {
    /// Returns the counts that are known, with their containerizers.
    pub fn known(&self) -> impl Iterator<Item = (NetworkKind, AddressCount)> {
        let mesos = self.mesos.map(|count| (NetworkKind::Cni, count));
        mesos.into_iter().chain(self.docker.map(|count| (NetworkKind::Docker, count)))
    }

    /// Returns the count of a half.
    pub const fn of_mut(&mut self, kind: NetworkKind) -> &mut Option<AddressCount> {
        match kind {
            NetworkKind::Cni => &mut self.mesos,
            NetworkKind::Docker => &mut self.docker,
        }
    }
}

/// The numbers of addresses of a host, by overlay.
pub type OverlayCounts = BTreeMap<OverlayName, HalfCounts>;

/// Returns the number of addresses of a bridge's subnet that containers can use.
#[must_use]
pub fn container_capacity(subnet: &Subnet) -> u128 {
    /// The addresses of the network, of broadcasts and of the bridge.
    const OTHERS: u128 = 3;
    let last = subnet.offset_of(subnet.last()).unwrap_or_default();
    (last + 1).saturating_sub(OTHERS)
}

/// What shows that an address is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressSource {
    /// A lease of the CNI plugin.
    Lease,
    /// Docker.
    Docker,
    /// The kernel: a port of a container.
    Kernel,
}

impl AddressSource {
    /// Returns the name in `/overlay-agent/addresses`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Docker => "docker",
            Self::Kernel => "kernel",
        }
    }
}

/// An address that a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedAddress {
    /// The address.
    pub address: IpAddr,
    /// The container: its ID in Mesos, or its name in Docker. Untrusted text. `None` if only the
    /// kernel shows the address.
    pub holder: Option<String>,
    /// The device in the container. Untrusted text.
    pub interface: Option<String>,
    /// The device of the host that leads to the container.
    pub port: Option<String>,
    /// What shows the address.
    pub source: AddressSource,
}

/// The addresses of one half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfAddresses {
    /// The overlay.
    pub overlay: OverlayName,
    /// The containerizer, by its network.
    pub kind: NetworkKind,
    /// The IPv4 addresses of the half.
    pub subnet: Subnet,
    /// The number of addresses, or why they could not be counted.
    pub count: Result<AddressCount, String>,
    /// The first addresses in use.
    pub addresses: Vec<UsedAddress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_is_that_of_the_free_addresses() {
        let level = |used, free| AddressCount { used, free }.level();
        assert_eq!(level(0, 0), FillLevel::Full);
        assert_eq!(level(13, 0), FillLevel::Full);
        assert_eq!((level(12, 1), level(11, 2)), (FillLevel::NearlyFull, FillLevel::Ample));
        assert_eq!((level(9, 1), level(89, 11)), (FillLevel::NearlyFull, FillLevel::Ample));
        assert_eq!(level(u32::MAX, u32::MAX), FillLevel::Ample);
        let percent = |used, free| AddressCount { used, free }.percent();
        assert_eq!([percent(0, 0), percent(0, 5), percent(112, 13)], [100, 0, 89]);
    }
}
