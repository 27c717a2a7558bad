//! An agent removes a container network outside of an assignment only if a master named its subnet
//! as assigned to another agent, after the last assignment reached the agent. A master names an
//! address only if the stored record of the other agent has it.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::addr::Subnet;

use super::{Fact, Invariant};
use crate::host::subnets;
use crate::ledger::{Ledger, Span, Step};

#[derive(Default)]
pub(crate) struct ReassignedNetworks {
    /// The addresses in the stored records of the registered agents.
    stored: HashMap<Ipv4Addr, BTreeSet<Span>>,
    /// The addresses that any master named to an agent.
    named: HashMap<Ipv4Addr, BTreeSet<Span>>,
    /// Those that were named since the last assignment reached the agent.
    latest: HashMap<Ipv4Addr, BTreeSet<Span>>,
}

impl ReassignedNetworks {
    fn stored(&mut self, step: &Step) {
        let allocation = step.after.allocation();
        let spans = allocation.into_iter().flat_map(|allocation| allocation.values().copied());
        self.stored.insert(step.ip, spans.collect());
    }

    fn has_overlap(&self, agent: Ipv4Addr, span: Span) -> bool {
        let overlaps = |other: &Span| {
            other.family == span.family && other.first <= span.last && span.first <= other.last
        };
        self.stored.get(&agent).is_some_and(|spans| spans.iter().any(overlaps))
    }
}

impl Invariant for ReassignedNetworks {
    fn name(&self) -> &'static str {
        "only reassigned networks are removed"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Imported { steps } | Fact::Committed { steps, .. } => {
                steps.iter().for_each(|step| self.stored(step));
            }
            Fact::ProblemsSent { by, to, problems } => {
                for reassigned in &problems.reassigned {
                    let span = Span::of_subnet(&reassigned.subnet);
                    self.named.entry(*to).or_default().insert(span);
                    self.latest.entry(*to).or_default().insert(span);
                    let is_stored = self.has_overlap(reassigned.agent, span);
                    if by.epoch == ledger.epoch && (!is_stored || reassigned.agent == *to) {
                        return Err(format!(
                            "master {} names {} to {to} as assigned to {}, whose stored record does \
                             not have it at version {}",
                            by.master, reassigned.subnet, reassigned.agent, ledger.version
                        ));
                    }
                }
            }
            Fact::AssignmentsReceived { agent } => drop(self.latest.remove(agent)),
            Fact::RemovalOrdered { agent, named } => {
                let latest = self.latest.get(agent);
                let is_late = |subnet: &&Subnet| {
                    !latest.is_some_and(|latest| latest.contains(&Span::of_subnet(subnet)))
                };
                if let Some(subnet) = named.values().flatten().find(is_late) {
                    return Err(format!(
                        "{agent} removes the network of {subnet}, which no master named since the \
                         last assignment"
                    ));
                }
            }
            Fact::NetworkDropped { agent, network } => {
                let named = self.named.get(agent);
                let is_named = |span: Span| named.is_some_and(|named| named.contains(&span));
                let mut spans = subnets(network).into_iter().map(|one| Span::of_subnet(&one));
                // The name of an assigned subnet covers both of its halves.
                let mut whole = named.into_iter().flatten();
                let covers = |one: &Span, span: &Span| {
                    one.family == span.family && one.first <= span.first && span.last <= one.last
                };
                if !spans.any(|span| is_named(span) || whole.any(|one| covers(one, &span))) {
                    return Err(format!(
                        "{agent} removes the {} of {}, which no other agent has",
                        network.kind(),
                        network.name()
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
