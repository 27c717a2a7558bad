//! The contents of the store at every version, which the rules compare with.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use mesos_network_overlay::addr::{Family, OverlayName, Subnet};
use mesos_network_overlay::protocol::{Assignment, OverlayRecord, Record};
use mesos_network_overlay::store::{Change, Key};
use mesos_network_overlay::wire;

/// The kind of an agent's address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum AddressKind {
    Vtep(Family),
    Subnet(OverlayName, Family),
}

/// A range of addresses that one agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    pub(crate) family: Family,
    pub(crate) first: u128,
    pub(crate) last: u128,
}

impl Span {
    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(v4) => v4.to_bits().into(),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    pub(crate) fn of_address(address: IpAddr) -> Self {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let bits = Self::bits(address);
        Self { family, first: bits, last: bits }
    }

    pub(crate) fn of_subnet(subnet: &Subnet) -> Self {
        let (first, last) = (Self::bits(subnet.first()), Self::bits(subnet.last()));
        Self { family: subnet.family(), first, last }
    }
}

/// The addresses of one agent.
pub(crate) type Allocation = BTreeMap<AddressKind, Span>;

fn add_overlays(share: &mut Allocation, overlays: &[OverlayRecord]) {
    for overlay in overlays {
        for subnet in overlay.subnet.iter().chain(&overlay.subnet6) {
            let place = AddressKind::Subnet(overlay.name.clone(), subnet.family());
            share.insert(place, Span::of_subnet(subnet));
        }
    }
}

fn add_vteps(share: &mut Allocation, vteps: impl IntoIterator<Item = IpAddr>) {
    for vtep in vteps {
        let span = Span::of_address(vtep);
        share.insert(AddressKind::Vtep(span.family), span);
    }
}

/// Returns the addresses in assignments.
pub(crate) fn allocation_of(assignments: &[Assignment]) -> Allocation {
    let mut share = Allocation::new();
    for assignment in assignments {
        let vtep = &assignment.vtep;
        let vteps = [Some(vtep.ip), vtep.ip6];
        add_vteps(&mut share, vteps.into_iter().flatten().map(|vtep| vtep.address()));
        for subnet in assignment.subnet.iter().chain(&assignment.subnet6) {
            let place = AddressKind::Subnet(assignment.name().clone(), subnet.family());
            share.insert(place, Span::of_subnet(subnet));
        }
    }
    share
}

/// What the store has of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    Nothing,
    /// The agent is registered with these addresses.
    Has(Allocation),
    /// The agent was released at that second. These addresses were not reused since.
    Had(Allocation, u64),
}

impl Stored {
    fn of(bytes: &[u8]) -> Self {
        let mut share = Allocation::new();
        match wire::decode_record(bytes) {
            Ok(Record::Agent(record)) => {
                add_vteps(&mut share, [IpAddr::V4(record.vtep_ip)]);
                add_vteps(&mut share, record.vtep_ip6.map(IpAddr::V6));
                add_overlays(&mut share, &record.overlays);
                Self::Has(share)
            }
            Ok(Record::Released(record)) => {
                add_vteps(&mut share, record.vtep_ip.map(IpAddr::V4));
                add_vteps(&mut share, record.vtep_ip6.map(IpAddr::V6));
                add_overlays(&mut share, &record.overlays);
                Self::Had(share, record.at)
            }
            Err(error) => panic!("a master has stored what cannot be read: {error}"),
        }
    }

    /// Returns the addresses of a registered agent.
    pub(crate) fn allocation(&self) -> Option<&Allocation> {
        match self {
            Self::Has(share) => Some(share),
            Self::Nothing | Self::Had(..) => None,
        }
    }

    /// Returns the addresses of the agent, also those before its release.
    pub(crate) fn latest_allocation(&self) -> Option<&Allocation> {
        match self {
            Self::Has(share) | Self::Had(share, _) => Some(share),
            Self::Nothing => None,
        }
    }
}

/// The change of one agent in a commit.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) ip: Ipv4Addr,
    pub(crate) before: Stored,
    pub(crate) after: Stored,
}

/// All versions of the state.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) epoch: u64,
    pub(crate) version: u64,
    history: BTreeMap<Ipv4Addr, Vec<(u64, Stored)>>,
}

impl Ledger {
    /// Applies a commit.
    pub(crate) fn write(&mut self, version: u64, changes: &[Change]) -> Vec<Step> {
        self.version = version;
        let mut steps = Vec::new();
        for change in changes {
            let (ip, after) = match change {
                Change::Put(Key::Agent(ip), bytes) => (*ip, Stored::of(bytes)),
                Change::Delete(Key::Agent(ip)) => (*ip, Stored::Nothing),
                // The history has no effect on allocations.
                Change::Put(Key::History(_), _) | Change::Delete(Key::History(_)) => continue,
            };
            let before = self.at(ip, version).clone();
            self.history.entry(ip).or_default().push((version, after.clone()));
            steps.push(Step { ip, before, after });
        }
        steps
    }

    /// Returns what was stored of an agent at a version.
    pub(crate) fn at(&self, ip: Ipv4Addr, version: u64) -> &Stored {
        let history = self.history.get(&ip).map_or(&[][..], Vec::as_slice);
        let later = history.partition_point(|(written, _)| *written <= version);
        later.checked_sub(1).map_or(&Stored::Nothing, |index| &history[index].1)
    }
}
