//! Faults of the dataplane, and which overlays they affect.

use std::fmt;
use std::net::IpAddr;

use super::Desired;
use crate::addr::{DeviceName, OverlayName, Subnet};

/// The object that a fault affects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultScope {
    /// The whole host.
    Host,
    /// A managed VXLAN device, or a bridge of an overlay.
    Device(DeviceName),
    /// Another agent, by its underlay address. An excluded agent is given by its identity.
    Agent(IpAddr),
    /// A subnet of an overlay.
    Subnet(Subnet),
}

/// A difference between the desired and the observed state that could not be fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The affected object.
    pub scope: FaultScope,
    /// Problem and remedy, for the operator.
    pub reason: String,
}

impl Fault {
    /// Creates a fault that affects the whole host.
    #[must_use]
    pub fn of_host(reason: impl fmt::Display) -> Self {
        Self { scope: FaultScope::Host, reason: reason.to_string() }
    }
}

impl Desired {
    /// Whether a fault of `scope` affects the overlay.
    #[must_use]
    pub fn is_overlay_affected(&self, overlay: &OverlayName, scope: &FaultScope) -> bool {
        let space = self.space(overlay);
        match scope {
            FaultScope::Host => true,
            FaultScope::Device(device) => space.is_some_and(|space| {
                let bridges = space.bridges.iter().map(|bridge| &bridge.device);
                space.device == *device || bridges.into_iter().any(|bridge| bridge == device)
            }),
            FaultScope::Subnet(subnet) => {
                space.is_some_and(|space| space.whole.iter().any(|whole| whole.overlaps(subnet)))
            }
            FaultScope::Agent(agent) => {
                let peer = self.peers.as_ref().and_then(|peers| peers.get(agent));
                peer.is_some_and(|peer| peer.subnets.iter().any(|(name, _)| name == overlay))
                    || self.excluded_peers.iter().any(|peer| {
                        IpAddr::V4(peer.agent) == *agent && peer.overlays.contains(overlay)
                    })
            }
        }
    }
}
