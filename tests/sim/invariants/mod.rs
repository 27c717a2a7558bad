//! What must always be true, one rule a file. The world tells what happens, in the order in which
//! it takes effect; a rule that is broken ends the world with a sentence.
//!
//! To add a rule: a file here, a line in [`Monitor::new`], and a mutation that only it catches.

mod addresses_stay;
mod deposed_masters;
mod healing;
mod no_overlap;
mod no_storm;
mod peers_agree;
mod peers_are_assigned;
mod peers_are_distinct;
mod peers_are_paced;
mod peers_never_age;
mod peers_stay;
mod promises_are_stored;
mod reports_are_true;
mod reuse;
mod views_agree;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mesos_network_overlay::agent::{ContainerNetwork, Health as AgentHealth};
use mesos_network_overlay::dataplane;
use mesos_network_overlay::master::Health as MasterHealth;
use mesos_network_overlay::protocol::{
    AgentInfo, AgentOptions, Assignment, Network, PeersHave, State,
};
use mesos_network_overlay::store::Change;
use mesos_network_overlay::tunnel::Desired;

use crate::kernel::Done;
use crate::ledger::{Ledger, Step};
use crate::scenario::Scenario;

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) rule: &'static str,
    pub(crate) how: String,
}

/// Nothing, or the rule that was broken.
pub(crate) type Verdict = Result<(), Broken>;

/// A master at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub(crate) master: usize,
    /// Which of its lives.
    pub(crate) run: u64,
    /// What the election has told it last.
    pub(crate) leads: bool,
    /// The epoch that it believes to be in.
    pub(crate) epoch: u64,
    /// The version that it knows to be durable.
    pub(crate) durable: u64,
    /// Reuses that it has counted as early in this life.
    pub(crate) early_reuses: u64,
    /// When that is.
    pub(crate) at: Duration,
    /// Its wall clock.
    pub(crate) unix: u64,
    /// Its configuration, and those that it had since its commit before.
    pub(crate) networks: Vec<Arc<Network>>,
}

/// Something that happened.
pub(crate) enum Fact<'a> {
    /// A load took effect: an epoch has begun.
    EpochBegan,
    /// A commit took effect.
    Stored { by: &'a Writer, epoch: u64, steps: &'a [Step] },
    /// A master tells an agent its share: the message leaves.
    Told { by: &'a Writer, to: Ipv4Addr, overlays: &'a [Assignment] },
    /// An operator has a master delete an agent.
    Deleted { agent: Ipv4Addr },
    /// A master says that it has deleted these agents, which it was asked at this moment.
    Freed { by: &'a Writer, agents: &'a [Ipv4Addr], asked: Duration },
    /// A master has read its configuration again: it may tell agents.
    Reread,
    /// An agent's process has begun.
    Began { agent: Ipv4Addr, options: AgentOptions, programs: bool },
    /// An agent wants a container network made.
    Wanted { agent: Ipv4Addr, network: &'a ContainerNetwork },
    /// An attempt of a living agent has ended.
    Made { agent: Ipv4Addr, network: &'a ContainerNetwork, is_done: bool },
    /// An agent reports.
    Reported { agent: Ipv4Addr, overlays: &'a [Assignment] },
    /// A message leaves a node for an agent, or an agent for a master. What masters say of peers is
    /// [`Fact::PeersTold`].
    Sent { agent: Ipv4Addr, is_by_agent: bool },
    /// A message of an agent reaches a master; a question for peers is [`Fact::PeersWanted`].
    Asked { agent: Ipv4Addr },
    /// An agent asks for its peers, and says what it has.
    PeersAsked { agent: Ipv4Addr, have: PeersHave },
    /// Such a question reaches this life of a master.
    PeersWanted { of: (usize, u64), agent: Ipv4Addr },
    /// A message about peers leaves this life of a master.
    PeersTold { by: (usize, u64), to: Ipv4Addr },
    /// A message about peers, whoever sent it, reaches an agent.
    PeersHeard { agent: Ipv4Addr },
    /// Somebody lies to an agent about peers in the name of its master.
    Lied { agent: Ipv4Addr },
    /// The kernel of an agent was programmed, and is like this now.
    Programmed {
        agent: Ipv4Addr,
        desired: &'a Desired,
        done: &'a Done,
        kernel: &'a dataplane::State,
    },
    /// Something happened to an agent that may make it speak.
    Provoked { agent: Ipv4Addr },
    /// A machine wants so many things done at one event.
    Commanded { who: Ipv4Addr, count: usize, events: usize, is_master: bool },
    /// Faults have ended long ago.
    Healed(&'a Healed),
}

/// A cluster that should be well.
pub(crate) struct Healed {
    pub(crate) state: State,
    pub(crate) health: MasterHealth,
    pub(crate) agents: Vec<HealedAgent>,
    /// Whether the leader says nothing of peers.
    pub(crate) is_mute: bool,
}

pub(crate) struct HealedAgent {
    pub(crate) info: AgentInfo,
    pub(crate) health: AgentHealth,
    pub(crate) options: AgentOptions,
    pub(crate) made: Vec<ContainerNetwork>,
    /// What is in its kernel, if it programs it.
    pub(crate) kernel: Option<dataplane::State>,
}

/// A rule.
pub(crate) trait Invariant {
    /// What must be true, in a few words.
    fn name(&self) -> &'static str;

    /// Takes note of what happened.
    ///
    /// # Errors
    /// A sentence, if the rule is broken.
    fn observe(&mut self, now: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String>;
}

/// All rules.
pub(crate) struct Monitor {
    pub(crate) ledger: Ledger,
    rules: Vec<Box<dyn Invariant>>,
}

impl Monitor {
    /// All rules, or the one with this name.
    pub(crate) fn new(scenario: &Scenario, only: Option<&str>) -> Self {
        let mut rules: Vec<Box<dyn Invariant>> = vec![
            Box::new(no_overlap::NoOverlap::new(scenario.reuse_after)),
            Box::new(promises_are_stored::PromisesAreStored::default()),
            Box::new(addresses_stay::AddressesStay::new(scenario.plan.is_rude)),
            Box::new(deposed_masters::DeposedMasters::default()),
            Box::new(reuse::Reuse::new(scenario)),
            Box::new(reports_are_true::ReportsAreTrue::default()),
            Box::new(no_storm::NoStorm::new(scenario.agents)),
            Box::new(healing::Healing),
            Box::new(views_agree::ViewsAgree),
            Box::new(peers_agree::PeersAgree),
            Box::new(peers_are_assigned::PeersAreAssigned::default()),
            Box::new(peers_are_distinct::PeersAreDistinct),
            Box::new(peers_are_paced::PeersArePaced::default()),
            Box::new(peers_never_age::PeersNeverAge::default()),
            Box::new(peers_stay::PeersStay::default()),
        ];
        if let Some(only) = only {
            rules.retain(|rule| rule.name() == only);
            // That machines do not panic is found by whoever runs the world.
            assert!(rules.len() == 1 || only == NO_PANIC, "there is no rule '{only}'");
        }
        Self { ledger: Ledger::default(), rules }
    }

    /// Has somebody else hear what happens, too.
    pub(crate) fn add(&mut self, rule: Box<dyn Invariant>) {
        self.rules.push(rule);
    }

    pub(crate) fn observe(&mut self, now: Duration, fact: &Fact<'_>) -> Verdict {
        for rule in &mut self.rules {
            let verdict = rule.observe(now, fact, &self.ledger);
            verdict.map_err(|how| Broken { rule: rule.name(), how })?;
        }
        Ok(())
    }

    /// A load takes effect.
    pub(crate) fn begin_epoch(&mut self, now: Duration) -> Verdict {
        self.ledger.epoch += 1;
        self.observe(now, &Fact::EpochBegan)
    }

    /// A commit takes effect.
    pub(crate) fn write(
        &mut self,
        now: Duration,
        by: &Writer,
        epoch: u64,
        changes: &[Change],
    ) -> Result<Vec<Step>, Broken> {
        let version = self.ledger.version + 1;
        let steps = self.ledger.write(version, changes);
        self.observe(now, &Fact::Stored { by, epoch, steps: &steps })?;
        Ok(steps)
    }
}

/// What must happen when faults have ended.
pub(crate) const HEALS: &str = "everything heals";
/// What must not become a storm.
pub(crate) const BOUNDED: &str = "messages and commands are bounded";
/// The rule that needs no file.
pub(crate) const NO_PANIC: &str = "machines never panic";
