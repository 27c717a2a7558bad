//! The floor of the storm: a server in a separate process that transfers the same bytes over the
//! same connections as a master, without any logic.
//!
//! The floor answers every request with a receipt and reads the request only to find its end. After
//! a registration, the floor connects to the agent and sends an assignment. After the report of the
//! agent, the floor sends the acknowledgement. All messages are as long as those of the program and
//! are prepared before the first connection. So the measured time includes no allocation, encoding,
//! decoding or storing. The runtime, the number of threads and the socket options are those of the
//! program.

use std::fmt;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use overlay_config::parse_master;
use overlay_types::addr::master_upid;
use overlay_types::assignment::build_assignments;
use overlay_types::protocol::{
    AgentOptions, AgentRecord, MasterKind, Message, Network, OverlayRecord,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::agents::{FIRST_ADDRESS, TrafficCounters, agent_at, allow_descriptors, index_at};
use super::libprocess::{HEAD_END, RECEIPT, chunk, position, request_to_host};
use super::master_process::NETWORK;

/// The flag that makes this executable the floor. It is followed by the address of the floor, the
/// port of the agents, and the number of agents.
const FLAG: &str = "--floor";

/// The line that the floor prints once it listens.
const READY: &str = "ready";

/// The maximum of the kernel, as in the program.
const BACKLOG: u32 = 65_535;

/// The traffic between the agents and their master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Connections in both directions.
    pub(crate) connections: usize,
    /// Bytes sent by the agents.
    pub(crate) sent: usize,
    /// Bytes received by the agents.
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

/// The process of the floor. Dropping it kills the process.
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
        // Both calls fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the floor if `arguments` begin with its flag. Returns `None` otherwise.
pub(crate) fn serve_if_requested(arguments: &[String]) -> Option<Result<(), String>> {
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
        let Some(index) = index_at(FIRST_ADDRESS, ip).filter(|&index| index < messages.len())
        else {
            continue;
        };
        let messages = Arc::clone(&messages);
        tokio::spawn(async move {
            // An error is ignored here: an agent without its messages makes the storm time out.
            let _ = serve_agent(link, address, &messages[index]).await;
        });
    }
}

/// Serves an agent from its registration until the agent closes its link.
async fn serve_agent(
    mut link: TcpStream,
    address: SocketAddrV4,
    messages: &Messages,
) -> io::Result<()> {
    let mut input = Vec::new();
    receive(&mut link, &mut input).await?;
    link.write_all(RECEIPT).await?;
    let mut to_agent = connect(address, messages.agent).await?;
    to_agent.write_all(&messages.assignment).await?;
    receive_receipt(&mut to_agent).await?;
    receive(&mut link, &mut input).await?;
    link.write_all(RECEIPT).await?;
    to_agent.write_all(&messages.acknowledgement).await?;
    receive_receipt(&mut to_agent).await?;
    // Both connections stay open, as they do in the program during the measurement.
    while link.read_buf(&mut input).await? > 0 {}
    Ok(())
}

/// Connects to an agent with the socket options of the program.
async fn connect(own: SocketAddrV4, agent: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::from((*own.ip(), 0)))?;
    socket.connect(agent.into()).await
}

/// Waits for a complete request.
async fn receive(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<()> {
    while !take_request(input).map_err(io::Error::other)? {
        input.reserve(2048);
        if stream.read_buf(input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Removes a complete request from `input`. Returns false if there is no complete request yet.
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

/// The messages to one agent, without receipts.
struct Messages {
    agent: SocketAddrV4,
    assignment: Vec<u8>,
    acknowledgement: Vec<u8>,
}

impl Messages {
    /// Prepares the messages to the agent with this index. The index determines the addresses, and
    /// the set of all addresses is the set that a master assigns to the same number of agents.
    /// Returns `None` if the network is too small.
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
            direct_mac: None,
            authenticated: None,
        };
        let agent = agent_at(FIRST_ADDRESS, index, port)?;
        let master = master_upid(master);
        let bytes = |message| {
            request_to_host(&master, &agent, &message, &agent.address.to_string(), |_| None)
        };
        Some(Self {
            assignment: bytes(Message::UpdateAgentOverlays {
                overlays: build_assignments(network, &record),
                master: MasterKind::Other,
            }),
            acknowledgement: bytes(Message::AgentRegisteredAcknowledgement),
            agent: agent.address,
        })
    }
}
