//! A change of some peers, planned without the others: what a peer costs that comes or goes does
//! not depend on how many there are. All other changes are planned as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use itertools::{EitherOrBoth, Itertools as _};

use super::plan::{Observed, Plan, difference, plan, target};
use super::state::{Hop, RouteKey, State};
use crate::tunnel::{Desired, Peer};

/// If more than this part of the peers has changed, all are planned anew.
const PART_MAX: usize = 4;

/// As [`plan`], where the kernel has all of `settled`, which was brought about by plans that left
/// out no peer ([`Plan::leaves_out_no_peer`]).
#[must_use]
pub fn plan_change(settled: Option<&Desired>, desired: &Desired, observed: &Observed) -> Plan {
    let change = settled.and_then(|settled| change(settled, desired, observed));
    change.unwrap_or_else(|| plan(desired, observed))
}

/// `None` if it takes a look at all peers.
fn change(settled: &Desired, desired: &Desired, observed: &Observed) -> Option<Plan> {
    if (&settled.locals, &settled.spaces) != (&desired.locals, &desired.spaces) {
        return None;
    }
    // What is left out is a problem of every plan, not only of the one that found it.
    if !desired.left_out.is_empty() {
        return None;
    }
    let (before, after) = (settled.peers.as_ref()?, desired.peers.as_ref()?);
    let agents = changed(before, after);
    if agents.len() * PART_MAX > after.len() {
        return None;
    }
    let of_them = |peers: &BTreeMap<IpAddr, Peer>| {
        let found = |agent: &IpAddr| Some((*agent, peers.get(agent)?.clone()));
        let Desired { locals, spaces, .. } = desired;
        let peers = Some(agents.iter().filter_map(found).collect());
        Desired { locals: locals.clone(), spaces: spaces.clone(), peers, left_out: Vec::new() }
    };
    let (old, _) = target(&of_them(before), observed);
    let (new, problems) = target(&of_them(after), observed);
    if !is_free(&new, &old, &observed.state) {
        return None;
    }
    // Whose place one wants that is left out, only all of them tell.
    let plan = Plan { operations: difference(&new, old), problems };
    plan.leaves_out_no_peer().then_some(plan)
}

/// The agents that come or go, or of which something else is said.
fn changed(before: &BTreeMap<IpAddr, Peer>, after: &BTreeMap<IpAddr, Peer>) -> BTreeSet<IpAddr> {
    let pairs = before.iter().merge_join_by(after, |(one, _), (other, _)| one.cmp(other));
    let changed = pairs.filter_map(|pair| match pair {
        EitherOrBoth::Both((_, old), (_, new)) if old == new => None,
        EitherOrBoth::Both((agent, _), _)
        | EitherOrBoth::Left((agent, _))
        | EitherOrBoth::Right((agent, _)) => Some(*agent),
    });
    changed.collect()
}

/// Whether nothing of `new` is what the kernel has for others than those who have `old`.
fn is_free(new: &State, old: &State, all: &State) -> bool {
    let is_others = |device: &_, has: &dyn Fn(&super::Device) -> bool| {
        let [all, old] = [all, old].map(|state| state.devices.get(device).is_some_and(has));
        all && !old
    };
    let are_devices_free = new.devices.iter().all(|(name, device)| {
        let mut neighbours = device.neighbours.keys();
        let mut forwards = device.forwards.keys();
        !neighbours.any(|ip| is_others(name, &|it| it.neighbours.contains_key(ip)))
            && !forwards.any(|mac| is_others(name, &|it| it.forwards.contains_key(mac)))
    });
    let mut to_peers = new.routes.iter().filter(leads_to_peer);
    are_devices_free && to_peers.all(|(key, _)| is_route_free(key, old, all))
}

fn leads_to_peer((_, hop): &(&RouteKey, &Hop)) -> bool {
    matches!(hop, Hop::Via { .. })
}

/// Those of others do not overlap each other, so only the next ones in their order matter.
fn is_route_free(key: &RouteKey, old: &State, all: &State) -> bool {
    let is_others =
        |route: &(&RouteKey, &Hop)| leads_to_peer(route) && !old.routes.contains_key(route.0);
    let before = all.routes.range(..=key).rev().find(is_others);
    let after = all.routes.range(key..).find(is_others);
    !before.into_iter().chain(after).any(|(taken, _)| taken.subnet.overlaps(&key.subnet))
}
