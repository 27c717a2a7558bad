//! Chooses the address of a container, in the order of host-local: the first free address after the
//! one that was leased last.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_types::addr::{InterfaceAddress, Subnet};

use crate::error::{ErrorCode, PluginError};

/// Offset of the gateway in its subnet, as in host-local.
const GATEWAY: u128 = 1;
/// Offset of the first address for containers.
const FIRST: u128 = 2;

/// The addresses of a bridge's subnet: one for the gateway, the rest for containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    subnet: Subnet,
    /// Offset of the last address for containers.
    last: u128,
    gateway: InterfaceAddress,
}

impl Range {
    /// Returns the range of a subnet. `None` if it has no address for a container.
    #[must_use]
    pub fn new(subnet: Subnet) -> Option<Self> {
        let end = subnet.offset_of(subnet.last())?;
        // The last address of IPv4 is the broadcast address.
        let last = if subnet.first().is_ipv4() { end.checked_sub(1)? } else { end };
        let gateway = InterfaceAddress::within(&subnet, subnet.address_at(GATEWAY)?)?;
        (last >= FIRST).then_some(Self { subnet, last, gateway })
    }

    /// Returns the subnet.
    #[must_use]
    pub const fn subnet(&self) -> &Subnet {
        &self.subnet
    }

    /// Returns the address of the bridge.
    #[must_use]
    pub const fn gateway(&self) -> InterfaceAddress {
        self.gateway
    }

    /// Returns the number of addresses for containers.
    #[must_use]
    pub const fn capacity(&self) -> u128 {
        self.last - FIRST + 1
    }

    /// Returns whether the address is of the range's family.
    #[must_use]
    pub fn is_of_family(&self, address: IpAddr) -> bool {
        self.subnet.first().is_ipv4() == address.is_ipv4()
    }

    /// Returns whether a container can have the address.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.offset(address).is_some()
    }

    fn offset(&self, address: IpAddr) -> Option<u128> {
        let offset = self.subnet.offset_of(address)?;
        (FIRST..=self.last).contains(&offset).then_some(offset)
    }

    /// Returns the first address after `last` that is not in `leased`. The search goes around once.
    /// `None` if no address is free.
    #[must_use]
    pub fn allocate(&self, leased: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Option<IpAddr> {
        let start = last.and_then(|last| self.offset(last)).map_or(0, |last| last - FIRST + 1);
        // One address more than the leased ones are enough to find a free one.
        let tries = self.capacity().min(leased.len() as u128 + 1);
        let offsets = (0..tries).map(|step| FIRST + (start + step) % self.capacity());
        let mut addresses = offsets.filter_map(|offset| self.subnet.address_at(offset));
        addresses.find(|address| !leased.contains(address))
    }

    /// Checks an address that a task asks for.
    ///
    /// # Errors
    /// When the address is outside of the range, or leased.
    pub fn request(
        &self,
        address: IpAddr,
        leased: &BTreeSet<IpAddr>,
    ) -> Result<IpAddr, PluginError> {
        let refused = |reason: String| {
            PluginError::new(
                ErrorCode::AddressRefused,
                format!("address {address} cannot be given: {reason}"),
            )
        };
        if !self.subnet.contains(address) {
            let details = "ask for an address of the agent that runs the task, or for none";
            let reason = format!("this agent has {}", self.subnet);
            return Err(refused(reason).with_details(details));
        }
        if !self.has(address) {
            let reason = "it is that of the network, its bridge or its broadcasts".to_owned();
            return Err(refused(reason).with_details("ask for another address, or for none"));
        }
        if leased.contains(&address) {
            let reason = "another container of this agent has it".to_owned();
            return Err(refused(reason).with_details("ask for another address, or for none"));
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Option<Range> {
        Range::new(subnet.parse().unwrap())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn range_leaves_out_gateway_and_edges() {
        let found = range("192.168.0.0/29").unwrap();
        assert_eq!(found.gateway().to_string(), "192.168.0.1/29");
        assert_eq!(found.capacity(), 5);
        let has = |last: u8| found.has([192, 168, 0, last].into());
        let members: Vec<u8> = (0..10).filter(|last| has(*last)).collect();
        assert_eq!(members, [2, 3, 4, 5, 6]);
        let found = range("fd01:b::/126").unwrap();
        assert_eq!((found.gateway().to_string().as_str(), found.capacity()), ("fd01:b::1/126", 2));
        assert!(found.has(ip("fd01:b::3")));
        assert!(range("192.168.0.0/30").is_some());
        for small in ["192.168.0.0/31", "192.168.0.0/32", "fd01:b::/127", "fd01:b::/128"] {
            assert_eq!(range(small), None, "{small}");
        }
    }

    #[test]
    fn allocation_goes_around_after_last_lease() {
        let found = range("192.168.0.0/29").unwrap();
        let mut leased = BTreeSet::new();
        assert_eq!(found.allocate(&leased, None), Some(ip("192.168.0.2")));
        assert_eq!(found.allocate(&leased, Some(ip("192.168.0.2"))), Some(ip("192.168.0.3")));
        assert_eq!(found.allocate(&leased, Some(ip("192.168.0.6"))), Some(ip("192.168.0.2")));
        assert_eq!(found.allocate(&leased, Some(ip("10.0.0.1"))), Some(ip("192.168.0.2")));
        leased.extend([ip("192.168.0.5"), ip("192.168.0.6"), ip("192.168.0.2")]);
        assert_eq!(found.allocate(&leased, Some(ip("192.168.0.4"))), Some(ip("192.168.0.3")));
        leased.extend([ip("192.168.0.3"), ip("192.168.0.4")]);
        assert_eq!(found.allocate(&leased, Some(ip("192.168.0.4"))), None);
        let wide = range("fd01:b::/64").unwrap();
        assert_eq!(wide.allocate(&leased, None), Some(ip("fd01:b::2")));
    }

    #[test]
    fn requested_address_is_given_or_refused() {
        let found = range("192.168.0.0/29").unwrap();
        let leased = [ip("192.168.0.3")].into();
        assert_eq!(found.request(ip("192.168.0.4"), &leased), Ok(ip("192.168.0.4")));
        let refused = |address: &str| {
            let error = found.request(ip(address), &leased).unwrap_err();
            assert_eq!(error.code(), ErrorCode::AddressRefused);
            error.to_string()
        };
        let text = "address 192.168.0.3 cannot be given: another container of this agent has it: \
                    ask for another address, or for none";
        assert_eq!(refused("192.168.0.3"), text);
        for own in ["192.168.0.0", "192.168.0.1", "192.168.0.7"] {
            let reason = "it is that of the network, its bridge or its broadcasts: ask for";
            assert!(refused(own).contains(reason), "{own}");
        }
        assert_eq!(
            refused("192.168.1.4"),
            "address 192.168.1.4 cannot be given: this agent has 192.168.0.0/29: ask for an \
             address of the agent that runs the task, or for none"
        );
    }

    proptest::proptest! {
        #[test]
        fn allocation_finds_any_free_address(
            leased in proptest::collection::btree_set(0_u8..32, 0..33),
            last in proptest::option::of(0_u8..40),
        ) {
            let found = range("192.168.0.0/27").unwrap();
            let ip = |last: u8| IpAddr::from([192, 168, 0, last]);
            let leased: BTreeSet<IpAddr> = leased.into_iter().map(ip).collect();
            let free = (2..31).map(ip).any(|address| !leased.contains(&address));
            let allocated = found.allocate(&leased, last.map(ip));
            assert_eq!(allocated.is_some(), free);
            assert!(allocated.is_none_or(|it| found.has(it) && !leased.contains(&it)));
        }
    }
}
