//! Processes that run on a host until they are told to end.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::host::{Host, PATIENCE, child_of, wait_for};

/// A process that is killed at the end.
pub(crate) struct Daemon {
    /// nsenter, which ends as the process does.
    child: Child,
    pid: Option<Pid>,
    log: PathBuf,
}

impl Daemon {
    /// Starts a command of [`Host::command`]. It need not be up yet, or any more.
    pub(crate) fn start(host: &Host, name: &str, mut command: Command) -> Self {
        let log = host.new_log(name);
        let output = File::create(&log).expect("a log");
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log")).stderr(output);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = wait_for("the process starts", || {
            let pid = child_of(child.id()).and_then(|pid| Pid::from_raw(pid.parse().ok()?));
            let has_ended = !matches!(child.try_wait(), Ok(None));
            (pid.is_some() || has_ended).then_some(pid)
        });
        Self { child, pid, log }
    }

    /// Its number outside of the host.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.expect("it has started").as_raw_nonzero().get()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        // Once it was waited for, its number may be somebody else's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.pid.map(|pid| kill_process(pid, signal));
        }
    }

    /// Ends it in this way, and waits for that.
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.ended_within(PATIENCE);
    }

    /// Waits for its end.
    pub(crate) fn ended_within(&mut self, patience: Duration) -> ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(Instant::now() < end, "it has not ended within {patience:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has said something.
    pub(crate) fn says(&self, words: &str) -> String {
        wait_for(&format!("it says '{words}'"), || {
            self.log().lines().find(|line| line.contains(words)).map(str::to_owned)
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}
