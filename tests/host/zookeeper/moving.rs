//! A state in ZooKeeper is looked at while a master leads, and imported: what is seen is whole, and
//! so is what an interrupted import leaves.

use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesos_network_overlay::addr::Ensemble;
use mesos_network_overlay::store::{
    Archive as _, Change, Key, Store as _, StoreError, Version, ZooKeeperStore,
};
use tempfile::TempDir;
use zookeeper_client::{Acls, Client, CreateMode};

use super::{SERVERS, SESSION, TICK, ensemble, pause};
use crate::ensemble::Servers;

/// What a master wrote to stand for election.
const RECORDED: &[u8] = include_bytes!("../../golden/zookeeper-json.info_0000000000");

fn open(address: &Ensemble) -> ZooKeeperStore {
    ZooKeeperStore::new(address.clone(), SESSION).expect("a store")
}

fn key(number: u32) -> Key {
    Key::Agent(Ipv4Addr::from(number))
}

fn command(place: &TempDir, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesos-overlay"));
    command.current_dir(place.path()).args(arguments.split(' ')).stdin(Stdio::null());
    command
}

fn run(place: &TempDir, arguments: &str) -> Output {
    command(place, arguments).output().expect("it runs")
}

#[track_caller]
fn succeed(place: &TempDir, arguments: &str) -> String {
    let output = run(place, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
fn fail(place: &TempDir, arguments: &str) -> String {
    let output = run(place, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// As many agents as need a commit in parts, each with an address of `net`.
fn exported(net: u8) -> String {
    let agent = |number: u32| {
        let [_, b, c, d] = number.to_be_bytes();
        format!(
            r#"{{"ip":"{net}.{b}.{c}.{d}","vtep_ip":"44.{b}.{c}.{d}","allocate_subnet":true,"mesos_bridge":true,"docker_bridge":true}}"#
        )
    };
    let agents: Vec<String> = (1..=8000).map(agent).collect();
    format!(
        r#"{{"form":"mesos-overlay state","form_version":1,"agents":[{}],"released":[],"history":[],"bytes":[],"unknown":[]}}"#,
        agents.join(",")
    )
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn what_is_seen_while_a_master_commits_is_whole() {
    let servers = Servers::start(SERVERS, TICK);
    let address = ensemble(&servers, "", "/seen");
    let mut master = open(&address);
    let epoch = master.load().expect("loaded").epoch;
    let is_done = AtomicBool::new(false);
    let batch = |number: u64| -> Vec<Change> {
        let bytes = number.to_string().repeat(40).into_bytes();
        (0..3000).map(|agent| Change::Put(key(agent), bytes.clone())).collect()
    };
    master.commit(epoch, &batch(1)).expect("committed");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut version = 1;
            // It ends by itself, too: nobody tells it where a look was not as it should be.
            while !is_done.load(Ordering::SeqCst) && version < 120 {
                version += 1;
                let committed = master.commit(epoch, &batch(version));
                assert_eq!(committed, Ok(Version(version)), "it still leads");
                // Long enough for a look on a machine that is busy.
                pause(Duration::from_secs(1));
            }
            version
        });
        let mut versions = Vec::new();
        // Until something was committed in between.
        let is_still = |versions: &[u64]| versions.last() == versions.first();
        while versions.len() < 12 || is_still(&versions) && !writer.is_finished() {
            let seen = open(&address).look().expect("a look").expect("there is a state");
            let expected = seen.counts.version.to_string().repeat(40).into_bytes();
            assert_eq!((seen.counts.epoch, seen.records.len()), (epoch.0, 3000));
            assert!(
                seen.records.iter().all(|(_, bytes)| *bytes == expected),
                "{}",
                seen.counts.version
            );
            versions.push(seen.counts.version);
        }
        is_done.store(true, Ordering::SeqCst);
        let last = writer.join().expect("it wrote");
        println!("seen {versions:?} of {last}");
        assert!(versions.is_sorted() && !is_still(&versions), "{versions:?}");
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn a_state_moves_while_its_master_leads() {
    let servers = Servers::start(1, TICK);
    let (from, to) = (ensemble(&servers, "", "/from"), ensemble(&servers, "", "/to"));
    let place = tempfile::tempdir().expect("a directory");
    std::fs::write(place.path().join("state.json"), exported(10)).expect("written");
    let import =
        |store: &Ensemble| format!("import state.json --to {store} --zk-session-timeout 4s");
    let said = succeed(&place, &import(&from));
    assert_eq!(said, format!("{from}: 8000 agents, 0 released, history of 0 (version 1)\n"));
    let mut master = open(&from);
    let loaded = master.load().expect("loaded");
    assert_eq!((loaded.version, loaded.records.len()), (Version(1), 8000));
    let said = succeed(&place, &format!("export --from {from} -o moved.json"));
    let what = format!("moved.json: 8000 agents, 0 released, history of 0 of {from} (version 1)\n");
    assert_eq!(said, what);
    assert_eq!(master.commit(loaded.epoch, &[]), Ok(Version(2)), "it still leads");
    succeed(&place, &format!("import moved.json --to {to}"));
    assert_eq!(open(&to).load().expect("loaded").records, loaded.records);
    succeed(&place, &format!("export --from {to} -o again.json"));
    let said = fail(&place, &import(&to));
    assert!(
        said.contains("holds a state: 8000 agents, 0 released, history of 0 (version 2): export"),
        "{said}"
    );

    // Another one replaces it, and not while a master stands for election.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("one");
    let candidates = [("/to/json.info_0000000007", RECORDED), ("/to/json.info_0000000008", b"{}")];
    let client = runtime.block_on(async {
        let client = Client::connect(&to.servers()).await.expect("connected");
        let options = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        for (path, content) in candidates {
            client.create(path, content, &options).await.expect("made");
        }
        client
    });
    std::fs::write(place.path().join("state.json"), exported(11)).expect("written");
    assert_eq!(
        fail(&place, &format!("{} --replace", import(&to))),
        format!(
            "mesos-overlay: {to}: masters are running (127.0.0.1:5050, json.info_0000000008): stop \
             them all first; who was killed is gone after its session timeout\n"
        )
    );
    for (path, _) in candidates {
        runtime.block_on(client.delete(path, None)).expect("gone");
    }
    succeed(&place, &format!("{} --replace", import(&to)));
    let records = open(&to).load().expect("loaded").records;
    assert_eq!((records.len(), records[0].0), (8000, key(11 << 24 | 1)));
}

/// How many imports are killed.
const ROUNDS: u32 = 16;

#[test]
#[ignore = "needs packages: tests/run host"]
fn an_import_that_is_killed_leaves_no_state_that_looks_whole() {
    let servers = Servers::start(1, TICK);
    let place = tempfile::tempdir().expect("a directory");
    std::fs::write(place.path().join("state.json"), exported(10)).expect("written");
    let (mut found, mut limit) = ([0; 3], 1500);
    for round in 0..ROUNDS {
        let address = ensemble(&servers, "", &format!("/killed-{round}"));
        let arguments = format!("import state.json --to {address}");
        let child = command(&place, &arguments).stdout(Stdio::null()).spawn();
        let mut child = child.expect("it runs");
        pause(Duration::from_millis(fastrand::u64(0..=limit)));
        child.kill().expect("killed");
        child.wait().expect("ended");
        // What was sent may still be carried out.
        pause(Duration::from_millis(200));
        let seen = open(&address).look().expect("a look");
        // So the kills come to be around the moment at which it is done, however fast that is.
        limit = if seen.is_some() { limit / 2 } else { limit * 3 / 2 + 10 };
        match (seen, open(&address).load()) {
            (Some(seen), Ok(loaded)) => {
                assert_eq!((seen.records.len(), loaded.records.len()), (8000, 8000));
                found[2] += 1;
            }
            (None, Err(StoreError::Failed { reason, .. })) => {
                let root = format!("{}/state", address.path());
                assert_eq!(
                    reason,
                    format!(
                        "the state at {root} is not whole, since an import into it was interrupted: \
                         import it again; or remove it (`deleteall {root}`), which begins with an \
                         empty plan that knows no agent"
                    )
                );
                assert!(fail(&place, &format!("export --from {address}")).contains("not finished"));
                succeed(&place, &arguments);
                assert_eq!(open(&address).load().expect("loaded").records.len(), 8000);
                found[1] += 1;
            }
            // Nothing was made before it was killed.
            (None, Ok(loaded)) => {
                assert_eq!(
                    (loaded.epoch.0, loaded.version, loaded.records.len()),
                    (1, Version(0), 0)
                );
                found[0] += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    println!("nothing {}, unfinished {}, whole {}", found[0], found[1], found[2]);
    assert!(found[2] < ROUNDS, "none was killed in time");
}
