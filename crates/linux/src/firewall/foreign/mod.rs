//! Finds foreign firewall rules that drop or reject packets of the overlays, in every table and
//! backend that the kernel consults.
//!
//! [`Listing`] reads the rules, and [`obstacles`] is a pure evaluation of the packets that the
//! overlays need. Conditions that the evaluation does not know are neither met nor failed, so an
//! unknown condition never makes a drop definite: see [`Obstacle::is_definite`].

mod inspector;
mod iptables_save;
mod listing;
mod matching;
mod model;
mod nft_json;
mod nft_values;
#[cfg(test)]
mod obstacle_tests;
mod packet;
#[cfg(test)]
mod program_tests;
mod remedy;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeSet;
use std::fmt;

use overlay_types::addr::{DeviceName, OverlayName};
use overlay_types::advice::Command;
use overlay_types::escape::bounded_line;
use overlay_types::tunnel::{Desired, Fault, FaultScope};

pub use self::inspector::{Inspector, underlay_devices};
pub use self::listing::{Listing, ListingError, SavedTables, UnreadRules};
pub use self::model::RuleBackend;
use self::model::{Rule, Step, TableFamily, Verdict};
pub use self::packet::{DevicesByAddress, PacketKind};
use self::packet::{Packet, packets};
use self::walk::Hit;

/// Maximum number of characters of a rule in a text. A rule may contain thousands of addresses, and
/// the command after it has to fit into the status of the overlay.
const RULE_MAX: usize = 160;

/// How a rule drops packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropCause {
    /// The rule or policy drops or rejects them.
    Verdict,
    /// No program reads the queue of the rule.
    UnreadQueue,
    /// The rule gives them a source address that the peers do not accept.
    Source,
}

/// A foreign rule that drops packets of the overlays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The ways of the packets that the rule drops.
    pub kinds: BTreeSet<PacketKind>,
    /// The first of these packets, for the operator.
    pub packets: String,
    /// The backend of the rule.
    pub backend: RuleBackend,
    /// The table, in nftables with its family.
    pub table: String,
    /// The chain with the rule.
    pub chain: String,
    /// The rule as its program lists it, or `None` if the policy of the chain drops the packets.
    pub rule: Option<String>,
    /// The handle of the rule in nftables, or its position in iptables.
    pub number: Option<u64>,
    /// The program that owns the rule, as far as the names of table and chains show it.
    pub owner: Option<&'static str>,
    /// Whether the packets are dropped in any case. Otherwise an earlier rule with unknown
    /// conditions may accept them.
    pub is_definite: bool,
    /// Commands that let the packets pass. They remove no foreign rule.
    pub command: Command,
    /// How the rule drops the packets.
    pub cause: DropCause,
    /// The VXLAN devices whose packets are dropped.
    pub devices: BTreeSet<DeviceName>,
    /// The overlays whose packets are dropped. Empty for VXLAN packets.
    pub overlays: BTreeSet<OverlayName>,
    /// The family of the table.
    family: TableFamily,
}

/// Returns the rules that drop packets of the overlays. With `is_bridged`, also packets between
/// containers of one bridge are evaluated.
#[must_use]
pub fn obstacles(
    listing: &Listing,
    desired: &Desired,
    devices: &DevicesByAddress,
    is_bridged: bool,
) -> Vec<Obstacle> {
    evaluate(listing, &packets(desired, devices, is_bridged))
}

fn evaluate(listing: &Listing, packets: &[Packet]) -> Vec<Obstacle> {
    let (tables, untracked) = (listing.tables(), listing.untracked());
    let mut hits: Vec<(Hit<'_>, Vec<&Packet>)> = Vec::new();
    for packet in packets {
        for hit in walk::drops(&tables, packet, untracked.has(packet.kind)) {
            match hits.iter_mut().find(|(other, _)| other.is_same(&hit)) {
                Some((_, packets)) => packets.push(packet),
                None => hits.push((hit, vec![packet])),
            }
        }
    }
    let definite: Vec<_> = hits.iter().map(|(hit, _)| *hit).filter(|hit| hit.is_definite).collect();
    // A rule that certainly drops some packets is reported once.
    let is_certain_too = |hit: &Hit<'_>| {
        !hit.is_definite
            && definite.iter().any(|other| other.is_same(&Hit { is_definite: true, ..*hit }))
    };
    let hits = hits.iter().filter(|(hit, _)| !is_certain_too(hit));
    hits.filter_map(|(hit, packets)| Obstacle::new(listing, hit, packets)).collect()
}

impl Obstacle {
    fn new(listing: &Listing, hit: &Hit<'_>, packets: &[&Packet]) -> Option<Self> {
        let first = packets.first()?;
        let owner = remedy::owner(hit);
        let command = remedy::remedy(hit, owner, packets)?;
        let text = |rule: &Rule| match (hit.table.is_iptables(), rule.number) {
            (true, _) => rule.text.clone(),
            (false, handle) => listing.rule_text(hit.table, handle).unwrap_or_default().to_owned(),
        };
        Some(Self {
            kinds: packets.iter().map(|packet| packet.kind).collect(),
            packets: first.to_string(),
            backend: hit.table.backend,
            table: remedy::table_name(hit.table),
            chain: hit.chain.name.clone(),
            rule: hit.rule.map(text),
            number: hit.rule.map(|rule| rule.number),
            owner,
            is_definite: hit.is_definite,
            cause: hit.rule.map_or(DropCause::Verdict, drop_cause),
            command,
            devices: packets.iter().map(|packet| packet.device.clone()).collect(),
            overlays: packets.iter().filter_map(|packet| packet.overlay.clone()).collect(),
            family: hit.table.family,
        })
    }

    /// Describes what happens to the packets, for a sentence that begins with them.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match (self.cause, self.is_definite) {
            (DropCause::Source, _) => "get a source address that peers do not accept",
            (_, true) => "are dropped",
            (_, false) => "may be dropped",
        }
    }

    /// Returns the faults of the affected overlays.
    #[must_use]
    pub fn faults(&self, desired: &Desired) -> Vec<Fault> {
        let fault = |scope| Fault { scope, reason: self.to_string() };
        let mut faults = Vec::new();
        for device in self.affected_devices(desired) {
            let spaces = desired.spaces.iter().filter(|space| space.device == *device);
            let is_affected = |overlay| self.overlays.is_empty() || self.overlays.contains(overlay);
            if spaces.clone().all(|space| is_affected(&space.overlay)) {
                faults.push(fault(FaultScope::Device(device.clone())));
                continue;
            }
            let affected = spaces.filter(|space| is_affected(&space.overlay));
            let subnets = affected.filter_map(|space| space.own.first().copied());
            faults.extend(subnets.map(|subnet| fault(FaultScope::Subnet(subnet))));
        }
        faults
    }

    /// Returns the devices of the packets. Devices with the same port and address have the same
    /// VXLAN packets, so those of one device are evaluated.
    fn affected_devices<'a>(
        &'a self,
        desired: &'a Desired,
    ) -> impl Iterator<Item = &'a DeviceName> {
        let devices = desired.vxlan_devices.iter();
        let evaluated: Vec<_> = devices
            .clone()
            .filter(|local| self.overlays.is_empty() && self.devices.contains(&local.device))
            .map(|local| (local.port, local.underlay))
            .collect();
        let affected = devices.filter(move |local| {
            self.devices.contains(&local.device)
                || evaluated.contains(&(local.port, local.underlay))
        });
        affected.map(|local| &local.device)
    }

    /// Returns whether both are the same rule or policy, certain or not.
    fn has_same_place(&self, other: &Self) -> bool {
        let place = |of: &Self| (of.backend, of.family, of.number);
        place(self) == place(other) && self.table == other.table && self.chain == other.chain
    }

    /// Returns whether a table has the rule, or the chain whose policy drops.
    fn is_in(&self, table: &model::Table) -> bool {
        let mut chains = table.chains.iter().filter(|chain| chain.name == self.chain);
        let has_rule = |chain: &model::Chain| {
            self.number.is_none_or(|number| chain.rules.iter().any(|rule| rule.number == number))
        };
        table.backend == self.backend
            && remedy::table_name(table) == self.table
            && chains.any(has_rule)
    }

    /// Describes the rule and its place.
    #[must_use]
    pub fn rule_description(&self) -> String {
        self.describe(true)
    }

    /// Describes the rule and its place, on request with its number in the chain.
    fn describe(&self, with_number: bool) -> String {
        let Self { backend, table, chain, rule, number, owner, .. } = self;
        let owner = owner.map_or_else(String::new, |owner| format!(", owned by {owner}"));
        let is_unnamed = rule.as_deref() == Some("");
        let number = number.filter(|_| with_number || is_unnamed);
        let number = number.map_or_else(String::new, |number| match backend {
            RuleBackend::Nftables => format!(", handle {number}"),
            RuleBackend::IptablesNft | RuleBackend::IptablesLegacy => format!(", rule {number}"),
        });
        let place = format!("{backend}, table {table}, chain {chain}{number}{owner}");
        let place = match self.cause {
            DropCause::UnreadQueue => format!("{place}; no program reads its queue"),
            DropCause::Verdict | DropCause::Source => place,
        };
        match rule.as_deref() {
            Some("") => format!("a rule ({place})"),
            Some(rule) => format!("rule '{}' ({place})", bounded_line(rule, RULE_MAX)),
            None => format!("the policy of chain {chain} ({place})"),
        }
    }
}

fn drop_cause(rule: &Rule) -> DropCause {
    let has = |verdict: &Verdict| {
        rule.steps.iter().any(|step| matches!(step, Step::Verdict(found) if found == verdict))
    };
    match () {
        () if has(&Verdict::UnreadQueue) => DropCause::UnreadQueue,
        () if has(&Verdict::Translate) => DropCause::Source,
        () => DropCause::Verdict,
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, command, .. } = self;
        write!(
            f,
            "{packets} {} by {}: let them pass with {command}",
            self.outcome(),
            // The numbers change whenever the owner makes its rules again.
            self.describe(false)
        )
    }
}
