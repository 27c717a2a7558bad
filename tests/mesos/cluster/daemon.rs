//! Processes that run on a host until a test ends them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::host::{Host, TIMEOUT, child_of, wait_for};

/// A process on a host. Dropping it kills the process.
pub(crate) struct Daemon {
    /// The nsenter process, which has the exit status of the process.
    child: Child,
    pid: Option<Pid>,
    log: PathBuf,
}

impl Daemon {
    /// Starts a command of [`Host::command`]. The process may still be starting, or may have ended.
    pub(crate) fn start(host: &Host, name: &str, mut command: Command) -> Self {
        let log = host.new_log(name);
        let output = File::create(&log).expect("a log");
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log")).stderr(output);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = wait_for("start of the process", || {
            let pid = child_of(child.id()).and_then(|pid| Pid::from_raw(pid.parse().ok()?));
            let has_ended = !matches!(child.try_wait(), Ok(None));
            (pid.is_some() || has_ended).then_some(pid)
        });
        Self { child, pid, log }
    }

    /// Returns the PID of the process in the namespace of the tests.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.expect("the process has started").as_raw_nonzero().get()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        // After a successful wait, the kernel may have given the PID to another process.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.pid.map(|pid| kill_process(pid, signal));
        }
    }

    /// Sends a signal, and waits for the end of the process.
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.wait_for_exit(TIMEOUT);
    }

    /// Waits for the end of the process. Returns its exit status.
    pub(crate) fn wait_for_exit(&mut self, timeout: Duration) -> ExitStatus {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is a child") {
                return status;
            }
            assert!(
                Instant::now() < end,
                "the process did not end within {timeout:?}:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the output of the process.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for a line of output that contains `text`. Returns the line.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        wait_for(&format!("log line with '{text}'"), || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}
