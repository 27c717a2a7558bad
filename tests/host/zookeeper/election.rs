//! The election: agents that follow it, masters that stand for it, and masters of Mesos among them.

use std::net::SocketAddrV4;
use std::time::Duration;

use mesos_network_overlay::addr::Ensemble;
use mesos_network_overlay::detector::{Contender, Watched, follow};
use mesos_network_overlay::warnings::Warnings;
use mesos_network_overlay::wire::decode_candidate;
use tokio::runtime::Runtime;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;
use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::{SESSION, TICK, ensemble, now, suspend};
use crate::ensemble::Servers;

/// What a master of Mesos wrote.
const RECORDED: &[u8] = include_bytes!("../../golden/zookeeper-json.info_0000000000");

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

pub(super) fn address(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address")
}

/// Who leads, as an agent without credentials sees it.
fn followed(servers: &Servers, path: &str) -> Receiver<Option<SocketAddrV4>> {
    let (leader, work) = follow(ensemble(servers, "", path), SESSION, Warnings::new());
    tokio::spawn(async move { match work.await {} });
    leader
}

pub(super) async fn client(servers: &Servers) -> Client {
    Client::connect(&servers.addresses()).await.expect("a client")
}

/// Makes a znode whose name ends in the next number, and returns its path.
async fn announce(client: &Client, prefix: &str, data: &[u8]) -> String {
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let (_, number) = client.create(prefix, data, &options).await.expect("made");
    format!("{prefix}{number}")
}

pub(super) async fn until<T: Clone + PartialEq + std::fmt::Debug>(
    receiver: &mut Receiver<T>,
    wanted: T,
) {
    let waiting = timeout(PATIENCE, receiver.wait_for(|value| *value == wanted)).await;
    assert!(matches!(waiting, Ok(Ok(_))), "{wanted:?} does not come");
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn an_agent_follows_the_masters_of_mesos() {
    let mut servers = Servers::start(1, TICK);
    runtime().block_on(async {
        let mut leader = followed(&servers, "/mesos");
        let client = client(&servers).await;
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        // Nobody is there, not even the path.
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.create("/mesos", b"", &open).await.expect("made");
        client.create("/mesos/log_replicas", b"", &open).await.expect("made");
        assert_eq!(*leader.borrow(), None);
        let first = announce(&client, "/mesos/json.info_", RECORDED).await;
        until(&mut leader, Some(address("127.0.0.1:5050"))).await;
        // Older ones, behind the first.
        let mut second = address("10.0.0.2:5052").to_string();
        second.insert_str(0, "master@");
        announce(&client, "/mesos/", second.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(*leader.borrow(), Some(address("127.0.0.1:5050")), "the first one leads");
        client.delete(&first, None).await.expect("deleted");
        until(&mut leader, Some(address("10.0.0.2:5052"))).await;
        drop(client);
        // Its session has ended with it.
        until(&mut leader, None).await;
    });
    // The last leader stays while nobody can be asked, and then whoever is there is found.
    runtime().block_on(async {
        let mut leader = followed(&servers, "/mesos");
        let first = client(&servers).await;
        announce(&first, "/mesos/json.info_", RECORDED).await;
        until(&mut leader, Some(address("127.0.0.1:5050"))).await;
        servers.kill(0);
        tokio::time::sleep(SESSION * 2).await;
        assert_eq!(*leader.borrow(), Some(address("127.0.0.1:5050")));
        servers.restart(0);
        servers.wait_until_serving();
        until(&mut leader, None).await;
        let second = client(&servers).await;
        announce(&second, "/mesos/json.info_", RECORDED).await;
        until(&mut leader, Some(address("127.0.0.1:5050"))).await;
    });
}

fn stand(ensemble: &Ensemble, at: &str) -> Contender {
    let watched = Watched { state: Vec::new(), warnings: Warnings::new() };
    Contender::start(ensemble.clone(), SESSION, address(at), watched)
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn one_master_leads_and_the_next_one_follows() {
    let servers = Servers::start(1, TICK);
    let place = ensemble(&servers, "overlay:secret@", "/overlay");
    runtime().block_on(async {
        let first = stand(&place, "10.0.0.1:5050");
        let mut first_leads = first.leading();
        until(&mut first_leads, true).await;
        let second = stand(&place, "10.0.0.2:5050");
        let mut second_leads = second.leading();
        // Whoever follows needs no credentials, and what he reads has the form of Mesos.
        let mut leader = followed(&servers, "/overlay");
        until(&mut leader, Some(address("10.0.0.1:5050"))).await;
        let client = client(&servers).await;
        let names = client.list_children("/overlay").await.expect("listed");
        let name = names.iter().min().expect("one is there");
        assert_eq!(name.len(), "json.info_0000000000".len(), "{name}");
        let (content, _) = client.get_data(&format!("/overlay/{name}")).await.expect("read");
        let candidate = decode_candidate("json.info", &content).expect("a candidate");
        assert_eq!(candidate.address, address("10.0.0.1:5050"));
        let path = format!("/overlay/{name}");
        assert_eq!(client.delete(&path, None).await, Err(Error::NoAuth), "a stranger may not");
        // It is removed: it stands anew, behind the second.
        client.auth("digest", b"overlay:secret").await.expect("credentials");
        client.delete(&path, None).await.expect("deleted");
        until(&mut second_leads, true).await;
        until(&mut first_leads, false).await;
        until(&mut leader, Some(address("10.0.0.2:5050"))).await;
        let start = now();
        second.resign().await;
        until(&mut first_leads, true).await;
        assert!(start.elapsed() < SESSION, "at once: {:?}", start.elapsed());
        until(&mut leader, Some(address("10.0.0.1:5050"))).await;
        // Another one has the state, whatever the election says.
        first.withdrawal().withdraw();
        until(&mut first_leads, false).await;
        until(&mut first_leads, true).await;
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn a_master_that_zookeeper_does_not_hear_of_stops_leading_in_time() {
    let servers = Servers::start(1, TICK);
    let place = ensemble(&servers, "", "/overlay");
    runtime().block_on(async {
        let contender = stand(&place, "10.0.0.1:5050");
        let mut leads = contender.leading();
        until(&mut leads, true).await;
        std::thread::scope(|scope| {
            scope.spawn(|| suspend(&servers, SESSION * 2));
            let start = now();
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(until(&mut leads, false));
            });
            println!("it stopped leading after {:?} of {SESSION:?}", start.elapsed());
            assert!(start.elapsed() < SESSION, "{:?}", start.elapsed());
        });
        until(&mut leads, true).await;
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn nobody_competes_with_masters_of_mesos() {
    let servers = Servers::start(1, TICK);
    runtime().block_on(async {
        let client = client(&servers).await;
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.create("/mesos", b"", &open).await.expect("made");
        let contender = stand(&ensemble(&servers, "", "/mesos"), "10.0.0.1:5050");
        let mut leads = contender.leading();
        until(&mut leads, true).await;
        // One comes later, which is as bad.
        let mesos = announce(&client, "/mesos/json.info_", RECORDED).await;
        until(&mut leads, false).await;
        let ours_is_gone = async {
            while client.list_children("/mesos").await.expect("listed").len() > 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, ours_is_gone).await.expect("ours is removed");
        assert!(client.check_stat(&mesos).await.expect("asked").is_some(), "theirs is not");
    });
}
