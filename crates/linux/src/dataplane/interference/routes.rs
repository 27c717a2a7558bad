//! Routes without a destination inside of the overlays or to peers, policy rules that are missing,
//! policy rules for marked packets, and the path to the peers in the underlay.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use overlay_types::addr::{Family, Subnet};
use overlay_types::advice::Command;
use overlay_types::tunnel::{FaultScope, VxlanDevice};

use super::super::observe::{HostLink, Route};
use super::super::path::{Lookup, PEERS_MAX, RouteResult, route_of, route_samples};
use super::super::policy_rules::{Rule, is_unsupported, rules};
use super::super::socket::Netlink;
use super::super::uapi::{RT_TABLE_LOCAL, RT_TABLE_MAIN, RTN_BLACKHOLE, RTN_PROHIBIT};
use super::super::vrf::membership;
use super::{Impact, InspectionContext, Interference, Remedy};

/// The tables that every packet needs: their numbers, names and usual priorities.
const NEEDED_TABLES: [(u32, &str, u32); 2] =
    [(RT_TABLE_LOCAL, "local", 0), (RT_TABLE_MAIN as u32, "main", 32_766)];
/// Number of policy rules for marked packets that are tried.
const MARKS_MAX: usize = 8;

pub(super) fn find(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
) -> io::Result<Vec<Interference>> {
    let mut found = Vec::new();
    for family in context.families() {
        let rules = match rules(netlink, family) {
            Ok(rules) => Some(rules),
            Err(error) if is_unsupported(&error) => None,
            Err(error) => return Err(error),
        };
        let missing = rules.as_ref().map(|rules| missing_rules(context, family, rules));
        let missing = missing.unwrap_or_default();
        // Without these rules all lookups fail.
        if !missing.is_empty() {
            found.extend(missing);
            continue;
        }
        let routes = context.indices.dead_ends.iter();
        for route in routes.filter(|route| route.key.subnet.family() == family) {
            found.extend(dead_end(netlink, context, route)?);
        }
        found.extend(marked(netlink, context, family, &rules.unwrap_or_default())?);
    }
    if !found.iter().any(|interference: &Interference| interference.removes_routes) {
        found.extend(underlay(netlink, context)?);
    }
    Ok(found)
}

impl InspectionContext<'_> {
    /// Returns the families of the overlays and of the underlay.
    fn families(&self) -> BTreeSet<Family> {
        let spaces = self.desired.spaces.iter().flat_map(|space| &space.whole);
        let underlays = self.desired.vxlan_devices.iter().map(|local| family(local.underlay));
        spaces.map(Subnet::family).chain(underlays).collect()
    }

    /// Returns the first device, whose faults affect its overlays.
    fn first_device(&self) -> FaultScope {
        let device = self.desired.vxlan_devices.first();
        device.map_or(FaultScope::Host, |local| FaultScope::Device(local.device.clone()))
    }
}

const fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Returns how to lead marked packets past a policy rule.
fn remedy_of_mark(subnet: Subnet, rule: &Rule) -> Remedy {
    match Command::skip_policy_rules(subnet, rule.priority) {
        Some(command) => Remedy::Run(command),
        None => Remedy::Advice(format!(
            "let the program that sets the mark exclude packets to {subnet}"
        )),
    }
}

/// Returns the tables that no policy rule consults for every packet.
fn missing_rules(
    context: &InspectionContext<'_>,
    family: Family,
    rules: &[Rule],
) -> Vec<Interference> {
    let is_consulted = |table| rules.iter().any(|rule| rule.leads_all_to(table));
    let missing = NEEDED_TABLES.iter().filter(|(table, ..)| !is_consulted(*table));
    let missing = missing.map(|(_, name, priority)| Interference {
        scope: context.scope_of_family(family),
        cause: format!(
            "no policy rule of {family} lets packets use the routing table {name}: another program \
             removed the rule, and packets have no route"
        ),
        remedy: Remedy::Run(Command::restore_policy_rule(family, *priority, name)),
        impact: Impact::Overlays,
        removes_routes: true,
    });
    missing.collect()
}

impl InspectionContext<'_> {
    /// Returns the scope of a fault of all packets of a family.
    fn scope_of_family(&self, of: Family) -> FaultScope {
        let is_underlay = |local: &VxlanDevice| family(local.underlay) == of;
        if self.desired.vxlan_devices.iter().any(is_underlay) {
            return FaultScope::Host;
        }
        let spaces = self.desired.spaces.iter().flat_map(|space| &space.whole);
        let mut subnets = spaces.filter(|subnet| subnet.family() == of);
        subnets.next().map_or(FaultScope::Host, |subnet| FaultScope::Subnet(*subnet))
    }
}

/// Returns the interference of a route without a destination: it covers a part of a subnet of a
/// peer or of this host, or the address of a peer.
fn dead_end(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
    route: &Route,
) -> io::Result<Option<Interference>> {
    let subnet = route.key.subnet;
    let kind = match route.kind {
        RTN_BLACKHOLE => "blackhole",
        RTN_PROHIBIT => "prohibit",
        _ => "unreachable",
    };
    let interference = |scope, what: String| Interference {
        scope,
        cause: format!("the {kind} route {subnet} drops the packets {what}"),
        remedy: Remedy::Advice(format!(
            "find the program that made it with {}, and remove it there",
            Command::show_routes(subnet)
        )),
        impact: Impact::Overlays,
        removes_routes: true,
    };
    let is_inside = |whole: &Subnet| whole.covers(&subnet);
    let mut spaces = context.desired.spaces.iter().flat_map(|space| &space.whole);
    if spaces.any(is_inside)
        && let Some(agent) = context.owner_of_part(&subnet)
    {
        let what = format!("to these containers of agent {agent}");
        return Ok(Some(interference(FaultScope::Subnet(subnet), what)));
    }
    let mut own = context.desired.bridges().flat_map(|bridge| &bridge.subnets);
    if own.any(|own| own.covers(&subnet) && own.prefix() < subnet.prefix()) {
        let what = "to these containers of this host".to_owned();
        return Ok(Some(interference(FaultScope::Subnet(subnet), what)));
    }
    let addressed = context.peers.range(subnet.first()..=subnet.last());
    for agent in addressed.map(|(agent, _)| *agent).take(PEERS_MAX) {
        let Some(local) = context.local(agent) else { continue };
        let lookup = Lookup { source: local.underlay, destination: agent, input: None, mark: 0 };
        // Another route may be more specific.
        if route_of(netlink, &lookup)?.is_err() {
            let what = format!("of the tunnel to agent {agent}");
            return Ok(Some(interference(FaultScope::Device(local.device.clone()), what)));
        }
    }
    Ok(None)
}

impl InspectionContext<'_> {
    /// Returns the first device whose underlay has the family of a peer.
    fn local(&self, agent: IpAddr) -> Option<&VxlanDevice> {
        let mut devices = self.desired.vxlan_devices.iter();
        devices.find(|local| local.underlay.is_ipv4() == agent.is_ipv4())
    }

    /// Returns the peer that has a subnet of which `part` is a part.
    fn owner_of_part(&self, part: &Subnet) -> Option<IpAddr> {
        let owners = self.owners.get_or_init(|| {
            let subnets = self.peers.iter().flat_map(|(agent, peer)| {
                peer.subnets.iter().map(|(_, subnet)| (subnet.first(), (*subnet, *agent)))
            });
            subnets.collect()
        });
        // The subnets of valid peers do not overlap.
        let (_, (subnet, agent)) = owners.range(..=part.first()).next_back()?;
        (subnet.covers(part) && subnet.prefix() < part.prefix()).then_some(*agent)
    }

    fn name(&self, index: Option<u32>) -> String {
        let link = index.and_then(|index| self.link(index));
        link.map_or_else(|| "no device".to_owned(), |link| link.name.clone())
    }
}

/// Returns the policy rules for marked packets that lead packets of the overlays elsewhere. Whether
/// a program marks them is unknown.
fn marked(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
    family: Family,
    rules: &[Rule],
) -> io::Result<Option<Interference>> {
    let main = rules.iter().filter(|rule| rule.leads_all_to(u32::from(RT_TABLE_MAIN)));
    let main = main.map(|rule| rule.priority).min().unwrap_or(0);
    let spaces = context.desired.spaces.iter();
    let sample = spaces
        .flat_map(|space| route_samples(context.desired, context.peers, space, context.bridges));
    let Some(sample) = sample.into_iter().find(|sample| sample.subnet.family() == family) else {
        return Ok(None);
    };
    let Some(input) = context.indices.get(sample.from) else { return Ok(None) };
    let expected = context.indices.get(sample.to);
    let marked = rules.iter().filter(|rule| rule.priority < main);
    for (rule, mark) in marked.filter_map(|rule| Some((rule, rule.mark()?))).take(MARKS_MAX) {
        let lookup = Lookup {
            source: sample.source,
            destination: sample.destination,
            input: Some(input),
            mark,
        };
        let found = route_of(netlink, &lookup)?;
        if matches!(found, Ok((device, _)) if device == expected) {
            continue;
        }
        let result = match found {
            Ok((index, table)) => {
                RouteResult::Through { device: index.map(|index| context.name(Some(index))), table }
            }
            Err(errno) => RouteResult::Dropped(errno),
        };
        return Ok(Some(Interference {
            scope: FaultScope::Subnet(sample.subnet),
            cause: format!(
                "packets of containers with the mark {mark:#x} {result}, by policy rule '{}'",
                rule.text
            ),
            remedy: remedy_of_mark(sample.subnet, rule),
            impact: Impact::Possible,
            removes_routes: false,
        }));
    }
    Ok(None)
}

/// Returns the first peer that has no route in the underlay, or whose packets leave through a device
/// without the agent's address. An address of the loopback device belongs to no other device.
fn underlay(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
) -> io::Result<Option<Interference>> {
    let peers = context.peers.keys();
    for agent in peers.take(PEERS_MAX).copied() {
        let Some(local) = context.local(agent) else { continue };
        let owners: Vec<_> = context.underlay_links(local.underlay).collect();
        // A VRF has other routes, and is named by itself.
        let is_judged = |link: &&HostLink| {
            !link.is_loopback && membership(link, &context.indices.links).is_none()
        };
        let Some(link) = owners.first().filter(|_| owners.iter().all(is_judged)) else {
            continue;
        };
        let is_own = |index| owners.iter().any(|link| Some(link.index) == index);
        let lookup = Lookup { source: local.underlay, destination: agent, input: None, mark: 0 };
        let (result, impact) = match route_of(netlink, &lookup)? {
            Ok((index, _)) if is_own(index) => continue,
            Ok((index, table)) => (
                RouteResult::Through {
                    device: index.map(|index| context.name(Some(index))),
                    table,
                },
                Impact::Possible,
            ),
            Err(errno) => (RouteResult::Dropped(errno), Impact::Overlays),
        };
        return Ok(Some(Interference {
            scope: if impact == Impact::Overlays {
                FaultScope::Device(local.device.clone())
            } else {
                context.first_device()
            },
            cause: format!(
                "packets of the tunnel to agent {agent} {result}, and {} has the agent's address {}",
                link.name, local.underlay
            ),
            remedy: Remedy::Advice(format!(
                "see {} and which program made that route, such as a VPN",
                Command::show_route_to(agent)
            )),
            impact,
            removes_routes: false,
        }));
    }
    Ok(None)
}
