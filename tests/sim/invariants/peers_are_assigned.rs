//! An agent programs only addresses that were allocated to the peer, VTEPs and subnets, after the
//! allocation was stored.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use mesos_network_overlay::addr::{Mac, Subnet};
use mesos_network_overlay::dataplane::{Hop, Operation};

use super::{Fact, Invariant};
use crate::ledger::{Ledger, Span};

/// The time after a release for which programmed peers are not checked. While a store hangs, an
/// agent can be allocated an address, be released, and return to another one. The updates of its
/// peers in between wait for the same commit, which has only the last address. A correction follows
/// at once.
const FLEETING: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub(crate) struct PeersAreAssigned {
    /// Every range that each agent ever had.
    had: HashMap<Ipv4Addr, HashSet<Span>>,
    /// The agents that ever had a VTEP.
    holders: HashMap<Span, HashSet<Ipv4Addr>>,
    /// The agents that received false peers: what they programmed may come back.
    deceived: HashSet<Ipv4Addr>,
    /// The end of the time for which programmed peers are not checked.
    judged_from: Duration,
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
            Operation::SetNeighbour(_, vtep, mac) => {
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
            Fact::ReleaseRequested { .. } => self.judged_from = now + FLEETING,
            Fact::Imported { steps } | Fact::Committed { steps, .. } => {
                for step in *steps {
                    // One commit may have both an allocation and its release.
                    let share = step.after.latest_allocation();
                    for span in share.into_iter().flat_map(|share| share.values()) {
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
                    && now >= self.judged_from =>
            {
                let mut unknown = done.operations.iter().filter(|it| !self.is_assigned(it));
                if let Some(operation) = unknown.next() {
                    return Err(format!("{agent} was to {operation}, which nobody was given"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
