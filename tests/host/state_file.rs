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
