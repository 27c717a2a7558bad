//! The MTU of the containers, which follows the MTU of the underlay unless it is configured.

use super::VxlanDevice;
use crate::addr::Mtu;
use crate::protocol::AgentOptions;

/// Bytes by which the MTU of the containers is below that of the underlay. VXLAN needs 50 over IPv4
/// and 70 over IPv6. With 80, an underlay of 1500 gives the 1420 of the C++ modules.
const CONTAINERS_MARGIN: u32 = 80;
/// Least MTU of an underlay that carries IPv4 overlays: every host accepts packets of 576 bytes
/// (RFC 791).
pub const UNDERLAY_MIN: u32 = 576;
/// Least MTU of an underlay that carries IPv6 overlays.
pub const UNDERLAY_MIN_IPV6: u32 = Mtu::MIN_IPV6 + CONTAINERS_MARGIN;

/// The MTU of the underlay, as the agent observed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderlayMtu {
    /// The least MTU of the routes to the peers, or of the device with the agent's address.
    pub mtu: Mtu,
    /// Whether it is that of the routes to the peers.
    pub is_routed: bool,
}

/// The MTU of the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainersMtu {
    /// The agent's configuration has it.
    Configured(Mtu),
    /// It follows from the MTU of the underlay.
    Derived(Mtu),
}

impl ContainersMtu {
    /// Returns the MTU.
    #[must_use]
    pub const fn mtu(self) -> Mtu {
        match self {
            Self::Configured(mtu) | Self::Derived(mtu) => mtu,
        }
    }
}

impl AgentOptions {
    /// Returns the MTU of the containers. `vtep` is the MTU of the VXLAN device if the master sets
    /// it. Returns `None` if the MTU of the underlay is needed and unknown.
    #[must_use]
    pub fn containers_mtu(
        &self,
        underlay: Option<Mtu>,
        vtep: Option<Mtu>,
    ) -> Option<ContainersMtu> {
        match self.overlay_mtu {
            Some(mtu) => Some(ContainersMtu::Configured(mtu)),
            None => underlay.map(|underlay| ContainersMtu::Derived(derived(underlay, vtep))),
        }
    }
}

/// Returns the MTU of containers on an underlay. It is never below that of the least underlay: an
/// underlay with a smaller MTU carries no overlay.
fn derived(underlay: Mtu, vtep: Option<Mtu>) -> Mtu {
    let bytes = underlay.bytes().max(UNDERLAY_MIN) - CONTAINERS_MARGIN;
    let fits = Mtu::new(bytes).unwrap_or(Mtu::OVERLAY_DEFAULT);
    vtep.map_or(fits, |vtep| vtep.min(fits))
}

impl VxlanDevice {
    /// Returns whether an underlay with this MTU carries IPv6 of the containers.
    #[must_use]
    pub fn carries_ipv6(&self, underlay: Mtu) -> bool {
        let is_derived = matches!(self.containers_mtu, Some(ContainersMtu::Derived(_)));
        self.mtu_on(underlay) >= Mtu::MIN_IPV6
            && (!is_derived || underlay.bytes() >= UNDERLAY_MIN_IPV6)
    }

    /// Returns the MTU of the device on an underlay with this MTU.
    #[must_use]
    pub fn mtu_on(&self, underlay: Mtu) -> u32 {
        self.mtu.map_or_else(|| underlay.bytes().saturating_sub(self.overhead()), Mtu::bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mtu(bytes: u32) -> Mtu {
        Mtu::new(bytes).unwrap()
    }

    #[test]
    fn containers_mtu_follows_underlay_unless_configured() {
        let options = AgentOptions::default();
        let derived = |underlay, vtep| {
            options.containers_mtu(Some(mtu(underlay)), vtep).unwrap().mtu().bytes()
        };
        assert_eq!(derived(1500, None), 1420);
        assert_eq!(derived(9000, None), 8920);
        assert_eq!(derived(576, None), 496);
        assert_eq!(derived(575, None), 496);
        assert_eq!(derived(65535, None), 65455);
        assert_eq!(derived(1500, Some(mtu(1450))), 1420);
        assert_eq!(derived(1500, Some(mtu(1400))), 1400);
        assert_eq!(options.containers_mtu(None, None), None);
        let options = AgentOptions { overlay_mtu: Some(mtu(1300)), ..options };
        for underlay in [None, Some(mtu(9000))] {
            let expected = ContainersMtu::Configured(mtu(1300));
            assert_eq!(options.containers_mtu(underlay, None), Some(expected));
        }
    }
}
