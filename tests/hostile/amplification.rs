//! Small messages that would need much memory: compressed, nested, of the wrong kind, or from an
//! unknown sender.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use flate2::Compression;
use flate2::write::GzEncoder;
use overlay_types::addr::{Upid, agent_upid, master_upid};
use overlay_types::protocol::{AgentOptions, Message, MessageKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::libprocess::request;
use crate::victim::{TIMEOUT, Victim, attacker, connect};

/// Number of messages that are sent concurrently.
const CONCURRENCY: usize = 40;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Builds the bytes of a message with a compressed or plain body.
fn message(from: &Upid, name: &str, body: &[u8], is_compressed: bool) -> Vec<u8> {
    let encoding = if is_compressed { "Content-Encoding: gzip\r\n" } else { "" };
    let head = format!(
        "POST /overlay-master/{name} HTTP/1.1\r\nLibprocess-From: {from}\r\n{encoding}\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Sends `bytes` on a new connection. Returns the status of the answer.
async fn send(from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) -> String {
    let exchange = async {
        let mut stream = connect(from, to).await.unwrap();
        // The master closes the connection of a refused request without reading it to the end.
        let _ = stream.write_all(bytes).await;
        let mut status = [0; 12];
        match stream.read_exact(&mut status).await {
            Ok(_) => String::from_utf8_lossy(&status[9..]).into_owned(),
            Err(_) => "end".to_owned(),
        }
    };
    timeout(TIMEOUT, exchange).await.expect("an answer or the end")
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn amplifying_messages_stay_within_memory_limit() {
    let victim = Victim::start(50).await;
    let to = victim.address();
    let master = master_upid(to);
    // 16 KB inflate to 16 MiB, and decode to 8 million overlays.
    let empty_overlays = b"\x0a\x00".repeat(8 * 1024 * 1024);
    let empty_peers = b"\x32\x00".repeat(8 * 1024 * 1024);
    let bodies = [
        (gzip(&empty_overlays), true),
        (gzip(&empty_peers), true),
        (gzip(&gzip(&empty_overlays)), true),
        (empty_overlays[..512 * 1024].to_vec(), false),
        (empty_peers[..256 * 1024].to_vec(), false),
    ];
    let names: Vec<&str> =
        MessageKind::ALL.map(MessageKind::name).into_iter().chain(["Unknown"]).collect();
    let attack = async {
        let mut sending = JoinSet::new();
        for (index, (body, is_compressed)) in bodies.iter().cycle().take(400).enumerate() {
            let from = attacker(index % 50);
            let own = agent_upid(SocketAddrV4::new(from, 5051));
            // Half of the attackers are registered agents.
            if index < 25 {
                let register = Message::RegisterAgent(AgentOptions::default());
                assert_eq!(
                    send(from, to, &request(&own, &master, &register, |_| None)).await,
                    "202"
                );
            }
            let bytes = message(&own, names[index % names.len()], body, *is_compressed);
            sending.spawn(async move { send(from, to, &bytes).await });
            if sending.len() >= CONCURRENCY {
                sending.join_next().await.unwrap().unwrap();
            }
        }
        sending.join_all().await
    };
    let statuses = victim.measure_attack("400 amplifying messages", attack).await;
    let known = ["202", "400", "413", "429", "503", "end"];
    assert!(statuses.iter().all(|status| known.contains(&status.as_str())), "{statuses:?}");
    let health = victim.health().await;
    assert!(health["refused"]["count"].as_u64().unwrap() > 0, "{health}");
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn report_of_unregistered_sender_is_not_decoded() {
    let victim = Victim::start(1).await;
    let to = victim.address();
    let from = attacker(0);
    let own = agent_upid(SocketAddrV4::new(from, 5051));
    let name = MessageKind::AgentRegistered.name();
    let garbage = message(&own, name, b"no protobuf", false);
    assert_eq!(send(from, to, &garbage).await, "202");
    let counters = &victim.health().await["counters"];
    assert_eq!(counters["malformed_messages"], 0, "{counters}");
    assert_eq!(counters["agent_registered_messages_dropped"], 1, "{counters}");
    // After the sender's registration, the master decodes the same message and finds it malformed.
    let register = Message::RegisterAgent(AgentOptions::default());
    let register = request(&own, &master_upid(to), &register, |_| None);
    assert_eq!(send(from, to, &register).await, "202");
    assert_eq!(send(from, to, &garbage).await, "202");
    let counters = &victim.health().await["counters"];
    assert_eq!(counters["malformed_messages"], 1, "{counters}");
}
