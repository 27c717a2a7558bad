//! Thousands of peers send garbage, impersonate agents, stall or never read. Honest agents must
//! still receive their addresses, and health requests must still be answered.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use overlay_types::addr::{agent_upid, master_upid};
use overlay_types::protocol::{AgentOptions, Message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::agents::Agents;
use crate::libprocess::request;
use crate::master_process::{MasterProcess, free_address};

const HONEST_AGENTS: usize = 200;
const GARBAGE_SENDERS: u16 = 1000;
const SLOW_SENDERS: u16 = 700;
const IMPERSONATORS: u16 = 200;
const OVERSIZED_SENDERS: u16 = 50;
const NON_READING_AGENTS: u16 = 50;

/// Time limits on a busy machine: for the honest agents, and for a health request.
const AGENTS_TIMEOUT: Duration = Duration::from_secs(20);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

static REFUSED_IMPERSONATIONS: AtomicUsize = AtomicUsize::new(0);

/// Network of the attackers that register and never read.
const NON_READING_AGENT_NETWORK: [u8; 2] = [127, 8];
/// Network of all other attackers.
const ATTACKER_NETWORK: [u8; 2] = [127, 9];

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn honest_agents_among_misbehaving_peers_are_served() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let address = free_address();
    let master = MasterProcess::start("file", dir.path(), address).await.unwrap();
    for index in 0..GARBAGE_SENDERS {
        tokio::spawn(forever(address, ATTACKER_NETWORK, index, send_garbage));
    }
    for index in 0..SLOW_SENDERS {
        tokio::spawn(forever(address, ATTACKER_NETWORK, index, send_slowly));
    }
    for index in 0..IMPERSONATORS {
        tokio::spawn(forever(address, ATTACKER_NETWORK, index, send_false_registration));
    }
    for index in 0..OVERSIZED_SENDERS {
        tokio::spawn(forever(address, ATTACKER_NETWORK, index, send_oversized));
    }
    let mut listeners = Vec::new();
    for index in 0..NON_READING_AGENTS {
        let own =
            SocketAddr::from((numbered_address(NON_READING_AGENT_NETWORK, index), address.port()));
        listeners.push(TcpListener::bind(own).await.unwrap());
        tokio::spawn(forever(address, NON_READING_AGENT_NETWORK, index, never_read));
    }
    // By now the flood has begun, and the attackers hold their connections.
    sleep(Duration::from_secs(1)).await;

    let begin = Instant::now();
    let agents = Agents::start(watch::channel(Some(address)).1, HONEST_AGENTS, None).unwrap();
    let mut slowest = Duration::ZERO;
    let health = async {
        loop {
            let begin = Instant::now();
            master.health().await.unwrap();
            slowest = slowest.max(begin.elapsed());
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        served = agents.all_acknowledged(AGENTS_TIMEOUT) => served.unwrap(),
        () = health => unreachable!("the loop has no end"),
    }
    let begin_health = Instant::now();
    let health = master.health().await.unwrap();
    slowest = slowest.max(begin_health.elapsed());
    println!(
        "{HONEST_AGENTS} agents served in {:.2?}, {} repeated; health within \
         {slowest:.2?}: {health}",
        begin.elapsed(),
        agents.repeated()
    );
    assert!(slowest < HEALTH_TIMEOUT, "the health took {slowest:.2?}");

    let mut state = master.state().await.unwrap();
    let is_non_reading = |ip: Ipv4Addr| ip.octets().starts_with(&NON_READING_AGENT_NETWORK);
    state.agents.retain(|agent| !is_non_reading(agent.ip));
    assert!(REFUSED_IMPERSONATIONS.load(Ordering::Relaxed) > usize::from(IMPERSONATORS));
    // The state has no other agent, so no false registration succeeded.
    agents.checker.lock().check_state(&state).unwrap();
}

/// Connects from an address of its own and runs `misbehave`, again and again.
async fn forever<F: Future<Output = io::Result<()>>>(
    master: SocketAddrV4,
    network: [u8; 2],
    index: u16,
    misbehave: impl Fn(TcpStream, SocketAddrV4) -> F,
) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((numbered_address(network, index), 0))).unwrap();
        if let Ok(stream) = socket.connect(master.into()).await {
            // The master closes each connection sooner or later; the attacker then reconnects.
            let _ = misbehave(stream, master).await;
        }
        sleep(Duration::from_millis(fastrand::u64(50..500))).await;
    }
}

fn numbered_address([a, b]: [u8; 2], index: u16) -> Ipv4Addr {
    let [c, d] = (index + 1).to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

/// Sends random bytes, sometimes with the end of a head.
async fn send_garbage(mut stream: TcpStream, _: SocketAddrV4) -> io::Result<()> {
    let mut bytes: Vec<u8> = (0..fastrand::usize(1..4000)).map(|_| fastrand::u8(..)).collect();
    if fastrand::bool() {
        bytes.extend_from_slice(b"\r\n\r\n");
    }
    stream.write_all(&bytes).await?;
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

/// Sends a head that is never complete.
async fn send_slowly(mut stream: TcpStream, _: SocketAddrV4) -> io::Result<()> {
    stream.write_all(b"POST /overlay-master/slow HTTP/1.1\r\nUser-Agent: libprocess/").await?;
    loop {
        stream.write_all(b"x").await?;
        sleep(Duration::from_millis(500)).await;
    }
}

/// Sends registrations in the name of an agent that has another address.
async fn send_false_registration(mut stream: TcpStream, master: SocketAddrV4) -> io::Result<()> {
    let victim = SocketAddrV4::new(Ipv4Addr::new(127, 3, 0, fastrand::u8(1..)), 5051);
    let message = Message::RegisterAgent(AgentOptions::default());
    let message = request(&agent_upid(victim), &master_upid(master), &message, |_| None);
    loop {
        stream.write_all(&message).await?;
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).await?;
        if length == 0 {
            return Ok(());
        }
        if answer.starts_with(b"HTTP/1.1 400 ") {
            REFUSED_IMPERSONATIONS.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Sends a head or a body beyond all limits.
async fn send_oversized(mut stream: TcpStream, _: SocketAddrV4) -> io::Result<()> {
    stream
        .write_all(b"POST /overlay-master/big HTTP/1.1\r\nLibprocess-From: a@127.9.0.1:1\r\n")
        .await?;
    if fastrand::bool() {
        stream.write_all(b"Transfer-Encoding: chunked\r\n\r\n5000000\r\n").await?;
    }
    let filling = b"X-Filling: ".repeat(1000);
    loop {
        stream.write_all(&filling).await?;
    }
}

/// Registers as fast as possible, and reads neither receipts nor assignments.
async fn never_read(mut stream: TcpStream, master: SocketAddrV4) -> io::Result<()> {
    let SocketAddr::V4(own) = stream.local_addr()? else { return Ok(()) };
    let own = agent_upid(SocketAddrV4::new(*own.ip(), master.port()));
    let message = Message::RegisterAgent(AgentOptions::default());
    let messages = request(&own, &master_upid(master), &message, |_| None).repeat(20);
    loop {
        stream.write_all(&messages).await?;
        sleep(Duration::from_millis(100)).await;
    }
}
