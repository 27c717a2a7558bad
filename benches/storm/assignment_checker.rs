//! Checks the assignments that agents receive. Until an agent is released, all its assignments are
//! equal, and no other agent gets any of its addresses.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use overlay_types::protocol::{Assignment, State, Status};

/// Number of overlays in the test networks, and the prefix length of an agent's subnet.
const OVERLAYS: usize = 2;
const PREFIX: u8 = 24;
/// Number of events of an agent that a violation shows.
const SHOWN_EVENTS: usize = 12;

/// The assignments of all agents, and the violations found so far.
#[derive(Default)]
pub(crate) struct AssignmentChecker {
    agents: BTreeMap<Ipv4Addr, AgentAssignments>,
    /// The agent that received each address and subnet last.
    owners: HashMap<String, Ipv4Addr>,
    /// Number of checked messages.
    pub(crate) compared: usize,
    /// Number of messages with addresses that another agent had before.
    pub(crate) reused: usize,
    /// Violations by a master.
    violations: Vec<String>,
    /// The last events of each agent, which explain a violation.
    events: HashMap<Ipv4Addr, VecDeque<(Instant, Event)>>,
}

/// An event of an agent.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Killed,
    Restarted,
    /// The test asks a master to forget the agent.
    Released,
    /// The master at this address sent this VTEP address.
    Assigned(SocketAddrV4, Option<IpAddr>),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::Restarted => f.write_str("restarted"),
            Self::Released => f.write_str("released"),
            Self::Assigned(master, Some(vtep)) => write!(f, "got {vtep} from {master}"),
            Self::Assigned(master, None) => write!(f, "got no overlay from {master}"),
        }
    }
}

/// The assignments of one agent.
struct AgentAssignments {
    current: Vec<Assignment>,
    /// The assignments before previous releases.
    previous: Vec<Vec<Assignment>>,
    /// Whether the current assignment must not change: the agent was not released since.
    is_binding: bool,
}

impl AssignmentChecker {
    /// Checks an assignment that the agent at `ip` received from the leading master.
    pub(crate) fn check_assignment(&mut self, ip: Ipv4Addr, overlays: &[Assignment]) {
        self.compared += 1;
        match self.agents.get_mut(&ip) {
            Some(agent) if agent.current == overlays => agent.is_binding = true,
            Some(agent) if agent.is_binding => {
                let current = exclusive_addresses(&agent.current).collect::<Vec<_>>();
                let addresses = exclusive_addresses(overlays).collect::<Vec<_>>();
                let events = self.events(ip);
                let violation = format!("{ip} got {current:?} and then {addresses:?}{events}");
                return self.add_violation(violation);
            }
            Some(agent) => {
                let before = std::mem::replace(&mut agent.current, overlays.to_vec());
                agent.is_binding = true;
                for address in exclusive_addresses(&before) {
                    if self.owners.get(&address) == Some(&ip) {
                        self.owners.remove(&address);
                    }
                }
                agent.previous.push(before);
            }
            None => {
                let agent = AgentAssignments {
                    current: overlays.to_vec(),
                    previous: Vec::new(),
                    is_binding: true,
                };
                self.agents.insert(ip, agent);
            }
        }
        if let Err(violation) = self.claim_addresses(ip, overlays) {
            self.add_violation(violation);
        }
    }

    /// Checks an assignment that the agent at `ip` received from a master that does not lead. The
    /// agent ignores such an assignment. Still, the assignment must be equal to the current one or
    /// to one before a release.
    pub(crate) fn check_foreign_assignment(&mut self, ip: Ipv4Addr, overlays: &[Assignment]) {
        self.compared += 1;
        if let Some(agent) = self.agents.get(&ip)
            && agent.is_binding
            && agent.current != overlays
            && !agent.previous.iter().any(|previous| previous == overlays)
        {
            let current = &agent.current;
            self.add_violation(format!(
                "{ip} got {current:?}, and from a master without leadership {overlays:?}"
            ));
        }
    }

    /// Allows the agent at `ip` to lose its addresses from now on.
    pub(crate) fn release(&mut self, ip: Ipv4Addr) {
        if let Some(agent) = self.agents.get_mut(&ip) {
            agent.is_binding = false;
        }
        self.record(ip, Event::Released);
    }

    /// Adds a violation.
    pub(crate) fn add_violation(&mut self, violation: String) {
        self.violations.push(violation);
    }

    /// Returns the number of agents with an assignment that was not released.
    pub(crate) fn count(&self) -> usize {
        self.agents.values().filter(|agent| agent.is_binding).count()
    }

    /// Records an event of the agent at `ip`.
    pub(crate) fn record(&mut self, ip: Ipv4Addr, event: Event) {
        let events = self.events.entry(ip).or_default();
        if events.len() == SHOWN_EVENTS {
            events.pop_front();
        }
        events.push_back((now(), event));
    }

    /// Returns the last events of the agent at `ip`, with their ages.
    fn events(&self, ip: Ipv4Addr) -> String {
        let events = self.events.get(&ip).into_iter().flatten();
        events.map(|(at, event)| format!("\n  {ip} {event} {:?} ago", at.elapsed())).collect()
    }

    /// Fails if there was a violation.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.violations.first() {
            Some(first) => Err(format!("{} violations, the first: {first}", self.violations.len())),
            None => Ok(()),
        }
    }

    /// Returns the agents in `state` that have no assignment, or whose assignment was released.
    pub(crate) fn unassigned_agents(&self, state: &State) -> Vec<Ipv4Addr> {
        let is_assigned = |ip: &Ipv4Addr| self.agents.get(ip).is_some_and(|agent| agent.is_binding);
        state.agents.iter().map(|agent| agent.ip).filter(|ip| !is_assigned(ip)).collect()
    }

    /// Checks that there was no violation, and that `state` contains exactly the agents with an
    /// assignment, with the same addresses and the status OK.
    pub(crate) fn check_state(&self, state: &State) -> Result<(), String> {
        self.check()?;
        if state.agents.len() != self.count() {
            return Err(format!(
                "{} agents have an assignment, the state has {}",
                self.count(),
                state.agents.len()
            ));
        }
        for agent in &state.agents {
            let known = self.agents.get(&agent.ip).filter(|known| known.is_binding);
            let current = &known.ok_or_else(|| format!("{} has no assignment", agent.ip))?.current;
            let is_equal = agent.overlays.len() == current.len()
                && agent.overlays.iter().zip(current).all(|(shown, current)| {
                    shown.name() == current.name()
                        && shown.has_same_addresses(current)
                        && shown.status == Some(Status::Ok)
                });
            if !is_equal {
                return Err(format!(
                    "{} got {current:?}, the state has {:?}",
                    agent.ip, agent.overlays
                ));
            }
        }
        Ok(())
    }

    /// Makes the agent at `ip` the owner of the addresses in `overlays`. The assignment must be
    /// complete, and must not contain an address of another agent.
    fn claim_addresses(&mut self, ip: Ipv4Addr, overlays: &[Assignment]) -> Result<(), String> {
        // All subnets have the same prefix length, so different subnets do not overlap.
        let is_complete = |assignment: &Assignment| {
            assignment.vtep == overlays[0].vtep
                && assignment.subnet.is_some_and(|subnet| {
                    subnet.prefix() == PREFIX
                        && assignment
                            .overlay
                            .range
                            .is_some_and(|range| range.subnet.covers(&subnet))
                })
        };
        if overlays.len() != OVERLAYS || !overlays.iter().all(is_complete) {
            return Err(format!("{ip} got an incomplete assignment: {overlays:?}"));
        }
        let mut is_reused = false;
        for address in exclusive_addresses(overlays) {
            let other = self.owners.get(&address).filter(|other| **other != ip);
            if let Some(other) = other {
                if self.agents.get(other).is_some_and(|agent| agent.is_binding) {
                    let (events, others) = (self.events(ip), self.events(*other));
                    return Err(format!("{ip} got {address}, which {other} has{events}{others}"));
                }
                is_reused = true;
            }
            self.owners.insert(address, ip);
        }
        self.reused += usize::from(is_reused);
        Ok(())
    }
}

/// Returns the addresses and subnets that only one agent may have.
fn exclusive_addresses(overlays: &[Assignment]) -> impl Iterator<Item = String> {
    let vteps = overlays.iter().take(1).map(|assignment| &assignment.vtep);
    let vteps = vteps.flat_map(|vtep| [vtep.ip.to_string(), vtep.mac.to_string()]);
    vteps.chain(
        overlays.iter().filter_map(|assignment| assignment.subnet).map(|subnet| subnet.to_string()),
    )
}

#[expect(clippy::disallowed_methods, reason = "the events of a real run")]
fn now() -> Instant {
    Instant::now()
}
