//! How fast the news of an agent spreads where nothing goes wrong, and what a storm costs. The time
//! is that of the simulation, in which a network, a store and kernels take as long as they usually
//! do; so the figures are the same on every machine, and may be required.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use mesos_network_overlay::dataplane::Operation;

use crate::chance::Chance;
use crate::invariants::{Broken, Fact, Invariant};
use crate::ledger::Ledger;
use crate::scenario::Scenario;
use crate::world::World;

/// How long the storm of the first registrations is watched.
const STORM: Duration = Duration::from_secs(12);
/// How far apart the registrations after it are.
const PAUSE: Duration = Duration::from_secs(4);
/// Which shares of the agents are told of.
const SHARES: [usize; 4] = [50, 95, 99, 100];

/// Who has programmed whom, and when.
#[derive(Default)]
struct Log {
    /// When each agent has registered first.
    registered: HashMap<Ipv4Addr, Duration>,
    /// How long after that each of the others had it in its kernel first.
    programmed: HashMap<Ipv4Addr, HashMap<Ipv4Addr, Duration>>,
    /// Messages about peers to each agent.
    told: HashMap<Ipv4Addr, u32>,
}

struct Probe(Rc<RefCell<Log>>);

impl Invariant for Probe {
    fn name(&self) -> &'static str {
        "how fast the news spreads"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        let mut log = self.0.borrow_mut();
        match fact {
            Fact::Sent { agent, is_by_agent: true } => {
                log.registered.entry(*agent).or_insert(now);
            }
            Fact::PeersTold { to, .. } => *log.told.entry(*to).or_default() += 1,
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

/// After which times shares of all who had to know knew.
#[derive(Debug, Default)]
pub(crate) struct Times {
    times: Vec<Duration>,
    missing: usize,
}

impl Times {
    /// When `others` agents have programmed this one.
    fn add(&mut self, programmed: Option<&HashMap<Ipv4Addr, Duration>>, others: usize) {
        let times = programmed.map_or(0, HashMap::len);
        self.missing += others.saturating_sub(times);
        self.times.extend(programmed.into_iter().flat_map(HashMap::values));
    }

    /// When this share, in hundredths, knew; `None`: so many never did.
    pub(crate) fn of(&self, share: usize) -> Option<Duration> {
        let mut times = self.times.clone();
        times.sort_unstable();
        let count = (times.len() + self.missing) * share;
        times.get(count.div_ceil(100).checked_sub(1)?).copied()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SHARES.into_iter().try_for_each(|share| match self.of(share) {
            Some(time) => write!(f, "  {share} %: {:.2} s", time.as_secs_f64()),
            None => write!(f, "  {share} %: never"),
        })
    }
}

/// What was found out.
pub(crate) struct Spread {
    agents: usize,
    /// Of those that come at once.
    pub(crate) storm: Times,
    /// Messages about peers that each of them got, in the mean and at most.
    mean: f64,
    pub(crate) most: u32,
    /// Of those that come later, one after the other: of each by itself.
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

/// A cluster of so many agents which all come within a second, and of so many more that come one
/// after the other.
///
/// # Errors
/// When a rule is broken.
pub(crate) fn measure(seed: u64, agents: usize, later: usize) -> Result<Spread, Broken> {
    let mut chance = Chance::of(seed);
    let scenario = Scenario::calm(agents, later, &mut chance);
    let mut world = World::new(scenario, chance, None);
    let log = Rc::new(RefCell::new(Log::default()));
    world.watch(Box::new(Probe(Rc::clone(&log))));
    world.run_until(STORM)?;
    let mut storm = Times::default();
    let told: Vec<u32> = log.borrow().told.values().copied().collect();
    let mean = f64::from(told.iter().sum::<u32>()) / agents as f64;
    let most = told.into_iter().max().unwrap_or(0);
    for agent in 0..agents {
        storm.add(log.borrow().programmed.get(&world.address(agent)), agents - 1);
    }
    let mut each = Vec::new();
    for agent in agents..agents + later {
        world.start_agent(agent)?;
        world.run_until(world.now() + PAUSE)?;
        let mut times = Times::default();
        times.add(log.borrow().programmed.get(&world.address(agent)), agent);
        each.push(times);
    }
    Ok(Spread { agents: agents + later, storm, mean, most, later: each })
}
