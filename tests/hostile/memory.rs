//! Request bodies and heads that do not end, answers that the client does not read, and previews.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::master_process::NETWORK;
use crate::victim::{TIMEOUT, Victim, attacker, connect};

/// Number of agents. The state of this number of agents has several megabytes.
const AGENTS: usize = 1500;

/// Opens a connection, sends `bytes`, and holds the connection without reading.
async fn start(from: Ipv4Addr, to: SocketAddrV4, bytes: Vec<u8>) -> TcpStream {
    let mut stream = connect(from, to).await.unwrap();
    // The master closes the connection of a refused request without reading it to the end.
    let _ = timeout(Duration::from_secs(2), stream.write_all(&bytes)).await;
    stream
}

async fn start_all(
    to: SocketAddrV4,
    count: usize,
    addresses: usize,
    bytes: &[u8],
) -> Vec<TcpStream> {
    let mut starting = JoinSet::new();
    for index in 0..count {
        starting.spawn(start(attacker(index % addresses), to, bytes.to_vec()));
    }
    let held = starting.join_all().await;
    // The master processes the accepted requests meanwhile.
    sleep(Duration::from_secs(2)).await;
    held
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn unfinished_request_bodies_are_bounded() {
    let victim = Victim::start(20).await;
    let to = victim.address();
    let length = 1_700_000;
    let head = format!(
        "POST /overlay-master/agents/delete HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    );
    let bytes = [head.as_bytes(), &vec![b' '; length - 1]].concat();
    let attack = start_all(to, 120, 8, &bytes);
    let _held = victim.measure_attack("120 bodies of 1.7 MB that do not end", attack).await;
    let own = victim.refusals("request_bytes_per_address").await;
    assert!(own + victim.refusals("request_bytes").await > 0);
    let head = "POST /overlay-master/agents/delete HTTP/1.1\r\nHost: localhost\r\n\
                Content-Length: 16777216\r\n\r\n";
    let attack = start_all(to, 120, 8, head.as_bytes());
    let mut held = victim.measure_attack("120 bodies of 16 MiB", attack).await;
    let mut answer = [0; 12];
    timeout(TIMEOUT, held[0].read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn unfinished_request_heads_are_bounded() {
    let victim = Victim::start(20).await;
    let to = victim.address();
    let bytes = format!("POST /overlay-master/N HTTP/1.1\r\nX: {}", "x".repeat(70_000));
    let attack = start_all(to, 5000, 1000, bytes.as_bytes());
    let _held = victim.measure_attack("5,000 heads of 70 kB that do not end", attack).await;
    assert!(victim.refusals("request_bytes").await > 0);
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn unread_answers_are_bounded() {
    let victim = Victim::start(AGENTS).await;
    let get = "GET /overlay-master/state HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(4);
    let attack = start_all(victim.address(), 480, 30, get.as_bytes());
    let _held = victim.measure_attack("480 clients that do not read the state", attack).await;
    let limits =
        ["requests", "requests_per_address", "response_bytes", "response_bytes_per_address"];
    let mut refused = 0;
    for limit in limits {
        refused += victim.refusals(limit).await;
    }
    assert!(refused > 0);
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn previews_do_not_delay_master() {
    let victim = Victim::start(AGENTS).await;
    let body = NETWORK.replace("vxlan-2", "vxlan-3");
    let post = format!(
        "POST /overlay-master/preview HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let reload = "POST /overlay-master/reload HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let attack = async {
        let mut held = start_all(victim.address(), 30, 6, post.as_bytes()).await;
        held.extend(start_all(victim.address(), 30, 6, reload.as_bytes()).await);
        held
    };
    let mut held = victim.measure_attack("30 previews and 30 reloads", attack).await;
    let mut answer = [0; 12];
    timeout(TIMEOUT, held[0].read_exact(&mut answer)).await.unwrap().unwrap();
    // The previewed network would remove an overlay of the agents.
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn bodies_of_many_hosts_do_not_block_registrations() {
    let victim = Victim::start(20).await;
    let to = victim.address();
    // The bodies exceed the limit of all bodies together; each host stays within its own limit.
    let length = 1_000_000;
    let head = format!(
        "POST /overlay-master/agents/delete HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    );
    let large = [head.as_bytes(), &vec![b' '; length - 1]].concat();
    let small = [head.as_bytes(), &[b' '; 9000]].concat();
    let attack = async {
        let mut held = start_all(to, 60, 60, &large).await;
        held.extend(start_all(to, 900, 900, &small).await);
        held
    };
    let _held = victim.measure_attack("24 MiB of bodies of 900 hosts", attack).await;
    let begin = tokio::time::Instant::now();
    victim.register_agent(Ipv4Addr::new(127, 88, 0, 1)).await;
    println!("a new agent was served within {:.1?}", begin.elapsed());
}
