//! The election: agents follow the leader, and masters and Mesos masters are candidates.

use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_types::addr::Ensemble;
use overlay_types::warnings::Warnings;
use overlay_wire::decode_candidate;
use overlay_zookeeper::detector::{Contender, ElectionWarnings, follow_election};
use tokio::runtime::Runtime;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;
use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::{SESSION, TICK, ensemble, now, suspend};
use crate::ensemble::Servers;

/// The recorded content of a Mesos master's znode in an election.
const RECORDED: &[u8] = include_bytes!("../../golden/zookeeper-json.info_0000000000");

/// Time limit for all events.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

pub(super) fn address(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address")
}

/// Follows the leader as an agent without credentials does.
fn follow_leader(servers: &Servers, path: &str) -> Receiver<Option<SocketAddrV4>> {
    let (election, work) = follow_election(ensemble(servers, "", path), SESSION, Warnings::new());
    tokio::spawn(async move { match work.await {} });
    election.leader
}

pub(super) async fn client(servers: &Servers) -> Client {
    Client::connect(&servers.addresses()).await.expect("a client")
}

/// Creates an ephemeral sequential znode, and returns its path.
async fn announce(client: &Client, prefix: &str, data: &[u8]) -> String {
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let (_, number) = client.create(prefix, data, &options).await.expect("created");
    format!("{prefix}{number}")
}

/// Waits until `receiver` has the value `expected`.
pub(super) async fn wait_until<T: Clone + PartialEq + std::fmt::Debug>(
    receiver: &mut Receiver<T>,
    expected: T,
) {
    let waiting = timeout(TIMEOUT, receiver.wait_for(|value| *value == expected)).await;
    assert!(matches!(waiting, Ok(Ok(_))), "timeout while waiting for {expected:?}");
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn agent_follows_leading_mesos_master() {
    let mut servers = Servers::start(1, TICK);
    runtime().block_on(async {
        let mut leader = follow_leader(&servers, "/mesos");
        let client = client(&servers).await;
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        // There is no master yet, and no path.
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.create("/mesos", b"", &open).await.expect("created");
        client.create("/mesos/log_replicas", b"", &open).await.expect("created");
        assert_eq!(*leader.borrow(), None);
        let first = announce(&client, "/mesos/json.info_", RECORDED).await;
        wait_until(&mut leader, Some(address("127.0.0.1:5050"))).await;
        // A master of an older Mesos version is the candidate after the first master.
        announce(&client, "/mesos/", b"master@10.0.0.2:5052").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(
            *leader.borrow(),
            Some(address("127.0.0.1:5050")),
            "the first master no longer leads"
        );
        client.delete(&first, None).await.expect("deleted");
        wait_until(&mut leader, Some(address("10.0.0.2:5052"))).await;
        drop(client);
        // Dropping the client ends its session.
        wait_until(&mut leader, None).await;
    });
    // The follower keeps the last leader during an outage of ZooKeeper, and finds the new leader
    // afterwards.
    runtime().block_on(async {
        let mut leader = follow_leader(&servers, "/mesos");
        let first = client(&servers).await;
        announce(&first, "/mesos/json.info_", RECORDED).await;
        wait_until(&mut leader, Some(address("127.0.0.1:5050"))).await;
        servers.kill(0);
        tokio::time::sleep(SESSION * 2).await;
        assert_eq!(*leader.borrow(), Some(address("127.0.0.1:5050")));
        servers.restart(0);
        servers.wait_until_serving();
        wait_until(&mut leader, None).await;
        let second = client(&servers).await;
        announce(&second, "/mesos/json.info_", RECORDED).await;
        wait_until(&mut leader, Some(address("127.0.0.1:5050"))).await;
    });
}

fn start_contender(ensemble: &Ensemble, listen_address: &str) -> Contender {
    let watched = ElectionWarnings { state: Vec::new(), warnings: Warnings::new() };
    let election = (ensemble.clone(), SESSION);
    Contender::start(election, address(listen_address), watched, None).expect("a thread")
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn second_master_leads_after_first_leader() {
    let servers = Servers::start(1, TICK);
    let location = ensemble(&servers, "overlay:secret@", "/overlay");
    runtime().block_on(async {
        let first = start_contender(&location, "10.0.0.1:5050");
        let mut first_leads = first.leading();
        wait_until(&mut first_leads, true).await;
        let second = start_contender(&location, "10.0.0.2:5050");
        let mut second_leads = second.leading();
        // A follower needs no credentials, and the candidate's znode has the format of Mesos.
        let mut leader = follow_leader(&servers, "/overlay");
        wait_until(&mut leader, Some(address("10.0.0.1:5050"))).await;
        let client = client(&servers).await;
        let names = client.list_children("/overlay").await.expect("listed");
        let name = names.iter().min().expect("a candidate");
        assert_eq!(name.len(), "json.info_0000000000".len(), "{name}");
        let (content, _) =
            client.get_data(&format!("/overlay/{name}")).await.expect("readable znode");
        let candidate = decode_candidate("json.info", &content).expect("a candidate");
        assert_eq!(candidate.address, address("10.0.0.1:5050"));
        let path = format!("/overlay/{name}");
        assert_eq!(
            client.delete(&path, None).await,
            Err(Error::NoAuth),
            "deletion without credentials"
        );
        // After the deletion of its znode, the first master is a candidate again, after the second.
        client.auth("digest", b"overlay:secret").await.expect("accepted credentials");
        client.delete(&path, None).await.expect("deleted");
        wait_until(&mut second_leads, true).await;
        wait_until(&mut first_leads, false).await;
        wait_until(&mut leader, Some(address("10.0.0.2:5050"))).await;
        let start = now();
        second.resign().await;
        wait_until(&mut first_leads, true).await;
        assert!(start.elapsed() < SESSION, "takeover took {:?}", start.elapsed());
        wait_until(&mut leader, Some(address("10.0.0.1:5050"))).await;
        // The first master withdraws, as after the loss of its epoch, and is a candidate again.
        first.withdrawal().withdraw();
        wait_until(&mut first_leads, false).await;
        wait_until(&mut first_leads, true).await;
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn partitioned_leader_stops_leading_before_session_timeout() {
    let servers = Servers::start(1, TICK);
    let location = ensemble(&servers, "", "/overlay");
    runtime().block_on(async {
        let contender = start_contender(&location, "10.0.0.1:5050");
        let mut leads = contender.leading();
        wait_until(&mut leads, true).await;
        std::thread::scope(|scope| {
            scope.spawn(|| suspend(&servers, SESSION * 2));
            let start = now();
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(wait_until(&mut leads, false));
            });
            println!("the leader stopped leading after {:?} of {SESSION:?}", start.elapsed());
            assert!(start.elapsed() < SESSION, "{:?}", start.elapsed());
        });
        wait_until(&mut leads, true).await;
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn master_withdraws_when_mesos_master_is_candidate() {
    let servers = Servers::start(1, TICK);
    runtime().block_on(async {
        let client = client(&servers).await;
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.create("/mesos", b"", &open).await.expect("created");
        let contender = start_contender(&ensemble(&servers, "", "/mesos"), "10.0.0.1:5050");
        let mut leads = contender.leading();
        wait_until(&mut leads, true).await;
        // A Mesos master becomes a candidate after the leader. The leader must withdraw.
        let mesos_znode = announce(&client, "/mesos/json.info_", RECORDED).await;
        wait_until(&mut leads, false).await;
        let own_znode_is_deleted = async {
            while client.list_children("/mesos").await.expect("listed").len() > 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(TIMEOUT, own_znode_is_deleted).await.expect("the master deletes its znode");
        assert!(
            client.check_stat(&mesos_znode).await.expect("a readable path").is_some(),
            "the znode of Mesos was deleted"
        );
    });
}
