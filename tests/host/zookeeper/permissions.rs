//! Insecure access lists and foreign candidates in ZooKeeper: masters and agents warn until the
//! operator has fixed the access lists or deleted the candidates.

use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_store::{Store as _, ZooKeeperStore};
use overlay_types::addr::Ensemble;
use overlay_types::warnings::Warnings;
use overlay_zookeeper::detector::{Contender, ElectionWarnings, follow_election};
use tokio::sync::watch::Receiver;
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission};

use super::election::{TIMEOUT, address, client, runtime, wait_until};
use super::{SESSION, TICK, ensemble};
use crate::ensemble::Servers;

/// A master, or an agent if `master` is `None`, with its warnings.
struct Participant {
    master: Option<Contender>,
    leader: Option<Receiver<Option<SocketAddrV4>>>,
    warnings: Warnings,
}

impl Participant {
    fn master(location: &Ensemble) -> Self {
        let warnings = Warnings::new();
        let state = ZooKeeperStore::new(location.clone(), SESSION).expect("a store").znodes();
        let watched = ElectionWarnings { state, warnings: warnings.clone() };
        let election = (location.clone(), SESSION);
        let master = Contender::start(election, address("10.0.0.1:5050"), watched, None);
        let master = master.expect("a thread");
        Self { master: Some(master), leader: None, warnings }
    }

    fn agent(location: &Ensemble) -> Self {
        let warnings = Warnings::new();
        let (election, work) = follow_election(location.clone(), SESSION, warnings.clone());
        tokio::spawn(async move { match work.await {} });
        Self { master: None, leader: Some(election.leader), warnings }
    }

    fn leading(&self) -> Receiver<bool> {
        self.master.as_ref().expect("a master").leading()
    }

    /// Waits for a single warning, and returns its text.
    async fn wait_for_warning(&self) -> String {
        self.wait_for(|texts| !texts.is_empty()).await;
        let texts = self.warnings.texts();
        assert_eq!(texts.len(), 1, "{texts:?}");
        texts.into_iter().next().expect("a warning")
    }

    async fn wait_for_no_warning(&self) {
        self.wait_for(<[String]>::is_empty).await;
    }

    /// Waits until the texts of all warnings satisfy `is_expected`.
    async fn wait_for(&self, is_expected: impl Fn(&[String]) -> bool) {
        let poll = async {
            while !is_expected(&self.warnings.texts()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let reached = tokio::time::timeout(TIMEOUT, poll).await;
        assert!(reached.is_ok(), "{:?}", self.warnings.texts());
    }
}

/// Creates the state, as a master does.
async fn create_state(location: &Ensemble) {
    let mut store = ZooKeeperStore::new(location.clone(), SESSION).expect("a store");
    let loading = tokio::task::spawn_blocking(move || store.load().map(drop));
    loading.await.expect("thread does not panic").expect("loaded");
}

/// Sets an access list recursively, as `setAcl -R` does.
async fn set_acl_below(client: &Client, root: &str, acl: &[Acl]) {
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        client.set_acl(&path, acl, None).await.expect("access list set");
        let children = client.list_children(&path).await.expect("listed");
        paths.extend(children.into_iter().map(|name| format!("{path}/{name}")));
    }
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn open_path_is_warned_until_access_list_is_set() {
    let servers = Servers::start(1, TICK);
    let (open, owned) =
        (ensemble(&servers, "", "/open"), ensemble(&servers, "overlay:secret@", "/open"));
    runtime().block_on(async {
        create_state(&open).await;
        let master = Participant::master(&open);
        let start = "ZooKeeper: anybody (world:anyone) may create, write, delete, change access \
                     lists at /open (likewise at 261 more places below), and so can end leadership";
        let text = master.wait_for_warning().await;
        assert!(text.starts_with(start), "{text}");
        let agent = Participant::agent(&open);
        let text = agent.wait_for_warning().await;
        let start = "ZooKeeper: anybody (world:anyone) may create, write, delete, change access \
                     lists at /open, and so can lead agents to a false master";
        assert!(text.starts_with(start), "{text}");
        drop((master, agent));
        // Credentials alone do not protect znodes that were created without credentials.
        let master = Participant::master(&owned);
        let text = master.wait_for_warning().await;
        assert!(text.contains("(world:anyone)") && !text.contains("secret"), "{text}");
        drop(master);
        // Follow the remedy of the warning.
        let operator = client(&servers).await;
        operator.auth("digest", b"overlay:secret").await.expect("accepted credentials");
        let owner = Acl::new(Permission::ALL, AuthId::authed());
        set_acl_below(&operator, "/open/state", std::slice::from_ref(&owner)).await;
        let reader = Acl::new(Permission::READ, AuthId::anyone());
        operator.set_acl("/open", &[owner, reader], None).await.expect("access list set");
        let master = Participant::master(&owned);
        wait_until(&mut master.leading(), true).await;
        create_state(&owned).await;
        let mut agent = Participant::agent(&open);
        let leader = agent.leader.as_mut().expect("agent follows the leader");
        wait_until(leader, Some(address("10.0.0.1:5050"))).await;
        tokio::time::sleep(SESSION).await;
        assert_eq!((master.warnings.texts(), agent.warnings.texts()), (vec![], vec![]));
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn other_user_with_write_access_is_named_without_hash() {
    let servers = Servers::start(1, TICK);
    let location = ensemble(&servers, "overlay:secret@", "/shared");
    runtime().block_on(async {
        create_state(&location).await;
        let master = Participant::master(&location);
        wait_until(&mut master.leading(), true).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(master.warnings.texts(), [""; 0], "a warning about the master's own user");
        drop(master);
        let operator = client(&servers).await;
        operator.auth("digest", b"overlay:secret").await.expect("accepted credentials");
        let path = "/shared/state/head";
        let (mut acls, _) = operator.get_acl(path).await.expect("readable znode");
        acls.push(Acl::new(Permission::WRITE, AuthId::new("digest", "evil:aGFzaA==")));
        operator.set_acl(path, &acls, None).await.expect("access list set");
        let master = Participant::master(&location);
        let text = master.wait_for_warning().await;
        let start = "ZooKeeper: digest:evil may write at /shared/state/head, and so can end";
        assert!(text.starts_with(start), "{text}");
        assert!(!text.contains("aGFzaA") && !text.contains("secret"), "{text}");
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn foreign_candidate_is_named_until_it_is_deleted() {
    let servers = Servers::start(1, TICK);
    let location = ensemble(&servers, "overlay:secret@", "/rogue");
    let content = br#"{"address":{"ip":"10.6.6.6","port":5050},"id":"x","ip":0,"port":5050}"#;
    runtime().block_on(async {
        let operator = client(&servers).await;
        operator.auth("digest", b"overlay:secret").await.expect("accepted credentials");
        let owner = Acl::new(Permission::ALL, AuthId::authed());
        let reader = Acl::new(Permission::READ, AuthId::anyone());
        let path_acl = [owner, reader];
        let persistent = CreateMode::Persistent.with_acls(Acls::new(&path_acl));
        operator.create("/rogue", b"", &persistent).await.expect("created");
        // A persistent znode in first place takes no part in the election.
        let rogue = "/rogue/json.info_-000000001";
        operator.create(rogue, content, &persistent).await.expect("created");
        let master = Participant::master(&location);
        let fault = format!(
            "{rogue} in the election is no master: it is not ephemeral, so that no process is \
             behind it; its content is '{{\\\"address\\\":{{\\\"ip\\\":\\\"10.6.6.6\\\""
        );
        let text = master.wait_for_warning().await;
        assert!(text.starts_with(&fault), "{text}");
        let effect = format!(
            "masters and agents of this program ignore it, and agents with the C++ modules may \
             follow it: find the client that created it, and delete it: in zkCli.sh, `delete \
             {rogue}` (after `addauth"
        );
        assert!(text.contains(&effect), "{text}");
        wait_until(&mut master.leading(), true).await;
        let mut agent = Participant::agent(&ensemble(&servers, "", "/rogue"));
        let text = agent.wait_for_warning().await;
        assert!(text.starts_with(&fault), "{text}");
        assert!(text.contains(&effect), "{text}");
        let leader = agent.leader.as_mut().expect("agent follows the leader");
        wait_until(leader, Some(address("10.0.0.1:5050"))).await;
        operator.delete(rogue, None).await.expect("deleted");
        wait_until(&mut master.leading(), true).await;
        master.wait_for_no_warning().await;
        let leader = agent.leader.as_mut().expect("agent follows the leader");
        wait_until(leader, Some(address("10.0.0.1:5050"))).await;
        agent.wait_for_no_warning().await;
        // Garbage behind the leader: the master continues to lead, and warns.
        let later = "/rogue/x_2147483000";
        let ephemeral = CreateMode::Ephemeral.with_acls(Acls::new(&path_acl));
        operator.create(later, b"\xff\n", &ephemeral).await.expect("created");
        let text = master.wait_for_warning().await;
        assert!(text.contains("agents follow it when the masters before it are gone"), "{text}");
        assert!(*master.leading().borrow());
        operator.delete(later, None).await.expect("deleted");
        master.wait_for_no_warning().await;
        assert_eq!(agent.warnings.texts(), [""; 0]);
    });
}
