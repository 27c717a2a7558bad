//! Forwards segments of TCP connections between containers of different agents at the ingress hook,
//! past the routing and the chains of the host, in an nftables table of the family `netdev`.
//!
//! The first segments of a connection, with the flag SYN, take the ordinary path, as do all packets
//! of other protocols. So the rules of this host, also those of other programs, decide about every
//! new connection, a missing container is reported by an ICMP error, and probes see what new
//! connections see. A segment without a connection is answered with a reset by its receiver.
//!
//! A segment takes the shortcut only if the ordinary path would forward it unchanged:
//! * from the port of a container, if it is for the MAC of its bridge, its source is a container of
//!   the bridge, and its destination is in the same overlay, in the subnet of a peer. Such a packet
//!   is not tracked, so conntrack does not translate it;
//! * from a tunnel, if its source is in an overlay, and its destination is a container of the same
//!   overlay. The input chain has compared this source with the sender of the VXLAN packet;
//! * with direct routing, from the device in the underlay, if its source is in a subnet of the peer
//!   that announced the MAC of the sender, and its destination is a container of the same overlay.
//!
//! The statement `fwd` decrements the TTL and does not fragment. So a port whose MTU is larger than
//! that of the tunnel has no shortcut.
//!
//! A bridge forgets the MAC of a container that it does not hear for five minutes, and sends packets
//! for it to all ports then. It hears each container in time: the neighbor entry through which `fwd`
//! sends to it is confirmed by ARP or NDP each minute.
//!
//! The table is no protection: without it, all packets take the ordinary path. It is made after the
//! devices, since its chains belong to existing devices.

mod entry;
mod port;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use overlay_types::addr::{DeviceName, Mac};
use overlay_types::repetition::Repetitions;

pub(super) use self::entry::is_dynamic;
use self::port::PortHook;
pub(super) use self::port::{is_port_chain, listed as listed_port};
pub(super) use self::rules::ShortcutRules;
use super::Outcome;
use super::command::{FirewallError, Tools};
use super::listing::Listing;
use super::table;

/// The table of the shortcut.
pub(super) const TABLE: &str = "netdev mesos_overlay";

/// The name under which a listing has the hooks at the ports of the containers.
pub(super) const PORTS: &str = "ports";

/// The devices of the overlays that exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShortcutLinks {
    /// The VXLAN devices.
    pub tunnels: BTreeMap<DeviceName, TunnelLink>,
    /// The bridges.
    pub bridges: BTreeMap<DeviceName, BridgeLink>,
    /// The device in the underlay for direct routing, with its index.
    pub direct: Option<(DeviceName, u32)>,
}

/// A VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelLink {
    /// Its index.
    pub index: u32,
    /// Whether it carries IPv6.
    pub has_ipv6: bool,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeLink {
    /// Its index.
    pub index: u32,
    /// Its MAC, to which containers send packets for other hosts.
    pub mac: Mac,
    /// The ports of containers whose MTU is not larger than that of the tunnel, with their indices.
    pub ports: BTreeMap<DeviceName, u32>,
}

/// The table on this host.
#[derive(Debug, Default)]
pub(super) struct Shortcut {
    /// `None` until the table was made or removed.
    applied: Option<Applied>,
    /// Whether the table could not be made.
    has_failed: bool,
    repetitions: Repetitions,
}

#[derive(Debug, Default)]
struct Applied {
    rules: ShortcutRules,
    /// The table without the elements of the maps, as listed after it was made.
    rest: String,
    /// The generation of the nftables rules at which the table matched last.
    generation: Option<u32>,
}

impl Shortcut {
    /// Returns whether the host has the table.
    pub(super) fn is_active(&self) -> bool {
        self.applied.as_ref().is_some_and(|applied| !applied.rules.is_empty())
    }

    /// Notes that other programs changed rules, or that the table was removed.
    pub(super) fn forget(&mut self) {
        self.applied = None;
    }

    /// Notes that other programs may have changed the table.
    pub(super) const fn note_event(&mut self) {
        if let Some(applied) = &mut self.applied {
            applied.generation = None;
        }
    }

    /// Makes the table if it differs from the rules. With `verifies` the existing table is compared.
    /// After a failure the table is removed, since an outdated one would lead segments to former
    /// peers. The next verification tries again.
    pub(super) fn apply(
        &mut self,
        tools: &dyn Tools,
        rules: ShortcutRules,
        verifies: bool,
    ) -> Outcome {
        if self.has_failed && !verifies {
            return Outcome::Unchanged;
        }
        match self.try_apply(tools, rules, verifies) {
            Ok(outcome) => {
                self.has_failed = false;
                self.repetitions.clear();
                outcome
            }
            Err(error) => {
                let removal = table::remove_shortcut(tools);
                // An outdated table that stays is removed or replaced by the next job.
                (self.has_failed, self.applied) = (removal.is_ok(), None);
                self.log_failure(&error, removal.err().as_ref());
                Outcome::Unchanged
            }
        }
    }

    /// Adds the hooks of the ports that joined the bridges, and removes those of ports that left. The
    /// peers and bridges are those of the last call of [`Self::apply`].
    pub(super) fn follow_ports(&mut self, tools: &dyn Tools, links: &ShortcutLinks) -> Outcome {
        let Some(applied) = self.applied.as_mut().filter(|applied| !applied.rules.is_empty())
        else {
            return Outcome::Unchanged;
        };
        let ports = applied.rules.ports_of(links);
        if applied.change_ports(tools, ports) { Outcome::Made } else { Outcome::Unchanged }
    }

    fn log_failure(&mut self, error: &FirewallError, removal: Option<&FirewallError>) {
        let consequence = match removal {
            None => {
                "TCP segments between containers take the path through all chains of this host \
                     until the next verification makes the shortcut again"
                    .to_owned()
            }
            Some(error) => format!(
                "nftables table {TABLE} may be outdated and lead TCP segments to former peers until \
                 its removal succeeds: {error}"
            ),
        };
        let problem = format!("make the shortcut for TCP segments: {error}; {consequence}");
        if let Some(repetition) = self.repetitions.note(&problem) {
            log::warn!("{problem}{repetition}");
        }
    }

    fn try_apply(
        &mut self,
        tools: &dyn Tools,
        mut rules: ShortcutRules,
        verifies: bool,
    ) -> Result<Outcome, FirewallError> {
        let is_repaired = match &mut self.applied {
            Some(applied) if applied.rules.has_layout_of(&rules) && !rules.is_empty() => {
                if !verifies || applied.is_on_host(tools, &rules)? {
                    return applied.change(tools, rules);
                }
                true
            }
            Some(applied) if applied.rules.is_empty() && rules.is_empty() => {
                return Ok(Outcome::Unchanged);
            }
            _ => false,
        };
        self.applied = None;
        if rules.is_empty() {
            let is_removed = table::remove_shortcut(tools)?;
            self.applied = Some(Applied::default());
            return Ok(if is_removed { Outcome::Made } else { Outcome::Unchanged });
        }
        tools.run("nft", &["-f", "-"], &rules.script())?;
        let generation = tools.generation();
        let rest = list(tools)?.rest;
        let ports = std::mem::take(&mut rules.ports);
        let applied = self.applied.insert(Applied { rules, rest, generation });
        applied.change_ports(tools, ports);
        Ok(if is_repaired { Outcome::Repaired } else { Outcome::Made })
    }
}

impl Applied {
    /// Returns whether the host has the table as it was made. Hooks of ports that are not in `rules`
    /// may be missing.
    fn is_on_host(
        &mut self,
        tools: &dyn Tools,
        rules: &ShortcutRules,
    ) -> Result<bool, FirewallError> {
        let generation = tools.generation();
        if generation.is_some() && generation == self.generation {
            return Ok(true);
        }
        let Listing { rest, mut elements } = list(tools)?;
        let ports = elements.remove(PORTS).unwrap_or_default();
        let is_same = rest == self.rest
            && elements == self.rules.listed()
            && self.has_ports(ports, &rules.ports);
        self.generation = generation.filter(|_| is_same);
        Ok(is_same)
    }

    /// Returns whether the listed hooks are those that were made. The kernel removes the hook of a
    /// port that is gone.
    fn has_ports(&self, mut listed: BTreeSet<String>, existing: &BTreeSet<PortHook>) -> bool {
        let has_hook = |hook: &PortHook| listed.remove(&hook.listed()) || !existing.contains(hook);
        self.rules.ports.iter().all(has_hook) && listed.is_empty()
    }

    /// Changes the elements of the maps, and the hooks at the ports.
    fn change(
        &mut self,
        tools: &dyn Tools,
        mut rules: ShortcutRules,
    ) -> Result<Outcome, FirewallError> {
        let changes = rules.changes_since(&self.rules);
        if !changes.is_empty() {
            tools.run("nft", &["-f", "-"], &changes)?;
            self.generation = None;
        }
        let ports = std::mem::replace(&mut rules.ports, std::mem::take(&mut self.rules.ports));
        self.rules = rules;
        let has_changed = self.change_ports(tools, ports) || !changes.is_empty();
        Ok(if has_changed { Outcome::Made } else { Outcome::Unchanged })
    }

    /// Changes the hooks at the ports. Returns whether any differed. A port may vanish before its hook
    /// is made: then each change is made alone, and the hooks that failed are tried again later.
    fn change_ports(&mut self, tools: &dyn Tools, ports: BTreeSet<PortHook>) -> bool {
        let before = std::mem::take(&mut self.rules.ports);
        let removals: String = before.difference(&ports).map(PortHook::removal).collect();
        let additions: String = ports.difference(&before).map(PortHook::addition).collect();
        let has_changed = !removals.is_empty() || !additions.is_empty();
        if has_changed {
            self.generation = None;
        }
        let run = |input: &str| tools.run("nft", &["-f", "-"], input);
        self.rules.ports = if !has_changed || run(&(removals + &additions)).is_ok() {
            ports
        } else {
            before.difference(&ports).for_each(|hook| drop(run(&hook.removal())));
            let is_hooked =
                |hook: &PortHook| before.contains(hook) || run(&hook.addition()).is_ok();
            ports.into_iter().filter(is_hooked).collect()
        };
        has_changed
    }
}

fn list(tools: &dyn Tools) -> Result<Listing, FirewallError> {
    let mut listing = Listing::default();
    listing.add_table(&table::list_shortcut(tools)?);
    Ok(listing)
}
