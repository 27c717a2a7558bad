//! What a seed stands for: how large the cluster is, which faults it meets and how often. Each kind
//! of fault is left out of half of the worlds, since too many at once hide each other.

use std::time::Duration;

use crate::chance::Chance;
use crate::plan::Plan;

/// How often things go wrong. What is 0 or `None` never does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Share of messages that are lost, come twice, or come late.
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) late: f64,
    pub(crate) delay_max: Duration,
    /// Mean times between cuts of the network, and between links that break.
    pub(crate) cuts: Option<Duration>,
    pub(crate) broken_links: Option<Duration>,
    /// Mean times between kills of masters and of agents.
    pub(crate) master_kills: Option<Duration>,
    pub(crate) agent_kills: Option<Duration>,
    /// Share of the commands of a master and of an agent before which it is killed.
    pub(crate) master_kills_at_commands: f64,
    pub(crate) agent_kills_at_commands: f64,
    /// Share of jobs of the store that fail, and that hang.
    pub(crate) store_failing: f64,
    pub(crate) store_hanging: f64,
    /// Mean time between disks that are full for a while.
    pub(crate) full_disks: Option<Duration>,
    /// Mean time between jumps of a wall clock.
    pub(crate) clock_jumps: Option<Duration>,
    /// Share of attempts at container networks that fail, and of jobs of the kernel.
    pub(crate) drivers: f64,
    pub(crate) kernel: f64,
    /// Mean times between changes that others make to what is programmed, and between routes that
    /// they add where overlays are.
    pub(crate) drifts: Option<Duration>,
    pub(crate) obstacles: Option<Duration>,
    /// Mean times between what operators do: delete an agent, change the configuration, replace a
    /// host by another with the same address.
    pub(crate) deletions: Option<Duration>,
    pub(crate) changes: Option<Duration>,
    pub(crate) replacements: Option<Duration>,
    /// Mean time between leaders that lose their session and do not know it.
    pub(crate) lost_sessions: Option<Duration>,
    /// Mean time between those who make themselves the writer of the state, and stand for no
    /// election.
    pub(crate) intruders: Option<Duration>,
    /// Mean time between messages of strangers.
    pub(crate) strangers: Option<Duration>,
    /// Mean time between lies about peers in the name of the leader.
    pub(crate) lies: Option<Duration>,
}

/// A cluster and its fate.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) masters: usize,
    /// How many of them say nothing of peers, as the C++ module.
    pub(crate) mute_masters: usize,
    pub(crate) agents: usize,
    /// Share of the agents that program their host; the others are as those of the C++ module.
    pub(crate) programming: f64,
    /// Whether only the time counts that kernels take.
    pub(crate) has_plain_kernels: bool,
    /// How many of the agents come when all the others are well.
    pub(crate) latecomers: usize,
    /// Within which time the others are started.
    pub(crate) arrival: Duration,
    /// How long things go wrong.
    pub(crate) trouble: Duration,
    pub(crate) faults: Faults,
    pub(crate) plan: Plan,
    pub(crate) reuse_after: Duration,
    pub(crate) verify_interval: Duration,
    /// Longest time for which a master's batch of events waits.
    pub(crate) busy: Duration,
}

impl Scenario {
    /// The scenario of a seed.
    pub(crate) fn of(chance: &mut Chance) -> Self {
        let masters = 1 + chance.index(3);
        let agents = if chance.is(0.1) { 20 + chance.index(40) } else { 1 + chance.index(10) };
        Self::with(masters, agents, chance)
    }

    /// A large cluster.
    pub(crate) fn large(agents: usize, chance: &mut Chance) -> Self {
        let mut scenario = Self::with(3, agents, chance);
        scenario.trouble = Duration::from_secs(240);
        // Each of them has all the others in its kernel.
        scenario.programming = 0.05;
        scenario
    }

    /// A cluster in which nothing goes wrong, of so many agents that come at once, and of so many
    /// more.
    pub(crate) fn calm(agents: usize, latecomers: usize, chance: &mut Chance) -> Self {
        let agents = agents + latecomers;
        Self {
            mute_masters: 0,
            programming: 1.0,
            has_plain_kernels: true,
            latecomers,
            arrival: Duration::from_secs(1),
            trouble: Duration::ZERO,
            faults: Faults::default(),
            plan: Plan::with_room(agents),
            busy: Duration::from_millis(20),
            ..Self::with(1, agents, chance)
        }
    }

    fn with(masters: usize, agents: usize, chance: &mut Chance) -> Self {
        let minutes = |least, most| Duration::from_secs(60).mul_f64(f64::from(least + most) / 2.0);
        let trouble = chance.time_between(minutes(2, 2), minutes(20, 20));
        let reuse_after = Duration::from_secs(chance.number(60..600));
        let faults = Faults::of(masters, chance);
        // Where a leader may find out by the next write that it leads no longer, the next is not
        // the one that everybody waits for.
        let is_sure = faults.intruders.is_none() && faults.store_hanging == 0.0;
        Self {
            masters,
            mute_masters: if chance.is(0.15) { 1 + chance.index(masters) } else { 0 },
            agents,
            programming: if chance.is(0.7) { 1.0 } else { 0.5 },
            has_plain_kernels: false,
            latecomers: usize::from(agents > 1 && is_sure && chance.is(0.7)),
            arrival: Duration::from_secs(20),
            trouble,
            faults,
            plan: Plan::of(agents, chance),
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
            intruders: every(30, 600),
            strangers: every(10, 100),
            lies: every(20, 300),
        }
    }
}
