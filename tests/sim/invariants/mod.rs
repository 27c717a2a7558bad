//! The invariants that must always hold, one in each file. The world reports facts in the order in
//! which they take effect. A violation ends the world with a sentence.
//!
//! To add an invariant: a file here, a line in [`Monitor::new`], and a mutation that no other
//! invariant catches.

mod addresses_are_exclusive;
mod addresses_stay;
mod assignments_are_stored;
mod authentic_messages;
mod bounds;
mod demoted_masters;
mod healing;
mod no_overlap;
mod peers_agree;
mod peers_are_assigned;
mod peers_are_distinct;
mod peers_are_paced;
mod peers_never_age;
mod peers_stay;
mod reassigned_networks;
mod reports_are_true;
mod reuse;
mod silence;
mod views_agree;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use overlay_engine::agent::{FoundNetworks, Health as AgentHealth};
use overlay_engine::master::Health as MasterHealth;
use overlay_linux::dataplane;
use overlay_store::Change;
use overlay_types::container_network::ContainerNetwork;
use overlay_types::protocol::{
    AgentInfo, AgentOptions, Assignment, MessageKind, Network, PeerTableVersion,
    RegistrationProblems, State,
};
use overlay_types::tunnel::Desired;

use crate::kernel::Done;
use crate::ledger::{Ledger, Step};
use crate::scenario::Scenario;

/// A violation of an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) detail: String,
}

/// The result of checking all invariants.
pub(crate) type InvariantResult = Result<(), Violation>;

/// A snapshot of a master.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub(crate) master: usize,
    /// The number of its process.
    pub(crate) run: u64,
    /// The last result of the election that it received.
    pub(crate) leads: bool,
    /// The epoch of its last load.
    pub(crate) epoch: u64,
    /// The durable version by its last load or commit.
    pub(crate) durable: u64,
    /// The early reuses that this process has counted.
    pub(crate) early_reuses: u64,
    /// The time of this description.
    pub(crate) at: Duration,
    /// The wall clock of the master.
    pub(crate) unix: u64,
    /// The current configuration, and all configurations since the last commit.
    pub(crate) networks: Vec<Arc<Network>>,
}

/// A fact that the world reports.
pub(crate) enum Fact<'a> {
    /// A load took effect: an epoch has begun.
    EpochBegan,
    /// The store was filled before any master had read it. Records may conflict.
    Imported { steps: &'a [Step] },
    /// A commit took effect.
    Committed { by: &'a Writer, epoch: u64, steps: &'a [Step] },
    /// A master sends an agent its assignments.
    AssignmentsSent { by: &'a Writer, to: Ipv4Addr, overlays: &'a [Assignment] },
    /// A master sends an agent the problems of its registration.
    ProblemsSent { by: &'a Writer, to: Ipv4Addr, problems: &'a RegistrationProblems },
    /// An operator requests the release of an agent.
    ReleaseRequested { agent: Ipv4Addr },
    /// A master confirms the release of these agents, which was requested at `asked`.
    ReleaseConfirmed { by: &'a Writer, agents: &'a [Ipv4Addr], asked: Duration },
    /// A master has read its configuration again, and may send assignments.
    ConfigRead,
    /// An agent's process has started.
    AgentStarted { agent: Ipv4Addr, options: AgentOptions, programs: bool },
    /// An agent applies a container network.
    NetworkDesired { agent: Ipv4Addr, network: &'a ContainerNetwork },
    /// An attempt of a running agent has ended.
    NetworkApplied { agent: Ipv4Addr, network: &'a ContainerNetwork, is_done: bool },
    /// An agent has removed a container network, because the master named its subnet as assigned to
    /// another agent.
    NetworkDropped { agent: Ipv4Addr, network: &'a ContainerNetwork },
    /// An agent orders the removal of CNI configurations for the same reason.
    RemovalOrdered { agent: Ipv4Addr, named: &'a FoundNetworks },
    /// Assignments of its master reach an agent.
    AssignmentsReceived { agent: Ipv4Addr },
    /// An agent sends a report.
    Reported { agent: Ipv4Addr, overlays: &'a [Assignment] },
    /// An agent or a master sends a message. Messages about peers from masters are
    /// [`Fact::PeersSent`].
    MessageSent { agent: Ipv4Addr, is_by_agent: bool },
    /// A message of an agent reaches a master. A request for peers is
    /// [`Fact::PeersRequestReceived`].
    MessageReceived { agent: Ipv4Addr },
    /// An agent requests its peers, with the table that it has.
    PeersRequested { agent: Ipv4Addr, have: PeerTableVersion },
    /// A request for peers reaches this process of a master.
    PeersRequestReceived { of: (usize, u64), agent: Ipv4Addr },
    /// This process of a master sends a message about peers.
    PeersSent { by: (usize, u64), to: Ipv4Addr, bytes: usize },
    /// A message about peers of any sender reaches an agent.
    PeersReceived { agent: Ipv4Addr },
    /// False peers are sent to an agent in the name of its master.
    FalsePeersSent { agent: Ipv4Addr },
    /// A process accepts a message, by its number. `counts_once` tells whether it has a seal.
    Accepted {
        by: (Ipv4Addr, u64),
        packet: u64,
        kind: MessageKind,
        is_forged: bool,
        counts_once: bool,
    },
    /// The kernel of an agent was programmed, with the resulting state.
    Programmed {
        agent: Ipv4Addr,
        desired: &'a Desired,
        done: &'a Done,
        kernel: &'a dataplane::State,
    },
    /// The simulated kernel of an agent that keeps no state of its kernel has these peers, by their
    /// number.
    FollowerProgrammed { agent: Ipv4Addr, peers: &'a [usize] },
    /// An event reached an agent, which may send messages because of it.
    AgentTriggered { agent: Ipv4Addr },
    /// A state machine issues commands after an event.
    CommandsIssued { node: Ipv4Addr, count: usize, events: usize, is_master: bool },
    /// The faults have ended, and the time for healing has passed.
    Healed(&'a Healed),
    /// Afterwards, one agent has ended for ever, and the time until it is stale has passed.
    StayedAway { dead: Ipv4Addr, state: &'a State },
}

/// A cluster that has to be healthy.
pub(crate) struct Healed {
    pub(crate) state: State,
    pub(crate) health: MasterHealth,
    pub(crate) agents: Vec<HealedAgent>,
    /// Whether the leader sends no peers.
    pub(crate) sends_no_peers: bool,
}

pub(crate) struct HealedAgent {
    pub(crate) info: AgentInfo,
    pub(crate) health: AgentHealth,
    pub(crate) options: AgentOptions,
    pub(crate) networks: Vec<ContainerNetwork>,
    /// The state of its kernel, if the agent programs it.
    pub(crate) kernel: Option<dataplane::State>,
}

/// An invariant.
pub(crate) trait Invariant {
    /// Returns the invariant in a few words.
    fn name(&self) -> &'static str;

    /// Checks a fact.
    ///
    /// # Errors
    /// A sentence, if the invariant is violated.
    fn observe(&mut self, now: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String>;
}

/// All invariants.
pub(crate) struct Monitor {
    pub(crate) ledger: Ledger,
    invariants: Vec<Box<dyn Invariant>>,
}

impl Monitor {
    /// Creates a monitor of all invariants, or of the invariant with this name.
    pub(crate) fn new(scenario: &Scenario, only: Option<&str>) -> Self {
        let mut invariants: Vec<Box<dyn Invariant>> = vec![
            Box::new(no_overlap::NoOverlap::new(scenario.reuse_after)),
            Box::new(assignments_are_stored::AssignmentsAreStored::default()),
            Box::new(addresses_are_exclusive::AddressesAreExclusive::default()),
            Box::new(addresses_stay::AddressesStay::new(scenario.plan.has_conflicting_changes)),
            Box::new(demoted_masters::DemotedMasters::default()),
            Box::new(reuse::Reuse::new(scenario)),
            Box::new(reports_are_true::ReportsAreTrue::default()),
            Box::new(bounds::Bounds::new(scenario.agents)),
            Box::new(healing::Healing),
            Box::new(views_agree::ViewsAgree),
            Box::new(peers_agree::PeersAgree),
            Box::new(peers_are_assigned::PeersAreAssigned::default()),
            Box::new(peers_are_distinct::PeersAreDistinct),
            Box::new(peers_are_paced::PeersArePaced::default()),
            Box::new(peers_never_age::PeersNeverAge::default()),
            Box::new(peers_stay::PeersStay::default()),
            Box::new(silence::Silence),
            Box::new(reassigned_networks::ReassignedNetworks::default()),
            Box::new(authentic_messages::AuthenticMessages::default()),
        ];
        if let Some(only) = only {
            invariants.retain(|invariant| invariant.name() == only);
            // A panic is found by the caller that runs the world.
            assert!(invariants.len() == 1 || only == NO_PANIC, "there is no invariant '{only}'");
        }
        Self { ledger: Ledger::default(), invariants }
    }

    /// Adds an observer.
    pub(crate) fn add(&mut self, invariant: Box<dyn Invariant>) {
        self.invariants.push(invariant);
    }

    pub(crate) fn observe(&mut self, now: Duration, fact: &Fact<'_>) -> InvariantResult {
        for invariant in &mut self.invariants {
            let result = invariant.observe(now, fact, &self.ledger);
            result.map_err(|detail| Violation { invariant: invariant.name(), detail })?;
        }
        Ok(())
    }

    /// Reports a load.
    pub(crate) fn begin_epoch(&mut self, now: Duration) -> InvariantResult {
        self.ledger.epoch += 1;
        self.observe(now, &Fact::EpochBegan)
    }

    /// Reports an import.
    pub(crate) fn import(&mut self, changes: &[Change]) -> InvariantResult {
        self.begin_epoch(Duration::ZERO)?;
        let steps = self.ledger.write(self.ledger.version + 1, changes);
        self.observe(Duration::ZERO, &Fact::Imported { steps: &steps })
    }

    /// Reports a commit.
    pub(crate) fn write(
        &mut self,
        now: Duration,
        by: &Writer,
        epoch: u64,
        changes: &[Change],
    ) -> Result<Vec<Step>, Violation> {
        let version = self.ledger.version + 1;
        let steps = self.ledger.write(version, changes);
        self.observe(now, &Fact::Committed { by, epoch, steps: &steps })?;
        Ok(steps)
    }
}

/// The name of the invariant that is checked after all faults.
pub(crate) const HEALS: &str = "everything heals";
/// The name of the invariant for bounds.
pub(crate) const BOUNDED: &str = "messages and commands are bounded";
/// The name of the invariant that the campaign checks itself.
pub(crate) const NO_PANIC: &str = "state machines never panic";
