//! Thousands of agents in one process: each with an address of its own in 127/8, a link to the
//! master, and the conduct of a real one. It registers, reports OK for what it is told, and asks
//! again if nothing comes.
//!
//! One listener serves all of them, since a process has fewer descriptors than two for each agent
//! and one more: which agent a connection is for is told by the address that it came to. All of it
//! runs on the thread of the caller's runtime, and leaves the other processors to the master.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mesos_network_overlay::addr::Upid;
use mesos_network_overlay::protocol::{AgentOptions, Assignment, Message, Status};
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::libprocess::{RECEIPT, request, take_message, take_receipts};

/// The address of the first agent; the others follow.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);

/// As many as the kernel takes: the master connects to a whole cluster at once.
const BACKLOG: u32 = 65_535;

/// How long an agent waits for the acknowledgement before it registers again, and how much longer
/// at most.
const PATIENCE: Duration = Duration::from_secs(3);
const JITTER_MILLISECONDS: u64 = 1000;

/// How long an agent waits before it connects again to a master that is away.
const RECONNECT: Duration = Duration::from_millis(50);

/// Descriptors for everything but the two connections of each agent.
const SPARE_DESCRIPTORS: usize = 200;

/// What all agents were told.
pub(crate) type Told = BTreeMap<Ipv4Addr, Vec<Assignment>>;

/// The agents.
pub(crate) struct Agents {
    master: Upid,
    agents: Vec<Agent>,
    /// Whether they stay away from the master for now.
    pub(crate) are_held: AtomicBool,
    /// How many are linked to the master and acknowledged by it.
    acknowledged: AtomicUsize,
    /// How often an agent was told its addresses.
    pub(crate) updates: AtomicUsize,
    /// Open connections, in both directions.
    pub(crate) connections: AtomicUsize,
    /// Registrations that got no answer in time.
    repeated: AtomicUsize,
    /// What no master may do.
    faults: Mutex<Vec<String>>,
    changed: Notify,
}

struct Agent {
    upid: Upid,
    state: Mutex<AgentState>,
}

#[derive(Default)]
struct AgentState {
    link: Option<Arc<TcpStream>>,
    told: Option<Vec<Assignment>>,
    is_acknowledged: bool,
}

impl Agents {
    /// Starts `count` agents of the master at `master`, on the current runtime.
    pub(crate) fn start(master: SocketAddrV4, count: usize) -> io::Result<Arc<Self>> {
        allow_descriptors(count)?;
        let listener = TcpSocket::new_v4()?;
        listener.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
        let listener = listener.listen(BACKLOG)?;
        let port = listener.local_addr()?.port();
        let agent = |address| Agent {
            upid: Upid::agent(SocketAddrV4::new(Ipv4Addr::from_bits(address), port)),
            state: Mutex::default(),
        };
        let agents = Arc::new(Self {
            master: Upid::master(master),
            agents: (FIRST_ADDRESS.to_bits()..).take(count).map(agent).collect(),
            are_held: AtomicBool::new(false),
            acknowledged: AtomicUsize::new(0),
            updates: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
            faults: Mutex::default(),
            changed: Notify::new(),
        });
        tokio::spawn(Arc::clone(&agents).accept(listener));
        for index in 0..count {
            tokio::spawn(Arc::clone(&agents).live(index));
        }
        Ok(agents)
    }

    /// Waits until the master has acknowledged all agents.
    pub(crate) async fn all_acknowledged(&self, patience: Duration) -> Result<(), String> {
        let all = self.agents.len();
        let is_so = || self.acknowledged.load(Ordering::Relaxed) == all;
        self.until(patience, is_so).await.map_err(|()| {
            let done = self.acknowledged.load(Ordering::Relaxed);
            format!("after {patience:?} only {done} of {all} agents are acknowledged")
        })
    }

    /// How many registrations got no answer in time and were repeated.
    pub(crate) fn repeated(&self) -> usize {
        self.repeated.load(Ordering::Relaxed)
    }

    /// What the agents were told until now, those that were told something.
    pub(crate) fn told(&self) -> Result<Told, String> {
        let faults = self.faults.lock();
        if let Some(first) = faults.first() {
            return Err(format!("{} faults, the first: {first}", faults.len()));
        }
        let told =
            |agent: &Agent| Some((*agent.upid.address.ip(), agent.state.lock().told.clone()?));
        Ok(self.agents.iter().filter_map(told).collect())
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

    /// The life of an agent: links, and links again when the link ends.
    async fn live(self: Arc<Self>, index: usize) {
        loop {
            while self.are_held.load(Ordering::Relaxed) {
                sleep(RECONNECT).await;
            }
            match self.connect(index).await {
                Ok(link) => {
                    let link = Arc::new(link);
                    let connection = self.count_connection();
                    self.agents[index].state.lock().link = Some(Arc::clone(&link));
                    if let Err(fault) = self.serve_link(index, &link).await {
                        self.fault(index, &fault);
                    }
                    let mut state = self.agents[index].state.lock();
                    state.link = None;
                    if std::mem::take(&mut state.is_acknowledged) {
                        self.acknowledged.fetch_sub(1, Ordering::Relaxed);
                    }
                    drop(state);
                    drop(connection);
                }
                Err(_) => sleep(RECONNECT).await,
            }
        }
    }

    async fn connect(&self, index: usize) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        let address = *self.agents[index].upid.address.ip();
        nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::from((address, 0)))?;
        socket.connect(self.master.address.into()).await
    }

    /// Registers, again and again until that is acknowledged, and reads the receipts until the link
    /// ends.
    async fn serve_link(&self, index: usize, link: &TcpStream) -> Result<(), String> {
        let agent = &self.agents[index];
        let register = Message::RegisterAgent(AgentOptions::default());
        let register = request(&agent.upid, &self.master, &register);
        let mut input = Vec::new();
        if write(link, &register).await.is_err() {
            return Ok(());
        }
        loop {
            let jitter = Duration::from_millis(fastrand::u64(..JITTER_MILLISECONDS));
            let again = Instant::now() + PATIENCE + jitter;
            match timeout_at(again, read(link, &mut input)).await {
                Ok(Ok(1..)) => take_receipts(&mut input)?,
                Ok(_) => return Ok(()),
                Err(_) if agent.state.lock().is_acknowledged => {}
                Err(_) => {
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                    if write(link, &register).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(RECONNECT).await;
                continue;
            };
            tokio::spawn(Arc::clone(&self).serve_master(stream));
        }
    }

    /// Takes what the master sends on one connection.
    async fn serve_master(self: Arc<Self>, stream: TcpStream) {
        let _connection = self.count_connection();
        let Some(index) = self.index_of(&stream) else { return };
        let mut input = Vec::new();
        while let Ok(1..) = read(&stream, &mut input).await {
            loop {
                let message = match take_message(&mut input) {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(fault) => return self.fault(index, &fault),
                };
                let report = self.take(index, message);
                if write(&stream, RECEIPT).await.is_err() {
                    return;
                }
                if let Some((link, report)) = report {
                    // When this fails the link has ended, and its task knows.
                    let _ = write(&link, &report).await;
                }
            }
        }
    }

    /// Takes note of a message. Returns what is to be sent on which link.
    fn take(&self, index: usize, message: Message) -> Option<(Arc<TcpStream>, Vec<u8>)> {
        let agent = &self.agents[index];
        let mut state = agent.state.lock();
        match message {
            Message::UpdateAgentOverlays(overlays) => {
                if let Some(told) = &state.told
                    && *told != overlays
                {
                    self.fault(index, &format!("was told {told:?} and then {overlays:?}"));
                }
                state.told = Some(overlays.clone());
                self.updates.fetch_add(1, Ordering::Relaxed);
                self.changed.notify_waiters();
                let is_ready = |overlay| Assignment { status: Some(Status::Ok), ..overlay };
                let report = overlays.into_iter().map(is_ready).collect();
                let report = request(&agent.upid, &self.master, &Message::AgentRegistered(report));
                Some((Arc::clone(state.link.as_ref()?), report))
            }
            Message::AgentRegisteredAcknowledgement => {
                if state.link.is_some() && !std::mem::replace(&mut state.is_acknowledged, true) {
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

    fn index_of(&self, stream: &TcpStream) -> Option<usize> {
        let SocketAddr::V4(local) = stream.local_addr().ok()? else { return None };
        let index = local.ip().to_bits().checked_sub(FIRST_ADDRESS.to_bits())?;
        usize::try_from(index).ok().filter(|&index| index < self.agents.len())
    }

    fn fault(&self, index: usize, what: &str) {
        self.faults.lock().push(format!("{}: {what}", self.agents[index].upid));
    }

    fn count_connection(&self) -> Counted<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }
}

/// A connection that is counted as long as it is open.
struct Counted<'a>(&'a Agents);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_waiters();
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

/// Reads what is there; 0 at the end.
async fn read(stream: &TcpStream, input: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        input.reserve(2048);
        match stream.try_read_buf(input) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// Writes all of `bytes`. Messages are short, so that those of two tasks do not mix in practice;
/// should the socket be full the first to wait goes on first.
async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
