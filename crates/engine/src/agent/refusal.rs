//! What the master says about the registration of this agent: why it is refused or served only in
//! part, and which addresses of this host other agents have by now.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use overlay_types::addr::{OverlayName, Subnet, Upid};
use overlay_types::container_network::NetworkKind;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{HeldAddresses, Reassigned, RegistrationProblems};

use crate::state_machine::should_log_sample;

/// Container networks with their subnets, by overlay.
pub type FoundNetworks = BTreeMap<OverlayName, Vec<Subnet>>;

/// Returns whether a container network with these subnets has one of the named subnets, or a part
/// of one. To be checked right before the network is removed: since the master has named the
/// subnets, another assignment may have replaced the network.
#[must_use]
pub fn has_named_subnet(subnets: &[Subnet], named: &[Subnet]) -> bool {
    subnets.iter().any(|subnet| named.iter().any(|named| named.covers(subnet)))
}

/// The problems that the master reported since the last assignment.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The number of the last registration. The numbers of a process begin at random, so that no
    /// answer to an earlier process of this agent has one of them.
    last: u64,
    /// How many of the last registrations may be refused: those since the last assignment, or since
    /// the last refusal.
    open: u64,
    is_refused: bool,
    /// The current problems, each with the number of messages that had it.
    reasons: Vec<(String, u64)>,
    /// The problems before the last assignment. The master repeats those that have not ended.
    earlier: Vec<(String, u64)>,
}

impl Refusal {
    /// Returns a refusal without problems. `last` is the number before that of the next
    /// registration.
    pub(super) const fn new(last: u64) -> Self {
        Self { last, open: 0, is_refused: false, reasons: Vec::new(), earlier: Vec::new() }
    }

    /// Forgets everything that the former master said.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.last);
    }

    /// Returns the number of the next registration.
    pub(super) const fn next_registration(&mut self) -> u64 {
        self.last = self.last.wrapping_add(1);
        self.open = self.open.saturating_add(1);
        self.last
    }

    /// Returns whether a refusal answers a registration since the last assignment. Such a refusal
    /// counts once, and ends the wait for those of earlier registrations.
    ///
    /// A refusal of an earlier registration may name addresses that this agent got since.
    pub(super) fn take_answer(&mut self, registration: u64) -> bool {
        let later = self.last.wrapping_sub(registration);
        let is_answer = later < self.open;
        if is_answer {
            self.open = later;
        }
        is_answer
    }

    /// Replaces the problems. A problem is logged when it is new, and later with its count.
    pub(super) fn update(&mut self, master: &Upid, problems: &RegistrationProblems) {
        self.is_refused = problems.is_refused;
        let mut earlier = std::mem::take(&mut self.earlier);
        earlier.append(&mut self.reasons);
        for reason in &problems.reasons {
            let count = earlier.iter().find(|(known, _)| known == reason);
            let count = count.map_or(0, |(_, count)| *count) + 1;
            self.reasons.push((reason.clone(), count));
            if should_log_sample(count) {
                let sentence = sentence(master, self.is_refused, reason);
                if count > 1 {
                    log::error!("{sentence} ({count} times until now)");
                } else {
                    log::error!("{sentence}");
                }
            }
        }
    }

    /// Notes an assignment: the master serves this agent, and repeats problems that have not ended.
    pub(super) fn note_assignment(&mut self) {
        self.is_refused = false;
        self.open = 0;
        self.earlier = std::mem::take(&mut self.reasons);
    }

    /// Returns whether the master refused the last registration.
    pub(super) const fn is_refused(&self) -> bool {
        self.is_refused
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Returns a sentence for each problem.
    pub(super) fn sentences(&self, master: &Upid) -> impl Iterator<Item = String> {
        self.reasons.iter().map(|(reason, _)| sentence(master, self.is_refused, reason))
    }
}

fn sentence(master: &Upid, is_refused: bool, reason: &str) -> String {
    let action = if is_refused { "refuses this agent: " } else { "does not serve all overlays: " };
    format!("master {} {action}{reason}", master.address)
}

/// The managed objects that the host had before this agent got an assignment, for example those of
/// an earlier process of this agent.
#[derive(Debug, Default)]
pub(super) struct Found {
    cni: FoundNetworks,
    docker: FoundNetworks,
    vteps: Vec<IpAddr>,
    /// The kinds of networks that could not be listed, each with a sentence.
    unknown: BTreeMap<NetworkKind, String>,
    /// A sentence for each overlay of the host that another agent has by now.
    reassigned: BTreeMap<OverlayName, String>,
}

impl Found {
    pub(super) fn set_networks(
        &mut self,
        kind: NetworkKind,
        networks: Result<FoundNetworks, String>,
    ) {
        let found = match networks {
            Ok(networks) => {
                self.unknown.remove(&kind);
                networks
            }
            Err(reason) => {
                let sentence = format!("cannot list the {kind}s of this host: {reason}");
                if self.unknown.get(&kind) != Some(&sentence) {
                    log::warn!("{sentence}");
                }
                self.unknown.insert(kind, sentence);
                FoundNetworks::new()
            }
        };
        *self.networks_mut(kind) = found;
    }

    pub(super) fn set_vteps(&mut self, vteps: Vec<IpAddr>) {
        self.vteps = vteps;
    }

    const fn networks_mut(&mut self, kind: NetworkKind) -> &mut FoundNetworks {
        match kind {
            NetworkKind::Cni => &mut self.cni,
            NetworkKind::Docker => &mut self.docker,
        }
    }

    /// Forgets everything: from now on the assignments describe the host.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns whether a kind of networks could not be listed.
    pub(super) fn is_incomplete(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// Returns the subnets of the found networks, and the addresses of the found VTEPs.
    fn subnets(&self) -> impl Iterator<Item = Subnet> {
        let networks = self.cni.values().chain(self.docker.values()).flatten().copied();
        networks.chain(self.vteps.iter().copied().filter_map(single))
    }

    /// Returns the found networks of this kind whose subnets another agent has, with these subnets,
    /// and notes a problem for each.
    pub(super) fn reassigned_networks(
        &mut self,
        kind: NetworkKind,
        reassigned: &[Reassigned],
    ) -> FoundNetworks {
        let mut overlays = FoundNetworks::new();
        let networks = self.networks_mut(kind);
        let mut sentences = Vec::new();
        for (overlay, subnets) in networks.iter() {
            let holders: Vec<Reassigned> =
                subnets.iter().filter_map(|subnet| find(reassigned, *subnet)).collect();
            if let Some(&holder) = holders.first() {
                overlays.insert(overlay.clone(), holders.iter().map(|it| it.subnet).collect());
                sentences.push((overlay.clone(), reassigned_problem(holder)));
            }
        }
        for (overlay, problem) in sentences {
            let sentence = format!("overlay {overlay}: {problem}");
            self.reassigned.entry(overlay).or_insert_with(|| {
                log::error!("{sentence}");
                sentence
            });
        }
        overlays
    }

    /// Returns the agent that has the address of a found VTEP.
    pub(super) fn reassigned_vtep(&self, reassigned: &[Reassigned]) -> Option<(IpAddr, Ipv4Addr)> {
        let mut vteps = self.vteps.iter();
        vteps.find_map(|vtep| find(reassigned, single(*vtep)?).map(|found| (*vtep, found.agent)))
    }

    /// Returns a sentence for each overlay of the host that another agent has. While the agent is
    /// refused, also for each kind of networks that could not be listed: those that another agent
    /// has stay.
    pub(super) fn problems(&self, is_refused: bool) -> impl Iterator<Item = &String> {
        let unlisted = self.unknown.values().filter(move |_| is_refused);
        self.reassigned.values().chain(unlisted)
    }
}

/// Returns the addresses that the host uses: of the found objects, and of the assignments.
pub(super) fn held_addresses(
    found: &Found,
    assigned: impl Iterator<Item = Subnet>,
) -> HeldAddresses {
    HeldAddresses::new(found.subnets().chain(assigned))
}

/// Returns the subnet with only this address.
pub(super) fn single(address: IpAddr) -> Option<Subnet> {
    Subnet::containing(address, if address.is_ipv4() { 32 } else { 128 })
}

/// Returns the reassignment of exactly this subnet.
pub(super) fn find(reassigned: &[Reassigned], subnet: Subnet) -> Option<Reassigned> {
    let is_named =
        |it: &&Reassigned| it.subnet == subnet || Mutation::RemoveUnnamedNetworks.is_on();
    reassigned.iter().find(is_named).map(|named| Reassigned { subnet, ..*named })
}

/// Describes a subnet of this host that another agent has.
pub(super) fn reassigned_problem(Reassigned { subnet, agent }: Reassigned) -> String {
    format!(
        "agent {agent} has {subnet} by now, so this agent removes its container networks there: \
         stop the containers that still use {subnet} on this host"
    )
}

/// Describes a VTEP address of this host that another agent has.
pub(super) fn reassigned_vtep_problem(vtep: IpAddr, agent: Ipv4Addr) -> String {
    format!(
        "agent {agent} has the VTEP address {vtep} by now, so this agent removes its tunnels: make \
         room at the master, and the agent gets another address"
    )
}
