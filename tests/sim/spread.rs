//! Measures how fast the peers of a new agent program it without faults, and the messages of a
//! storm of registrations. The time is simulated, with the usual delays of a network, a store and
//! kernels. So the figures are the same on every machine, and can be asserted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use overlay_linux::dataplane::Operation;

use crate::chance::Chance;
use crate::invariants::{Fact, Invariant, Violation};
use crate::ledger::Ledger;
use crate::scenario::Scenario;
use crate::world::World;

/// How long the storm of the first registrations is measured.
const STORM: Duration = Duration::from_secs(12);
/// The interval between the registrations after the storm.
const INTERVAL: Duration = Duration::from_secs(4);
/// The percentages of the agents that are printed.
const PERCENTAGES: [usize; 4] = [50, 95, 99, 100];

/// The times at which agents programmed their peers.
#[derive(Default)]
struct Log {
    /// When each agent registered first.
    registered: HashMap<Ipv4Addr, Duration>,
    /// How long after that each other agent had programmed it.
    programmed: HashMap<Ipv4Addr, HashMap<Ipv4Addr, Duration>>,
    /// The number of messages about peers to each agent.
    messages: HashMap<Ipv4Addr, u32>,
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
                log.registered.entry(*agent).or_insert(now);
            }
            Fact::PeersSent { to, .. } => *log.messages.entry(*to).or_default() += 1,
            Fact::Programmed { agent, done, .. } => {
                for operation in &done.operations {
                    if let Operation::SetForward(_, _, IpAddr::V4(peer)) = operation {
                        let wait = now.saturating_sub(log.registered[peer]);
                        let known = log.programmed.entry(*peer).or_default();
                        known.entry(*agent).or_insert(wait);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The times after which the other agents had programmed an agent.
#[derive(Debug, Default)]
pub(crate) struct Times {
    times: Vec<Duration>,
    missing: usize,
}

impl Times {
    /// Adds the times at which `others` agents programmed an agent.
    fn add(&mut self, programmed: Option<&HashMap<Ipv4Addr, Duration>>, others: usize) {
        let times = programmed.map_or(0, HashMap::len);
        self.missing += others.saturating_sub(times);
        self.times.extend(programmed.into_iter().flat_map(HashMap::values));
    }

    /// Returns when this percentage of agents had programmed the agent, or `None` if fewer did.
    pub(crate) fn of(&self, percentage: usize) -> Option<Duration> {
        let mut times = self.times.clone();
        times.sort_unstable();
        let count = (times.len() + self.missing) * percentage;
        times.get(count.div_ceil(100).checked_sub(1)?).copied()
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
    /// The messages about peers to each of them, in the mean and at most.
    mean: f64,
    pub(crate) most: u32,
    /// Each of the agents that register later, one after the other.
    pub(crate) later: Vec<Times>,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agents, storm, mean, most, later } = self;
        writeln!(
            f,
            "from a registration until so many of {agents} agents have programmed the peer"
        )?;
        for times in later {
            writeln!(f, "  one more:  {times}")?;
        }
        writeln!(f, "  all at once:{storm}")?;
        write!(f, "  messages about peers to each agent then: {mean:.1}, at most {most}")
    }
}

/// Measures a cluster of `agents` agents that start within a second, and of `later` agents that
/// start one after the other.
///
/// # Errors
/// When an invariant is violated.
pub(crate) fn measure(seed: u64, agents: usize, later: usize) -> Result<Spread, Violation> {
    let mut chance = Chance::of(seed);
    let scenario = Scenario::calm(agents, later, &mut chance);
    let mut world = World::new(scenario, chance, None);
    let log = Rc::new(RefCell::new(Log::default()));
    world.add_observer(Box::new(Probe(Rc::clone(&log))));
    world.run_until(STORM)?;
    let mut storm = Times::default();
    let messages: Vec<u32> = log.borrow().messages.values().copied().collect();
    let mean = f64::from(messages.iter().sum::<u32>()) / agents as f64;
    let most = messages.into_iter().max().unwrap_or(0);
    for agent in 0..agents {
        storm.add(log.borrow().programmed.get(&world.address(agent)), agents - 1);
    }
    let mut each = Vec::new();
    for agent in agents..agents + later {
        world.start_agent(agent)?;
        world.run_until(world.now() + INTERVAL)?;
        let mut times = Times::default();
        times.add(log.borrow().programmed.get(&world.address(agent)), agent);
        each.push(times);
    }
    Ok(Spread { agents: agents + later, storm, mean, most, later: each })
}
