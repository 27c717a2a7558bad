//! The scenario of a seed: the size of the cluster, and the kinds and rates of faults. Each kind of
//! fault is left out of half of the worlds, since too many at once hide each other.

use std::time::Duration;

use crate::chance::Chance;
use crate::plan::Plan;

/// The rates of faults. A fault with 0 or `None` never happens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// The share of messages that are lost, duplicated, or late.
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) late: f64,
    pub(crate) delay_max: Duration,
    /// Mean times between network partitions, and between broken links.
    pub(crate) cuts: Option<Duration>,
    pub(crate) broken_links: Option<Duration>,
    /// Mean times between kills of masters and of agents.
    pub(crate) master_kills: Option<Duration>,
    pub(crate) agent_kills: Option<Duration>,
    /// The share of the commands of a master and of an agent before which it is killed.
    pub(crate) master_kills_at_commands: f64,
    pub(crate) agent_kills_at_commands: f64,
    /// The share of jobs of the store that fail, and that hang.
    pub(crate) store_failing: f64,
    pub(crate) store_hanging: f64,
    /// Mean time between disks that are full for a while.
    pub(crate) full_disks: Option<Duration>,
    /// Mean time between jumps of a wall clock.
    pub(crate) clock_jumps: Option<Duration>,
    /// The shares of attempts at container networks and of jobs of the kernel that fail.
    pub(crate) drivers: f64,
    pub(crate) kernel: f64,
    /// Mean times between foreign changes of programmed objects, and between foreign routes that
    /// overlap overlays.
    pub(crate) drifts: Option<Duration>,
    pub(crate) obstacles: Option<Duration>,
    /// Mean times between actions of operators: delete an agent, change the configuration, replace
    /// a host with another that has the same address.
    pub(crate) deletions: Option<Duration>,
    pub(crate) changes: Option<Duration>,
    pub(crate) replacements: Option<Duration>,
    /// Mean time between leaders that lose their session without noticing.
    pub(crate) lost_sessions: Option<Duration>,
    /// Mean time between processes that make themselves the writer of the state without an
    /// election.
    pub(crate) foreign_writers: Option<Duration>,
    /// Mean time between foreign messages.
    pub(crate) foreign_messages: Option<Duration>,
    /// Mean time between false peers in the name of the leader.
    pub(crate) false_peers_rate: Option<Duration>,
    /// Mean times between attacks where authentication is required, and between steps of the
    /// replacement of a secret.
    pub(crate) attacks: Option<Duration>,
    pub(crate) rotations: Option<Duration>,
}

/// How agents and masters authenticate each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authentication {
    /// All nodes require it.
    Required,
    /// Masters permit agents without a credential, and some agents have one.
    Permitted,
}

/// A cluster and its faults.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) masters: usize,
    /// How many of them send no peers, as the C++ module.
    pub(crate) masters_without_peers: usize,
    pub(crate) agents: usize,
    /// The share of agents that program their kernel. The C++ module does not.
    pub(crate) programming: f64,
    /// Whether the other agents follow the table of peers without a kernel.
    pub(crate) has_followers: bool,
    /// The share of agents of a former version, which know no compact form of peer updates.
    pub(crate) former_versions: f64,
    /// Whether kernels only take time, without faults.
    pub(crate) has_plain_kernels: bool,
    /// `None` without credentials.
    pub(crate) authentication: Option<Authentication>,
    /// How many agents start when all other agents are healthy.
    pub(crate) latecomers: usize,
    /// The time within which the other agents start.
    pub(crate) arrival: Duration,
    /// How long faults are injected.
    pub(crate) fault: Duration,
    pub(crate) faults: Faults,
    pub(crate) plan: Plan,
    /// How many agents have records in the store when the world begins, as after an import. Some of
    /// these records conflict: two agents have one address.
    pub(crate) imported: usize,
    pub(crate) reuse_after: Duration,
    pub(crate) verify_interval: Duration,
    /// Longest time for which a master's batch of events waits.
    pub(crate) busy: Duration,
}

impl Scenario {
    /// Returns the scenario of a seed.
    pub(crate) fn of(chance: &mut Chance) -> Self {
        let masters = 1 + chance.index(3);
        let agents = if chance.is(0.1) { 20 + chance.index(40) } else { 1 + chance.index(10) };
        Self::with(masters, agents, chance)
    }

    /// Returns a large cluster.
    pub(crate) fn large(agents: usize, chance: &mut Chance) -> Self {
        let mut scenario = Self::with(3, agents, chance);
        scenario.fault = Duration::from_secs(240);
        // The kernel of each programming agent has all peers, which costs memory.
        scenario.programming = 0.05;
        scenario
    }

    /// Returns a cluster without faults, of `agents` agents that start at once and of `latecomers`
    /// more.
    pub(crate) fn calm(agents: usize, latecomers: usize, chance: &mut Chance) -> Self {
        let agents = agents + latecomers;
        Self {
            masters_without_peers: 0,
            programming: 1.0,
            has_followers: true,
            former_versions: 0.0,
            has_plain_kernels: true,
            authentication: None,
            latecomers,
            arrival: Duration::from_secs(1),
            fault: Duration::ZERO,
            faults: Faults::default(),
            plan: Plan::large_enough(agents),
            imported: 0,
            busy: Duration::from_millis(20),
            ..Self::with(1, agents, chance)
        }
    }

    fn with(masters: usize, agents: usize, chance: &mut Chance) -> Self {
        let minutes = |least, most| Duration::from_secs(60).mul_f64(f64::from(least + most) / 2.0);
        let fault = chance.time_between(minutes(2, 2), minutes(20, 20));
        let reuse_after = Duration::from_secs(chance.number(60..600));
        let faults = Faults::of(masters, chance);
        // If a leader may learn of its demotion only by its next write, a latecomer may not be
        // served in time.
        let is_sure = faults.foreign_writers.is_none() && faults.store_hanging == 0.0;
        let imported = if agents > 1 && chance.is(0.35) { 2 + chance.index(agents - 1) } else { 0 };
        // The conflicts of an import end by releases.
        let imported_faults = Faults { deletions: Some(Duration::from_secs(30)), ..faults.clone() };
        let faults = if imported > 0 { imported_faults } else { faults };
        let authentication = chance.is(0.4).then(|| {
            if chance.is(0.6) { Authentication::Required } else { Authentication::Permitted }
        });
        let has_attacks = authentication == Some(Authentication::Required);
        let attacks = faults.attacks.filter(|_| has_attacks);
        let rotations = faults.rotations.filter(|_| authentication.is_some());
        let faults = Faults { attacks, rotations, ..faults };
        Self {
            masters,
            masters_without_peers: if chance.is(0.15) { 1 + chance.index(masters) } else { 0 },
            agents,
            programming: if chance.is(0.7) { 1.0 } else { 0.5 },
            has_followers: false,
            former_versions: 0.2,
            has_plain_kernels: false,
            authentication,
            latecomers: usize::from(agents > 1 && is_sure && chance.is(0.7)),
            arrival: Duration::from_secs(20),
            fault,
            faults,
            plan: Plan::of(agents, chance),
            imported: imported.min(8),
            reuse_after,
            verify_interval: chance.time_between(minutes(1, 1), minutes(10, 10)),
            busy: if chance.is(0.5) { Duration::from_millis(20) } else { Duration::ZERO },
        }
    }
}

impl Faults {
    fn of(masters: usize, chance: &mut Chance) -> Self {
        let seconds = Duration::from_secs;
        let mut share = |most: f64| {
            if chance.is(0.5) { most * chance.time_up_to(seconds(1)).as_secs_f64() } else { 0.0 }
        };
        let (loss, duplication, late) = (share(0.3), share(0.3), share(0.3));
        let (master_kills, agent_kills) = (share(0.05), share(0.05));
        let (store_failing, store_hanging, drivers) = (share(0.3), share(0.8), share(0.8));
        let kernel = share(0.8);
        let mut every = |least: u64, most: u64| {
            chance.is(0.5).then(|| chance.time_between(seconds(least), seconds(most)))
        };
        Self {
            loss,
            duplication,
            late,
            delay_max: seconds(60),
            cuts: every(20, 300),
            broken_links: every(5, 300),
            master_kills: every(20, 600),
            agent_kills: every(5, 300),
            master_kills_at_commands: master_kills,
            agent_kills_at_commands: agent_kills,
            store_failing,
            store_hanging,
            full_disks: every(60, 600),
            clock_jumps: every(30, 300),
            drivers,
            kernel,
            drifts: every(5, 100),
            obstacles: every(60, 600),
            deletions: every(10, 200),
            changes: every(5, 300),
            replacements: every(60, 600),
            lost_sessions: every(10, 200).filter(|_| masters > 1),
            foreign_writers: every(30, 600),
            foreign_messages: every(10, 100),
            false_peers_rate: every(20, 300),
            attacks: every(1, 30),
            rotations: every(30, 300),
        }
    }
}
