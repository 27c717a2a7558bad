//! Plans a change of few peers without looking at the unchanged peers, so that the cost of one
//! added or removed peer does not depend on the number of peers. All other changes get a full plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use itertools::{EitherOrBoth, Itertools as _};
use overlay_types::tunnel::{Desired, Peer};

use super::plan::{Observed, Plan, difference, plan, target};
use super::state::{Device, Hop, RouteKey, State};

/// The full plan is used if more than this fraction of the peers changed: one in four.
const CHANGED_PEERS_DIVISOR: usize = 4;

/// Plans like [`plan`], but faster if `applied` is given: the desired state that the kernel has.
/// Pass it only if its plan included every peer ([`Plan::includes_every_peer`]).
#[must_use]
pub fn plan_change(applied: Option<&Desired>, desired: &Desired, observed: &Observed) -> Plan {
    let partial = applied.and_then(|applied| partial_plan(applied, desired, observed));
    partial.unwrap_or_else(|| plan(desired, observed))
}

/// Plans the difference between `applied` and `desired`. Returns `None` if only a full plan is
/// correct.
fn partial_plan(applied: &Desired, desired: &Desired, observed: &Observed) -> Option<Plan> {
    if (&applied.vxlan_devices, &applied.spaces) != (&desired.vxlan_devices, &desired.spaces)
        || applied.direct != desired.direct
    {
        return None;
    }
    // Every plan reports the excluded peers as problems, not only the first plan.
    if !desired.excluded_peers.is_empty() {
        return None;
    }
    let (before, after) = (applied.peers.as_ref()?, desired.peers.as_ref()?);
    let agents = changed_agents(before, after);
    if agents.len() * CHANGED_PEERS_DIVISOR > after.len() {
        return None;
    }
    let (old, _) = target(&with_peers(desired, before, &agents), observed);
    let (new, problems) = target(&with_peers(desired, after, &agents), observed);
    if conflicts_with_unchanged_peer(&new, &old, &observed.state) {
        return None;
    }
    // If a peer is left out, the peer that it conflicts with may be unchanged.
    let plan = Plan { operations: difference(&new, &old), problems };
    plan.includes_every_peer().then_some(plan)
}

/// Returns `desired` with the `peers` of `agents` only.
fn with_peers(
    desired: &Desired,
    peers: &BTreeMap<IpAddr, Peer>,
    agents: &BTreeSet<IpAddr>,
) -> Desired {
    let peers = agents.iter().filter_map(|agent| Some((*agent, peers.get(agent)?.clone())));
    Desired {
        vxlan_devices: desired.vxlan_devices.clone(),
        spaces: desired.spaces.clone(),
        peers: Some(peers.collect()),
        direct: desired.direct.clone(),
        ..Desired::default()
    }
}

/// Returns the agents that are added, removed or changed.
fn changed_agents(
    before: &BTreeMap<IpAddr, Peer>,
    after: &BTreeMap<IpAddr, Peer>,
) -> BTreeSet<IpAddr> {
    let pairs = before.iter().merge_join_by(after, |(one, _), (other, _)| one.cmp(other));
    let changed = pairs.filter_map(|pair| match pair {
        EitherOrBoth::Both((_, old), (_, new)) if old == new => None,
        EitherOrBoth::Both((agent, _), _)
        | EitherOrBoth::Left((agent, _))
        | EitherOrBoth::Right((agent, _)) => Some(*agent),
    });
    changed.collect()
}

/// Returns whether an entry of `new` exists in the kernel for an unchanged peer: `observed` has the
/// entry, and `old`, the former state of the changed peers, does not.
fn conflicts_with_unchanged_peer(new: &State, old: &State, observed: &State) -> bool {
    let has_device_conflict = new.devices.iter().any(|(name, device)| {
        let old = old.devices.get(name);
        observed.devices.get(name).is_some_and(|observed| has_entry_conflict(device, old, observed))
    });
    let mut to_peers = new.routes.iter().filter(leads_to_peer);
    has_device_conflict || to_peers.any(|(key, _)| has_route_conflict(key, old, observed))
}

fn has_entry_conflict(new: &Device, old: Option<&Device>, observed: &Device) -> bool {
    let has_neighbor = |ip| old.is_some_and(|old| old.neighbors.contains_key(ip));
    let has_forward = |mac| old.is_some_and(|old| old.forwards.contains_key(mac));
    new.neighbors.keys().any(|ip| observed.neighbors.contains_key(ip) && !has_neighbor(ip))
        || new.forwards.keys().any(|mac| observed.forwards.contains_key(mac) && !has_forward(mac))
}

fn leads_to_peer((_, hop): &(&RouteKey, &Hop)) -> bool {
    matches!(hop, Hop::Via { .. } | Hop::Direct { .. })
}

/// Returns whether a route to an unchanged peer overlaps `key`. These routes do not overlap each
/// other, so only the route before and the route after `key` can overlap it.
fn has_route_conflict(key: &RouteKey, old: &State, observed: &State) -> bool {
    let is_unchanged =
        |route: &(&RouteKey, &Hop)| leads_to_peer(route) && !old.routes.contains_key(route.0);
    let before = observed.routes.range(..=key).rev().find(is_unchanged);
    let after = observed.routes.range(key..).find(is_unchanged);
    before.into_iter().chain(after).any(|(other, _)| other.subnet.overlaps(&key.subnet))
}
