//! A state in ZooKeeper is exported and imported while a master leads. A reader sees complete
//! states only, also after an interrupted import.

use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlay_store::{Archive as _, Change, Store as _, ZooKeeperStore};
use overlay_types::addr::Ensemble;
use overlay_types::state::{Key, StoreError, Version};
use tempfile::TempDir;
use zookeeper_client::{Acls, Client, CreateMode};

use super::{SERVERS, SESSION, TICK, ensemble, sleep};
use crate::ensemble::Servers;

/// The recorded content of a Mesos master's znode in an election.
const RECORDED: &[u8] = include_bytes!("../../golden/zookeeper-json.info_0000000000");

fn open(address: &Ensemble) -> ZooKeeperStore {
    ZooKeeperStore::new(address.clone(), SESSION).expect("a store")
}

fn key(number: u32) -> Key {
    Key::Agent(Ipv4Addr::from(number))
}

fn command(dir: &TempDir, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesos-overlay"));
    command.current_dir(dir.path()).args(arguments.split(' ')).stdin(Stdio::null());
    command
}

fn run(dir: &TempDir, arguments: &str) -> Output {
    command(dir, arguments).output().expect("the program starts")
}

#[track_caller]
fn succeed(dir: &TempDir, arguments: &str) -> String {
    let output = run(dir, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8 output")
}

#[track_caller]
fn fail(dir: &TempDir, arguments: &str) -> String {
    let output = run(dir, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).expect("UTF-8 output")
}

/// Builds an exported state with so many agents that a commit needs several requests. Every agent
/// has an address of `net`.
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
fn readers_see_complete_states_during_commits() {
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
            // The loop also ends by itself, because a failed assertion below does not set
            // `is_done`.
            while !is_done.load(Ordering::SeqCst) && version < 120 {
                version += 1;
                let committed = master.commit(epoch, &batch(version));
                assert_eq!(committed, Ok(Version(version)), "the master lost its epoch");
                // A read on a busy machine must finish between two commits.
                sleep(Duration::from_secs(1));
            }
            version
        });
        let mut versions = Vec::new();
        // Read until at least one commit happened between two reads.
        let is_unchanged = |versions: &[u64]| versions.last() == versions.first();
        while versions.len() < 12 || is_unchanged(&versions) && !writer.is_finished() {
            let seen = open(&address).read_snapshot().expect("a readable store").expect("a state");
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
        let last = writer.join().expect("thread does not panic");
        println!("versions read: {versions:?}, last: {last}");
        assert!(versions.is_sorted() && !is_unchanged(&versions), "{versions:?}");
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn state_is_exported_and_imported_while_master_leads() {
    let servers = Servers::start(1, TICK);
    let (from, to) = (ensemble(&servers, "", "/from"), ensemble(&servers, "", "/to"));
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("state.json"), exported(10)).expect("written");
    let import =
        |store: &Ensemble| format!("import state.json --to {store} --zk-session-timeout 4s");
    let output = succeed(&dir, &import(&from));
    assert_eq!(output, format!("{from}: 8000 agents, 0 released, history of 0 (version 1)\n"));
    let mut master = open(&from);
    let loaded = master.load().expect("loaded");
    assert_eq!((loaded.version, loaded.records.len()), (Version(1), 8000));
    let output = succeed(&dir, &format!("export --from {from} --output moved.json"));
    let expected =
        format!("moved.json: 8000 agents, 0 released, history of 0 of {from} (version 1)\n");
    assert_eq!(output, expected);
    assert_eq!(master.commit(loaded.epoch, &[]), Ok(Version(2)), "the master lost its epoch");
    succeed(&dir, &format!("import moved.json --to {to}"));
    assert_eq!(open(&to).load().expect("loaded").records, loaded.records);
    succeed(&dir, &format!("export --from {to} --output again.json"));
    let output = fail(&dir, &import(&to));
    assert!(
        output.contains("holds a state: 8000 agents, 0 released, history of 0 (version 2): export"),
        "{output}"
    );

    // `--replace` overwrites the state, but is refused while masters stand for election.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let candidates = [("/to/json.info_0000000007", RECORDED), ("/to/json.info_0000000008", b"{}")];
    let client = runtime.block_on(async {
        let client = Client::connect(&to.servers()).await.expect("connected");
        let options = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        for (path, content) in candidates {
            client.create(path, content, &options).await.expect("created");
        }
        client
    });
    std::fs::write(dir.path().join("state.json"), exported(11)).expect("written");
    assert_eq!(
        fail(&dir, &format!("{} --replace", import(&to))),
        format!(
            "mesos-overlay: {to}: masters are running (127.0.0.1:5050, json.info_0000000008): stop \
             them all first; a killed master disappears after its session timeout\n"
        )
    );
    for (path, _) in candidates {
        runtime.block_on(client.delete(path, None)).expect("deleted");
    }
    succeed(&dir, &format!("{} --replace", import(&to)));
    let records = open(&to).load().expect("loaded").records;
    assert_eq!((records.len(), records[0].0), (8000, key(11 << 24 | 1)));
}

/// Number of imports that the test kills.
const ROUNDS: u32 = 16;

#[test]
#[ignore = "needs packages: tests/run host"]
fn killed_import_never_leaves_partial_state_as_valid() {
    let servers = Servers::start(1, TICK);
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("state.json"), exported(10)).expect("written");
    let (mut outcomes, mut limit) = ([0; 3], 1500);
    for round in 0..ROUNDS {
        let address = ensemble(&servers, "", &format!("/killed-{round}"));
        let arguments = format!("import state.json --to {address}");
        let child = command(&dir, &arguments).stdout(Stdio::null()).spawn();
        let mut child = child.expect("the program starts");
        sleep(Duration::from_millis(fastrand::u64(0..=limit)));
        child.kill().expect("killed");
        child.wait().expect("ended");
        // ZooKeeper may still execute requests that were sent before the kill.
        sleep(Duration::from_millis(200));
        let seen = open(&address).read_snapshot().expect("a readable store");
        // Adapt the delay, so that the kills happen around the end of an import on any machine.
        limit = if seen.is_some() { limit / 2 } else { limit * 3 / 2 + 10 };
        match (seen, open(&address).load()) {
            (Some(seen), Ok(loaded)) => {
                assert_eq!((seen.records.len(), loaded.records.len()), (8000, 8000));
                outcomes[2] += 1;
            }
            (None, Err(StoreError::Failed { reason, .. })) => {
                let root = format!("{}/state", address.path());
                assert_eq!(
                    reason,
                    format!(
                        "the state at {root} is incomplete, because an import into it was \
                         interrupted: import it again; or remove it (`deleteall {root}`): the \
                         masters then start with an empty state"
                    )
                );
                assert!(fail(&dir, &format!("export --from {address}")).contains("not finished"));
                succeed(&dir, &arguments);
                assert_eq!(open(&address).load().expect("loaded").records.len(), 8000);
                outcomes[1] += 1;
            }
            // The kill came before the import created anything.
            (None, Ok(loaded)) => {
                assert_eq!(
                    (loaded.epoch.0, loaded.version, loaded.records.len()),
                    (1, Version(0), 0)
                );
                outcomes[0] += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    println!("empty {}, unfinished {}, complete {}", outcomes[0], outcomes[1], outcomes[2]);
    assert!(outcomes[2] < ROUNDS, "every import finished before its kill");
}
