//! What is not as it is wanted, and of what: so that the overlays concerned can say so.

use std::fmt;
use std::net::IpAddr;

use super::Desired;
use crate::addr::{DeviceName, OverlayName, Subnet};

/// What a fault is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The host as a whole.
    Host,
    /// One VXLAN device of ours.
    Device(DeviceName),
    /// Another agent, by its address in the underlay; by its identity if it is left out.
    Agent(IpAddr),
    /// A subnet of an overlay.
    Subnet(Subnet),
}

/// Something that is not as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it is about.
    pub part: Part,
    /// What is wrong, and what to do: a sentence for the operator.
    pub reason: String,
}

impl Fault {
    /// A fault of the host as a whole.
    #[must_use]
    pub fn of_host(reason: impl fmt::Display) -> Self {
        Self { part: Part::Host, reason: reason.to_string() }
    }
}

impl Desired {
    /// Whether an overlay suffers from what is wrong with a part.
    #[must_use]
    pub fn is_hit(&self, overlay: &OverlayName, part: &Part) -> bool {
        let space = self.space(overlay);
        match part {
            Part::Host => true,
            Part::Device(device) => space.is_some_and(|space| space.device == *device),
            Part::Subnet(subnet) => {
                space.is_some_and(|space| space.whole.iter().any(|whole| whole.overlaps(subnet)))
            }
            Part::Agent(agent) => {
                let peer = self.peers.as_ref().and_then(|peers| peers.get(agent));
                peer.is_some_and(|peer| peer.subnets.iter().any(|(name, _)| name == overlay))
                    || self.left_out.iter().any(|peer| {
                        IpAddr::V4(peer.agent) == *agent && peer.overlays.contains(overlay)
                    })
            }
        }
    }
}
