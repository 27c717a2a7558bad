//! A whole cluster in one thread. Events come from a queue. The state machines and the bytes of the
//! messages are real. Everything else is simulated, with faults.

mod agents;
mod attacks;
mod election;
mod faults;
mod followers;
mod healing;
mod import;
mod kernels;
mod masters;
mod sessions;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use overlay_engine::agent::{Event as AgentEvent, FoundNetworks, Scope};
use overlay_engine::master::Event as MasterEvent;
use overlay_types::addr::{OverlayName, Upid};
use overlay_types::container_network::ContainerNetwork;

use crate::chance::Chance;
use crate::clock::Clock;
use crate::counts::Counts;
use crate::host::JobOutcome;
use crate::invariants::{BOUNDED, Invariant, InvariantResult, Monitor, NO_PANIC, Violation};
use crate::kernel::{self, Kernel};
use crate::plan::Plan;
use crate::queue::Queue;
use crate::scenario::{Faults, Scenario};
use crate::storage::{Job, Storage};
use crate::wires::Wires;
use agents::AgentNode;
pub(crate) use agents::REMOVED;
use election::{Election, ElectionEvent};
use faults::FaultKind;
use followers::{DecodedUpdate, Follower};
use masters::MasterNode;
pub(crate) use masters::{MasterTime, REFUSED};
use sessions::Rotation;

/// Lines of the trace that are kept.
const TRACE_LINES: usize = 2000;

/// The most events of one moment. More events mean a state machine in a loop.
const AT_A_MOMENT_MAX: usize = 100_000;

/// A message on the network.
#[derive(Debug)]
struct Packet {
    from: Upid,
    to: Upid,
    name: String,
    body: Bytes,
    /// The number of the message. A message that is delivered again keeps it.
    id: u64,
    /// Whether an attacker made the message.
    is_forged: bool,
}

impl Packet {
    fn new(from: Upid, to: Upid, name: &str, body: Bytes) -> Self {
        Self { from, to, name: name.to_owned(), body, id: 0, is_forged: false }
    }
}

/// A planned event.
enum SimEvent {
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
    StoreJobDone(Box<Job>, Duration),
    MasterReceives {
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
    AttemptDone {
        agent: usize,
        run: u64,
        attempt: u64,
        made: Box<ContainerNetwork>,
        outcome: JobOutcome,
    },
    RetainCni {
        agent: usize,
        run: u64,
        desired: BTreeSet<OverlayName>,
    },
    RemoveCni {
        agent: usize,
        run: u64,
        named: FoundNetworks,
    },
    RemoveDocker {
        agent: usize,
        run: u64,
        named: FoundNetworks,
        outcome: JobOutcome,
    },
    RetainDocker {
        agent: usize,
        run: u64,
        desired: BTreeSet<OverlayName>,
        outcome: JobOutcome,
    },
    KernelJobDone {
        agent: usize,
        run: u64,
        attempt: u64,
        job: Box<kernel::Job>,
        outcome: kernel::JobOutcome,
    },
    Drifted {
        agent: usize,
        run: u64,
        scope: Scope,
    },
    ObstacleRemoved {
        agent: usize,
    },
    FollowerTimer {
        agent: usize,
        due: Duration,
    },
    FollowerProgrammed {
        agent: usize,
    },
    Election(ElectionEvent),
    FaultKind(FaultKind),
    ForeignWrite,
    PartitionHealed(u64),
    DiskFreed,
}

/// A cluster and its surroundings.
pub(crate) struct World {
    scenario: Scenario,
    chance: Chance,
    now: Duration,
    queue: Queue<SimEvent>,
    wires: Wires,
    storage: Storage,
    election: Election,
    masters: Vec<MasterNode>,
    agents: Vec<AgentNode>,
    /// The configuration that a master reads at its start.
    plan: Plan,
    /// The secrets of agents and masters.
    rotation: Rotation,
    /// The number of messages.
    packets: u64,
    /// When the last message between two nodes arrives, if they are in order.
    last_arrivals: HashMap<(Ipv4Addr, Ipv4Addr), Duration>,
    read_by_attacker: VecDeque<Rc<Packet>>,
    /// The last updates of peers with their bodies. Thousands of agents receive the same body.
    decoded: VecDeque<(Bytes, DecodedUpdate)>,
    /// The processor time that masters used.
    pub(crate) master_time: MasterTime,
    monitor: Monitor,
    has_faults: bool,
    trace: Option<VecDeque<String>>,
    /// The number of events of this moment.
    at_this_moment: usize,
    /// The number of events.
    pub(crate) events: u64,
    /// The events by their kind.
    pub(crate) counts: Counts,
}

/// Returns the address of a master.
fn master_address(master: usize) -> SocketAddrV4 {
    let number = u8::try_from(master + 1).expect("there are few masters");
    SocketAddrV4::new(Ipv4Addr::new(10, 255, 0, number), 5050)
}

/// The IP of the first agent.
const FIRST_AGENT: u32 = Ipv4Addr::new(10, 0, 0, 1).to_bits();

impl World {
    /// Returns the world of a scenario, with only the invariant of this name, or with all
    /// invariants.
    pub(crate) fn new(scenario: Scenario, mut chance: Chance, only: Option<&str>) -> Self {
        let agents = (0..scenario.agents).map(|agent| {
            let ip = Ipv4Addr::from(FIRST_AGENT + u32::try_from(agent).unwrap_or(0));
            AgentNode::new(ip, &scenario, &mut chance)
        });
        let mut agents: Vec<AgentNode> = agents.collect();
        if scenario.has_plain_kernels {
            agents.iter_mut().for_each(|agent| agent.kernel = Kernel::plain());
        }
        if scenario.has_followers {
            for agent in agents.iter_mut().filter(|agent| !agent.programs) {
                agent.follower = Some(Follower::new(&mut chance));
            }
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
            rotation: Rotation::default(),
            packets: 0,
            last_arrivals: HashMap::new(),
            read_by_attacker: VecDeque::new(),
            decoded: VecDeque::new(),
            master_time: MasterTime::default(),
            monitor: Monitor::new(&scenario, only),
            has_faults: !scenario.fault.is_zero(),
            trace: None,
            at_this_moment: 0,
            events: 0,
            counts: Counts::default(),
            chance,
            scenario,
        };
        world.begin();
        world
    }

    /// Adds an observer.
    pub(crate) fn add_observer(&mut self, observer: Box<dyn Invariant>) {
        self.monitor.add(observer);
    }

    /// Returns the number of the agent with this IP.
    pub(crate) fn number(agent: Ipv4Addr) -> usize {
        usize::try_from(agent.to_bits().wrapping_sub(FIRST_AGENT)).unwrap_or(usize::MAX)
    }

    /// Keeps the last lines of the trace from now on.
    pub(crate) fn start_trace(&mut self) {
        self.trace = Some(VecDeque::new());
    }

    /// Returns the last lines of the trace.
    pub(crate) fn trace(&self) -> impl Iterator<Item = &String> {
        self.trace.iter().flatten()
    }

    /// Runs the phase of faults and the phase of healing, and examines the cluster.
    pub(crate) fn run(&mut self) -> InvariantResult {
        self.run_until(self.scenario.fault)?;
        self.end_faults()?;
        self.run_until(self.now + self.healing_time())?;
        self.make_late_changes()?;
        self.examine()?;
        self.examine_silence()
    }

    pub(crate) const fn now(&self) -> Duration {
        self.now
    }

    fn begin(&mut self) {
        self.import();
        for master in 0..self.masters.len() {
            let when = self.chance.time_up_to(self.scenario.arrival / 2);
            self.queue.plan(when, SimEvent::MasterStarts(master));
        }
        for agent in 0..self.initial_agents() {
            let when = self.chance.time_up_to(self.scenario.arrival);
            self.queue.plan(when, SimEvent::AgentStarts(agent));
        }
        self.plan_faults();
    }

    /// Returns the number of agents without the latecomers.
    fn initial_agents(&self) -> usize {
        self.agents.len() - self.scenario.latecomers
    }

    /// Runs until `end`.
    pub(crate) fn run_until(&mut self, end: Duration) -> InvariantResult {
        while let Some((when, event)) = self.queue.next_before(end) {
            self.at_this_moment = if when == self.now { self.at_this_moment + 1 } else { 0 };
            if self.at_this_moment > AT_A_MOMENT_MAX {
                let detail = format!("{AT_A_MOMENT_MAX} events at one moment");
                return Err(Violation { invariant: BOUNDED, detail });
            }
            self.now = when;
            self.events += 1;
            self.dispatch(event)?;
        }
        self.now = end;
        Ok(())
    }

    fn dispatch(&mut self, event: SimEvent) -> InvariantResult {
        match event {
            SimEvent::Arrives(packet) => return self.arrives(&packet),
            SimEvent::MasterStarts(master) => return self.start_master(master),
            SimEvent::MasterWakes { master, run } => return self.wake_master(master, run),
            SimEvent::MasterTimer { master, run, due } => {
                return self.master_timer(master, run, due);
            }
            SimEvent::Elected { master, run, leads } => {
                return self.deliver_to_master(master, run, MasterEvent::Leading(leads));
            }
            SimEvent::StoreJobDone(job, after) => return self.store_job_done(&job, after),
            SimEvent::MasterReceives { master, run, event } => {
                return self.deliver_to_master(master, run, *event);
            }
            SimEvent::AgentStarts(agent) => return self.start_agent(agent),
            SimEvent::AgentTimer { agent, run, due } => return self.agent_timer(agent, run, due),
            SimEvent::Detected { agent, run } => return self.agent_detects(agent, run),
            SimEvent::Exited { agent, run, link } => return self.agent_loses(agent, run, link),
            SimEvent::AttemptDone { agent, run, attempt, made, outcome } => {
                return self.attempt_done((agent, run), attempt, &made, outcome);
            }
            SimEvent::RemoveCni { agent, run, named } => {
                return self.remove_cni(agent, run, &named);
            }
            SimEvent::RemoveDocker { agent, run, named, outcome } => {
                return self.remove_docker((agent, run), &named, outcome);
            }
            SimEvent::RetainDocker { agent, run, desired, outcome } => {
                return self.retain_docker((agent, run), &desired, outcome);
            }
            SimEvent::KernelJobDone { agent, run, attempt, job, outcome } => {
                return self.kernel_job_done((agent, run), attempt, &job, outcome);
            }
            SimEvent::Drifted { agent, run, scope } => {
                return self.deliver_to_agent(agent, run, AgentEvent::Drifted(scope));
            }
            SimEvent::FollowerTimer { agent, due } => return self.follower_timer(agent, due),
            SimEvent::FollowerProgrammed { agent } => return self.follower_programmed(agent),
            SimEvent::ObstacleRemoved { agent } => self.agents[agent].kernel.obstacles.clear(),
            SimEvent::FaultKind(fault) => return self.inject_fault(fault),
            SimEvent::ForeignWrite => return self.write_as_foreigner(),
            SimEvent::RetainCni { agent, run, desired } => self.retain_cni(agent, run, &desired),
            SimEvent::Election(event) => self.handle_election(event),
            SimEvent::PartitionHealed(id) => self.wires.heal(id),
            SimEvent::DiskFreed => self.storage.is_full = false,
        }
        Ok(())
    }

    /// Returns the rates of faults, while faults are injected.
    fn faults(&self) -> Option<&Faults> {
        self.has_faults.then_some(&self.scenario.faults)
    }

    fn plan_in(&mut self, wait: Duration, event: SimEvent) {
        self.queue.plan(self.now + wait, event);
    }

    /// Sends a message.
    fn send(&mut self, mut packet: Packet) {
        self.packets += 1;
        packet.id = self.packets;
        let (from, to) = (*packet.from.address.ip(), *packet.to.address.ip());
        self.counts.add("messages", 1);
        let faults = self.has_faults.then_some(&self.scenario.faults);
        let tools = (&mut self.chance, &mut self.counts);
        let waits = self.wires.carry(from, to, faults, tools);
        let sending = self.wires.transmit(self.now, from, packet.body.len());
        let packet = Rc::new(packet);
        self.note_read(&packet);
        for wait in waits.into_iter().flatten() {
            let arrival = self.in_order(from, to, self.now + sending + wait);
            self.queue.plan(arrival, SimEvent::Arrives(Rc::clone(&packet)));
        }
    }

    /// Returns when a message arrives that would arrive at `arrival`. Without faults, a connection
    /// keeps the order of its messages. Sessions need that.
    fn in_order(&mut self, from: Ipv4Addr, to: Ipv4Addr, arrival: Duration) -> Duration {
        if self.has_faults || self.scenario.authentication.is_none() {
            return arrival;
        }
        let last = self.last_arrivals.entry((from, to)).or_default();
        *last = arrival.max(*last);
        *last
    }

    fn arrives(&mut self, packet: &Packet) -> InvariantResult {
        let to = packet.to.address;
        if let Some(master) = self.masters.iter().position(|node| node.address == to) {
            return self.arrives_at_master(master, packet);
        }
        let index = to.ip().to_bits().checked_sub(FIRST_AGENT);
        let index = index.and_then(|index| usize::try_from(index).ok());
        match index.filter(|&index| index < self.agents.len()) {
            Some(agent) => self.arrives_at_agent(agent, packet),
            None => Ok(()),
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{:>12.6} {}", self.now.as_secs_f64(), line()));
        }
    }
}

/// Returns a random clock for a process that starts now.
fn clock(now: Duration, has_jumps: bool, chance: &mut Chance) -> Clock {
    let rate = 1.0 + (chance.time_up_to(Duration::from_millis(1)).as_secs_f64() - 0.0005);
    let ahead = if has_jumps { jump(chance) } else { 0 };
    Clock::new(now, rate, ahead)
}

/// Returns how far a wall clock is ahead after a jump: mostly seconds, sometimes decades.
fn jump(chance: &mut Chance) -> i64 {
    let reach: u64 = [5, 120, 3600, 1_000_000_000][chance.index(4)];
    let seconds = i64::try_from(chance.number(0..reach)).unwrap_or(0);
    if chance.is(0.5) { seconds } else { -seconds }
}

/// Returns the violation for a panic of a state machine or of the simulation.
pub(crate) fn panicked(reason: &str) -> Violation {
    Violation { invariant: NO_PANIC, detail: reason.to_owned() }
}
