//! An agent programs no way to a peer that was never given what leads there: not the VTEP, not the
//! subnet behind it, and not before that was stored.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use mesos_network_overlay::addr::{Mac, Subnet};
use mesos_network_overlay::dataplane::{Hop, Operation};

use super::{Fact, Invariant};
use crate::ledger::{Ledger, Span};

/// For how long after an agent was deleted what is programmed is not judged. While a commit waits
/// for a store that hangs, an agent can be given something, be deleted, and come back to something
/// else: what peers were to be told in between waits for the same commit, which has only the last
/// of it. What corrects it follows at once.
const FLEETING: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub(crate) struct PeersAreAssigned {
    /// Everything that each agent ever had.
    had: HashMap<Ipv4Addr, HashSet<Span>>,
    /// Who ever had a VTEP.
    holders: HashMap<Span, HashSet<Ipv4Addr>>,
    /// Who was lied to about peers: what it programmed then may come back.
    deceived: HashSet<Ipv4Addr>,
    /// Until when what is programmed is not judged.
    judged_from: Duration,
}

/// Whether a MAC is the one of a VTEP address.
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
        "peers are programmed as they were assigned"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Deleted { .. } => self.judged_from = now + FLEETING,
            Fact::Stored { steps, .. } => {
                for step in *steps {
                    // One commit may have both what an agent got and that it was deleted.
                    let share = step.after.latest_share();
                    for span in share.into_iter().flat_map(|share| share.values()) {
                        self.had.entry(step.ip).or_default().insert(*span);
                        if span.first == span.last {
                            self.holders.entry(*span).or_default().insert(step.ip);
                        }
                    }
                }
            }
            Fact::Lied { agent } => {
                self.deceived.insert(*agent);
            }
            // Who knows no peers leaves what is there, also what others put there.
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
