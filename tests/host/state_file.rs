//! The state file of a running master on a file system that is hidden or unmounted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::namespace::{Namespace, require_root_and_files, succeed};
use crate::process::{PROGRAM, Process};

const NETWORK: &str = include_str!("../../docs/network.json");

/// The master detects a loss within seconds, and retries within half a minute.
const TIMEOUT: Duration = Duration::from_secs(60);

fn mount(path: &Path) {
    succeed(Command::new("mount").args(["-t", "tmpfs", "mesos-overlay-test"]).arg(path));
}

/// Mounted file systems at one path. Dropping this value unmounts them.
struct Mounts<'a>(&'a Path);

impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        while Command::new("umount")
            .arg("-l")
            .arg(self.0)
            .output()
            .is_ok_and(|o| o.status.success())
        {}
    }
}

/// Waits until the log has `count` lines with `text`.
#[track_caller]
fn wait_for_log(log: &Path, text: &str, count: usize) {
    let mut waited = Duration::ZERO;
    loop {
        let content = fs::read_to_string(log).expect("a log");
        if content.matches(text).count() >= count {
            return;
        }
        assert!(waited < TIMEOUT, "no {text:?} in the log:\n{content}");
        let interval = Duration::from_millis(200);
        std::thread::park_timeout(interval);
        waited += interval;
    }
}

#[test]
#[ignore = "needs root: tests/run host"]
fn unmounted_or_hidden_state_stops_assignments() {
    require_root_and_files(&[]);
    let root = tempfile::tempdir().expect("a temporary directory");
    let (work_dir, log) = (root.path().join("work"), root.path().join("log"));
    let network = root.path().join("network.json");
    fs::create_dir(&work_dir).expect("a new directory");
    fs::write(&network, NETWORK).expect("a network file");
    mount(&work_dir);
    let mounts = Mounts(&work_dir);
    let host = Namespace::new();
    let mut command = host.command(PROGRAM);
    command.args(["master", "--listen", "127.0.0.1:5050"]);
    command.arg("--config").arg(&network).arg("--work-dir").arg(&work_dir);
    let master = Process::spawn(command, &log);
    wait_for_log(&log, "epoch 1 begins", 1);

    // Another file system hides the state, with a copy of all its files.
    let copy = root.path().join("copy");
    succeed(Command::new("cp").arg("-a").arg(&work_dir).arg(&copy));
    mount(&work_dir);
    for entry in fs::read_dir(&copy).expect("a readable directory") {
        let entry = entry.expect("a readable entry");
        if entry.path().is_file() {
            fs::copy(entry.path(), work_dir.join(entry.file_name())).expect("a copied file");
        }
    }
    wait_for_log(&log, "check: the lock file", 1);
    wait_for_log(&log, "is hidden: a file of another file system has its path", 1);
    succeed(Command::new("umount").arg(&work_dir));
    wait_for_log(&log, "epoch 2 begins", 1);

    // The volume is detached. The directory below it has no state, and gets none.
    succeed(Command::new("umount").arg("-l").arg(&work_dir));
    wait_for_log(&log, "was removed or moved away, or its file system was unmounted", 1);
    std::thread::park_timeout(Duration::from_secs(5));
    assert_eq!(fs::read_dir(&work_dir).expect("a readable directory").count(), 0);
    assert!(master.stop());
    drop(mounts);
}

/// Starts a master whose state is on a small file system at `work_dir`.
fn start_master(host: &Namespace, root: &Path, work_dir: &Path, log: &Path) -> Process {
    let network = root.join("network.json");
    fs::write(&network, NETWORK).expect("a network file");
    let mut command = host.command(PROGRAM);
    command.args(["master", "--listen", "127.0.0.1:5050"]);
    command.arg("--config").arg(&network).arg("--work-dir").arg(work_dir);
    let master = Process::spawn(command, log);
    wait_for_log(log, "epoch 1 begins", 1);
    master
}

#[test]
#[ignore = "needs root: tests/run host"]
fn full_disk_is_reported_until_there_is_space() {
    require_root_and_files(&[]);
    let root = tempfile::tempdir().expect("a temporary directory");
    let (work_dir, log) = (root.path().join("work"), root.path().join("log"));
    fs::create_dir(&work_dir).expect("a new directory");
    let mut tmpfs = Command::new("mount");
    succeed(tmpfs.args(["-t", "tmpfs", "-o", "size=1m", "mesos-overlay-test"]).arg(&work_dir));
    let mounts = Mounts(&work_dir);
    let host = Namespace::new();
    let master = start_master(&host, root.path(), &work_dir, &log);
    let filler = work_dir.join("filler");
    assert!(fs::write(&filler, vec![0; 2 << 20]).is_err(), "the file system is full");
    // A registration needs a commit. Its body is that of the recorded traffic.
    let body = root.path().join("body");
    fs::write(&body, b"\x0a\x09\x08\x01\x10\x01\x18\x01\x20\x8c\x0b").expect("a body");
    for agent in 2..40 {
        let mut curl = host.command("curl");
        curl.args(["-s", "--interface", &format!("127.0.0.{agent}"), "-X", "POST"]);
        let from = format!("Libprocess-From: overlay-agent@127.0.0.{agent}:5051");
        curl.args(["-H", &from, "--data-binary", &format!("@{}", body.display())]);
        let message = "mesos.modules.overlay.internal.RegisterAgentMessage";
        succeed(curl.arg(format!("http://127.0.0.1:5050/overlay-master/{message}")));
    }
    wait_for_log(&log, "No space left on device (os error 28): free some disk space", 1);
    fs::remove_file(&filler).expect("a file");
    wait_for_log(&log, "epoch 2 begins", 1);
    let content = fs::read_to_string(&log).expect("a log");
    assert!(!content.contains("another process wrote"), "{content}");
    assert!(master.stop());
    drop(mounts);
}
