//! Measures how fast the peers of a new agent program it without faults, and the messages of a
//! storm of registrations. The time is simulated, so the figures are the same on every machine, and
//! can be asserted. Only the master's processor time is real.
//!
//! The simulated time has these parts:
//!
//! * Messages leave a node one after the other over an uplink of 1 Gbit/s, with their headers. Each
//!   takes 0.2 to 2 ms to its receiver.
//! * The master waits up to 20 ms before it handles its inbox. Its store needs up to 16 ms for a
//!   commit.
//! * The kernel of an agent runs one job at a time. A job takes 1 to 20 ms, and 20 µs for each peer,
//!   also for each unchanged one: 0.2 s for 10,000 peers. Changes during a job are for the next job.
//!
//! Memory does not suffice for 10,000 agents with 10,000 peers each. So only a share of the agents
//! runs the whole state machine with a kernel. All other agents register with the state machine,
//! and follow the table as `world/followers.rs` describes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use overlay_linux::dataplane::Operation;

use crate::chance::Chance;
use crate::invariants::{Fact, Invariant, Violation};
use crate::ledger::Ledger;
use crate::scenario::Scenario;
use crate::world::{MasterTime, World};

/// How long the storm of the first registrations is measured.
const STORM: Duration = Duration::from_secs(12);
/// The interval between the registrations after the storm.
const INTERVAL: Duration = Duration::from_secs(4);
/// The percentages of the agents that are printed.
const PERCENTAGES: [usize; 4] = [50, 95, 99, 100];

/// The times at which agents programmed their peers.
#[derive(Default)]
struct Log {
    /// When each agent registered first, by its number.
    registered: HashMap<usize, Duration>,
    /// The number of the first agent that starts after the storm.
    first_later: usize,
    /// The times of all agents of the storm.
    storm: Times,
    /// The times of each agent that started later, by its number.
    later: HashMap<usize, Times>,
    /// When an agent programmed a peer last.
    last: Duration,
    /// The number of messages about peers to each agent.
    messages: HashMap<Ipv4Addr, u32>,
    /// The bytes of these messages.
    bytes: u64,
}

impl Log {
    /// Notes that an agent has programmed these peers now.
    fn add(&mut self, now: Duration, agent: Ipv4Addr, peers: impl Iterator<Item = usize>) {
        let own = World::number(agent);
        for peer in peers.filter(|peer| *peer != own) {
            let wait = now.saturating_sub(self.registered[&peer]);
            self.last = now;
            let times = if peer < self.first_later {
                &mut self.storm
            } else {
                self.later.entry(peer).or_default()
            };
            times.add(wait);
        }
    }
}

struct Probe(Rc<RefCell<Log>>);

impl Invariant for Probe {
    fn name(&self) -> &'static str {
        "how fast changes spread"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        let mut log = self.0.borrow_mut();
        match fact {
            Fact::MessageSent { agent, is_by_agent: true } => {
                log.registered.entry(World::number(*agent)).or_insert(now);
            }
            Fact::PeersSent { to, bytes, .. } => {
                *log.messages.entry(*to).or_default() += 1;
                log.bytes += *bytes as u64;
            }
            Fact::Programmed { agent, done, .. } => {
                let peers = done.operations.iter().filter_map(|operation| match operation {
                    Operation::SetForward(_, _, IpAddr::V4(peer)) => Some(World::number(*peer)),
                    _ => None,
                });
                log.add(now, *agent, peers);
            }
            Fact::FollowerProgrammed { agent, peers } => {
                log.add(now, *agent, peers.iter().copied());
            }
            _ => {}
        }
        Ok(())
    }
}

/// The times after which the other agents had programmed an agent, in milliseconds, rounded up. The
/// time of an agent that has not programmed it is missing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times {
    counts: BTreeMap<u64, usize>,
    expected: usize,
}

impl Times {
    fn add(&mut self, time: Duration) {
        let milliseconds = u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        *self.counts.entry(milliseconds).or_default() += 1;
    }

    /// Returns when this percentage of agents had programmed the agent, or `None` if fewer did.
    pub(crate) fn of(&self, percentage: usize) -> Option<Duration> {
        let needed = (self.expected * percentage).div_ceil(100);
        let mut programmed = 0;
        for (time, count) in &self.counts {
            programmed += count;
            if programmed >= needed {
                return Some(Duration::from_millis(*time));
            }
        }
        None
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PERCENTAGES.into_iter().try_for_each(|percentage| match self.of(percentage) {
            Some(time) => write!(f, "  {percentage} %: {:.2} s", time.as_secs_f64()),
            None => write!(f, "  {percentage} %: never"),
        })
    }
}

/// The result of a measurement.
pub(crate) struct Spread {
    agents: usize,
    /// The agents that register at once.
    pub(crate) storm: Times,
    /// When the last of them had programmed the last peer, since the first one started.
    pub(crate) complete: Duration,
    /// The messages about peers to each of them, in the mean and at most.
    mean: f64,
    pub(crate) most: u32,
    /// The processor time of the master, and the bytes of these messages.
    storm_cost: Cost,
    /// Each of the agents that register later, one after the other.
    pub(crate) later: Vec<(Times, Cost)>,
}

/// What peers cost the master.
pub(crate) struct Cost {
    bytes: u64,
    total: Duration,
    longest: Duration,
    encoding: Duration,
    longest_encoding: Duration,
}

impl Cost {
    /// Returns the costs since the last call.
    fn take(log: &RefCell<Log>, world: &mut World) -> Self {
        let bytes = std::mem::take(&mut log.borrow_mut().bytes);
        let MasterTime { total, longest, encoding, longest_encoding } =
            std::mem::take(&mut world.master_time);
        Self { bytes, total, longest, encoding, longest_encoding }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(
            f,
            "{:.1} MB of peers, master's CPU {:.0} ms (longest event {:.1} ms), {:.0} ms of it \
             encoding and compressing (longest {:.1} ms)",
            self.bytes as f64 / 1e6,
            ms(self.total),
            ms(self.longest),
            ms(self.encoding),
            ms(self.longest_encoding),
        )
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agents, storm, complete, mean, most, storm_cost, later } = self;
        writeln!(
            f,
            "from a registration until so many of {agents} agents have programmed the peer"
        )?;
        for (times, cost) in later {
            writeln!(f, "  one more:  {times}\n    {cost}")?;
        }
        let complete = complete.as_secs_f64();
        writeln!(f, "  all at once:{storm}\n    {storm_cost}")?;
        writeln!(f, "    all have all peers {complete:.2} s after the first start")?;
        write!(f, "    messages about peers to each agent: {mean:.1}, at most {most}")
    }
}

/// Measures a cluster of `agents` agents that start within a second, and of `later` agents that
/// start one after the other. The share `whole` of the agents runs the whole state machine with a
/// kernel.
///
/// # Errors
/// When an invariant is violated.
pub(crate) fn measure(
    seed: u64,
    agents: usize,
    later: usize,
    whole: f64,
) -> Result<Spread, Violation> {
    let mut chance = Chance::of(seed);
    let scenario = Scenario { programming: whole, ..Scenario::calm(agents, later, &mut chance) };
    let mut world = World::new(scenario, chance, None);
    let log = Rc::new(RefCell::new(Log { first_later: agents, ..Log::default() }));
    world.add_observer(Box::new(Probe(Rc::clone(&log))));
    world.run_until(STORM)?;
    let messages: Vec<u32> = log.borrow().messages.values().copied().collect();
    let mean = f64::from(messages.iter().sum::<u32>()) / agents as f64;
    let most = messages.into_iter().max().unwrap_or(0);
    let mut storm = log.borrow().storm.clone();
    storm.expected = agents * (agents - 1);
    let complete = log.borrow().last;
    let storm_cost = Cost::take(&log, &mut world);
    let mut each = Vec::new();
    for agent in agents..agents + later {
        world.start_agent(agent)?;
        world.run_until(world.now() + INTERVAL)?;
        let mut times = log.borrow().later.get(&agent).cloned().unwrap_or_default();
        times.expected = agent;
        each.push((times, Cost::take(&log, &mut world)));
    }
    Ok(Spread { agents: agents + later, storm, complete, mean, most, storm_cost, later: each })
}
