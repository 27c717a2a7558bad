//! Assignments equal the stored record when they are sent, and an agent uses only addresses that
//! were sent to it.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::addr::Subnet;
use overlay_types::container_network::ContainerNetwork;
use overlay_types::protocol::{Assignment, Bridge};

use super::{Fact, Invariant};
use crate::ledger::{Ledger, Span, Stored, allocation_of};

#[derive(Default)]
pub(crate) struct AssignmentsAreStored {
    /// Every range that was ever sent to an agent, whole and in halves.
    sent: HashMap<Ipv4Addr, HashSet<Span>>,
}

impl AssignmentsAreStored {
    fn was_sent(&self, agent: Ipv4Addr, span: Span) -> bool {
        self.sent.get(&agent).is_some_and(|sent| sent.contains(&span))
    }
}

/// Checks that the bridges of an agent are the halves of its subnets.
fn check_halves(to: Ipv4Addr, assignment: &Assignment) -> Result<(), String> {
    let is_right = |subnet: Option<Subnet>, half_of: fn(&Bridge) -> Option<Subnet>| {
        let halves = subnet.and_then(|subnet| subnet.halves());
        let lower = assignment.mesos_bridge.as_ref().and_then(half_of);
        let upper = assignment.docker_bridge.as_ref().and_then(half_of);
        lower.is_none_or(|lower| halves.is_some_and(|(half, _)| half == lower))
            && upper.is_none_or(|upper| halves.is_some_and(|(_, half)| half == upper))
    };
    if is_right(assignment.subnet, |bridge| bridge.subnet)
        && is_right(assignment.subnet6, |bridge| bridge.subnet6)
    {
        return Ok(());
    }
    Err(format!("{to} is sent bridges that are not the halves of its subnet: {assignment:?}"))
}

impl Invariant for AssignmentsAreStored {
    fn name(&self) -> &'static str {
        "sent assignments are stored"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String> {
        match fact {
            Fact::AssignmentsSent { by, to, overlays } => {
                overlays.iter().try_for_each(|assignment| check_halves(*to, assignment))?;
                // Another invariant checks demoted masters.
                let is_leading = by.epoch == ledger.epoch;
                let version = if is_leading { ledger.version } else { by.durable };
                let stored = ledger.at(*to, version);
                let sent = self.sent.entry(*to).or_default();
                for (kind, span) in allocation_of(overlays) {
                    sent.insert(span);
                    let is_stored = match stored {
                        // The overlay may have been renamed while the message was held back.
                        Stored::Has(allocation) => {
                            allocation.get(&kind) == Some(&span)
                                || allocation.values().any(|had| *had == span)
                        }
                        Stored::Nothing | Stored::Had(..) => false,
                    };
                    if is_leading && !is_stored {
                        return Err(format!(
                            "{to} is sent {kind:?} {span:?} by master {} in epoch {}, and the \
                             store has {stored:?} at version {version}",
                            by.master, by.epoch
                        ));
                    }
                }
                for assignment in *overlays {
                    let bridges = [&assignment.mesos_bridge, &assignment.docker_bridge];
                    for bridge in bridges.into_iter().flatten() {
                        let halves = bridge.subnet.iter().chain(&bridge.subnet6);
                        sent.extend(halves.map(Span::of_subnet));
                    }
                }
                Ok(())
            }
            Fact::NetworkDesired { agent, network } => {
                let subnets = match network {
                    ContainerNetwork::Cni(network) => [Some(network.subnet), None],
                    ContainerNetwork::Docker(network) => [network.subnet, network.subnet6],
                };
                let spans = subnets.iter().flatten().map(Span::of_subnet);
                let mut unknown = spans.filter(|span| !self.was_sent(*agent, *span));
                match unknown.next() {
                    Some(span) => {
                        Err(format!("{agent} configures {span:?}, which no master sent to it"))
                    }
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
