//! The contents of the store at every version, for comparison by the invariants.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use overlay_store::Change;
use overlay_types::addr::{Family, OverlayName, Subnet};
use overlay_types::protocol::{Assignment, OverlayRecord, Record};
use overlay_types::state::Key;
use overlay_wire as wire;

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

fn add_overlays(allocation: &mut Allocation, overlays: &[OverlayRecord]) {
    for overlay in overlays {
        for subnet in overlay.subnet.iter().chain(&overlay.subnet6) {
            let kind = AddressKind::Subnet(overlay.name.clone(), subnet.family());
            allocation.insert(kind, Span::of_subnet(subnet));
        }
    }
}

fn add_vteps(allocation: &mut Allocation, vteps: impl IntoIterator<Item = IpAddr>) {
    for vtep in vteps {
        let span = Span::of_address(vtep);
        allocation.insert(AddressKind::Vtep(span.family), span);
    }
}

/// Returns the addresses in assignments.
pub(crate) fn allocation_of(assignments: &[Assignment]) -> Allocation {
    let mut allocation = Allocation::new();
    for assignment in assignments {
        let vtep = &assignment.vtep;
        let vteps = [Some(vtep.ip), vtep.ip6];
        add_vteps(&mut allocation, vteps.into_iter().flatten().map(|vtep| vtep.address()));
        for subnet in assignment.subnet.iter().chain(&assignment.subnet6) {
            let kind = AddressKind::Subnet(assignment.name().clone(), subnet.family());
            allocation.insert(kind, Span::of_subnet(subnet));
        }
    }
    allocation
}

/// The stored record of an agent.
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
        let mut allocation = Allocation::new();
        match wire::decode_record(bytes) {
            Ok(Record::Agent(record)) => {
                add_vteps(&mut allocation, [IpAddr::V4(record.vtep_ip)]);
                add_vteps(&mut allocation, record.vtep_ip6.map(IpAddr::V6));
                add_overlays(&mut allocation, &record.overlays);
                Self::Has(allocation)
            }
            Ok(Record::Released(record)) => {
                add_vteps(&mut allocation, record.vtep_ip.map(IpAddr::V4));
                add_vteps(&mut allocation, record.vtep_ip6.map(IpAddr::V6));
                add_overlays(&mut allocation, &record.overlays);
                Self::Had(allocation, record.at)
            }
            Err(error) => panic!("a master has stored an unreadable record: {error}"),
        }
    }

    /// Returns the addresses of a registered agent.
    pub(crate) fn allocation(&self) -> Option<&Allocation> {
        match self {
            Self::Has(allocation) => Some(allocation),
            Self::Nothing | Self::Had(..) => None,
        }
    }

    /// Returns the addresses of the agent, or its former addresses after a release.
    pub(crate) fn latest_allocation(&self) -> Option<&Allocation> {
        match self {
            Self::Has(allocation) | Self::Had(allocation, _) => Some(allocation),
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

    /// Returns the stored record of an agent at a version.
    pub(crate) fn at(&self, ip: Ipv4Addr, version: u64) -> &Stored {
        let history = self.history.get(&ip).map_or(&[][..], Vec::as_slice);
        let later = history.partition_point(|(written, _)| *written <= version);
        later.checked_sub(1).map_or(&Stored::Nothing, |index| &history[index].1)
    }
}
