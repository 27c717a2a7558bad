//! After all faults, the kernel of every agent has exactly the peers of the master's state, and no
//! agent reports missing peers, unless the master sends none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_linux::dataplane::State as Kernel;
use overlay_types::addr::{Mac, OverlayName, Subnet};
use overlay_types::protocol::{Assignment, Status};

use super::healing::has_conflict;
use super::{Fact, Healed, HealedAgent, Invariant};
use crate::kernel::routes_to_peers;
use crate::ledger::{Allocation, Ledger, Span};

pub(crate) struct PeersAgree;

/// The neighbors, FDB entries and routes to peers in a kernel.
#[derive(Debug, Default)]
struct PeerRoutes {
    neighbors: BTreeMap<IpAddr, Mac>,
    forwards: BTreeMap<Mac, IpAddr>,
    routes: BTreeMap<Subnet, IpAddr>,
}

impl PeerRoutes {
    fn of_kernel(kernel: &Kernel) -> Self {
        let mut routes = Self::default();
        for device in kernel.devices.values() {
            routes.neighbors.extend(&device.neighbors);
            routes.forwards.extend(&device.forwards);
        }
        routes.routes.extend(routes_to_peers(kernel).map(|(key, gateway)| (key.subnet, *gateway)));
        routes
    }

    /// Adds the entries for one overlay of a peer.
    fn add(&mut self, ip: Ipv4Addr, assignment: &Assignment, used: &BTreeSet<&OverlayName>) {
        let vtep = &assignment.vtep;
        let vteps = [Some(vtep.ip), vtep.ip6].into_iter().flatten().map(|vtep| vtep.address());
        for address in vteps.clone() {
            self.neighbors.insert(address, vtep.mac);
        }
        self.forwards.insert(vtep.mac, ip.into());
        if !used.contains(assignment.name()) {
            return;
        }
        for subnet in assignment.subnet.iter().chain(&assignment.subnet6) {
            let gateway = vteps.clone().find(|vtep| vtep.is_ipv4() == subnet.first().is_ipv4());
            self.routes.extend(gateway.map(|gateway| (*subnet, gateway)));
        }
    }
}

/// Returns the overlays of an agent without those that overlap routes of its host.
fn used(agent: &HealedAgent) -> BTreeSet<&OverlayName> {
    let is_refused = |assignment: &Assignment| match &assignment.status {
        Some(Status::Failed(reason)) => reason.contains("collides with the host's"),
        _ => false,
    };
    let used = agent.info.overlays.iter().filter(|assignment| !is_refused(assignment));
    used.map(Assignment::name).collect()
}

/// The allocations that the state of the master does not show: of agents without overlays, or with
/// a conflict.
struct Hidden<'a>(Vec<(Ipv4Addr, &'a Allocation)>);

impl<'a> Hidden<'a> {
    fn of(healed: &Healed, ledger: &'a Ledger) -> Self {
        let agents = healed.state.agents.iter();
        let hidden =
            agents.filter(|it| it.overlays.is_empty() || has_conflict(&healed.health, it.ip));
        let stored =
            hidden.filter_map(|it| Some((it.ip, ledger.at(it.ip, ledger.version).allocation()?)));
        Self(stored.collect())
    }

    fn has(&self, span: Span) -> bool {
        self.0.iter().any(|(_, allocation)| allocation.values().any(|had| *had == span))
    }

    fn is_agent(&self, address: IpAddr) -> bool {
        self.0.iter().any(|(ip, _)| IpAddr::V4(*ip) == address)
    }
}

fn check_agent(healed: &Healed, agent: &HealedAgent, ledger: &Ledger) -> Result<(), String> {
    let ip = agent.info.ip;
    let is_served = healed.state.agents.iter().any(|shown| shown.ip == ip);
    let Some(kernel) = &agent.kernel else { return Ok(()) };
    if healed.sends_no_peers || !is_served || has_conflict(&healed.health, ip) {
        return Ok(());
    }
    let is_missed = |problem: &String| {
        problem.contains("the master sends no peers to this agent")
            || problem.contains("the master does not answer requests for the table of peers")
    };
    if agent.health.problems.iter().any(is_missed) {
        return Err(format!("{ip} reports that the master sends no peers"));
    }
    let used = used(agent);
    let mut expected = PeerRoutes::default();
    let others = healed.state.agents.iter().filter(|other| other.ip != ip);
    let clear = others.filter(|other| !has_conflict(&healed.health, other.ip));
    for other in clear.filter(|_| !used.is_empty()) {
        other.overlays.iter().for_each(|overlay| expected.add(other.ip, overlay, &used));
    }
    let hidden = Hidden::of(healed, ledger);
    let PeerRoutes { mut neighbors, mut forwards, mut routes } = PeerRoutes::of_kernel(kernel);
    let is_hidden = |address: &IpAddr| hidden.has(Span::of_address(*address));
    neighbors.retain(|vtep, mac| expected.neighbors.get(vtep) == Some(mac) || !is_hidden(vtep));
    forwards.retain(|mac, to| expected.forwards.get(mac) == Some(to) || !hidden.is_agent(*to));
    routes.retain(|subnet, via| expected.routes.get(subnet) == Some(via) || !is_hidden(via));
    if (&neighbors, &forwards, &routes)
        == (&expected.neighbors, &expected.forwards, &expected.routes)
    {
        return Ok(());
    }
    let actual = PeerRoutes { neighbors, forwards, routes };
    Err(format!("the kernel of {ip} has {actual:?}, and the master shows {expected:?}"))
}

impl Invariant for PeersAgree {
    fn name(&self) -> &'static str {
        "every kernel has the master's peers"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Healed(healed) => {
                healed.agents.iter().try_for_each(|agent| check_agent(healed, agent, ledger))
            }
            _ => Ok(()),
        }
    }
}
