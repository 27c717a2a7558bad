//! A whole cluster in one thread. What happens next is taken from a queue; the machines are the
//! real ones, the messages are real bytes, and everything else is simulated and goes wrong.

mod agents;
mod election;
mod faults;
mod healing;
mod kernels;
mod masters;

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use mesos_network_overlay::addr::{OverlayName, Upid};
use mesos_network_overlay::agent::{ContainerNetwork, Event as AgentEvent, Scope};
use mesos_network_overlay::master::Event as MasterEvent;

use crate::chance::Chance;
use crate::clock::Clock;
use crate::counts::Counts;
use crate::host::Fate;
use crate::invariants::{BOUNDED, Broken, Invariant, Monitor, NO_PANIC, Verdict};
use crate::kernel::{self, Kernel};
use crate::plan::Plan;
use crate::queue::Queue;
use crate::scenario::{Faults, Scenario};
use crate::storage::{Job, Storage};
use crate::wires::Wires;
use agents::AgentNode;
use election::{Election, Turn};
use faults::Trouble;
use masters::MasterNode;

/// Lines of a story that are kept.
const STORY_LINES: usize = 2000;

/// Things that happen at one moment. More are a machine that goes round and round.
const AT_A_MOMENT_MAX: usize = 100_000;

/// A message under way.
#[derive(Debug)]
struct Packet {
    from: Upid,
    to: Upid,
    name: String,
    body: Vec<u8>,
}

/// Something that will happen.
enum Happening {
    Arrives(Rc<Packet>),
    MasterStarts(usize),
    MasterWakes {
        master: usize,
        run: u64,
    },
    MasterTimer {
        master: usize,
        run: u64,
        due: Duration,
    },
    Elected {
        master: usize,
        run: u64,
        leads: bool,
    },
    StoreActs(Box<Job>, Duration),
    MasterHears {
        master: usize,
        run: u64,
        event: Box<MasterEvent>,
    },
    AgentStarts(usize),
    AgentTimer {
        agent: usize,
        run: u64,
        due: Duration,
    },
    Detected {
        agent: usize,
        run: u64,
    },
    Exited {
        agent: usize,
        run: u64,
        link: u64,
    },
    AttemptEnds {
        agent: usize,
        run: u64,
        attempt: u64,
        made: Box<ContainerNetwork>,
        fate: Fate,
    },
    RetainCni {
        agent: usize,
        run: u64,
        wanted: BTreeSet<OverlayName>,
    },
    RetainDocker {
        agent: usize,
        run: u64,
        wanted: BTreeSet<OverlayName>,
        fate: Fate,
    },
    KernelJobEnds {
        agent: usize,
        run: u64,
        attempt: u64,
        job: Box<kernel::Job>,
        fate: kernel::Fate,
    },
    Drifted {
        agent: usize,
        run: u64,
        scope: Scope,
    },
    ObstacleRemoved {
        agent: usize,
    },
    Election(Turn),
    Trouble(Trouble),
    Intrusion,
    CutMended(u64),
    DiskFreed,
}

/// A cluster and its surroundings.
pub(crate) struct World {
    scenario: Scenario,
    chance: Chance,
    now: Duration,
    queue: Queue<Happening>,
    wires: Wires,
    storage: Storage,
    election: Election,
    masters: Vec<MasterNode>,
    agents: Vec<AgentNode>,
    /// The configuration that a master reads when it is started.
    plan: Plan,
    monitor: Monitor,
    is_troubled: bool,
    story: Option<VecDeque<String>>,
    /// How many things have happened at this very moment.
    at_this_moment: usize,
    /// How many things have happened.
    pub(crate) events: u64,
    /// And which.
    pub(crate) counts: Counts,
}

/// Where masters live.
fn master_address(master: usize) -> SocketAddrV4 {
    let number = u8::try_from(master + 1).expect("there are few masters");
    SocketAddrV4::new(Ipv4Addr::new(10, 255, 0, number), 5050)
}

/// The first address of agents.
const FIRST_AGENT: u32 = Ipv4Addr::new(10, 0, 0, 1).to_bits();

impl World {
    /// The world of a scenario, in which only the rule with this name counts, or all.
    pub(crate) fn new(scenario: Scenario, mut chance: Chance, only: Option<&str>) -> Self {
        let agents = (0..scenario.agents).map(|agent| {
            let ip = Ipv4Addr::from(FIRST_AGENT + u32::try_from(agent).unwrap_or(0));
            AgentNode::new(ip, scenario.programming, &mut chance)
        });
        let mut agents: Vec<AgentNode> = agents.collect();
        if scenario.has_plain_kernels {
            agents.iter_mut().for_each(|agent| agent.kernel = Kernel::plain());
        }
        let mut world = Self {
            now: Duration::ZERO,
            queue: Queue::new(),
            wires: Wires::default(),
            storage: Storage::default(),
            election: Election::new(scenario.masters),
            agents,
            masters: (0..scenario.masters).map(MasterNode::new).collect(),
            plan: scenario.plan.clone(),
            monitor: Monitor::new(&scenario, only),
            is_troubled: !scenario.trouble.is_zero(),
            story: None,
            at_this_moment: 0,
            events: 0,
            counts: Counts::default(),
            chance,
            scenario,
        };
        world.begin();
        world
    }

    /// Has somebody else hear what happens, too.
    pub(crate) fn watch(&mut self, by: Box<dyn Invariant>) {
        self.monitor.add(by);
    }

    /// The address of an agent.
    pub(crate) fn address(&self, agent: usize) -> Ipv4Addr {
        self.agents[agent].ip
    }

    /// Keeps the last lines of the story from now on.
    pub(crate) fn tell_story(&mut self) {
        self.story = Some(VecDeque::new());
    }

    /// The last lines of the story.
    pub(crate) fn story(&self) -> impl Iterator<Item = &String> {
        self.story.iter().flatten()
    }

    /// Lives through all trouble, and until the cluster should have healed.
    pub(crate) fn run(&mut self) -> Verdict {
        self.run_until(self.scenario.trouble)?;
        self.end_trouble()?;
        self.run_until(self.now + self.patience())?;
        self.make_news()?;
        self.examine()
    }

    pub(crate) const fn now(&self) -> Duration {
        self.now
    }

    fn begin(&mut self) {
        for master in 0..self.masters.len() {
            let when = self.chance.time_up_to(self.scenario.arrival / 2);
            self.queue.plan(when, Happening::MasterStarts(master));
        }
        for agent in 0..self.settled() {
            let when = self.chance.time_up_to(self.scenario.arrival);
            self.queue.plan(when, Happening::AgentStarts(agent));
        }
        self.plan_trouble();
    }

    /// How many agents there are before those that come last.
    fn settled(&self) -> usize {
        self.agents.len() - self.scenario.latecomers
    }

    /// Lives until then.
    pub(crate) fn run_until(&mut self, end: Duration) -> Verdict {
        while let Some((when, happening)) = self.queue.next_before(end) {
            self.at_this_moment = if when == self.now { self.at_this_moment + 1 } else { 0 };
            if self.at_this_moment > AT_A_MOMENT_MAX {
                let how = format!("{AT_A_MOMENT_MAX} things happen at one moment");
                return Err(Broken { rule: BOUNDED, how });
            }
            self.now = when;
            self.events += 1;
            self.happen(happening)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Verdict {
        match happening {
            Happening::Arrives(packet) => return self.arrives(&packet),
            Happening::MasterStarts(master) => return self.start_master(master),
            Happening::MasterWakes { master, run } => return self.wake_master(master, run),
            Happening::MasterTimer { master, run, due } => {
                return self.master_timer(master, run, due);
            }
            Happening::Elected { master, run, leads } => {
                return self.tell_master(master, run, MasterEvent::Leading(leads));
            }
            Happening::StoreActs(job, after) => return self.store_acts(&job, after),
            Happening::MasterHears { master, run, event } => {
                return self.tell_master(master, run, *event);
            }
            Happening::AgentStarts(agent) => return self.start_agent(agent),
            Happening::AgentTimer { agent, run, due } => return self.agent_timer(agent, run, due),
            Happening::Detected { agent, run } => return self.agent_detects(agent, run),
            Happening::Exited { agent, run, link } => return self.agent_loses(agent, run, link),
            Happening::AttemptEnds { agent, run, attempt, made, fate } => {
                return self.attempt_ends((agent, run), attempt, &made, fate);
            }
            Happening::RetainDocker { agent, run, wanted, fate } => {
                return self.retain_docker((agent, run), &wanted, fate);
            }
            Happening::KernelJobEnds { agent, run, attempt, job, fate } => {
                return self.kernel_job_ends((agent, run), attempt, &job, fate);
            }
            Happening::Drifted { agent, run, scope } => {
                return self.tell_agent(agent, run, AgentEvent::Drifted(scope));
            }
            Happening::ObstacleRemoved { agent } => self.agents[agent].kernel.obstacles.clear(),
            Happening::Trouble(trouble) => return self.make_trouble(trouble),
            Happening::Intrusion => return self.intrude(),
            Happening::RetainCni { agent, run, wanted } => self.retain_cni(agent, run, &wanted),
            Happening::Election(turn) => self.turn_election(turn),
            Happening::CutMended(id) => self.wires.mend(id),
            Happening::DiskFreed => self.storage.is_full = false,
        }
        Ok(())
    }

    /// The faults, while there are any.
    fn faults(&self) -> Option<&Faults> {
        self.is_troubled.then_some(&self.scenario.faults)
    }

    fn plan_in(&mut self, wait: Duration, happening: Happening) {
        self.queue.plan(self.now + wait, happening);
    }

    /// Puts a message on the wires.
    fn send(&mut self, packet: Packet) {
        let (from, to) = (*packet.from.address.ip(), *packet.to.address.ip());
        self.counts.add("messages", 1);
        let faults = self.is_troubled.then_some(&self.scenario.faults);
        let tools = (&mut self.chance, &mut self.counts);
        let waits = self.wires.carry(from, to, faults, tools);
        let packet = Rc::new(packet);
        for wait in waits.into_iter().flatten() {
            self.plan_in(wait, Happening::Arrives(Rc::clone(&packet)));
        }
    }

    fn arrives(&mut self, packet: &Packet) -> Verdict {
        let to = packet.to.address;
        if let Some(master) = self.masters.iter().position(|node| node.address == to) {
            return self.arrives_at_master(master, packet);
        }
        let place = to.ip().to_bits().checked_sub(FIRST_AGENT);
        let place = place.and_then(|place| usize::try_from(place).ok());
        match place.filter(|&place| place < self.agents.len()) {
            Some(agent) => self.arrives_at_agent(agent, packet),
            None => Ok(()),
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            if story.len() == STORY_LINES {
                story.pop_front();
            }
            story.push_back(format!("{:>12.6} {}", self.now.as_secs_f64(), line()));
        }
    }
}

/// A clock of chance for a process that begins now.
fn clock(now: Duration, has_jumps: bool, chance: &mut Chance) -> Clock {
    let rate = 1.0 + (chance.time_up_to(Duration::from_millis(1)).as_secs_f64() - 0.0005);
    let ahead = if has_jumps { jump(chance) } else { 0 };
    Clock::new(now, rate, ahead)
}

/// How far a wall clock is ahead after a jump: seconds mostly, and now and then decades.
fn jump(chance: &mut Chance) -> i64 {
    let reach: u64 = [5, 120, 3600, 1_000_000_000][chance.index(4)];
    let seconds = i64::try_from(chance.number(0..reach)).unwrap_or(0);
    if chance.is(0.5) { seconds } else { -seconds }
}

/// A machine has panicked, or else the simulation.
pub(crate) fn panicked(reason: &str) -> Broken {
    Broken { rule: NO_PANIC, how: reason.to_owned() }
}
