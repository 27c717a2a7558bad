//! Thousands of agents in one process: each with an address of its own in 127/8, a link to the
//! master, and the conduct of a real one. It registers, reports OK for what it is told, and asks
//! again if nothing comes.
//!
//! One listener serves all of them, since a process has fewer descriptors than two for each agent
//! and one more: which agent a connection is for is told by the address that it came to. All of it
//! runs on the thread of the caller's runtime, and leaves the other processors to the master.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesos_network_overlay::addr::Upid;
use mesos_network_overlay::protocol::{AgentOptions, Assignment, Message, Status};
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::libprocess::{RECEIPT, request, take_message, take_receipts};
use super::promises::Promises;

/// The address of the first agent; the others follow.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);

/// As many as the kernel takes: the master connects to a whole cluster at once.
const BACKLOG: u32 = 65_535;

/// How long an agent waits for the acknowledgement before it registers again, and how much longer
/// at most.
const PATIENCE: Duration = Duration::from_secs(3);
const JITTER_MILLISECONDS: u64 = 1000;

/// How many milliseconds an agent waits before it connects again to a master that is away.
const RECONNECT_MILLISECONDS: std::ops::Range<u64> = 30..200;

/// Descriptors for everything but the two connections of each agent.
const SPARE_DESCRIPTORS: usize = 200;

/// Who leads. Agents wait while nobody does.
pub(crate) type Leader = watch::Receiver<Option<SocketAddrV4>>;

/// The agents.
pub(crate) struct Agents {
    leader: Leader,
    agents: Vec<Agent>,
    /// What they were told.
    pub(crate) promises: Mutex<Promises>,
    /// How many are alive.
    alive: AtomicUsize,
    /// How many are linked to the master and acknowledged by it.
    acknowledged: AtomicUsize,
    /// How often an agent was told its addresses.
    pub(crate) updates: AtomicUsize,
    /// How often one registered.
    pub(crate) registrations: AtomicUsize,
    /// Registrations that got no answer in time.
    repeated: AtomicUsize,
    pub(crate) traffic: TrafficCounters,
    changed: Notify,
}

/// What went over the connections between the agents and their master.
#[derive(Default)]
pub(crate) struct TrafficCounters {
    /// Connections in both directions.
    pub(crate) connections: AtomicUsize,
    /// Bytes that the agents sent.
    pub(crate) sent: AtomicUsize,
    /// Bytes that the agents received.
    pub(crate) received: AtomicUsize,
}

struct Agent {
    upid: Upid,
    /// The lives that it has begun and ended: it is alive while the number is even.
    life: watch::Sender<u64>,
    state: Mutex<AgentState>,
}

#[derive(Default)]
struct AgentState {
    link: Option<Arc<TcpStream>>,
    is_acknowledged: bool,
    /// How often it has registered, since somebody began to count.
    tries: usize,
}

const fn is_alive(life: u64) -> bool {
    life.is_multiple_of(2)
}

impl Agents {
    /// Starts `count` agents that register with whoever leads, on the current runtime.
    pub(crate) fn start(leader: Leader, count: usize) -> io::Result<Arc<Self>> {
        Self::start_on(listen()?, leader, count)
    }

    /// Starts `count` agents to which the master connects through `listener`.
    pub(crate) fn start_on(
        listener: TcpListener,
        leader: Leader,
        count: usize,
    ) -> io::Result<Arc<Self>> {
        allow_descriptors(count)?;
        let port = listener.local_addr()?.port();
        let agent = |upid| Agent { upid, life: watch::Sender::new(0), state: Mutex::default() };
        let agents = Arc::new(Self {
            leader,
            agents: (0..count).map_while(|index| agent_at(index, port)).map(agent).collect(),
            promises: Mutex::default(),
            alive: AtomicUsize::new(count),
            acknowledged: AtomicUsize::new(0),
            updates: AtomicUsize::new(0),
            registrations: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
            traffic: TrafficCounters::default(),
            changed: Notify::new(),
        });
        tokio::spawn(Arc::clone(&agents).accept(listener));
        for index in 0..count {
            tokio::spawn(Arc::clone(&agents).live(index));
        }
        Ok(agents)
    }

    /// Waits until the master has acknowledged all agents that are alive.
    pub(crate) async fn all_acknowledged(&self, patience: Duration) -> Result<(), String> {
        let count =
            || (self.acknowledged.load(Ordering::Relaxed), self.alive.load(Ordering::Relaxed));
        let is_so = || {
            let (done, all) = count();
            done == all
        };
        self.until(patience, is_so).await.map_err(|()| {
            let (done, all) = count();
            format!("after {patience:?} only {done} of {all} agents are acknowledged")
        })
    }

    /// How many registrations got no answer in time and were repeated.
    pub(crate) fn repeated(&self) -> usize {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Waits until something is so of which the agents take note.
    pub(crate) async fn until(
        &self,
        patience: Duration,
        is_so: impl Fn() -> bool,
    ) -> Result<(), ()> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if is_so() {
                    return;
                }
                changed.await;
            }
        };
        timeout(patience, wait).await.map_err(drop)
    }

    /// Which agents are alive, and which are not.
    pub(crate) fn by_life(&self) -> (Vec<usize>, Vec<usize>) {
        (0..self.agents.len()).partition(|&index| is_alive(*self.agents[index].life.borrow()))
    }

    /// As `kill -9` does: it has no connections from now on, and remembers nothing.
    pub(crate) fn kill(&self, index: usize) {
        self.agents[index].life.send_if_modified(|life| {
            let was_alive = is_alive(*life);
            *life += u64::from(was_alive);
            self.alive.fetch_sub(usize::from(was_alive), Ordering::Relaxed);
            was_alive
        });
    }

    /// Starts it again.
    pub(crate) fn revive(&self, index: usize) {
        self.agents[index].life.send_if_modified(|life| {
            let was_dead = !is_alive(*life);
            *life += u64::from(was_dead);
            self.alive.fetch_add(usize::from(was_dead), Ordering::Relaxed);
            was_dead
        });
    }

    /// The address of an agent.
    pub(crate) fn ip(&self, index: usize) -> Ipv4Addr {
        *self.agents[index].upid.address.ip()
    }

    /// The most registrations of one agent since the last time.
    pub(crate) fn take_most_tries(&self) -> usize {
        let tries = self.agents.iter().map(|agent| std::mem::take(&mut agent.state.lock().tries));
        tries.max().unwrap_or(0)
    }

    /// An agent: as long as it is alive, it attends to whoever leads.
    async fn live(self: Arc<Self>, index: usize) {
        let mut life = self.agents[index].life.subscribe();
        let mut leader = self.leader.clone();
        loop {
            let lives = life.wait_for(|life| is_alive(*life)).await.is_ok();
            let master = leader.wait_for(Option::is_some).await.ok().and_then(|master| *master);
            let Some(master) = master.filter(|_| lives).map(Upid::master) else { return };
            tokio::select! {
                () = self.attend(index, &master) => {}
                _ = life.changed() => {}
                () = is_replaced(&mut leader) => {}
            }
            let mut state = self.agents[index].state.lock();
            state.link = None;
            if std::mem::take(&mut state.is_acknowledged) {
                self.acknowledged.fetch_sub(1, Ordering::Relaxed);
            }
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Links to a master, and registers until the link ends.
    async fn attend(&self, index: usize, master: &Upid) {
        let Ok(link) = self.connect(index, master).await else {
            return sleep(Duration::from_millis(fastrand::u64(RECONNECT_MILLISECONDS))).await;
        };
        self.traffic.connections.fetch_add(1, Ordering::Relaxed);
        let link = Arc::new(link);
        self.agents[index].state.lock().link = Some(Arc::clone(&link));
        if let Err(fault) = self.serve_link(index, &link, master).await {
            self.fault(index, &fault);
        }
    }

    async fn connect(&self, index: usize, master: &Upid) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        let address = *self.agents[index].upid.address.ip();
        nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::from((address, 0)))?;
        socket.connect(master.address.into()).await
    }

    /// Registers, again and again until that is acknowledged, and reads the receipts until the link
    /// ends.
    async fn serve_link(
        &self,
        index: usize,
        link: &TcpStream,
        master: &Upid,
    ) -> Result<(), String> {
        let agent = &self.agents[index];
        let register = Message::RegisterAgent(AgentOptions::default());
        let register = request(&agent.upid, master, &register);
        let mut input = Vec::new();
        loop {
            self.registrations.fetch_add(1, Ordering::Relaxed);
            agent.state.lock().tries += 1;
            if self.write(link, &register).await.is_err() {
                return Ok(());
            }
            let jitter = Duration::from_millis(fastrand::u64(..JITTER_MILLISECONDS));
            let again = Instant::now() + PATIENCE + jitter;
            while let Ok(read) = timeout_at(again, self.read(link, &mut input)).await {
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
            let mut life = self.agents[index].life.subscribe();
            if !is_alive(*life.borrow_and_update()) {
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

    /// Takes what a master sends on one connection.
    async fn serve_master(&self, index: usize, stream: &TcpStream) {
        let mut input = Vec::new();
        while let Ok(1..) = self.read(stream, &mut input).await {
            loop {
                let (from, message) = match take_message(&mut input) {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(fault) => return self.fault(index, &fault),
                };
                let report = self.take(index, &from, message);
                if self.write(stream, RECEIPT).await.is_err() {
                    return;
                }
                if let Some((link, report)) = report {
                    // When this fails the link has ended, and its task knows.
                    let _ = self.write(&link, &report).await;
                }
            }
        }
    }

    /// Takes note of a message. Returns what is to be sent on which link.
    fn take(
        &self,
        index: usize,
        from: &Upid,
        message: Message,
    ) -> Option<(Arc<TcpStream>, Vec<u8>)> {
        let agent = &self.agents[index];
        let ip = *agent.upid.address.ip();
        let is_own_master = *self.leader.borrow() == Some(from.address);
        match message {
            Message::UpdateAgentOverlays(overlays) if is_own_master => {
                self.promises.lock().told(ip, &overlays);
                self.updates.fetch_add(1, Ordering::Relaxed);
                self.changed.notify_waiters();
                let is_ready = |overlay| Assignment { status: Some(Status::Ok), ..overlay };
                let report = overlays.into_iter().map(is_ready).collect();
                let report = request(&agent.upid, from, &Message::AgentRegistered(report));
                Some((Arc::clone(agent.state.lock().link.as_ref()?), report))
            }
            // As the agent of the program it believes nobody else.
            Message::UpdateAgentOverlays(overlays) => {
                self.promises.lock().told_by_another(ip, &overlays);
                None
            }
            Message::AgentRegisteredAcknowledgement => {
                let mut state = agent.state.lock();
                let is_linked = is_own_master && state.link.is_some();
                if is_linked && !std::mem::replace(&mut state.is_acknowledged, true) {
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    self.changed.notify_waiters();
                }
                None
            }
            other => {
                self.fault(index, &format!("{other} is not for an agent"));
                None
            }
        }
    }

    /// Waits for input, appends it to `input` and returns its length: 0 at the end of the stream.
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

    /// Writes all of `bytes`. Messages are short, so that those of two tasks do not mix in
    /// practice; should the socket be full the first to wait goes on first.
    async fn write(&self, stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
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
        index_at(*local.ip()).filter(|&index| index < self.agents.len())
    }

    fn fault(&self, index: usize, what: &str) {
        self.promises.lock().fault(format!("{}: {what}", self.agents[index].upid));
    }
}

/// The index of the agent with this address, if there are so many agents.
pub(crate) fn index_at(address: Ipv4Addr) -> Option<usize> {
    let index = address.to_bits().checked_sub(FIRST_ADDRESS.to_bits())?;
    usize::try_from(index).ok()
}

/// The name of the agent with this index, to whose address and `port` the master connects.
pub(crate) fn agent_at(index: usize, port: u16) -> Option<Upid> {
    let offset = u32::try_from(index).ok()?;
    let address = Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits().checked_add(offset)?);
    Some(Upid::agent(SocketAddrV4::new(address, port)))
}

/// Listens for the connections of the master to all agents.
pub(crate) fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.listen(BACKLOG)
}

/// Waits until another master leads, or the same one anew.
async fn is_replaced(leader: &mut Leader) {
    if leader.changed().await.is_err() {
        // Nobody is there any more who could say so.
        std::future::pending().await
    }
}

/// Raises the limit of open files to what `count` agents need, here or in a master that is started
/// from here: it is lower by custom than it need be.
pub(crate) fn allow_descriptors(count: usize) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(2 * count + SPARE_DESCRIPTORS).unwrap_or(u64::MAX);
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        let words = format!("this needs {wanted} open files: raise the hard limit (ulimit -Hn)");
        return Err(io::Error::other(words));
    }
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(())
}
