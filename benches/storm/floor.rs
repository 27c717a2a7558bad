//! The floor of the storm: a server in a process of its own that moves the same bytes over the same
//! connections as a master, and decides nothing.
//!
//! The floor answers every request with a receipt, unread but for its end. When an agent has
//! registered the floor connects to the agent and sends an assignment, and after the agent's report
//! the acknowledgement. All messages have the lengths of the program's and are prepared before
//! anybody connects: no address is allocated, nothing is encoded, decoded or stored while the floor
//! is measured. It has the same kind of runtime as the program, as many threads, and the same
//! options of its sockets.

use std::fmt;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesos_network_overlay::addr::Upid;
use mesos_network_overlay::config::parse_master;
use mesos_network_overlay::master::assignments;
use mesos_network_overlay::protocol::{AgentOptions, AgentRecord, Message, Network, OverlayRecord};
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::agents::{TrafficCounters, agent_at, allow_descriptors, index_at};
use super::libprocess::{HEAD_END, RECEIPT, chunk, position, request_to_host};
use super::program::NETWORK;

/// Makes this executable the floor: its address, the port of the agents, and how many there are
/// follow.
const FLAG: &str = "--floor";

/// What it writes once it listens.
const READY: &str = "ready";

/// As many as the kernel takes, as the program has it.
const BACKLOG: u32 = 65_535;

/// What went over the connections between the agents and their master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Connections in both directions.
    pub(crate) connections: usize,
    /// Bytes that the agents sent.
    pub(crate) sent: usize,
    /// Bytes that the agents received.
    pub(crate) received: usize,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, sent, received } = self;
        write!(f, "{connections} connections, {sent} bytes from agents, {received} to agents")
    }
}

impl From<&TrafficCounters> for Traffic {
    fn from(counters: &TrafficCounters) -> Self {
        Self {
            connections: counters.connections.load(Ordering::Relaxed),
            sent: counters.sent.load(Ordering::Relaxed),
            received: counters.received.load(Ordering::Relaxed),
        }
    }
}

/// The floor in a process of its own. Dropped, it is killed.
pub(crate) struct Floor {
    pub(crate) child: Child,
}

impl Floor {
    /// Starts the floor at `address` for `count` agents that listen on `port`, and waits until it
    /// accepts connections.
    pub(crate) fn start(address: SocketAddrV4, port: u16, count: usize) -> Result<Self, String> {
        let failure = |error: io::Error| format!("start the floor: {error}");
        let child = Command::new(std::env::current_exe().map_err(failure)?)
            .args([FLAG, &address.to_string(), &port.to_string(), &count.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failure)?;
        let mut floor = Self { child };
        let stdout = floor.child.stdout.take().ok_or("the floor has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(failure)?;
        if line.trim() == READY { Ok(floor) } else { Err("the floor is not ready".to_owned()) }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves as the floor if these arguments of the executable say so.
pub(crate) fn serve_if_asked(arguments: &[String]) -> Option<Result<(), String>> {
    let [flag, address, port, count] = arguments else { return None };
    if flag != FLAG {
        return None;
    }
    let (Ok(address), Ok(port), Ok(count)) = (address.parse(), port.parse(), count.parse()) else {
        return Some(Err(format!("{FLAG} needs an address, a port and a number")));
    };
    Some(serve(address, port, count))
}

fn serve(address: SocketAddrV4, port: u16, count: usize) -> Result<(), String> {
    let failure = |error: io::Error| format!("floor at {address}: {error}");
    allow_descriptors(count).map_err(failure)?;
    let (config, _) =
        parse_master("network.json", NETWORK).map_err(|problems| problems.to_string())?;
    let prepare = |index| Messages::prepare(&config.network, address, index, port);
    let messages = (0..count).map(prepare);
    let messages = messages.collect::<Option<Vec<_>>>().ok_or("the network is too small")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(failure)?.block_on(async {
        let listener = listen(address).map_err(failure)?;
        println!("{READY}");
        let accepting = tokio::spawn(accept(listener, address, messages.into()));
        accepting.await.map_err(|error| error.to_string())?.map_err(failure)
    })
}

fn listen(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}

async fn accept(
    listener: TcpListener,
    address: SocketAddrV4,
    messages: Arc<[Messages]>,
) -> io::Result<()> {
    loop {
        let (link, peer) = listener.accept().await?;
        let IpAddr::V4(ip) = peer.ip() else { continue };
        let Some(index) = index_at(ip).filter(|&index| index < messages.len()) else { continue };
        let messages = Arc::clone(&messages);
        tokio::spawn(async move {
            // An agent that misses something says so: the storm then does not come to its end.
            let _ = serve_agent(link, address, &messages[index]).await;
        });
    }
}

/// Serves an agent from its registration to the end of its link.
async fn serve_agent(
    mut link: TcpStream,
    address: SocketAddrV4,
    messages: &Messages,
) -> io::Result<()> {
    let mut input = Vec::new();
    receive(&mut link, &mut input).await?;
    link.write_all(RECEIPT).await?;
    let mut back = connect(address, messages.agent).await?;
    back.write_all(&messages.assignment).await?;
    receive_receipt(&mut back).await?;
    receive(&mut link, &mut input).await?;
    link.write_all(RECEIPT).await?;
    back.write_all(&messages.acknowledgement).await?;
    receive_receipt(&mut back).await?;
    // Both connections stay open, as in the program within the measured time.
    while link.read_buf(&mut input).await? > 0 {}
    Ok(())
}

/// A connection to an agent, as the program makes it.
async fn connect(own: SocketAddrV4, agent: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::from((*own.ip(), 0)))?;
    socket.connect(agent.into()).await
}

/// Waits for a whole request.
async fn receive(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<()> {
    while !take_request(input).map_err(io::Error::other)? {
        input.reserve(2048);
        if stream.read_buf(input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Takes a whole request off `input`, unread; false if there is none yet.
fn take_request(input: &mut Vec<u8>) -> Result<bool, String> {
    let Some(head_length) = position(input, HEAD_END) else { return Ok(false) };
    let start = head_length + HEAD_END.len();
    let is_chunked = position(&input[..head_length], b"\r\nTransfer-Encoding: chunked").is_some();
    let end = if is_chunked {
        let Some((_, length)) = chunk(&input[start..])? else { return Ok(false) };
        start + length
    } else {
        start
    };
    input.drain(..end);
    Ok(true)
}

/// Waits for the receipt of a message.
async fn receive_receipt(stream: &mut TcpStream) -> io::Result<()> {
    let mut receipt = [0; RECEIPT.len()];
    stream.read_exact(&mut receipt).await?;
    Ok(())
}

/// All that an agent is sent, but for receipts.
struct Messages {
    agent: SocketAddrV4,
    assignment: Vec<u8>,
    acknowledgement: Vec<u8>,
}

impl Messages {
    /// What the agent with this index is sent: addresses that follow from the index. All agents
    /// together get those that a master gives to as many. `None` if the network has fewer.
    fn prepare(network: &Network, master: SocketAddrV4, index: usize, port: u16) -> Option<Self> {
        let number = u128::try_from(index).ok()?;
        let IpAddr::V4(vtep_ip) = network.vtep_subnet.address_at(number + 1)? else { return None };
        let subnets = network.overlays.iter().map(|overlay| {
            let range = overlay.range?;
            let subnet = range.subnet.nth(range.prefix, number)?;
            Some(OverlayRecord { name: overlay.name.clone(), subnet: Some(subnet), subnet6: None })
        });
        let options = AgentOptions::default();
        let record = AgentRecord {
            vtep_ip,
            vtep_ip6: None,
            overlays: subnets.collect::<Option<_>>()?,
            allocate_subnet: options.allocate_subnet,
            mesos_bridge: options.mesos_bridge,
            docker_bridge: options.docker_bridge,
            underlay: options.underlay,
        };
        let agent = agent_at(index, port)?;
        let master = Upid::master(master);
        let bytes =
            |message| request_to_host(&master, &agent, &message, &agent.address.to_string());
        Some(Self {
            assignment: bytes(Message::UpdateAgentOverlays(assignments(network, &record))),
            acknowledgement: bytes(Message::AgentRegisteredAcknowledgement),
            agent: agent.address,
        })
    }
}
