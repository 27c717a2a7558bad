//! Follows a packet through the chains that the kernel calls, and finds the rule that drops it.
//!
//! A drop is definite if every condition on the way to it is known to match, and no earlier rule
//! with an unknown condition may accept the packet. A drop in one base chain is final; an accept
//! ends this base chain only.

use super::matching::{Changes, Truth, View};
use super::model::{Base, Chain, Hook, Rule, Step, TCP, Table, TableFamily, UDP, Verdict};
use super::packet::{Packet, PacketKind};
use crate::firewall::{iptables, port_mappings};

/// Number of nested jumps that the kernel allows.
const DEPTH_MAX: usize = 16;
/// Number of rules that are evaluated for one packet in one base chain. Chains that jump to each
/// other many times would take too long.
const RULES_MAX: usize = 1_000_000;

/// A drop of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit<'a> {
    pub(super) table: &'a Table,
    /// The chain that the kernel calls.
    pub(super) base: &'a Chain,
    /// The chain with the rule.
    pub(super) chain: &'a Chain,
    /// The rule, or `None` for the policy of the chain.
    pub(super) rule: Option<&'a Rule>,
    /// Whether the packet is dropped in any case.
    pub(super) is_definite: bool,
}

/// Returns the drops of a packet, one for each base chain that drops it. `is_untracked` is whether the
/// managed rules keep it out of connection tracking: then no address of it is translated.
pub(super) fn drops<'a>(tables: &'a [Table], packet: &Packet, is_untracked: bool) -> Vec<Hit<'a>> {
    let mut bases = bases(tables, packet);
    bases.sort_by_key(|(_, _, base)| (base.hook, base.priority));
    let protocols: &[u8] = if packet.port.is_some() { &[UDP] } else { &[UDP, TCP] };
    let mut found: Vec<Hit<'a>> = Vec::new();
    for protocol in protocols {
        for is_established in [false, true] {
            let mut changes = Changes::default();
            for (table, chain, base) in &bases {
                if base.is_nat && (is_established || is_untracked) {
                    continue;
                }
                let view = View {
                    packet,
                    protocol: *protocol,
                    is_established,
                    is_untracked,
                    has_any_port: false,
                    family: table.family,
                    hook: base.hook,
                    priority: base.priority,
                };
                let hit = drop_in(table, chain, base, view, &mut changes);
                let is_new = |hit: &Hit<'_>| !found.iter().any(|other| other.is_same(hit));
                found.extend(hit.filter(is_new));
            }
        }
    }
    found
}

impl Hit<'_> {
    /// Returns whether the other hit is the same rule with the same certainty.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.table, other.table)
            && std::ptr::eq(self.chain, other.chain)
            && std::ptr::eq(self.base, other.base)
            && self.rule.map(std::ptr::from_ref) == other.rule.map(std::ptr::from_ref)
            && self.is_definite == other.is_definite
    }
}

/// Returns the base chains that the packet passes.
fn bases<'a>(tables: &'a [Table], packet: &Packet) -> Vec<(&'a Table, &'a Chain, &'a Base)> {
    let mut found = Vec::new();
    for table in tables.iter().filter(|table| table.family.sees(packet.family)) {
        for chain in &table.chains {
            if let Some(base) = &chain.base
                && passes(table.family, base, packet)
            {
                found.push((table, chain, base));
            }
        }
    }
    found
}

fn passes(family: TableFamily, base: &Base, packet: &Packet) -> bool {
    let is_on = |device: &Option<String>| {
        device.as_ref().is_some_and(|device| base.devices.contains(device))
    };
    match (base.hook, family) {
        // A frame between ports of a bridge does not pass the bridge's own device.
        (Hook::Ingress | Hook::Egress, _) if packet.kind == PacketKind::Bridged => false,
        (Hook::Ingress, TableFamily::Netdev | TableFamily::Inet) => is_on(&packet.input),
        (Hook::Egress, TableFamily::Netdev) => is_on(&packet.output),
        // A container's packet enters its bridge, and a packet to a container leaves its bridge.
        (hook, TableFamily::Bridge) => match packet.kind {
            PacketKind::ToPeer => matches!(hook, Hook::Prerouting | Hook::Input),
            PacketKind::FromPeer => matches!(hook, Hook::Output | Hook::Postrouting),
            PacketKind::Bridged => {
                matches!(hook, Hook::Prerouting | Hook::Forward | Hook::Postrouting)
            }
            PacketKind::VxlanIn | PacketKind::VxlanOut => false,
        },
        (_, TableFamily::Netdev) => false,
        (hook, _) => match packet.kind {
            PacketKind::VxlanIn => matches!(hook, Hook::Prerouting | Hook::Input),
            PacketKind::VxlanOut => matches!(hook, Hook::Output | Hook::Postrouting),
            PacketKind::ToPeer | PacketKind::FromPeer | PacketKind::Bridged => {
                matches!(hook, Hook::Prerouting | Hook::Forward | Hook::Postrouting)
            }
        },
    }
}

/// Returns the drop of a packet in a base chain. A packet whose port a rule accepts is dropped only
/// with other ports.
fn drop_in<'a>(
    table: &'a Table,
    chain: &'a Chain,
    base: &Base,
    view: View<'_>,
    changes: &mut Changes,
) -> Option<Hit<'a>> {
    let before = *changes;
    let walk = |view, changes: &mut Changes| {
        let mut walk = Walk { table, view, changes, is_certain: true, budget: RULES_MAX };
        let flow = walk.chain(chain, 0);
        (flow, walk.budget > 0)
    };
    let (flow, is_complete) = walk(view, changes);
    let mut hit = flow.hit(table, chain, base.drops_by_policy)?;
    if !is_complete || before.is_diverted || changes.is_diverted {
        hit.is_definite = false;
    }
    if hit.is_definite && view.packet.port.is_none() {
        let mut changes = before;
        let (flow, _) = walk(View { has_any_port: true, ..view }, &mut changes);
        hit.is_definite = !flow.may_accept && (base.drops_by_policy || !flow.may_continue);
    }
    Some(hit)
}

/// What may happen to a packet in a chain.
#[derive(Debug, Clone, Copy, Default)]
struct Flow<'a> {
    may_accept: bool,
    /// Whether the packet may go on after the chain.
    may_continue: bool,
    /// The last rule that drops the packet if it gets there.
    drop: Option<(&'a Chain, &'a Rule)>,
}

impl<'a> Flow<'a> {
    /// Returns whether an earlier rule may have ended the chain without a drop.
    const fn may_have_ended(&self) -> bool {
        self.may_accept || self.may_continue
    }

    fn hit(self, table: &'a Table, base: &'a Chain, drops_by_policy: bool) -> Option<Hit<'a>> {
        let drops_by_policy = self.may_continue && drops_by_policy;
        let (chain, rule) = match self.drop {
            _ if drops_by_policy => (base, None),
            drop => drop.map(|(chain, rule)| (chain, Some(rule)))?,
        };
        let is_definite = !self.may_accept && (drops_by_policy || !self.may_continue);
        Some(Hit { table, base, chain, rule, is_definite })
    }
}

/// The evaluation of a packet in a base chain.
struct Walk<'a, 'b> {
    table: &'a Table,
    view: View<'b>,
    changes: &'b mut Changes,
    /// Whether the packet certainly gets to the current chain.
    is_certain: bool,
    budget: usize,
}

/// What a rule does with a packet.
struct Effect<'r> {
    verdict: &'r Verdict,
    /// Whether all conditions match. Otherwise some are unknown.
    is_certain: bool,
}

impl<'a> Walk<'a, '_> {
    fn chain(&mut self, chain: &'a Chain, depth: usize) -> Flow<'a> {
        let mut flow = Flow::default();
        if depth > DEPTH_MAX {
            return Flow { may_accept: true, may_continue: true, drop: None };
        }
        for rule in &chain.rules {
            if self.budget == 0 {
                return Flow { may_accept: true, may_continue: true, ..flow };
            }
            self.budget -= 1;
            let is_certain = self.is_certain && !flow.may_have_ended();
            for effect in self.effects(rule, is_certain) {
                if self.apply(&mut flow, chain, rule, &effect, depth) {
                    return flow;
                }
            }
        }
        flow.may_continue = true;
        flow
    }

    /// Returns the verdicts of a rule whose conditions match or may match.
    /// `is_reached` is whether the packet certainly gets to the rule.
    fn effects(&mut self, rule: &'a Rule, is_reached: bool) -> Vec<Effect<'a>> {
        let mut effects = Vec::new();
        let mut is_certain = true;
        for step in &rule.steps {
            match step {
                Step::Match(condition) => match self.view.matches(condition, *self.changes) {
                    Truth::Yes => {}
                    Truth::No => return effects,
                    Truth::Unknown => is_certain = false,
                },
                Step::Unclear => is_certain = false,
                Step::Mark(change) => {
                    self.changes.mark.change(*change, is_reached && is_certain);
                }
                Step::Untrack => self.changes.is_untracked = true,
                Step::Divert => {
                    self.changes.is_diverted = true;
                    effects.push(Effect { verdict: &Verdict::Accept, is_certain });
                }
                Step::Verdict(verdict) => effects.push(Effect { verdict, is_certain }),
                Step::Map { keys, entries, is_complete } => {
                    if !is_complete {
                        effects.push(Effect { verdict: &Verdict::Unclear, is_certain: false });
                    }
                    for (items, verdict) in entries {
                        match self.view.selects(keys, items, *self.changes) {
                            Truth::No => continue,
                            Truth::Unknown => effects.push(Effect { verdict, is_certain: false }),
                            Truth::Yes => {
                                effects.push(Effect { verdict, is_certain });
                                break;
                            }
                        }
                    }
                }
            }
        }
        effects
    }

    /// Applies a verdict. Returns whether the packet certainly leaves the chain.
    fn apply(
        &mut self,
        flow: &mut Flow<'a>,
        chain: &'a Chain,
        rule: &'a Rule,
        effect: &Effect<'a>,
        depth: usize,
    ) -> bool {
        let is_certain = effect.is_certain;
        match effect.verdict {
            Verdict::Continue => return false,
            Verdict::Accept => flow.may_accept = true,
            Verdict::Drop if self.is_own(chain) => flow.may_accept = true,
            Verdict::Translate if self.view.packet.kind != PacketKind::ToPeer => {
                flow.may_accept = true;
            }
            Verdict::Drop | Verdict::UnreadQueue | Verdict::Translate => {
                if is_certain {
                    flow.drop = Some((chain, rule));
                }
            }
            Verdict::Return => flow.may_continue = true,
            Verdict::Unclear | Verdict::Queue(..) => {
                flow.may_accept = true;
                return false;
            }
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let Some(target) = self.table.chain(target) else {
                    flow.may_accept = true;
                    return false;
                };
                let was_certain = self.is_certain;
                self.is_certain = was_certain && is_certain && !flow.may_have_ended();
                let inner = self.chain(target, depth + 1);
                self.is_certain = was_certain;
                flow.may_accept |= inner.may_accept;
                flow.drop = inner.drop.filter(|_| is_certain).or(flow.drop);
                let is_goto = matches!(effect.verdict, Verdict::Goto(_));
                flow.may_continue |= is_goto && inner.may_continue;
                return is_certain && (is_goto || !inner.may_continue);
            }
        }
        is_certain
    }

    /// Returns whether a chain is managed: the agent's own rules drop what must be dropped.
    fn is_own(&self, chain: &Chain) -> bool {
        let name = chain.name.as_str();
        self.table.is_iptables() && (iptables::is_own_chain(name) || name == port_mappings::CHAIN)
    }
}
