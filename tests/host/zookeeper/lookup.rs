//! The command line finds the leading master in an election on real servers.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use zookeeper_client::{Acls, Client, CreateMode};

use super::{SESSION, TICK, now, sleep};
use crate::ensemble::Servers;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");
const NETWORK: &str = include_str!("../../../docs/network.json");
/// Upper bound of a lookup, with the start of the program.
const LOOKUP_MAX: Duration = Duration::from_secs(15);
const TIMEOUT: Duration = Duration::from_secs(60);

struct Master(Child, String);

impl Master {
    fn start(dir: &Path, store: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        drop(listener);
        let session = format!("{}s", SESSION.as_secs());
        let child = Command::new(PROGRAM)
            .args(["master", "--config", "network.json", "--store", store])
            .args(["--listen", &address, "--zk-session-timeout", &session, "--log", "off"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .spawn()
            .expect("the program starts");
        Self(child, address)
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn state(master: &str) -> Output {
    let start = now();
    let mut command = Command::new(PROGRAM);
    let output = command.args(["state", "--master", master]).output().expect("the program starts");
    assert!(start.elapsed() < LOOKUP_MAX, "{:?}: {output:?}", start.elapsed());
    output
}

fn failure(master: &str) -> String {
    let output = state(master);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(!error.contains("secret"), "{error}");
    error
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn state_of_election_is_that_of_its_leader() {
    let servers = Servers::start(1, TICK);
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("network.json"), NETWORK).expect("a network file");
    let store = format!("zk://overlay:secret@{}/overlay", servers.addresses());
    let masters = [Master::start(dir.path(), &store), Master::start(dir.path(), &store)];
    let start = now();
    // Finding the leader needs no credentials.
    let public = format!("zk://{}/overlay", servers.addresses());
    let shown = loop {
        let output = state(&public);
        if output.status.success() {
            break String::from_utf8(output.stdout).expect("text");
        }
        assert!(start.elapsed() < TIMEOUT, "{output:?}");
        sleep(Duration::from_millis(100));
    };
    let leads = |master: &&Master| shown.contains(&format!("master {}: ok: 0 agents", master.1));
    assert_eq!(masters.iter().filter(leads).count(), 1, "{shown}");
    std::fs::write(dir.path().join("zk"), store + "\n").expect("a file");
    let file = format!("file://{}", dir.path().join("zk").display());
    assert_eq!(String::from_utf8(state(&file).stdout).expect("text"), shown);
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn election_without_leader_fails_with_reason() {
    let mut servers = Servers::start(1, TICK);
    let addresses = servers.addresses();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut connector = Client::connector();
        connector = connector.with_auth("digest", b"owner:password");
        let client = connector.connect(&addresses).await.expect("a client");
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.create("/empty", b"", &open).await.expect("created");
        client.create("/foreign", b"", &open).await.expect("created");
        client.create("/foreign/x_0000000001", b"hello", &open).await.expect("created");
        let owned = CreateMode::Persistent.with_acls(Acls::creator_all());
        client.create("/owned", b"", &owned).await.expect("created");
    });
    let start =
        |path: &str| format!("mesos-overlay: find the leading master at zk://{addresses}{path}: ");
    let find = |path: &str| failure(&format!("zk://{addresses}{path}"));
    assert_eq!(
        find("/nowhere"),
        start("/nowhere")
            + "/nowhere does not exist: no master has used this address: check its path\n"
    );
    assert_eq!(
        find("/empty"),
        start("/empty")
            + "no master leads: no candidate is at /empty: check that the masters run\n"
    );
    let foreign = find("/foreign");
    let reason = "no master leads: /foreign/x_0000000001 in the election is no master: it is not \
                  ephemeral, so that no process is behind it; its content is 'hello': find the \
                  client that created it, and delete it: ";
    assert!(foreign.starts_with(&(start("/foreign") + reason)), "{foreign}");
    assert_eq!(
        find("/owned"),
        start("/owned")
            + "/owned may not be used without credentials: write the user and the password that \
               created it, as in zk://USER:PASSWORD@HOST:PORT/PATH\n"
    );
    let wrong = failure(&format!("zk://owner:secret@{addresses}/owned"));
    assert!(wrong.contains("/owned may not be used with this user and password: "), "{wrong}");
    servers.kill(0);
    let unreachable = find("/empty");
    let reason = format!("no server of {addresses} answers within ");
    assert!(unreachable.starts_with(&(start("/empty") + &reason)), "{unreachable}");
}
