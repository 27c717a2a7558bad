//! Messages that could fill the disk with log lines, and the store with changes.

use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_types::addr::{agent_upid, master_upid};
use overlay_types::protocol::{AgentOptions, Message};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::libprocess::request;
use crate::victim::{Victim, attacker, connect};

/// Registrations of each attacker. Every second registration has other options.
const REGISTRATIONS: usize = 4000;
const ATTACKERS: usize = 25;
/// Maximum growth of the log, in bytes.
const LOG_MAX: u64 = 256 * 1024;

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn toggled_registrations_do_not_fill_log_or_store() {
    let victim = Victim::start(20).await;
    let (to, before) = (victim.address(), victim.log_size());
    let commits = victim.health().await["counters"]["commits"].as_u64().unwrap();
    let attack = async {
        let mut sending = JoinSet::new();
        for index in 0..ATTACKERS {
            let from = attacker(index);
            let own = agent_upid(SocketAddrV4::new(from, 5051));
            let toggled = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
            let both = [AgentOptions::default(), toggled].map(|options| {
                request(&own, &master_upid(to), &Message::RegisterAgent(options), |_| None)
            });
            let bytes = both.concat().repeat(REGISTRATIONS / 2);
            sending.spawn(async move {
                let mut stream = connect(from, to).await.unwrap();
                let (mut read, mut write) = stream.split();
                let mut nowhere = tokio::io::sink();
                let receipts = tokio::io::copy(&mut read, &mut nowhere);
                let send = async {
                    let _ = write.write_all(&bytes).await;
                };
                // The master reads a connection beyond its rate limit only slowly.
                let _ =
                    timeout(Duration::from_secs(5), async { tokio::join!(receipts, send) }).await;
            });
        }
        sending.join_all().await;
    };
    victim.measure_attack("100,000 toggled registrations", attack).await;
    let grown = victim.log_size() - before;
    println!("the log has grown by {grown} bytes");
    assert!(grown < LOG_MAX, "{grown} bytes");
    assert!(victim.refusals("registrations_per_second_per_address").await > 500);
    let later = victim.health().await["counters"]["commits"].as_u64().unwrap();
    assert!(later - commits < 5000, "{} commits", later - commits);
}
