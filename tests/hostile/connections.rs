//! Attackers that open connections and hold them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use overlay_types::addr::{agent_upid, master_upid};
use overlay_types::protocol::{AgentOptions, Message, PeersRequest};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::libprocess::request;
use crate::victim::{TIMEOUT, Victim, attacker, connect};

/// More connections than the master of these tests accepts.
const TOO_MANY: usize = 15_000;
/// Number of connections that are opened concurrently.
const CONCURRENCY: usize = 200;

const GET: &str = "GET /overlay-master/health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Opens `count` connections from `addresses` source addresses in turn, sends `bytes` on each, and
/// holds the connections.
async fn hold(to: SocketAddrV4, count: usize, addresses: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let mut opening = JoinSet::new();
    let mut held = Vec::new();
    for index in 0..count {
        let bytes = bytes.to_vec();
        opening.spawn(async move {
            let mut stream = connect(attacker(index % addresses), to).await?;
            stream.write_all(&bytes).await.map(|()| stream)
        });
        if opening.len() >= CONCURRENCY {
            held.extend(opening.join_next().await.unwrap().unwrap());
        }
    }
    held.extend(opening.join_all().await.into_iter().flatten());
    held
}

/// Returns a message that the master ignores.
fn ignored_message(to: SocketAddrV4) -> Vec<u8> {
    let from = agent_upid(SocketAddrV4::new(attacker(0), 5051));
    request(&from, &master_upid(to), &Message::RequestPeers(PeersRequest::default()), |_| None)
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn links_of_one_host_evict_only_its_own() {
    let victim = Victim::start(100).await;
    let to = victim.address();
    let message = ignored_message(to);
    let attack = hold(to, TOO_MANY, 1, &message);
    let _held = victim.measure_attack("15,000 links of one host", attack).await;
    assert!(victim.refusals("connections_per_address").await > 10_000);
    assert_eq!(victim.refusals("connections").await, 0);
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn links_of_many_hosts_evict_largest_holders() {
    let victim = Victim::start(100).await;
    let to = victim.address();
    let attack = hold(to, TOO_MANY, 3000, b"");
    let _held = victim.measure_attack("15,000 links of 3,000 hosts", attack).await;
    assert!(victim.refusals("connections").await > 0);
    assert_eq!(victim.refusals("connections_per_address").await, 0);
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn http_connection_flood_does_not_block_health() {
    let victim = Victim::start(20).await;
    let to = victim.address();
    let _one = victim
        .measure_attack("600 HTTP connections of one host", hold(to, 600, 1, GET.as_bytes()))
        .await;
    assert!(victim.refusals("http_connections_per_address").await > 0);
    let _many = victim
        .measure_attack("1,200 HTTP connections of 100 hosts", hold(to, 1200, 100, GET.as_bytes()))
        .await;
    assert!(victim.refusals("http_connections").await > 0);
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn new_agent_is_served_during_replies_to_closed_ports() {
    let victim = Victim::start(20).await;
    let to = victim.address();
    let master = master_upid(to);
    let attack = async {
        let mut sending = JoinSet::new();
        for index in 0..40 {
            let from = attacker(index);
            let mut bytes = Vec::new();
            for port in 1..=200 {
                let own = agent_upid(SocketAddrV4::new(from, 20_000 + port));
                let register = Message::RegisterAgent(AgentOptions::default());
                bytes.extend(request(&own, &master, &register, |_| None));
                bytes.extend(request(&own, &master, &Message::AgentRegistered(Vec::new()), |_| {
                    None
                }));
            }
            sending.spawn(async move {
                let mut stream = connect(from, to).await.unwrap();
                let _ = timeout(Duration::from_secs(5), stream.write_all(&bytes)).await;
                stream
            });
        }
        sending.join_all().await
    };
    let _held = victim.measure_attack("reports from 8,000 ports of 40 hosts", attack).await;
    victim.register_agent(Ipv4Addr::new(127, 88, 0, 1)).await;
    // The master drops a report whose sender has another name than the registered agent.
    let dropped = async {
        while victim.health().await["counters"]["agent_registered_messages_dropped"] == 0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, dropped).await.expect("reports are dropped");
}

// The attackers run on threads of their own, so that they do not delay the operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn pipelined_garbage_does_not_delay_other_clients() {
    let victim = Victim::start(20).await;
    let to = victim.address();
    let garbage = "POST /overlay-master/N HTTP/1.1\r\nLibprocess-From: nobody\r\n\r\n".repeat(2000);
    let attack = async {
        let mut sending = JoinSet::new();
        for _ in 0..200 {
            let garbage = garbage.clone();
            sending.spawn(async move {
                let mut stream = connect(attacker(0), to).await.unwrap();
                let flood = async { while stream.write_all(garbage.as_bytes()).await.is_ok() {} };
                let _ = timeout(Duration::from_secs(5), flood).await;
            });
        }
        sending.join_all().await;
    };
    victim.measure_attack("200 connections of garbage", attack).await;
    assert!(victim.refusals("messages_per_second_per_address").await > 0);
}
