//! What strangers can do to an election and a state in ZooKeeper, and that masters and agents warn
//! of it until it has ended.

use std::net::SocketAddrV4;
use std::time::Duration;

use mesos_network_overlay::addr::Ensemble;
use mesos_network_overlay::detector::{Contender, Watched, follow};
use mesos_network_overlay::store::{Store as _, ZooKeeperStore};
use mesos_network_overlay::warnings::Warnings;
use tokio::sync::watch::Receiver;
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission};

use super::election::{PATIENCE, address, client, runtime, until};
use super::{SESSION, TICK, ensemble};
use crate::ensemble::Servers;

/// A master, or an agent if `master` is `None`, and what it warns of.
struct Participant {
    master: Option<Contender>,
    leader: Option<Receiver<Option<SocketAddrV4>>>,
    warnings: Warnings,
}

impl Participant {
    fn master(place: &Ensemble) -> Self {
        let warnings = Warnings::new();
        let state = ZooKeeperStore::new(place.clone(), SESSION).expect("a store").znodes();
        let watched = Watched { state, warnings: warnings.clone() };
        let master = Contender::start(place.clone(), SESSION, address("10.0.0.1:5050"), watched);
        Self { master: Some(master), leader: None, warnings }
    }

    fn agent(place: &Ensemble) -> Self {
        let warnings = Warnings::new();
        let (leader, work) = follow(place.clone(), SESSION, warnings.clone());
        tokio::spawn(async move { match work.await {} });
        Self { master: None, leader: Some(leader), warnings }
    }

    fn leading(&self) -> Receiver<bool> {
        self.master.as_ref().expect("it is a master").leading()
    }

    /// Waits until there is one warning, and returns it.
    async fn warning(&self) -> String {
        let mut changes = self.warnings.subscribe();
        let waiting = changes.wait_for(|warnings| !warnings.is_empty());
        let warnings = tokio::time::timeout(PATIENCE, waiting).await;
        let warnings = warnings.expect("a warning comes").expect("it is watched").clone();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        warnings.into_values().next().expect("there is one")
    }

    async fn no_warning(&self) {
        let mut changes = self.warnings.subscribe();
        let waiting = changes.wait_for(std::collections::BTreeMap::is_empty);
        let ended = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(ended.is_ok(), "{:?}", self.warnings.texts());
    }
}

/// Makes the state, as a master does.
async fn load(place: &Ensemble) {
    let mut store = ZooKeeperStore::new(place.clone(), SESSION).expect("a store");
    let loading = tokio::task::spawn_blocking(move || store.load().map(drop));
    loading.await.expect("it does not panic").expect("loaded");
}

/// What `setAcl -R` does.
async fn set_acl_below(client: &Client, root: &str, acl: &[Acl]) {
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        client.set_acl(&path, acl, None).await.expect("set");
        let children = client.list_children(&path).await.expect("listed");
        paths.extend(children.into_iter().map(|name| format!("{path}/{name}")));
    }
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn open_path_is_warned_of_until_its_access_list_is_set() {
    let servers = Servers::start(1, TICK);
    let (open, owned) =
        (ensemble(&servers, "", "/open"), ensemble(&servers, "overlay:secret@", "/open"));
    runtime().block_on(async {
        load(&open).await;
        let master = Participant::master(&open);
        let start = "ZooKeeper: anybody (world:anyone) may create, write, delete, change access \
                     lists at /open (likewise at 261 more places below), and so can end leadership";
        let text = master.warning().await;
        assert!(text.starts_with(start), "{text}");
        let agent = Participant::agent(&open);
        let text = agent.warning().await;
        let start = "ZooKeeper: anybody (world:anyone) may create, write, delete, change access \
                     lists at /open, and so can lead agents to a false master";
        assert!(text.starts_with(start), "{text}");
        drop((master, agent));
        // Credentials alone do not close what was made without.
        let master = Participant::master(&owned);
        let text = master.warning().await;
        assert!(text.contains("(world:anyone)") && !text.contains("secret"), "{text}");
        drop(master);
        // What the warning says is to be done.
        let operator = client(&servers).await;
        operator.auth("digest", b"overlay:secret").await.expect("credentials");
        let owner = Acl::new(Permission::ALL, AuthId::authed());
        set_acl_below(&operator, "/open/state", std::slice::from_ref(&owner)).await;
        let reader = Acl::new(Permission::READ, AuthId::anyone());
        operator.set_acl("/open", &[owner, reader], None).await.expect("set");
        let master = Participant::master(&owned);
        until(&mut master.leading(), true).await;
        load(&owned).await;
        let mut agent = Participant::agent(&open);
        let leader = agent.leader.as_mut().expect("it follows");
        until(leader, Some(address("10.0.0.1:5050"))).await;
        tokio::time::sleep(SESSION).await;
        assert_eq!((master.warnings.texts(), agent.warnings.texts()), (vec![], vec![]));
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn other_user_who_may_write_is_named_without_hash() {
    let servers = Servers::start(1, TICK);
    let place = ensemble(&servers, "overlay:secret@", "/shared");
    runtime().block_on(async {
        load(&place).await;
        let master = Participant::master(&place);
        until(&mut master.leading(), true).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(master.warnings.texts(), [""; 0], "its own user is no stranger");
        drop(master);
        let operator = client(&servers).await;
        operator.auth("digest", b"overlay:secret").await.expect("credentials");
        let path = "/shared/state/head";
        let (mut acls, _) = operator.get_acl(path).await.expect("read");
        acls.push(Acl::new(Permission::WRITE, AuthId::new("digest", "evil:aGFzaA==")));
        operator.set_acl(path, &acls, None).await.expect("set");
        let master = Participant::master(&place);
        let text = master.warning().await;
        let start = "ZooKeeper: digest:evil may write at /shared/state/head, and so can end";
        assert!(text.starts_with(start), "{text}");
        assert!(!text.contains("aGFzaA") && !text.contains("secret"), "{text}");
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn foreign_candidate_is_named_until_it_is_deleted() {
    let servers = Servers::start(1, TICK);
    let place = ensemble(&servers, "overlay:secret@", "/rogue");
    let content = br#"{"address":{"ip":"10.6.6.6","port":5050},"id":"x","ip":0,"port":5050}"#;
    runtime().block_on(async {
        let operator = client(&servers).await;
        operator.auth("digest", b"overlay:secret").await.expect("credentials");
        let owner = Acl::new(Permission::ALL, AuthId::authed());
        let reader = Acl::new(Permission::READ, AuthId::anyone());
        let path_acl = [owner, reader];
        let made = CreateMode::Persistent.with_acls(Acls::new(&path_acl));
        operator.create("/rogue", b"", &made).await.expect("made");
        // Persistent, and the first: it would end leadership for ever without a word.
        let rogue = "/rogue/json.info_-000000001";
        operator.create(rogue, content, &made).await.expect("made");
        let master = Participant::master(&place);
        let fault = format!(
            "{rogue} in the election is no master: it is not ephemeral, so that no process is \
             behind it; its content is '{{\\\"address\\\":{{\\\"ip\\\":\\\"10.6.6.6\\\""
        );
        let text = master.warning().await;
        assert!(text.starts_with(&fault), "{text}");
        let effect = format!(
            "it comes first, so that no master can lead, and agents follow it: find out who made \
             it, and delete it: in zkCli.sh, `delete {rogue}` (after `addauth"
        );
        assert!(text.contains(&effect), "{text}");
        assert!(!*master.leading().borrow());
        let mut agent = Participant::agent(&ensemble(&servers, "", "/rogue"));
        let text = agent.warning().await;
        assert!(text.starts_with(&fault), "{text}");
        assert!(text.contains("agents take it for the leading master"), "{text}");
        operator.delete(rogue, None).await.expect("deleted");
        until(&mut master.leading(), true).await;
        master.no_warning().await;
        let leader = agent.leader.as_mut().expect("it follows");
        until(leader, Some(address("10.0.0.1:5050"))).await;
        agent.no_warning().await;
        // Behind the leader, and nonsense: the master goes on, and says so.
        let later = "/rogue/x_2147483000";
        operator.create(later, b"\xff\n", &made).await.expect("made");
        let text = master.warning().await;
        assert!(
            text.contains("it will be followed when the masters before it have gone"),
            "{text}"
        );
        assert!(*master.leading().borrow());
        operator.delete(later, None).await.expect("deleted");
        master.no_warning().await;
        assert_eq!(agent.warnings.texts(), [""; 0]);
    });
}
