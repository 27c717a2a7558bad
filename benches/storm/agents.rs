//! Simulates thousands of agents in one process. Each agent has its own local address and a link
//! to the master, and behaves like a real agent: it registers, reports the assigned overlays as OK,
//! and registers again if the master does not answer.
//!
//! One listener serves all agents, since a listener per agent would exceed the descriptor limit.
//! The destination address of a connection identifies the agent. All agents run on the thread of
//! the caller's runtime, which leaves the other processors to the master.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use overlay_engine::authentication::{AgentSession, ContentDigest};
use overlay_types::addr::{Upid, agent_upid, master_upid};
use overlay_types::protocol::{
    AgentCredential, AgentOptions, Assignment, AuthenticationMode, Message, Status,
};
use overlay_wire as wire;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::assignment_checker::{AssignmentChecker, Event};
use super::libprocess::{RECEIPT, Received, request, take_message, take_receipts};

/// The address of the first agent of a cluster on loopback. The other agents have the following
/// addresses.
pub(crate) const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);

/// The maximum of the kernel, since the master connects to all agents at once.
const BACKLOG: u32 = 65_535;

/// Time that an agent waits for the acknowledgement before it registers again, and the limit of the
/// random time that is added.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
const JITTER_MILLISECONDS: u64 = 1000;

/// Time before an agent connects again to an unreachable master.
const RECONNECT_MILLISECONDS: std::ops::Range<u64> = 30..200;

/// Number of descriptors besides the two connections of each agent.
const SPARE_DESCRIPTORS: usize = 200;

/// The address of the leading master. Agents wait while there is no leader.
pub(crate) type Leader = watch::Receiver<Option<SocketAddrV4>>;

/// The simulated agents.
pub(crate) struct Agents {
    leader: Leader,
    /// The address of the first agent.
    first: Ipv4Addr,
    pub(crate) agents: Vec<Agent>,
    /// The assignments that the agents received.
    pub(crate) checker: Mutex<AssignmentChecker>,
    /// Number of running agents.
    alive: AtomicUsize,
    /// Number of agents that are linked to the master and acknowledged by the master.
    acknowledged: AtomicUsize,
    /// Number of received assignments.
    pub(crate) updates: AtomicUsize,
    /// Number of sent registrations.
    pub(crate) registrations: AtomicUsize,
    /// Number of registrations that timed out.
    repeated: AtomicUsize,
    pub(crate) traffic: TrafficCounters,
    /// Number of received peer updates with all agents.
    pub(crate) tables: AtomicUsize,
    changed: Notify,
}

/// The traffic between the agents and their master.
#[derive(Default)]
pub(crate) struct TrafficCounters {
    /// Connections in both directions.
    pub(crate) connections: AtomicUsize,
    /// Bytes sent by the agents.
    pub(crate) sent: AtomicUsize,
    /// Bytes received by the agents.
    pub(crate) received: AtomicUsize,
}

pub(crate) struct Agent {
    pub(crate) upid: Upid,
    /// Seals and checks messages, if the agents have a credential.
    session: Mutex<AgentSession>,
    /// Counts starts and stops of the agent. The agent is running while the number is even.
    life: watch::Sender<u64>,
    pub(crate) state: Mutex<AgentState>,
}

#[derive(Default)]
pub(crate) struct AgentState {
    /// The life that accepts connections: messages to earlier lives are lost, as if each life had
    /// its own listener.
    listening_life: u64,
    pub(crate) link: Option<Arc<TcpStream>>,
    is_acknowledged: bool,
    /// Number of registrations since the last call of `take_max_registrations`.
    registrations_sent: usize,
}

const fn is_alive(life: u64) -> bool {
    life.is_multiple_of(2)
}

impl Agent {
    /// Encodes a message to the master, with its seal.
    fn seal(&self, to: &Upid, message: &Message) -> Vec<u8> {
        let seal = |content: &[u8]| {
            self.session.lock().seal(message.kind(), || ContentDigest::of(content))
        };
        request(&self.upid, to, message, seal)
    }

    /// Checks the seal of a message of the master.
    fn check(&self, from: &Upid, message: &Message, body: &[u8]) -> Result<(), String> {
        let mut session = self.session.lock();
        if !session.is_on() {
            return Ok(());
        }
        let (content, seal) = wire::split_seal(body).map_err(|fault| fault.to_string())?;
        let checked = session.authenticate(from, message.kind(), content, seal.as_ref());
        checked.map_err(|fault| format!("{message}: {fault}"))
    }
}

fn open_session(credential: Option<AgentCredential>) -> AgentSession {
    let mut seed = [0; 32];
    fastrand::fill(&mut seed);
    AgentSession::new(credential, AuthenticationMode::Required, false, &seed)
}

impl Agents {
    /// Starts `count` agents on the current runtime. They register with the leading master. With a
    /// credential, they accept only a master that authenticates.
    pub(crate) fn start(
        leader: Leader,
        count: usize,
        credential: Option<AgentCredential>,
    ) -> io::Result<Arc<Self>> {
        Self::start_on((listen()?, FIRST_ADDRESS), leader, count, credential)
    }

    /// Starts `count` agents with the addresses from `first` on, which must be local. They accept
    /// the connections of the master on `listener`.
    pub(crate) fn start_on(
        (listener, first): (TcpListener, Ipv4Addr),
        leader: Leader,
        count: usize,
        credential: Option<AgentCredential>,
    ) -> io::Result<Arc<Self>> {
        allow_descriptors(count)?;
        let port = listener.local_addr()?.port();
        let agent = |upid| Agent {
            upid,
            session: Mutex::new(open_session(credential.clone())),
            life: watch::Sender::new(0),
            state: Mutex::default(),
        };
        let agents = Arc::new(Self {
            leader,
            first,
            agents: (0..count).map_while(|index| agent_at(first, index, port)).map(agent).collect(),
            checker: Mutex::default(),
            alive: AtomicUsize::new(count),
            acknowledged: AtomicUsize::new(0),
            updates: AtomicUsize::new(0),
            registrations: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
            traffic: TrafficCounters::default(),
            tables: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        tokio::spawn(Arc::clone(&agents).accept(listener));
        for index in 0..count {
            tokio::spawn(Arc::clone(&agents).run_agent(index));
        }
        Ok(agents)
    }

    /// Waits until the master has acknowledged all running agents.
    pub(crate) async fn all_acknowledged(&self, limit: Duration) -> Result<(), String> {
        let count =
            || (self.acknowledged.load(Ordering::Relaxed), self.alive.load(Ordering::Relaxed));
        let condition = || {
            let (done, all) = count();
            done == all
        };
        self.wait_until(limit, condition).await.map_err(|()| {
            let (done, all) = count();
            format!("after {limit:?} only {done} of {all} agents are acknowledged")
        })
    }

    /// Returns the number of registrations that timed out and were repeated.
    pub(crate) fn repeated(&self) -> usize {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Waits until `condition` is true. Checks it after each received message and each ended link.
    pub(crate) async fn wait_until(
        &self,
        limit: Duration,
        condition: impl Fn() -> bool,
    ) -> Result<(), ()> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if condition() {
                    return;
                }
                changed.await;
            }
        };
        timeout(limit, wait).await.map_err(drop)
    }

    /// Returns the indexes of the running agents and those of the stopped agents.
    pub(crate) fn running_and_stopped(&self) -> (Vec<usize>, Vec<usize>) {
        (0..self.agents.len()).partition(|&index| is_alive(*self.agents[index].life.borrow()))
    }

    /// Stops an agent as `kill -9` does: its connections end and its state is lost.
    pub(crate) fn kill(&self, index: usize) {
        self.agents[index].life.send_if_modified(|life| {
            let was_alive = is_alive(*life);
            *life += u64::from(was_alive);
            self.alive.fetch_sub(usize::from(was_alive), Ordering::Relaxed);
            was_alive
        });
        self.checker.lock().record(self.ip(index), Event::Killed);
    }

    /// Starts a stopped agent again.
    pub(crate) fn restart(&self, index: usize) {
        self.agents[index].life.send_if_modified(|life| {
            let was_dead = !is_alive(*life);
            *life += u64::from(was_dead);
            self.alive.fetch_add(usize::from(was_dead), Ordering::Relaxed);
            was_dead
        });
        self.checker.lock().record(self.ip(index), Event::Restarted);
    }

    /// Returns the address of an agent.
    pub(crate) fn ip(&self, index: usize) -> Ipv4Addr {
        *self.agents[index].upid.address.ip()
    }

    /// Returns the largest number of registrations of one agent since the last call.
    pub(crate) fn take_max_registrations(&self) -> usize {
        let maxima = self
            .agents
            .iter()
            .map(|agent| std::mem::take(&mut agent.state.lock().registrations_sent));
        maxima.max().unwrap_or(0)
    }

    /// Runs an agent: while it is started, it follows the leading master.
    async fn run_agent(self: Arc<Self>, index: usize) {
        let mut life = self.agents[index].life.subscribe();
        let mut leader = self.leader.clone();
        loop {
            let Ok(current) = life.wait_for(|life| is_alive(*life)).await.map(|life| *life) else {
                return;
            };
            if self.agents[index].state.lock().listening_life != current {
                self.drop_queued_connections(index).await;
                self.agents[index].state.lock().listening_life = current;
            }
            let master = leader.wait_for(Option::is_some).await.ok().and_then(|master| *master);
            let Some(master) = master.map(master_upid) else { return };
            tokio::select! {
                () = self.follow_master(index, &master) => {}
                _ = life.changed() => {}
                () = leader_change(&mut leader) => {}
            }
            self.agents[index].session.lock().link_ended(master.address);
            let mut state = self.agents[index].state.lock();
            state.link = None;
            if std::mem::take(&mut state.is_acknowledged) {
                self.acknowledged.fetch_sub(1, Ordering::Relaxed);
            }
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Waits until `accept` has dropped all connections that masters made to earlier lives of an
    /// agent. The kernel accepts connections in order, so another connection ends after them.
    async fn drop_queued_connections(&self, index: usize) {
        if let Ok(mut last) = TcpStream::connect(self.agents[index].upid.address).await {
            let _ = last.read(&mut [0]).await;
        }
    }

    /// Links to a master, and serves the link until it ends.
    async fn follow_master(&self, index: usize, master: &Upid) {
        let Ok(link) = self.connect(index, master).await else {
            return sleep(Duration::from_millis(fastrand::u64(RECONNECT_MILLISECONDS))).await;
        };
        self.traffic.connections.fetch_add(1, Ordering::Relaxed);
        let link = Arc::new(link);
        self.agents[index].state.lock().link = Some(Arc::clone(&link));
        if let Err(error) = self.serve_link(index, &link, master).await {
            self.report_error(index, &error);
        }
    }

    async fn connect(&self, index: usize, master: &Upid) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        let address = *self.agents[index].upid.address.ip();
        nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::from((address, 0)))?;
        socket.connect(master.address.into()).await
    }

    /// Registers repeatedly until the master acknowledges, and reads the receipts until the link
    /// ends.
    async fn serve_link(
        &self,
        index: usize,
        link: &TcpStream,
        master: &Upid,
    ) -> Result<(), String> {
        let agent = &self.agents[index];
        let mut input = Vec::new();
        loop {
            self.registrations.fetch_add(1, Ordering::Relaxed);
            agent.state.lock().registrations_sent += 1;
            let register = Message::RegisterAgent(AgentOptions::default());
            let messages = agent.session.lock().send(master, register);
            for message in messages {
                if self.write(link, &agent.seal(master, &message)).await.is_err() {
                    return Ok(());
                }
            }
            let jitter = Duration::from_millis(fastrand::u64(..JITTER_MILLISECONDS));
            let retry_at = Instant::now() + RETRY_INTERVAL + jitter;
            while let Ok(read) = timeout_at(retry_at, self.read(link, &mut input)).await {
                match read {
                    Ok(1..) => take_receipts(&mut input)?,
                    Ok(_) | Err(_) => return Ok(()),
                }
            }
            while agent.state.lock().is_acknowledged {
                match self.read(link, &mut input).await {
                    Ok(1..) => take_receipts(&mut input)?,
                    Ok(_) | Err(_) => return Ok(()),
                }
            }
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(Duration::from_millis(RECONNECT_MILLISECONDS.start)).await;
                continue;
            };
            let Some(index) = self.index_of(&stream) else { continue };
            self.traffic.connections.fetch_add(1, Ordering::Relaxed);
            let agent = &self.agents[index];
            let mut life = agent.life.subscribe();
            let current = *life.borrow_and_update();
            if !is_alive(current) || agent.state.lock().listening_life != current {
                continue;
            }
            let agents = Arc::clone(&self);
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    _ = life.changed() => {}
                    () = agents.serve_master(index, &stream) => {}
                }
            });
        }
    }

    /// Receives the messages of a master on one connection.
    async fn serve_master(&self, index: usize, stream: &TcpStream) {
        let mut input = Vec::new();
        while let Ok(1..) = self.read(stream, &mut input).await {
            loop {
                let received = match take_message(&mut input) {
                    Ok(Some(received)) => received,
                    Ok(None) => break,
                    Err(error) => return self.report_error(index, &error),
                };
                let Received { from, message, body, is_receipt_expected } = received;
                if let Err(error) = self.agents[index].check(&from, &message, &body) {
                    return self.report_error(index, &error);
                }
                let replies = self.handle_message(index, &from, message);
                if is_receipt_expected && self.write(stream, RECEIPT).await.is_err() {
                    return;
                }
                let link = self.agents[index].state.lock().link.clone();
                for (reply, link) in replies.iter().zip(std::iter::repeat(link)) {
                    let Some(link) = link else { break };
                    let reply = self.agents[index].seal(&from, reply);
                    // A failure means that the link has ended, which its own task handles.
                    let _ = self.write(&link, &reply).await;
                }
            }
        }
    }

    /// Handles a message. Returns the messages to send.
    fn handle_message(&self, index: usize, from: &Upid, message: Message) -> Vec<Message> {
        let agent = &self.agents[index];
        let ip = *agent.upid.address.ip();
        let is_own_master = *self.leader.borrow() == Some(from.address);
        match message {
            Message::UpdateAgentOverlays { overlays, .. } if is_own_master => {
                let mut checker = self.checker.lock();
                let vtep = overlays.first().map(|assignment| assignment.vtep.ip.address());
                checker.record(ip, Event::Assigned(from.address, vtep));
                checker.check_assignment(ip, &overlays);
                drop(checker);
                self.updates.fetch_add(1, Ordering::Relaxed);
                self.changed.notify_waiters();
                let report_ok = |overlay| Assignment { status: Some(Status::Ok), ..overlay };
                let report = overlays.into_iter().map(report_ok).collect();
                return vec![Message::AgentRegistered(report)];
            }
            Message::AuthenticationChallenge(challenge) => {
                let held = agent.session.lock().receive_challenge(from, &challenge);
                return held.unwrap_or_default();
            }
            // Like the real agent, a simulated agent ignores masters other than the leader.
            Message::UpdateAgentOverlays { overlays, .. } => {
                self.checker.lock().check_foreign_assignment(ip, &overlays);
            }
            Message::UpdatePeers(update) if is_own_master => {
                let is_complete = update.changed.len() == self.agents.len();
                self.tables.fetch_add(usize::from(is_complete), Ordering::Relaxed);
                self.changed.notify_waiters();
            }
            Message::AgentRegisteredAcknowledgement => {
                let mut state = agent.state.lock();
                let is_linked = is_own_master && state.link.is_some();
                if is_linked && !std::mem::replace(&mut state.is_acknowledged, true) {
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    self.changed.notify_waiters();
                }
            }
            other => self.report_error(index, &format!("an agent received {other}")),
        }
        Vec::new()
    }

    /// Waits for data and appends it to `input`. Returns the number of appended bytes: 0 at the end
    /// of the stream.
    async fn read(&self, stream: &TcpStream, input: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            stream.readable().await?;
            input.reserve(2048);
            match stream.try_read_buf(input) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let count = *result.as_ref().unwrap_or(&0);
                    self.traffic.received.fetch_add(count, Ordering::Relaxed);
                    return result;
                }
            }
        }
    }

    /// Writes all of `bytes`. Two tasks may write to one stream. Messages are short, so that the
    /// socket takes each of them at once, and they do not interleave in practice.
    pub(crate) async fn write(&self, stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        self.traffic.sent.fetch_add(bytes.len(), Ordering::Relaxed);
        while !bytes.is_empty() {
            match stream.try_write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn index_of(&self, stream: &TcpStream) -> Option<usize> {
        let SocketAddr::V4(local) = stream.local_addr().ok()? else { return None };
        index_at(self.first, *local.ip()).filter(|&index| index < self.agents.len())
    }

    fn report_error(&self, index: usize, error: &str) {
        self.checker.lock().add_violation(format!("{}: {error}", self.agents[index].upid));
    }
}

/// Returns the index of the agent with this address, `None` below the first address.
pub(crate) fn index_at(first: Ipv4Addr, address: Ipv4Addr) -> Option<usize> {
    usize::try_from(address.to_bits().checked_sub(first.to_bits())?).ok()
}

/// Returns the UPID of the agent with this index: its address and `port`.
pub(crate) fn agent_at(first: Ipv4Addr, index: usize, port: u16) -> Option<Upid> {
    let offset = u32::try_from(index).ok()?;
    let address = Ipv4Addr::from_bits(first.to_bits().checked_add(offset)?);
    Some(agent_upid(SocketAddrV4::new(address, port)))
}

/// Listens for connections of the master to any agent.
pub(crate) fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.listen(BACKLOG)
}

/// Waits for the next leader change, also to the same master.
async fn leader_change(leader: &mut Leader) {
    if leader.changed().await.is_err() {
        // The sender is gone, so the leader cannot change any more.
        std::future::pending().await
    }
}

/// Raises the soft limit of open files for `count` agents. Masters started by this process inherit
/// the limit.
#[expect(clippy::disallowed_methods, reason = "this process is our own")]
pub(crate) fn allow_descriptors(count: usize) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let required = u64::try_from(2 * count + SPARE_DESCRIPTORS).unwrap_or(u64::MAX);
    if limit.maximum.is_some_and(|maximum| maximum < required) {
        let message =
            format!("{count} agents need {required} open files: raise the hard limit (ulimit -Hn)");
        return Err(io::Error::other(message));
    }
    if limit.current.is_some_and(|current| current < required) {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(())
}
