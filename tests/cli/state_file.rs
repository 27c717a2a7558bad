//! The state file of a running master is removed, replaced or overwritten, and commands that only
//! read a state.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread::park_timeout;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Master, RunningProcess, TestDir, start_agent};

/// The health reports a lost state within this time, also without a commit.
const DETECTION_MAX: Duration = Duration::from_secs(10);
/// Interval between two requests for the health.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Returns the body of a GET request.
pub(crate) fn get(master: SocketAddrV4, path: &str) -> String {
    let mut stream = TcpStream::connect(master).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Waits until the health has this status, and returns the first problem.
#[track_caller]
fn wait_for_status(master: &Master, status: &str) -> String {
    let mut waited = Duration::ZERO;
    loop {
        let health: Value =
            serde_json::from_str(&get(master.address, "/overlay-master/health")).unwrap();
        if health["status"] == status {
            return health["problems"][0].as_str().unwrap_or_default().to_owned();
        }
        assert!(waited < DETECTION_MAX, "not {status}: {health}");
        park_timeout(POLL_INTERVAL);
        waited += POLL_INTERVAL;
    }
}

/// A master with one agent that has stored addresses.
struct Cluster {
    dir: TestDir,
    master: Master,
    agent: RunningProcess,
}

impl Cluster {
    fn start() -> Self {
        let dir = TestDir::with_network();
        let master = Master::start(&dir);
        let mut agent = start_agent(&dir, master.address, "127.0.0.2");
        agent.expect_log("registered with the master");
        Self { dir, master, agent }
    }

    fn state_file(&self) -> PathBuf {
        self.dir.path("work/overlay-master.redb")
    }

    /// Checks that the master reports the loss of the state, and that no other master can start.
    #[track_caller]
    fn expect_failed(&self, reason: &str) {
        let problem = wait_for_status(&self.master, "failed");
        assert!(problem.contains(reason), "{problem}");
        assert!(problem.contains(": this master assigns no addresses until "), "{problem}");
        let metrics = get(self.master.address, "/overlay-master/metrics");
        let failed = metrics.lines().find(|line| {
            line.contains("status=\"failed\"") || line.contains("condition=\"failed\"")
        });
        assert!(failed.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
        let error = self
            .dir
            .run("master --config network.json --listen 127.0.0.1:0 --work-dir work")
            .failure();
        assert!(error.contains("another process has it open"), "{error}");
    }

    /// Checks that a new agent gets no addresses.
    fn expect_no_assignment(&self) {
        let mut agent = start_agent(&self.dir, self.master.address, "127.0.0.3");
        agent.expect_log("overlay agent at ");
        park_timeout(Duration::from_secs(3));
        assert!(!self.dir.path("cni-127.0.0.3/vxlan-1.conf").exists());
    }
}

#[test]
fn removed_state_file_stops_assignments() {
    let cluster = Cluster::start();
    fs::remove_file(cluster.state_file()).unwrap();
    cluster.expect_failed("overlay-master.redb: check: the file was removed or moved away, or its");
    cluster.expect_no_assignment();
    assert!(!cluster.state_file().exists(), "a file was created");
}

#[test]
fn replaced_state_file_stops_assignments_until_it_is_back() {
    let cluster = Cluster::start();
    let (path, away) = (cluster.state_file(), cluster.dir.path("work/state.bak"));
    fs::rename(&path, &away).unwrap();
    fs::copy(&away, &path).unwrap();
    cluster.expect_failed("the file was replaced: another file has its path");
    let copy = fs::read(&path).unwrap();
    cluster.expect_no_assignment();
    assert!(fs::read(&path).unwrap() == copy, "the master wrote to the copy");
    fs::rename(&away, &path).unwrap();
    // The master retries its store within half a minute.
    let mut waited = Duration::ZERO;
    while !get(cluster.master.address, "/overlay-master/state").contains("127.0.0.2") {
        assert!(waited < Duration::from_secs(60), "the master did not recover");
        park_timeout(POLL_INTERVAL);
        waited += POLL_INTERVAL;
    }
}

#[test]
fn overwritten_state_file_stops_assignments_and_keeps_backup() {
    let dir = TestDir::with_network();
    drop(Master::start(&dir));
    fs::copy(dir.path("work/overlay-master.redb"), dir.path("backup")).unwrap();
    let master = Master::start(&dir);
    let mut agent = start_agent(&dir, master.address, "127.0.0.2");
    agent.expect_log("registered with the master");
    let cluster = Cluster { dir, master, agent };
    fs::copy(cluster.dir.path("backup"), cluster.state_file()).unwrap();
    let problem = wait_for_status(&cluster.master, "failed");
    let is_named = ["another process wrote to the file", "the file holds an older state"]
        .iter()
        .any(|reason| problem.contains(reason));
    assert!(is_named, "{problem}");
    cluster.expect_no_assignment();
    let (status, _) = cluster.master.process.terminate();
    assert!(status.success());
    let backup = fs::read(cluster.dir.path("backup")).unwrap();
    let found = fs::read(cluster.dir.path("work/overlay-master.redb")).unwrap();
    assert!(found == backup, "the master wrote to the restored copy");
    drop(cluster.agent);
}

#[test]
fn removed_lock_file_stops_assignments() {
    let cluster = Cluster::start();
    fs::remove_file(cluster.dir.path("work/overlay-master.lock")).unwrap();
    cluster.expect_failed("the lock file work/overlay-master.lock was removed or moved away");
}

#[test]
fn emptied_work_directory_stays_locked() {
    let cluster = Cluster::start();
    for name in ["overlay-master.lock", "overlay-master.redb"] {
        fs::remove_file(cluster.dir.path("work").join(name)).unwrap();
    }
    let second = "master --config network.json --listen 127.0.0.1:0 --work-dir work";
    let error = cluster.dir.run(second).failure();
    assert!(error.contains("another process has it open"), "{error}");
    // The second master made another lock file.
    cluster.expect_failed("the lock file work/overlay-master.lock was re");
}

#[test]
fn state_and_lock_are_for_owner_only() {
    let dir = TestDir::with_network();
    drop(Master::start(&dir));
    let mode = |name: &str| fs::metadata(dir.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("work"), 0o700);
    assert_eq!(mode("work/overlay-master.redb"), 0o600);
    assert_eq!(mode("work/overlay-master.lock"), 0o600);
}

#[test]
fn export_and_dry_run_leave_work_directory_unchanged() {
    let cluster = Cluster::start();
    // A killed master leaves a file that redb repairs when it opens the file.
    let Cluster { dir, master, agent } = cluster;
    drop((master, agent));
    let content = || {
        let entries = fs::read_dir(dir.path("work")).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| {
                (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let before = content();
    dir.run("export --from file --work-dir work --output state.json").success();
    dir.run("import state.json --to file --work-dir work --replace --dry-run").success();
    assert!(content() == before, "a command that only reads changed a file");
}
