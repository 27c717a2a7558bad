//! An agent programs only addresses that were allocated to the peer, VTEPs and subnets, after the
//! allocation was stored.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_linux::dataplane::{Hop, Operation};
use overlay_types::addr::{Mac, Subnet};

use super::{Fact, Invariant};
use crate::ledger::{Ledger, Span};

/// The time after a release for which programmed peers are not checked. While a store hangs, an
/// agent can get an address, be released, and return with another address. All peer updates in
/// between wait for the same commit, which contains only the last address. A correction follows at
/// once.
const UNCHECKED: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub(crate) struct PeersAreAssigned {
    /// Every range that each agent ever had.
    had: HashMap<Ipv4Addr, HashSet<Span>>,
    /// The agents that ever had a VTEP.
    holders: HashMap<Span, HashSet<Ipv4Addr>>,
    /// The agents that received false peers, which they may program again later.
    deceived: HashSet<Ipv4Addr>,
    /// The end of the time for which programmed peers are not checked.
    checked_from: Duration,
}

/// Returns whether a MAC belongs to a VTEP address.
fn is_mac_of(mac: Mac, vtep: &Span) -> bool {
    let [_, _, _, high, middle, low] = mac.octets();
    vtep.first & 0x00ff_ffff == u128::from(u32::from_be_bytes([0, high, middle, low]))
}

impl PeersAreAssigned {
    fn holders(&self, vtep: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
        self.holders.get(&Span::of_address(vtep)).into_iter().flatten().copied()
    }

    fn has_had_mac(&self, agent: Ipv4Addr, mac: Mac) -> bool {
        let had = self.had.get(&agent).into_iter().flatten();
        had.filter(|span| span.first == span.last).any(|vtep| is_mac_of(mac, vtep))
    }

    fn has_had(&self, agent: Ipv4Addr, subnet: &Subnet) -> bool {
        self.had.get(&agent).is_some_and(|had| had.contains(&Span::of_subnet(subnet)))
    }

    fn is_assigned(&self, operation: &Operation) -> bool {
        match operation {
            Operation::SetNeighbor(_, vtep, mac) => {
                self.holders(*vtep).any(|agent| self.has_had_mac(agent, *mac))
            }
            Operation::SetForward(_, mac, IpAddr::V4(agent)) => self.has_had_mac(*agent, *mac),
            Operation::SetForward(..) => false,
            Operation::AddRoute(key, Hop::Via { gateway, .. })
            | Operation::ChangeRoute(key, Hop::Via { gateway, .. }) => {
                self.holders(*gateway).any(|agent| self.has_had(agent, &key.subnet))
            }
            _ => true,
        }
    }
}

impl Invariant for PeersAreAssigned {
    fn name(&self) -> &'static str {
        "programmed peers were assigned"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::ReleaseRequested { .. } => self.checked_from = now + UNCHECKED,
            Fact::Imported { steps } | Fact::Committed { steps, .. } => {
                for step in *steps {
                    // One commit may have both an allocation and its release.
                    let allocation = step.after.latest_allocation();
                    for span in allocation.into_iter().flat_map(|allocation| allocation.values()) {
                        self.had.entry(step.ip).or_default().insert(*span);
                        if span.first == span.last {
                            self.holders.entry(*span).or_default().insert(step.ip);
                        }
                    }
                }
            }
            Fact::FalsePeersSent { agent } => {
                self.deceived.insert(*agent);
            }
            // An agent without peers leaves all entries, also foreign ones.
            Fact::Programmed { agent, desired, done, .. }
                if desired.peers.is_some()
                    && !self.deceived.contains(agent)
                    && now >= self.checked_from =>
            {
                let mut unknown = done.operations.iter().filter(|it| !self.is_assigned(it));
                if let Some(operation) = unknown.next() {
                    return Err(format!(
                        "{agent} was to {operation}, which no agent was allocated"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
