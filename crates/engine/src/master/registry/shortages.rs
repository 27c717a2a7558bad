//! The agents with missing addresses, by the exhausted pool.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use overlay_types::addr::{Family, OverlayName};
use overlay_types::text::pluralize;

/// An address pool that can be exhausted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pool {
    /// The subnets of an overlay, of one family.
    Overlay(OverlayName, Family),
    /// The IPv6 addresses of VTEPs.
    Vtep6,
    /// The IPv4 addresses of VTEPs.
    Vtep,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay(name, family) => write!(f, "overlay {name} ({family})"),
            Self::Vtep6 => f.write_str("the IPv6 VTEP subnet"),
            Self::Vtep => f.write_str("the VTEP subnet"),
        }
    }
}

/// The agents with a shortage.
#[derive(Debug, Clone, Default)]
pub(super) struct Shortages(BTreeMap<Pool, BTreeSet<Ipv4Addr>>);

impl Shortages {
    pub(super) fn add(&mut self, pool: Pool, ip: Ipv4Addr) {
        self.0.entry(pool).or_default().insert(ip);
    }

    /// Clears the shortages of an agent, which may have been refused because no VTEP was left.
    pub(super) fn clear(&mut self, ip: Ipv4Addr) {
        self.0.retain(|_, agents| {
            agents.remove(&ip);
            !agents.is_empty()
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the shortages of the pools that still exist.
    pub(super) fn of_pools(&self, exists: impl Fn(&Pool) -> bool) -> Self {
        let kept = self.0.iter().filter(|(pool, _)| exists(pool));
        Self(kept.map(|(pool, agents)| (pool.clone(), agents.clone())).collect())
    }

    /// Returns a sentence for each exhausted pool.
    pub(super) fn sentences(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(pool, agents)| {
            format!(
                "{pool} is exhausted: {} did not get any: widen it or delete dead agents",
                pluralize(agents.len(), "agent")
            )
        })
    }
}
